//! The six interfaces, each method handed through the interceptor.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_blob::{BlobInfo, BlobKey, BlobPage, BlobRead, BlobStore, ByteStream, PutOptions};
use flames_cache::{CacheCapabilities, CacheKey, CacheStore};
use flames_clock::Timestamp;
use flames_error::Result;
use flames_ingress::{
    IngressCapabilities, IngressProvider, Registration, RegistrationPage, Route, RouteKey, RouteOwner, Target,
};
use flames_queue::{
    EnqueueOptions, Enqueued, Job, JobId, Lease, LeaseToken, ParkedPage, Topic, TopicStats, WakeupStream,
    WorkQueue, WorkerId,
};
use flames_state::{
    Commit, Committed, Entry, HintStream, Key, KeyRange, LogEntry, Page, PageRequest, Position, StateStore,
};
use flames_vmm::{
    ConsoleChunk, DriverCapabilities, Found, GuestStream, IncarnationName, MachineSpec, Observation,
    Prepared, SnapshotArtefacts, SnapshotKind, StartFrom, Stats, StopHow, Update, VmDriver,
};
use futures::stream::BoxStream;

use crate::{Call, Decorated, Interceptor};

/// `through!(self, "state", get(key))`: the call of the wrapped provider, by way of the interceptor.
macro_rules! through {
    ($self:ident, $provider:literal, $operation:ident($($argument:expr),*)) => {{
        let call = Call {
            provider: $provider,
            adapter: $self.provider.name(),
            operation: stringify!($operation),
            full_name: concat!($provider, ".", stringify!($operation)),
        };
        $self.interceptor.intercept(call, $self.provider.$operation($($argument),*)).await
    }};
}

#[async_trait]
impl<P: StateStore + ?Sized, I: Interceptor> StateStore for Decorated<P, I> {
    fn name(&self) -> &'static str {
        self.provider.name()
    }
    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        through!(self, "state", get(key))
    }
    async fn scan(&self, range: &KeyRange, page: PageRequest) -> Result<Page> {
        through!(self, "state", scan(range, page))
    }
    async fn commit(&self, commit: &Commit) -> Result<Committed> {
        through!(self, "state", commit(commit))
    }
    async fn read_log(&self, log: &Key, after: Position, limit: usize) -> Result<Vec<LogEntry>> {
        through!(self, "state", read_log(log, after, limit))
    }
    async fn trim_log(&self, log: &Key, through: Position) -> Result<()> {
        through!(self, "state", trim_log(log, through))
    }
    async fn changes(&self, prefix: &Key) -> Result<HintStream> {
        through!(self, "state", changes(prefix))
    }
}

#[async_trait]
impl<P: BlobStore + ?Sized, I: Interceptor> BlobStore for Decorated<P, I> {
    fn name(&self) -> &'static str {
        self.provider.name()
    }
    async fn put(&self, key: &BlobKey, stream: ByteStream, options: PutOptions) -> Result<BlobInfo> {
        through!(self, "blob", put(key, stream, options))
    }
    async fn get(&self, key: &BlobKey, range: Option<Range<u64>>) -> Result<BlobRead> {
        through!(self, "blob", get(key, range))
    }
    async fn head(&self, key: &BlobKey) -> Result<BlobInfo> {
        through!(self, "blob", head(key))
    }
    async fn delete(&self, key: &BlobKey) -> Result<()> {
        through!(self, "blob", delete(key))
    }
    async fn list(&self, prefix: &str, after: Option<&BlobKey>, limit: usize) -> Result<BlobPage> {
        through!(self, "blob", list(prefix, after, limit))
    }
    async fn exists(&self, key: &BlobKey) -> Result<bool> {
        through!(self, "blob", exists(key))
    }
}

#[async_trait]
impl<P: CacheStore + ?Sized, I: Interceptor> CacheStore for Decorated<P, I> {
    fn name(&self) -> &'static str {
        self.provider.name()
    }
    fn capabilities(&self) -> CacheCapabilities {
        self.provider.capabilities()
    }
    async fn get(&self, key: &CacheKey) -> Result<Bytes> {
        through!(self, "cache", get(key))
    }
    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Duration) -> Result<()> {
        through!(self, "cache", set(key, value, ttl))
    }
    async fn delete(&self, key: &CacheKey) -> Result<()> {
        through!(self, "cache", delete(key))
    }
    async fn compare_and_set(
        &self,
        key: &CacheKey,
        expected: Option<&Bytes>,
        value: Bytes,
        ttl: Duration,
    ) -> Result<bool> {
        through!(self, "cache", compare_and_set(key, expected, value, ttl))
    }
}

