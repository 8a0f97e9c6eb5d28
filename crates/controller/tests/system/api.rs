//! A control plane that does what the real one promises to controllers, and is unreachable on demand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use flames_client::HostApi;
use flames_client::wire::host::{
    Assigned, AssignmentsPage, Changes, HostSession, RegisterRequest, Registered, Renewed, ReportBatch,
    ReportOutcome, SnapshotReport, SnapshotReportOutcome,
};
use flames_clock::{Clock, SimulatedClock};
use flames_error::{Error, ErrorKind, Result};
use flames_model::{
    Assignment, ControllerId, Incarnation, IncarnationId, IncarnationState, Refusal, Report, SessionToken,
    Snapshot, SnapshotId, SnapshotRefusal, Wanted, apply_report, apply_snapshot_report,
};
use uuid::Uuid;

pub(crate) const LEASE_MS: u64 = 9_000;

#[derive(Debug)]
pub(crate) struct FakeApi {
    clock: Arc<SimulatedClock>,
    inner: Mutex<Inner>,
    changed: tokio::sync::watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    down: bool,
    /// Reports that are applied and whose answer is lost.
    lose_answers: u32,
    sessions: u64,
    session: Option<HostSession>,
    registrations: Vec<RegisterRequest>,
    renewals: u64,
    assignments: BTreeMap<IncarnationId, Assignment>,
    log: Vec<IncarnationId>,
    incarnations: BTreeMap<IncarnationId, Incarnation>,
    reports: Vec<Report>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    largest_batch: usize,
}

impl FakeApi {
    pub(crate) fn new(clock: Arc<SimulatedClock>) -> Arc<Self> {
        let changed = tokio::sync::watch::Sender::new(0);
        Arc::new(Self { clock, inner: Mutex::default(), changed })
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.inner().down = down;
    }

    pub(crate) fn lose_answers(&self, count: u32) {
        self.inner().lose_answers = count;
    }

    /// Another process registers as the controller.
    pub(crate) fn supersede(&self) {
        let mut inner = self.inner();
        inner.sessions += 1;
        let number = inner.sessions;
        if let Some(session) = &mut inner.session {
            session.session = SessionToken::from_uuid(Uuid::from_u128(u128::from(number)));
        }
    }

    pub(crate) fn controller(&self) -> Option<ControllerId> {
        self.inner().session.map(|session| session.controller)
    }

    pub(crate) fn registrations(&self) -> Vec<RegisterRequest> {
        self.inner().registrations.clone()
    }

    pub(crate) fn renewals(&self) -> u64 {
        self.inner().renewals
    }

    pub(crate) fn reports(&self) -> Vec<Report> {
        self.inner().reports.clone()
    }

    /// Orders a snapshot.
    pub(crate) fn order(&self, id: IncarnationId, snapshot: Snapshot) {
        let assignment = self.inner().assignments[&id].clone();
        let ordered = Some(snapshot.id);
        let snapshot_base = snapshot.base.map(|base| flames_model::SnapshotBase {
            snapshot: base,
            manifest: self.snapshot(base).manifest.unwrap(),
        });
        self.inner().snapshots.insert(snapshot.id, snapshot);
        self.assign(Assignment { snapshot: ordered, snapshot_base, ..assignment });
    }

    /// Withdraws the order of a snapshot, and forgets the snapshot.
    pub(crate) fn withdraw(&self, id: IncarnationId) {
        let assignment = self.inner().assignments[&id].clone();
        if let Some(snapshot) = assignment.snapshot {
            self.inner().snapshots.remove(&snapshot);
        }
        self.assign(Assignment { snapshot: None, ..assignment });
    }

    pub(crate) fn has_snapshot(&self, id: SnapshotId) -> bool {
        self.inner().snapshots.contains_key(&id)
    }

    pub(crate) fn assignment(&self, id: IncarnationId) -> Assignment {
        self.inner().assignments[&id].clone()
    }

    pub(crate) fn snapshot(&self, id: SnapshotId) -> Snapshot {
        self.inner().snapshots[&id].clone()
    }

