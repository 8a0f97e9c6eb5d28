//! Parts that are broken on purpose, to show that the judgement sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_blob::{BlobInfo, BlobKey, BlobPage, BlobRead, BlobStore, ByteStream, PutOptions};
use flames_client::HostApi;
use flames_client::wire::host::{
    AssignmentsPage, Changes, HostSession, RegisterRequest, Registered, Renewed, ReportBatch, ReportOutcome,
    SnapshotReport, SnapshotReportOutcome,
};
use flames_clock::{Clock, Monotonic, Timestamp};
use flames_error::Result;
use flames_model::{Assignment, IncarnationId, IncarnationState, NetworkSpec, Report};
use flames_state::{
    Check, Commit, Committed, Entry, HintStream, Key, KeyRange, LogEntry, Page, PageRequest, Position,
    StateStore, Version, Write,
};

/// One part, broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sabotage {
    /// The store takes commits though what was read has changed: updates are lost, stale holders win.
    UncheckedVersions,
    /// The store takes commits though a key that must be absent is there: a request is carried out twice.
    UncheckedAbsence,
    /// The store applies commits in two halves, and now and then loses the second.
    SplitCommits,
    /// The store now and then leaves an event out.
    DroppedEvents,
    /// The store now and then leaves a due entry out.
    ForgottenDueEntries,
    /// A host's reservations are summed up on what may be old.
    UncheckedAllocations,
    /// Placement and release do not see which addresses of a host are taken.
    ForgottenAddresses,
    /// The store takes an address now and then that nobody has.
    KeptAddresses,
    /// Due entries are relayed when hinted only, and never scanned.
    DueEntriesNotScanned,
    /// Clients retry with a new idempotency key each time.
    ClientsForgetTheirKey,
    /// Leases are judged by the wall clock, which jumps.
    LeasesByWallClock,
    /// A controller that is started again finds its data folder empty.
    HostsForget,
    /// The sweep of images does not see that incarnations which live need a blob.
    ImagesSweptEarly,
    /// Controllers say that all is released while the machine still ends.
    HostsReleaseEarly,
    /// Controllers say that a snapshot is ready while some of its pieces are not stored.
    SnapshotsReadyEarly,
    /// Hosts are told a new revision of a VM's network with what it was before.
    NetworksToldLate,
}

impl Sabotage {
    /// Every one.
    pub const ALL: [Sabotage; 16] = [
        Self::UncheckedVersions,
        Self::UncheckedAbsence,
        Self::SplitCommits,
        Self::DroppedEvents,
        Self::ForgottenDueEntries,
        Self::UncheckedAllocations,
        Self::ForgottenAddresses,
        Self::KeptAddresses,
        Self::DueEntriesNotScanned,
        Self::ClientsForgetTheirKey,
        Self::LeasesByWallClock,
        Self::HostsForget,
        Self::ImagesSweptEarly,
        Self::HostsReleaseEarly,
        Self::SnapshotsReadyEarly,
        Self::NetworksToldLate,
    ];

    /// Its name, as test names spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::UncheckedVersions => "unchecked_versions",
            Self::UncheckedAbsence => "unchecked_absence",
            Self::SplitCommits => "split_commits",
            Self::DroppedEvents => "dropped_events",
            Self::ForgottenDueEntries => "forgotten_due_entries",
            Self::UncheckedAllocations => "unchecked_allocations",
            Self::ForgottenAddresses => "forgotten_addresses",
            Self::KeptAddresses => "kept_addresses",
            Self::DueEntriesNotScanned => "due_entries_not_scanned",
            Self::ClientsForgetTheirKey => "clients_forget_their_key",
            Self::LeasesByWallClock => "leases_by_wall_clock",
            Self::HostsForget => "hosts_forget",
            Self::ImagesSweptEarly => "images_swept_early",
            Self::HostsReleaseEarly => "hosts_release_early",
            Self::SnapshotsReadyEarly => "snapshots_ready_early",
            Self::NetworksToldLate => "networks_told_late",
        }
    }

    pub(crate) fn store(sabotage: Option<Self>, store: Arc<dyn StateStore>) -> Arc<dyn StateStore> {
        match sabotage {
            Some(sabotage) => Arc::new(BrokenStore { store, sabotage, commits: AtomicU64::new(0) }),
            None => store,
        }
    }

    pub(crate) fn api(sabotage: Option<Self>, api: Arc<dyn HostApi>) -> Arc<dyn HostApi> {
        match sabotage {
            Some(sabotage @ (Self::HostsReleaseEarly | Self::NetworksToldLate)) => {
                Arc::new(BrokenApi { api, sabotage })
            }
            _ => api,
        }
    }

    /// The BlobStore, as hosts reach it.
    pub(crate) fn host_blobs(sabotage: Option<Self>, blobs: Arc<dyn BlobStore>) -> Arc<dyn BlobStore> {
        match sabotage {
            Some(Self::SnapshotsReadyEarly) => Arc::new(EarlyPieces(blobs)),
            _ => blobs,
        }
    }

    pub(crate) fn lease_clock(sabotage: Option<Self>, clock: Arc<dyn Clock>) -> Arc<dyn Clock> {
        match sabotage {
            Some(Self::LeasesByWallClock) => Arc::new(WallClockOnly(clock)),
            _ => clock,
        }
    }
}

