//! Every call of every interface is intercepted, under its own name, and one that is failed before is not applied.

#![allow(clippy::unwrap_used)]

use std::fmt::Debug;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flames_blob::{BlobKey, BlobStore, PutOptions};
use flames_blob_memory::MemoryBlobStore;
use flames_cache::{CacheKey, CacheStore};
use flames_cache_memory::MemoryCache;
use flames_clock::{SeededRandom, SimulatedClock, Timestamp};
use flames_decorate::{Decorated, Fault, FaultInjection};
use flames_error::{ErrorKind, Result};
use flames_ingress::{IngressProvider, Route, RouteKey, RouteOwner, Target};
use flames_ingress_noop::NoopIngress;
use flames_queue::{EnqueueOptions, JobId, LeaseToken, Topic, WorkQueue, WorkerId};
use flames_queue_memory::MemoryQueue;
use flames_state::{Commit, Key, KeyRange, PageRequest, Position, StateStore};
use flames_state_memory::MemoryStore;
use flames_vmm::{
    BootSource, IncarnationName, MachineSpec, NetworkSpec, SecretBytes, SnapshotKind, StartFrom, StopHow,
    Update, VmDriver,
};
use flames_vmm_simulated::{SimulatedConfig, SimulatedDriver, SimulatedHost};
use futures::StreamExt;