    pub(crate) fn largest_batch(&self) -> usize {
        self.inner().largest_batch
    }

    pub(crate) fn incarnation(&self, id: IncarnationId) -> Incarnation {
        self.inner().incarnations[&id].clone()
    }

    pub(crate) fn knows(&self, id: IncarnationId) -> bool {
        self.inner().incarnations.contains_key(&id)
    }

    pub(crate) fn wanted(&self, id: IncarnationId) -> Wanted {
        self.inner().assignments[&id].wanted
    }

    pub(crate) fn assign(&self, assignment: Assignment) {
        let id = assignment.incarnation;
        let incarnation = Incarnation {
            id,
            project: assignment.project.clone(),
            vm: assignment.vm,
            run: 1,
            controller: assignment.controller,
            resources: assignment.spec.resources(),
            address: assignment.address,
            token: assignment.token,
            source: assignment.source.clone(),
            state: IncarnationState::Scheduled,
            state_before_loss: None,
            sequence: 0,
            reason: None,
            exit: None,
            endpoints: Vec::new(),
            network: flames_model::AppliedNetwork { revision: assignment.network_revision, trouble: None },
            timeline: BTreeMap::new(),
            created_at: self.clock.now(),
            released_at: None,
            purged_at: None,
        };
        let mut inner = self.inner();
        inner.incarnations.entry(id).or_insert(incarnation);
        inner.assignments.insert(id, assignment);
        inner.log.push(id);
        drop(inner);
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn want(&self, id: IncarnationId, wanted: Wanted) {
        let assignment = self.inner().assignments[&id].clone();
        self.assign(Assignment { wanted, ..assignment });
    }

    /// The same is told once more.
    pub(crate) fn tell_again(&self, id: IncarnationId) {
        self.inner().log.push(id);
        self.changed.send_modify(|count| *count += 1);
    }

    /// The controller is lost, as far as the control plane can tell.
    pub(crate) fn mark_lost(&self, id: IncarnationId) {
        let mut inner = self.inner();
        let incarnation = inner.incarnations.get_mut(&id).unwrap();
        incarnation.state_before_loss = Some(incarnation.state);
        incarnation.state = IncarnationState::Lost;
    }

    /// The incarnation is not assigned any more.
    pub(crate) fn unassign(&self, id: IncarnationId, silently: bool) {
        let mut inner = self.inner();
        inner.assignments.remove(&id);
        if !silently {
            inner.log.push(id);
        }
        drop(inner);
        self.changed.send_modify(|count| *count += 1);
    }

    /// The control plane knows of no such incarnation any more.
    pub(crate) fn forget(&self, id: IncarnationId) {
        let mut inner = self.inner();
        inner.assignments.remove(&id);
        inner.incarnations.remove(&id);
    }

    fn reach(&self) -> Result<std::sync::MutexGuard<'_, Inner>> {
        let inner = self.inner();
        if inner.down { Err(Error::unavailable("fake", "down")) } else { Ok(inner) }
    }

    fn check(&self, session: &HostSession) -> Result<std::sync::MutexGuard<'_, Inner>> {
        let inner = self.reach()?;
        if inner.session.as_ref() == Some(session) {
            Ok(inner)
        } else {
            Err(Error::new(ErrorKind::LeaseLost, "fake", "superseded"))
        }
    }
}

fn position(text: &str) -> usize {
    text.parse().unwrap()
}

#[async_trait]
impl HostApi for FakeApi {
    async fn register(&self, request: &RegisterRequest) -> Result<Registered> {
        let mut inner = self.reach()?;
        inner.sessions += 1;
        let token = SessionToken::from_uuid(Uuid::from_u128(u128::from(inner.sessions)));
        let session = HostSession { controller: request.id, session: token };
        inner.session = Some(session);
        inner.registrations.push(request.clone());
        Ok(Registered { session, lease_ms: LEASE_MS, changes_from: inner.log.len().to_string() })
    }

    async fn renew(&self, session: &HostSession) -> Result<Renewed> {
        self.check(session)?.renewals += 1;
        Ok(Renewed { lease_ms: LEASE_MS })
    }

