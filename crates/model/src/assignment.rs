//! What a controller is told.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    ControllerId, FencingToken, GuestAddress, ImageManifest, IncarnationId, ProjectName, RestoreOrder,
    SnapshotBase, SnapshotId, Source, VmId, VmName, VmSpec,
};

/// What a controller is to make of an incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// It has ended, its workload asked to stop first, and gave back all but what outlives a run: logs and a persistent disk.
    Stopped,
    /// As stopped, and nothing of the VM is left on the host.
    Purged,
}

/// What one controller is told about one incarnation. Written by reconciliation, read by the controller. The order to save its guest is
/// written by whoever asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The incarnation.
    pub incarnation: IncarnationId,
    /// Its VM.
    pub vm: VmId,
    /// The VM's project.
    pub project: ProjectName,
    /// The VM's name, and the guest's host name.
    pub name: VmName,
    /// Who runs it.
    pub controller: ControllerId,
    /// Every report on it must carry this.
    pub token: FencingToken,
    /// What to make of it.
    pub wanted: Wanted,
    /// What the user asked for.
    pub spec: Arc<VmSpec>,
    /// The revision of `spec.network`. Another than the host's last one is to be put in force on the machine that lives.
    #[serde(default, skip_serializing_if = "crate::vm::is_zero")]
    pub network_revision: u64,
    /// Its guest's address, of the controller's block; none where that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<GuestAddress>,
    /// What it starts from.
    pub source: Source,
    /// The root file system, resolved when it was placed.
    pub image: ImageManifest,
    /// The kernel, resolved when it was placed; none: the controller's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<ImageManifest>,
    /// What it is loaded from, when it starts from a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreOrder>,
    /// The snapshot that its controller is to take of it, until that is finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotId>,
    /// What that snapshot is to be saved as a difference from, if the driver can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_base: Option<SnapshotBase>,
}
