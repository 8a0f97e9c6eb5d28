//! One VM, one step: read, decide, act, commit.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use flames_clock::{ClockExt, Timestamp};
use flames_error::{Error, ErrorKind, Result};
use flames_model::{
    Actor, Assignment, DesiredState, Event, EventKind, Incarnation, IncarnationId, ProjectName, Reason,
    ReasonCode, SecretString, Step, Vm, Wanted, next_step,
};
use flames_records::{Change, DueEntry, DueKey, Tombstone, Versioned, VmEntry};
use tokio::sync::Semaphore;

use crate::ReconcileParts;
use crate::leases::Liveness;
use crate::place::PlacementView;
use crate::reserve::{Decided, Reservations};

/// How often a step is decided anew when others change the same records.
const ATTEMPTS: u32 = 16;
/// How often several steps are tried together.
const TOGETHER_ATTEMPTS: u32 = 2;

/// Several steps, decided and not committed yet.
struct Gathered {
    change: Change,
    /// What became of the due entry of each, once the change is applied.
    outcomes: Vec<Result<Done>>,
    /// Kept until then.
    reservations: Reservations,
}

/// What became of a due entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It was settled before, by another worker or an earlier try.
    Already,
    /// It was settled with the step that it called for.
    Settled,
}

/// Brings VMs from what is to what is wanted.
#[derive(Debug)]
pub struct VmReconciler {
    pub(crate) parts: ReconcileParts,
    pub(crate) liveness: Arc<Liveness>,
    /// What placement decides on: old by at most the configured age.
    pub(crate) view: Mutex<Option<PlacementView>>,
    /// Whose turn it is to place. Placements that were decided at the same time would be refused for each other's sake, since each writes
    /// its controller's allocation.
    pub(crate) placing: Arc<Semaphore>,
}

impl VmReconciler {
    /// A reconciler over these parts.
    pub fn new(parts: ReconcileParts, liveness: Arc<Liveness>) -> Self {
        Self { parts, liveness, view: Mutex::new(None), placing: Arc::new(Semaphore::new(1)) }
    }

    /// Does what a due entry calls for, and settles the entry in the same commit.
    ///
    /// Idempotent: whatever happened meanwhile, the step is decided on what is stored, and committed only if that still holds.
    ///
    /// Errors: `Unavailable` (also after too many conflicts); `Corrupt`, `NotSupported` when a record cannot be read or rewritten.
    pub async fn reconcile(&self, key: &DueKey) -> Result<Done> {
        for _ in 0..ATTEMPTS {
            let mut reservations = Reservations::default();
            let Some(Decided { mut change, reserve }) = self.decide(key, &mut reservations).await? else {
                return Ok(Done::Already);
            };
            reservations.add(reserve);
            reservations.write(&mut change);
            match self.parts.records.apply(change).await {
                Ok(_) => return Ok(Done::Settled),
                // After an unknown outcome, what is stored tells what is left to do.
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::OutcomeUnknown) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::unavailable("reconcile.vm", "too many conflicting changes in a row")
            .with_resource("vm", key.vm.to_string()))
    }

    /// Does what the first of these due entries call for, as many of them as go into one commit. Answers what became of each of those, in
    /// their order: of one at least, unless there is none.
    ///
    /// Each is done as by [`VmReconciler::reconcile`]. When a commit is refused twice, the first is done by itself.
    pub async fn reconcile_together(&self, keys: &[DueKey]) -> Vec<Result<Done>> {
        for _ in 0..TOGETHER_ATTEMPTS {
            let Gathered { change, outcomes, reservations } = self.gather(keys).await;
            if outcomes.is_empty() {
                break;
            }
            if change.is_empty() {
                return outcomes;
            }
            let applied = self.parts.records.apply(change).await;
            drop(reservations);
            match applied {
                Ok(_) => return outcomes,
                Err(error) => {
                    tracing::debug!(%error, steps = outcomes.len(), "steps were not taken together")
                }
            }
        }
        match keys.first() {
            Some(key) => vec![self.reconcile(key).await],
            None => Vec::new(),
        }
    }

