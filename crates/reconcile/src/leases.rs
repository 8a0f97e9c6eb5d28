//! Judges controllers' leases.
//!
//! A lease is expired when its renewal counter has not moved for its duration by this replica's own monotonic clock: wall
//! clocks of other machines decide nothing. After this replica could not read the leases, and after its own start, no lease
//! counts as expired for one full duration, since the renewals may have been missed here only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::Monotonic;
use flames_error::{ErrorKind, Result};
use flames_model::{
    Actor, Assignment, ControllerId, ControllerLease, Event, EventKind, Incarnation, IncarnationState,
    Reason, ReasonCode,
};
use flames_records::{Change, Versioned};
use tokio_util::sync::CancellationToken;

use crate::ReconcileParts;

#[derive(Debug, Clone, Copy)]
struct Seen {
    renewals: u64,
    moved_at: Monotonic,
    lost: bool,
}

/// Which controllers this replica takes for alive.
#[derive(Debug, Default)]
pub struct Liveness {
    seen: Mutex<BTreeMap<ControllerId, Seen>>,
}

impl Liveness {
    /// Whether the controller's lease is held, as far as this replica can tell. One that it has not seen yet counts as alive.
    pub fn is_alive(&self, controller: ControllerId) -> bool {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&controller)
            .is_none_or(|seen| !seen.lost)
    }

    /// Takes in what was read, and answers which controllers are lost: each time while they are, so that marking is tried again
    /// until it is done.
    fn judge(&self, leases: &[ControllerLease], now: Monotonic) -> Vec<ControllerId> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|controller, _| leases.iter().any(|lease| lease.controller == *controller));
        for lease in leases {
            let first = Seen { renewals: lease.renewals, moved_at: now, lost: false };
            let known = seen.entry(lease.controller).or_insert(first);
            if known.renewals == lease.renewals {
                known.lost = now.saturating_since(known.moved_at) > Duration::from_millis(lease.duration_ms);
            } else {
                *known = first;
            }
        }
        seen.iter().filter(|(_, seen)| seen.lost).map(|(controller, _)| *controller).collect()
    }

    /// Forgives every lease: renewals may have been missed here only.
    fn forgive(&self, now: Monotonic) {
        for seen in self.seen.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
            seen.moved_at = now;
        }
    }
}

pub(crate) async fn run(parts: ReconcileParts, liveness: Arc<Liveness>, stop: CancellationToken) {
    let watch = async {
        let mut marked: BTreeMap<ControllerId, bool> = BTreeMap::new();
        loop {
            let asked_at = parts.clock.monotonic();
            match read_leases(&parts).await {
                // An answer that took longer than the time between two looks says nothing about the present.
                Ok(leases)
                    if parts.clock.monotonic().saturating_since(asked_at) <= parts.config.lease_check =>
                {
                    let lost = liveness.judge(&leases, parts.clock.monotonic());
                    marked.retain(|controller, _| lost.contains(controller));
                    for controller in lost {
                        let done = marked.entry(controller).or_insert(false);
                        if !*done {
                            match mark_lost(&parts, controller).await {
                                Ok(()) => *done = true,
                                Err(error) => {
                                    tracing::warn!(%error, %controller, "a lost controller's VMs were not all marked")
                                }
                            }
                        }
                    }
                }
                Ok(_) => liveness.forgive(parts.clock.monotonic()),
                Err(error) => {
                    tracing::warn!(%error, "leases cannot be read; none counts as expired");
                    liveness.forgive(parts.clock.monotonic());
                }
            }
            parts.clock.sleep(parts.config.lease_check).await;
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = watch => {}
    }
}

async fn read_leases(parts: &ReconcileParts) -> Result<Vec<ControllerLease>> {
    let mut leases = Vec::new();
    let mut after = None;
    loop {
        let page = parts.records.leases(after).await?;
        leases.extend(page.items.into_iter().map(Versioned::into_record));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(leases),
        }
    }
}

