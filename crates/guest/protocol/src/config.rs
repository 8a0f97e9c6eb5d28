//! What a guest is told before it can speak: the config drive.
//!
//! A config drive is a small raw block device: `FLAMESCF`, the format's version and the length of the JSON (both
//! `u32`, little-endian), the JSON of a [`GuestConfig`], and the JSON's BLAKE3 digest. What stands behind that, as the zeros with
//! which a driver fills the device up to whole sectors, is no part of it. It holds the agent's key, so its file on the host and its
//! device node in the guest belong to root.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_CONFIG_LENGTH;
use crate::secret::{AgentKey, SecretString};

/// The first bytes of a config drive.
pub const CONFIG_MAGIC: [u8; 8] = *b"FLAMESCF";

/// The version of the drive's layout.
pub const CONFIG_VERSION: u32 = 1;

/// The bytes before the JSON: magic, version, length.
pub const CONFIG_HEADER_LENGTH: usize = 16;

/// The bytes after the JSON: its BLAKE3 digest.
pub const CONFIG_DIGEST_LENGTH: usize = 32;

/// Everything that one incarnation's guest must know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GuestConfig {
    /// The incarnation's id; part of the handshake's proof.
    pub incarnation: String,
    /// The incarnation's key.
    pub key: AgentKey,
    /// The guest's host name; empty leaves the kernel's.
    #[serde(default)]
    pub hostname: String,
    /// The root file system; `None` stays in the initramfs (and is the rule for an agent that is not PID 1).
    #[serde(default)]
    pub root: Option<RootConfig>,
    /// The static network; `None` leaves only the loopback interface.
    #[serde(default)]
    pub network: Option<NetworkConfig>,
    /// What runs as the process `main`, and what further processes inherit.
    #[serde(default)]
    pub workload: Option<WorkloadConfig>,
    /// The wall clock at boot, in milliseconds since 1970; 0 leaves the guest's own.
    #[serde(default)]
    pub epoch_ms: u64,
}

/// The devices of the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootConfig {
    /// The image. Mounted read-only under `upper`, and writable without one.
    pub lower: Device,
    /// The file system of `lower`; `ext4` when absent.
    #[serde(default = "ext4")]
    pub lower_filesystem: String,
    /// A writable ext4 device over the image; what the guest writes goes there.
    #[serde(default)]
    pub upper: Option<Device>,
}

fn ext4() -> String {
    "ext4".to_owned()
}

/// How a block device is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", content = "value", rename_all = "snake_case")]
pub enum Device {
    /// By its node, such as `/dev/vda`: the order on the virtio bus.
    Path(String),
    /// By its virtio serial number (at most 20 bytes), as in `/sys/block/vda/serial`.
    Serial(String),
}

/// A static network, set once at boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// The interface, such as `eth0`.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// The default routes' gateways, at most one for each address family.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// The resolvers, written to `/etc/resolv.conf`.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// The interface's MTU in bytes; `None` leaves the driver's.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// The interface's MAC address, for a guest that was restored: its driver's is the one that it was saved with. `None` leaves that one.
    /// An agent from before there was this leaves it too; its host then drops what it sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

/// A MAC address, written `02:f1:0a:09:00:0e`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl std::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for MacAddress {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let wrong =
            || Error::new(ErrorKind::InvalidInput, "a MAC address is six pairs of hexadecimal digits");
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().filter(|pair| pair.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        if pairs.next().is_none() { Ok(Self(bytes)) } else { Err(wrong()) }
    }
}

/// An address and the length of its network prefix in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// The prefix's length in bits.
    pub prefix: u8,
}

/// The process `main`, and the defaults of every other process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadConfig {
    /// The program and its arguments; empty runs nothing, and the VM stays up.
    #[serde(default)]
    pub argv: Vec<String>,
    /// The environment, in order; a later name wins.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The secret part of the environment, applied after `env`.
    #[serde(default)]
    pub secret_env: Vec<(String, SecretString)>,
    /// The working directory; `/` when absent.
    #[serde(default)]
    pub working_directory: Option<String>,
    /// The user: `name`, `name:group`, `uid` or `uid:gid`, looked up in the guest's files; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Whether `main` gets a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether `main` gets an open standard input; without it and without a terminal it reads `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
}

