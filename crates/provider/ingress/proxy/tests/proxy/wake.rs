//! Requests for VMs that rest.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use flames_error::{Error, Result};
use flames_ingress::{Dial, Duplex, IngressProvider, Route, RouteKey, RouteOwner, Target};
use flames_ingress_proxy::{Hooks, Proxy, WakeTarget};
use futures::future::BoxFuture;
use tokio::sync::Semaphore;

use crate::support::*;

/// Wakes VMs when the test lets it.
#[derive(Debug)]
struct Sleepers {
    resting: Mutex<HashSet<String>>,
    woken: AtomicUsize,
    may_wake: Semaphore,
    fails: bool,
    proxy: Mutex<Weak<Proxy>>,
    target: Target,
}

impl Sleepers {
    fn new(target: Target, fails: bool) -> Arc<Self> {
        Arc::new(Self {
            resting: Mutex::new(HashSet::from(["vm_a".to_owned()])),
            woken: AtomicUsize::new(0),
            may_wake: Semaphore::new(0),
            fails,
            proxy: Mutex::default(),
            target,
        })
    }

    async fn proxy(
        self: &Arc<Self>,
        change: impl FnOnce(&mut flames_ingress_proxy::ProxyConfig),
    ) -> Arc<Proxy> {
        self.proxy_and(Hooks::default(), change).await
    }

    async fn proxy_and(
        self: &Arc<Self>,
        hooks: Hooks,
        change: impl FnOnce(&mut flames_ingress_proxy::ProxyConfig),
    ) -> Arc<Proxy> {
        let hooks = Hooks { wake: Some(self.clone()), ..hooks };
        let proxy = Arc::new(proxy_with(change, hooks).await);
        *self.proxy.lock().unwrap() = Arc::downgrade(&proxy);
        proxy
    }
}

impl WakeTarget for Sleepers {
    fn resting(&self, host: &str, route: Option<&RouteKey>) -> Option<RouteOwner> {
        let is_a = host == "a.example" || route.is_some_and(|key| key.vm.as_str() == "vm_a");
        (is_a && self.resting.lock().unwrap().contains("vm_a")).then(|| key("vm_a", 1).vm)
    }

    fn wake<'a>(&'a self, vm: &'a RouteOwner) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.woken.fetch_add(1, Ordering::SeqCst);
            self.may_wake.acquire().await.unwrap().forget();
            if self.fails {
                let error = Error::unavailable("test.wake", "no host has room");
                return Err(error.with_retry_after(Duration::from_secs(7)));
            }
            let proxy = self.proxy.lock().unwrap().upgrade().unwrap();
            self.resting.lock().unwrap().remove(vm.as_str());
            let route = Route { key: key("vm_a", 80), hosts: vec!["a.example".to_owned()] };
            proxy.register(route, self.target.clone()).await.unwrap();
            Ok(())
        })
    }
}

