//! Versioned request and response types of the HTTP API (`v1`), of the host API, and of the streams to guests.
//!
//! * What clients send ([`CreateVm`], [`SetLabels`], the query types) refuses unknown fields, so that a typing error is told and not
//!   ignored. What they receive ignores them, so that an older client reads a newer server.
//! * [`Problem`] is the one form of every error (RFC 9457); [`codes`] lists the stable codes.
//! * [`host`] is what controllers call. It carries the model's own types and is never exposed to users.
//! * [`stream`] is what client and controller say to each other over a stream to a guest; the control plane relays it unread.
//!
//! Durations are whole milliseconds (`…_ms`), sizes are MiB (`…_mib`) or bytes (`…_bytes`), times are RFC 3339 in UTC.

pub mod codes;
mod controller;
mod event;
mod guest;
pub mod host;
mod image;
mod join;
mod json;
mod names;
mod network;
mod problem;
mod query;
mod schema;
mod snapshot;
mod spec;
pub mod stream;
mod vm;

pub use controller::{AddressBlock, Controller, ControllerList, Driver, Resources};
pub use event::{Actor, ActorKind, Event, EventList, EventType, ServerSentEvent};
pub use guest::{
    DirectoryEntry, DirectoryListing, ExecRequest, ExitStatus, FileInfo, FileKind, LogChunk, LogStream,
    ProcessInfo, ProcessList, SignalProcess, TerminalSize,
};
pub use image::{Image, ImageDefaults, ImageList, ImportUpdate};
pub use join::{CreateJoinToken, JoinToken, JoinTokenList, NewJoinToken};
pub use json::to_json;
pub use names::{
    DesiredState, DeviceNodes, DiskKind, ExitCause, ImageKind, IncarnationState, OnHostLoss, ReasonCode,
    RestartRule, SnapshotState, VmState,
};
pub use network::{Address, Bandwidth, Egress, EgressMode, Network, NetworkStatus, PortRange};
pub use problem::Problem;
pub use query::{
    AttachQuery, ConsoleQuery, ControllerDelete, EventQuery, FileList, FileMove, FilePath, FileRemove,
    FileStat, FileWrite, ImageImport, LogQuery, MakeDirectory, PageQuery, SnapshotListQuery,
    SnapshotWaitQuery, VmListQuery, WaitQuery, label_filter, parse_label_filter,
};
pub use snapshot::{
    CreateSnapshot, RestoreSnapshot, Snapshot, SnapshotKind, SnapshotList, SnapshotPlatform,
    SnapshotWaitResult,
};
pub use spec::{CreateVm, CreateVmSpec, Port, Restart, SetLabels, VmSpec};
pub use vm::{Endpoint, Exit, Incarnation, Reason, Route, TimelineEntry, Vm, VmList, WaitResult};

/// The version of the API that these types are of, as it stands in each path.
pub const API_VERSION: &str = "v1";

/// What a server is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Version {
    /// The version of Flames.
    #[schema(example = "0.1.0")]
    pub version: String,
    /// The version of the API, as it stands in each path.
    #[schema(example = "v1")]
    pub api: String,
    /// The version of the frames on streams to guests.
    #[schema(example = 1, maximum = 4294967295u64)]
    pub stream_protocol: u32,
}

/// The answer of a probe.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Health {
    /// `ok`.
    #[schema(example = "ok")]
    pub status: String,
}
