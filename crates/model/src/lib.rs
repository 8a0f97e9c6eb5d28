//! Records, ids, states and the pure functions that decide what happens next. No I/O, no async, no clock.
//!
//! Start reading at [`vm`]: a [`Vm`] is what a user wants, an [`Incarnation`] is one try at running it on one controller, and
//! [`next_step`] says what brings the one to the other.

mod assignment;
mod controller;
mod event;
mod ids;
mod image;
mod incarnation;
mod names;
mod network;
mod request;
mod secret;
mod snapshot;
mod spec;
mod step;
mod transition;
mod validate;
pub mod vm;

pub use assignment::{Assignment, Wanted};
pub use controller::{Controller, ControllerAllocation, ControllerLease, DriverInfo, Resources};
pub use event::{Actor, Event, EventKind, Reason, ReasonCode};
pub use ids::{
    ControllerId, DiskId, FencingToken, IncarnationId, OperationId, SessionToken, SnapshotId, VmId,
};
pub use image::{Image, ImageDefaults, ImageKind, ImageManifest};
pub use incarnation::{
    AppliedNetwork, Endpoint, Exit, ExitCause, Incarnation, IncarnationState, NetworkTrouble, Report, Source,
};
pub use names::{ImageName, Labels, PrivateNetworkName, ProjectName, SnapshotName, VmName};
pub use network::{
    AddressBlock, AddressSlots, Bandwidth, DomainPattern, DriverNetwork, Egress, GuestAddress, IpRange,
    METADATA_RANGES, NetworkSpec, PortRange, SPECIAL_RANGES,
};
pub use request::{Request, RequestRefusal, apply_request, run_is_over};
pub use secret::SecretString;
pub use snapshot::{
    CpuFacts, RestoreOrder, Snapshot, SnapshotBase, SnapshotChunk, SnapshotFile, SnapshotFileRole,
    SnapshotManifest, SnapshotPlatform, SnapshotProgress, SnapshotRefusal, SnapshotReport, SnapshotSizes,
    SnapshotState, apply_snapshot_report, failed as failed_snapshot, restores_from,
};
pub use spec::{DiskKind, OnHostLoss, PortSpec, RestartPolicy, RestartRule, VmSpec};
pub use step::{Step, next_step, restart_at};
pub use transition::{Refusal, apply_report};
pub use validate::{ControllerLimits, INVALID_FIELD};
pub use vm::{DesiredState, Disk, Vm, VmState, observed_state};

/// A point in wall-clock time (UTC).
pub use jiff::Timestamp;
