//! Links over a network, with both ends in this process and a pipe between.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_clock::{Clock, SimulatedClock, SystemClock};
use flames_error::{Error, ErrorKind, Result};
use flames_model::{ControllerId, IncarnationId, VmId};
use flames_service::{HostLinks, LinkChannel, LinkStream, LinkTarget};
use flames_transport_link::{LinkHandler, NetworkLinks, SILENCE, serve_link};
use flames_wire::stream::{StreamFrame, StreamRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Sends back what comes, for one incarnation; keeps what it is told to keep waiting.
#[derive(Debug)]
struct Echo(IncarnationId);

#[async_trait]
impl LinkHandler for Echo {
    async fn open(
        &self,
        incarnation: IncarnationId,
        request: StreamRequest,
        mut channel: LinkChannel,
    ) -> Result<()> {
        if incarnation != self.0 {
            return Err(Error::not_found("echo.open", "incarnation", incarnation.to_string()));
        }
        tokio::spawn(async move {
            match request {
                // Never reads, and never ends.
                StreamRequest::Processes => {
                    channel.sender.closed().await;
                }
                // Says three things without having been asked, and ends.
                StreamRequest::Console { .. } => {
                    for word in ["one", "two", "three"] {
                        channel.sender.send(word.into()).await.unwrap();
                    }
                }
                _ => {
                    while let Some(frame) = channel.receiver.recv().await {
                        if channel.sender.send(frame).await.is_err() {
                            return;
                        }
                    }
                    // What comes after the other half has ended.
                    let _ = channel.sender.send("after".into()).await;
                }
            }
        });
        Ok(())
    }
}

fn target() -> LinkTarget {
    LinkTarget {
        incarnation: IncarnationId::from_uuid(Uuid::from_u128(1)),
        vm: VmId::from_uuid(Uuid::from_u128(2)),
        controller: ControllerId::from_uuid(Uuid::from_u128(3)),
    }
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

/// A link over `(server, host)`.
fn link(links: &NetworkLinks, server: DuplexStream, host: DuplexStream) -> JoinHandle<Result<()>> {
    links.accept(target().controller, async move { Ok(server) });
    tokio::spawn(serve_link(host, Arc::new(Echo(target().incarnation)), clock()))
}

fn linked() -> (NetworkLinks, JoinHandle<Result<()>>) {
    let links = NetworkLinks::new(clock());
    let (server, host) = tokio::io::duplex(64 * 1024);
    let served = link(&links, server, host);
    (links, served)
}

#[tokio::test]
async fn frames_go_both_ways_and_each_half_ends_for_itself() {
    let (links, _served) = linked();
    let mut channel = links.open(target(), LinkStream::Files).await.unwrap();
    let long = Bytes::from(vec![7; LinkChannel::MAX_FRAME]);
    for frame in [Bytes::from_static(b"hello"), long] {
        channel.sender.send(frame.clone()).await.unwrap();
        assert_eq!(channel.receiver.recv().await.unwrap(), frame);
    }
    drop(channel.sender);
    assert_eq!(channel.receiver.recv().await.unwrap(), "after");
    assert!(channel.receiver.recv().await.is_none());
}

#[tokio::test]
async fn what_was_said_before_the_end_arrives() {
    let (links, _served) = linked();
    let mut channel = links.open(target(), LinkStream::Console { follow: false }).await.unwrap();
    let mut heard = Vec::new();
    while let Some(frame) = channel.receiver.recv().await {
        heard.push(frame);
    }
    assert_eq!(heard, ["one", "two", "three"]);
    assert!(channel.sender.send("lost".into()).await.is_ok() || channel.sender.is_closed());
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_up_no_other() {
    let (links, _served) = linked();
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let channel = links.open(target(), LinkStream::Processes).await.unwrap();
        let sender = channel.sender.clone();
        // More than every buffer and window on the way holds.
        let filling = tokio::spawn(async move {
            for _ in 0..100 {
                sender.send(Bytes::from(vec![1; 64 * 1024])).await.unwrap();
            }
        });
        stuck.push((channel, filling));
    }
    let mut channel = links.open(target(), LinkStream::Files).await.unwrap();
    for _ in 0..100 {
        channel.sender.send(Bytes::from(vec![2; 64 * 1024])).await.unwrap();
        assert_eq!(channel.receiver.recv().await.unwrap().len(), 64 * 1024);
    }
    assert!(stuck.iter().all(|(_, filling)| !filling.is_finished()), "what is not read is not taken either");
    stuck.iter().for_each(|(_, filling)| filling.abort());
}

#[tokio::test]
async fn an_incarnation_of_another_controller_is_refused() {
    let (links, _served) = linked();
    let other = LinkTarget { incarnation: IncarnationId::from_uuid(Uuid::from_u128(9)), ..target() };
    assert_eq!(links.open(other, LinkStream::Files).await.unwrap_err().kind(), ErrorKind::NotFound);
    links.open(target(), LinkStream::Files).await.unwrap();
}

#[tokio::test]
async fn a_controller_without_a_link_is_told_within_a_deadline_as_unreachable() {
    let links = NetworkLinks::new(clock());
    let opening = tokio::time::timeout(Duration::from_secs(8), links.open(target(), LinkStream::Files));
    let error = opening.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, Some("HOST_UNREACHABLE")));
    assert!(error.user_message().unwrap().contains("is not connected"));
}

