//! What a driver tells and takes.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use flames_clock::Timestamp;
use flames_error::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::{GuestCpu, NetworkPolicy};

/// An incarnation's name: 1 to 48 bytes of `a-z 0-9 _`. Globally unique and never reused, so files and devices are named after
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IncarnationName(String);

impl IncarnationName {
    /// Checks and wraps a name. `InvalidInput` when it is none.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if (1..=48).contains(&name.len()) && name.bytes().all(allowed) {
            Ok(Self(name))
        } else {
            Err(Error::invalid(
                "vmm.name",
                "incarnation",
                "An incarnation's name is 1 to 48 bytes of a-z, 0-9 and `_`.",
            ))
        }
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for IncarnationName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for IncarnationName {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<IncarnationName> for String {
    fn from(name: IncarnationName) -> Self {
        name.0
    }
}

/// Whether a driver works on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Usability {
    /// It does.
    Usable,
    /// It does not, and why, in a sentence for an operator that says what to do.
    Unusable(String),
}

/// How the agent's channel behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentChannel {
    /// One connection at a time, to the agent only (virtio-serial).
    Exclusive,
    /// Many connections, to any port (vsock).
    Multiplexed,
}

/// What a driver can do on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverCapabilities {
    /// Whether it works here.
    pub usability: Usability,
    /// What accelerates it (`kvm`, `tcg`, `none`), with the reason where a faster one is not used.
    pub acceleration: String,
    /// The monitor's version, when there is one.
    pub version: Option<String>,
    /// How the agent's channel behaves.
    pub agent_channel: AgentChannel,
    /// Whether pause and resume work.
    pub pause: bool,
    /// Whether full snapshots work.
    pub snapshot: bool,
    /// Whether snapshots can be diffs of others.
    pub diff_snapshot: bool,
    /// The processor that guests see. What was saved by one driver is loaded by another of the same name and version with the same one.
    pub guest_cpu: GuestCpu,
    /// Whether user-mode networking works.
    pub user_network: bool,
    /// Whether tap networking works.
    pub tap_network: bool,
    /// Whether the policy of a tap can be replaced while its guest lives ([`Update::Network`]).
    pub live_network_policy: bool,
    /// The most virtual processors of one machine.
    pub max_vcpus: u32,
}

/// Where an incarnation is in its life on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Everything is made; nothing runs.
    Prepared,
    /// The monitor is being started, or died while the driver was.
    Starting,
    /// The guest runs.
    Running,
    /// The guest's processors are stopped.
    Paused,
    /// The monitor is gone.
    Exited,
    /// There is something, and the driver cannot tell what. Only `destroy` is sure to work.
    Unknown,
}

/// Why a monitor is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitCause {
    /// The guest powered itself off or rebooted.
    Guest,
    /// `stop` or `destroy` ended it.
    Stopped,
    /// It was killed from outside or crashed.
    Crashed,
    /// It was gone when the driver came back; why cannot be known.
    Unknown,
}

/// How a monitor ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Why.
    pub cause: ExitCause,
    /// The monitor's exit code, when known.
    pub code: Option<i32>,
    /// The signal that ended the monitor, when known.
    pub signal: Option<i32>,
    /// When the driver saw it, by its clock.
    pub at: Timestamp,
    /// The monitor's last words, cut to 1 KiB, for logs.
    pub message: Option<String>,
}

/// What is true of an incarnation now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Where it is in its life.
    pub phase: Phase,
    /// How it ended, when it has.
    pub exit: Option<Exit>,
    /// The monitor's process, while there is one.
    pub pid: Option<u32>,
    /// What `prepare` answered.
    pub prepared: Prepared,
}

/// An incarnation found on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub incarnation: IncarnationName,
    /// What is true of it.
    pub observation: Observation,
}

/// What `prepare` settled.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Prepared {
    /// Where each forwarded guest port is reached on the host.
    pub forwards: BTreeMap<u16, SocketAddr>,
}

/// What a guest starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartFrom {
    /// Its kernel.
    Boot,
    /// A snapshot, made local.
    Snapshot(SnapshotArtefacts),
}

/// Which snapshot to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotKind {
    /// All of the guest's memory.
    Full,
    /// What changed since the snapshot of this name, which must be the one that was taken last of the incarnation. Its files need not be
    /// there any more, unless a guest is to be started from this one's as they are.
    DiffOf(String),
}

/// The files of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotArtefacts {
    /// The devices' state.
    pub state: PathBuf,
    /// The guest's memory, where it is a file of its own.
    pub memory: Option<PathBuf>,
}

/// A part of the console's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleChunk {
    /// Where `data` begins; larger than asked when older output was dropped.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
}

/// Resource use of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Resident memory of the monitor with its guest, in bytes.
    pub resident_bytes: u64,
    /// Processor time of the monitor with its guest.
    pub cpu_time: Duration,
    /// How long the monitor has run.
    pub uptime: Duration,
}

/// How to end a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopHow {
    /// Press the power button; kill after `grace`.
    PowerOff {
        /// How long the guest may take.
        grace: Duration,
    },
    /// Kill at once.
    Kill,
}

/// A change of a live machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// The balloon's target: this much memory is taken from the guest.
    BalloonMib(u64),
    /// Replaces the file behind the drive of this name.
    DrivePath {
        /// The drive.
        name: String,
        /// The new file.
        path: PathBuf,
    },
    /// Puts a guest on a tap under another policy. No packet is judged by a part of it: by the old one, and then by all of the new. What the
    /// new one does not admit is cut, connections included; what both admit goes on, and names that both list stay resolved. Outlives the
    /// driver: who adopts the machine finds it under this one. `InvalidInput`, with the field `network`, for a policy that cannot be, and
    /// for a machine without a tap.
    Network(NetworkPolicy),
}
