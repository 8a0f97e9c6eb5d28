//! Ranges of addresses, the host's block, and who has which address of it.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use flames_error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::names::Slot;

/// A range of addresses: an address and how many of its first bits count. The others are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpRange {
    address: IpAddr,
    prefix: u8,
}

impl IpRange {
    /// `InvalidInput` when the prefix is longer than an address, or bits behind it are set.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self> {
        let range = Self { address, prefix };
        if prefix <= width(address) && range.first() == address {
            Ok(range)
        } else {
            Err(Error::invalid(
                "network.range",
                "range",
                "A range is an address and a prefix length whose other bits are zero, as in `192.0.2.0/24`.",
            ))
        }
    }

    /// The range of one address.
    pub fn single(address: IpAddr) -> Self {
        Self { address, prefix: width(address) }
    }

    /// Its lowest address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many first bits its addresses share.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether it is of IPv4.
    pub fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether the address is in it. An address of the other family never is.
    pub fn contains(self, address: IpAddr) -> bool {
        self.is_ipv4() == address.is_ipv4() && masked(address, self.prefix) == self.address
    }

    /// Whether every address of `other` is in it.
    pub fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }

    fn first(self) -> IpAddr {
        masked(self.address, self.prefix)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

impl Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for IpRange {
    type Err = Error;

    /// Reads `address/prefix`, or an address for its range of one. `InvalidInput` else.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid("network.range", "range", "A range is written as `192.0.2.0/24`.");
        match text.split_once('/') {
            None => Ok(Self::single(text.parse().map_err(|_| wrong())?)),
            Some((address, prefix)) => {
                Self::new(address.parse().map_err(|_| wrong())?, prefix.parse().map_err(|_| wrong())?)
            }
        }
    }
}

impl TryFrom<String> for IpRange {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<IpRange> for String {
    fn from(range: IpRange) -> Self {
        range.to_string()
    }
}

/// Addresses that tell where a machine runs, and hand out its credentials, on most clouds: reachable only where a policy names
/// a range within them (AWS, GCP, Azure and OpenStack answer at the first, AWS at the second).
pub const METADATA: [(IpAddr, u8); 2] = [
    (IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 32),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)), 128),
];

/// Ranges that are not the public internet: reachable only where a policy names a range that lies within one of them.
///
/// From the IANA special-purpose address registries (RFC 6890): what is private, shared, link-local, loopback, multicast,
/// reserved, or carries an IPv4 address inside of an IPv6 one and so could lead around the rules of IPv4. The ranges for
/// documentation are left out: nobody routes them.
pub const SPECIAL: [(IpAddr, u8); 22] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
    // Unspecified, loopback, IPv4-compatible and IPv4-mapped.
    v6([0, 0, 0, 0, 0], 80),
    // NAT64 (RFC 6052, RFC 8215).
    v6([0x64, 0xff9b, 0, 0, 0], 96),
    v6([0x64, 0xff9b, 1, 0, 0], 48),
    // Discard-only (RFC 6666).
    v6([0x100, 0, 0, 0, 0], 64),
    // Teredo (RFC 4380), ORCHID (RFC 7343), 6to4 (RFC 3056).
    v6([0x2001, 0, 0, 0, 0], 32),
    v6([0x2001, 0x20, 0, 0, 0], 28),
    v6([0x2002, 0, 0, 0, 0], 16),
    // Unique local, link-local, site-local, multicast.
    v6([0xfc00, 0, 0, 0, 0], 7),
    v6([0xfe80, 0, 0, 0, 0], 10),
    v6([0xfec0, 0, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0, 0], 8),
];

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> (IpAddr, u8) {
    (IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix)
}

const fn v6(words: [u16; 5], prefix: u8) -> (IpAddr, u8) {
    let [a, b, c, d, e] = words;
    (IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, 0, 0, 0)), prefix)
}

/// [`METADATA`] as ranges.
pub fn metadata_ranges() -> impl Iterator<Item = IpRange> {
    METADATA.into_iter().map(|(address, prefix)| IpRange { address, prefix })
}

/// [`SPECIAL`] as ranges.
pub fn special_ranges() -> impl Iterator<Item = IpRange> {
    SPECIAL.into_iter().map(|(address, prefix)| IpRange { address, prefix })
}

/// How many addresses of a block a slot takes: a /30 of IPv4, a /126 of IPv6.
///
/// A point-to-point /31 would do for Linux guests; in a /30 no machine ever has an address that ends in 0 or 255, which some
/// stacks and many people take for a network or a broadcast.
const ADDRESSES_PER_SLOT: u32 = 4;

/// Who has which address: a pure function of the blocks and the slot, so that no crash can give one address to two machines
/// while no slot is given to two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The machine's address.
    pub guest: Ipv4Addr,
    /// Its gateway, at which its DNS forwarder listens.
    pub gateway: Ipv4Addr,
    /// The prefix length of the network that the two make.
    pub prefix: u8,
    /// The same of IPv6, where the host has a block.
    pub ipv6: Option<Ipv6Addresses>,
}

/// A machine's addresses of IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Addresses {
    /// The machine's address.
    pub guest: Ipv6Addr,
    /// Its gateway, at which its DNS forwarder listens too.
    pub gateway: Ipv6Addr,
    /// The prefix length of the network that the two make.
    pub prefix: u8,
}

/// A host's blocks of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// IPv4: /8 to /30.
    pub ipv4: IpRange,
    /// IPv6: /16 to /126, or none: then machines have no IPv6 at all.
    pub ipv6: Option<IpRange>,
}