#[tokio::test]
async fn a_stream_waits_a_moment_for_a_link_that_is_being_made() {
    let links = NetworkLinks::new(clock());
    let (server, host) = tokio::io::duplex(64 * 1024);
    let opening = tokio::spawn({
        let links = links.clone();
        async move { links.open(target(), LinkStream::Files).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let _served = link(&links, server, host);
    opening.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_link_that_breaks_is_told_to_both_ends_of_its_streams() {
    let (links, served) = linked();
    let mut channel = links.open(target(), LinkStream::Files).await.unwrap();
    served.abort();
    let frame = channel.receiver.recv().await.unwrap();
    let StreamFrame::Error(error) = StreamFrame::decode(frame).unwrap() else { panic!("no error came") };
    assert_eq!(error.code, "HOST_UNREACHABLE");
    assert!(channel.receiver.recv().await.is_none());
    tokio::time::timeout(Duration::from_secs(5), channel.sender.closed()).await.unwrap();
}

#[tokio::test]
async fn a_newer_link_takes_the_place_of_the_older() {
    let (links, old) = linked();
    links.open(target(), LinkStream::Files).await.unwrap();
    let (server, host) = tokio::io::duplex(64 * 1024);
    let _new = link(&links, server, host);
    assert!(old.await.unwrap().is_err(), "the older one ends");
    let mut channel = links.open(target(), LinkStream::Files).await.unwrap();
    channel.sender.send("x".into()).await.unwrap();
    assert_eq!(channel.receiver.recv().await.unwrap(), "x");
    assert_eq!(links.connected(), [target().controller]);
}

#[tokio::test]
async fn a_connection_that_never_comes_or_fails_makes_no_link() {
    let links = NetworkLinks::new(clock());
    links.accept::<DuplexStream>(target().controller, async { Err(Error::unavailable("t", "no")) });
    links.accept::<DuplexStream>(target().controller, std::future::pending());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(links.connected().is_empty());
    tokio::time::timeout(Duration::from_secs(5), links.shutdown()).await.unwrap();
}

#[tokio::test]
async fn garbage_ends_a_link_at_either_end_and_nothing_else() {
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0; 12], b"\0\x01\0\x01\0\0\0\x02\xff\xff\xff\xff"]
    {
        let links = NetworkLinks::new(clock());
        let (server, mut host) = tokio::io::duplex(64 * 1024);
        links.accept(target().controller, async move { Ok(server) });
        host.write_all(garbage).await.unwrap();
        host.shutdown().await.unwrap();
        let mut rest = Vec::new();
        tokio::time::timeout(Duration::from_secs(5), host.read_to_end(&mut rest)).await.unwrap().unwrap();
        let (mut server, host) = tokio::io::duplex(64 * 1024);
        let served = tokio::spawn(serve_link(host, Arc::new(Echo(target().incarnation)), clock()));
        server.write_all(garbage).await.unwrap();
        server.shutdown().await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(5), served).await.unwrap().unwrap();
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Unavailable);
    }
}

#[tokio::test]
async fn a_controller_that_takes_the_connection_and_says_nothing_costs_a_bounded_time() {
    let links = NetworkLinks::new(Arc::new(SimulatedClock::at_fixed_start()));
    let (server, _host) = tokio::io::duplex(64 * 1024);
    links.accept(target().controller, async move { Ok(server) });
    tokio::time::pause();
    let error = links.open(target(), LinkStream::Files).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // And it is found out by itself.
    tokio::time::sleep(SILENCE + Duration::from_secs(15)).await;
    assert!(links.connected().is_empty());
}

#[tokio::test]
async fn a_link_without_any_stream_stays() {
    // In real time: pings are yamux's, which knows no other.
    let (links, served) = linked();
    tokio::time::sleep(SILENCE + Duration::from_secs(3)).await;
    assert!(!served.is_finished());
    links.open(target(), LinkStream::Files).await.unwrap();
}

#[tokio::test]
async fn a_server_that_ends_ends_links_and_streams() {
    let (links, served) = linked();
    let mut channel = links.open(target(), LinkStream::Files).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), links.shutdown()).await.unwrap();
    assert!(served.await.unwrap().is_err());
    let frame = channel.receiver.recv().await.unwrap();
    assert!(matches!(StreamFrame::decode(frame).unwrap(), StreamFrame::Error(_)));
}
