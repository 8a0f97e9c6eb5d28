//! Talks to an agent by hand: makes a config drive, and runs a command over the agent's channel.
//!
//! ```text
//! talk config DRIVE [--root LOWER [UPPER]] [--net] [-- WORKLOAD...]
//! talk exec SOCKET [--tty] -- COMMAND...
//! talk info SOCKET | talk logs SOCKET | talk wait SOCKET | talk shutdown SOCKET
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Write;
use std::time::Duration;

use flames_guest_protocol::client::{ProcessEvent, ProcessStream};
use flames_guest_protocol::config::{Device, InterfaceAddress, NetworkConfig, RootConfig, WorkloadConfig};
use flames_guest_protocol::message::{AttachRequest, ExecRequest, TerminalSize};
use flames_guest_protocol::{AgentClient, AgentKey, ConnectOptions, Error, GuestConfig, Identity};
use tokio::net::UnixStream;

// For trials only: a real key is random and known to nobody else.
fn identity() -> Identity {
    Identity { incarnation: "inc_trial".into(), key: AgentKey::from_bytes([0x42; 32]) }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let command = match words.iter().position(|word| word == "--") {
        Some(at) => {
            let command = words.split_off(at + 1);
            words.pop();
            command
        }
        None => Vec::new(),
    };
    let (Some(verb), Some(path)) = (words.first(), words.get(1)) else {
        return Err("see the head of talk.rs".into());
    };
    if verb == "config" {
        std::fs::write(path, config(&words[2..], command)?.encode()?)?;
        return Ok(());
    }
    let begun = std::time::Instant::now();
    let socket = UnixStream::connect(path).await?;
    let client = AgentClient::connect(socket, &identity(), ConnectOptions::default()).await?;
    eprintln!("connected after {} ms", begun.elapsed().as_millis());
    match verb.as_str() {
        "info" => println!("{}", serde_json::to_string_pretty(&client.info().await?)?),
        "exec" => {
            let tty = words.iter().any(|word| word == "--tty");
            let tty = tty.then_some(TerminalSize { rows: 24, columns: 80 });
            let (started, stream) =
                client.exec(ExecRequest { argv: command, tty, ..ExecRequest::default() }).await?;
            show(stream).await?;
            client.acknowledge_exit(&started.process).await?;
        }
        "logs" => {
            let request = AttachRequest { process: "main".into(), ..AttachRequest::default() };
            show(client.attach(request).await?.1).await?;
        }
        "wait" => println!("{:?}", client.wait("main", None).await?),
        "shutdown" => {
            client.shutdown(Duration::from_secs(5)).await?;
            let mut events = client.events(0).await?;
            while let Ok(event) = events.next().await {
                println!("{event:?}");
                client.acknowledge_exit("main").await?;
            }
        }
        other => return Err(format!("unknown word {other}").into()),
    }
    Ok(())
}

fn config(words: &[String], argv: Vec<String>) -> Result<GuestConfig, Box<dyn std::error::Error>> {
    let after = |flag: &str, distance: usize| {
        let at = words.iter().position(|word| word == flag)?;
        words.get(at + distance).filter(|word| !word.starts_with("--")).cloned()
    };
    let Identity { incarnation, key } = identity();
    let network = NetworkConfig {
        interface: "eth0".into(),
        addresses: vec![InterfaceAddress { address: "10.0.2.15".parse()?, prefix: 24 }],
        gateways: vec!["10.0.2.2".parse()?],
        dns: vec!["10.0.2.3".parse()?],
        mtu: None,
        mac: None,
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(GuestConfig {
        incarnation,
        key,
        hostname: "trial".into(),
        root: after("--root", 1).map(|lower| RootConfig {
            lower: Device::Path(lower),
            lower_filesystem: "ext4".into(),
            upper: after("--root", 2).map(Device::Path),
        }),
        network: words.iter().any(|word| word == "--net").then_some(network),
        workload: Some(WorkloadConfig { argv, ..WorkloadConfig::default() }),
        epoch_ms: u64::try_from(now.as_millis())?,
    })
}

async fn show(mut stream: ProcessStream) -> Result<(), Error> {
    while let Some(event) = stream.output.next().await? {
        match event {
            ProcessEvent::Output { stream: 2, content, .. } => drop(std::io::stderr().write_all(&content)),
            ProcessEvent::Output { content, .. } => drop(std::io::stdout().write_all(&content)),
            other => eprintln!("{other:?}"),
        }
    }
    Ok(())
}
