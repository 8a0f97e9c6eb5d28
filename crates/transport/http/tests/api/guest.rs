//! Streams to a guest, over real sockets, with a guest that is played.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use flames_client::wire::stream::{
    DirectoryEntry, ExitStatus, FileAnswer, FileInfo, FileKind, FileRequest, ProcessAnswer, ProcessRequest,
    StreamFrame, StreamRequest,
};
use flames_client::wire::{
    self, AttachQuery, ExecRequest, FileList, FileRemove, FileWrite, LogQuery, SignalProcess,
};
use flames_client::{Client, ClientConfig};
use flames_clock::SystemClock;
use flames_error::{Error, ErrorKind, Result};
use flames_model::{ControllerId, IncarnationId};
use flames_service::{LinkChannel, LinkStream, LinkTarget, codes};
use flames_transport_http::{Access, ServeConfig, serve_tcp};
use flames_transport_link::{InProcessLinks, LinkHandler, Registration};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::common::{Harness, place_and_run, project};

/// A guest: says back what it hears.
#[derive(Debug)]
struct Played;

fn info(size_bytes: u64) -> FileInfo {
    FileInfo {
        kind: FileKind::File,
        size_bytes,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified_at: flames_clock::Timestamp::UNIX_EPOCH,
        link_target: None,
    }
}

struct Host(LinkChannel);

impl Host {
    async fn say(&self, frame: StreamFrame) {
        self.0.sender.send(frame.encode().unwrap()).await.ok();
    }

    async fn hear(&mut self) -> Option<StreamFrame> {
        Some(StreamFrame::decode(self.0.receiver.recv().await?).unwrap())
    }

