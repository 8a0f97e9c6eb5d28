//! What rules look at, and the values that it is compared with.

use std::net::{Ipv4Addr, Ipv6Addr};

use flames_error::Result;
use serde_json::Value;

use super::message::Attributes;
use super::{text_of, unknown};

/// Where a field is loaded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A key of `enum nft_meta_keys`.
    Meta(u32),
    /// A key of `enum nft_ct_keys`.
    Connection(u32),
    /// A header (`enum nft_payload_bases`) and the place in it.
    Header(u32, u32),
}

/// What must be known of a packet before a field of it means anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Ethernet,
    Arp,
    Ipv4,
    Ipv6,
    /// The protocol above IP, by its number (IANA's protocol numbers).
    Transport(u8),
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    InterfaceName,
    Ipv4,
    Ipv6,
    Mac,
    NetworkProtocol,
    TransportProtocol,
    IcmpType,
    Icmp6Type,
    Port,
    Byte,
    ConnectionState,
    ConnectionDirection,
    Mark,
}

/// Something that a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) source: Source,
    pub(super) kind: Kind,
    pub(super) needs: &'static [Need],
}

const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const ICMP: Need = Need::Transport(1);
const TCP: Need = Need::Transport(6);
const UDP: Need = Need::Transport(17);
const ICMP6: Need = Need::Transport(58);

impl Field {
    pub(super) fn of(words: &Value) -> Result<Self> {
        let field = |source, kind, needs| Ok(Self { source, kind, needs });
        if let Some(meta) = words.get("meta") {
            return match text_of(meta, "key")? {
                "iifname" => field(Source::Meta(6), Kind::InterfaceName, &[]),
                "oifname" => field(Source::Meta(7), Kind::InterfaceName, &[]),
                "nfproto" => field(Source::Meta(15), Kind::NetworkProtocol, &[]),
                "l4proto" => field(Source::Meta(16), Kind::TransportProtocol, &[]),
                _ => Err(unknown("a field", words)),
            };
        }
        if let Some(connection) = words.get("ct") {
            return match text_of(connection, "key")? {
                "state" => field(Source::Connection(0), Kind::ConnectionState, &[]),
                "direction" => field(Source::Connection(1), Kind::ConnectionDirection, &[]),
                "mark" => field(Source::Connection(3), Kind::Mark, &[]),
                _ => Err(unknown("a field", words)),
            };
        }
        let Some(payload) = words.get("payload") else { return Err(unknown("a field", words)) };
        let network = |at| Source::Header(NETWORK, at);
        let transport = |at| Source::Header(TRANSPORT, at);
        match (text_of(payload, "protocol")?, text_of(payload, "field")?) {
            // The link's header.
            ("ether", "saddr") => field(Source::Header(0, 6), Kind::Mac, &[Need::Ethernet]),
            // RFC 826, for Ethernet and IPv4.
            ("arp", "saddr ether") => field(network(8), Kind::Mac, &[Need::Arp]),
            ("arp", "saddr ip") => field(network(14), Kind::Ipv4, &[Need::Arp]),
            // RFC 791, RFC 8200.
            ("ip", "saddr") => field(network(12), Kind::Ipv4, &[Need::Ipv4]),
            ("ip", "daddr") => field(network(16), Kind::Ipv4, &[Need::Ipv4]),
            ("ip6", "saddr") => field(network(8), Kind::Ipv6, &[Need::Ipv6]),
            ("ip6", "daddr") => field(network(24), Kind::Ipv6, &[Need::Ipv6]),
            ("ip6", "hoplimit") => field(network(7), Kind::Byte, &[Need::Ipv6]),
            // RFC 792, RFC 4443, RFC 768, RFC 9293.
            ("icmp", "type") => field(transport(0), Kind::IcmpType, &[Need::Ipv4, ICMP]),
            ("icmpv6", "type") => field(transport(0), Kind::Icmp6Type, &[Need::Ipv6, ICMP6]),
            ("udp", "sport") => field(transport(0), Kind::Port, &[UDP]),
            ("udp", "dport") => field(transport(2), Kind::Port, &[UDP]),
            ("tcp", "sport") => field(transport(0), Kind::Port, &[TCP]),
            ("tcp", "dport") => field(transport(2), Kind::Port, &[TCP]),
            ("th", "dport") => field(transport(2), Kind::Port, &[]),
            _ => Err(unknown("a field", words)),
        }
    }

    /// The expression that loads it into a register.
    pub(super) fn load(&self, into: u32) -> (&'static str, Attributes) {
        let mut data = Attributes::default();
        match self.source {
            Source::Meta(key) => {
                data.number(1, into);
                data.number(2, key);
                ("meta", data)
            }
            Source::Connection(key) => {
                data.number(1, into);
                data.number(2, key);
                ("ct", data)
            }
            Source::Header(base, offset) => {
                data.number(1, into);
                data.number(2, base);
                data.number(3, offset);
                data.number(4, u32::try_from(self.kind.length()).unwrap_or_default());
                ("payload", data)
            }
        }
    }
}

/// States of a connection as bits (`NF_CT_STATE_BIT`, linux/netfilter/nf_conntrack_common.h).
fn state_bit(name: &str) -> Option<u32> {
    Some(match name {
        "invalid" => 1,
        "established" => 2,
        "related" => 4,
        "new" => 8,
        _ => return None,
    })
}