    async fn assignments(
        &self,
        session: &HostSession,
        after: Option<IncarnationId>,
        _limit: usize,
    ) -> Result<AssignmentsPage> {
        // Pages of two, so that there are several.
        let inner = self.check(session)?;
        let mut items: Vec<_> = inner
            .assignments
            .values()
            .filter(|assignment| after.is_none_or(|after| assignment.incarnation > after))
            .take(3)
            .cloned()
            .collect();
        let more = items.len() == 3;
        items.truncate(2);
        let next = items.last().filter(|_| more).map(|assignment| assignment.incarnation);
        Ok(AssignmentsPage { items, next })
    }

    async fn changes(&self, session: &HostSession, after: &str, wait: Duration) -> Result<Changes> {
        let mut changed = self.changed.subscribe();
        let deadline = self.clock.monotonic().saturating_add(wait);
        loop {
            changed.borrow_and_update();
            {
                let inner = self.check(session)?;
                let mut ids = inner.log[position(after)..].to_vec();
                ids.sort_unstable();
                ids.dedup();
                let left = deadline.saturating_since(self.clock.monotonic());
                if !ids.is_empty() || left.is_zero() {
                    let assigned = |incarnation| Assigned {
                        incarnation,
                        assignment: inner.assignments.get(&incarnation).cloned().map(Arc::new),
                    };
                    let changed = ids.into_iter().map(assigned).collect();
                    return Ok(Changes { changed, next: inner.log.len().to_string() });
                }
            }
            let left = deadline.saturating_since(self.clock.monotonic());
            tokio::select! {
                biased;
                _ = changed.changed() => {}
                () = self.clock.sleep(left.min(Duration::from_millis(500))) => {}
            }
        }
    }

    async fn report(&self, session: &HostSession, batch: &ReportBatch) -> Result<Vec<ReportOutcome>> {
        let mut inner = self.check(session)?;
        inner.largest_batch = inner.largest_batch.max(batch.reports.len());
        let mut outcomes = Vec::new();
        for report in &batch.reports {
            let known = inner.incarnations.get(&report.incarnation).cloned();
            inner.reports.push(report.clone());
            outcomes.push(match known {
                None => ReportOutcome::Unknown,
                Some(known) => match apply_report(&known, report, self.clock.now()) {
                    Ok(after) => {
                        inner.incarnations.insert(after.id, after);
                        ReportOutcome::Taken
                    }
                    Err(Refusal::NoChange | Refusal::StaleSequence) => ReportOutcome::Taken,
                    Err(_) => ReportOutcome::Stale,
                },
            });
        }
        if inner.lose_answers > 0 {
            inner.lose_answers -= 1;
            return Err(Error::new(ErrorKind::OutcomeUnknown, "fake", "the answer is lost"));
        }
        Ok(outcomes)
    }

    async fn report_snapshot(
        &self,
        session: &HostSession,
        report: &SnapshotReport,
    ) -> Result<SnapshotReportOutcome> {
        let mut inner = self.check(session)?;
        let Some(known) = inner.snapshots.get(&report.snapshot).cloned() else {
            return Ok(SnapshotReportOutcome::Over);
        };
        let after = match apply_snapshot_report(&known, report, self.clock.now()) {
            Ok(after) => after,
            Err(SnapshotRefusal::Stale) if known.state.is_under_way() => {
                return Ok(SnapshotReportOutcome::Taken);
            }
            Err(SnapshotRefusal::NotNamed) => return Ok(SnapshotReportOutcome::NotNamed),
            Err(_) => return Ok(SnapshotReportOutcome::Over),
        };
        let over = !after.state.is_under_way();
        inner.snapshots.insert(after.id, after);
        let assignment = inner.assignments.get(&report.incarnation).cloned();
        drop(inner);
        if let Some(assignment) = assignment.filter(|_| over) {
            self.assign(Assignment { snapshot: None, ..assignment });
        }
        Ok(SnapshotReportOutcome::Taken)
    }
}