    async fn exec(mut self, request: ExecRequest) {
        if request.command[0] == "/missing" {
            let error = Error::new(ErrorKind::NotFound, "guest.exec", "no such program")
                .with_code("PROCESS_NOT_FOUND")
                .with_user_message("/missing is not in the image.");
            return self.say(StreamFrame::error(&error)).await;
        }
        self.say(StreamFrame::Started { process: "p1".to_owned() }).await;
        let mut offset = 0;
        while let Some(frame) = self.hear().await {
            match frame {
                StreamFrame::Stdin(data) => {
                    let length = u64::try_from(data.len()).unwrap();
                    self.say(StreamFrame::Stdout { offset, data }).await;
                    offset += length;
                }
                StreamFrame::Resize { rows, columns } => {
                    let data = Bytes::from(format!("{rows}x{columns}"));
                    self.say(StreamFrame::Stderr { offset, data }).await;
                }
                StreamFrame::Signal(signal) => {
                    let signal = Some(i32::from(signal));
                    self.say(StreamFrame::Exit(ExitStatus { code: None, signal })).await;
                    break;
                }
                StreamFrame::StdinClosed => {
                    self.say(StreamFrame::Exit(ExitStatus { code: Some(3), signal: None })).await;
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        self.say(StreamFrame::End).await;
    }

    async fn files(mut self) {
        let Some(StreamFrame::FileRequest(request)) = self.hear().await else { panic!("no request") };
        match request {
            FileRequest::Read { path } if path == "/etc/hostname" => {
                self.say(StreamFrame::FileAnswer(FileAnswer::Info(info(4)))).await;
                self.say(StreamFrame::Data(Bytes::from_static(b"we"))).await;
                self.say(StreamFrame::Data(Bytes::from_static(b"b\n"))).await;
            }
            FileRequest::Write { .. } => {
                self.say(StreamFrame::FileAnswer(FileAnswer::Ready)).await;
                let mut size = 0;
                while let Some(StreamFrame::Data(data)) = self.hear().await {
                    size += u64::try_from(data.len()).unwrap();
                }
                self.say(StreamFrame::FileAnswer(FileAnswer::Info(info(size)))).await;
            }
            FileRequest::List { .. } => {
                for name in ["a", "b"] {
                    let entries = vec![DirectoryEntry { name: name.to_owned(), info: info(1) }];
                    self.say(StreamFrame::FileAnswer(FileAnswer::Entries { entries, more: true })).await;
                }
            }
            FileRequest::Remove { .. } => self.say(StreamFrame::FileAnswer(FileAnswer::Done)).await,
            _ => {
                let error = Error::new(ErrorKind::NotFound, "guest.files", "gone")
                    .with_user_message("No such file\u{1b}[2J.");
                return self.say(StreamFrame::error(&error)).await;
            }
        }
        self.say(StreamFrame::End).await;
    }

    async fn processes(mut self) {
        match self.hear().await {
            Some(StreamFrame::ProcessRequest(ProcessRequest::Signal { process, .. }))
                if process == "main" =>
            {
                self.say(StreamFrame::ProcessAnswer(ProcessAnswer::Done)).await;
            }
            Some(StreamFrame::ProcessRequest(ProcessRequest::List)) => {
                self.say(StreamFrame::ProcessAnswer(ProcessAnswer::Processes(Vec::new()))).await;
            }
            _ => {
                let error = Error::not_found("guest.processes", "process", "p");
                return self.say(StreamFrame::error(&error)).await;
            }
        }
        self.say(StreamFrame::End).await;
    }

    async fn output(self, attached: bool) {
        if attached {
            self.say(StreamFrame::Started { process: "main".to_owned() }).await;
        }
        self.say(StreamFrame::Truncated { before: 5 }).await;
        self.say(StreamFrame::Stdout { offset: 5, data: Bytes::from_static(b"out\n") }).await;
        self.say(StreamFrame::Stderr { offset: 9, data: Bytes::from_static(b"err\n") }).await;
        self.say(StreamFrame::End).await;
    }

    async fn tcp(mut self) {
        self.say(StreamFrame::Connected).await;
        while let Some(frame) = self.hear().await {
            match frame {
                StreamFrame::Data(_) => self.say(frame).await,
                _ => break,
            }
        }
        self.say(StreamFrame::End).await;
    }
}

#[async_trait]
impl LinkHandler for Played {
    async fn open(&self, _: IncarnationId, request: StreamRequest, channel: LinkChannel) -> Result<()> {
        let host = Host(channel);
        match request {
            StreamRequest::Exec(request) => tokio::spawn(host.exec(request)),
            StreamRequest::Files => tokio::spawn(host.files()),
            StreamRequest::Processes => tokio::spawn(host.processes()),
            StreamRequest::Attach { .. } => tokio::spawn(host.output(true)),
            StreamRequest::Logs { .. } => tokio::spawn(host.output(false)),
            StreamRequest::Console { .. } => {
                return Err(Error::not_found("guest.console", "incarnation", "x"));
            }
            StreamRequest::Tcp { port: 80 } => tokio::spawn(host.tcp()),
            StreamRequest::Tcp { .. } => return Err(Error::unavailable("guest.tcp", "refused")),
        };
        Ok(())
    }
}

struct Running {
    harness: Harness,
    client: Client,
    server: JoinHandle<()>,
    _registration: Registration,
}

/// A host that was started anew, and takes its VMs up after it was asked some times.
#[derive(Debug)]
struct TakingUp(AtomicUsize);

#[async_trait]
impl LinkHandler for TakingUp {
    async fn open(&self, id: IncarnationId, request: StreamRequest, channel: LinkChannel) -> Result<()> {
        let take = |left: usize| left.checked_sub(1);
        if self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return Err(Error::not_found("controller.stream", "incarnation", id.to_string()));
        }
        Played.open(id, request, channel).await
    }
}

async fn running() -> Running {
    running_on(Arc::new(Played)).await
}

async fn running_on(host: Arc<dyn LinkHandler>) -> Running {
    let links = InProcessLinks::new(Arc::new(SystemClock::new()));
    let controller = ControllerId::from_uuid(uuid::Uuid::from_u128(7));
    let registration = links.register(controller, host);
    let harness = Harness::with(Arc::new(links), |_| {});
    let vm = harness.create("web").await;
    place_and_run(&harness.service, vm["id"].as_str().unwrap()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = harness.api.router(Access::Token { token: "t".to_owned(), hosts: Vec::new() });
    let server = tokio::spawn(serve_tcp(listener, router, ServeConfig::default(), harness.api.stop_token()));
    let client = Client::tcp(&address, ClientConfig::default().with_token("t")).unwrap();
    Running { harness, client, server, _registration: registration }
}

fn command(program: &str) -> ExecRequest {
    ExecRequest { command: vec![program.to_owned()], stdin: true, ..ExecRequest::default() }
}

#[tokio::test]
async fn a_host_that_was_started_anew_is_asked_again_until_it_has_taken_its_vm_up() {
    let running = running_on(Arc::new(TakingUp(AtomicUsize::new(3)))).await;
    let mut stream = running.client.exec("web", &command("/bin/cat")).await.unwrap();
    let started = stream.receiver.next().await.unwrap();
    assert_eq!(started, Some(StreamFrame::Started { process: "p1".to_owned() }));
}

/// As an ingress does for a port, which holds a target and no caller.
async fn dial(running: &Running) -> Result<LinkChannel> {
    let id =
        running.harness.call("GET", "/v1/vms/web", None).await.json["id"].as_str().unwrap().parse().unwrap();
    let entry = running.harness.service.records().vm(&project(), id).await.unwrap().unwrap();
    let incarnation = entry.incarnation.unwrap();
    let target = LinkTarget { incarnation: incarnation.id, vm: id, controller: incarnation.controller };
    running.harness.service.open_link(target, LinkStream::Tcp(80)).await
}

#[tokio::test]
async fn a_dial_of_a_port_waits_too_for_a_host_that_was_started_anew() {
    let running = running_on(Arc::new(TakingUp(AtomicUsize::new(3)))).await;
    dial(&running).await.unwrap();
}

#[tokio::test]
async fn a_host_that_never_takes_a_vm_up_is_told_alike_by_all_that_open_streams() {
    let running = running_on(Arc::new(TakingUp(AtomicUsize::new(usize::MAX)))).await;
    let read = running.harness.call("GET", "/v1/vms/web/files?path=/etc/hostname", None);
    let (read, dialled) = tokio::join!(read, dial(&running));
    read.refused(503, codes::HOST_UNREACHABLE);
    assert_eq!(read.json["detail"], "The VM is just changing. Try again.");
    let error = dialled.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, Some(codes::HOST_UNREACHABLE)));
}

#[tokio::test]
async fn exec_carries_input_output_size_and_exit() {
    let running = running().await;
    let mut stream = running.client.exec("web", &command("/bin/cat")).await.unwrap();
    let next = async |stream: &mut flames_client::FrameStream| stream.receiver.next().await.unwrap();
    assert_eq!(next(&mut stream).await, Some(StreamFrame::Started { process: "p1".to_owned() }));
    let data = Bytes::from(vec![7; 100_000]);
    stream.sender.send(&StreamFrame::Stdin(data.clone())).await.unwrap();
    assert_eq!(next(&mut stream).await, Some(StreamFrame::Stdout { offset: 0, data }));
    stream.sender.send(&StreamFrame::Resize { rows: 24, columns: 80 }).await.unwrap();
    let data = Bytes::from_static(b"24x80");
    assert_eq!(next(&mut stream).await, Some(StreamFrame::Stderr { offset: 100_000, data }));
    stream.sender.send(&StreamFrame::StdinClosed).await.unwrap();
    let exit = ExitStatus { code: Some(3), signal: None };
    assert_eq!(next(&mut stream).await, Some(StreamFrame::Exit(exit)));
    assert_eq!(next(&mut stream).await, Some(StreamFrame::End));
    assert_eq!(next(&mut stream).await, None);
}

#[tokio::test]
async fn what_is_wrong_with_an_exec_is_told_by_status_before_and_by_a_frame_after_the_upgrade() {
    let running = running().await;
    let error = running.client.exec("none", &command("/bin/cat")).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::NotFound, Some("VM_NOT_FOUND")));
    for (request, code) in [(command("/missing"), "PROCESS_NOT_FOUND"), (command(""), "INVALID_FIELD")] {
        let mut stream = running.client.exec("web", &request).await.unwrap();
        let error = stream.receiver.next().await.unwrap_err();
        assert_eq!(error.code(), Some(code));
    }
    let plain = running.harness.call("GET", "/v1/vms/web/exec", None).await;
    plain.refused(400, "INVALID_REQUEST");
}

