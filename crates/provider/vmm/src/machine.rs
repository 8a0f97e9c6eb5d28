//! What a machine is made of.

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use flames_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Bytes that must not be shown: their `Debug` says only how many.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretBytes(pub Vec<u8>);

impl Debug for SecretBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}

/// What the machine boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSource {
    /// The kernel: an ELF `vmlinux` or a `bzImage`.
    pub kernel: PathBuf,
    /// The initramfs, with the agent as `/init`.
    pub initramfs: Option<PathBuf>,
    /// Words added to the driver's own kernel command line. Never a secret.
    pub extra_arguments: Vec<String>,
}

/// A disk, in the order of the guest's `/dev/vda`, `/dev/vdb`, ….
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// A name unique within the machine: 1 to 20 of `a-z 0-9 -` (virtio-blk serials have 20 bytes; virtio 1.2, section 5.2.6).
    pub name: String,
    /// The raw file on the host.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// How a port of the host leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForward {
    /// Where to listen on the host. Port 0: the driver picks one and tells it in `Prepared`.
    pub listen: SocketAddr,
    /// The port inside the guest.
    pub guest_port: u16,
}

/// How the guest is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkSpec {
    /// Not at all.
    None,
    /// User-mode networking with port forwards: needs no privileges.
    User {
        /// TCP forwards.
        forwards: Vec<PortForward>,
        /// Whether the guest reaches nothing, and is reached by its forwarded ports only. Otherwise it reaches what the host reaches.
        #[serde(default)]
        isolated: bool,
    },
    /// A tap device in the incarnation's own namespace.
    Tap {
        /// The guest's address with its prefix length: one that the placement took from the host's block, of one incarnation at a time.
        address: (IpAddr, u8),
        /// The guest's gateway.
        gateway: IpAddr,
        /// The guest's MAC address.
        mac: [u8; 6],
        /// What it may reach, and who may reach it.
        policy: NetworkPolicy,
    },
}

/// What a guest may reach over its tap, and who may reach it. As it stands: nothing and nobody.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPolicy {
    /// What it may open connections to.
    pub egress: Egress,
    /// The private network that it shares with other guests of its host: 1 to 48 bytes of `a-z 0-9 _`. None: no other guest reaches it,
    /// nor it them.
    pub private_network: Option<String>,
    /// What it may send. None: no limit.
    pub upload: Option<Bandwidth>,
    /// What it may receive. None: no limit.
    pub download: Option<Bandwidth>,
}

/// Addresses that share their first bits: the lowest of them, and how many bits those are.
pub type AddressRange = (IpAddr, u8);

/// What a guest may open connections to. Private, link-local, metadata and other special addresses are unreachable unless a range
/// that lies wholly within one of the special ones is listed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Egress {
    /// Nothing. No name resolves.
    #[default]
    Deny,
    /// Everything public, and the special ranges named.
    Allow {
        /// Ranges within special ones.
        named: Vec<AddressRange>,
    },
    /// Only what is listed.
    AllowList {
        /// Ranges.
        ranges: Vec<AddressRange>,
        /// Names, as `api.example.com`, or `*.example.com` for every name below one. They alone resolve.
        domains: Vec<String>,
        /// Ports of TCP and UDP, first and last, at the above. Empty: every port and every protocol.
        ports: Vec<(u16, u16)>,
    },
}

/// A limit of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// Bytes in a second, on average.
    pub bytes_per_second: u64,
    /// Bytes that may go at once after a pause.
    pub burst_bytes: u64,
}

/// Everything that a driver must know to make a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Virtual processors, at least 1.
    pub vcpus: u32,
    /// Guest memory in MiB, at least 16.
    pub memory_mib: u64,
    /// What it boots.
    pub boot: BootSource,
    /// Its disks.
    pub drives: Vec<Drive>,
    /// What the agent reads at boot from one more, read-only disk behind [`MachineSpec::drives`]. The driver keeps it in the
    /// incarnation's folder, readable by its owner only, and fills it up with zeros to whole sectors. Empty: no such disk.
    pub guest_config: SecretBytes,
    /// How it is connected.
    pub network: NetworkSpec,
}

impl MachineSpec {
    /// The most disks, so that a driver's device space is never passed.
    pub const MAX_DRIVES: usize = 8;

    /// `InvalidInput` when a value is out of the range that every driver takes. Each driver calls it first.
    pub fn validate(&self) -> Result<()> {
        const OPERATION: &str = "vmm.prepare";
        if !(1..=256).contains(&self.vcpus) {
            return Err(Error::invalid(OPERATION, "vcpus", "A machine has 1 to 256 virtual processors."));
        }
        if !(16..=16 * 1024 * 1024).contains(&self.memory_mib) {
            return Err(Error::invalid(OPERATION, "memory_mib", "A machine has 16 MiB to 16 TiB of memory."));
        }
        if self.drives.len() > Self::MAX_DRIVES {
            return Err(Error::invalid(OPERATION, "drives", "A machine has at most 8 disks."));
        }
        let mut names = std::collections::BTreeSet::new();
        for drive in &self.drives {
            let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            let fits = (1..=20).contains(&drive.name.len()) && drive.name.bytes().all(allowed);
            if !fits || !names.insert(&drive.name) {
                return Err(Error::invalid(
                    OPERATION,
                    "drives.name",
                    "A disk's name is 1 to 20 of a-z, 0-9 and `-`, and unique.",
                ));
            }
        }
        if self.guest_config.0.len() > 1024 * 1024 + 4096 {
            return Err(Error::invalid(
                OPERATION,
                "guest_config",
                "A guest's configuration is at most 1 MiB.",
            ));
        }
        Ok(())
    }
}
