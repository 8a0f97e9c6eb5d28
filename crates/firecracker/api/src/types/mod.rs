//! What the API takes and answers, property by property as the description (`firecracker.yaml`) of the supported releases names it.
//!
//! * A property that has its default is not sent, unless every supported version knows it: so a body that uses nothing new is
//!   accepted by the oldest version.
//! * Answers may hold properties that are not here: newer versions add some, and they are passed over.
//! * Paths are those that Firecracker sees: inside its chroot, behind the jailer.

mod devices;
mod instance;
mod machine;
mod memory;
mod network;
mod output;
mod snapshot;

pub use devices::{
    CacheType, Drive, DrivePatch, Entropy, IoEngine, Pmem, PmemPatch, RateLimiter, TokenBucket,
};
pub use instance::{FullConfig, InstanceInfo, InstanceState};
pub use machine::{BootSource, HugePages, MachineConfig, MachineConfigPatch};
pub use memory::{
    Balloon, BalloonHintingStart, BalloonHintingStatus, BalloonPatch, BalloonStatistics,
    BalloonStatisticsPatch, MemoryHotplug, MemoryHotplugPatch, MemoryHotplugStatus,
};
pub use network::{MmdsConfig, MmdsVersion, NetworkInterface, NetworkInterfacePatch, Vsock};
pub use output::{LogLevel, Logger, Metrics, Serial};
pub use snapshot::{
    MemoryBackend, MemoryBackendType, NetworkOverride, SnapshotCreate, SnapshotLoad, SnapshotType,
    VsockOverride,
};

/// For `skip_serializing_if`.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}