/// A BlobStore that says of some pieces of snapshots that they are stored, and drops them.
#[derive(Debug)]
struct EarlyPieces(Arc<dyn BlobStore>);

#[async_trait]
impl BlobStore for EarlyPieces {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    async fn put(&self, key: &BlobKey, stream: ByteStream, options: PutOptions) -> Result<BlobInfo> {
        let stored = self.0.put(key, stream, options).await?;
        // One in four, the same each time.
        let is_piece = key.as_str().starts_with("snapshots/chunks/");
        if is_piece && key.as_str().ends_with(['3', '7', 'b', 'f']) {
            self.0.delete(key).await?;
        }
        Ok(stored)
    }

    async fn get(&self, key: &BlobKey, range: Option<std::ops::Range<u64>>) -> Result<BlobRead> {
        self.0.get(key, range).await
    }

    async fn head(&self, key: &BlobKey) -> Result<BlobInfo> {
        self.0.head(key).await
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        self.0.delete(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&BlobKey>, limit: usize) -> Result<BlobPage> {
        self.0.list(prefix, after, limit).await
    }
}

/// A clock whose monotonic time is the wall's.
#[derive(Debug)]
struct WallClockOnly(Arc<dyn Clock>);

#[async_trait]
impl Clock for WallClockOnly {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic::from_origin(Duration::from_millis(
            u64::try_from(self.0.now().as_millisecond()).unwrap_or(0),
        ))
    }

    async fn sleep(&self, duration: Duration) {
        self.0.sleep(duration).await;
    }
}

#[derive(Debug)]
struct BrokenStore {
    store: Arc<dyn StateStore>,
    sabotage: Sabotage,
    commits: AtomicU64,
}

fn begins(key: &Key, prefix: &str) -> bool {
    key.as_bytes().starts_with(prefix.as_bytes())
}

/// Marks the version of what was read wrongly, so that nobody takes it for what was written.
const FORGOTTEN: u64 = 1 << 62;

/// Changes which addresses an allocation says are taken.
fn edit_addresses(key: &Key, value: &mut Bytes, edit: impl Fn(&mut Vec<serde_json::Value>)) {
    if !begins(key, "system/allocation/") {
        return;
    }
    let Ok(mut envelope) = serde_json::from_slice::<serde_json::Value>(value) else { return };
    if let Some(words) = envelope.pointer_mut("/record/addresses").and_then(|list| list.as_array_mut()) {
        edit(words);
        *value = envelope.to_string().into();
    }
}

impl BrokenStore {
    /// The commit as the broken store takes it, and a second half that may follow.
    fn broken(&self, commit: &Commit) -> (Commit, Option<Commit>) {
        let turn = self.commits.fetch_add(1, Ordering::Relaxed);
        let mut first = commit.clone();
        let mut second = None;
        match self.sabotage {
            Sabotage::UncheckedVersions => first.checks.retain(|check| !matches!(check, Check::At(..))),
            Sabotage::UncheckedAbsence => first.checks.retain(|check| !matches!(check, Check::Absent(_))),
            Sabotage::UncheckedAllocations => {
                first.checks.retain(|check| !begins(check.key(), "system/allocation/"))
            }
            Sabotage::ForgottenAddresses => {
                for check in &mut first.checks {
                    if let Check::At(_, version) = check {
                        *version = Version::from_raw(version.as_raw() & !FORGOTTEN);
                    }
                }
            }
            Sabotage::KeptAddresses if turn % 8 == 1 => {
                for write in &mut first.writes {
                    if let Write::Put(key, value) = write {
                        edit_addresses(key, value, |words| {
                            match words.first().and_then(|word| word.as_u64()) {
                                Some(word) => words[0] = (word | 1).into(),
                                None => words.push(1.into()),
                            }
                        });
                    }
                }
            }
            Sabotage::DroppedEvents if turn % 20 == 7 => {
                first.appends.retain(|append| !append.log.as_bytes().ends_with(b"/events"));
            }
            Sabotage::ForgottenDueEntries if turn % 10 == 3 => {
                first
                    .writes
                    .retain(|write| !(matches!(write, Write::Put(..)) && begins(write.key(), "system/due/")));
            }
            Sabotage::SplitCommits if first.writes.len() > 1 => {
                let rest = first.writes.split_off(first.writes.len() / 2);
                second = (turn % 20 != 11).then(|| Commit {
                    checks: Vec::new(),
                    writes: rest,
                    appends: Vec::new(),
                });
            }
            _ => {}
        }
        (first, second)
    }
}