/// Marks every live incarnation of a controller as lost, and tells the controller to report again should it be there after
/// all: its next report heals the mark.
async fn mark_lost(parts: &ReconcileParts, controller: ControllerId) -> Result<()> {
    let mut after = None;
    let mut any = false;
    loop {
        let page = parts.records.assignments(controller, after, flames_records::MAX_PAGE).await?;
        for assignment in &page.items {
            any |= mark_one(parts, assignment).await?;
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    if any {
        let kind = EventKind::ControllerLost { controller };
        let mut change = Change::new();
        change.event(None, &event(parts, kind, None));
        parts.records.apply(change).await?;
    }
    Ok(())
}

async fn mark_one(parts: &ReconcileParts, assignment: &Versioned<Assignment>) -> Result<bool> {
    let Some(entry) = parts.records.vm(&assignment.project, assignment.vm).await? else { return Ok(false) };
    let current = entry.incarnation.as_ref().filter(|incarnation| incarnation.id == assignment.incarnation);
    let live = |state: IncarnationState| !state.has_ended() && state != IncarnationState::Lost;
    let Some(incarnation) = current.filter(|incarnation| live(incarnation.state)) else { return Ok(false) };
    let reason = Reason::new(
        ReasonCode::HostLost,
        "Its host is silent. It is told to go on as soon as the host returns.",
    );
    let lost = Incarnation {
        state: IncarnationState::Lost,
        state_before_loss: Some(incarnation.state),
        reason: Some(reason.clone()),
        ..Incarnation::clone(incarnation)
    };
    let kind = EventKind::VmState { state: IncarnationState::Lost, exit: None };
    let told = Event {
        vm: Some(entry.vm.id),
        vm_name: Some(entry.vm.name.clone()),
        incarnation: Some(incarnation.id),
        ..event(parts, kind, Some(reason))
    };
    let mut change = Change::new();
    change
        .update_incarnation(incarnation, &lost)
        .update_assignment(assignment, Arc::clone(&assignment.record))
        .event(Some(&entry.vm.project), &told);
    match parts.records.apply(change).await {
        Ok(_) => Ok(true),
        // It changed meanwhile: it reported, or something else is wanted of it.
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(true),
        Err(error) => Err(error),
    }
}

fn event(parts: &ReconcileParts, kind: EventKind, reason: Option<Reason>) -> Event {
    Event {
        at: parts.clock.now(),
        actor: Actor::System,
        request_id: "leases".to_owned(),
        kind,
        vm: None,
        vm_name: None,
        incarnation: None,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(renewals: u64) -> ControllerLease {
        ControllerLease {
            controller: ControllerId::from_uuid(Default::default()),
            session: flames_model::SessionToken::from_uuid(Default::default()),
            renewals,
            duration_ms: 10_000,
        }
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_origin(Duration::from_secs(seconds))
    }

    #[test]
    fn a_lease_is_lost_only_when_its_counter_stood_still_for_its_duration() {
        let liveness = Liveness::default();
        assert!(liveness.judge(&[lease(1)], at(0)).is_empty());
        assert!(liveness.judge(&[lease(1)], at(10)).is_empty());
        assert_eq!(liveness.judge(&[lease(1)], at(11)).len(), 1);
        assert!(!liveness.is_alive(lease(1).controller));
        assert!(liveness.judge(&[lease(2)], at(12)).is_empty(), "it heals as soon as the counter moves");
        assert!(liveness.is_alive(lease(2).controller));
    }

    #[test]
    fn after_an_outage_no_lease_counts_as_expired_for_a_full_duration() {
        let liveness = Liveness::default();
        liveness.judge(&[lease(1)], at(0));
        liveness.forgive(at(60));
        assert!(liveness.judge(&[lease(1)], at(70)).is_empty());
        assert_eq!(liveness.judge(&[lease(1)], at(71)).len(), 1);
    }
}
