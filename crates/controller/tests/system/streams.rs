use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use flames_client::wire::stream::{
    ExecRequest, FileAnswer, FileRequest, ProcessAnswer, ProcessRequest, StreamFrame, StreamRequest,
};
use flames_clock::{Clock, ClockExt};
use flames_controller::{Controller, ShutdownMode};
use flames_error::ErrorKind;
use flames_model::{IncarnationId, IncarnationState, Wanted};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::world::World;

/// The client's side of a stream.
struct Client {
    sender: Option<mpsc::Sender<Bytes>>,
    receiver: mpsc::Receiver<Bytes>,
    task: tokio::task::JoinHandle<()>,
}

impl Client {
    fn open(controller: &Controller, id: IncarnationId, request: StreamRequest) -> Self {
        let (sender, from_client) = mpsc::channel(4);
        let (to_client, receiver) = mpsc::channel(4);
        let stream = controller.streams().open(id, request).unwrap();
        let task = tokio::spawn(stream.run(to_client, from_client));
        Self { sender: Some(sender), receiver, task }
    }

    async fn send(&self, frame: StreamFrame) {
        self.sender.as_ref().unwrap().send(frame.encode().unwrap()).await.unwrap();
    }

    async fn next(&mut self) -> Option<StreamFrame> {
        self.receiver.recv().await.map(|frame| StreamFrame::decode(frame).unwrap())
    }

    async fn rest(mut self) -> Vec<StreamFrame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        self.task.await.unwrap();
        frames
    }
}

fn text(frames: &[StreamFrame]) -> String {
    let mut text = Vec::new();
    for frame in frames {
        if let StreamFrame::Stdout { data, .. } | StreamFrame::Stderr { data, .. } | StreamFrame::Data(data) =
            frame
        {
            text.extend_from_slice(data);
        }
    }
    String::from_utf8(text).unwrap()
}

async fn running(world: &World, command: &[&str]) -> (Controller, IncarnationId) {
    let id = world.assign(1, command).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    (controller, id)
}

