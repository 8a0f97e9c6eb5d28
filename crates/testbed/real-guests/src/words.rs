//! Calls of a driver that wait for what they are to see, and words to a guest that echoes lines at the agent's port.

use std::time::Duration;

use flames_vmm::{AGENT_PORT, GuestStream, IncarnationName, Observation, Phase, VmDriver};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

/// How long anything may take, also under emulation on a busy host.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// The incarnation of this name.
pub fn name(text: &str) -> IncarnationName {
    IncarnationName::new(text).unwrap()
}

/// In which phase it is observed.
pub async fn phase(driver: &dyn VmDriver, incarnation: &IncarnationName) -> Phase {
    driver.observe(incarnation).await.unwrap().phase
}

/// Waits until the incarnation is in the phase.
pub async fn until(driver: &dyn VmDriver, incarnation: &IncarnationName, phase: Phase) -> Observation {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let observed = driver.observe(incarnation).await.unwrap();
        if observed.phase == phase {
            return observed;
        }
        assert!(Instant::now() < deadline, "{incarnation} does not become {phase:?}: {observed:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A connection over which the guest has echoed.
pub async fn talk(driver: &dyn VmDriver, incarnation: &IncarnationName) -> GuestStream {
    let mut stream = driver.connect(incarnation, AGENT_PORT).await.unwrap();
    assert_eq!(ask(&mut stream, "hello").await, "hello");
    stream
}

/// Says a line and returns the line that is answered.
pub async fn ask(stream: &mut GuestStream, line: &str) -> String {
    timeout(PATIENCE, async {
        stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        loop {
            match stream.read_u8().await.unwrap() {
                b'\n' => return String::from_utf8(answer).unwrap(),
                byte => answer.push(byte),
            }
        }
    })
    .await
    .expect("the guest answers")
}

/// Has the guest end itself, which it does at the word `reboot`.
pub async fn reboot(driver: &dyn VmDriver, incarnation: &IncarnationName) {
    let mut stream = talk(driver, incarnation).await;
    stream.write_all(b"reboot\n").await.unwrap();
    // The connection must outlive the words.
    tokio::spawn(async move { tokio::io::copy(&mut stream, &mut tokio::io::sink()).await });
}

/// Waits until the console has the text, and returns all of it.
pub async fn console_with(driver: &dyn VmDriver, incarnation: &IncarnationName, text: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut read = Vec::new();
        let mut from = 0;
        loop {
            let chunk = driver.console(incarnation, from).await.unwrap();
            if chunk.data.is_empty() {
                break;
            }
            from = chunk.offset + chunk.data.len() as u64;
            read.extend_from_slice(&chunk.data);
        }
        let read = String::from_utf8_lossy(&read).into_owned();
        if read.contains(text) {
            return read;
        }
        assert!(Instant::now() < deadline, "no {text:?} on the console: {read}");
        sleep(Duration::from_millis(50)).await;
    }
}