#[tokio::test]
async fn requests_for_a_vm_that_rests_wake_it_once_and_go_on_when_it_is_there() {
    let target = named("awake").await;
    let sleepers = Sleepers::new(Target::Address(target.address), false);
    let proxy = sleepers.proxy(|_| {}).await;
    let asks: Vec<_> = (0..5)
        .map(|_| {
            let proxy = Arc::clone(&proxy);
            tokio::spawn(async move { get(&proxy, "a.example").await })
        })
        .collect();
    eventually("it is woken", || sleepers.woken.load(Ordering::SeqCst) == 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(asks.iter().all(|ask| !ask.is_finished()), "they wait");
    assert_eq!(get(&proxy, "b.example").await.status, 404, "others do not");
    sleepers.may_wake.add_permits(1);
    for ask in asks {
        let got = ask.await.unwrap();
        assert_eq!(got.status, 200);
        assert!(got.text().starts_with("awake"));
    }
    assert_eq!(sleepers.woken.load(Ordering::SeqCst), 1);
    assert_eq!(get(&proxy, "a.example").await.status, 200, "it is awake now");
    assert_eq!(sleepers.woken.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_route_of_a_paused_vm_is_not_used_before_it_is_awake() {
    let target = named("awake").await;
    let sleepers = Sleepers::new(Target::Address(target.address), false);
    let proxy = sleepers.proxy(|_| {}).await;
    let unreachable = ([127, 0, 0, 1], 9).into();
    route(&proxy, "vm_a", 80, &["a.example"], unreachable).await;
    sleepers.may_wake.add_permits(1);
    assert_eq!(get(&proxy, "a.example").await.text(), "awake 0");
}

#[tokio::test]
async fn a_vm_that_cannot_be_woken_is_a_503_that_says_when_to_try_again() {
    let target = named("awake").await;
    let sleepers = Sleepers::new(Target::Address(target.address), true);
    let proxy = sleepers.proxy(|_| {}).await;
    sleepers.may_wake.add_permits(2);
    for _ in 0..2 {
        let got = get(&proxy, "a.example").await;
        assert_eq!((got.status, got.problem().as_deref()), (503, Some("wake_failed")));
        assert_eq!(got.header("retry-after").as_deref(), Some("7"));
        assert!(!got.text().contains("room"), "nothing of the inside: {}", got.text());
    }
    assert_eq!(sleepers.woken.load(Ordering::SeqCst), 2, "each new request tries anew");
}

#[tokio::test]
async fn waiting_has_a_limit_in_time_and_in_number() {
    let target = named("awake").await;
    let sleepers = Sleepers::new(Target::Address(target.address), false);
    let proxy = sleepers
        .proxy(|config| {
            config.timeouts.wake = Duration::from_millis(500);
            config.limits.waiting_per_vm = 2;
        })
        .await;
    let asks: Vec<_> = (0..2)
        .map(|_| {
            let proxy = Arc::clone(&proxy);
            tokio::spawn(async move { get(&proxy, "a.example").await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(150)).await;
    let got = get(&proxy, "a.example").await;
    assert_eq!((got.status, got.problem().as_deref()), (503, Some("too_many_waiting")));
    assert!(got.header("retry-after").is_some());
    for ask in asks {
        let got = ask.await.unwrap();
        assert_eq!((got.status, got.problem().as_deref()), (503, Some("wake_timeout")));
        assert!(got.header("retry-after").is_some());
    }
    // Those places are free again, and the wake that nobody waited for was given up.
    sleepers.may_wake.add_permits(1);
    assert_eq!(get(&proxy, "a.example").await.status, 200);
    assert_eq!(sleepers.woken.load(Ordering::SeqCst), 2);
}

/// A guest where nothing listens until it was dialled some times.
#[derive(Debug)]
struct Starting {
    dials_left: AtomicUsize,
    dialled: AtomicUsize,
    server: std::net::SocketAddr,
}

impl Dial for Starting {
    fn dial(&self, _: &str, _: u16) -> BoxFuture<'_, Result<Box<dyn Duplex>>> {
        Box::pin(async move {
            self.dialled.fetch_add(1, Ordering::SeqCst);
            let take = |left: usize| left.checked_sub(1);
            if self.dials_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
                return Err(Error::unavailable("test.dial", "nothing listens"));
            }
            Ok(Box::new(tokio::net::TcpStream::connect(self.server).await.unwrap()) as Box<dyn Duplex>)
        })
    }
}

async fn starting(dials_left: usize, server: &Backend, wake: Duration) -> (Arc<Starting>, Arc<Proxy>) {
    let guest = Arc::new(Starting {
        dials_left: AtomicUsize::new(dials_left),
        dialled: AtomicUsize::new(0),
        server: server.address,
    });
    let sleepers = Sleepers::new(Target::Guest { incarnation: "inc_a".to_owned(), port: 80 }, false);
    sleepers.may_wake.add_permits(1);
    let hooks = Hooks { dial: Some(guest.clone()), ..Hooks::default() };
    let proxy = sleepers.proxy_and(hooks, |config| config.timeouts.wake = wake).await;
    (guest, proxy)
}

#[tokio::test]
async fn a_request_that_woke_a_vm_waits_until_something_listens_there() {
    let server = named("awake").await;
    let (guest, proxy) = starting(3, &server, Duration::from_secs(30)).await;
    let got = get(&proxy, "a.example").await;
    assert_eq!((got.status, got.text().as_str()), (200, "awake 0"), "it was sent once");
    assert_eq!(guest.dialled.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_woken_vm_where_nothing_comes_to_listen_is_unreachable_once_the_time_to_wake_is_up() {
    let server = named("awake").await;
    let (guest, proxy) = starting(usize::MAX, &server, Duration::from_millis(300)).await;
    let got = get(&proxy, "a.example").await;
    assert_eq!((got.status, got.problem().as_deref()), (502, Some("target_unreachable")));
    let dialled = guest.dialled.load(Ordering::SeqCst);
    assert!(dialled > 1);
    assert_eq!(get(&proxy, "a.example").await.status, 502);
    assert_eq!(guest.dialled.load(Ordering::SeqCst), dialled + 1, "the next does not wait again");
}
