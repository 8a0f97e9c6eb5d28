//! What a user wants, and how it looks from outside.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    ControllerId, DiskId, DiskKind, Incarnation, IncarnationId, IncarnationState, Labels, ProjectName,
    Reason, SnapshotId, VmId, VmName, VmSpec, restart_at,
};

/// What is wanted of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DesiredState {
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// It does not run.
    Stopped,
    /// It is gone. Absorbs: nothing else is ever wanted again.
    Deleted,
}

/// A VM: what the user wants. Written by the API and by reconciliation, never by a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its identity.
    pub id: VmId,
    /// Whose.
    pub project: ProjectName,
    /// Its name. Free again as soon as the VM is wanted deleted.
    pub name: VmName,
    /// What it is chosen by.
    pub labels: Labels,
    /// What was asked for. Shared by all that is made of it: a change makes another one ([`Arc::make_mut`]).
    pub spec: Arc<VmSpec>,
    /// Counts the changes of `spec.network`: its revision. What a host is told and reports names it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub network_revision: u64,
    /// What is wanted of it.
    pub desired: DesiredState,
    /// Why that is wanted, where it was not simply asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_reason: Option<Reason>,
    /// Counts the runs that were asked for: bumped by create, start and restart. A run that ended is started again only by the
    /// restart policy or by a larger number here.
    pub run: u64,
    /// Grows with each change of this record that a user can see. The API's `ETag`.
    pub generation: u64,
    /// Counts the placements, and gives each its fencing token.
    pub placements: u64,
    /// The current incarnation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<IncarnationId>,
    /// Its persistent disk, once it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskId>,
    /// When the present run is to be stopped at the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// How often the present run was started again in a row.
    pub restarts: u32,
    /// Why it has no place, while it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unplaced: Option<Reason>,
    /// The snapshot that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_from: Option<SnapshotId>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When this record changed last.
    pub updated_at: Timestamp,
    /// When it was gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Timestamp>,
}

/// For fields that are not written while they are zero.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for it")]
pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Vm {
    /// How long the record of a deleted VM is kept, in milliseconds: 3 days.
    pub const TOMBSTONE_KEPT_MS: i64 = 3 * 24 * 3_600_000;
    /// How long a VM that found no place waits for the next try, in milliseconds.
    pub const UNPLACED_RETRY_MS: i64 = 2_000;

    /// Whether its writable layer outlives a run.
    pub fn has_persistent_disk(&self) -> bool {
        self.spec.disk == DiskKind::Persistent
    }

    /// Whether its machine, the present run's, is under the network that `spec.network` says now.
    pub fn is_network_in_force(&self, incarnation: Option<&Incarnation>) -> bool {
        incarnation.and_then(Incarnation::network_applied) == Some(self.network_revision)
    }
}

/// A persistent disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its identity.
    pub id: DiskId,
    /// Whose VM.
    pub project: ProjectName,
    /// Which VM.
    pub vm: VmId,
    /// Where it is: the VM's next incarnation must go there.
    pub controller: ControllerId,
    /// Its size in MiB, reserved on the controller as long as the disk exists.
    pub size_mib: u64,
    /// When it was made.
    pub created_at: Timestamp,
}

/// How a VM looks from outside: a view of the VM and its current incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// It has no place yet.
    Pending,
    /// It has a place.
    Scheduled,
    /// Its machine is being made.
    Preparing,
    /// It boots.
    Starting,
    /// It is loaded from a snapshot.
    Restoring,
    /// It runs.
    Running,
    /// It is being paused.
    Pausing,
    /// It is paused.
    Paused,
    /// It is being ended.
    Stopping,
    /// It has ended.
    Stopped,
    /// It could not run, or broke down.
    Failed,
    /// Its host is silent.
    Lost,
    /// It has ended and will run again.
    Restarting,
    /// It is being removed.
    Deleting,
    /// It is gone.
    Deleted,
}

impl VmState {
    /// Every state.
    pub const ALL: [VmState; 15] = [
        Self::Pending,
        Self::Scheduled,
        Self::Preparing,
        Self::Starting,
        Self::Restoring,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
        Self::Lost,
        Self::Restarting,
        Self::Deleting,
        Self::Deleted,
    ];

    /// The state's name as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
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
            Self::Restarting => "restarting",
            Self::Deleting => "deleting",
            Self::Deleted => "deleted",
        }
    }

    /// The state that [`VmState::as_str`] names, if any.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a VM looks from outside.
pub fn observed_state(vm: &Vm, incarnation: Option<&Incarnation>) -> VmState {
    if vm.deleted_at.is_some() {
        return VmState::Deleted;
    }
    if vm.desired == DesiredState::Deleted {
        return VmState::Deleting;
    }
    let wants_to_run = matches!(vm.desired, DesiredState::Running | DesiredState::Paused);
    let Some(incarnation) = incarnation else {
        return if wants_to_run { VmState::Pending } else { VmState::Stopped };
    };
    let runs_again = incarnation.run < vm.run || restart_at(vm, incarnation).is_some();
    if wants_to_run && incarnation.state.has_ended() && runs_again {
        return if vm.unplaced.is_some() { VmState::Pending } else { VmState::Restarting };
    }
    match incarnation.state {
        IncarnationState::Scheduled => VmState::Scheduled,
        IncarnationState::Preparing => VmState::Preparing,
        IncarnationState::Starting => VmState::Starting,
        IncarnationState::Restoring => VmState::Restoring,
        IncarnationState::Running => VmState::Running,
        IncarnationState::Pausing => VmState::Pausing,
        IncarnationState::Paused => VmState::Paused,
        IncarnationState::Stopping => VmState::Stopping,
        IncarnationState::Stopped => VmState::Stopped,
        IncarnationState::Failed => VmState::Failed,
        IncarnationState::Lost => VmState::Lost,
    }
}