    /// Decides as many of the first of these as go into one commit; none when the first goes into none with what it reserves.
    async fn gather(&self, keys: &[DueKey]) -> Gathered {
        let (mut change, mut reservations) = (Change::new(), Reservations::default());
        let (mut outcomes, mut vms) = (Vec::new(), BTreeSet::new());
        for key in keys {
            // A VM's next step is decided on what the one before left.
            if !vms.insert(key.vm) {
                break;
            }
            match self.decide(key, &mut reservations).await {
                Err(error) => outcomes.push(Err(error)),
                Ok(None) => outcomes.push(Ok(Done::Already)),
                Ok(Some(Decided { change: step, reserve })) => {
                    if change.join(step, reservations.operations_with(reserve.as_ref())).is_some() {
                        break;
                    }
                    reservations.add(reserve);
                    outcomes.push(Ok(Done::Settled));
                }
            }
        }
        reservations.write(&mut change);
        Gathered { change, outcomes, reservations }
    }

    /// What a due entry calls for, given what is stored and what is about to be reserved. None: the entry is settled already.
    async fn decide(&self, key: &DueKey, reservations: &mut Reservations) -> Result<Option<Decided>> {
        let Some(due) = self.parts.records.due(key).await? else { return Ok(None) };
        match self.parts.records.vm(&key.project, key.vm).await? {
            Some(entry) => self.step(&due, &entry, reservations).await.map(Some),
            None => self.step_of_tombstone(&due).await.map(|change| Some(change.into())),
        }
    }

    async fn step(
        &self,
        due: &DueEntry,
        entry: &VmEntry,
        reservations: &mut Reservations,
    ) -> Result<Decided> {
        let now = self.parts.clock.now();
        let change = match next_step(&entry.vm, entry.incarnation.as_deref(), now) {
            Step::Wait(at) => {
                let mut change = self.observed(due, entry);
                if let Some(at) = at {
                    change.due(&entry.vm.project, entry.vm.id, at);
                }
                change
            }
            Step::Want(wanted, look_again) => self.want(due, entry, wanted, look_again).await?,
            Step::Place { restart } => return self.place(due, entry, restart, reservations).await,
            Step::Expire => {
                let reason = Reason::new(ReasonCode::TimedOut, "Its time was up.");
                self.desire(due, entry, DesiredState::Stopped, reason)
            }
            Step::AutoDelete => {
                let reason =
                    Reason::new(ReasonCode::AutoDeleted, "Its run ended, and it removes itself after that.");
                self.desire(due, entry, DesiredState::Deleted, reason)
            }
            Step::FinishDelete => self.finish_delete(due, entry, now).await?,
            // Only tombstones are purged, and they are not VMs any more.
            Step::PurgeTombstone => self.observed(due, entry),
        };
        Ok(change.into())
    }

    /// A change that settles the due entry and holds only if VM and incarnation are as they were read.
    fn observed(&self, due: &DueEntry, entry: &VmEntry) -> Change {
        let mut change = Change::new();
        change.settle(due).require_vm(&entry.vm);
        if let Some(incarnation) = &entry.incarnation {
            change.require_incarnation(incarnation);
        }
        change
    }

    pub(crate) fn event(
        &self,
        vm: &Vm,
        incarnation: Option<IncarnationId>,
        kind: EventKind,
        reason: Option<Reason>,
    ) -> Event {
        Event {
            at: self.parts.clock.now(),
            actor: Actor::System,
            request_id: "reconcile".to_owned(),
            kind,
            vm: Some(vm.id),
            vm_name: Some(vm.name.clone()),
            incarnation,
            reason,
        }
    }

    /// Tells the controller what to make of the current incarnation, unless it was told so already.
    async fn want(
        &self,
        due: &DueEntry,
        entry: &VmEntry,
        wanted: Wanted,
        look_again: Option<Timestamp>,
    ) -> Result<Change> {
        let mut change = self.observed(due, entry);
        if let Some(told) = self.current_assignment(entry).await? {
            // What is to end stays under its last network.
            let lives = matches!(wanted, Wanted::Running | Wanted::Paused);
            let another = lives && told.network_revision != entry.vm.network_revision;
            if told.wanted != wanted || another {
                let mut tell = Assignment { wanted, ..Assignment::clone(&told) };
                if another {
                    Arc::make_mut(&mut tell.spec).network.clone_from(&entry.vm.spec.network);
                    tell.network_revision = entry.vm.network_revision;
                }
                change.update_assignment(&told, tell);
            }
        }
        // A deadline stands in an entry of its own since it was set; it is written again here only if this is that entry.
        if let Some(at) = look_again.filter(|at| *at == due.key.at) {
            change.due(&entry.vm.project, entry.vm.id, at);
        }
        Ok(change)
    }