#[async_trait]
impl<P: WorkQueue + ?Sized, I: Interceptor> WorkQueue for Decorated<P, I> {
    fn name(&self) -> &'static str {
        self.provider.name()
    }
    async fn enqueue(&self, topic: &Topic, payload: Bytes, options: EnqueueOptions) -> Result<Enqueued> {
        through!(self, "queue", enqueue(topic, payload, options))
    }
    async fn dequeue(
        &self,
        topic: &Topic,
        worker: &WorkerId,
        max: usize,
        lease: Duration,
    ) -> Result<Vec<Job>> {
        through!(self, "queue", dequeue(topic, worker, max, lease))
    }
    async fn extend(&self, lease: &LeaseToken, lease_for: Duration) -> Result<Lease> {
        through!(self, "queue", extend(lease, lease_for))
    }
    async fn ack(&self, lease: &LeaseToken) -> Result<()> {
        through!(self, "queue", ack(lease))
    }
    async fn nack(&self, lease: &LeaseToken, retry_at: Timestamp) -> Result<()> {
        through!(self, "queue", nack(lease, retry_at))
    }
    async fn park(&self, lease: &LeaseToken, reason: &str) -> Result<()> {
        through!(self, "queue", park(lease, reason))
    }
    async fn parked(&self, topic: &Topic, after: Option<&JobId>, limit: usize) -> Result<ParkedPage> {
        through!(self, "queue", parked(topic, after, limit))
    }
    async fn requeue(&self, topic: &Topic, job: &JobId) -> Result<()> {
        through!(self, "queue", requeue(topic, job))
    }
    async fn stats(&self, topic: &Topic) -> Result<TopicStats> {
        through!(self, "queue", stats(topic))
    }
    async fn wakeups(&self, topic: &Topic) -> Result<WakeupStream> {
        through!(self, "queue", wakeups(topic))
    }
}

#[async_trait]
impl<P: IngressProvider + ?Sized, I: Interceptor> IngressProvider for Decorated<P, I> {
    fn name(&self) -> &'static str {
        self.provider.name()
    }
    fn capabilities(&self) -> IngressCapabilities {
        self.provider.capabilities()
    }
    fn url(&self, route: &Route) -> Option<String> {
        self.provider.url(route)
    }
    async fn register(&self, route: Route, target: Target) -> Result<Registration> {
        through!(self, "ingress", register(route, target))
    }
    async fn unregister_port(&self, key: &RouteKey) -> Result<()> {
        through!(self, "ingress", unregister_port(key))
    }
    async fn unregister(&self, vm: &RouteOwner) -> Result<()> {
        through!(self, "ingress", unregister(vm))
    }
    async fn unregister_target(&self, key: &RouteKey, target: &Target) -> Result<bool> {
        through!(self, "ingress", unregister_target(key, target))
    }
    async fn get(&self, vm: &RouteOwner) -> Result<Vec<Registration>> {
        through!(self, "ingress", get(vm))
    }
    async fn list(&self, after: Option<&RouteKey>, limit: usize) -> Result<RegistrationPage> {
        through!(self, "ingress", list(after, limit))
    }
}

#[async_trait]
impl<P: VmDriver + ?Sized, I: Interceptor> VmDriver for Decorated<P, I> {
    fn name(&self) -> &'static str {
        self.provider.name()
    }
    async fn capabilities(&self) -> Result<DriverCapabilities> {
        through!(self, "vmm", capabilities())
    }
    async fn adopt(&self) -> Result<Vec<Found>> {
        through!(self, "vmm", adopt())
    }
    async fn prepare(&self, incarnation: &IncarnationName, spec: &MachineSpec) -> Result<Prepared> {
        through!(self, "vmm", prepare(incarnation, spec))
    }
    fn waited_for(&self) -> Option<String> {
        self.provider.waited_for()
    }
    async fn start(&self, incarnation: &IncarnationName, from: StartFrom, leave_paused: bool) -> Result<()> {
        through!(self, "vmm", start(incarnation, from, leave_paused))
    }
    async fn pause(&self, incarnation: &IncarnationName) -> Result<()> {
        through!(self, "vmm", pause(incarnation))
    }
    async fn resume(&self, incarnation: &IncarnationName) -> Result<()> {
        through!(self, "vmm", resume(incarnation))
    }
    async fn update(&self, incarnation: &IncarnationName, update: &Update) -> Result<()> {
        through!(self, "vmm", update(incarnation, update))
    }
    async fn snapshot(
        &self,
        incarnation: &IncarnationName,
        name: &str,
        kind: SnapshotKind,
    ) -> Result<SnapshotArtefacts> {
        through!(self, "vmm", snapshot(incarnation, name, kind))
    }
    async fn delete_snapshot(&self, incarnation: &IncarnationName, name: &str) -> Result<()> {
        through!(self, "vmm", delete_snapshot(incarnation, name))
    }
    async fn connect(&self, incarnation: &IncarnationName, port: u32) -> Result<GuestStream> {
        through!(self, "vmm", connect(incarnation, port))
    }
    async fn accept(
        &self,
        incarnation: &IncarnationName,
        port: u32,
    ) -> Result<BoxStream<'static, GuestStream>> {
        through!(self, "vmm", accept(incarnation, port))
    }
    async fn console(&self, incarnation: &IncarnationName, from: u64) -> Result<ConsoleChunk> {
        through!(self, "vmm", console(incarnation, from))
    }
    async fn stats(&self, incarnation: &IncarnationName) -> Result<Stats> {
        through!(self, "vmm", stats(incarnation))
    }
    async fn stop(&self, incarnation: &IncarnationName, how: StopHow) -> Result<()> {
        through!(self, "vmm", stop(incarnation, how))
    }
    async fn observe(&self, incarnation: &IncarnationName) -> Result<Observation> {
        through!(self, "vmm", observe(incarnation))
    }
    async fn destroy(&self, incarnation: &IncarnationName) -> Result<()> {
        through!(self, "vmm", destroy(incarnation))
    }
    async fn exits(&self) -> Result<BoxStream<'static, IncarnationName>> {
        through!(self, "vmm", exits())
    }
    async fn close(&self) {
        self.provider.close().await;
    }
}