#[async_trait]
impl StateStore for BrokenStore {
    fn name(&self) -> &'static str {
        self.store.name()
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        let mut read = self.store.get(key).await?;
        if self.sabotage == Sabotage::ForgottenAddresses
            && let Some(entry) = &mut read
            && begins(key, "system/allocation/")
        {
            edit_addresses(key, &mut entry.value, |words| drop(words.pop()));
            entry.version = Version::from_raw(entry.version.as_raw() | FORGOTTEN);
        }
        Ok(read)
    }

    async fn scan(&self, range: &KeyRange, page: PageRequest) -> Result<Page> {
        if self.sabotage == Sabotage::DueEntriesNotScanned && range.start().starts_with(b"system/due/") {
            return Ok(Page::default());
        }
        // A controller's own assignments begin with its id.
        if self.sabotage == Sabotage::ImagesSweptEarly && range.start() == b"system/assignment/" {
            return Ok(Page::default());
        }
        self.store.scan(range, page).await
    }

    async fn commit(&self, commit: &Commit) -> Result<Committed> {
        let (first, second) = self.broken(commit);
        if first.writes.is_empty() && first.appends.is_empty() {
            return self.store.commit(commit).await;
        }
        let committed = self.store.commit(&first).await?;
        if let Some(second) = second {
            tokio::task::yield_now().await;
            self.store.commit(&second).await?;
        }
        Ok(committed)
    }

    async fn read_log(&self, log: &Key, after: Position, limit: usize) -> Result<Vec<LogEntry>> {
        self.store.read_log(log, after, limit).await
    }

    async fn trim_log(&self, log: &Key, through: Position) -> Result<()> {
        self.store.trim_log(log, through).await
    }

    async fn changes(&self, prefix: &Key) -> Result<HintStream> {
        self.store.changes(prefix).await
    }
}

/// A host API that reports every stop as done while it begins, or tells of every change of a VM's network with what a VM has that asks for
/// nothing.
#[derive(Debug)]
struct BrokenApi {
    api: Arc<dyn HostApi>,
    sabotage: Sabotage,
}

impl BrokenApi {
    fn tell(&self, assignment: &mut Assignment) {
        if self.sabotage == Sabotage::NetworksToldLate && assignment.network_revision > 0 {
            Arc::make_mut(&mut assignment.spec).network = NetworkSpec::default();
        }
    }
}

#[async_trait]
impl HostApi for BrokenApi {
    async fn register(&self, request: &RegisterRequest) -> Result<Registered> {
        self.api.register(request).await
    }

    async fn renew(&self, session: &HostSession) -> Result<Renewed> {
        self.api.renew(session).await
    }

    async fn assignments(
        &self,
        session: &HostSession,
        after: Option<IncarnationId>,
        limit: usize,
    ) -> Result<AssignmentsPage> {
        let mut page = self.api.assignments(session, after, limit).await?;
        page.items.iter_mut().for_each(|assignment| self.tell(assignment));
        Ok(page)
    }

    async fn changes(&self, session: &HostSession, after: &str, wait: Duration) -> Result<Changes> {
        let mut changes = self.api.changes(session, after, wait).await?;
        for assignment in changes.changed.iter_mut().filter_map(|changed| changed.assignment.as_mut()) {
            self.tell(Arc::make_mut(assignment));
        }
        Ok(changes)
    }

    async fn report(&self, session: &HostSession, batch: &ReportBatch) -> Result<Vec<ReportOutcome>> {
        let mut batch = batch.clone();
        let early = self.sabotage == Sabotage::HostsReleaseEarly;
        let stopping = |report: &&mut Report| early && report.state == IncarnationState::Stopping;
        for report in batch.reports.iter_mut().filter(stopping) {
            report.state = IncarnationState::Stopped;
            report.released = true;
        }
        self.api.report(session, &batch).await
    }

    async fn report_snapshot(
        &self,
        session: &HostSession,
        report: &SnapshotReport,
    ) -> Result<SnapshotReportOutcome> {
        self.api.report_snapshot(session, report).await
    }
}
