//! How what a user asks for changes what is wanted.

use jiff::Timestamp;

use crate::{DesiredState, Incarnation, IncarnationState, Reason, ReasonCode, Vm, restart_at};

/// What a user asks of a VM that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// Run. A run that is over is followed by a new one; a paused VM goes on.
    Start,
    /// Do not run.
    Stop,
    /// Run anew, ending the present run first.
    Restart,
    /// Stand still.
    Pause,
    /// Go on.
    Resume,
    /// Be gone.
    Delete,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestRefusal {
    /// The VM is wanted deleted, which absorbs.
    Deleted,
    /// The VM does not run, and the request is about one that does.
    NotRunning,
}

/// Whether the VM's present run has ended and will not go on by itself.
pub fn run_is_over(vm: &Vm, incarnation: Option<&Incarnation>) -> bool {
    incarnation.is_some_and(|incarnation| {
        incarnation.run == vm.run
            && matches!(incarnation.state, IncarnationState::Stopped | IncarnationState::Failed)
            && restart_at(vm, incarnation).is_none()
    })
}

/// The VM after `request`, or none when it is as asked for already. `deadline` is that of a run that would begin now.
pub fn apply_request(
    vm: &Vm,
    incarnation: Option<&Incarnation>,
    request: Request,
    deadline: Option<Timestamp>,
) -> Result<Option<Vm>, RequestRefusal> {
    let over = run_is_over(vm, incarnation);
    if vm.desired == DesiredState::Deleted {
        return if request == Request::Delete { Ok(None) } else { Err(RequestRefusal::Deleted) };
    }
    let new_run = (vm.run + 1, deadline);
    let same_run = (vm.run, vm.deadline);
    let (desired, (run, deadline)) = match request {
        Request::Start if vm.desired == DesiredState::Stopped || over => (DesiredState::Running, new_run),
        Request::Start => (DesiredState::Running, same_run),
        Request::Restart => (DesiredState::Running, new_run),
        Request::Stop => (DesiredState::Stopped, (vm.run, None)),
        Request::Delete => (DesiredState::Deleted, (vm.run, None)),
        Request::Pause | Request::Resume if vm.desired == DesiredState::Stopped || over => {
            return Err(RequestRefusal::NotRunning);
        }
        Request::Pause => (DesiredState::Paused, same_run),
        Request::Resume => (DesiredState::Running, same_run),
    };
    if vm.desired == desired && vm.run == run {
        return Ok(None);
    }
    let restarts = if run == vm.run { vm.restarts } else { 0 };
    let sentence = match request {
        Request::Start => "A user started it.",
        Request::Restart => "A user restarted it.",
        Request::Stop => "A user stopped it.",
        Request::Delete => "A user deleted it.",
        Request::Pause => "A user paused it.",
        Request::Resume => "A user resumed it.",
    };
    let desired_reason = Some(Reason::new(ReasonCode::Requested, sentence));
    Ok(Some(Vm { desired, desired_reason, run, deadline, restarts, unplaced: None, ..vm.clone() }))
}
