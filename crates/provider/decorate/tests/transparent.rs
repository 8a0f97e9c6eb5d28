//! A provider that is decorated twice, with nothing to go wrong, passes its suite as it does alone.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flames_blob::BlobStore;
use flames_blob_memory::MemoryBlobStore;
use flames_cache::{CacheCapabilities, CacheStore};
use flames_cache_memory::MemoryCache;
use flames_clock::{Clock, SimulatedClock, SystemClock};
use flames_conformance_runner::{Harness, Hooks, Suite, Time, async_trait, failures};
use flames_decorate::{Decorated, Fault, FaultInjection, Instrumentation, Observed};
use flames_ingress::{IngressCapabilities, IngressProvider};
use flames_ingress_noop::NoopIngress;
use flames_queue::WorkQueue;
use flames_queue_memory::MemoryQueue;
use flames_state::StateStore;
use flames_state_memory::MemoryStore;

static CALLS: AtomicUsize = AtomicUsize::new(0);

type Twice<P> = Decorated<Decorated<P, FaultInjection>, Instrumentation>;

fn twice<P: ?Sized>(provider: Arc<P>, clock: Arc<dyn Clock>) -> Twice<P> {
    let observer = Arc::new(|_: Observed| {
        CALLS.fetch_add(1, Ordering::Relaxed);
    });
    let faults = FaultInjection::new(Arc::clone(&clock), |_, _| Fault::None);
    Decorated::new(Arc::new(Decorated::new(provider, faults)), Instrumentation::new(clock, observer))
}

fn simulated() -> Arc<SimulatedClock> {
    Arc::new(SimulatedClock::at_fixed_start())
}

#[track_caller]
fn passes(suite: Suite) {
    let (before, cases) = (CALLS.load(Ordering::Relaxed), suite.cases.len());
    assert_eq!(failures(suite.cases, suite.time), BTreeMap::new());
    let calls = CALLS.load(Ordering::Relaxed) - before;
    assert!(calls > cases, "{calls} calls went through the observer for {cases} cases");
}

struct State;

#[async_trait]
impl Harness<dyn flames_state_conformance::Fixture> for State {
    fn name(&self) -> &'static str {
        "memory"
    }
    async fn fresh(&self) -> Box<dyn flames_state_conformance::Fixture> {
        let store: Arc<dyn StateStore> = Arc::new(MemoryStore::new());
        Box::new(flames_state_conformance::Volatile(Arc::new(twice(store, Arc::new(SystemClock::new())))))
    }
}

#[test]
fn a_decorated_state_store_passes_its_suite() {
    passes(flames_state_conformance::suite(State));
}

struct Blob;
struct FreshBlob(Arc<dyn BlobStore>);

#[async_trait]
impl Harness<dyn flames_blob_conformance::Fixture> for Blob {
    fn name(&self) -> &'static str {
        "memory"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    async fn fresh(&self) -> Box<dyn flames_blob_conformance::Fixture> {
        let clock = simulated();
        let store: Arc<dyn BlobStore> = Arc::new(MemoryBlobStore::new(clock.clone()));
        Box::new(FreshBlob(Arc::new(twice(store, clock))))
    }
}

impl Hooks for FreshBlob {}

impl flames_blob_conformance::Fixture for FreshBlob {
    fn store(&self) -> Arc<dyn BlobStore> {
        Arc::clone(&self.0)
    }
}

#[test]
fn a_decorated_blob_store_passes_its_suite() {
    passes(flames_blob_conformance::suite(Blob));
}

struct Cache;
struct FreshCache(Arc<SimulatedClock>, Arc<dyn CacheStore>);

#[async_trait]
impl Harness<dyn flames_cache_conformance::Fixture> for Cache {
    fn name(&self) -> &'static str {
        "memory"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    async fn fresh(&self) -> Box<dyn flames_cache_conformance::Fixture> {
        let clock = simulated();
        let cache: Arc<dyn CacheStore> = Arc::new(MemoryCache::new(clock.clone()));
        Box::new(FreshCache(clock.clone(), Arc::new(twice(cache, clock))))
    }
}

impl Hooks for FreshCache {}

impl flames_cache_conformance::Fixture for FreshCache {
    fn cache(&self) -> Arc<dyn CacheStore> {
        Arc::clone(&self.1)
    }
    fn clock(&self) -> &dyn Clock {
        &*self.0
    }
    fn unit(&self) -> Duration {
        Duration::from_secs(10)
    }
}

#[test]
fn a_decorated_cache_passes_its_suite() {
    passes(flames_cache_conformance::suite(Cache, CacheCapabilities { compare_and_set: true }));
}

struct Queue;
struct FreshQueue(Arc<SimulatedClock>, Arc<dyn WorkQueue>);

#[async_trait]
impl Harness<dyn flames_queue_conformance::Fixture> for Queue {
    fn name(&self) -> &'static str {
        "memory"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    async fn fresh(&self) -> Box<dyn flames_queue_conformance::Fixture> {
        let clock = simulated();
        let queue: Arc<dyn WorkQueue> = Arc::new(MemoryQueue::new(clock.clone()));
        Box::new(FreshQueue(clock.clone(), Arc::new(twice(queue, clock))))
    }
}

impl Hooks for FreshQueue {}

impl flames_queue_conformance::Fixture for FreshQueue {
    fn queue(&self) -> Arc<dyn WorkQueue> {
        Arc::clone(&self.1)
    }
    fn clock(&self) -> &dyn Clock {
        &*self.0
    }
    fn unit(&self) -> Duration {
        Duration::from_secs(10)
    }
}

#[test]
fn a_decorated_queue_passes_its_suite() {
    passes(flames_queue_conformance::suite(Queue));
}

struct Ingress;
struct FreshIngress(Arc<dyn IngressProvider>);

#[async_trait]
impl Harness<dyn flames_ingress_conformance::Fixture> for Ingress {
    fn name(&self) -> &'static str {
        "noop"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    async fn fresh(&self) -> Box<dyn flames_ingress_conformance::Fixture> {
        let ingress: Arc<dyn IngressProvider> = Arc::new(NoopIngress::new());
        Box::new(FreshIngress(Arc::new(twice(ingress, simulated()))))
    }
}

impl flames_ingress_conformance::Fixture for FreshIngress {
    fn ingress(&self) -> Arc<dyn IngressProvider> {
        Arc::clone(&self.0)
    }
}

#[test]
fn a_decorated_ingress_passes_its_suite() {
    let told = IngressCapabilities { forwards: false, guest_targets: true };
    passes(flames_ingress_conformance::suite(Ingress, told));
}
