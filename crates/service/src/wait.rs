//! Waiting until a VM looks as somebody hopes.

use std::time::Duration;

use flames_error::{Error, Result};
use flames_model::VmState;
use flames_records::{Records, Waited};

use crate::{Caller, Service, VmRef, VmView, codes};

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// It looks so, in its present run: one that was told to start again is not there yet as long as its last run lives.
    State(VmState),
    /// Its run is over: `stopped`, `failed`, `deleted`.
    Ended,
    /// Its run is over and its resources are given back, or it is gone.
    Released,
    /// Its machine is under the network that is wanted.
    Network,
}

impl WaitFor {
    /// What is allowed, as a sentence for users.
    pub const RULE: &'static str = "Wait for a state (`running`, `paused`, `stopped`, `failed`, `deleted`, …), `ended`, `released` or `network`.";

    /// Reads what to wait for. `InvalidInput` when it is nothing known.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "ended" => Ok(Self::Ended),
            "released" => Ok(Self::Released),
            "network" => Ok(Self::Network),
            state => VmState::from_name(state).map(Self::State).ok_or_else(|| {
                Error::invalid("service.wait", "for", Self::RULE).with_code(codes::INVALID_FIELD)
            }),
        }
    }

    fn is_reached(self, view: &VmView) -> bool {
        let over = matches!(view.state, VmState::Stopped | VmState::Failed | VmState::Deleted);
        match self {
            Self::State(state) => view.state == state && !is_of_an_earlier_run(view),
            Self::Ended => over,
            Self::Network => view.vm.is_network_in_force(view.incarnation.as_deref()),
            Self::Released => {
                over && view.incarnation.as_ref().is_none_or(|incarnation| incarnation.released_at.is_some())
            }
        }
    }

    /// Whether waiting on is in vain, unless somebody asks for something else: its run is over and does not go on by itself, or it is going
    /// away. (A run that its restart policy repeats is `restarting`.)
    fn is_hopeless(self, view: &VmView) -> bool {
        let gone = view.state == VmState::Deleted;
        let done = gone || matches!(view.state, VmState::Stopped | VmState::Failed | VmState::Deleting);
        let hopeless = match self {
            Self::State(VmState::Deleting | VmState::Deleted) | Self::Ended | Self::Released => gone,
            Self::State(_) => done,
            Self::Network => {
                let incarnation = view.incarnation.as_ref();
                let wanted = view.vm.network_revision;
                done || incarnation.is_some_and(|at| at.network.trouble_with(wanted).is_some())
            }
        };
        hopeless && !self.is_reached(view)
    }
}

/// Whether what lives of the VM is of a run before the present one, and about to end.
fn is_of_an_earlier_run(view: &VmView) -> bool {
    let lives = |state: VmState| {
        matches!(
            state,
            VmState::Scheduled
                | VmState::Preparing
                | VmState::Starting
                | VmState::Restoring
                | VmState::Running
                | VmState::Pausing
                | VmState::Paused
        )
    };
    lives(view.state) && view.incarnation.as_ref().is_some_and(|incarnation| incarnation.run < view.vm.run)
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitOutcome {
    /// The VM as last read.
    pub view: VmView,
    /// Whether it is as hoped. `false`: the time was up, or it can never be.
    pub reached: bool,
}

impl Service {
    /// Waits until a VM looks as hoped, at most `timeout` (cut to the configured longest wait). Not reaching it is no error.
    ///
    /// Errors: `NotFound` ([`codes::VM_NOT_FOUND`]); `Unavailable`.
    pub async fn wait_vm(
        &self,
        caller: &Caller,
        vm: &VmRef,
        hope: WaitFor,
        timeout: Duration,
    ) -> Result<WaitOutcome> {
        let id = self.resolve(caller, vm).await?;
        let prefix = Records::vm_prefix(&caller.project, id)?;
        let deadline = self.clock().monotonic().saturating_add(timeout.min(self.config().longest_wait));
        let read = || async {
            let view = self.view(caller, id).await?.ok_or_else(|| codes::vm_not_found(&id.to_string()))?;
            Ok((hope.is_reached(&view) || hope.is_hopeless(&view)).then_some(view))
        };
        let waited = self
            .records()
            .wait_until(self.clock().as_ref(), &prefix, self.config().poll, deadline, read)
            .await?;
        let view = match waited {
            Waited::Ready(view) => view,
            Waited::TimedOut => {
                self.view(caller, id).await?.ok_or_else(|| codes::vm_not_found(&id.to_string()))?
            }
        };
        Ok(WaitOutcome { reached: hope.is_reached(&view), view })
    }
}
