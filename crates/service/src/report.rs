//! What controllers report.

use flames_error::{ErrorKind, Result};
use flames_model::{
    Actor, Controller, ControllerAllocation, EventKind, Incarnation, IncarnationState, Refusal, Report,
    Resources, Step, apply_report, next_step,
};
use flames_records::{Change, Versioned, VmEntry};

use crate::host::HostSession;
use crate::mutation::ATTEMPTS;
use crate::{Caller, Service, codes};

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportOutcome {
    /// It was taken, or had been taken already.
    Taken,
    /// It was not taken, and never will be: it speaks of a placement or a time that is over.
    Stale(Refusal),
    /// The control plane knows of no such incarnation: nothing of it is to be left on the host.
    Unknown,
}

impl Service {
    /// Takes one report. Reports again, later or doubled change nothing.
    ///
    /// Errors: `LeaseLost` ([`codes::CONTROLLER_SUPERSEDED`]); `NotFound` when the controller was removed; `PermissionDenied` when the
    /// incarnation is another controller's; `Unavailable`.
    pub async fn report(&self, session: &HostSession, report: &Report) -> Result<ReportOutcome> {
        for _ in 0..ATTEMPTS {
            let controller = self.check_session(session).await?;
            let Some(entry) = self.records().vm(&report.project, report.vm).await? else {
                return Ok(ReportOutcome::Unknown);
            };
            let Some(incarnation) =
                entry.incarnation.as_ref().filter(|current| current.id == report.incarnation)
            else {
                return Ok(ReportOutcome::Unknown);
            };
            if incarnation.controller != session.controller {
                return Err(codes::forbidden_report(&report.incarnation.to_string()));
            }
            let after = match apply_report(incarnation, report, self.clock().now()) {
                Ok(after) => after,
                Err(Refusal::NoChange | Refusal::StaleSequence) => return Ok(ReportOutcome::Taken),
                Err(refusal) => return Ok(ReportOutcome::Stale(refusal)),
            };
            match self.commit_report(&controller, &entry, incarnation, &after).await {
                Ok(()) => return Ok(ReportOutcome::Taken),
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::OutcomeUnknown) => {}
                Err(error) => return Err(error),
            }
        }
        Err(codes::contended("service.report"))
    }

    async fn commit_report(
        &self,
        controller: &Versioned<Controller>,
        entry: &VmEntry,
        before: &Versioned<Incarnation>,
        after: &Incarnation,
    ) -> Result<()> {
        let now = self.clock().now();
        let caller = Caller {
            project: entry.vm.project.clone(),
            actor: Actor::Controller(controller.id),
            request_id: format!("report-{}", after.sequence),
        };
        let mut change = Change::new();
        change.update_incarnation(before, after).require_controller(controller);
        // A preparation that takes long says what it waits for.
        let waits = after.state == IncarnationState::Preparing
            && after.reason.is_some()
            && before.reason != after.reason;
        if before.state != after.state || waits {
            let kind = EventKind::VmState { state: after.state, exit: after.exit };
            let event = caller.incarnation_event(now, &entry.vm, after.id, kind, after.reason.clone());
            change.event(Some(&entry.vm.project), &event);
        }
        let released = before.released_at.is_none() && after.released_at.is_some();
        let purged = before.purged_at.is_none() && after.purged_at.is_some();
        let mut freed = if released { after.resources } else { Resources::default() };
        if purged && let Some(disk) = self.records().disk(&entry.vm.project, entry.vm.id).await? {
            freed = freed + Resources { disk_mib: disk.size_mib, ..Resources::default() };
            change.remove_disk(&disk);
        }
        if released {
            let event = caller.incarnation_event(now, &entry.vm, after.id, EventKind::VmReleased, None);
            change.event(Some(&entry.vm.project), &event);
        }
        if freed != Resources::default()
            && let Some(allocation) = self.records().allocation(controller.id).await?
        {
            let reserved = allocation.reserved - freed;
            change.update_allocation(
                &allocation,
                &ControllerAllocation { controller: controller.id, reserved },
            );
        }
        if let Some(at) = self.needs_attention(entry, after, now).await? {
            change.due(&entry.vm.project, entry.vm.id, at);
        }
        self.records().apply(change).await.map(|_| ())
    }

    /// From when on reconciliation must look at the VM again, if it must, given that its incarnation is now `after`.
    async fn needs_attention(
        &self,
        entry: &VmEntry,
        after: &Incarnation,
        now: flames_model::Timestamp,
    ) -> Result<Option<flames_model::Timestamp>> {
        Ok(match next_step(&entry.vm, Some(after), now) {
            Step::Wait(at) => at,
            Step::Want(wanted, _) => {
                let told = self.records().assignment(after.controller, after.id).await?;
                (told.is_none_or(|told| told.wanted != wanted)).then_some(now)
            }
            _ => Some(now),
        })
    }
}
