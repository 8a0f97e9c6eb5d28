//! What the program in a guest can do, and what is done to it.

// What stands outside of the test functions is test, too.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use flames_error::ErrorKind;
use flames_vmm::{
    AGENT_PORT, AgentChannel, ExitCause, IncarnationName, Phase, SecretBytes, SnapshotKind, StartFrom,
    StopHow, VmDriver,
};
use flames_vmm_simulated::{
    GuestFuture, GuestOrigin, GuestProgram, SimulatedConfig, SimulatedDriver, SimulatedGuest, SimulatedHost,
};
use futures::StreamExt;
use support::{SECOND, host, name, observe, pass, refused, running, spec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Answers each byte with its successor, one connection after the other; obeys words on port 7.
#[derive(Debug, Default)]
struct Program {
    ticks: Arc<AtomicU32>,
    ignores_button: bool,
}

impl GuestProgram for Program {
    fn boot(
        &self,
        incarnation: &IncarnationName,
        config: &SecretBytes,
        guest: SimulatedGuest,
    ) -> GuestFuture {
        assert_eq!(guest.incarnation(), incarnation);
        let (ticks, ignores_button) = (Arc::clone(&self.ticks), self.ignores_button);
        let greeting = match guest.origin() {
            GuestOrigin::Booted => format!("booted with {} bytes\n", config.0.len()),
            GuestOrigin::Restored { of, snapshot } => format!("restored from {of}/{snapshot}\n"),
        };
        Box::pin(async move {
            guest.write_console(greeting);
            guest.spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    ticks.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut agent = guest.listen(AGENT_PORT);
            loop {
                let mut stream = tokio::select! {
                    biased;
                    () = guest.power_button(), if !ignores_button => return,
                    Some(stream) = agent.accept() => stream,
                };
                while let Ok(byte) = stream.read_u8().await {
                    match byte {
                        b'!' => panic!("told to"),
                        b'0' => guest.power_off(),
                        b'>' => {
                            let mut to_host = guest.connect_to_host(9).unwrap();
                            to_host.write_all(b"from the guest").await.unwrap();
                        }
                        other => drop(stream.write_u8(other + 1).await),
                    }
                }
            }
        })
    }
}

fn with(program: Program) -> (Arc<SimulatedHost>, SimulatedDriver) {
    let program: Option<Arc<dyn GuestProgram>> = Some(Arc::new(program));
    host(SimulatedConfig { program, ..SimulatedConfig::default() })
}

async fn say(driver: &SimulatedDriver, vm: &IncarnationName, byte: u8) -> flames_vmm::GuestStream {
    pass(Duration::from_millis(1)).await;
    let mut stream = driver.connect(vm, AGENT_PORT).await.unwrap();
    stream.write_u8(byte).await.unwrap();
    stream
}

#[tokio::test(start_paused = true)]
async fn a_program_serves_connections_and_outlives_the_driver() {
    let (host, driver) = with(Program::default());
    let vm = running(&driver, "vm").await;
    assert_eq!(say(&driver, &vm, b'a').await.read_u8().await.unwrap(), b'b');
    let mut held = say(&driver, &vm, b'a').await;
    drop(driver);
    let driver = SimulatedDriver::new(host);
    assert_eq!(say(&driver, &vm, b'x').await.read_u8().await.unwrap(), b'y');
    held.read_u8().await.unwrap();
    assert!(held.read_u8().await.is_err(), "the newer connection ended the older");
    let console = driver.console(&vm, 0).await.unwrap();
    assert!(console.data.ends_with(b"booted with 3 bytes\n"), "{console:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_answers_before_the_program_listens() {
    #[derive(Debug)]
    struct Late;
    impl GuestProgram for Late {
        fn boot(&self, _: &IncarnationName, _: &SecretBytes, guest: SimulatedGuest) -> GuestFuture {
            Box::pin(async move {
                pass(SECOND).await;
                let _never_accepting = guest.listen(AGENT_PORT);
                guest.power_button().await;
            })
        }
    }
    let (_host, driver) =
        host(SimulatedConfig { program: Some(Arc::new(Late)), ..SimulatedConfig::default() });
    let vm = running(&driver, "vm").await;
    refused(driver.connect(&vm, AGENT_PORT).await, ErrorKind::Unavailable);
    refused(driver.connect(&vm, 80).await, ErrorKind::NotSupported);
    pass(2 * SECOND).await;
    let mut waiting = Vec::new();
    for _ in 0..16 {
        waiting.push(driver.connect(&vm, AGENT_PORT).await.unwrap());
    }
    refused(driver.connect(&vm, AGENT_PORT).await, ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_paused_program_stands_still() {
    let ticks = Arc::new(AtomicU32::new(0));
    let (_host, driver) = with(Program { ticks: Arc::clone(&ticks), ..Program::default() });
    let vm = running(&driver, "vm").await;
    let mut stream = say(&driver, &vm, b'a').await;
    stream.read_u8().await.unwrap();
    driver.pause(&vm).await.unwrap();
    let at_pause = ticks.load(Ordering::Relaxed);
    stream.write_u8(b'm').await.unwrap();
    assert!(tokio::time::timeout(10 * SECOND, stream.read_u8()).await.is_err());
    assert_eq!(ticks.load(Ordering::Relaxed), at_pause);
    refused(driver.connect(&vm, AGENT_PORT).await, ErrorKind::Conflict);
    driver.resume(&vm).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'n');
    pass(SECOND).await;
    assert!(ticks.load(Ordering::Relaxed) > at_pause);
}

#[tokio::test(start_paused = true)]
async fn a_program_ends_with_its_vm_and_with_its_host() {
    for ends_with_host in [false, true] {
        let ticks = Arc::new(AtomicU32::new(0));
        let (host, driver) = with(Program { ticks: Arc::clone(&ticks), ..Program::default() });
        let vm = running(&driver, "vm").await;
        let mut stream = say(&driver, &vm, b'a').await;
        stream.read_u8().await.unwrap();
        if ends_with_host {
            drop(driver);
            drop(host);
        } else {
            assert!(host.crash_vm(&vm));
            drop((host, driver));
        }
        assert!(stream.read_u8().await.is_err());
        pass(SECOND).await;
        assert_eq!(Arc::strong_count(&ticks), 1, "program, task and host are gone");
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_obeys_its_power_button_or_is_killed() {
    for (ignores_button, signal) in [(false, None), (true, Some(9))] {
        let (_host, driver) = with(Program { ignores_button, ..Program::default() });
        let vm = running(&driver, "vm").await;
        pass(SECOND).await;
        let begun = tokio::time::Instant::now();
        driver.stop(&vm, StopHow::PowerOff { grace: 7 * SECOND }).await.unwrap();
        assert_eq!(begun.elapsed(), if ignores_button { 7 * SECOND } else { Duration::ZERO });
        let exit = observe(&driver, &vm).await.exit.unwrap();
        assert_eq!((exit.cause, exit.signal), (ExitCause::Stopped, signal));
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_powers_off_or_panics() {
    let (_host, driver) = with(Program::default());
    let off = running(&driver, "off").await;
    drop(say(&driver, &off, b'0').await);
    let panics = running(&driver, "panics").await;
    drop(say(&driver, &panics, b'!').await);
    pass(SECOND).await;
    let exit = observe(&driver, &off).await.exit.unwrap();
    assert_eq!((exit.cause, exit.code, exit.message), (ExitCause::Guest, Some(0), None));
    let exit = observe(&driver, &panics).await.exit.unwrap();
    assert_eq!((exit.cause, exit.code), (ExitCause::Guest, None));
    assert_eq!(exit.message.unwrap(), "the guest's program panicked: told to");
}

#[tokio::test(start_paused = true)]
async fn a_guest_connects_to_its_host() {
    let (_host, driver) = host(SimulatedConfig {
        program: Some(Arc::new(Program::default())),
        agent_channel: AgentChannel::Multiplexed,
        ..SimulatedConfig::default()
    });
    let vm = running(&driver, "vm").await;
    let mut connections = driver.accept(&vm, 9).await.unwrap();
    let _asking = say(&driver, &vm, b'>').await;
    let mut words = String::new();
    connections.next().await.unwrap().read_to_string(&mut words).await.unwrap();
    assert_eq!(words, "from the guest");
    driver.stop(&vm, StopHow::Kill).await.unwrap();
    assert!(connections.next().await.is_none(), "it ends with the VM");
    refused(driver.accept(&vm, 9).await.map(drop), ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn a_restored_program_knows_where_it_comes_from() {
    let (_host, driver) = with(Program::default());
    let vm = running(&driver, "vm").await;
    let saved = driver.snapshot(&vm, "warm", SnapshotKind::Full).await.unwrap();
    let restored = name("restored");
    driver.prepare(&restored, &spec()).await.unwrap();
    driver.start(&restored, StartFrom::Snapshot(saved), true).await.unwrap();
    pass(SECOND).await;
    assert_eq!(observe(&driver, &restored).await.phase, Phase::Paused);
    let before = driver.console(&restored, 0).await.unwrap().data;
    assert!(!before.ends_with(b"restored from vm/warm\n"), "nothing of it ran while it was paused");
    driver.resume(&restored).await.unwrap();
    pass(SECOND).await;
    assert!(driver.console(&restored, 0).await.unwrap().data.ends_with(b"restored from vm/warm\n"));
}
