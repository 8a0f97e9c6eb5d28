//! What passes, and how it looks on the other side.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flames_ingress::{Dial, Duplex, IngressProvider, Route, Target};
use flames_ingress_proxy::{Hooks, Protocol};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::*;

#[tokio::test]
async fn each_host_name_leads_to_its_own_target() {
    let (a, b) = (named("a").await, named("b").await);
    let proxy = proxy_with(|_| {}, Hooks::default()).await;
    let first = route(&proxy, "vm_1", 8080, &["a.example", "also-a.example"], a.address).await;
    let second = route(&proxy, "vm_2", 8080, &[], b.address).await;
    let port = proxy.addresses()[0].port();
    assert_eq!(first.url.unwrap(), format!("http://a.example:{port}/"));
    assert_eq!(second.url.unwrap(), format!("http://8080-vm-2.{DOMAIN}:{port}/"));
    let mut client = Client::connect(&proxy).await;
    for (host, target) in [
        ("a.example", "a 0"),
        ("also-a.example", "a 0"),
        ("A.Example:99", "a 0"),
        ("8080-vm_1.vms.example", "a 0"),
        ("8080-vm-1.vms.example", "a 0"),
        ("8080-vm-2.vms.example", "b 0"),
    ] {
        assert_eq!(client.get(host, "/").await.text(), target, "{host}, all on one connection");
    }
    for host in [
        "vms.example",
        "8081-vm-2.vms.example",
        "8080-vm-3.vms.example",
        "x.8080-vm-2.vms.example",
        "b.example",
        "[::1]",
    ] {
        let got = client.get(host, "/").await;
        assert_eq!((got.status, got.problem().as_deref()), (404, Some("unknown_host")), "{host}");
        assert!(!got.text().contains("vm"), "nothing of the inside: {}", got.text());
    }
}

#[tokio::test]
async fn a_name_of_another_vms_port_cannot_be_taken() {
    let proxy = proxy_with(|_| {}, Hooks::default()).await;
    for host in ["8080-vm-2.vms.example", "vms.example"] {
        let hosts = vec![host.to_owned()];
        let target = Target::Address(([127, 0, 0, 1], 9).into());
        let refused = proxy.register(Route { key: key("vm_1", 80), hosts }, target).await.unwrap_err();
        assert_eq!(refused.kind(), flames_error::ErrorKind::InvalidInput, "{host}");
    }
}

#[tokio::test]
async fn of_ports_that_share_a_host_name_the_lowest_answers() {
    let (a, b) = (named("low").await, named("high").await);
    let proxy = proxy_with(|_| {}, Hooks::default()).await;
    route(&proxy, "vm_1", 90, &["a.example"], b.address).await;
    assert_eq!(get(&proxy, "a.example").await.text(), "high 0");
    route(&proxy, "vm_1", 80, &["a.example"], a.address).await;
    assert_eq!(get(&proxy, "a.example").await.text(), "low 0");
    proxy.unregister_port(&key("vm_1", 80)).await.unwrap();
    assert!(get(&proxy, "a.example").await.text().starts_with("high"));
}

