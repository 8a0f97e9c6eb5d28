//! Calls that stop for ever at a chosen step: what a process that is killed there looks like from outside.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_blob::{BlobInfo, BlobKey, BlobPage, BlobRead, BlobStore, ByteStream, PutOptions};
use flames_client::HostApi;
use flames_client::wire::host::{
    AssignmentsPage, Changes, HostSession, RegisterRequest, Registered, Renewed, ReportBatch, ReportOutcome,
    SnapshotReport, SnapshotReportOutcome,
};
use flames_controller::{HostFolder, IncarnationRecord, Kept, OutputEntry, OutputPage};
use flames_error::Result;
use flames_model::{Assignment, ControllerId, IncarnationId, VmId};
use flames_vmm::{
    ConsoleChunk, DriverCapabilities, Found, GuestStream, IncarnationName, MachineSpec, Observation,
    Prepared, SnapshotArtefacts, SnapshotKind, StartFrom, Stats, StopHow, Update, Usability, VmDriver,
};
use futures::stream::BoxStream;
use tokio::sync::Notify;

/// Counts the steps of a controller: one before and one after each of its calls.
#[derive(Debug)]
pub(crate) struct Steps {
    left: AtomicI64,
    reached: Notify,
}

impl Default for Steps {
    fn default() -> Self {
        Self { left: AtomicI64::new(i64::MAX), reached: Notify::new() }
    }
}

impl Steps {
    /// From now on, the step behind this many stops for ever, and so do all that follow.
    pub(crate) fn stop_behind(&self, steps: i64) {
        self.left.store(steps, Ordering::Relaxed);
    }

    /// No step stops.
    pub(crate) fn run_free(&self) {
        self.left.store(i64::MAX, Ordering::Relaxed);
    }

    /// Returns once the step was reached.
    pub(crate) async fn reached(&self) {
        self.reached.notified().await;
    }

    async fn pass(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
    }

    async fn around<T>(&self, call: impl Future<Output = T> + Send) -> T {
        self.pass().await;
        let done = call.await;
        self.pass().await;
        done
    }
}

#[derive(Debug)]
pub(crate) struct SteppedDriver {
    driver: Arc<dyn VmDriver>,
    steps: Arc<Steps>,
    /// Why it does not work here, when it does not.
    pub(crate) unusable: Option<&'static str>,
    /// How often it was closed.
    pub(crate) closed: Arc<AtomicI64>,
}

impl SteppedDriver {
    pub(crate) fn new(driver: Arc<dyn VmDriver>, steps: Arc<Steps>) -> Self {
        Self { driver, steps, unusable: None, closed: Arc::default() }
    }
}

#[async_trait]
impl VmDriver for SteppedDriver {
    fn name(&self) -> &'static str {
        self.driver.name()
    }
    async fn capabilities(&self) -> Result<DriverCapabilities> {
        let mut capabilities = self.steps.around(self.driver.capabilities()).await?;
        if let Some(why) = self.unusable {
            capabilities.usability = Usability::Unusable(why.to_owned());
        }
        Ok(capabilities)
    }
    async fn adopt(&self) -> Result<Vec<Found>> {
        self.steps.around(self.driver.adopt()).await
    }
    async fn prepare(&self, incarnation: &IncarnationName, spec: &MachineSpec) -> Result<Prepared> {
        self.steps.around(self.driver.prepare(incarnation, spec)).await
    }
    async fn start(&self, incarnation: &IncarnationName, from: StartFrom, leave_paused: bool) -> Result<()> {
        self.steps.around(self.driver.start(incarnation, from, leave_paused)).await
    }
    async fn pause(&self, incarnation: &IncarnationName) -> Result<()> {
        self.steps.around(self.driver.pause(incarnation)).await
    }
    async fn resume(&self, incarnation: &IncarnationName) -> Result<()> {
        self.steps.around(self.driver.resume(incarnation)).await
    }
    async fn update(&self, incarnation: &IncarnationName, update: &Update) -> Result<()> {
        self.steps.around(self.driver.update(incarnation, update)).await
    }
    async fn snapshot(
        &self,
        incarnation: &IncarnationName,
        name: &str,
        kind: SnapshotKind,
    ) -> Result<SnapshotArtefacts> {
        self.steps.around(self.driver.snapshot(incarnation, name, kind)).await
    }
    async fn delete_snapshot(&self, incarnation: &IncarnationName, name: &str) -> Result<()> {
        self.steps.around(self.driver.delete_snapshot(incarnation, name)).await
    }
    async fn connect(&self, incarnation: &IncarnationName, port: u32) -> Result<GuestStream> {
        self.steps.around(self.driver.connect(incarnation, port)).await
    }
    async fn accept(
        &self,
        incarnation: &IncarnationName,
        port: u32,
    ) -> Result<BoxStream<'static, GuestStream>> {
        self.driver.accept(incarnation, port).await
    }
    async fn console(&self, incarnation: &IncarnationName, from: u64) -> Result<ConsoleChunk> {
        self.steps.around(self.driver.console(incarnation, from)).await
    }
    async fn stats(&self, incarnation: &IncarnationName) -> Result<Stats> {
        self.driver.stats(incarnation).await
    }
    async fn stop(&self, incarnation: &IncarnationName, how: StopHow) -> Result<()> {
        self.steps.around(self.driver.stop(incarnation, how)).await
    }
    async fn observe(&self, incarnation: &IncarnationName) -> Result<Observation> {
        self.steps.around(self.driver.observe(incarnation)).await
    }
    async fn destroy(&self, incarnation: &IncarnationName) -> Result<()> {
        self.steps.around(self.driver.destroy(incarnation)).await
    }
    async fn close(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
        self.driver.close().await;
    }
    async fn exits(&self) -> Result<BoxStream<'static, IncarnationName>> {
        self.driver.exits().await
    }
}