impl Kind {
    /// In bytes.
    pub(super) fn length(self) -> usize {
        match self {
            Self::InterfaceName | Self::Ipv6 => 16,
            Self::Mac => 6,
            Self::Ipv4 | Self::ConnectionState | Self::Mark => 4,
            Self::Port => 2,
            Self::NetworkProtocol
            | Self::TransportProtocol
            | Self::IcmpType
            | Self::Icmp6Type
            | Self::Byte
            | Self::ConnectionDirection => 1,
        }
    }

    /// The number by which `nft` knows the type of a set's keys (`enum datatypes` of its datatype.h); the kernel only keeps it.
    pub(super) fn type_number(self) -> u32 {
        match self {
            Self::NetworkProtocol => 2,
            Self::Byte => 4,
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Mac => 9,
            Self::TransportProtocol => 12,
            Self::Port => 13,
            Self::IcmpType => 14,
            Self::Mark => 19,
            Self::ConnectionState => 26,
            Self::ConnectionDirection => 27,
            Self::Icmp6Type => 29,
            Self::InterfaceName => 41,
        }
    }

    /// See [`super::command::SetShape::byte_order`].
    pub(super) fn byte_order(self) -> u32 {
        match self {
            Self::InterfaceName | Self::Mark | Self::ConnectionState => 1,
            _ => 2,
        }
    }

    /// The kind that a set of this type holds.
    pub(super) fn of_type(name: &str) -> Option<Self> {
        Some(match name {
            "ifname" => Self::InterfaceName,
            "ipv4_addr" => Self::Ipv4,
            "ipv6_addr" => Self::Ipv6,
            _ => return None,
        })
    }

    /// The kind of a key of the sets that this crate has: an address, or else an interface's name.
    pub(super) fn of_key(words: &Value) -> Self {
        let text = words.as_str().unwrap_or_default();
        if text.parse::<Ipv4Addr>().is_ok() {
            Self::Ipv4
        } else if text.parse::<Ipv6Addr>().is_ok() {
            Self::Ipv6
        } else {
            Self::InterfaceName
        }
    }

    /// A value as it stands in a register.
    pub(super) fn value(self, words: &Value) -> Result<Vec<u8>> {
        self.encoded(words).ok_or_else(|| unknown("a value", words))
    }

    fn encoded(self, words: &Value) -> Option<Vec<u8>> {
        let text = words.as_str();
        let number = words.as_u64();
        let byte = |known: &[(&str, u8)]| {
            let named = known.iter().find(|(name, _)| Some(*name) == text).map(|(_, number)| *number);
            named.or_else(|| u8::try_from(number?).ok()).map(|byte| vec![byte])
        };
        match self {
            Self::InterfaceName => interface(text?),
            Self::Ipv4 => text?.parse::<Ipv4Addr>().ok().map(|address| address.octets().to_vec()),
            Self::Ipv6 => text?.parse::<Ipv6Addr>().ok().map(|address| address.octets().to_vec()),
            Self::Mac => {
                let bytes = text?.split(':').map(|part| u8::from_str_radix(part, 16).ok());
                bytes.collect::<Option<Vec<u8>>>().filter(|bytes| bytes.len() == 6)
            }
            // `NFPROTO_IPV4`, `NFPROTO_IPV6` (linux/netfilter.h).
            Self::NetworkProtocol => byte(&[("ipv4", 2), ("ipv6", 10)]),
            Self::TransportProtocol => byte(&[("tcp", 6), ("udp", 17)]),
            Self::IcmpType => byte(&[
                ("echo-reply", 0),
                ("destination-unreachable", 3),
                ("echo-request", 8),
                ("time-exceeded", 11),
            ]),
            Self::Icmp6Type => byte(&[
                ("destination-unreachable", 1),
                ("packet-too-big", 2),
                ("time-exceeded", 3),
                ("echo-request", 128),
                ("echo-reply", 129),
                ("nd-neighbor-solicit", 135),
                ("nd-neighbor-advert", 136),
            ]),
            Self::Byte => byte(&[]),
            Self::ConnectionDirection => byte(&[("original", 0), ("reply", 1)]),
            Self::Port => u16::try_from(number?).ok().map(|port| port.to_be_bytes().to_vec()),
            Self::Mark => u32::try_from(number?).ok().map(|mark| mark.to_ne_bytes().to_vec()),
            Self::ConnectionState => {
                let names = words.as_array()?;
                let bits = names.iter().map(|name| state_bit(name.as_str()?)).collect::<Option<Vec<_>>>()?;
                Some(bits.iter().fold(0, |all, bit| all | bit).to_ne_bytes().to_vec())
            }
        }
    }
}

/// A name to its end; with `*` behind it, only what it begins with is compared.
fn interface(name: &str) -> Option<Vec<u8>> {
    if let Some(beginning) = name.strip_suffix('*') {
        return (1..16).contains(&beginning.len()).then(|| beginning.as_bytes().to_vec());
    }
    let mut bytes = name.as_bytes().to_vec();
    (1..16).contains(&bytes.len()).then(|| {
        bytes.resize(16, 0);
        bytes
    })
}
