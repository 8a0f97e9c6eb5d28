//! How a guest is connected: pure, from the assignment and what the host's driver can do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::config::{InterfaceAddress, MacAddress, NetworkConfig};
use flames_model::{
    Assignment, Bandwidth, Egress, GuestAddress, IpRange, METADATA_RANGES, PrivateNetworkName, ProjectName,
    SPECIAL_RANGES,
};
use flames_vmm::{AddressRange, DriverCapabilities, NetworkPolicy, NetworkSpec, PortForward};

/// The guest's side of QEMU's user-mode network (documentation, "Network emulation": 10.0.2.0/24, gateway .2, name server .3).
const USER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const USER_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const USER_NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The guest's only interface, as every driver makes it.
const INTERFACE: &str = "eth0";

/// What connects a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connection {
    /// Nothing.
    None,
    /// The monitor's own network.
    User,
    /// A tap, with this address of the host's block.
    Tap(GuestAddress),
}

impl Connection {
    /// What connects the guest of this assignment. An address that was given to it is used, or its machine cannot be made.
    pub(crate) fn of(assignment: &Assignment, capabilities: &DriverCapabilities) -> Self {
        match assignment.address {
            Some(address) => Self::Tap(address),
            None if capabilities.user_network => Self::User,
            None => Self::None,
        }
    }

    /// The machine's network. What a placement would not have put here is refused here too: no policy is left out in silence.
    ///
    /// Errors: `NotSupported`, with the field.
    pub(crate) fn network_spec(&self, assignment: &Assignment) -> Result<NetworkSpec> {
        let asked = &assignment.spec.network;
        let has_host_port = assignment.spec.asks_for_host_port();
        match self {
            Self::Tap(_) if has_host_port => {
                refused("spec.ports", "The host's driver gives no port of the host away.")
            }
            Self::Tap(address) => Ok(NetworkSpec::Tap {
                address: (address.ipv4.into(), GuestAddress::IPV4_PREFIX),
                gateway: address.gateway_ipv4().into(),
                mac: address.mac(),
                policy: policy(assignment),
            }),
            _ if asked.private_network.is_some() || asked.upload.is_some() || asked.download.is_some() => {
                refused(
                    "spec.network",
                    "The host's driver has neither private networks nor limits of bandwidth.",
                )
            }
            Self::User if matches!(asked.egress, Egress::Deny | Egress::Unrestricted) => {
                let forward = |port: &flames_model::PortSpec| PortForward {
                    listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.host_port.unwrap_or(0)),
                    guest_port: port.guest_port,
                };
                let forwards = assignment.spec.ports.iter().map(forward).collect();
                Ok(NetworkSpec::User { forwards, isolated: asked.egress == Egress::Deny })
            }
            Self::None if asked.egress == Egress::Deny && !has_host_port => Ok(NetworkSpec::None),
            Self::User | Self::None => {
                refused("spec.network.egress", "The host's driver cannot keep to the VM's egress policy.")
            }
        }
    }

    /// The guest's side of it.
    pub(crate) fn guest_config(&self) -> Option<NetworkConfig> {
        let config = |addresses, gateways: Vec<IpAddr>, dns, mac| NetworkConfig {
            interface: INTERFACE.to_owned(),
            addresses,
            gateways,
            dns,
            mtu: None,
            mac,
        };
        match self {
            Self::None => None,
            Self::User => Some(config(
                vec![InterfaceAddress { address: USER_ADDRESS.into(), prefix: 24 }],
                vec![USER_GATEWAY.into()],
                vec![USER_NAME_SERVER.into()],
                None,
            )),
            Self::Tap(address) => {
                let ipv4 =
                    InterfaceAddress { address: address.ipv4.into(), prefix: GuestAddress::IPV4_PREFIX };
                let ipv6 = address
                    .ipv6
                    .map(|ipv6| InterfaceAddress { address: ipv6.into(), prefix: GuestAddress::IPV6_PREFIX });
                let mut gateways = vec![IpAddr::from(address.gateway_ipv4())];
                gateways.extend(address.gateway_ipv6().map(IpAddr::from));
                // Its resolver listens at its gateways.
                let resolvers = gateways.clone();
                let addresses = std::iter::once(ipv4).chain(ipv6).collect();
                Some(config(addresses, gateways, resolvers, Some(MacAddress(address.mac()))))
            }
        }
    }
}