#[derive(Debug)]
pub(crate) struct SteppedFolder(pub(crate) Arc<dyn HostFolder>, pub(crate) Arc<Steps>);

#[async_trait]
impl HostFolder for SteppedFolder {
    async fn identity(&self, fresh: ControllerId) -> Result<ControllerId> {
        self.1.around(self.0.identity(fresh)).await
    }
    async fn incarnations(&self) -> Result<Vec<Kept>> {
        self.1.around(self.0.incarnations()).await
    }
    async fn put_record(&self, record: &IncarnationRecord) -> Result<()> {
        self.1.around(self.0.put_record(record)).await
    }
    async fn remove_incarnation(&self, incarnation: IncarnationId) -> Result<()> {
        self.1.around(self.0.remove_incarnation(incarnation)).await
    }
    fn disk_path(&self, assignment: &Assignment) -> PathBuf {
        self.0.disk_path(assignment)
    }
    async fn remove_ephemeral_disk(&self, incarnation: IncarnationId) -> Result<()> {
        self.1.around(self.0.remove_ephemeral_disk(incarnation)).await
    }
    async fn remove_persistent_disk(&self, vm: VmId) -> Result<()> {
        self.1.around(self.0.remove_persistent_disk(vm)).await
    }
    async fn persistent_disks(&self) -> Result<Vec<VmId>> {
        self.0.persistent_disks().await
    }
    async fn append_output(&self, incarnation: IncarnationId, entries: Vec<OutputEntry>) -> Result<()> {
        self.1.around(self.0.append_output(incarnation, entries)).await
    }
    async fn output_end(&self, incarnation: IncarnationId) -> Result<u64> {
        self.1.around(self.0.output_end(incarnation)).await
    }
    async fn read_output(
        &self,
        incarnation: IncarnationId,
        from: u64,
        most_bytes: usize,
    ) -> Result<OutputPage> {
        self.0.read_output(incarnation, from, most_bytes).await
    }
    async fn put_console(&self, incarnation: IncarnationId, data: Bytes) -> Result<()> {
        self.1.around(self.0.put_console(incarnation, data)).await
    }
    async fn console(&self, incarnation: IncarnationId) -> Result<Option<Bytes>> {
        self.0.console(incarnation).await
    }
    async fn remove_logs(&self, incarnation: IncarnationId) -> Result<()> {
        self.1.around(self.0.remove_logs(incarnation)).await
    }
}

#[derive(Debug)]
pub(crate) struct SteppedApi(pub(crate) Arc<dyn HostApi>, pub(crate) Arc<Steps>);

#[async_trait]
impl HostApi for SteppedApi {
    async fn register(&self, request: &RegisterRequest) -> Result<Registered> {
        self.1.around(self.0.register(request)).await
    }
    async fn renew(&self, session: &HostSession) -> Result<Renewed> {
        self.0.renew(session).await
    }
    async fn assignments(
        &self,
        session: &HostSession,
        after: Option<IncarnationId>,
        limit: usize,
    ) -> Result<AssignmentsPage> {
        self.1.around(self.0.assignments(session, after, limit)).await
    }
    async fn changes(&self, session: &HostSession, after: &str, wait: Duration) -> Result<Changes> {
        self.0.changes(session, after, wait).await
    }
    async fn report(&self, session: &HostSession, batch: &ReportBatch) -> Result<Vec<ReportOutcome>> {
        self.1.around(self.0.report(session, batch)).await
    }
    async fn report_snapshot(
        &self,
        session: &HostSession,
        report: &SnapshotReport,
    ) -> Result<SnapshotReportOutcome> {
        self.1.around(self.0.report_snapshot(session, report)).await
    }
}

#[derive(Debug)]
pub(crate) struct SteppedBlobs(pub(crate) Arc<dyn BlobStore>, pub(crate) Arc<Steps>);

#[async_trait]
impl BlobStore for SteppedBlobs {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    async fn put(&self, key: &BlobKey, stream: ByteStream, options: PutOptions) -> Result<BlobInfo> {
        self.1.around(self.0.put(key, stream, options)).await
    }
    async fn get(&self, key: &BlobKey, range: Option<std::ops::Range<u64>>) -> Result<BlobRead> {
        self.1.around(self.0.get(key, range)).await
    }
    async fn head(&self, key: &BlobKey) -> Result<BlobInfo> {
        self.1.around(self.0.head(key)).await
    }
    async fn delete(&self, key: &BlobKey) -> Result<()> {
        self.1.around(self.0.delete(key)).await
    }
    async fn list(&self, prefix: &str, after: Option<&BlobKey>, limit: usize) -> Result<BlobPage> {
        self.0.list(prefix, after, limit).await
    }
}
