//! Routes that change while requests run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flames_ingress::{IngressProvider, Route, Target};
use flames_ingress_proxy::Hooks;
use tokio::io::AsyncWriteExt;

use crate::support::*;

/// Sends half a response at once, and the rest when told to.
async fn halting(name: &'static str) -> (Backend, Arc<tokio::sync::Notify>) {
    let go_on = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&go_on);
    let target = backend(move |mut stream, _| {
        let go_on = Arc::clone(&go_on);
        async move {
            let mut buffer = Vec::new();
            while read_message(&mut stream, &mut buffer, false).await.is_some() {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 2 * name.len());
                if stream.write_all((head + name).as_bytes()).await.is_err() {
                    return;
                }
                go_on.notified().await;
                if stream.write_all(name.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (target, told)
}

#[tokio::test]
async fn a_replaced_target_finishes_what_it_began_and_gets_nothing_new() {
    let (old, go_on) = halting("old").await;
    let new = named("new").await;
    let proxy = proxy_to(old.address, |_| {}).await;
    let mut client = Client::connect(&proxy).await;
    client.send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    route(&proxy, "vm_a", 80, &["a.example"], new.address).await;
    assert_eq!(get(&proxy, "a.example").await.text(), "new 0");
    go_on.notify_one();
    assert_eq!(client.read().await.text(), "oldold");
    assert_eq!(client.get("a.example", "/").await.text(), "new 0", "the client's connection goes on");
}

#[tokio::test]
async fn what_runs_to_a_removed_target_is_cut_after_its_time() {
    let (target, go_on) = halting("half").await;
    let silent = backend(|stream, _| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = proxy_to(target.address, |config| {
        config.timeouts.removed_target = Duration::from_millis(400);
    })
    .await;
    route(&proxy, "vm_s", 80, &["s.example"], silent.address).await;
    let [mut finishing, mut cut, mut waiting] =
        [Client::connect(&proxy).await, Client::connect(&proxy).await, Client::connect(&proxy).await];
    finishing.send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    waiting.send("GET / HTTP/1.1\r\nhost: s.example\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    cut.send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    proxy.unregister(&key("vm_a", 1).vm).await.unwrap();
    proxy.unregister(&key("vm_s", 1).vm).await.unwrap();
    assert_eq!(get(&proxy, "a.example").await.status, 404, "at once");
    go_on.notify_one();
    assert_eq!(finishing.read().await.text(), "halfhalf", "within its time it may finish");
    let started = Instant::now();
    assert!(cut.try_read(false).await.is_none(), "after it, a response breaks off");
    assert!(started.elapsed() < Duration::from_secs(5));
    let got = waiting.read().await;
    assert_eq!((got.status, got.problem().as_deref()), (503, Some("target_removed")));
    assert_eq!(waiting.get("a.example", "/").await.status, 404, "the client's connection goes on");
}

#[tokio::test]
async fn registering_the_same_again_keeps_connections() {
    let target = named("a").await;
    let proxy = proxy_to(target.address, |_| {}).await;
    assert_eq!(get(&proxy, "a.example").await.text(), "a 0");
    route(&proxy, "vm_a", 80, &["a.example"], target.address).await;
    route(&proxy, "vm_a", 80, &["a.example", "b.example"], target.address).await;
    assert_eq!(get(&proxy, "b.example").await.text(), "a 0");
    assert_eq!(get(&proxy, "a.example").await.text(), "a 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_notice_nothing_while_a_route_flaps_between_targets() {
    let (a, b) = (named("a").await, named("b").await);
    let proxy = Arc::new(proxy_to(a.address, |config| config.workers = 3).await);
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (proxy, is_over) = (Arc::clone(&proxy), Arc::clone(&is_over));
            tokio::spawn(async move {
                let mut client = Client::connect(&proxy).await;
                let mut asked = 0;
                while !is_over.load(Ordering::Relaxed) {
                    assert_eq!(client.get("a.example", "/").await.status, 200);
                    asked += 1;
                }
                asked
            })
        })
        .collect();
    for round in 0..100 {
        let target = if round % 2 == 0 { b.address } else { a.address };
        route(&proxy, "vm_a", 80, &["a.example"], target).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 10);
    }
}

#[tokio::test]
async fn idle_connections_to_a_target_are_closed_after_their_time_and_at_once_when_it_is_retired() {
    let open = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&open);
    let target = backend(move |mut stream, _| {
        let open = Arc::clone(&counted);
        async move {
            open.fetch_add(1, Ordering::SeqCst);
            let mut buffer = Vec::new();
            while read_message(&mut stream, &mut buffer, false).await.is_some() {
                stream.write_all(&ok("")).await.unwrap();
            }
            open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let proxy = proxy_to(target.address, |config| {
        config.timeouts.upstream_idle = Duration::from_millis(300);
    })
    .await;
    get(&proxy, "a.example").await;
    assert_eq!(open.load(Ordering::SeqCst), 1);
    eventually("it is closed after its time", || open.load(Ordering::SeqCst) == 0).await;
    get(&proxy, "a.example").await;
    assert_eq!(open.load(Ordering::SeqCst), 1);
    proxy.unregister(&key("vm_a", 1).vm).await.unwrap();
    let started = Instant::now();
    eventually("it is closed at once", || open.load(Ordering::SeqCst) == 0).await;
    assert!(started.elapsed() < Duration::from_millis(250), "{:?}", started.elapsed());
}

#[tokio::test]
async fn among_100_000_routes_a_change_is_seen_within_5_milliseconds() {
    const ROUTES: u32 = 100_000;
    let (a, b) = (named("a").await, named("b").await);
    let proxy = proxy_with(|_| {}, Hooks::default()).await;
    let started = Instant::now();
    for number in 0..ROUTES {
        let route =
            Route { key: key(&format!("vm_{number}"), 80), hosts: vec![format!("h{number}.example")] };
        proxy.register(route, Target::Address(a.address)).await.unwrap();
    }
    let each = started.elapsed() / ROUTES;
    assert!(each < Duration::from_millis(1), "a registration takes {each:?}");
    let mut client = Client::connect(&proxy).await;
    assert_eq!(client.get("h77777.example", "/").await.text(), "a 0");
    let mut seen = Vec::new();
    for round in 0..20 {
        let (target, name) = if round % 2 == 0 { (b.address, "b") } else { (a.address, "a") };
        // The connection to the new target is made by another request first, so that only the change is timed.
        route(&proxy, "vm_1", 80, &["h1.example"], target).await;
        client.get("h1.example", "/").await;
        let started = Instant::now();
        route(&proxy, "vm_77777", 80, &["h77777.example"], target).await;
        let registered = started.elapsed();
        assert!(client.get("h77777.example", "/").await.text().starts_with(name), "the next request sees it");
        seen.push(registered);
    }
    seen.sort();
    assert!(seen[10] < Duration::from_millis(5), "{seen:?}");
}
