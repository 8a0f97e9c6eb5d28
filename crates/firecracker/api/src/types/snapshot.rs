//! Saving a machine and loading it again.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::is_false;

/// What of the memory is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum SnapshotType {
    /// All of it.
    #[default]
    Full,
    /// What was written since the last snapshot or load, into a sparse file of the whole size; with no tracking of dirty pages, what
    /// is resident. A developer preview.
    Diff,
}

/// `SnapshotCreateParams` of the description. The machine must be paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotCreate {
    /// What of the memory.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// Where the state of processors and devices goes.
    pub snapshot_path: PathBuf,
    /// Where the memory goes. A diff onto an existing file of the right size is written into it, so that it holds the sum.
    pub mem_file_path: PathBuf,
}

/// How memory comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemoryBackendType {
    /// Mapped from the file, privately: the file must stay as it is while the machine lives, and is never written.
    File,
    /// From a process that answers page faults: Firecracker connects to its socket and hands it the userfaultfd.
    Uffd,
}

/// `MemoryBackend` of the description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryBackend {
    /// How.
    pub backend_type: MemoryBackendType,
    /// The file, or the process's socket.
    pub backend_path: PathBuf,
}

/// Another tap device for an interface of the snapshot: `NetworkOverride` of the description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkOverride {
    /// The interface.
    pub iface_id: String,
    /// Its tap device now.
    pub host_dev_name: String,
}

/// Another socket for the vsock of the snapshot: `VsockOverride` of the description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockOverride {
    /// The socket now.
    pub uds_path: PathBuf,
}

/// `SnapshotLoadParams` of the description, without its deprecated `mem_file_path` and `enable_diff_snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotLoad {
    /// The state of processors and devices.
    pub snapshot_path: PathBuf,
    /// The memory.
    pub mem_backend: MemoryBackend,
    /// Whether written pages are remembered from now on.
    #[serde(default, skip_serializing_if = "is_false")]
    pub track_dirty_pages: bool,
    /// Whether the machine runs at once.
    #[serde(default, skip_serializing_if = "is_false")]
    pub resume_vm: bool,
    /// Tap devices that are others now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
    /// A vsock socket that is another now ([`crate::Feature::VsockOverride`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Whether kvm-clock goes on at the host's time instead of at the snapshot's (x86-64). A snapshot in whose state KVM put no such
    /// time, which some hosts' KVM does now and then, is refused with "clock_realtime requested but not present", which ends this
    /// Firecracker as any failed load does.
    #[serde(default, skip_serializing_if = "is_false")]
    pub clock_realtime: bool,
}

impl SnapshotLoad {
    /// The state and the memory from files; the machine stays paused.
    pub fn from_files(snapshot_path: impl Into<PathBuf>, memory: impl Into<PathBuf>) -> Self {
        Self::new(snapshot_path, MemoryBackendType::File, memory)
    }

    /// The state from a file, the memory from the process that listens on the socket; the machine stays paused.
    pub fn with_page_server(snapshot_path: impl Into<PathBuf>, socket: impl Into<PathBuf>) -> Self {
        Self::new(snapshot_path, MemoryBackendType::Uffd, socket)
    }

    fn new(
        snapshot_path: impl Into<PathBuf>,
        backend_type: MemoryBackendType,
        backend_path: impl Into<PathBuf>,
    ) -> Self {
        Self {
            snapshot_path: snapshot_path.into(),
            mem_backend: MemoryBackend { backend_type, backend_path: backend_path.into() },
            track_dirty_pages: false,
            resume_vm: false,
            network_overrides: Vec::new(),
            vsock_override: None,
            clock_realtime: false,
        }
    }
}
