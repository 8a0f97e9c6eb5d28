//! The network of microVMs: for each incarnation a network namespace with a tap for its monitor, addresses, a firewall, and a
//! DNS forwarder. Needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN), `nft` 1.0.6 or later, and a kernel with veth, tun and nf_tables.
//!
//! ```text
//!  host                                     │ namespace flames-<cluster>-<incarnation>
//!                                           │
//!   eth0 ── masquerade ── fl1a2b3c-5 ═══════╪═════ uplink ── policy ── tap0 ──── Firecracker ──── guest
//!          169.254.77.1, fe80::1            │   fe80::2       10.0.0.21, DNS :53          10.0.0.22
//! ```
//!
//! # Why it is routed
//! * The jailer joins a namespace, so the tap must be in one, and a pair of veths must lead out of it. Between the two the
//!   namespace *routes*: there is no bridge, so no machine ever sees a frame of another, and no table of addresses that frames
//!   could poison.
//! * Each machine and its gateway are a /30 of the host's block (a /126 of IPv6), a function of the slot alone. The namespace
//!   owns the gateway's address. The host routes the machine's one address by the gateway, over the veth; the namespace routes
//!   everything else by [`HOST_ADDRESS`], which every veth's host end has. Both next hops are real addresses of the other end:
//!   nothing answers ARP for somebody else.
//! * A policy is judged in the machine's namespace, where only its own packets pass, and ends with it. The host's own table has a
//!   few elements for each machine. See [`Policy`] and [`Egress`].
//!
//! # What outlives what
//! Nothing but the DNS forwarder lives in this process. Packets flow while it is away; [`Networks::adopt`] starts the forwarder
//! again over what is there.
//!
//! Every call is idempotent, and right after a crash of the earlier one at any point: an interface on the host bears its
//! owner's name, and whether its making came to its end, or its other end is in its owner's namespace; [`Networks::create`] makes anew
//! what did not come to its end, and [`Networks::remove`] finds what there is of it. [`Networks::scan`] tells what stands on the host in the name
//! of this cluster, so that what belongs to no incarnation any more can be removed.
//!
//! # Bandwidth
//! Limits of bandwidth are Firecracker's, on the interface inside of the monitor (`rx_rate_limiter`, `tx_rate_limiter`): it
//! stops reading the tap, so nothing is dropped, while a policer here would drop what the guest has paid for. The figures are
//! [`BandwidthLimit`]'s.
//!
//! # What is not promised
//! A host whose own firewall drops forwarded packets by default (Docker's does) must accept those from and to `fl*` interfaces:
//! an `accept` in one table does not overrule a `drop` in another. Private networks span one host. Connections to a machine over
//! IPv6 from the host itself are not admitted.

mod address;
mod bandwidth;
mod config;
mod dns;
mod kernel;
mod names;
mod networks;
mod nf_tables;
mod nft;
mod plan;
mod policy;
mod rules;
mod stand;

use std::net::{Ipv4Addr, Ipv6Addr};

pub use address::{
    Addresses, Blocks, IpRange, Ipv6Addresses, METADATA, SPECIAL, metadata_ranges, special_ranges,
};
pub use bandwidth::{BandwidthLimit, TokenBucket};
pub use config::{AfterStep, DnsConfig, NetworkConfig};
pub use names::{ClusterName, Incarnation, PrivateNetwork, Slot, TAP};
pub use networks::{Found, Networks};
pub use plan::{Attachment, NetworkRequest};
pub use policy::{DomainPattern, Egress, MAX_ENTRIES, Policy, PortRange};

/// The host as a machine sees it, and as the host's own connections to machines come from it: on the host's end of every veth.
/// Of the link-local range (RFC 3927), and none that a cloud is known to use.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 1);

/// The host's end of every veth in IPv6.
pub(crate) const HOST_LINK_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The namespace's end of every veth in IPv6.
pub(crate) const UPLINK_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// The gateway's link-local address, on the tap.
pub(crate) const GATEWAY_LINK_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
