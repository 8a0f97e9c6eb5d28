//! How much there may be: what is just within passes, what is just above is refused.

use std::time::Duration;

use flames_ingress_proxy::Hooks;
use http::Request;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

#[tokio::test]
async fn heads_have_limits() {
    let target = named("a").await;
    let proxy = proxy_to(target.address, |config| {
        config.limits.header_bytes = 16 * 1024;
        config.limits.headers = 20;
        config.limits.uri_bytes = 100;
    })
    .await;
    let ask = async |path: &str, lines: String| {
        let mut client = Client::connect(&proxy).await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: a.example\r\n{lines}\r\n");
        // The proxy may answer and close before it has read all.
        let _ = client.stream.write_all(request.as_bytes()).await;
        client.read().await.status
    };
    assert_eq!(ask("/", format!("x: {}\r\n", "y".repeat(15 * 1024))).await, 200);
    assert_eq!(ask("/", format!("x: {}\r\n", "y".repeat(17 * 1024))).await, 431);
    assert_eq!(ask("/", "x: y\r\n".repeat(19)).await, 200);
    assert_eq!(ask("/", "x: y\r\n".repeat(20)).await, 431);
    assert_eq!(ask(&format!("/{}", "p".repeat(99)), String::new()).await, 200);
    assert_eq!(ask(&format!("/{}", "p".repeat(100)), String::new()).await, 414);

    let mut client = http2_client(TcpStream::connect(proxy.addresses()[0]).await.unwrap()).await;
    let large = Request::get("http://a.example/").header("x", "y".repeat(17 * 1024)).body(empty()).unwrap();
    let refused = soon(client.send_request(large)).await;
    assert!(refused.is_err() || refused.unwrap().status() == 431);
}

#[tokio::test]
async fn a_body_has_a_limit_when_one_is_set() {
    let target = http_backend(|asked| ok(&asked.body.len().to_string())).await;
    let proxy = proxy_to(target.address, |config| config.limits.request_body = Some(1_000)).await;
    let ask = async |request: String| Client::connect(&proxy).await.ask(request).await;
    for (size, status) in [(1_000, 200), (1_001, 413)] {
        let body = "b".repeat(size);
        let got =
            ask(format!("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: {size}\r\n\r\n{body}")).await;
        assert_eq!(got.status, status, "{size} bytes of known length");
        let got = ask(format!(
            "POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n{size:x}\r\n{body}\r\n0\r\n\r\n"
        ))
        .await;
        assert_eq!(got.status, status, "{size} bytes in chunks: {}", got.text());
    }
}