#[tokio::test]
async fn attach_replays_and_logs_come_as_text_or_as_lines() {
    let running = running().await;
    let mut stream = running.client.attach("web", &AttachQuery::default()).await.unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = stream.receiver.next().await.unwrap() {
        frames.push(frame);
    }
    assert_eq!(frames.len(), 5);
    assert_eq!(frames[1], StreamFrame::Truncated { before: 5 });
    let text = running.client.logs("web", &LogQuery::default()).await.unwrap();
    let text: Vec<_> = text.map(Result::unwrap).collect().await;
    assert_eq!(text.concat(), b"out\nerr\n");
    let chunks = running.client.log_chunks("web", &LogQuery::default()).await.unwrap();
    let chunks: Vec<_> = chunks.map(Result::unwrap).collect().await;
    let streams: Vec<_> = chunks.iter().map(|chunk| (chunk.stream, chunk.offset)).collect();
    assert_eq!(streams[0], (wire::LogStream::Truncated, Some(5)));
    assert_eq!(streams[2], (wire::LogStream::Stderr, Some(9)));
    assert_eq!(chunks[1].text, "out\n");
}

#[tokio::test]
async fn an_incarnation_that_its_controller_does_not_know_is_a_moment_to_try_again() {
    let running = running().await;
    let reply = running.harness.call("GET", "/v1/vms/web/console", None).await;
    reply.refused(503, "HOST_UNREACHABLE");
}

