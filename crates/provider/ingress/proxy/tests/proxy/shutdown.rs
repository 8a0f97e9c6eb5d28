//! How it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::*;

async fn slow(pause: Duration) -> Backend {
    backend(move |mut stream, _| async move {
        let mut buffer = Vec::new();
        while read_message(&mut stream, &mut buffer, false).await.is_some() {
            tokio::time::sleep(pause).await;
            if stream.write_all(&ok("done")).await.is_err() {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn requests_under_way_are_finished_and_new_connections_refused() {
    let target = slow(Duration::from_millis(400)).await;
    let proxy = Arc::new(proxy_to(target.address, |_| {}).await);
    let address = proxy.addresses()[0];
    let mut idle = Client::connect(&proxy).await;
    assert_eq!(idle.get("x.example", "/").await.status, 404);
    let mut busy = Client::connect(&proxy).await;
    busy.send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let ending = tokio::spawn({
        let proxy = Arc::clone(&proxy);
        async move { proxy.shutdown(Duration::from_secs(10)).await }
    });
    assert!(idle.is_closed().await, "an idle connection is closed at once");
    assert_eq!(busy.read().await.text(), "done");
    assert!(busy.is_closed().await);
    assert_eq!(soon(ending).await.unwrap(), 0, "nothing had to be cut");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn what_outlasts_the_deadline_is_cut() {
    let target = slow(Duration::from_secs(3_600)).await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut busy = Client::connect(&proxy).await;
    busy.send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    assert!(proxy.shutdown(Duration::from_millis(200)).await > 0);
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(busy.is_closed().await);
}

#[tokio::test]
async fn a_proxy_that_is_dropped_leaves_nothing_behind() {
    let target = slow(Duration::from_secs(3_600)).await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let address = proxy.addresses()[0];
    let mut busy = Client::connect(&proxy).await;
    busy.send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(proxy);
    assert!(busy.is_closed().await);
    let started = Instant::now();
    while TcpStream::connect(address).await.is_ok() {
        assert!(started.elapsed() < SOON, "it still listens");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
