//! What is asked for one machine, and what follows from it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use flames_error::Result;
use serde::{Deserialize, Serialize};

use crate::address::{Addresses, Blocks};
use crate::config::NetworkConfig;
use crate::kernel::namespace;
use crate::names::{Incarnation, Slot, TAP};
use crate::policy::Policy;

/// The network of one incarnation, as it is asked for. Written down by the driver before anything is made, and told again in
/// the same words at every later call; only [`NetworkRequest::policy`] may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRequest {
    /// Whose it is.
    pub incarnation: Incarnation,
    /// Its place in the host's address block. No two live incarnations share one: its interface and addresses follow from it.
    pub slot: Slot,
    /// The machine's MAC address: a unicast one.
    pub mac: [u8; 6],
    /// The user that opens the tap.
    pub tap_owner: u32,
    /// What the machine may reach.
    pub policy: Policy,
}

/// Where a machine is attached, and what its guest and its monitor must be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network namespace's file, for the jailer's `--netns`.
    pub namespace: PathBuf,
    /// The tap's name in that namespace.
    pub tap: String,
    /// The machine's MAC address.
    pub mac: [u8; 6],
    /// Its addresses and gateways.
    pub addresses: Addresses,
    /// Where it finds its resolver: its gateways, on port 53.
    pub resolvers: Vec<IpAddr>,
    /// The largest packet in bytes.
    pub mtu: u32,
}

/// A request with what follows from it on this host.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) config: Arc<NetworkConfig>,
    pub(crate) request: NetworkRequest,
    pub(crate) addresses: Addresses,
}

impl Plan {
    /// `InvalidInput` for a request that cannot be met anywhere, `Exhausted` for a slot behind the block's end.
    pub(crate) fn new(config: &Arc<NetworkConfig>, request: &NetworkRequest) -> Result<Self> {
        request.policy.validate()?;
        if request.mac[0] & 1 != 0 || request.mac == [0; 6] {
            return Err(flames_error::Error::invalid(
                "network.request",
                "mac",
                "A machine's MAC address is a unicast one: the lowest bit of its first byte is 0.",
            ));
        }
        let addresses = config.blocks.addresses(request.slot)?;
        Ok(Self { config: Arc::clone(config), request: request.clone(), addresses })
    }

    pub(crate) fn blocks(&self) -> Blocks {
        self.config.blocks
    }

    pub(crate) fn interface(&self) -> String {
        self.config.cluster.interface(self.request.slot)
    }

    pub(crate) fn namespace(&self) -> String {
        self.config.cluster.namespace(&self.request.incarnation)
    }

    pub(crate) fn attachment(&self) -> Attachment {
        let mut resolvers = vec![IpAddr::V4(self.addresses.gateway)];
        resolvers.extend(self.addresses.ipv6.as_ref().map(|ipv6| IpAddr::V6(ipv6.gateway)));
        Attachment {
            namespace: namespace::path(&self.namespace()),
            tap: TAP.to_owned(),
            mac: self.request.mac,
            addresses: self.addresses.clone(),
            resolvers,
            mtu: self.config.mtu,
        }
    }
}

/// A MAC address as people and rules write it.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
