//! What controllers report.

use std::collections::BTreeSet;
use std::sync::Arc;

use flames_error::{ErrorKind, Result};
use flames_model::{
    Actor, Controller, EventKind, Incarnation, IncarnationState, Refusal, Report, Resources, Step,
    apply_report, next_step,
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
    /// The incarnation is another controller's. Nothing was changed.
    Forbidden,
}

/// What a report comes to, given what is stored.
enum Verdict {
    /// It changes nothing.
    Settled(ReportOutcome),
    /// It changes this.
    Changes(Change),
}

impl Service {
    /// Takes one report. Reports again, later or doubled change nothing.
    ///
    /// Errors: as [`Service::reports`]; `PermissionDenied` when the incarnation is another controller's.
    pub async fn report(&self, session: &HostSession, report: &Report) -> Result<ReportOutcome> {
        match self.report_alone(session, report).await? {
            ReportOutcome::Forbidden => Err(codes::forbidden_report(&report.incarnation.to_string())),
            outcome => Ok(outcome),
        }
    }

    /// Takes reports, as many as go together in one commit each, and answers one outcome for each, in their order. One that is not taken
    /// keeps none of the others from being taken.
    ///
    /// Errors: `LeaseLost` ([`codes::CONTROLLER_SUPERSEDED`]); `NotFound` when the controller was removed; `Unavailable`. After an error some
    /// of them may have been taken: they may all be sent again.
    pub async fn reports(&self, session: &HostSession, reports: &[Report]) -> Result<Vec<ReportOutcome>> {
        let mut outcomes = Vec::with_capacity(reports.len());
        while outcomes.len() < reports.len() {
            let left = &reports[outcomes.len()..];
            let (change, settled) = self.together(session, left).await?;
            if !change.is_empty() {
                match self.records().apply(change).await {
                    Ok(_) => {}
                    // One of them met somebody else's change: which one, each tells by itself.
                    Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::OutcomeUnknown) => {
                        for report in &left[..settled.len()] {
                            outcomes.push(self.report_alone(session, report).await?);
                        }
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            outcomes.extend(settled);
        }
        Ok(outcomes)
    }

    /// As many of the first of these as go into one commit, at least one: that commit, and the outcomes once it is made.
    async fn together(
        &self,
        session: &HostSession,
        reports: &[Report],
    ) -> Result<(Change, Vec<ReportOutcome>)> {
        let controller = self.check_session(session).await?;
        let (mut together, mut outcomes) = (Change::new(), Vec::new());
        let mut changed = BTreeSet::new();
        for report in reports {
            // A later report on one incarnation is judged by what the earlier one left.
            if changed.contains(&report.incarnation) {
                break;
            }
            match self.judge(&controller, report).await {
                // What went before is not held up by a record that cannot be read.
                Err(_) if !outcomes.is_empty() => break,
                Err(error) => return Err(error),
                Ok(Verdict::Settled(outcome)) => outcomes.push(outcome),
                Ok(Verdict::Changes(change)) => match together.join(change, 0) {
                    None => {
                        changed.insert(report.incarnation);
                        outcomes.push(ReportOutcome::Taken);
                    }
                    Some(alone) if outcomes.is_empty() => return Ok((alone, vec![ReportOutcome::Taken])),
                    Some(_) => break,
                },
            }
        }
        Ok((together, outcomes))
    }

    async fn report_alone(&self, session: &HostSession, report: &Report) -> Result<ReportOutcome> {
        for _ in 0..ATTEMPTS {
            let controller = self.check_session(session).await?;
            let change = match self.judge(&controller, report).await? {
                Verdict::Settled(outcome) => return Ok(outcome),
                Verdict::Changes(change) => change,
            };
            match self.records().apply(change).await {
                Ok(_) => return Ok(ReportOutcome::Taken),
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::OutcomeUnknown) => {}
                Err(error) => return Err(error),
            }
        }
        Err(codes::contended("service.report"))
    }

    /// What a report of this controller comes to.
    async fn judge(&self, controller: &Versioned<Controller>, report: &Report) -> Result<Verdict> {
        let Some(entry) = self.records().vm(&report.project, report.vm).await? else {
            return Ok(Verdict::Settled(ReportOutcome::Unknown));
        };
        let Some(incarnation) = entry.incarnation.as_ref().filter(|current| current.id == report.incarnation)
        else {
            return Ok(Verdict::Settled(ReportOutcome::Unknown));
        };
        if incarnation.controller != controller.id {
            return Ok(Verdict::Settled(ReportOutcome::Forbidden));
        }
        match apply_report(incarnation, report, self.clock().now()) {
            Ok(after) => self.change_by(controller, &entry, incarnation, after).await.map(Verdict::Changes),
            Err(Refusal::NoChange | Refusal::StaleSequence) => Ok(Verdict::Settled(ReportOutcome::Taken)),
            Err(refusal) => Ok(Verdict::Settled(ReportOutcome::Stale(refusal))),
        }
    }

    /// What is committed when an incarnation becomes `after` by a report.
    async fn change_by(
        &self,
        controller: &Versioned<Controller>,
        entry: &VmEntry,
        before: &Versioned<Incarnation>,
        after: Incarnation,
    ) -> Result<Change> {
        let now = self.clock().now();
        let caller = Caller {
            project: entry.vm.project.clone(),
            actor: Actor::Controller(controller.id),
            request_id: format!("report-{}", after.sequence),
        };
        let after = Arc::new(after);
        let mut change = Change::new();
        change.update_incarnation(before, Arc::clone(&after)).require_controller(controller);
        // A preparation that takes long says what it waits for.
        let waits = after.state == IncarnationState::Preparing
            && after.reason.is_some()
            && before.reason != after.reason;
        // A controller tells of several states at once when they pass quickly. That it ran is told all the same: somebody may wait for it.
        let ran = |incarnation: &Incarnation| incarnation.timeline.contains_key(&IncarnationState::Running);
        if after.state != IncarnationState::Running && ran(&after) && !ran(before) {
            let kind = EventKind::VmState { state: IncarnationState::Running, exit: None };
            let event = caller.incarnation_event(now, &entry.vm, after.id, kind, None);
            change.event(Some(&entry.vm.project), &event);
        }
        if before.state != after.state || waits {
            let kind = EventKind::VmState { state: after.state, exit: after.exit };
            let event = caller.incarnation_event(now, &entry.vm, after.id, kind, after.reason.clone());
            change.event(Some(&entry.vm.project), &event);
        }
        if before.network != after.network {
            let kind = EventKind::VmNetworkApplied { revision: after.network.revision };
            let why = after.network.trouble.as_ref().map(|trouble| trouble.reason.clone());
            let event = caller.incarnation_event(now, &entry.vm, after.id, kind, why);
            change.event(Some(&entry.vm.project), &event);
        }
        let released = before.released_at.is_none() && after.released_at.is_some();
        let purged = before.purged_at.is_none() && after.purged_at.is_some();
        let mut freed = if released { after.resources } else { Resources::default() };
        let address = after.address.as_ref().filter(|_| released);
        if purged && let Some(disk) = self.records().disk(&entry.vm.project, entry.vm.id).await? {
            freed = freed + Resources { disk_mib: disk.size_mib, ..Resources::default() };
            change.remove_disk(&disk);
        }
        if released {
            let event = caller.incarnation_event(now, &entry.vm, after.id, EventKind::VmReleased, None);
            change.event(Some(&entry.vm.project), &event);
        }
        if (freed != Resources::default() || address.is_some())
            && let Some(allocation) = self.records().allocation(controller.id).await?
        {
            change.update_allocation(&allocation, allocation.without(freed, address));
        }
        if let Some(at) = self.needs_attention(entry, before, &after, now).await? {
            change.due(&entry.vm.project, entry.vm.id, at);
        }
        Ok(change)
    }

    /// From when on reconciliation must look at the VM again, if it must, given that its incarnation was
    /// `before` and is now `after`.
    async fn needs_attention(
        &self,
        entry: &VmEntry,
        before: &Incarnation,
        after: &Incarnation,
        now: flames_model::Timestamp,
    ) -> Result<Option<flames_model::Timestamp>> {
        let wanted_before = match next_step(&entry.vm, Some(before), now) {
            Step::Want(wanted, _) => Some(wanted),
            _ => None,
        };
        Ok(match next_step(&entry.vm, Some(after), now) {
            Step::Wait(at) => at,
            // Whoever came to want it left a due entry in the same commit: the controller was told, or will be.
            Step::Want(wanted, _) if wanted_before == Some(wanted) => None,
            Step::Want(wanted, _) => {
                let told = self.records().assignment(after.controller, after.id).await?;
                (told.is_none_or(|told| told.wanted != wanted)).then_some(now)
            }
            _ => Some(now),
        })
    }
}
