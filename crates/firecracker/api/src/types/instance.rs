//! What Firecracker says of itself and of its machine.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Balloon, BootSource, Drive, Entropy, Logger, MachineConfig, MemoryHotplug, Metrics, MmdsConfig,
    NetworkInterface, Pmem, Vsock,
};

/// What the machine does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum InstanceState {
    /// It has been neither started nor loaded.
    NotStarted,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// What a newer version calls so.
    Other(String),
}

impl From<String> for InstanceState {
    fn from(name: String) -> Self {
        match name.as_str() {
            "Not started" => Self::NotStarted,
            "Running" => Self::Running,
            "Paused" => Self::Paused,
            _ => Self::Other(name),
        }
    }
}

impl From<InstanceState> for String {
    fn from(state: InstanceState) -> Self {
        match state {
            InstanceState::NotStarted => "Not started".to_owned(),
            InstanceState::Running => "Running".to_owned(),
            InstanceState::Paused => "Paused".to_owned(),
            InstanceState::Other(name) => name,
        }
    }
}

/// `InstanceInfo` of the description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceInfo {
    /// The id that Firecracker was started with (`--id`; the jailer's).
    pub id: String,
    /// What the machine does.
    pub state: InstanceState,
    /// Firecracker's version, as [`crate::Version`] reads it.
    pub vmm_version: String,
    /// The program's name: `Firecracker`.
    pub app_name: String,
}

/// All that is configured: `FullVmConfiguration` of the description. Its serial console is never in it; the log, the metrics and
/// the CPU template are not, in the versions known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FullConfig {
    /// The balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Balloon>,
    /// The disks.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// What is booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_source: Option<BootSource>,
    /// The CPU template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_config: Option<Value>,
    /// The log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<Logger>,
    /// Processors and memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_config: Option<MachineConfig>,
    /// The metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// The region for hot-plugged memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_hotplug: Option<MemoryHotplug>,
    /// The metadata service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmds_config: Option<MmdsConfig>,
    /// The network interfaces.
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterface>,
    /// The pmem devices.
    #[serde(default)]
    pub pmem: Vec<Pmem>,
    /// The vsock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// The source of random numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Entropy>,
}
