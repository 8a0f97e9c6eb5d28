//! What a hostile guest can do to its host: lose its own connection.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::pin::Pin;
use std::time::Duration;

use flames_guest_protocol::frame::{FrameKind, read_frame, write_frame, write_json};
use flames_guest_protocol::limits::{MAX_FRAME_LENGTH, MAX_STREAMS, STREAM_WINDOW};
use flames_guest_protocol::message::{
    AttachRequest, DirectoryEntry, Done, ExecRequest, ExecStarted, FileKind, FileStatus,
    ListDirectoryRequest, ProcessStatus, ReadFileRequest,
};
use flames_guest_protocol::{
    AgentClient, AgentKey, ConnectOptions, Error, ErrorKind, GuestChannel, Identity, MuxStream,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Answer = Pin<Box<dyn Future<Output = ()> + Send>>;

fn identity() -> Identity {
    Identity { incarnation: "inc_1".into(), key: AgentKey::from_bytes([1; 32]) }
}

fn options() -> ConnectOptions {
    ConnectOptions {
        handshake_timeout: Duration::from_secs(5),
        operation_timeout: Duration::from_millis(700),
    }
}

/// A guest that proves itself, takes each request, and then does what the test wants.
async fn guest(answer: fn(MuxStream) -> Answer) -> AgentClient {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let mut channel = GuestChannel::new(guest, identity());
        channel.accept().await.unwrap();
        channel
            .serve(|mut stream| {
                tokio::spawn(async move {
                    read_frame(&mut stream).await.unwrap();
                    answer(stream).await;
                });
            })
            .await;
    });
    AgentClient::connect(host, &identity(), options()).await.unwrap()
}

/// A guest that proves itself and then writes raw bytes where yamux should be.
async fn raw_guest(bytes: Vec<u8>) -> AgentClient {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let mut channel = GuestChannel::new(guest, identity());
        channel.accept().await.unwrap();
        let raw = channel.get_mut();
        let (mut reader, mut writer) = tokio::io::split(raw);
        let reading = async {
            let mut buffer = [0; 4096];
            while reader.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
        };
        let writing = async {
            while writer.write_all(&bytes).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(reading, writing)
    });
    AgentClient::connect(host, &identity(), options()).await.unwrap()
}

fn file_status() -> FileStatus {
    FileStatus {
        kind: FileKind::File,
        size: 1,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified_ms: 0,
        link_target: None,
    }
}

fn yamux(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    let mut frame = vec![0, kind];
    frame.extend_from_slice(&flags.to_be_bytes());
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&length.to_be_bytes());
    frame
}

#[tokio::test]
async fn garbage_in_place_of_yamux_ends_the_session() {
    for bytes in [vec![0xff; 4096], vec![0; 4096], b"HTTP/1.1 200 OK\r\n".to_vec()] {
        let client = raw_guest(bytes).await;
        let error = client.info().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    }
}

#[tokio::test]
async fn streams_that_the_guest_opens_and_too_large_pieces_end_the_session() {
    let frames = [yamux(0, 1, 2, 0), yamux(1, 1, 2, 0), yamux(0, 0, 1, 1 << 20), yamux(0, 0, 1, u32::MAX)];
    for frame in frames {
        let client = raw_guest(frame).await;
        tokio::time::timeout(Duration::from_secs(5), client.closed()).await.unwrap();
    }
}

#[tokio::test]
async fn a_flood_of_pings_or_of_data_for_no_stream_costs_nothing_that_stays() {
    for flood in [yamux(2, 1, 0, 7), [yamux(0, 0, 9, 4), b"data".to_vec()].concat()] {
        let client = raw_guest(flood).await;
        assert_eq!(client.info().await.unwrap_err().kind, ErrorKind::Unavailable);
    }
}

