//! Processors, memory and what is booted.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The pages that back the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum HugePages {
    /// Ordinary ones.
    #[default]
    None,
    /// Of 2 MiB, from the host's hugetlbfs pool. The memory's size must be even, in MiB. A snapshot of such a machine can only be
    /// loaded through userfaultfd.
    #[serde(rename = "2M")]
    TwoMebibytes,
}

/// Processors and memory: `MachineConfiguration` of the description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Virtual processors, 1 to 32; with SMT 1 or an even number.
    pub vcpu_count: u8,
    /// Memory, in MiB.
    pub mem_size_mib: u64,
    /// Simultaneous multithreading, as the guest sees it (x86 only).
    #[serde(default)]
    pub smt: bool,
    /// The name of a CPU template of Firecracker's own (`T2`, `T2S`, `T2CL`, `T2A`, `C3`, `V1N1`, `None`), deprecated: see
    /// [`crate::Client::put_cpu_config`] for custom ones, which Firecracker never names here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<String>,
    /// Whether written pages are remembered, which small diff snapshots need. Costs the guest a fault per page that it first writes.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// The pages behind the memory.
    #[serde(default)]
    pub huge_pages: HugePages,
}

impl MachineConfig {
    /// So many processors and so much memory, all else at its default.
    pub fn new(vcpu_count: u8, mem_size_mib: u64) -> Self {
        Self {
            vcpu_count,
            mem_size_mib,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

/// A change of [`MachineConfig`]: what is left out stays. At least one property must be set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MachineConfigPatch {
    /// Virtual processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<u8>,
    /// Memory, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<u64>,
    /// Simultaneous multithreading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// The name of one of Firecracker's own CPU templates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<String>,
    /// Whether written pages are remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// The pages behind the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}

/// What is booted: `BootSource` of the description. Firecracker opens the files when it is told of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BootSource {
    /// The kernel: an uncompressed ELF image on x86-64, a PE image on aarch64. Empty in an answer when the machine was restored
    /// from a snapshot.
    pub kernel_image_path: PathBuf,
    /// An initial ramdisk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line; Firecracker appends its devices and `root=`. Left out, it is Firecracker's own default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}