#[tokio::test]
async fn files_are_read_written_listed_and_removed() {
    let running = running().await;
    let client = &running.client;
    let content: Vec<_> =
        client.read_file("web", "/etc/hostname").await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(content.concat(), b"web\n");
    let write = FileWrite { path: "/tmp/a".to_owned(), mode: Some(0o600), keep_existing: false };
    let chunks = futures::stream::iter((0..10).map(|_| Ok(Bytes::from(vec![1; 300_000]))));
    let written = client.write_file("web", &write, chunks).await.unwrap();
    assert_eq!(written.size_bytes, 3_000_000);
    let list = FileList { path: "/tmp".to_owned(), cursor: None, limit: Some(2) };
    let listing = client.list_files("web", &list).await.unwrap();
    let names: Vec<_> = listing.items.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!((names, listing.next_cursor.as_deref()), (vec!["a", "b"], Some("b")));
    client.remove_file("web", &FileRemove { path: "/tmp/a".to_owned(), recursive: false }).await.unwrap();
}

#[tokio::test]
async fn what_a_guest_says_against_a_file_is_told_without_its_control_characters() {
    let running = running().await;
    let reply = running.harness.call("GET", "/v1/vms/web/files/stat?path=/nowhere", None).await;
    reply.refused(404, "GUEST_FILE");
    assert_eq!(reply.json["detail"], "No such file [2J.");
    let relative = running.harness.call("GET", "/v1/vms/web/files?path=etc", None).await;
    relative.refused(400, "INVALID_FIELD").field("path");
    let keyed = [("idempotency-key", "k")];
    let keyed = running.harness.call_with("DELETE", "/v1/vms/web/files?path=/a", None, &keyed).await;
    keyed.refused(400, "INVALID_FIELD").field("Idempotency-Key");
}

#[tokio::test]
async fn a_guest_that_sends_more_than_was_asked_for_is_cut_off() {
    let running = running().await;
    let reply = running.harness.call("GET", "/v1/vms/web/files/list?path=/&limit=1", None).await;
    reply.refused(500, "INTERNAL");
}

#[tokio::test]
async fn processes_are_listed_and_signalled() {
    let running = running().await;
    assert!(running.client.list_processes("web").await.unwrap().items.is_empty());
    let signal = SignalProcess { signal: 15, group: false };
    running.client.signal_process("web", "main", &signal).await.unwrap();
    let error = running.client.signal_process("web", "other", &signal).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::NotFound, Some("PROCESS_NOT_FOUND")));
    let body = Some(r#"{"signal":64}"#);
    let reply = running.harness.call("POST", "/v1/vms/web/processes/main/signal", body).await;
    reply.refused(400, "INVALID_FIELD").field("signal");
}

#[tokio::test]
async fn a_port_is_forwarded_both_ways_and_a_refused_one_is_told() {
    let running = running().await;
    let stream = running.client.connect_port("web", 80).await.unwrap();
    let (mut near, far) = tokio::io::duplex(1_024);
    let piping = tokio::spawn(stream.pipe(far));
    near.write_all(b"GET / HTTP/1.0").await.unwrap();
    near.shutdown().await.unwrap();
    let mut answer = String::new();
    near.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "GET / HTTP/1.0");
    piping.await.unwrap().unwrap();
    let error = running.client.connect_port("web", 81).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, Some("HOST_UNREACHABLE")));
}

#[tokio::test]
async fn a_vm_that_does_not_run_has_no_guest_to_talk_to() {
    let running = running().await;
    running.harness.create("idle").await;
    let reply = running.harness.call("GET", "/v1/vms/idle/processes", None).await;
    reply.refused(409, "VM_NOT_RUNNING");
    let error = running.client.exec("idle", &command("/bin/cat")).await;
    let error = match error {
        Ok(mut stream) => stream.receiver.next().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.code(), Some("VM_NOT_RUNNING"));
}

#[tokio::test]
async fn a_shutdown_ends_open_streams_and_leaves_no_task() {
    let running = running().await;
    let mut stream = running.client.exec("web", &command("/bin/cat")).await.unwrap();
    assert!(stream.receiver.next().await.unwrap().is_some());
    running.harness.api.shutdown().await;
    assert_eq!(stream.receiver.next().await.ok().flatten(), None);
    drop(running.client);
    running.server.await.unwrap();
}