impl Blocks {
    /// `InvalidInput` when a block is of the wrong family or size, or overlaps with what hosts and machines say to each other
    /// over link-local addresses.
    pub fn validate(self) -> Result<()> {
        let wrong = |field, sentence| Err(Error::invalid("network.blocks", field, sentence));
        if !self.ipv4.is_ipv4() || !(8..=30).contains(&self.ipv4.prefix) {
            return wrong("blocks.ipv4", "A host's block of IPv4 is a /8 to a /30.");
        }
        if overlaps(self.ipv4, (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16)) {
            return wrong("blocks.ipv4", "A host's block cannot be of link-local addresses.");
        }
        if let Some(block) = self.ipv6 {
            if block.is_ipv4() || !(16..=126).contains(&block.prefix) {
                return wrong("blocks.ipv6", "A host's block of IPv6 is a /16 to a /126.");
            }
            if overlaps(block, v6([0xfe80, 0, 0, 0, 0], 10)) {
                return wrong("blocks.ipv6", "A host's block cannot be of link-local addresses.");
            }
        }
        Ok(())
    }

    /// How many slots the blocks hold.
    pub fn slots(self) -> u32 {
        let of = |range: IpRange| {
            let bits = u32::from(width(range.address) - range.prefix);
            1_u32.checked_shl(bits.saturating_sub(2)).unwrap_or(u32::MAX)
        };
        of(self.ipv4).min(self.ipv6.map_or(u32::MAX, of)).min(Slot::MAX + 1)
    }

    /// The addresses of a slot. `Exhausted` when it lies behind the blocks' end.
    pub fn addresses(self, slot: Slot) -> Result<Addresses> {
        if slot.number() >= self.slots() {
            return Err(Error::new(ErrorKind::Exhausted, "network.addresses", "the address block is used up")
                .with_context("slot", slot.number())
                .with_context("slots", self.slots())
                .with_user_message(
                    "This host's address block has no address left. Give it a larger block, or start the VM elsewhere.",
                ));
        }
        let offset = slot.number() * ADDRESSES_PER_SLOT;
        let IpAddr::V4(base) = self.ipv4.address else {
            return Err(Error::internal("network.addresses", "the block is not of IPv4"));
        };
        let ipv6 = match self.ipv6.map(IpRange::address) {
            Some(IpAddr::V6(base)) => Some(Ipv6Addresses {
                gateway: Ipv6Addr::from_bits(base.to_bits() + u128::from(offset) + 1),
                guest: Ipv6Addr::from_bits(base.to_bits() + u128::from(offset) + 2),
                prefix: 126,
            }),
            _ => None,
        };
        Ok(Addresses {
            gateway: Ipv4Addr::from_bits(base.to_bits() + offset + 1),
            guest: Ipv4Addr::from_bits(base.to_bits() + offset + 2),
            prefix: 30,
            ipv6,
        })
    }

    /// Whether the address is of one of the blocks.
    pub fn contain(self, address: IpAddr) -> bool {
        self.ipv4.contains(address) || self.ipv6.is_some_and(|block| block.contains(address))
    }
}

fn overlaps(one: IpRange, (address, prefix): (IpAddr, u8)) -> bool {
    let other = IpRange { address, prefix };
    one.covers(other) || other.covers(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> IpRange {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_knows_what_is_in_it() {
        assert!(range("10.0.0.0/8").contains("10.255.0.1".parse().unwrap()));
        assert!(!range("10.0.0.0/8").contains("11.0.0.0".parse().unwrap()));
        assert!(range("0.0.0.0/0").contains("255.255.255.255".parse().unwrap()));
        assert!(!range("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(range("fc00::/7").covers(range("fd00:ec2::254")));
        assert!(!range("fd00:ec2::254").covers(range("fc00::/7")));
        for wrong in ["10.0.0.1/8", "10.0.0.0/33", "::/129", "10.0.0.0/", "/8", "ten", "10.0.0.0/8/8"] {
            assert!(wrong.parse::<IpRange>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_special_range_is_written_as_a_range() {
        for found in special_ranges().chain(metadata_ranges()) {
            assert_eq!(IpRange::new(found.address, found.prefix).unwrap(), found, "{found}");
        }
    }

    #[test]
    fn no_two_slots_share_an_address_and_none_leaves_its_block() {
        let blocks = Blocks { ipv4: range("10.9.8.0/24"), ipv6: Some(range("fd00:9::/64")) };
        blocks.validate().unwrap();
        assert_eq!(blocks.slots(), 64);
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..64 {
            let found = blocks.addresses(Slot::new(number).unwrap()).unwrap();
            let ipv6 = found.ipv6.unwrap();
            for address in
                [IpAddr::V4(found.guest), found.gateway.into(), ipv6.guest.into(), ipv6.gateway.into()]
            {
                assert!(blocks.contain(address) && seen.insert(address), "{address}");
            }
            assert!(![0, 255].contains(&found.guest.octets()[3]));
        }
        let full = blocks.addresses(Slot::new(64).unwrap()).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::Exhausted);
    }

    #[test]
    fn blocks_that_cannot_work_are_refused() {
        for (ipv4, ipv6) in [
            ("10.0.0.0/31", None),
            ("fd00::/64", None),
            ("169.254.0.0/16", None),
            ("10.0.0.0/24", Some("10.1.0.0/24")),
            ("10.0.0.0/24", Some("fd00::/127")),
            ("10.0.0.0/24", Some("fe80::/64")),
        ] {
            let blocks = Blocks { ipv4: range(ipv4), ipv6: ipv6.map(range) };
            assert_eq!(blocks.validate().unwrap_err().kind(), ErrorKind::InvalidInput, "{blocks:?}");
        }
    }
}
