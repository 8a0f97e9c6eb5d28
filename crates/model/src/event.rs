//! What happened, who did it and why.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    ControllerId, DesiredState, Exit, ImageName, IncarnationId, IncarnationState, SnapshotId, SnapshotState,
    VmId, VmName,
};

/// Who caused something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "id", rename_all = "snake_case")]
pub enum Actor {
    /// A client of the API, by the name of its credential.
    User(String),
    /// A controller.
    Controller(ControllerId),
    /// The control plane itself.
    System,
}

/// Why something ended or does not go on, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// A user asked for it.
    Requested,
    /// The run's time was up.
    TimedOut,
    /// The VM deletes itself after its run.
    AutoDeleted,
    /// The workload ended by itself.
    WorkloadExited,
    /// The workload could not be started (not in the image, not executable, no such user).
    WorkloadNotStarted,
    /// The guest ended without its workload having ended.
    GuestStopped,
    /// The machine's monitor broke down or was killed.
    MachineFailed,
    /// The machine could not be made (kernel, image, limits of the host).
    NotPrepared,
    /// The guest's agent did not answer in time.
    AgentSilent,
    /// The host's controller has not renewed its lease.
    HostLost,
    /// An operator confirmed that the host is dead.
    HostConfirmedDead,
    /// No controller has room, or the labels asked for.
    NoCapacity,
    /// The image or kernel is not there any more.
    ImageMissing,
    /// Something that takes its time is waited for.
    Waiting,
    /// A machine that lives could not be put under the network that is wanted.
    NetworkNotApplied,
    /// The guest could not be saved.
    SnapshotFailed,
    /// What a guest was to be loaded from is damaged, or is not there.
    SnapshotUnusable,
    /// No controller's driver, processor and kernel are those that a saved guest needs.
    Incompatible,
}

/// Why, for a user to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// By kind.
    pub code: ReasonCode,
    /// As a sentence. Bounded: see [`Reason::MAX_MESSAGE`].
    pub message: String,
}

impl Reason {
    /// The longest message, in bytes.
    pub const MAX_MESSAGE: usize = 1_024;

    /// A reason; a message that is too long is cut, and control characters become spaces, since part of it may come from a guest.
    pub fn new(code: ReasonCode, message: impl AsRef<str>) -> Self {
        Self { code, message: cut(message.as_ref(), Self::MAX_MESSAGE) }
    }
}

/// As much of a text as fits into so many bytes, with spaces for control characters.
pub(crate) fn cut(text: &str, most: usize) -> String {
    let mut text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(most).collect();
    text.truncate(text.floor_char_boundary(most));
    text
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventKind {
    /// A VM was created.
    VmCreated,
    /// What is wanted of a VM was changed.
    VmDesired {
        /// What is wanted now.
        desired: DesiredState,
        /// The run it is wanted for.
        run: u64,
    },
    /// A VM's labels were changed.
    VmLabelled,
    /// A VM's network was changed; what it was is in force until its host says otherwise.
    VmNetwork {
        /// The revision that is wanted now.
        revision: u64,
    },
    /// A VM's machine is under another revision of its network, or its host tells why it is not.
    VmNetworkApplied {
        /// The revision that the machine is under.
        revision: u64,
    },
    /// No place was found for a VM; it is tried again.
    VmUnplaced,
    /// A VM was placed on a controller.
    VmPlaced {
        /// Where.
        controller: ControllerId,
    },
    /// A VM's current incarnation is in another state.
    VmState {
        /// Which state.
        state: IncarnationState,
        /// How the workload ended, when it has.
        #[serde(skip_serializing_if = "Option::is_none")]
        exit: Option<Exit>,
    },
    /// A VM's incarnation gave back all that it held.
    VmReleased,
    /// A VM is gone.
    VmDeleted,
    /// An image was added or replaced.
    ImageImported {
        /// Which.
        image: ImageName,
    },
    /// An image was removed.
    ImageRemoved {
        /// Which.
        image: ImageName,
    },
    /// A snapshot was asked for.
    SnapshotCreated {
        /// Which.
        snapshot: SnapshotId,
    },
    /// A snapshot is in another state.
    SnapshotState {
        /// Which.
        snapshot: SnapshotId,
        /// Which state.
        state: SnapshotState,
    },
    /// A snapshot was removed.
    SnapshotDeleted {
        /// Which.
        snapshot: SnapshotId,
    },
    /// A controller registered.
    ControllerRegistered {
        /// Which.
        controller: ControllerId,
    },
    /// A controller takes nothing new, or takes VMs again.
    ControllerCordoned {
        /// Which.
        controller: ControllerId,
        /// Whether it takes nothing new.
        cordoned: bool,
    },
    /// A controller did not renew its lease.
    ControllerLost {
        /// Which.
        controller: ControllerId,
    },
    /// A controller was removed.
    ControllerRemoved {
        /// Which.
        controller: ControllerId,
    },
}

/// An entry of a project's log of events. Its position in the log is where a follower resumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, by the clock of whoever committed it.
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// The request that caused it, for tracing.
    pub request_id: String,
    /// What.
    pub kind: EventKind,
    /// The VM concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    /// The VM's name at that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<VmName>,
    /// The incarnation concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<IncarnationId>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_from_a_guest_is_cut_and_cleaned() {
        let reason = Reason::new(ReasonCode::GuestStopped, "a\u{1b}[2J\n".to_owned() + &"ü".repeat(5_000));
        assert!(reason.message.len() <= Reason::MAX_MESSAGE);
        assert!(!reason.message.contains(char::is_control));
    }
}