#[tokio::test]
async fn a_target_sees_who_asked_and_nothing_that_was_for_the_proxy_alone() {
    let (sender, mut asked) = tokio::sync::mpsc::channel(8);
    let target = http_backend(move |asked| {
        sender.try_send(asked.clone()).unwrap();
        ok("")
    })
    .await;
    let request = "POST /p?q=1 HTTP/1.1\r\nhost: A.example:81\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: 5\r\n\
        proxy-connection: x\r\nupgrade: h2c\r\nte: trailers, gzip\r\nx-forwarded-for: 6.6.6.6\r\nforwarded: for=6.6.6.6\r\n\
        x_forwarded_for: 6.6.6.6\r\nx-end: 2\r\ncontent-length: 3\r\n\r\nabc";

    let proxy = proxy_to(target.address, |_| {}).await;
    assert_eq!(Client::connect(&proxy).await.ask(request).await.status, 200);
    let seen = asked.recv().await.unwrap();
    assert!(seen.head.starts_with("POST /p?q=1 HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(seen.body, b"abc");
    for (name, value) in [
        ("host", Some("A.example:81")),
        ("x-end", Some("2")),
        ("content-length", Some("3")),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("A.example:81")),
        ("forwarded", Some("for=127.0.0.1;host=\"A.example:81\";proto=http")),
        ("te", Some("trailers")),
        ("connection", Some("te")),
        ("x-hop", None),
        ("keep-alive", None),
        ("proxy-connection", None),
        ("upgrade", None),
        ("x_forwarded_for", None),
        ("transfer-encoding", None),
    ] {
        assert_eq!(seen.header(name).as_deref(), value, "{name}");
    }
    assert!(!seen.head.contains("6.6.6.6"));

    let proxy = proxy_to(target.address, |config| {
        config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    assert_eq!(Client::connect(&proxy).await.ask(request).await.status, 200);
    let seen = asked.recv().await.unwrap();
    assert_eq!(seen.header("x-forwarded-for").unwrap(), "6.6.6.6, 127.0.0.1");
    assert!(seen.header("forwarded").unwrap().starts_with("for=6.6.6.6, for=127.0.0.1;"));
}

#[tokio::test]
async fn responses_without_a_body_have_none_and_the_connection_goes_on() {
    let target = http_backend(|asked| {
        let status = asked.head.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
        match (asked.head.split(' ').next().unwrap(), status.as_str()) {
            ("HEAD", _) => b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n".to_vec(),
            (_, "204") => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
            (_, "304") => b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\netag: \"x\"\r\n\r\n".to_vec(),
            _ => ok("whole"),
        }
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut client = Client::connect(&proxy).await;
    for _ in 0..3 {
        client.send("HEAD / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
        let got = client.try_read(true).await.unwrap();
        assert_eq!((got.status, got.header("content-length").as_deref()), (200, Some("5")));
        assert_eq!(client.get("a.example", "/204").await.status, 204);
        let got = client.get("a.example", "/304").await;
        assert_eq!((got.status, got.header("etag").as_deref()), (304, Some("\"x\"")));
        assert_eq!(client.get("a.example", "/").await.text(), "whole");
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_a_body_that_ends_with_the_connection() {
    let target = http_backend(|_| {
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec()
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut client = Client::connect(&proxy).await;
    let got = client.ask("GET / HTTP/1.0\r\nhost: a.example\r\n\r\n").await;
    assert_eq!((got.status, got.text().as_str(), got.header("transfer-encoding")), (200, "abc", None));
}

#[tokio::test]
async fn a_client_that_expects_100_is_told_when_the_target_takes_the_body() {
    let target = http_backend(|asked| {
        assert_eq!(asked.header("expect"), None);
        ok(&String::from_utf8_lossy(&asked.body))
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut client = Client::connect(&proxy).await;
    let head = "POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n";
    assert_eq!(client.ask(head).await.status, 100);
    assert_eq!(client.ask("body").await.text(), "body");
    // Refused before it is sent.
    let got = client.ask(head.replace("a.example", "x.example")).await;
    assert_eq!(got.status, 404);
    let mut client = Client::connect(&proxy).await;
    assert_eq!(client.ask(head.replace("100-continue", "gold")).await.status, 417);
}

fn chunked_with_trailers() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n".to_vec()
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let (sender, mut asked) = tokio::sync::mpsc::channel(8);
    let target = http_backend(move |asked| {
        sender.try_send(asked.clone()).unwrap();
        chunked_with_trailers()
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut client = Client::connect(&proxy).await;
    let got = client
        .ask(
            "POST / HTTP/1.1\r\nhost: a.example\r\nte: trailers\r\nconnection: te\r\ntrailer: x-up\r\n\
             transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-up: 9\r\n\r\n",
        )
        .await;
    assert!(got.text().contains("x-sum: 7"), "{}", got.text());
    let seen = asked.recv().await.unwrap();
    assert!(String::from_utf8_lossy(&seen.body).contains("x-up: 9"), "{seen:?}");

    // From HTTP/2, where trailers need no announcement of the client.
    let stream = TcpStream::connect(proxy.addresses()[0]).await.unwrap();
    let mut client = http2_client(stream).await;
    let request = Request::get("http://a.example/").body(empty()).unwrap();
    let collected = soon(client.send_request(request)).await.unwrap().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "7");
    assert_eq!(collected.to_bytes(), "abc");
}

#[tokio::test]
async fn http2_requests_run_beside_each_other() {
    let target = backend(|mut stream, _| async move {
        let mut buffer = Vec::new();
        while let Some((head, _)) = read_message(&mut stream, &mut buffer, false).await {
            let slow = head.starts_with("GET /slow");
            tokio::time::sleep(Duration::from_millis(if slow { 300 } else { 0 })).await;
            if stream.write_all(&ok(if slow { "slow" } else { "fast" })).await.is_err() {
                return;
            }
        }
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let stream = TcpStream::connect(proxy.addresses()[0]).await.unwrap();
    let client = http2_client(stream).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let ask = |path: &'static str| {
        let (mut client, order) = (client.clone(), Arc::clone(&order));
        async move {
            let request = Request::get(format!("http://a.example{path}")).body(empty()).unwrap();
            let response = soon(client.send_request(request)).await.unwrap();
            assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
            let body = response.collect().await.unwrap().to_bytes();
            order.lock().unwrap().push(body);
        }
    };
    tokio::join!(ask("/slow"), ask("/fast"), ask("/fast"));
    assert_eq!(*order.lock().unwrap(), ["fast", "fast", "slow"]);
}

/// Passes on what comes, trailers too, and says which version of HTTP it came by.
async fn echo(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, hyper::Error>>, hyper::Error> {
    let version = format!("{:?}", request.version());
    let host = request.uri().authority().map(|authority| authority.to_string()).unwrap_or_default();
    let mut response = Response::new(request.into_body().boxed());
    response.headers_mut().insert("x-version", HeaderValue::try_from(version).unwrap());
    response.headers_mut().insert("x-authority", HeaderValue::try_from(host).unwrap());
    Ok(response)
}

#[tokio::test]
async fn a_target_that_speaks_http2_gets_all_requests_over_one_connection() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let target = backend(move |stream, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), hyper::service::service_fn(echo)).await;
        }
    })
    .await;
    let hooks = Hooks { protocol: Arc::new(|_| Protocol::Http2), ..Hooks::default() };
    let proxy = proxy_with(|_| {}, hooks).await;
    route(&proxy, "vm_a", 80, &["a.example"], target.address).await;

    let mut http1 = Client::connect(&proxy).await;
    let got = http1.ask("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 2\r\n\r\nhi").await;
    assert_eq!((got.text().as_str(), got.header("x-version").as_deref()), ("hi", Some("HTTP/2.0")));
    assert_eq!(got.header("x-authority").as_deref(), Some("a.example"));

    let stream = TcpStream::connect(proxy.addresses()[0]).await.unwrap();
    let client = http2_client(stream).await;
    let asks = (0..20).map(|number| {
        let mut client = client.clone();
        async move {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-number", HeaderValue::from(number));
            let frames = [Ok(Frame::data(Bytes::from("both ways"))), Ok(Frame::trailers(trailers))];
            let body = BoxBody::new(StreamBody::new(futures::stream::iter(frames)));
            let request = Request::post("http://a.example/").body(body).unwrap();
            let collected = soon(client.send_request(request)).await.unwrap().collect().await.unwrap();
            assert_eq!(collected.trailers().unwrap()["x-number"], HeaderValue::from(number));
            assert_eq!(collected.to_bytes(), "both ways");
        }
    });
    futures::future::join_all(asks).await;
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_body_streams_at_the_pace_of_who_reads_it() {
    const SIZE: usize = 64 * 1024 * 1024;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let target = backend(move |mut stream, _| {
        let counted = Arc::clone(&counted);
        async move {
            let mut buffer = Vec::new();
            read_message(&mut stream, &mut buffer, false).await.unwrap();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let chunk = vec![7; 64 * 1024];
            for _ in 0..SIZE / chunk.len() {
                if stream.write_all(&chunk).await.is_err() {
                    return;
                }
                counted.fetch_add(chunk.len(), Ordering::Relaxed);
            }
        }
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut client = Client::connect(&proxy).await;
    client.send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    // Nobody reads: what is under way is what sockets and buffers hold.
    let mut before = usize::MAX;
    while sent.load(Ordering::Relaxed) != before {
        before = sent.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < SIZE / 2, "{before} bytes were taken from the target for a client that reads nothing");
    let got = client.read().await;
    assert_eq!((got.status, got.body.len()), (200, SIZE));
}

#[tokio::test]
async fn an_upload_streams_while_it_is_made() {
    let target = backend(|mut stream, _| async move {
        // Answers each piece as it comes, before the request is whole.
        let mut piece = [0; 1024];
        use tokio::io::AsyncReadExt;
        let read = stream.read(&mut piece).await.unwrap();
        assert!(std::str::from_utf8(&piece[..read]).unwrap().contains("chunked"));
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        loop {
            let read = stream.read(&mut piece).await.unwrap();
            if piece[..read].ends_with(b"0\r\n\r\n") {
                stream.write_all(b"0\r\n\r\n").await.unwrap();
                return;
            }
            stream.write_all(b"2\r\nok\r\n").await.unwrap();
        }
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut client = Client::connect(&proxy).await;
    client.send("POST / HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n").await;
    use tokio::io::AsyncReadExt;
    let mut seen = String::new();
    let mut piece = [0; 1024];
    while !seen.ends_with("\r\n\r\n") {
        let read = soon(client.stream.read(&mut piece)).await.unwrap();
        seen.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
    for _ in 0..3 {
        client.send("3\r\nabc\r\n").await;
        let read = soon(client.stream.read(&mut piece)).await.unwrap();
        assert_eq!(&piece[..read], b"2\r\nok\r\n", "answered before the upload ended");
    }
    client.send("0\r\n\r\n").await;
    let read = soon(client.stream.read(&mut piece)).await.unwrap();
    assert_eq!(&piece[..read], b"0\r\n\r\n");
}

#[tokio::test]
async fn connections_to_a_target_are_kept_for_its_next_requests() {
    let target = named("a").await;
    let proxy = proxy_to(target.address, |_| {}).await;
    for _ in 0..20 {
        assert_eq!(get(&proxy, "a.example").await.text(), "a 0");
    }
}

#[tokio::test]
async fn the_callers_own_runtime_can_serve() {
    let target = named("a").await;
    let proxy = proxy_to(target.address, |config| config.workers = 0).await;
    assert_eq!(get(&proxy, "a.example").await.text(), "a 0");
    assert_eq!(proxy.shutdown(Duration::from_secs(10)).await, 0);
}

/// Guests as ends of in-memory pipes: each dial is answered by the incarnation's name and how often it was dialled.
#[derive(Debug, Default)]
struct Guests(Mutex<std::collections::HashMap<String, usize>>);

impl Dial for Guests {
    fn dial(&self, incarnation: &str, port: u16) -> BoxFuture<'_, flames_error::Result<Box<dyn Duplex>>> {
        let incarnation = incarnation.to_owned();
        Box::pin(async move {
            if incarnation == "inc_gone" {
                return Err(flames_error::Error::not_found("test.dial", "incarnation", incarnation));
            }
            let dialled = {
                let mut dialled = self.0.lock().unwrap();
                let count = dialled.entry(incarnation.clone()).or_default();
                *count += 1;
                *count
            };
            let (near, mut far) = tokio::io::duplex(1024);
            tokio::spawn(async move {
                let mut buffer = Vec::new();
                while read_message(&mut far, &mut buffer, false).await.is_some() {
                    let answer = ok(&format!("{incarnation}:{port} by dial {dialled}"));
                    if far.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
            Ok(Box::new(near) as Box<dyn Duplex>)
        })
    }
}

#[tokio::test]
async fn a_guests_port_is_dialled_and_incarnations_share_no_connection() {
    let hooks = Hooks { dial: Some(Arc::new(Guests::default())), ..Hooks::default() };
    let proxy = proxy_with(|_| {}, hooks).await;
    assert!(proxy.capabilities().guest_targets);
    let lead_to = async |incarnation: &str| {
        let target = Target::Guest { incarnation: incarnation.to_owned(), port: 3000 };
        proxy.register(Route { key: key("vm_1", 80), hosts: vec![] }, target).await.unwrap();
    };
    let ask = async || get(&proxy, "80-vm-1.vms.example").await.text();
    lead_to("inc_1").await;
    assert_eq!(ask().await, "inc_1:3000 by dial 1");
    assert_eq!(ask().await, "inc_1:3000 by dial 1", "kept");
    lead_to("inc_2").await;
    assert_eq!(ask().await, "inc_2:3000 by dial 1");
    lead_to("inc_1").await;
    assert_eq!(ask().await, "inc_1:3000 by dial 2", "what was kept before is not used again");
    lead_to("inc_gone").await;
    let got = get(&proxy, "80-vm-1.vms.example").await;
    assert_eq!((got.status, got.problem().as_deref()), (502, Some("target_unreachable")));
}

#[tokio::test]
async fn each_request_is_told_to_the_access_log_once() {
    let target = named("a").await;
    let records = Records::default();
    let hooks = Hooks { access_log: Arc::new(records.clone()), ..Hooks::default() };
    let proxy = proxy_with(|_| {}, hooks).await;
    route(&proxy, "vm_a", 80, &["a.example"], target.address).await;
    let mut client = Client::connect(&proxy).await;
    client.get("a.example", "/path?token=secret").await;
    client.get("x.example", "/").await;
    eventually("both are told", || records.all().len() == 2).await;
    let all = records.all();
    assert_eq!(
        (all[0].method.as_str(), all[0].host.as_str(), all[0].path.as_str()),
        ("GET", "a.example", "/path")
    );
    assert_eq!(
        (all[0].status, all[0].bytes, all[0].vm.as_deref(), all[0].problem),
        (200, 3, Some("vm_a"), None)
    );
    assert_eq!(all[0].peer.to_string(), "127.0.0.1");
    assert_eq!((all[1].status, all[1].vm.as_deref(), all[1].problem), (404, None, Some("unknown_host")));
}