fn refused(field: &str, sentence: &str) -> Result<NetworkSpec> {
    Err(Error::new(ErrorKind::NotSupported, "controller.machine", sentence)
        .with_field(field)
        .with_user_message(sentence))
}

/// The policy in the driver's terms.
pub(crate) fn policy(assignment: &Assignment) -> NetworkPolicy {
    let asked = &assignment.spec.network;
    let ranges = |ranges: &[IpRange]| -> Vec<AddressRange> {
        ranges.iter().map(|range| (range.address(), range.prefix())).collect()
    };
    let egress = match &asked.egress {
        Egress::Deny => flames_vmm::Egress::Deny,
        Egress::Allow { named } => flames_vmm::Egress::Allow { named: ranges(named) },
        Egress::AllowList { ranges: listed, domains, ports } => flames_vmm::Egress::AllowList {
            ranges: ranges(listed),
            domains: domains.iter().map(ToString::to_string).collect(),
            ports: ports.iter().map(|ports| (ports.first, ports.last)).collect(),
        },
        Egress::Unrestricted => {
            flames_vmm::Egress::Allow { named: SPECIAL_RANGES.into_iter().chain(METADATA_RANGES).collect() }
        }
    };
    let limit = |limit: Bandwidth| flames_vmm::Bandwidth {
        bytes_per_second: limit.bytes_per_second,
        burst_bytes: limit.burst_bytes,
    };
    NetworkPolicy {
        egress,
        private_network: asked
            .private_network
            .as_ref()
            .map(|name| private_network(&assignment.project, name)),
        upload: asked.upload.map(limit),
        download: asked.download.map(limit),
    }
}

/// A private network's name on the host: of the project's own, whatever another project calls its networks. 32 hex digits.
fn private_network(project: &ProjectName, name: &PrivateNetworkName) -> String {
    let mut digest = blake3::Hasher::new();
    // Neither name holds a zero byte.
    digest.update(project.as_str().as_bytes()).update(&[0]).update(name.as_str().as_bytes());
    digest.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use flames_model::AddressBlock;

    use super::*;

    #[test]
    fn a_guest_behind_a_tap_is_told_both_families_its_resolvers_and_its_mac() {
        let block =
            AddressBlock { ipv4: "10.9.0.0/24".parse().unwrap(), ipv6: Some("fd12::/64".parse().unwrap()) };
        let config = Connection::Tap(block.address(3).unwrap()).guest_config().unwrap();
        let addresses: Vec<_> =
            config.addresses.iter().map(|given| format!("{}/{}", given.address, given.prefix)).collect();
        assert_eq!(addresses, ["10.9.0.14/30", "fd12::e/126"]);
        let gateways: Vec<_> = config.gateways.iter().map(ToString::to_string).collect();
        assert_eq!(gateways, ["10.9.0.13", "fd12::d"]);
        assert_eq!(config.dns, config.gateways);
        assert_eq!(config.mac.unwrap().to_string(), "02:f1:0a:09:00:0e");
        assert_eq!(Connection::None.guest_config(), None);
    }

    #[test]
    fn private_networks_of_two_projects_are_two() {
        let name = PrivateNetworkName::new("team").unwrap();
        let of = |project: &str| private_network(&ProjectName::new(project).unwrap(), &name);
        assert_eq!(of("one"), of("one"));
        assert_ne!(of("one"), of("two"));
        assert_eq!(of("one").len(), 32);
    }
}