/// Decorates providers so that every call fails, and notes which was asked for.
struct Refusing {
    clock: Arc<SimulatedClock>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Refusing {
    fn new() -> Self {
        Self { clock: Arc::new(SimulatedClock::at_fixed_start()), asked: Arc::default() }
    }

    fn wrap<P>(&self, provider: P) -> Decorated<P, FaultInjection> {
        let asked = Arc::clone(&self.asked);
        let plan = move |provider: &'static str, operation: &'static str| {
            asked.lock().unwrap().push(format!("{provider}.{operation}"));
            Fault::FailBefore(ErrorKind::PermissionDenied)
        };
        Decorated::new(Arc::new(provider), FaultInjection::new(self.clock.clone(), plan))
    }

    /// The call must have been refused, and asked for under just this name.
    async fn check<T>(&self, name: &str, call: impl Future<Output = Result<T>>) {
        let Err(error) = call.await else { panic!("{name} was not intercepted") };
        assert_eq!((error.kind(), error.operation()), (ErrorKind::PermissionDenied, name));
        assert_eq!(error.context(), [("injected", "before".to_owned())]);
        assert_eq!(std::mem::take(&mut *self.asked.lock().unwrap()), [name]);
    }
}

fn shows<D: Debug>(decorated: &D, parts: &[&str]) {
    let shown = format!("{decorated:?}");
    assert!(parts.iter().all(|part| shown.contains(part)), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn every_call_of_a_state_store() {
    let refusing = Refusing::new();
    let store = refusing.wrap(MemoryStore::new());
    let key = Key::new("k").unwrap();
    let mut commit = Commit::new();
    commit.put(key.clone(), "v");
    assert_eq!(store.name(), "memory");
    shows(&store, &["Decorated", "FaultInjection", "MemoryStore"]);
    refusing.check("state.get", store.get(&key)).await;
    refusing.check("state.scan", store.scan(&KeyRange::all(), PageRequest::first(1))).await;
    refusing.check("state.commit", store.commit(&commit)).await;
    refusing.check("state.read_log", store.read_log(&key, Position::START, 1)).await;
    refusing.check("state.trim_log", store.trim_log(&key, Position::START)).await;
    refusing.check("state.changes", store.changes(&key)).await;
}

#[tokio::test(start_paused = true)]
async fn every_call_of_a_blob_store() {
    let refusing = Refusing::new();
    let store = refusing.wrap(MemoryBlobStore::new(refusing.clock.clone()));
    let key = BlobKey::new("k").unwrap();
    assert_eq!(store.name(), "memory");
    let stream = futures::stream::empty().boxed();
    refusing.check("blob.put", store.put(&key, stream, PutOptions::default())).await;
    refusing.check("blob.get", store.get(&key, None)).await;
    refusing.check("blob.head", store.head(&key)).await;
    refusing.check("blob.delete", store.delete(&key)).await;
    refusing.check("blob.list", store.list("", None, 1)).await;
    refusing.check("blob.exists", store.exists(&key)).await;
}

#[tokio::test(start_paused = true)]
async fn every_call_of_a_cache() {
    let refusing = Refusing::new();
    let cache = refusing.wrap(MemoryCache::new(refusing.clock.clone()));
    let (key, ttl) = (CacheKey::new("k").unwrap(), Duration::from_secs(1));
    assert_eq!(cache.name(), "memory");
    assert!(cache.capabilities().compare_and_set);
    refusing.check("cache.get", cache.get(&key)).await;
    refusing.check("cache.set", cache.set(&key, Bytes::new(), ttl)).await;
    refusing.check("cache.delete", cache.delete(&key)).await;
    refusing.check("cache.compare_and_set", cache.compare_and_set(&key, None, Bytes::new(), ttl)).await;
}

#[tokio::test(start_paused = true)]
async fn every_call_of_a_queue() {
    let refusing = Refusing::new();
    let queue = refusing.wrap(MemoryQueue::new(refusing.clock.clone()));
    let (topic, worker) = (Topic::new("t").unwrap(), WorkerId::new("w").unwrap());
    let (token, job) = (LeaseToken::from_raw("x"), JobId::new("j").unwrap());
    let lease = Duration::from_secs(1);
    assert_eq!(queue.name(), "memory");
    refusing.check("queue.enqueue", queue.enqueue(&topic, Bytes::new(), EnqueueOptions::default())).await;
    refusing.check("queue.dequeue", queue.dequeue(&topic, &worker, 1, lease)).await;
    refusing.check("queue.extend", queue.extend(&token, lease)).await;
    refusing.check("queue.ack", queue.ack(&token)).await;
    refusing.check("queue.nack", queue.nack(&token, Timestamp::UNIX_EPOCH)).await;
    refusing.check("queue.park", queue.park(&token, "why")).await;
    refusing.check("queue.parked", queue.parked(&topic, None, 1)).await;
    refusing.check("queue.requeue", queue.requeue(&topic, &job)).await;
    refusing.check("queue.stats", queue.stats(&topic)).await;
    refusing.check("queue.wakeups", queue.wakeups(&topic)).await;
}

#[tokio::test(start_paused = true)]
async fn every_call_of_an_ingress() {
    let refusing = Refusing::new();
    let ingress = refusing.wrap(NoopIngress::new());
    let vm = RouteOwner::new("vm_1").unwrap();
    let key = RouteKey { vm: vm.clone(), port: 80 };
    let route = Route { key: key.clone(), hosts: Vec::new() };
    let target = Target::Guest { incarnation: "inc_1".to_owned(), port: 80 };
    assert_eq!(ingress.name(), "noop");
    assert!(ingress.capabilities().guest_targets);
    refusing.check("ingress.register", ingress.register(route, target.clone())).await;
    refusing.check("ingress.unregister_port", ingress.unregister_port(&key)).await;
    refusing.check("ingress.unregister", ingress.unregister(&vm)).await;
    refusing.check("ingress.unregister_target", ingress.unregister_target(&key, &target)).await;
    refusing.check("ingress.get", ingress.get(&vm)).await;
    refusing.check("ingress.list", ingress.list(None, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn every_call_of_a_driver() {
    let refusing = Refusing::new();
    let random = Arc::new(SeededRandom::new(1));
    let host = SimulatedHost::new(SimulatedConfig::default(), refusing.clock.clone(), random);
    let driver = refusing.wrap(SimulatedDriver::new(Arc::clone(&host)));
    let one = IncarnationName::new("inc_1").unwrap();
    let spec = MachineSpec {
        vcpus: 1,
        memory_mib: 64,
        boot: BootSource { kernel: PathBuf::from("vmlinux"), initramfs: None, extra_arguments: Vec::new() },
        drives: Vec::new(),
        guest_config: SecretBytes(Vec::new()),
        network: NetworkSpec::None,
    };
    assert_eq!(driver.name(), "simulated");
    refusing.check("vmm.capabilities", driver.capabilities()).await;
    refusing.check("vmm.adopt", driver.adopt()).await;
    refusing.check("vmm.prepare", driver.prepare(&one, &spec)).await;
    refusing.check("vmm.start", driver.start(&one, StartFrom::Boot, false)).await;
    refusing.check("vmm.pause", driver.pause(&one)).await;
    refusing.check("vmm.resume", driver.resume(&one)).await;
    refusing.check("vmm.update", driver.update(&one, &Update::BalloonMib(1))).await;
    refusing.check("vmm.snapshot", driver.snapshot(&one, "s", SnapshotKind::Full)).await;
    refusing.check("vmm.delete_snapshot", driver.delete_snapshot(&one, "s")).await;
    refusing.check("vmm.connect", driver.connect(&one, 1)).await;
    refusing.check("vmm.accept", driver.accept(&one, 1)).await;
    refusing.check("vmm.console", driver.console(&one, 0)).await;
    refusing.check("vmm.stats", driver.stats(&one)).await;
    refusing.check("vmm.stop", driver.stop(&one, StopHow::Kill)).await;
    refusing.check("vmm.observe", driver.observe(&one)).await;
    refusing.check("vmm.destroy", driver.destroy(&one)).await;
    refusing.check("vmm.exits", driver.exits()).await;
    assert!(host.residue().is_empty(), "nothing was applied");
}
