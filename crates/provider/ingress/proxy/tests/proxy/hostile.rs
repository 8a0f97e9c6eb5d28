//! Peers that lie, break off, or say nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flames_ingress_proxy::Hooks;
use http::Request;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

/// A target that counts requests and must never see the one that is smuggled.
async fn guarded() -> (Backend, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let target = http_backend(move |asked| {
        counted.fetch_add(1, Ordering::SeqCst);
        assert!(!asked.head.contains("/smuggled"), "{}", asked.head);
        ok("seen")
    })
    .await;
    (target, count)
}

#[tokio::test]
async fn what_could_be_read_in_two_ways_never_hides_a_second_request() {
    let inner = "GET /smuggled HTTP/1.1\r\nhost: a.example\r\n\r\n";
    let length = inner.len();
    // Each is refused, or is read by the chunks alone and its connection closed before what follows is read.
    for framing in [
        format!("content-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}", length + 5),
        format!("transfer-encoding: chunked\r\ncontent-length: {}\r\n\r\n0\r\n\r\n{inner}", length + 5),
        format!("content-length: 0\r\ncontent-length: {length}\r\n\r\n{inner}"),
        format!("content-length: {length}, 0\r\n\r\n{inner}"),
        format!("content-length: +0\r\n\r\n{inner}"),
        format!("content-length: -1\r\n\r\n{inner}"),
        format!("content-length: 0x0\r\n\r\n{inner}"),
        format!("transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}"),
        format!("transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("transfer-encoding : chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("x: y\r\n transfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("transfer-encoding: chunked\r\n\r\n0x0\r\n\r\n{inner}"),
        format!("transfer-encoding: chunked\r\n\r\n-0\r\n\r\n{inner}"),
        format!("transfer-encoding: chunked\r\n\r\n10000000000000000\r\n\r\n{inner}"),
    ] {
        let (target, count) = guarded().await;
        let proxy = proxy_to(target.address, |_| {}).await;
        let mut client = Client::connect(&proxy).await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a.example\r\n{framing}")).await;
        let got = client.try_read(false).await;
        let status = got.as_ref().map_or(0, |got| got.status);
        assert!([0, 200, 400, 408, 501, 502].contains(&status), "{framing:?}: {got:?}");
        assert!(client.is_closed().await, "{framing:?}: the connection goes on after {got:?}");
        assert!(count.load(Ordering::SeqCst) <= 1, "{framing:?}");
    }
}

#[tokio::test]
async fn a_request_for_two_hosts_or_none_is_refused() {
    let (target, count) = guarded().await;
    let proxy = proxy_to(target.address, |_| {}).await;
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a.example\r\nhost: b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a.example\r\nhost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a.example, b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a.example/x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x@a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nhost:\r\n\r\n",
        "GET http://b.example/ HTTP/1.1\r\nhost: a.example\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\nhost: b.example\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\n\r\n",
        "GET ftp://a.example/ HTTP/1.1\r\nhost: a.example\r\n\r\n",
        "GET * HTTP/1.1\r\nhost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a.example\r\nx\x00y: z\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a.example\r\nx: a\x00b\r\n\r\n",
        "GET / HTTP/9.9\r\nhost: a.example\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03\r\n\r\n",
    ] {
        let mut client = Client::connect(&proxy).await;
        client.send(request).await;
        let got = client.try_read(false).await;
        assert!(got.as_ref().is_none_or(|got| got.status == 400), "{request:?}: {got:?}");
        assert!(client.is_closed().await, "{request:?}");
    }
    for method in ["CONNECT a.example:80", "TRACE /"] {
        let got =
            Client::connect(&proxy).await.ask(format!("{method} HTTP/1.1\r\nhost: a.example\r\n\r\n")).await;
        assert!(matches!(got.status, 400 | 405), "{method}: {got:?}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
    // The same in absolute form is one host.
    let got =
        Client::connect(&proxy).await.ask("GET http://a.example/x HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    assert_eq!(got.text(), "seen");
}

#[tokio::test]
async fn over_http2_a_host_beside_the_authority_says_the_same() {
    let (target, _) = guarded().await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut client = http2_client(TcpStream::connect(proxy.addresses()[0]).await.unwrap()).await;
    for (host, status) in [("a.example", 200), ("b.example", 400), ("a.example:81", 400)] {
        let request = Request::get("http://a.example/").header("host", host).body(empty()).unwrap();
        let response = soon(client.send_request(request)).await.unwrap();
        assert_eq!(response.status(), status, "{host}");
        response.collect().await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_is_slow_with_its_head_is_closed() {
    let (target, count) = guarded().await;
    let proxy = proxy_to(target.address, |config| {
        config.timeouts.header_read = Duration::from_millis(300);
    })
    .await;
    // Nothing at all, the beginning of HTTP/2's preface, and a head that never ends though something always comes.
    for first in ["", "PRI * HT", "GET / HTTP/1.1\r\nhost: a.example\r\n"] {
        let started = Instant::now();
        let mut stream = TcpStream::connect(proxy.addresses()[0]).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let drip = tokio::spawn(async move {
            while first.contains("host") && writer.write_all(b"x: y\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            writer
        });
        let mut rest = Vec::new();
        // Closed in order or by a reset: it ends.
        let _ = soon(reader.read_to_end(&mut rest)).await;
        assert!(started.elapsed() < Duration::from_secs(5), "{first:?}: after {:?}", started.elapsed());
        drip.abort();
    }
    // A second request's head has its own time, and one that is quick enough is served.
    let mut client = Client::connect(&proxy).await;
    assert_eq!(client.get("a.example", "/").await.status, 200);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(client.get("a.example", "/").await.status, 200, "an idle connection is not a slow head");
    client.send("GET / HT").await;
    assert!(client.is_closed().await);
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_client_that_idles_is_closed_in_order() {
    let target = named("a").await;
    let proxy = proxy_to(target.address, |config| {
        config.timeouts.client_idle = Duration::from_millis(200);
    })
    .await;
    let mut client = Client::connect(&proxy).await;
    assert_eq!(client.get("a.example", "/").await.status, 200);
    assert!(client.is_closed().await);
    let mut client = http2_client(TcpStream::connect(proxy.addresses()[0]).await.unwrap()).await;
    let request = Request::get("http://a.example/").body(empty()).unwrap();
    soon(client.send_request(request)).await.unwrap().collect().await.unwrap();
    eventually("an idle HTTP/2 connection is closed", || client.is_closed()).await;
}

#[tokio::test]
async fn a_target_that_never_answers_is_a_504_and_one_that_is_not_there_a_502() {
    let silent = backend(|stream, _| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = proxy_to(silent.address, |config| {
        config.timeouts.response = Duration::from_millis(200);
    })
    .await;
    let gone = {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        listener.local_addr().unwrap()
    };
    route(&proxy, "vm_gone", 80, &["gone.example"], gone).await;
    let mut client = Client::connect(&proxy).await;
    for (host, status, problem) in
        [("a.example", 504, "response_timeout"), ("gone.example", 502, "target_unreachable")]
    {
        let got = client.get(host, "/").await;
        assert_eq!((got.status, got.problem().as_deref()), (status, Some(problem)));
        assert!(!got.text().contains("127.0.0.1"), "nothing of the inside: {}", got.text());
    }
}

#[tokio::test]
async fn a_whole_request_has_a_deadline_when_one_is_set() {
    let target = backend(|mut stream, _| async move {
        let mut buffer = Vec::new();
        read_message(&mut stream, &mut buffer, false).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
        // It never stops moving, so only the deadline can end it.
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let records = Records::default();
    let hooks = Hooks { access_log: Arc::new(records.clone()), ..Hooks::default() };
    let proxy = proxy_with(|config| config.timeouts.request = Some(Duration::from_millis(300)), hooks).await;
    route(&proxy, "vm_a", 80, &["a.example"], target.address).await;
    let mut client = Client::connect(&proxy).await;
    client.send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    assert!(client.try_read(false).await.is_none(), "the response breaks off");
    eventually("it is told", || records.all().first().is_some_and(|r| r.problem == Some("request_deadline")))
        .await;
}

#[tokio::test]
async fn a_target_that_dies_or_talks_nonsense_before_its_answer_is_a_502() {
    for nonsense in [
        "",
        "HTTP/1.1 200",
        "hello\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1, 2\r\n\r\nx",
        "HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ] {
        let target = backend(move |mut stream, _| async move {
            let mut buffer = Vec::new();
            read_message(&mut stream, &mut buffer, false).await.unwrap();
            stream.write_all(nonsense.as_bytes()).await.unwrap();
        })
        .await;
        let proxy = proxy_to(target.address, |_| {}).await;
        let mut client = Client::connect(&proxy).await;
        let got = client.get("a.example", "/").await;
        assert_eq!((got.status, got.problem().as_deref()), (502, Some("target_broke")), "{nonsense:?}");
        assert_eq!(
            client.get("x.example", "/").await.status,
            404,
            "{nonsense:?}: the client's connection goes on"
        );
    }
}

#[tokio::test]
async fn a_target_with_too_large_a_head_is_a_502() {
    let target = http_backend(|asked| {
        let line = if asked.head.contains("/many") {
            "x: y\r\n".repeat(200)
        } else {
            format!("x: {}\r\n", "y".repeat(100_000))
        };
        format!("HTTP/1.1 200 OK\r\n{line}content-length: 0\r\n\r\n").into_bytes()
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut client = Client::connect(&proxy).await;
    for path in ["/many", "/long"] {
        let got = client.get("a.example", path).await;
        assert_eq!((got.status, got.problem().as_deref()), (502, Some("target_broke")), "{path}");
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_at_the_target_breaks_off_at_the_client() {
    for head in ["content-length: 10", "transfer-encoding: chunked"] {
        let target = backend(move |mut stream, _| async move {
            let mut buffer = Vec::new();
            read_message(&mut stream, &mut buffer, false).await.unwrap();
            let part = if head.starts_with('c') { "half" } else { "4\r\nhalf\r\n" };
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{part}").as_bytes()).await.unwrap();
        })
        .await;
        let records = Records::default();
        let hooks = Hooks { access_log: Arc::new(records.clone()), ..Hooks::default() };
        let proxy = proxy_with(|_| {}, hooks).await;
        route(&proxy, "vm_a", 80, &["a.example"], target.address).await;
        let mut client = Client::connect(&proxy).await;
        client.send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
        assert!(client.try_read(false).await.is_none(), "{head}: it must not look whole");
        eventually("it is told", || {
            records.all().first().is_some_and(|record| record.problem == Some("target_broke"))
        })
        .await;

        let mut client = http2_client(TcpStream::connect(proxy.addresses()[0]).await.unwrap()).await;
        let request = Request::get("http://a.example/").body(empty()).unwrap();
        // The reset may overtake the head.
        let whole = async { client.send_request(request).await?.collect().await };
        assert!(soon(whole).await.is_err(), "{head}: nor over HTTP/2");
    }
}

#[tokio::test]
async fn an_upload_that_the_client_breaks_off_breaks_off_at_the_target() {
    for framing in ["content-length: 100\r\n\r\nhalf", "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        let (told, mut ended) = tokio::sync::mpsc::channel(1);
        let target = backend(move |mut stream, _| {
            let told = told.clone();
            async move {
                let mut seen = Vec::new();
                let _ = stream.read_to_end(&mut seen).await;
                told.send(String::from_utf8(seen).unwrap()).await.unwrap();
            }
        })
        .await;
        let proxy = proxy_to(target.address, |_| {}).await;
        let mut client = Client::connect(&proxy).await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a.example\r\n{framing}")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(client);
        let seen = soon(ended.recv()).await.unwrap();
        assert!(seen.contains("half") && !seen.ends_with("0\r\n\r\n"), "it must not look whole: {seen}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_target() {
    let (told, mut ended) = tokio::sync::mpsc::channel(1);
    let target = backend(move |mut stream, _| {
        let told = told.clone();
        async move {
            let mut seen = Vec::new();
            let _ = stream.read_to_end(&mut seen).await;
            told.send(()).await.unwrap();
        }
    })
    .await;
    let records = Records::default();
    let hooks = Hooks { access_log: Arc::new(records.clone()), ..Hooks::default() };
    let proxy = proxy_with(|_| {}, hooks).await;
    route(&proxy, "vm_a", 80, &["a.example"], target.address).await;
    let mut client = Client::connect(&proxy).await;
    client.send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(client);
    soon(ended.recv()).await.unwrap();
    eventually("it is told", || records.all().len() == 1).await;
    assert_eq!(records.all()[0].status, 0);
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_costs_no_request() {
    // Serves one request a connection, and says nothing of it.
    let target = backend(|mut stream, number| async move {
        let mut buffer = Vec::new();
        if let Some((head, _)) = read_message(&mut stream, &mut buffer, false).await {
            let method = head.split(' ').next().unwrap();
            stream.write_all(&ok(&format!("{method} {number}"))).await.unwrap();
            // Until the next one comes: then it closes instead of answering.
            let mut byte = [0];
            let _ = stream.read(&mut byte).await;
        }
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut client = Client::connect(&proxy).await;
    assert_eq!(client.get("a.example", "/").await.text(), "GET 0");
    assert_eq!(client.get("a.example", "/").await.text(), "GET 1", "a GET is sent again");
    let got = client.ask("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 1\r\n\r\nx").await;
    assert_eq!(got.status, 502, "a POST that may have been seen is not");
    let got = client.ask("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 1\r\n\r\nx").await;
    assert_eq!(got.text(), "POST 2");
}

#[tokio::test]
async fn bytes_that_nobody_asked_for_never_answer_a_later_request() {
    let target = backend(|mut stream, number| async move {
        let mut buffer = Vec::new();
        while read_message(&mut stream, &mut buffer, false).await.is_some() {
            let mut answer = ok(&format!("right {number}"));
            answer.extend_from_slice(&ok("poison"));
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut client = Client::connect(&proxy).await;
    for number in 0..5 {
        assert_eq!(client.get("a.example", "/").await.text(), format!("right {number}"));
    }
}

#[tokio::test]
async fn an_answer_before_the_upload_ends_is_passed_on_and_its_connection_is_not_kept() {
    let target = backend(|mut stream, number| async move {
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.unwrap() == 0 {
                return;
            }
        }
        let status = if head.starts_with(b"POST") { "413 Payload Too Large" } else { "200 OK" };
        let body = format!("by {number}");
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        // It neither reads the rest nor closes.
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    for framing in ["content-length: 1000000\r\n\r\npart", "transfer-encoding: chunked\r\n\r\n4\r\npart\r\n"]
    {
        let mut client = Client::connect(&proxy).await;
        let got = client.ask(format!("POST / HTTP/1.1\r\nhost: a.example\r\n{framing}")).await;
        assert_eq!(got.status, 413, "{framing}");
    }
    assert_eq!(get(&proxy, "a.example").await.text(), "by 2", "on a connection of its own");
}

#[tokio::test]
async fn interim_answers_are_not_the_answer_and_have_a_limit() {
    let target = http_backend(|asked| {
        let early = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
        let count = if asked.head.contains("/endless") { 1_000 } else { 3 };
        [early.repeat(count).into_bytes(), ok("the answer")].concat()
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    let mut client = Client::connect(&proxy).await;
    for _ in 0..2 {
        assert_eq!(client.get("a.example", "/").await.text(), "the answer");
    }
    assert_eq!(client.get("a.example", "/endless").await.status, 502);
}

#[tokio::test]
async fn a_response_that_could_be_read_in_two_ways_is_not_passed_on() {
    for head in [
        "content-length: 5\r\ncontent-length: 6",
        "content-length: +5",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding : chunked",
        "x\u{0}y: z",
    ] {
        let target = backend(move |mut stream, _| async move {
            let mut buffer = Vec::new();
            read_message(&mut stream, &mut buffer, false).await.unwrap();
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n0\r\n\r\n").as_bytes()).await.unwrap();
        })
        .await;
        let proxy = proxy_to(target.address, |_| {}).await;
        let got = get(&proxy, "a.example").await;
        assert_eq!((got.status, got.problem().as_deref()), (502, Some("target_broke")), "{head}");
    }
    // Both a length and chunks: the chunks count, the length is gone, and the connection is not used again.
    let target = http_backend(|asked| {
        let body = format!("1\r\n{}\r\n0\r\n\r\n", asked.connection);
        format!("HTTP/1.1 200 OK\r\ncontent-length: 999\r\ntransfer-encoding: chunked\r\n\r\n{body}")
            .into_bytes()
    })
    .await;
    let proxy = proxy_to(target.address, |_| {}).await;
    for number in 0..2 {
        let got = get(&proxy, "a.example").await;
        assert_eq!(got.header("content-length"), None);
        assert!(got.text().starts_with(&format!("1\r\n{number}\r\n")), "{}", got.text());
    }
}
