//! Connections that leave HTTP.

use std::time::Duration;

use flames_ingress::IngressProvider;
use flames_ingress_proxy::Hooks;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::support::*;

/// Sends each message back.
async fn echoing() -> Backend {
    backend(|stream, _| async move {
        let Ok(mut socket) = accept_async(stream).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn open(proxy: &flames_ingress_proxy::Proxy) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(proxy.addresses()[0]).await.unwrap();
    let (socket, response) = soon(client_async("ws://a.example/", stream)).await.unwrap();
    assert_eq!(response.status(), 101);
    socket
}

async fn echoes(socket: &mut WebSocketStream<TcpStream>, text: &str) {
    soon(socket.send(Message::text(text))).await.unwrap();
    assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::text(text));
}

#[tokio::test]
async fn a_websocket_passes_and_is_told_when_it_ends() {
    let target = echoing().await;
    let records = Records::default();
    let hooks = Hooks { access_log: std::sync::Arc::new(records.clone()), ..Hooks::default() };
    let proxy = proxy_with(|_| {}, hooks).await;
    route(&proxy, "vm_a", 80, &["a.example"], target.address).await;
    let mut socket = open(&proxy).await;
    for text in ["one", "two", &"long ".repeat(100_000)] {
        echoes(&mut socket, text).await;
    }
    assert_eq!(records.all(), [], "while it is open");
    socket.close(None).await.unwrap();
    drop(socket);
    eventually("it is told", || records.all().len() == 1).await;
    let record = &records.all()[0];
    assert_eq!((record.status, record.vm.as_deref()), (101, Some("vm_a")));
    assert!(record.bytes > 1_000_000, "both directions: {}", record.bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_websockets_stay_open_at_once() {
    let target = echoing().await;
    let proxy = proxy_to(target.address, |config| config.workers = 2).await;
    let mut sockets = Vec::new();
    for _ in 0..1_000 {
        sockets.push(open(&proxy).await);
    }
    for socket in &mut sockets {
        echoes(socket, "still there").await;
    }
}

#[tokio::test]
async fn an_upgrade_that_the_target_refuses_is_an_ordinary_answer() {
    let target = http_backend(|asked| match asked.header("upgrade") {
        Some(_) => b"HTTP/1.1 426 Upgrade Required\r\nupgrade: other\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\nno".to_vec(),
        None => ok("plain"),
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut client = Client::connect(&proxy).await;
    let got =
        client.ask("GET / HTTP/1.1\r\nhost: a.example\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
    assert_eq!((got.status, got.text().as_str()), (426, "no"));
    assert_eq!(client.get("a.example", "/").await.text(), "plain", "and the connection goes on");
}

#[tokio::test]
async fn an_upgrade_that_could_hide_requests_is_not_passed_on() {
    let target = http_backend(|asked| {
        assert_eq!(asked.header("upgrade"), None, "{}", asked.head);
        assert_eq!(asked.header("http2-settings"), None);
        ok("plain")
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    for lines in [
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        "connection: upgrade\r\nupgrade: websocket, H2C\r\n",
        "upgrade: websocket\r\n",
    ] {
        let request = format!("GET / HTTP/1.1\r\nhost: a.example\r\n{lines}\r\n");
        assert_eq!(Client::connect(&proxy).await.ask(request).await.text(), "plain", "{lines}");
    }
    let with_body = "GET / HTTP/1.1\r\nhost: a.example\r\nconnection: upgrade\r\nupgrade: x\r\ncontent-length: 1\r\n\r\nb";
    assert_eq!(Client::connect(&proxy).await.ask(with_body).await.text(), "plain");
}

#[tokio::test]
async fn what_either_side_sends_right_behind_the_upgrade_arrives() {
    let target = backend(|mut stream, _| async move {
        let mut buffer = Vec::new();
        read_message(&mut stream, &mut buffer, false).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nfirst")
            .await
            .unwrap();
        while buffer.len() < 5 {
            stream.read_buf(&mut buffer).await.unwrap();
        }
        stream.write_all(&buffer).await.unwrap();
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut client = Client::connect(&proxy).await;
    client.send("GET / HTTP/1.1\r\nhost: a.example\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nearly").await;
    let mut seen = Vec::new();
    soon(client.stream.read_to_end(&mut seen)).await.unwrap();
    let seen = String::from_utf8(seen).unwrap();
    assert!(seen.starts_with("HTTP/1.1 101"), "{seen}");
    assert!(seen.ends_with("firstearly"), "{seen}");
}

#[tokio::test]
async fn an_upgraded_connection_ends_when_nothing_moves_and_when_its_route_is_removed() {
    let target = echoing().await;
    let proxy = proxy_to(target.address, |config| {
        config.timeouts.tunnel_idle = Duration::from_millis(500);
        config.timeouts.removed_target = Duration::from_millis(100);
    })
    .await;
    let mut socket = open(&proxy).await;
    for _ in 0..8 {
        echoes(&mut socket, "moves").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(soon(socket.next()).await.is_none_or(|end| end.is_err()), "nothing moves");

    let mut socket = open(&proxy).await;
    echoes(&mut socket, "moves").await;
    let other = echoing().await;
    route(&proxy, "vm_a", 80, &["a.example"], other.address).await;
    echoes(&mut socket, "a route that is replaced leaves it").await;
    let mut socket = open(&proxy).await;
    proxy.unregister(&key("vm_a", 1).vm).await.unwrap();
    echoes(&mut socket, "a removed one too, for its time").await;
    assert!(soon(socket.next()).await.is_none_or(|end| end.is_err()), "then it is cut");
}

#[tokio::test]
async fn one_upgraded_connection_too_many_is_told_so() {
    let target = echoing().await;
    let proxy = proxy_to(target.address, |config| config.limits.tunnels = 1).await;
    let mut socket = open(&proxy).await;
    let request = "GET / HTTP/1.1\r\nhost: a.example\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let got = Client::connect(&proxy).await.ask(request).await;
    assert_eq!((got.status, got.problem().as_deref()), (503, Some("too_many_tunnels")));
    socket.close(None).await.unwrap();
    drop(socket);
    let started = std::time::Instant::now();
    loop {
        let stream = TcpStream::connect(proxy.addresses()[0]).await.unwrap();
        if soon(client_async("ws://a.example/", stream)).await.is_ok() {
            break;
        }
        assert!(started.elapsed() < SOON, "its place is free again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
