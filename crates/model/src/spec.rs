//! What a user asks of a VM.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ImageName, Labels, NetworkSpec, Resources, SecretString};

/// What a user asks of a VM. Fixed for the VM's life, but for `network`. [`VmSpec::validate`] says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The image its root file system comes from.
    pub image: ImageName,
    /// The kernel image it boots; none: the controller's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<ImageName>,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Size of the writable layer over the image, in MiB.
    pub root_disk_mib: u64,
    /// Whether the writable layer outlives a run.
    pub disk: DiskKind,
    /// The workload's program and leading arguments. None: the image's own; if it has none, the VM stays up without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Arguments behind the command (or, without one, in place of the image's own arguments).
    pub args: Vec<String>,
    /// The workload's environment, over the image's.
    pub env: BTreeMap<String, String>,
    /// As `env`, for values that must not be read back.
    pub secret_env: BTreeMap<String, SecretString>,
    /// The workload's working directory; none: the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// The workload's user: a name or uid, with an optional `:group`; none: the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether the workload runs on a terminal.
    pub tty: bool,
    /// Whether the workload has a standard input that whoever attaches writes to, until its end; else it reads none. A terminal always
    /// is one.
    #[serde(default)]
    pub stdin: bool,
    /// Ports of the guest to be reached from outside.
    pub ports: Vec<PortSpec>,
    /// What it may reach, and who may reach it. Not written where it is what a VM has that asks for nothing.
    #[serde(default, skip_serializing_if = "NetworkSpec::is_default")]
    pub network: NetworkSpec,
    /// What happens when the workload ends.
    pub restart: RestartPolicy,
    /// Whether a request for one of its ports starts it when it is stopped, and resumes it when it is paused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wake_on_request: bool,
    /// How long one run may take, in milliseconds, from when it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// How long after its run ended the VM is deleted by itself, in milliseconds; none: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_delete_after_ms: Option<u64>,
    /// How long the workload has to end when asked to, in milliseconds, before it is killed.
    pub stop_grace_ms: u64,
    /// What happens when its host is lost.
    pub on_host_loss: OnHostLoss,
    /// Labels that its controller must have.
    pub placement: Labels,
}

impl VmSpec {
    /// What one incarnation takes from its controller. A persistent disk is reserved apart, by its own record.
    pub fn resources(&self) -> Resources {
        let disk_mib = match self.disk {
            DiskKind::Ephemeral => self.root_disk_mib,
            DiskKind::Persistent => 0,
        };
        Resources { vcpus: u64::from(self.vcpus), memory_mib: self.memory_mib, disk_mib, vms: 1 }
    }

    /// Whether it asks for a port of its host by number.
    pub fn asks_for_host_port(&self) -> bool {
        self.ports.iter().any(|port| port.host_port.is_some())
    }

    /// What its persistent disk takes from the controller that holds it.
    pub fn persistent_disk_resources(&self) -> Resources {
        let disk_mib = match self.disk {
            DiskKind::Ephemeral => 0,
            DiskKind::Persistent => self.root_disk_mib,
        };
        Resources { vcpus: 0, memory_mib: 0, disk_mib, vms: 0 }
    }
}

/// Whether a VM's writable layer outlives a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    /// It outlives incarnations and keeps its place while the VM is stopped.
    #[default]
    Persistent,
    /// Each incarnation starts from the image again.
    Ephemeral,
}

/// A port of the guest to be reached from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortSpec {
    /// The port inside the guest.
    pub guest_port: u16,
    /// The port on the host's loopback address; none: any free one, on hosts that give guests ports of theirs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
}

/// When a run that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartRule {
    /// Never.
    #[default]
    Never,
    /// When it failed: a non-zero exit code, a signal, or a machine that did not come up or broke down.
    OnFailure,
    /// Always, until stopped or deleted.
    Always,
}

/// When and how soon a run that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// When.
    pub rule: RestartRule,
    /// How long the first restart waits, in milliseconds; each further one waits twice as long.
    pub backoff_initial_ms: u64,
    /// The longest wait, in milliseconds. A run that lasted longer than this starts the waits anew.
    pub backoff_max_ms: u64,
    /// The most restarts in a row; none: no end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_restarts: Option<u32>,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            rule: RestartRule::Never,
            backoff_initial_ms: 1_000,
            backoff_max_ms: 300_000,
            max_restarts: None,
        }
    }
}

/// What happens to a VM whose host is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnHostLoss {
    /// It is reported `lost` until the host returns or an operator confirms that it is dead.
    #[default]
    Wait,
    /// It is placed elsewhere once it is certain that it no longer runs there.
    Restart,
}
