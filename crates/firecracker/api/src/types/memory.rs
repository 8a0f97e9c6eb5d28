//! Memory that is taken back from a guest (balloon) or given to it (hot-plug) while it runs.

use serde::{Deserialize, Serialize};

use super::is_false;

/// A balloon: `Balloon` of the description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Balloon {
    /// How much the guest should give up, in MiB; less than its memory.
    pub amount_mib: u32,
    /// Whether the guest takes some back rather than kill a process for want of memory.
    pub deflate_on_oom: bool,
    /// How often the guest reports statistics, in seconds. 0: never, which cannot be changed after the start.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Whether runs of free page hinting can be started.
    #[serde(default, skip_serializing_if = "is_false")]
    pub free_page_hinting: bool,
    /// Whether the guest reports pages as it frees them, which are then given back to the host.
    #[serde(default, skip_serializing_if = "is_false")]
    pub free_page_reporting: bool,
}

/// A new size of the balloon, after the start: `BalloonUpdate` of the description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BalloonPatch {
    /// How much the guest should give up, in MiB.
    pub amount_mib: u32,
}

/// A new interval of the statistics, after the start: `BalloonStatsUpdate` of the description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BalloonStatisticsPatch {
    /// How often the guest reports, in seconds; neither from nor to 0.
    pub stats_polling_interval_s: u16,
}

/// What balloon and guest reported last: `BalloonStats` of the description. The guest's part is its word, and absent until it
/// gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct BalloonStatistics {
    /// How large the balloon should be, in pages of 4 KiB.
    pub target_pages: u32,
    /// How large it is, in pages of 4 KiB.
    pub actual_pages: u32,
    /// How large it should be, in MiB.
    pub target_mib: u32,
    /// How large it is, in MiB.
    pub actual_mib: u32,
    /// Memory swapped in, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Memory swapped out, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    /// Page faults that needed a read from disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Page faults that needed none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Unused memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    /// All memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// Memory that could be used without swapping, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    /// Memory that could be reclaimed without I/O, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    /// Huge pages allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for want of memory (guest kernels from 6.12, as all that follow).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alloc_stall: Option<u64>,
    /// Memory scanned in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub async_scan: Option<u64>,
    /// Memory scanned by who needed some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_scan: Option<u64>,
    /// Memory reclaimed in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub async_reclaim: Option<u64>,
    /// Memory reclaimed by who needed some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_reclaim: Option<u64>,
}

/// How a run of free page hinting is started: `BalloonStartCmd` of the description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BalloonHintingStart {
    /// Whether Firecracker ends the run by itself when the guest has told all.
    pub acknowledge_on_stop: bool,
}

impl Default for BalloonHintingStart {
    fn default() -> Self {
        Self { acknowledge_on_stop: true }
    }
}

/// How far a run of free page hinting is: `BalloonHintingStatus` of the description. The run is over when both are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BalloonHintingStatus {
    /// The host's last command.
    pub host_cmd: u32,
    /// The guest's last answer; none before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_cmd: Option<u32>,
}

/// A region that memory can be plugged into (virtio-mem): `MemoryHotplugConfig` of the description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MemoryHotplug {
    /// Its size, in MiB: a multiple of `slot_size_mib`.
    pub total_size_mib: u64,
    /// What the host gives or takes at once, in MiB: at least 128, a multiple of `block_size_mib`.
    #[serde(default = "MemoryHotplug::default_slot_size")]
    pub slot_size_mib: u64,
    /// What the guest plugs or unplugs at once, in MiB: a power of two, at least 2.
    #[serde(default = "MemoryHotplug::default_block_size")]
    pub block_size_mib: u64,
}

impl MemoryHotplug {
    /// A region of this size, in MiB, with Firecracker's default slots (128 MiB) and blocks (2 MiB).
    pub fn new(total_size_mib: u64) -> Self {
        Self {
            total_size_mib,
            slot_size_mib: Self::default_slot_size(),
            block_size_mib: Self::default_block_size(),
        }
    }

    fn default_slot_size() -> u64 {
        128
    }

    fn default_block_size() -> u64 {
        2
    }
}

/// How much should be plugged: `MemoryHotplugSizeUpdate` of the description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MemoryHotplugPatch {
    /// In MiB, at most the region's size.
    pub requested_size_mib: u64,
}

/// How much is plugged: `MemoryHotplugStatus` of the description. The guest follows a request in its own time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MemoryHotplugStatus {
    /// The region's size, in MiB.
    pub total_size_mib: u64,
    /// The host's step, in MiB.
    pub slot_size_mib: u64,
    /// The guest's step, in MiB.
    pub block_size_mib: u64,
    /// What the guest has plugged, in MiB.
    pub plugged_size_mib: u64,
    /// What it was asked to plug, in MiB.
    pub requested_size_mib: u64,
}
