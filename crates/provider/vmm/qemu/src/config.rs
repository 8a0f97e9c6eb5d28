//! What the driver is told at its start.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flames_error::Result;
use flames_vmm::{GuestStream, SecretBytes};
use flames_vmm_local::ConsoleLimits;
use serde::{Deserialize, Serialize};

/// What runs the guest's processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acceleration {
    /// KVM for each kernel that has reached its agent under it on this host since the host's boot (tried once, at the first
    /// `prepare` with it), software emulation for every other.
    #[default]
    Auto,
    /// KVM, untried.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// How the host speaks to the agent in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// The virtio-serial port named `flames.agent`: one connection at a time. Such a VM can be saved.
    #[default]
    VirtioSerial,
    /// vsock by `vhost-device-vsock` (one helper process per VM): many connections. Such a VM cannot be saved.
    Vsock,
}

/// How long each kind of call to a monitor may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From the start of the monitor's process to a loaded machine that runs. A large snapshot needs its time here.
    pub start: Duration,
    /// One QMP command, and the handshake with a monitor that is found running.
    pub command: Duration,
    /// From the kill of a process to its end.
    pub kill: Duration,
    /// From the command to save a guest to the whole file.
    pub snapshot: Duration,
    /// From the start of a kernel under KVM to its agent's first message.
    pub probe: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(30),
            command: Duration::from_secs(5),
            kill: Duration::from_secs(10),
            snapshot: Duration::from_secs(300),
            probe: Duration::from_secs(20),
        }
    }
}

/// Tells whether the agent of a guest that is tried under KVM has spoken. Injected, since this crate does not know the
/// agent's protocol.
#[async_trait]
pub trait AgentProbe: Debug + Send + Sync + 'static {
    /// The configuration disk of a guest that shall do no more than start its agent.
    fn guest_config(&self) -> SecretBytes;

    /// Returns once the agent's first message was read from `stream` and is right. May wait without end: the driver sets the
    /// deadline. On an error the driver connects again until then.
    async fn first_message(&self, stream: GuestStream, guest_config: &SecretBytes) -> Result<()>;
}

/// The driver's settings.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// The folder of the incarnations' folders; of this driver alone. Made (0700) when absent.
    pub folder: PathBuf,
    /// QEMU's binary: a path, or a name that is looked up on `PATH`.
    pub binary: PathBuf,
    /// `vhost-device-vsock`'s binary, for [`Channel::Vsock`]: a path, or a name that is looked up on `PATH`.
    pub vsock_helper: PathBuf,
    /// What runs the guest's processors.
    pub acceleration: Acceleration,
    /// QEMU's `-cpu`. `None`: `host` under KVM; `max` under emulation, since the default model `qemu64` is older than what
    /// x86-64-v2 user lands require.
    pub cpu_model: Option<String>,
    /// How the host speaks to the agents of the VMs that are prepared from now on.
    pub channel: Channel,
    /// The most bytes of one VM's console that are kept on disk. At least 8 KiB.
    pub console_log_limit: u64,
    /// How many bytes a second of one VM's console are taken; a guest that writes faster waits for its own serial port.
    pub console_bytes_per_second: u64,
    /// Cuts the guests' user-mode network off from everything but their forwarded ports. Otherwise a guest reaches what the host
    /// reaches, the host's own loopback (as 10.0.2.2) among it.
    pub restrict_user_network: bool,
    /// Runs the monitors under QEMU's seccomp filter, where its build has one.
    pub sandbox: bool,
    /// How long calls may take.
    pub deadlines: Deadlines,
    /// Listens for the agent when a kernel is tried under KVM. `None`: [`Acceleration::Auto`] is software emulation.
    pub probe: Option<Arc<dyn AgentProbe>>,
}

impl QemuConfig {
    /// The settings' defaults: `qemu-system-x86_64` from `PATH`, automatic acceleration, virtio-serial, 1 MiB of console.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            binary: "qemu-system-x86_64".into(),
            vsock_helper: "vhost-device-vsock".into(),
            acceleration: Acceleration::Auto,
            cpu_model: None,
            channel: Channel::VirtioSerial,
            console_log_limit: 1024 * 1024,
            console_bytes_per_second: 1024 * 1024,
            restrict_user_network: false,
            sandbox: true,
            deadlines: Deadlines::default(),
            probe: None,
        }
    }

    pub(crate) fn console(&self) -> ConsoleLimits {
        ConsoleLimits { on_disk: self.console_log_limit, bytes_per_second: self.console_bytes_per_second }
    }
}
