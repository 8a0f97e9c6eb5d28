//! Ranges of addresses, and which of them are not the public internet.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use flames_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A range of addresses: an address and how many of its first bits count. The others are zero. Written `192.0.2.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpRange {
    address: IpAddr,
    prefix: u8,
}

/// How many bits an address has.
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

impl IpRange {
    /// What is allowed, as a sentence for users.
    pub const RULE: &'static str = "A range is an address and a prefix length whose other bits are zero, as in `192.0.2.0/24`, or one address.";

    /// `InvalidInput` when the prefix is longer than an address, or bits behind it are set.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self> {
        if prefix <= width(address) && masked(address, prefix) == address {
            Ok(Self { address, prefix })
        } else {
            Err(Error::invalid("model.range", "range", Self::RULE))
        }
    }

    /// Its lowest address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many first bits its addresses share.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// How many bits of its addresses differ.
    pub(super) fn host_bits(self) -> u32 {
        u32::from(width(self.address) - self.prefix)
    }

    /// Whether the address is in it. An address of the other family never is.
    pub fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && masked(address, self.prefix) == self.address
    }

    /// Whether every address of `other` is in it.
    pub fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }

    /// Whether it lies wholly within one of [`SPECIAL_RANGES`] or [`METADATA_RANGES`].
    pub fn is_special(self) -> bool {
        SPECIAL_RANGES
            .into_iter()
            .chain(METADATA_RANGES)
            .any(|(address, prefix)| Self { address, prefix }.covers(self))
    }
}

impl Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for IpRange {
    type Err = Error;

    /// Reads `address/prefix`, or an address for its range of one. `InvalidInput` otherwise.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |_| Error::invalid("model.range", "range", Self::RULE);
        match text.split_once('/') {
            None => text.parse().map_err(wrong).map(|address| Self { address, prefix: width(address) }),
            Some((address, prefix)) => {
                let prefix =
                    prefix.parse().map_err(|_| Error::invalid("model.range", "range", Self::RULE))?;
                Self::new(address.parse().map_err(wrong)?, prefix)
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

/// Addresses that tell where a machine runs, and hand out its credentials, on most clouds (AWS, GCP, Azure and OpenStack answer at the
/// first, AWS at the second). The drivers' table of the same (`flames-firecracker-network`) is held equal to this by a test.
pub const METADATA_RANGES: [(IpAddr, u8); 2] =
    [v4([169, 254, 169, 254], 32), (IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)), 128)];

/// Ranges that are not the public internet: private, shared, link-local, loopback, multicast, reserved, or with an IPv4 address inside of
/// an IPv6 one (the IANA special-purpose address registries, RFC 6890). Those for documentation are left out: nobody routes them.
pub const SPECIAL_RANGES: [(IpAddr, u8); 22] = [
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
    // Unspecified, loopback, IPv4-compatible and IPv4-mapped.
    v6([0, 0, 0], 80),
    // NAT64 (RFC 6052, RFC 8215).
    v6([0x64, 0xff9b, 0], 96),
    v6([0x64, 0xff9b, 1], 48),
    // Discard-only (RFC 6666).
    v6([0x100, 0, 0], 64),
    // Teredo (RFC 4380), ORCHID (RFC 7343), 6to4 (RFC 3056).
    v6([0x2001, 0, 0], 32),
    v6([0x2001, 0x20, 0], 28),
    v6([0x2002, 0, 0], 16),
    // Unique local, link-local, site-local, multicast.
    v6([0xfc00, 0, 0], 7),
    v6([0xfe80, 0, 0], 10),
    v6([0xfec0, 0, 0], 10),
    v6([0xff00, 0, 0], 8),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> (IpAddr, u8) {
    (IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix)
}

const fn v6([a, b, c]: [u16; 3], prefix: u8) -> (IpAddr, u8) {
    (IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)), prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_it_is_written_and_what_is_none_is_refused() {
        for text in ["192.0.2.0/24", "0.0.0.0/0", "2001:db8::/32", "10.0.0.1/32"] {
            let range: IpRange = text.parse().unwrap();
            assert_eq!(range.to_string(), text);
            assert_eq!(serde_json::to_string(&range).unwrap(), format!("{text:?}"));
        }
        assert_eq!("192.0.2.7".parse::<IpRange>().unwrap().to_string(), "192.0.2.7/32");
        for text in ["", "192.0.2.1/24", "192.0.2.0/33", "192.0.2.0/", "x/8", "2001:db8::1/64", "10.0.0/8"] {
            assert_eq!(text.parse::<IpRange>().unwrap_err().user_message(), Some(IpRange::RULE), "{text}");
        }
    }

    #[test]
    fn what_lies_within_a_special_range_is_special_and_what_is_wider_is_not() {
        let special = |text: &str| text.parse::<IpRange>().unwrap().is_special();
        assert!(special("10.1.0.0/16") && special("169.254.169.254") && special("fd12::/16"));
        assert!(!special("0.0.0.0/0") && !special("8.8.8.8") && !special("::/0") && !special("8.0.0.0/6"));
    }
}