impl GuestConfig {
    /// The content of the config drive.
    ///
    /// Errors: `InvalidInput` when the JSON is longer than [`MAX_CONFIG_LENGTH`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(self)
            .map_err(|error| Error::new(ErrorKind::Internal, format!("cannot encode the config: {error}")))?;
        if json.len() > MAX_CONFIG_LENGTH {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the guest's configuration has {} bytes, and {MAX_CONFIG_LENGTH} is the most",
                    json.len()
                ),
            ));
        }
        let length = CONFIG_HEADER_LENGTH + json.len() + CONFIG_DIGEST_LENGTH;
        let mut drive = Vec::with_capacity(length);
        drive.extend_from_slice(&CONFIG_MAGIC);
        drive.extend_from_slice(&CONFIG_VERSION.to_le_bytes());
        drive.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes());
        drive.extend_from_slice(&json);
        drive.extend_from_slice(blake3::hash(&json).as_bytes());
        Ok(drive)
    }

    /// How many bytes of the device [`GuestConfig::decode`] needs, from its first 16.
    ///
    /// Errors: `NotFound` when this is no config drive, `NotSupported` for another version, `Corrupt` for a
    /// length out of bounds.
    pub fn encoded_length(header: &[u8; CONFIG_HEADER_LENGTH]) -> Result<usize> {
        let (magic, numbers) = header.split_at(CONFIG_MAGIC.len());
        if magic != CONFIG_MAGIC {
            return Err(Error::new(ErrorKind::NotFound, "not a config drive"));
        }
        let number =
            |at: usize| u32::from_le_bytes([numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]]);
        if number(0) != CONFIG_VERSION {
            return Err(Error::new(
                ErrorKind::NotSupported,
                format!("config drive of version {}; this agent reads {CONFIG_VERSION}", number(0)),
            ));
        }
        let length = number(4) as usize;
        if length > MAX_CONFIG_LENGTH {
            return Err(Error::new(ErrorKind::Corrupt, format!("config drive says {length} bytes of JSON")));
        }
        Ok(CONFIG_HEADER_LENGTH + length + CONFIG_DIGEST_LENGTH)
    }

    /// Reads the content of a config drive; what follows the digest is ignored.
    ///
    /// Errors: those of [`GuestConfig::encoded_length`], and `Corrupt` when the content is short, does not match
    /// its digest, or is not a configuration.
    pub fn decode(drive: &[u8]) -> Result<Self> {
        let header = drive
            .first_chunk::<CONFIG_HEADER_LENGTH>()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "not a config drive: too short"))?;
        let end = Self::encoded_length(header)?;
        let content = drive
            .get(CONFIG_HEADER_LENGTH..end)
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "config drive is shorter than it says"))?;
        let (json, digest) = content.split_at(content.len() - CONFIG_DIGEST_LENGTH);
        if blake3::hash(json).as_bytes() != digest {
            return Err(Error::new(ErrorKind::Corrupt, "config drive does not match its digest"));
        }
        // The parser's own text may quote the content, which holds secrets: only its place is told.
        serde_json::from_slice(json).map_err(|error| {
            Error::new(
                ErrorKind::Corrupt,
                format!("config drive's JSON is wrong at line {} column {}", error.line(), error.column()),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GuestConfig {
        GuestConfig {
            incarnation: "inc_1".into(),
            key: AgentKey::from_bytes([7; 32]),
            hostname: "web".into(),
            root: Some(RootConfig {
                lower: Device::Path("/dev/vda".into()),
                lower_filesystem: ext4(),
                upper: Some(Device::Serial("upper".into())),
            }),
            network: None,
            workload: Some(WorkloadConfig {
                argv: vec!["/bin/true".into()],
                env: vec![("A".into(), "b".into())],
                secret_env: vec![("TOKEN".into(), SecretString::new("hush"))],
                ..WorkloadConfig::default()
            }),
            epoch_ms: 1,
        }
    }

    #[test]
    fn a_config_drive_is_read_back_as_it_was_written_whatever_stands_behind_it() {
        let mut drive = config().encode().unwrap();
        let end = GuestConfig::encoded_length(drive.first_chunk().unwrap()).unwrap();
        assert_eq!(drive.len(), end);
        drive.resize(end.next_multiple_of(512), 0);
        let read = GuestConfig::decode(&drive).unwrap();
        assert_eq!(read.key.to_hex(), config().key.to_hex());
        assert_eq!(read.root, config().root);
        assert_eq!(read.workload, config().workload);
    }

    #[test]
    fn debug_output_shows_neither_the_key_nor_a_secret() {
        let text = format!("{:?}", config());
        assert!(!text.contains("hush") && !text.contains("0707"), "{text}");
    }

    #[test]
    fn a_damaged_or_foreign_drive_is_refused_by_kind() {
        let drive = config().encode().unwrap();
        let mut flipped = drive.clone();
        flipped[40] ^= 1;
        assert_eq!(GuestConfig::decode(&flipped).unwrap_err().kind, ErrorKind::Corrupt);
        assert_eq!(GuestConfig::decode(&drive[..100]).unwrap_err().kind, ErrorKind::Corrupt);
        assert_eq!(GuestConfig::decode(&[0; 4096]).unwrap_err().kind, ErrorKind::NotFound);
        let mut newer = drive.clone();
        newer[8] = 9;
        assert_eq!(GuestConfig::decode(&newer).unwrap_err().kind, ErrorKind::NotSupported);
        let mut huge = drive;
        huge[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(GuestConfig::decode(&huge).unwrap_err().kind, ErrorKind::Corrupt);
    }

    #[test]
    fn a_config_above_the_bound_is_refused() {
        let mut big = config();
        big.hostname = "x".repeat(MAX_CONFIG_LENGTH);
        assert_eq!(big.encode().unwrap_err().kind, ErrorKind::InvalidInput);
    }

    #[test]
    fn a_mac_address_reads_back_and_what_is_none_is_refused() {
        let address = MacAddress([2, 0xf1, 10, 0, 255, 6]);
        let text = serde_json::to_string(&address).unwrap();
        assert_eq!(text, r#""02:f1:0a:00:ff:06""#);
        assert_eq!(serde_json::from_str::<MacAddress>(&text).unwrap(), address);
        for wrong in ["", "02:f1:0a:00:ff", "02:f1:0a:00:ff:06:07", "2:f1:0a:00:ff:06", "02:f1:0a:00:ff:0g"] {
            assert!(MacAddress::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields_of_a_newer_version_are_ignored() {
        let json = format!(r#"{{"incarnation":"inc_1","key":"{}","novel":[1,2]}}"#, "00".repeat(32));
        let read: GuestConfig = serde_json::from_str(&json).unwrap();
        assert!(read.workload.is_none());
    }
}
