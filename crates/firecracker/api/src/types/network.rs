//! Network interfaces, vsock and the metadata service.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{RateLimiter, is_false};

/// A network interface over a tap device: `NetworkInterface` of the description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInterface {
    /// Its id: ASCII letters, digits and `_`.
    pub iface_id: String,
    /// The tap device, in the network namespace of Firecracker.
    pub host_dev_name: String,
    /// The guest's MAC address, as `06:00:ac:10:00:02`. Left out, the guest makes one up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// The MTU that the guest is told, 68 to 65535 ([`crate::Feature::NetworkMtu`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Limits of what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

impl NetworkInterface {
    /// An interface over the tap device, without limits.
    pub fn new(id: impl Into<String>, tap: impl Into<String>, guest_mac: impl Into<String>) -> Self {
        Self {
            iface_id: id.into(),
            host_dev_name: tap.into(),
            guest_mac: Some(guest_mac.into()),
            mtu: None,
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }
    }
}

/// New limits of an interface, after the start: `PartialNetworkInterface` of the description. What is left out stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInterfacePatch {
    /// Which.
    pub iface_id: String,
    /// New limits of what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// New limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// Sockets between host and guest: `Vsock` of the description, without its deprecated `vsock_id`.
///
/// Firecracker creates and listens on `uds_path` at once when it is told, and fails when a file is there. A host that connects says
/// `CONNECT <port>\n` and reads `OK <host port>\n`; for a guest that connects to a port of the host, Firecracker connects to
/// `<uds_path>_<port>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vsock {
    /// The guest's context id, from 3.
    pub guest_cid: u32,
    /// The socket.
    pub uds_path: PathBuf,
}

/// How the guest asks the metadata service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum MmdsVersion {
    /// By plain GET: what any confused deputy in the guest can be made to send. Deprecated.
    V1,
    /// With a session token that a PUT must have fetched before. Our default; the description's is [`MmdsVersion::V1`].
    #[default]
    V2,
}

/// The metadata service: `MmdsConfig` of the description. Its interfaces must have been configured before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmdsConfig {
    /// Its protocol. Always sent. An answer without it means the first.
    #[serde(default = "first_mmds_version")]
    pub version: MmdsVersion,
    /// The ids of the interfaces on which it answers; at least one.
    pub network_interfaces: Vec<String>,
    /// Its address: link-local. Left out: 169.254.169.254.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<Ipv4Addr>,
    /// Whether it always answers in plain text, as EC2's does.
    #[serde(default, skip_serializing_if = "is_false")]
    pub imds_compat: bool,
}

fn first_mmds_version() -> MmdsVersion {
    MmdsVersion::V1
}

impl MmdsConfig {
    /// The second version, on this interface.
    pub fn on_interface(id: impl Into<String>) -> Self {
        Self {
            version: MmdsVersion::V2,
            network_interfaces: vec![id.into()],
            ipv4_address: None,
            imds_compat: false,
        }
    }
}
