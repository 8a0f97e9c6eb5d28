//! What brings a VM from what is to what is wanted.

use jiff::{SignedDuration, Timestamp};

use crate::{DesiredState, Exit, Incarnation, RestartRule, Vm, Wanted};

/// The one next thing to do for a VM. Doing it is a commit; then the question is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing, unless told otherwise, until this time (none: for good).
    Wait(Option<Timestamp>),
    /// Find a place and make an incarnation there.
    Place {
        /// Whether this starts a run again that ended, by the restart policy.
        restart: bool,
    },
    /// Tell the controller what to make of the current incarnation (no change if that was told already). Look again at the given time.
    Want(Wanted, Option<Timestamp>),
    /// The run's time is up: want it stopped.
    Expire,
    /// The run ended some time ago and the VM removes itself: want it deleted.
    AutoDelete,
    /// The host keeps nothing of it: replace the records by a tombstone.
    FinishDelete,
    /// The tombstone was kept long enough.
    PurgeTombstone,
}

fn later(at: Timestamp, by_ms: u64) -> Timestamp {
    let by = SignedDuration::from_millis(i64::try_from(by_ms).unwrap_or(i64::MAX));
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// When the run that `incarnation` ended is started again by the VM's restart policy; none: it is not.
pub fn restart_at(vm: &Vm, incarnation: &Incarnation) -> Option<Timestamp> {
    let ended_at = incarnation.ended_at()?;
    if incarnation.run != vm.run {
        return None;
    }
    let policy = &vm.spec.restart;
    let failed = !incarnation.exit.as_ref().is_some_and(Exit::is_success);
    let again = match policy.rule {
        RestartRule::Never => false,
        RestartRule::OnFailure => failed,
        RestartRule::Always => true,
    };
    let in_a_row = if incarnation.ran_for_ms() > policy.backoff_max_ms { 0 } else { vm.restarts };
    if !again || policy.max_restarts.is_some_and(|most| in_a_row >= most) {
        return None;
    }
    let doubled = policy.backoff_initial_ms.checked_shl(in_a_row.min(40)).unwrap_or(u64::MAX);
    let doubled = if doubled >> in_a_row.min(40) == policy.backoff_initial_ms { doubled } else { u64::MAX };
    Some(later(ended_at, doubled.min(policy.backoff_max_ms)))
}

/// The one next thing to do for `vm`, whose current incarnation is `incarnation`, at time `now`.
pub fn next_step(vm: &Vm, incarnation: Option<&Incarnation>, now: Timestamp) -> Step {
    match vm.desired {
        DesiredState::Deleted => deletion_step(vm, incarnation, now),
        DesiredState::Stopped => match incarnation {
            Some(incarnation) if incarnation.released_at.is_none() => Step::Want(Wanted::Stopped, None),
            _ => ended_step(vm, incarnation, now),
        },
        DesiredState::Running | DesiredState::Paused => running_step(vm, incarnation, now),
    }
}

fn deletion_step(vm: &Vm, incarnation: Option<&Incarnation>, now: Timestamp) -> Step {
    if let Some(deleted_at) = vm.deleted_at {
        let purge_at = later(deleted_at, Vm::TOMBSTONE_KEPT_MS.unsigned_abs());
        return if now >= purge_at { Step::PurgeTombstone } else { Step::Wait(Some(purge_at)) };
    }
    match incarnation {
        Some(incarnation) if incarnation.purged_at.is_none() => Step::Want(Wanted::Purged, None),
        _ => Step::FinishDelete,
    }
}

fn running_step(vm: &Vm, incarnation: Option<&Incarnation>, now: Timestamp) -> Step {
    let over = incarnation.is_some_and(|incarnation| {
        incarnation.run == vm.run
            && incarnation.released_at.is_some()
            && restart_at(vm, incarnation).is_none()
    });
    if !over && vm.deadline.is_some_and(|deadline| now >= deadline) {
        return Step::Expire;
    }
    let Some(incarnation) = incarnation else {
        return Step::Place { restart: false };
    };
    if incarnation.run < vm.run {
        return match incarnation.released_at {
            Some(_) => Step::Place { restart: false },
            None => Step::Want(Wanted::Stopped, vm.deadline),
        };
    }
    if incarnation.released_at.is_none() {
        let wanted = if vm.desired == DesiredState::Paused { Wanted::Paused } else { Wanted::Running };
        return Step::Want(wanted, vm.deadline);
    }
    match restart_at(vm, incarnation) {
        Some(at) if now >= at => Step::Place { restart: true },
        Some(at) => Step::Wait(Some(vm.deadline.map_or(at, |deadline| deadline.min(at)))),
        None => ended_step(vm, Some(incarnation), now),
    }
}

/// The run is over and will not go on by itself.
fn ended_step(vm: &Vm, incarnation: Option<&Incarnation>, now: Timestamp) -> Step {
    let Some(after_ms) = vm.spec.auto_delete_after_ms else {
        return Step::Wait(None);
    };
    let ended_at = incarnation.and_then(Incarnation::ended_at).unwrap_or(vm.updated_at);
    let delete_at = later(ended_at, after_ms);
    if now >= delete_at { Step::AutoDelete } else { Step::Wait(Some(delete_at)) }
}
