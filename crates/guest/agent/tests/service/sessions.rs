//! What the agent promises about sessions: they end, break and begin anew, and the guest goes on.

use std::sync::Arc;
use std::time::Duration;

use crate::common::*;
use flames_guest_agent::Agent;
use flames_guest_protocol::limits::MAX_STREAMS;
use flames_guest_protocol::message::{AttachRequest, ExecRequest, RestoredRequest, WriteFileRequest};
use flames_guest_protocol::{AgentClient, AgentKey, ErrorKind, Identity, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

/// One byte stream to the agent that several hosts use one after the other, as QEMU's socket does for a
/// virtio-serial port: the agent sees no hang-up, and bytes of one host stay for the next.
struct Port {
    hosts: mpsc::Sender<DuplexStream>,
}

impl Port {
    fn new(agent: &Arc<Agent>) -> Self {
        let mut port = stream(agent);
        let (hosts, mut waiting) = mpsc::channel::<DuplexStream>(1);
        tokio::spawn(async move {
            while let Some(host) = waiting.recv().await {
                let (mut from_host, mut to_host) = tokio::io::split(host);
                let (mut from_agent, mut to_agent) = tokio::io::split(&mut port);
                tokio::select! {
                    _ = tokio::io::copy(&mut from_host, &mut to_agent) => {}
                    _ = tokio::io::copy(&mut from_agent, &mut to_host) => {}
                }
            }
        });
        Self { hosts }
    }

    async fn open(&self) -> DuplexStream {
        let (host, end) = tokio::io::duplex(4096);
        self.hosts.send(end).await.unwrap();
        host
    }

    async fn connect(&self) -> AgentClient {
        AgentClient::connect(self.open().await, &identity(), options()).await.unwrap()
    }
}

#[tokio::test]
async fn info_says_who_the_guest_is() {
    let client = connect(&agent(None)).await;
    let info = client.info().await.unwrap();
    assert_eq!((info.incarnation.as_str(), info.hostname.as_str(), info.init), ("inc_test", "guest", false));
    assert!(info.uptime_ms > 0 && !info.kernel.is_empty());
}

#[tokio::test]
async fn a_wrong_key_or_incarnation_is_refused_and_the_right_one_then_gets_in() {
    let port = Port::new(&agent(None));
    let wrong_key = Identity { key: AgentKey::from_bytes([4; 32]), ..identity() };
    let wrong_incarnation = Identity { incarnation: "inc_other".into(), ..identity() };
    for wrong in [wrong_key, wrong_incarnation] {
        let refused = AgentClient::connect(port.open().await, &wrong, options()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::PermissionDenied);
        assert!(refused.message.contains("refused"), "{refused}");
    }
    port.connect().await.info().await.unwrap();
}

#[tokio::test]
async fn a_session_begins_behind_any_noise() {
    let port = Port::new(&agent(None));
    for noise in [&b"FLAMES\xf1AGENT\x0d\x0a\x1a\x01"[..], &[0; 10_000], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut raw = port.open().await;
        raw.write_all(noise).await.unwrap();
        drop(raw);
        port.connect().await.info().await.unwrap();
    }
}

#[tokio::test]
async fn a_host_that_died_anywhere_leaves_a_channel_that_the_next_one_can_use() {
    let agent = agent(None);
    let port = Port::new(&agent);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file").to_str().unwrap().to_owned();
    for round in 0..30 {
        let client = port.connect().await;
        let request =
            ExecRequest { process: Some(format!("loud{round}")), ..shell("head -c 3000000 /dev/zero") };
        let (_, mut loud) = client.exec(request).await.unwrap();
        let request = WriteFileRequest { path: path.clone(), mode: None, owner: None, overwrite: true };
        let mut file = client.write_file(request).await.unwrap();
        // Torn off in the middle of what flows in both directions.
        let flowing = async {
            let write = async { while file.write(&[7; 50_000]).await.is_ok() {} };
            let read = async { while loud.output.next().await.is_ok_and(|event| event.is_some()) {} };
            tokio::join!(write, read)
        };
        let torn = tokio::time::timeout(Duration::from_millis(round), flowing).await;
        assert!(torn.is_err());
        drop((client, loud));
        let file_stream_dropped = file;
        drop(file_stream_dropped);
    }
    let client = port.connect().await;
    client.info().await.unwrap();
    let begun = std::time::Instant::now();
    while std::fs::read_dir(folder.path()).unwrap().count() > 0 {
        assert!(begun.elapsed().as_secs() < 10, "half-written files must go");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for round in 0..30 {
        let exit = client.wait(&format!("loud{round}"), Some(Duration::from_secs(20))).await.unwrap();
        assert_eq!(exit.code, Some(0));
    }
}

#[tokio::test]
async fn garbage_in_an_open_session_ends_it_and_the_next_one_begins() {
    let agent = agent(None);
    let client = connect(&agent).await;
    let (mut host, guest) = tokio::io::duplex(4096);
    let serving = agent.clone();
    tokio::spawn(async move { serving.serve(guest).await });
    let (end, mut relay) = tokio::io::duplex(4096);
    let relaying = tokio::spawn(async move {
        let until = tokio::time::sleep(Duration::from_millis(500));
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut host, &mut relay) => {}
            () = until => {}
        }
        host
    });
    let broken = AgentClient::connect(end, &identity(), options()).await.unwrap();
    broken.info().await.unwrap();
    let mut host = relaying.await.unwrap();
    host.write_all(&[0xaa; 1000]).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(5), broken.closed()).await.is_ok());
    AgentClient::connect(host, &identity(), options()).await.unwrap().info().await.unwrap();
    client.info().await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_too_long_is_refused_before_it_is_sent() {
    let client = connect(&agent(None)).await;
    let request = ExecRequest { env: vec![("A".into(), "x".repeat(70_000))], ..shell("true") };
    assert_eq!(client.exec(request).await.unwrap_err().kind, ErrorKind::InvalidInput);
    client.info().await.unwrap();
}

