//! A host's block of addresses, and who has which address of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flames_error::{Error, Result};
use serde::{Deserialize, Serialize};

use super::IpRange;

/// How many addresses a place takes: a /30 of IPv4, a /126 of IPv6, the second of which is the guest's and the first its gateway's.
const ADDRESSES_PER_SLOT: u32 = 4;

/// The most places of one block: what the names of a host's interfaces tell apart.
const MOST_SLOTS: u32 = 1 << 20;

/// A host's block of addresses, from which its guests have theirs. Nothing else on the host uses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressBlock {
    /// IPv4: /8 to /30.
    pub ipv4: IpRange,
    /// IPv6: /16 to /126; none: guests have no IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<IpRange>,
}

/// A guest's place in its host's block: a function of block and place alone, so that no crash can give one address to two guests while
/// no place is given to two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestAddress {
    /// The place.
    pub slot: u32,
    /// The guest's address.
    pub ipv4: Ipv4Addr,
    /// The guest's address of IPv6, where the block has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
}

impl AddressBlock {
    /// `InvalidInput`, with the field, for a block of the wrong family or size, or of link-local addresses.
    pub fn validate(&self) -> Result<()> {
        let wrong = |field, sentence| Err(Error::invalid("model.address_block", field, sentence));
        let link_local = |range: IpRange, other: (IpAddr, u8)| {
            IpRange::new(other.0, other.1).is_ok_and(|other| other.covers(range) || range.covers(other))
        };
        if !self.ipv4.address().is_ipv4() || !(8..=30).contains(&self.ipv4.prefix()) {
            return wrong(
                "address_block.ipv4",
                "A host's block of IPv4 is a /8 to a /30, as in `10.64.0.0/20`.",
            );
        }
        if link_local(self.ipv4, (Ipv4Addr::new(169, 254, 0, 0).into(), 16)) {
            return wrong("address_block.ipv4", "A host's block cannot be of link-local addresses.");
        }
        if let Some(block) = self.ipv6 {
            if block.address().is_ipv4() || !(16..=126).contains(&block.prefix()) {
                return wrong(
                    "address_block.ipv6",
                    "A host's block of IPv6 is a /16 to a /126, as in `fd12:3456:789a::/64`.",
                );
            }
            if link_local(block, (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10)) {
                return wrong("address_block.ipv6", "A host's block cannot be of link-local addresses.");
            }
        }
        Ok(())
    }

    /// How many places it has: a quarter of its addresses.
    pub fn slots(&self) -> u32 {
        let of = |range: IpRange| 1_u32.checked_shl(range.host_bits().saturating_sub(2)).unwrap_or(u32::MAX);
        of(self.ipv4).min(self.ipv6.map_or(u32::MAX, of)).min(MOST_SLOTS)
    }

    /// The addresses of a place; none behind the block's end.
    pub fn address(&self, slot: u32) -> Option<GuestAddress> {
        let IpAddr::V4(first) = self.ipv4.address() else { return None };
        if slot >= self.slots() {
            return None;
        }
        let offset = slot * ADDRESSES_PER_SLOT + 2;
        let ipv6 = match self.ipv6.map(IpRange::address) {
            Some(IpAddr::V6(first)) => Some(Ipv6Addr::from_bits(first.to_bits() + u128::from(offset))),
            _ => None,
        };
        Some(GuestAddress { slot, ipv4: Ipv4Addr::from_bits(first.to_bits() + offset), ipv6 })
    }
}

impl GuestAddress {
    /// The prefix length of the network of a guest and its gateway.
    pub const IPV4_PREFIX: u8 = 30;
    /// The same of IPv6.
    pub const IPV6_PREFIX: u8 = 126;

    /// The guest's gateway, at which its resolver listens.
    pub fn gateway_ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.ipv4.to_bits().saturating_sub(1))
    }

    /// The same of IPv6.
    pub fn gateway_ipv6(&self) -> Option<Ipv6Addr> {
        self.ipv6.map(|address| Ipv6Addr::from_bits(address.to_bits().saturating_sub(1)))
    }

    /// The guest's MAC address: locally administered, unicast (IEEE 802, section 8.2.2), and unique on its host since the address is.
    pub fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.ipv4.octets();
        [0x02, 0xf1, a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(ipv4: &str, ipv6: Option<&str>) -> AddressBlock {
        AddressBlock { ipv4: ipv4.parse().unwrap(), ipv6: ipv6.map(|block| block.parse().unwrap()) }
    }

    #[test]
    fn places_follow_each_other_and_end_with_the_block() {
        let block = block("10.9.0.0/28", Some("fd12::/64"));
        block.validate().unwrap();
        assert_eq!(block.slots(), 4);
        let addresses: Vec<String> =
            (0..6).filter_map(|slot| block.address(slot)).map(|address| address.ipv4.to_string()).collect();
        assert_eq!(addresses, ["10.9.0.2", "10.9.0.6", "10.9.0.10", "10.9.0.14"]);
        let second = block.address(1).unwrap();
        assert_eq!(second.gateway_ipv4().to_string(), "10.9.0.5");
        assert_eq!(
            (second.ipv6.unwrap().to_string(), second.gateway_ipv6().unwrap().to_string()),
            ("fd12::6".into(), "fd12::5".into())
        );
        assert_eq!(second.mac(), [0x02, 0xf1, 10, 9, 0, 6]);
    }

    #[test]
    fn the_smaller_family_and_the_names_of_interfaces_bound_the_places() {
        assert_eq!(block("10.0.0.0/16", Some("fd12::/120")).slots(), 64);
        assert_eq!(block("10.0.0.0/30", None).slots(), 1);
        assert_eq!(block("10.0.0.0/8", Some("fd12::/64")).slots(), MOST_SLOTS);
    }

    #[test]
    fn a_block_that_cannot_be_is_refused_with_its_field() {
        for (ipv4, ipv6, field) in [
            ("10.0.0.0/31", None, "address_block.ipv4"),
            ("0.0.0.0/0", None, "address_block.ipv4"),
            ("fd12::/64", None, "address_block.ipv4"),
            ("169.254.128.0/20", None, "address_block.ipv4"),
            ("10.0.0.0/20", Some("10.1.0.0/20"), "address_block.ipv6"),
            ("10.0.0.0/20", Some("fd12::/127"), "address_block.ipv6"),
            ("10.0.0.0/20", Some("fe80::/64"), "address_block.ipv6"),
        ] {
            assert_eq!(block(ipv4, ipv6).validate().unwrap_err().field(), Some(field), "{ipv4} {ipv6:?}");
        }
    }
}
