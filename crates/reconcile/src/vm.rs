//! One VM, one step: read, decide, act, commit.

use std::sync::{Arc, Mutex};

use flames_clock::{ClockExt, Timestamp};
use flames_error::{Error, ErrorKind, Result};
use flames_model::{
    Actor, Assignment, DesiredState, Event, EventKind, Incarnation, IncarnationId, ProjectName, Reason,
    ReasonCode, Step, Vm, Wanted, next_step,
};
use flames_records::{Change, DueEntry, DueKey, Tombstone, Versioned, VmEntry};

use crate::ReconcileParts;
use crate::leases::Liveness;
use crate::place::PlacementView;

/// How often a step is decided anew when others change the same records.
const ATTEMPTS: u32 = 16;

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
}

impl VmReconciler {
    /// A reconciler over these parts.
    pub fn new(parts: ReconcileParts, liveness: Arc<Liveness>) -> Self {
        Self { parts, liveness, view: Mutex::new(None) }
    }

    /// Does what a due entry calls for, and settles the entry in the same commit.
    ///
    /// Idempotent: whatever happened meanwhile, the step is decided on what is stored, and committed only if that still holds.
    ///
    /// Errors: `Unavailable` (also after too many conflicts); `Corrupt`, `NotSupported` when a record cannot be read or rewritten.
    pub async fn reconcile(&self, key: &DueKey) -> Result<Done> {
        for _ in 0..ATTEMPTS {
            let Some(due) = self.parts.records.due(key).await? else { return Ok(Done::Already) };
            let committed = match self.parts.records.vm(&key.project, key.vm).await? {
                Some(entry) => self.step(&due, &entry).await,
                None => self.step_of_tombstone(&due).await,
            };
            match committed {
                Ok(()) => return Ok(Done::Settled),
                // After an unknown outcome, what is stored tells what is left to do.
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::OutcomeUnknown) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::unavailable("reconcile.vm", "too many conflicting changes in a row")
            .with_resource("vm", key.vm.to_string()))
    }

    async fn step(&self, due: &DueEntry, entry: &VmEntry) -> Result<()> {
        let now = self.parts.clock.now();
        let incarnation = entry.incarnation.as_ref();
        match next_step(&entry.vm, incarnation.map(|incarnation| &incarnation.record), now) {
            Step::Wait(at) => {
                let mut change = self.observed(due, entry);
                if let Some(at) = at {
                    change.due(&entry.vm.project, entry.vm.id, at);
                }
                self.commit(change).await
            }
            Step::Want(wanted, look_again) => self.want(due, entry, wanted, look_again).await,
            Step::Place { restart } => self.place(due, entry, restart).await,
            Step::Expire => {
                let reason = Reason::new(ReasonCode::TimedOut, "Its time was up.");
                self.desire(due, entry, DesiredState::Stopped, reason).await
            }
            Step::AutoDelete => {
                let reason =
                    Reason::new(ReasonCode::AutoDeleted, "Its run ended, and it removes itself after that.");
                self.desire(due, entry, DesiredState::Deleted, reason).await
            }
            Step::FinishDelete => self.finish_delete(due, entry, now).await,
            // Only tombstones are purged, and they are not VMs any more.
            Step::PurgeTombstone => self.commit(self.observed(due, entry)).await,
        }
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

    pub(crate) async fn commit(&self, change: Change) -> Result<()> {
        self.parts.records.apply(change).await.map(|_| ())
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
    ) -> Result<()> {
        let mut change = self.observed(due, entry);
        if let Some(told) = self.current_assignment(entry).await?
            && told.wanted != wanted
        {
            change.update_assignment(&told, &Assignment { wanted, ..told.record.clone() });
        }
        // A deadline stands in an entry of its own since it was set; it is written again here only if this is that entry.
        if let Some(at) = look_again.filter(|at| *at == due.key.at) {
            change.due(&entry.vm.project, entry.vm.id, at);
        }
        self.commit(change).await
    }

    pub(crate) async fn current_assignment(&self, entry: &VmEntry) -> Result<Option<Versioned<Assignment>>> {
        match &entry.incarnation {
            Some(incarnation) => self.parts.records.assignment(incarnation.controller, incarnation.id).await,
            None => Ok(None),
        }
    }

    /// Wants something else of a VM, for a reason of its own.
    async fn desire(
        &self,
        due: &DueEntry,
        entry: &VmEntry,
        desired: DesiredState,
        reason: Reason,
    ) -> Result<()> {
        let now = self.parts.clock.now();
        let old = &entry.vm.record;
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
        change.settle(due).update_vm(&entry.vm, &new);
        if let Some(incarnation) = &entry.incarnation {
            change.require_incarnation(incarnation);
        }
        change.event(Some(&old.project), &event).due(&old.project, old.id, now);
        self.commit(change).await
    }

    /// Replaces the records of a VM of which no host keeps anything by a tombstone.
    async fn finish_delete(&self, due: &DueEntry, entry: &VmEntry, now: Timestamp) -> Result<()> {
        let vm = Vm { deleted_at: Some(now), updated_at: now, ..entry.vm.record.clone() };
        let incarnation: Option<Incarnation> =
            entry.incarnation.as_ref().map(|incarnation| incarnation.record.clone());
        let mut change = Change::new();
        change.settle(due);
        if let Some(incarnation) = &entry.incarnation {
            change.remove_incarnation(incarnation);
        }
        if let Some(assignment) = self.current_assignment(entry).await? {
            change.remove_assignment(&assignment);
        }
        let event = self.event(&vm, vm.incarnation, EventKind::VmDeleted, vm.desired_reason.clone());
        change
            .bury_vm(&entry.vm, &Tombstone { vm: vm.clone(), incarnation })
            .event(Some(&vm.project), &event)
            .due(&vm.project, vm.id, self.purge_at(now));
        self.commit(change).await
    }

    fn purge_at(&self, deleted_at: Timestamp) -> Timestamp {
        deleted_at.saturating_add(jiff_duration(Vm::TOMBSTONE_KEPT_MS)).unwrap_or(Timestamp::MAX)
    }

    async fn step_of_tombstone(&self, due: &DueEntry) -> Result<()> {
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
        self.commit(change).await
    }

    /// When a VM that found no place is tried again.
    pub(crate) fn retry_at(&self) -> Timestamp {
        self.parts.clock.now_plus(std::time::Duration::from_millis(Vm::UNPLACED_RETRY_MS.unsigned_abs()))
    }
}

fn jiff_duration(milliseconds: i64) -> std::time::Duration {
    std::time::Duration::from_millis(milliseconds.unsigned_abs())
}
