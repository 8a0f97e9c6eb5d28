//! An agent in service mode, in this process, over an in-memory stream.

use std::sync::Arc;
use std::time::Duration;

use flames_guest_agent::{Agent, AgentOptions};
use flames_guest_protocol::client::{ProcessEvent, ProcessOutput};
use flames_guest_protocol::config::WorkloadConfig;
use flames_guest_protocol::message::{ExecRequest, ProcessExit};
use flames_guest_protocol::{AgentClient, AgentKey, ConnectOptions, GuestConfig, Identity, Result};
use tokio::io::DuplexStream;

pub(crate) fn identity() -> Identity {
    Identity { incarnation: "inc_test".into(), key: AgentKey::from_bytes([3; 32]) }
}

pub(crate) fn agent(workload: Option<WorkloadConfig>) -> Arc<Agent> {
    let Identity { incarnation, key } = identity();
    let config = GuestConfig {
        incarnation,
        key,
        hostname: "guest".into(),
        root: None,
        network: None,
        workload,
        epoch_ms: 0,
    };
    let agent = Agent::new(config, AgentOptions::default()).unwrap();
    agent.start_workload();
    agent
}

pub(crate) fn options() -> ConnectOptions {
    ConnectOptions { handshake_timeout: Duration::from_secs(10), operation_timeout: Duration::from_secs(20) }
}

/// A new byte stream on which the agent serves.
pub(crate) fn stream(agent: &Arc<Agent>) -> DuplexStream {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let agent = agent.clone();
    tokio::spawn(async move { agent.serve(guest).await });
    host
}

pub(crate) async fn connect(agent: &Arc<Agent>) -> AgentClient {
    AgentClient::connect(stream(agent), &identity(), options()).await.unwrap()
}

pub(crate) fn shell(script: &str) -> ExecRequest {
    ExecRequest { argv: vec!["/bin/sh".into(), "-c".into(), script.into()], ..ExecRequest::default() }
}

pub(crate) fn workload(script: &str) -> Option<WorkloadConfig> {
    let argv = vec!["/bin/sh".into(), "-c".into(), script.into()];
    Some(WorkloadConfig { argv, ..WorkloadConfig::default() })
}

#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) terminal: Vec<u8>,
    pub(crate) next_offset: u64,
    pub(crate) truncated: Option<u64>,
    pub(crate) exit: Option<ProcessExit>,
}

/// Everything until the end.
pub(crate) async fn collect(output: &mut ProcessOutput) -> Result<Collected> {
    let mut collected = Collected::default();
    while let Some(event) = output.next().await? {
        take(&mut collected, event);
    }
    Ok(collected)
}

/// Everything until the terminal or standard output shows `text`.
pub(crate) async fn collect_until(output: &mut ProcessOutput, text: &str) -> Collected {
    let mut collected = Collected::default();
    let waiting = async {
        while let Some(event) = output.next().await.unwrap() {
            take(&mut collected, event);
            let seen = [&collected.stdout, &collected.terminal];
            if seen.iter().any(|bytes| String::from_utf8_lossy(bytes).contains(text)) {
                return;
            }
        }
        panic!("the output ended without {text:?}");
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
    collected
}

fn take(collected: &mut Collected, event: ProcessEvent) {
    match event {
        ProcessEvent::Output { stream, offset, content, .. } => {
            if collected.next_offset != 0 {
                assert_eq!(offset, collected.next_offset, "output has a gap");
            }
            collected.next_offset = offset + content.len() as u64;
            match stream {
                1 => collected.stdout.extend(content),
                2 => collected.stderr.extend(content),
                _ => collected.terminal.extend(content),
            }
        }
        ProcessEvent::Truncated { available_from } => {
            collected.truncated = Some(available_from);
            collected.next_offset = available_from;
        }
        ProcessEvent::Exited(exit) => collected.exit = Some(exit),
    }
}