#[tokio::test(start_paused = true)]
async fn a_stream_to_an_incarnation_that_is_not_here_is_refused() {
    let world = World::with(|_, config| config.bounds.streams = 1);
    let (controller, id) = running(&world, &["forever"]).await;
    let streams = controller.streams();
    let other = IncarnationId::from_uuid(Uuid::from_u128(5));
    assert_eq!(streams.open(other, StreamRequest::Files).unwrap_err().kind(), ErrorKind::NotFound);
    let first = streams.open(id, StreamRequest::Files).unwrap();
    assert_eq!(streams.open(id, StreamRequest::Files).unwrap_err().kind(), ErrorKind::Exhausted);
    drop(first);
    streams.open(id, StreamRequest::Files).map(drop).unwrap();
    controller.shutdown(ShutdownMode::LeaveRunning).await;
    assert_eq!(streams.open(id, StreamRequest::Files).unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn exec_carries_output_and_exit() {
    let world = World::new();
    let (controller, id) = running(&world, &["forever"]).await;
    let command = vec!["ls".to_owned(), "-l".to_owned()];
    let request = ExecRequest { command, ..ExecRequest::default() };
    let frames = Client::open(&controller, id, StreamRequest::Exec(request)).rest().await;
    assert!(matches!(&frames[0], StreamFrame::Started { process } if process == "p1"));
    assert_eq!(text(&frames), "ran ls -l\n");
    let StreamFrame::Exit(exit) = &frames[2] else { panic!("{frames:?}") };
    assert_eq!(exit.code, Some(7));
    assert_eq!(frames[3], StreamFrame::End);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn attach_replays_follows_takes_input_and_tells_the_end() {
    let world = World::new();
    let (controller, id) = running(&world, &["exit", "3", "5000", "0123456789"]).await;
    let request = StreamRequest::Attach { process: "main".to_owned(), from: 4 };
    let mut client = Client::open(&controller, id, request);
    assert!(matches!(client.next().await.unwrap(), StreamFrame::Started { .. }));
    let StreamFrame::Stdout { offset, data } = client.next().await.unwrap() else { panic!("no output") };
    assert_eq!((offset, &data[..]), (4, &b"456789"[..]));
    client.send(StreamFrame::Stdin(Bytes::from_static(b"typed"))).await;
    client.send(StreamFrame::Signal(2)).await;
    client.send(StreamFrame::Resize { rows: 2, columns: 3 }).await;
    client.send(StreamFrame::StdinClosed).await;
    let frames = client.rest().await;
    let inside = world.inside(id).state();
    assert_eq!(inside.input, b"typed");
    assert_eq!(inside.signals, [("main".to_owned(), 2)]);
    let codes: Vec<_> = frames
        .iter()
        .filter_map(|frame| if let StreamFrame::Exit(exit) = frame { exit.code } else { None })
        .collect();
    assert_eq!(codes, [3]);
    assert_eq!(frames.last(), Some(&StreamFrame::End));
    world.until_released(id).await;
    // Behind the end, from what the host kept.
    let request = StreamRequest::Attach { process: "main".to_owned(), from: 7 };
    let frames = Client::open(&controller, id, request).rest().await;
    assert_eq!(text(&frames), "789");
    assert!(frames.iter().any(|frame| matches!(frame, StreamFrame::Exit(exit) if exit.code == Some(3))));
    let request = StreamRequest::Attach { process: "other".to_owned(), from: 0 };
    let frames = Client::open(&controller, id, request).rest().await;
    assert!(matches!(&frames[0], StreamFrame::Error(error) if error.code == "VM_NOT_RUNNING"), "{frames:?}");
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn an_attach_to_a_vm_that_boots_waits_for_it() {
    let world = World::new();
    let id = world.assign(1, &["exit", "0", "50", "early"]).await;
    let controller = world.start().await;
    world.clock.advance(Duration::from_millis(1)).await;
    // It is being made: what a start passes through is told a little later.
    assert_eq!(world.api.incarnation(id).state, IncarnationState::Scheduled);
    let request = StreamRequest::Attach { process: "main".to_owned(), from: 0 };
    let frames = Client::open(&controller, id, request).rest().await;
    assert_eq!(text(&frames), "early");
    assert_eq!(frames.last(), Some(&StreamFrame::End));
    world.until_released(id).await;
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn logs_follow_to_the_end_and_can_begin_late() {
    let world = World::new();
    let (controller, id) = running(&world, &["exit", "0", "3000", "one\ntwo\nthree\nfour"]).await;
    let logs = |follow, since, tail| {
        Client::open(&controller, id, StreamRequest::Logs { follow, since, tail }).rest()
    };
    world.clock.advance(Duration::from_millis(100)).await;
    assert_eq!(text(&logs(false, None, None).await), "one\ntwo\nthree\nfour");
    assert_eq!(text(&logs(false, None, Some(2)).await), "three\nfour");
    assert_eq!(text(&logs(false, None, Some(0)).await), "");
    let late = flames_clock::Timestamp::from_second(100).unwrap();
    assert_eq!(text(&logs(false, Some(late), None).await), "");
    let from = world.clock.monotonic();
    let followed = logs(true, None, None).await;
    assert_eq!(text(&followed), "one\ntwo\nthree\nfour");
    assert_eq!(followed.last(), Some(&StreamFrame::End));
    assert!(world.clock.monotonic().saturating_since(from) > Duration::from_secs(2), "to the end of the run");
    world.until_released(id).await;
    assert_eq!(text(&logs(true, None, Some(1)).await), "four");
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_follower_of_a_log_hears_of_output_and_of_the_end_when_they_come() {
    let world = World::new();
    let (controller, id) = running(&world, &["late", "5000"]).await;
    let started = world.clock.monotonic();
    let request = StreamRequest::Logs { follow: true, since: None, tail: None };
    let mut client = Client::open(&controller, id, request);
    let StreamFrame::Stdout { data, .. } = client.next().await.unwrap() else { panic!("no output") };
    assert_eq!(&data[..], b"at last\n");
    let heard = world.clock.monotonic().saturating_since(started);
    assert!(heard <= Duration::from_millis(5_000), "{heard:?} is later than it was written");

    world.api.want(id, Wanted::Stopped);
    world.until_released(id).await;
    let stopped = world.clock.monotonic();
    assert_eq!(client.rest().await, [StreamFrame::End]);
    assert_eq!(world.clock.monotonic(), stopped);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_console_is_read_while_the_machine_runs_and_its_end_afterwards() {
    let world = World::new();
    let (controller, id) = running(&world, &["exit", "0", "1000"]).await;
    let console = |follow| Client::open(&controller, id, StreamRequest::Console { follow }).rest();
    assert!(text(&console(false).await).contains("kernel: hello"));
    let followed = text(&console(true).await);
    assert_eq!(followed.matches("kernel: hello").count(), 1);
    world.until_released(id).await;
    assert!(text(&console(false).await).contains("kernel: hello"));
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn files_are_written_read_and_listed() {
    let world = World::new();
    let (controller, id) = running(&world, &["forever"]).await;
    let open = |request| async {
        let client = Client::open(&controller, id, StreamRequest::Files);
        client.send(StreamFrame::FileRequest(request)).await;
        client
    };
    let write = FileRequest::Write { path: "/a".to_owned(), mode: None, overwrite: true };
    let mut client = open(write).await;
    assert_eq!(client.next().await, Some(StreamFrame::FileAnswer(FileAnswer::Ready)));
    client.send(StreamFrame::Data(Bytes::from_static(b"hello "))).await;
    client.send(StreamFrame::Data(Bytes::from_static(b"world"))).await;
    client.send(StreamFrame::End).await;
    let frames = client.rest().await;
    assert!(matches!(&frames[0], StreamFrame::FileAnswer(FileAnswer::Info(info)) if info.size_bytes == 11));
    let frames = open(FileRequest::Read { path: "/a".to_owned() }).await.rest().await;
    assert_eq!(text(&frames), "hello world");
    assert_eq!(frames.last(), Some(&StreamFrame::End));
    let list = FileRequest::List { path: "/".to_owned(), after: None, limit: None };
    let frames = open(list).await.rest().await;
    assert!(
        matches!(&frames[0], StreamFrame::FileAnswer(FileAnswer::Entries { entries, more: false }) if entries.len() == 1)
    );
    let frames = open(FileRequest::Stat { path: "/b".to_owned(), follow: false }).await.rest().await;
    assert!(
        matches!(&frames[0], StreamFrame::Error(error) if error.code == "GUEST_FILE" && error.kind == "not_found")
    );
    // A write that its client gives up leaves nothing.
    let write = FileRequest::Write { path: "/c".to_owned(), mode: None, overwrite: true };
    let mut client = open(write).await;
    client.next().await;
    client.send(StreamFrame::Data(Bytes::from_static(b"half"))).await;
    client.sender = None;
    client.rest().await;
    assert_eq!(world.inside(id).state().files, BTreeMap::from([("/a".to_owned(), b"hello world".to_vec())]));
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn processes_are_listed_and_signalled() {
    let world = World::new();
    let (controller, id) = running(&world, &["forever"]).await;
    let client = Client::open(&controller, id, StreamRequest::Processes);
    client.send(StreamFrame::ProcessRequest(ProcessRequest::List)).await;
    let frames = client.rest().await;
    assert_eq!(frames, [StreamFrame::ProcessAnswer(ProcessAnswer::Processes(Vec::new())), StreamFrame::End]);
    let client = Client::open(&controller, id, StreamRequest::Processes);
    let signal = flames_client::wire::SignalProcess { signal: 15, group: true };
    client
        .send(StreamFrame::ProcessRequest(ProcessRequest::Signal { process: "main".to_owned(), signal }))
        .await;
    assert_eq!(client.rest().await, [StreamFrame::ProcessAnswer(ProcessAnswer::Done), StreamFrame::End]);
    assert_eq!(world.inside(id).state().signals, [("main".to_owned(), 15)]);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_tcp_connection_carries_both_ways_and_a_closed_port_is_an_error() {
    let world = World::new();
    let (controller, id) = running(&world, &["forever"]).await;
    let client = Client::open(&controller, id, StreamRequest::Tcp { port: 80 });
    for _ in 0..20 {
        client.send(StreamFrame::Data(Bytes::from(vec![b'e'; 50]))).await;
    }
    client.send(StreamFrame::End).await;
    let frames = client.rest().await;
    assert_eq!(frames.first(), Some(&StreamFrame::Connected));
    assert_eq!(text(&frames).len(), 1_000);
    assert_eq!(frames.last(), Some(&StreamFrame::End));
    let frames = Client::open(&controller, id, StreamRequest::Tcp { port: 81 }).rest().await;
    assert!(matches!(&frames[0], StreamFrame::Error(error) if error.kind == "unavailable"));
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_nonsense_gets_an_error_and_one_that_leaves_ends_the_stream() {
    let world = World::new();
    let (controller, id) = running(&world, &["forever"]).await;
    let mut client =
        Client::open(&controller, id, StreamRequest::Attach { process: "main".to_owned(), from: 0 });
    client.next().await;
    client.sender.as_ref().unwrap().send(Bytes::from_static(&[33, 1, 2])).await.unwrap();
    assert!(matches!(&client.rest().await[..], [StreamFrame::Error(_)]));
    for request in [
        StreamRequest::Attach { process: "main".to_owned(), from: 0 },
        StreamRequest::Logs { follow: true, since: None, tail: None },
        StreamRequest::Console { follow: true },
        StreamRequest::Files,
    ] {
        let mut client = Client::open(&controller, id, request);
        client.sender = None;
        let ended = world.clock.timeout(Duration::from_secs(5), client.rest()).await;
        assert!(ended.is_ok(), "the stream goes on without its client");
    }
    world.purge_all(controller, &[id]).await;
}