#[tokio::test]
async fn a_body_that_stops_arriving_is_a_408() {
    let target = http_backend(|_| ok("")).await;
    let proxy = proxy_to(target.address, |config| {
        config.timeouts.body_idle = Duration::from_millis(200);
    })
    .await;
    let mut client = Client::connect(&proxy).await;
    let got = client.ask("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 10\r\n\r\nhalf").await;
    assert_eq!((got.status, got.problem().as_deref()), (408, Some("request_timeout")));
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_response_that_stops_arriving_is_cut() {
    let target = backend(|mut stream, _| async move {
        let mut buffer = Vec::new();
        read_message(&mut stream, &mut buffer, false).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = proxy_to(target.address, |config| {
        config.timeouts.body_idle = Duration::from_millis(200);
    })
    .await;
    let mut client = Client::connect(&proxy).await;
    client.send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    assert!(client.try_read(false).await.is_none());
}

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up() {
    let (told, mut ended) = tokio::sync::mpsc::channel(1);
    let target = backend(move |mut stream, _| {
        let told = told.clone();
        async move {
            let mut buffer = Vec::new();
            read_message(&mut stream, &mut buffer, false).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await.unwrap();
            let chunk = vec![0; 64 * 1024];
            while stream.write_all(&chunk).await.is_ok() {}
            told.send(()).await.unwrap();
        }
    })
    .await;
    let proxy = proxy_to(target.address, |config| {
        config.timeouts.body_idle = Duration::from_millis(300);
    })
    .await;
    let mut client = Client::connect(&proxy).await;
    client.send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    soon(ended.recv()).await.expect("the target is freed");
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let target = named("a").await;
    let proxy = proxy_to(target.address, |config| config.limits.connections = 2).await;
    let mut first = Client::connect(&proxy).await;
    let mut second = Client::connect(&proxy).await;
    for client in [&mut first, &mut second] {
        assert_eq!(client.get("a.example", "/").await.status, 200);
    }
    let mut third = Client::connect(&proxy).await;
    let got = third.get("a.example", "/").await;
    assert_eq!((got.status, got.problem().as_deref()), (503, Some("too_many_connections")));
    assert_eq!(got.header("retry-after").as_deref(), Some("1"));
    assert_eq!(got.text().lines().count(), 2, "its length is right");
    drop(first);
    let started = std::time::Instant::now();
    loop {
        let got = get(&proxy, "a.example").await;
        if got.status == 200 {
            break;
        }
        assert!(started.elapsed() < SOON, "a place is free again");
    }
}

#[tokio::test]
async fn one_request_too_many_for_a_target_is_told_so() {
    let target = backend(|mut stream, _| async move {
        let mut buffer = Vec::new();
        read_message(&mut stream, &mut buffer, false).await;
        let mut byte = [0];
        let _ = stream.read(&mut byte).await;
    })
    .await;
    let other = named("other").await;
    let proxy = proxy_with(|config| config.limits.requests_per_target = 2, Hooks::default()).await;
    route(&proxy, "vm_a", 80, &["a.example"], target.address).await;
    route(&proxy, "vm_b", 80, &["b.example"], other.address).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(&proxy).await;
        client.send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
        held.push(client);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let got = get(&proxy, "a.example").await;
    assert_eq!((got.status, got.problem().as_deref()), (503, Some("target_busy")));
    assert_eq!(got.header("retry-after").as_deref(), Some("1"));
    assert_eq!(get(&proxy, "b.example").await.status, 200, "another target has its own places");
}

#[tokio::test]
async fn a_client_is_told_how_many_streams_it_may_open() {
    let target = named("a").await;
    let proxy = proxy_to(target.address, |config| config.limits.streams_per_connection = 3).await;
    let stream = TcpStream::connect(proxy.addresses()[0]).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, mut connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let request = Request::get("http://a.example/").body(empty()).unwrap();
    let answer = async { sender.send_request(request).await.unwrap().collect().await.unwrap() };
    tokio::select! {
        _ = soon(answer) => {}
        _ = &mut connection => panic!("the connection ended"),
    }
    assert_eq!(connection.current_max_send_streams(), 3);
}

#[tokio::test]
async fn a_configuration_that_cannot_be_names_its_setting() {
    use flames_error::ErrorKind;
    use flames_ingress_proxy::{Proxy, ProxyConfig};
    let change = |change: fn(&mut ProxyConfig)| {
        let mut config = config();
        change(&mut config);
        config
    };
    for (config, setting) in [
        (change(|config| config.listeners.clear()), "listeners"),
        (change(|config| config.listeners[0].tls = true), "tls"),
        (change(|config| config.domain = "Not.A.Domain".to_owned()), "domain"),
        (change(|config| config.limits.connections = 0), "limits.connections"),
        (change(|config| config.limits.header_bytes = 100), "limits.header_bytes"),
        (change(|config| config.timeouts.connect = Duration::ZERO), "timeouts.connect"),
    ] {
        let refused = Proxy::start(config, Hooks::default()).await.unwrap_err();
        assert_eq!((refused.kind(), refused.field()), (ErrorKind::InvalidInput, Some(setting)));
    }
    let taken = Proxy::start(config(), Hooks::default()).await.unwrap();
    let mut again = config();
    again.listeners[0].address = taken.addresses()[0];
    let refused = Proxy::start(again, Hooks::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.user_message().unwrap().contains(&taken.addresses()[0].to_string()));
}
