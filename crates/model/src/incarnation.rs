//! One try at running a VM on one controller.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ControllerId, FencingToken, GuestAddress, IncarnationId, ProjectName, Reason, Resources, VmId};

/// Where an incarnation is in its life.
///
/// `scheduled → preparing → starting | restoring → running ⇄ pausing, paused → stopping → stopped`; `failed` from anywhere before
/// `stopped`; `lost` while its controller does not renew its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncarnationState {
    /// Placed; its controller has not begun.
    Scheduled,
    /// Its image, disk and machine are being made.
    Preparing,
    /// Its machine boots.
    Starting,
    /// Its machine is loaded from a snapshot.
    Restoring,
    /// Its agent is ready and its workload was started.
    Running,
    /// It is being paused.
    Pausing,
    /// Its processors stand still.
    Paused,
    /// It is being ended.
    Stopping,
    /// It has ended as asked, or its workload ended.
    Stopped,
    /// It could not run, or broke down.
    Failed,
    /// Its controller is silent; whether it runs cannot be known.
    Lost,
}

impl IncarnationState {
    /// Whether no run goes on, for good.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }

    /// The state's name as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Restoring => "restoring",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Lost => "lost",
        }
    }
}

/// What an incarnation starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Its kernel.
    Boot,
    /// A snapshot of this name.
    Snapshot(String),
}

/// What ended a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitCause {
    /// It ended by itself.
    Workload,
    /// It was ended because somebody asked.
    Stopped,
    /// Its machine or host broke down, or the machine never came up.
    Machine,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Exit {
    /// The workload's exit code, when it exited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal that ended the workload, when one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// When.
    pub at: Timestamp,
    /// What ended it.
    pub cause: ExitCause,
}

impl Exit {
    /// Whether the run ended well: the workload exited with code 0, or was stopped because somebody asked.
    pub fn is_success(&self) -> bool {
        match self.cause {
            ExitCause::Workload => self.code == Some(0),
            ExitCause::Stopped => true,
            ExitCause::Machine => false,
        }
    }
}

/// Where one port of a guest is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The port inside the guest.
    pub guest_port: u16,
    /// The address that leads to it.
    pub address: SocketAddr,
}

/// The network that an incarnation's machine is under, as its host tells it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AppliedNetwork {
    /// The revision of the VM's network that the machine was made with, or put under last.
    pub revision: u64,
    /// Why the machine is not under a later one that the host was told, when that needs saying.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<NetworkTrouble>,
}

/// Why a machine is not under a network that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkTrouble {
    /// The revision of that network.
    pub revision: u64,
    /// Why.
    pub reason: Reason,
}

impl AppliedNetwork {
    /// Whether it is that of a VM whose network was never changed.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Why the machine is not under this revision, when its host has said so.
    pub fn trouble_with(&self, revision: u64) -> Option<&Reason> {
        self.trouble.as_ref().filter(|trouble| trouble.revision == revision).map(|trouble| &trouble.reason)
    }
}

/// One try at running a VM on one controller. Holds its reservation until its controller confirms the release or is confirmed
/// dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    /// Its identity. Everything that a host makes for it is named after this.
    pub id: IncarnationId,
    /// Whose VM.
    pub project: ProjectName,
    /// Which VM.
    pub vm: VmId,
    /// Which of the VM's runs.
    pub run: u64,
    /// Where it runs.
    pub controller: ControllerId,
    /// What it holds there.
    pub resources: Resources,
    /// The address that it holds there, of its controller's block; none where that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<GuestAddress>,
    /// Reports count only with this token.
    pub token: FencingToken,
    /// What it started from.
    pub source: Source,
    /// Where it is in its life, as last reported.
    pub state: IncarnationState,
    /// The state before it was lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_before_loss: Option<IncarnationState>,
    /// The last report's number. Reports count only with a larger one.
    pub sequence: u64,
    /// Why it is as it is, when that needs saying.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// How it ended, when it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Where its ports are reached.
    pub endpoints: Vec<Endpoint>,
    /// The network that its machine is under.
    #[serde(default, skip_serializing_if = "AppliedNetwork::is_default")]
    pub network: AppliedNetwork,
    /// When it first was in each state.
    pub timeline: BTreeMap<IncarnationState, Timestamp>,
    /// When it was placed.
    pub created_at: Timestamp,
    /// When its controller confirmed that it holds nothing more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released_at: Option<Timestamp>,
    /// When its controller confirmed that nothing of the VM is left on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purged_at: Option<Timestamp>,
}

impl Incarnation {
    /// The revision of the VM's network that its machine is under; none: no machine of it runs or stands still, as far as is known.
    pub fn network_applied(&self) -> Option<u64> {
        let state = match self.state {
            IncarnationState::Lost => self.state_before_loss.unwrap_or(self.state),
            state => state,
        };
        let has_machine = matches!(
            state,
            IncarnationState::Starting
                | IncarnationState::Restoring
                | IncarnationState::Running
                | IncarnationState::Pausing
                | IncarnationState::Paused
                | IncarnationState::Stopping
        );
        has_machine.then_some(self.network.revision)
    }

    /// How long it ran: from `running` to its end, zero when it never ran.
    pub fn ran_for_ms(&self) -> u64 {
        let ended = self.exit.map(|exit| exit.at).or_else(|| {
            let state = [IncarnationState::Stopped, IncarnationState::Failed];
            state.iter().find_map(|state| self.timeline.get(state)).copied()
        });
        match (self.timeline.get(&IncarnationState::Running), ended) {
            (Some(from), Some(to)) => u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0),
            _ => 0,
        }
    }

    /// When its run ended, if it has.
    pub fn ended_at(&self) -> Option<Timestamp> {
        let states = [IncarnationState::Stopped, IncarnationState::Failed];
        states
            .iter()
            .filter_map(|state| self.timeline.get(state))
            .min()
            .copied()
            .filter(|_| self.state.has_ended())
    }
}

/// What a controller says about an incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// About which.
    pub incarnation: IncarnationId,
    /// Its VM.
    pub vm: VmId,
    /// The VM's project.
    pub project: ProjectName,
    /// Proves that it speaks of this placement.
    pub token: FencingToken,
    /// Grows with each report on this incarnation.
    pub sequence: u64,
    /// Where it is in its life.
    pub state: IncarnationState,
    /// Why, when that needs saying.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// How it ended, when it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Where its ports are reached.
    pub endpoints: Vec<Endpoint>,
    /// The network that its machine is under.
    #[serde(default, skip_serializing_if = "AppliedNetwork::is_default")]
    pub network: AppliedNetwork,
    /// When it entered the states since the last report, by the host's clock.
    pub timeline: BTreeMap<IncarnationState, Timestamp>,
    /// Whether it holds nothing more on the host.
    pub released: bool,
    /// Whether nothing of its VM is left on the host.
    pub purged: bool,
}