#[tokio::test]
async fn one_stream_too_many_is_refused_and_the_others_go_on() {
    let agent = agent(workload("sleep 60"));
    let client = connect(&agent).await;
    let request = AttachRequest { process: "main".into(), follow: true, ..AttachRequest::default() };
    let mut open = Vec::new();
    for _ in 0..MAX_STREAMS {
        open.push(client.attach(request.clone()).await.unwrap());
    }
    assert_eq!(client.info().await.unwrap_err().kind, ErrorKind::Exhausted);
    open.pop();
    client.info().await.unwrap();
    drop(open);
    client.signal("main", 9, true).await.unwrap();
}

#[tokio::test]
async fn a_tcp_stream_carries_both_directions_and_their_ends() {
    let client = connect(&agent(None)).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        connection.read_to_end(&mut request).await.unwrap();
        connection.write_all(&request).await.unwrap();
        request.len()
    });
    let mut stream = client.tcp(port).await.unwrap();
    let sent: Vec<u8> = (0..1_000_000u32).map(|number| number as u8).collect();
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).await.unwrap();
    assert_eq!(server.await.unwrap(), sent.len());
    assert!(echoed == sent);
}

#[tokio::test]
async fn a_port_on_which_nobody_listens_is_unavailable() {
    let client = connect(&agent(None)).await;
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    assert_eq!(client.tcp(free).await.unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn the_end_of_the_agent_is_seen_and_ends_every_stream() {
    let agent = agent(workload("sleep 60"));
    let (host, guest) = tokio::io::duplex(4096);
    let serving = tokio::spawn(async move { agent.serve(guest).await });
    let client = AgentClient::connect(host, &identity(), options()).await.unwrap();
    let request = AttachRequest { process: "main".into(), follow: true, ..AttachRequest::default() };
    let (status, mut process) = client.attach(request).await.unwrap();
    serving.abort();
    assert_eq!(process.output.next().await.unwrap_err().kind, ErrorKind::Unavailable);
    client.closed().await;
    assert!(client.is_closed());
    assert_eq!(client.info().await.unwrap_err().kind, ErrorKind::Unavailable);
    let pid = rustix::process::Pid::from_raw(i32::try_from(status.pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn restored_request(seed: &str) -> RestoredRequest {
    RestoredRequest {
        incarnation: "inc_copy".into(),
        key: AgentKey::from_bytes([9; 32]),
        hostname: "copy".into(),
        network: None,
        epoch_ms: 1,
        seed: SecretString::new(seed),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
    }
}

#[tokio::test]
async fn a_restored_guest_takes_its_new_identity_and_no_other_and_its_workload_goes_on() {
    let agent = agent(workload("while true; do sleep 0.1; done"));
    let port = Port::new(&agent);
    let before = port.connect().await;
    // One on another stream, as a vsock device has them.
    let other = connect(&agent).await;
    let pid = before.processes().await.unwrap()[0].pid;
    for wrong in ["", "00", "no seed"] {
        let refused = before.restored(restored_request(wrong)).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::InvalidInput);
    }
    before.info().await.unwrap();
    before.restored(restored_request(&"5a".repeat(32))).await.unwrap();
    // The agent serves them no more; on a port that has no hang-up, its host cannot see that.
    drop((before, other));
    let refused = AgentClient::connect(port.open().await, &identity(), options()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::PermissionDenied);
    let new = Identity { incarnation: "inc_copy".into(), key: AgentKey::from_bytes([9; 32]) };
    let after = AgentClient::connect(port.open().await, &new, options()).await.unwrap();
    assert_eq!(after.info().await.unwrap().incarnation, "inc_copy");
    let process = &after.processes().await.unwrap()[0];
    assert!(process.pid == pid && process.exit.is_none(), "{process:?}");
    after.flush().await.unwrap();
}
