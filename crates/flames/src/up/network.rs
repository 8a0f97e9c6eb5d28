//! Where guests of this host have their addresses from, and who resolves names for them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use flames_model::{AddressBlock, IpRange};
use sha2::{Digest, Sha256};

use crate::config::{Block, Driver, UpConfig};
use crate::exit::Failure;

/// Blocks that are derived lie in the upper half of 10.0.0.0/8, which few networks use, and give 1,024 guests an address each.
const DERIVED_FROM: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// The prefix length of a derived block.
const DERIVED_PREFIX: u8 = 20;
/// How many of them there are.
const DERIVED_BLOCKS: u32 = 1 << 11;
/// The port of DNS.
const DNS: u16 = 53;
/// How many of the host's resolvers are asked, as by its own programs (resolv.conf(5): MAXNS).
const RESOLVERS: usize = 3;

/// The block of the host with this data folder; none: guests have no addresses of their own.
///
/// Two data folders of one host have two blocks, derived from their paths, unless they are told which.
pub(crate) fn address_block(data: &Path, arguments: &UpConfig) -> Result<Option<AddressBlock>, Failure> {
    let data = data.canonicalize().unwrap_or_else(|_| data.to_owned());
    let digest = Sha256::digest(data.as_os_str().as_encoded_bytes());
    let ipv4 = match (&arguments.address_block, arguments.driver) {
        (Block::Given(range), _) => *range,
        (Block::Derived, Driver::Firecracker) => derived_ipv4([digest[6], digest[7]])?,
        (Block::Derived, Driver::Qemu | Driver::Simulated) | (Block::None, _) => return Ok(None),
    };
    let ipv6 = match &arguments.address_block_ipv6 {
        Block::Given(range) => Some(*range),
        Block::Derived => Some(derived_ipv6([digest[8], digest[9], digest[10], digest[11], digest[12]])?),
        Block::None => None,
    };
    let block = AddressBlock { ipv4, ipv6 };
    block.validate()?;
    Ok(Some(block))
}

fn derived_ipv4(digest: [u8; 2]) -> Result<IpRange, Failure> {
    let number = u32::from(u16::from_be_bytes(digest)) % DERIVED_BLOCKS;
    let first = DERIVED_FROM.to_bits() + (number << (32 - DERIVED_PREFIX));
    Ok(IpRange::new(Ipv4Addr::from_bits(first).into(), DERIVED_PREFIX)?)
}

/// A /64 of unique local addresses, with these bytes as its global id (RFC 4193, section 3.1).
fn derived_ipv6([a, b, c, d, e]: [u8; 5]) -> Result<IpRange, Failure> {
    let word = |high, low| u16::from_be_bytes([high, low]);
    let first = Ipv6Addr::new(word(0xfd, a), word(b, c), word(d, e), 0, 0, 0, 0, 0);
    Ok(IpRange::new(first.into(), 64)?)
}

/// The resolvers that are asked for guests: those that were given, or the host's own.
#[cfg_attr(not(feature = "firecracker"), allow(dead_code, reason = "only firewalled guests have a resolver"))]
pub(crate) fn resolvers(arguments: &UpConfig) -> Vec<SocketAddr> {
    if !arguments.resolvers.is_empty() {
        return arguments.resolvers.clone();
    }
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let found = in_resolv_conf(&text);
    if found.is_empty() {
        tracing::warn!("/etc/resolv.conf names no resolver, so no name resolves in guests: set `resolvers`");
    }
    found
}

/// The resolvers of a resolv.conf(5). One with a scope is reachable by an interface of the host only, and is left out.
fn in_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let is_resolver = words.next() == Some("nameserver");
        words.next().filter(|_| is_resolver)?.parse::<IpAddr>().ok()
    };
    text.lines().filter_map(address).take(RESOLVERS).map(|address| SocketAddr::new(address, DNS)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_the_host_has_them() {
        let text = "# a comment\nsearch lan\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\n nameserver 2001:db8::53\noptions edns0\n";
        let found: Vec<String> = in_resolv_conf(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53:53", "[2001:db8::53]:53"]);
    }

    #[test]
    fn derived_blocks_are_blocks_and_lie_where_they_should() {
        for digest in [[0, 0], [7, 255], [255, 255], [18, 52]] {
            let ipv4 = derived_ipv4(digest).unwrap();
            assert!("10.128.0.0/9".parse::<IpRange>().unwrap().covers(ipv4), "{ipv4}");
            let ipv6 = derived_ipv6([digest[0], digest[1], 3, 4, 5]).unwrap();
            let block = AddressBlock { ipv4, ipv6: Some(ipv6) };
            block.validate().unwrap();
            assert_eq!(block.slots(), 1_024);
        }
        assert_ne!(derived_ipv4([0, 1]).unwrap(), derived_ipv4([0, 2]).unwrap());
    }

    #[cfg(feature = "firecracker")]
    #[test]
    fn model_and_driver_call_the_same_addresses_special_and_give_a_place_the_same_address() {
        use flames_firecracker_network::{Blocks, Slot, metadata_ranges, special_ranges};
        let text = |ranges: &[(IpAddr, u8)]| -> Vec<String> {
            ranges.iter().map(|(address, prefix)| format!("{address}/{prefix}")).collect()
        };
        let special: Vec<String> = special_ranges().map(|range| range.to_string()).collect();
        assert_eq!(text(&flames_model::SPECIAL_RANGES), special);
        let metadata: Vec<String> = metadata_ranges().map(|range| range.to_string()).collect();
        assert_eq!(text(&flames_model::METADATA_RANGES), metadata);
        let block =
            AddressBlock { ipv4: "10.9.0.0/24".parse().unwrap(), ipv6: Some("fd12::/64".parse().unwrap()) };
        let blocks =
            Blocks { ipv4: "10.9.0.0/24".parse().unwrap(), ipv6: Some("fd12::/64".parse().unwrap()) };
        assert_eq!(blocks.slots(), block.slots());
        for number in [0, 1, 33, 63] {
            let (ours, theirs) =
                (block.address(number).unwrap(), blocks.addresses(Slot::new(number).unwrap()).unwrap());
            assert_eq!((ours.ipv4, ours.gateway_ipv4()), (theirs.guest, theirs.gateway));
            let ipv6 = theirs.ipv6.unwrap();
            assert_eq!((ours.ipv6, ours.gateway_ipv6()), (Some(ipv6.guest), Some(ipv6.gateway)));
            assert_eq!(
                (theirs.prefix, ipv6.prefix),
                (flames_model::GuestAddress::IPV4_PREFIX, flames_model::GuestAddress::IPV6_PREFIX)
            );
        }
    }
}