#[tokio::test]
async fn a_guest_that_never_answers_costs_a_deadline() {
    let client = guest(|stream| Box::pin(async move { hold(stream).await })).await;
    assert_eq!(client.info().await.unwrap_err().kind, ErrorKind::Unavailable);
    let lost = client.exec(ExecRequest { argv: vec!["x".into()], ..ExecRequest::default() }).await;
    assert_eq!(lost.unwrap_err().kind, ErrorKind::OutcomeUnknown);
}

async fn hold(stream: MuxStream) {
    tokio::time::sleep(Duration::from_secs(60)).await;
    drop(stream);
}

#[tokio::test]
async fn an_answer_that_drips_costs_the_same_deadline() {
    let client = guest(|mut stream| {
        Box::pin(async move {
            let mut frame = vec![FrameKind::Response as u8];
            frame.extend_from_slice(&60_000u32.to_le_bytes());
            frame.resize(60_000, b' ');
            for byte in frame.chunks(1) {
                if stream.write_all(byte).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    })
    .await;
    let begun = std::time::Instant::now();
    assert_eq!(client.info().await.unwrap_err().kind, ErrorKind::Unavailable);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_frame_that_claims_four_gigabytes_is_corrupt() {
    let client = guest(|mut stream| {
        Box::pin(async move {
            let _ = stream.write_all(&[FrameKind::Response as u8, 0xff, 0xff, 0xff, 0xff]).await;
            hold(stream).await;
        })
    })
    .await;
    assert_eq!(client.info().await.unwrap_err().kind, ErrorKind::Corrupt);
}

#[tokio::test]
async fn json_that_is_no_answer_is_corrupt_and_nesting_has_a_bound() {
    let client = guest(|mut stream| {
        Box::pin(async move {
            let _ = write_frame(&mut stream, FrameKind::Response, &[b'['; MAX_FRAME_LENGTH]).await;
            hold(stream).await;
        })
    })
    .await;
    assert_eq!(client.info().await.unwrap_err().kind, ErrorKind::Corrupt);
}

#[tokio::test]
async fn an_error_text_is_cut_and_cleaned() {
    let client = guest(|mut stream| {
        Box::pin(async move {
            let error = Error::new(ErrorKind::NotFound, "\u{1b}]0;owned\u{7}".repeat(3000));
            let _ = write_json(&mut stream, FrameKind::Failure, &error).await;
            hold(stream).await;
        })
    })
    .await;
    let error = client.info().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message.chars().count() <= 1024 && !error.message.contains('\u{1b}'));
}

#[tokio::test]
async fn a_process_id_that_could_be_a_path_is_corrupt() {
    let client = guest(|mut stream| {
        Box::pin(async move {
            let started = ExecStarted { process: "../../etc".into(), pid: 1 };
            let _ = write_json(&mut stream, FrameKind::Response, &started).await;
            hold(stream).await;
        })
    })
    .await;
    let request = ExecRequest { argv: vec!["x".into()], ..ExecRequest::default() };
    assert_eq!(client.exec(request).await.unwrap_err().kind, ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_listing_without_end_is_cut_off() {
    let client = guest(|mut stream| {
        Box::pin(async move {
            let entry = DirectoryEntry { name: "x".repeat(200), status: file_status() };
            let entries = vec![entry; 100];
            while write_json(&mut stream, FrameKind::Entries, &entries).await.is_ok() {}
        })
    })
    .await;
    let request = ListDirectoryRequest { path: "/".into(), after: None, limit: Some(500) };
    let error = client.list_directory(request).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
}

#[tokio::test]
async fn a_list_of_processes_without_end_is_cut_off() {
    let client = guest(|mut stream| {
        Box::pin(async move {
            let status = ProcessStatus {
                process: "p".into(),
                argv: Vec::new(),
                pid: 1,
                tty: false,
                started_at_ms: 0,
                output_length: 0,
                output_available_from: 0,
                exit: None,
                acknowledged: false,
            };
            while write_json(&mut stream, FrameKind::Response, &status).await.is_ok() {}
        })
    })
    .await;
    assert_eq!(client.processes().await.unwrap_err().kind, ErrorKind::Corrupt);
}

#[tokio::test]
async fn more_of_a_file_than_was_asked_for_is_corrupt() {
    let client = guest(|mut stream| {
        Box::pin(async move {
            let _ = write_json(&mut stream, FrameKind::Response, &file_status()).await;
            while write_frame(&mut stream, FrameKind::Data, &[0; 4096]).await.is_ok() {}
        })
    })
    .await;
    let request = ReadFileRequest { path: "/x".into(), offset: 0, length: Some(10_000) };
    let (_, mut file) = client.read_file(request).await.unwrap();
    let error = loop {
        match file.next().await {
            Ok(piece) => assert!(piece.is_some()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_stream_that_is_cut_off_is_no_end_of_file() {
    let client = guest(|mut stream| {
        Box::pin(async move {
            let _ = write_json(&mut stream, FrameKind::Response, &file_status()).await;
            let _ = write_frame(&mut stream, FrameKind::Data, b"half").await;
        })
    })
    .await;
    let request = ReadFileRequest { path: "/x".into(), offset: 0, length: None };
    let (_, mut file) = client.read_file(request).await.unwrap();
    assert_eq!(&file.next().await.unwrap().unwrap()[..], b"half");
    assert_eq!(file.next().await.unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_reset_connection_is_no_end_of_file() {
    let client = guest(|mut stream| {
        Box::pin(async move {
            let _ = write_json(&mut stream, FrameKind::Response, &Done {}).await;
        })
    })
    .await;
    let mut connection = client.tcp(80).await.unwrap();
    let error = connection.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_flood_on_a_stream_that_nobody_reads_stops_at_its_window_and_hinders_no_other() {
    let client = guest(|mut stream| {
        Box::pin(async move {
            let started = ExecStarted { process: "p".into(), pid: 1 };
            let _ = write_json(&mut stream, FrameKind::Response, &started).await;
            let flood = async {
                let mut sent = 0usize;
                while write_frame(&mut stream, FrameKind::Output, &[1; 8192]).await.is_ok() {
                    sent += 8192;
                    assert!(sent <= STREAM_WINDOW + 8192, "the window must hold it");
                }
            };
            let _ = tokio::time::timeout(Duration::from_secs(3), flood).await;
            hold(stream).await;
        })
    })
    .await;
    let request = ExecRequest { argv: vec!["x".into()], ..ExecRequest::default() };
    let (_, unread) = client.exec(request.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.exec(request).await.unwrap();
    drop(unread);
}

#[tokio::test]
async fn every_stream_can_be_open_and_dropped_again_and_again() {
    let client = guest(|mut stream| {
        Box::pin(async move {
            let _ = write_json(&mut stream, FrameKind::Failure, &Error::new(ErrorKind::NotFound, "no")).await;
        })
    })
    .await;
    let request = AttachRequest { process: "p".into(), ..AttachRequest::default() };
    for _ in 0..MAX_STREAMS * 5 {
        assert_eq!(client.attach(request.clone()).await.unwrap_err().kind, ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn a_guest_that_stops_reading_costs_a_deadline() {
    let (host, guest) = tokio::io::duplex(8 * 1024);
    let stopped = tokio::spawn(async move {
        let mut channel = GuestChannel::new(guest, identity());
        channel.accept().await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(channel);
    });
    let client = AgentClient::connect(host, &identity(), options()).await.unwrap();
    let request = ExecRequest { argv: vec!["x".repeat(60_000)], ..ExecRequest::default() };
    for _ in 0..3 {
        let kind = client.exec(request.clone()).await.unwrap_err().kind;
        assert!(matches!(kind, ErrorKind::Unavailable | ErrorKind::OutcomeUnknown), "{kind}");
    }
    stopped.abort();
}