    pub(crate) async fn current_assignment(&self, entry: &VmEntry) -> Result<Option<Versioned<Assignment>>> {
        match &entry.incarnation {
            Some(incarnation) => self.parts.records.assignment(incarnation.controller, incarnation.id).await,
            None => Ok(None),
        }
    }

    /// Fails the snapshot that an assignment which is removed orders, if its controller did not finish it.
    pub(crate) async fn abandon_snapshot(
        &self,
        change: &mut Change,
        vm: &Vm,
        told: &Assignment,
    ) -> Result<()> {
        let reason = Reason::new(ReasonCode::SnapshotFailed, "The VM ended before it was saved.");
        let event = |kind, reason| self.event(vm, Some(told.incarnation), kind, Some(reason));
        self.parts.records.abandon_snapshot(change, told, reason, event).await
    }

    /// Wants something else of a VM, for a reason of its own.
    fn desire(&self, due: &DueEntry, entry: &VmEntry, desired: DesiredState, reason: Reason) -> Change {
        let now = self.parts.clock.now();
        let old: &Vm = &entry.vm;
        let new = Vm {
            desired,
            desired_reason: Some(reason.clone()),
            deadline: None,
            unplaced: None,
            generation: old.generation + 1,
            updated_at: now,
            ..old.clone()
        };
        let event =
            self.event(&new, new.incarnation, EventKind::VmDesired { desired, run: new.run }, Some(reason));
        let mut change = Change::new();
        change.settle(due).update_vm(&entry.vm, new);
        if let Some(incarnation) = &entry.incarnation {
            change.require_incarnation(incarnation);
        }
        change.event(Some(&old.project), &event).due(&old.project, old.id, now);
        change
    }

    /// Replaces the records of a VM of which no host keeps anything by a tombstone.
    async fn finish_delete(&self, due: &DueEntry, entry: &VmEntry, now: Timestamp) -> Result<Change> {
        let vm = Vm { deleted_at: Some(now), updated_at: now, ..Vm::clone(&entry.vm) };
        let incarnation: Option<Incarnation> = entry.incarnation.as_deref().cloned();
        let mut change = Change::new();
        change.settle(due);
        if let Some(incarnation) = &entry.incarnation {
            change.remove_incarnation(incarnation);
        }
        if let Some(assignment) = self.current_assignment(entry).await? {
            change.remove_assignment(&assignment);
            self.abandon_snapshot(&mut change, &vm, &assignment).await?;
        }
        let event = self.event(&vm, vm.incarnation, EventKind::VmDeleted, vm.desired_reason.clone());
        // Nothing is started with them any more.
        let mut buried = vm.clone();
        Arc::make_mut(&mut buried.spec)
            .secret_env
            .values_mut()
            .for_each(|secret| *secret = SecretString::new(""));
        change
            .bury_vm(&entry.vm, &Tombstone { vm: buried, incarnation })
            .event(Some(&vm.project), &event)
            .due(&vm.project, vm.id, self.purge_at(now));
        Ok(change)
    }

    fn purge_at(&self, deleted_at: Timestamp) -> Timestamp {
        deleted_at.saturating_add(jiff_duration(Vm::TOMBSTONE_KEPT_MS)).unwrap_or(Timestamp::MAX)
    }

    async fn step_of_tombstone(&self, due: &DueEntry) -> Result<Change> {
        let project: &ProjectName = &due.key.project;
        let mut change = Change::new();
        change.settle(due);
        if let Some(tombstone) = self.parts.records.tombstone(project, due.key.vm).await? {
            match next_step(&tombstone.vm, tombstone.incarnation.as_ref(), self.parts.clock.now()) {
                Step::PurgeTombstone => {
                    change.remove_tombstone(&tombstone);
                }
                Step::Wait(Some(at)) if at <= due.key.at => {
                    change.due(project, due.key.vm, at);
                }
                _ => {}
            }
        }
        Ok(change)
    }

    /// When a VM that found no place is tried again.
    pub(crate) fn retry_at(&self) -> Timestamp {
        self.parts.clock.now_plus(std::time::Duration::from_millis(Vm::UNPLACED_RETRY_MS.unsigned_abs()))
    }
}

fn jiff_duration(milliseconds: i64) -> std::time::Duration {
    std::time::Duration::from_millis(milliseconds.unsigned_abs())
}
