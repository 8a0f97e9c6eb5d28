//! What packets may go where: the rules of a machine's namespace ([`guest`]) and the host's ([`host`]).
//!
//! A machine's own policy is judged in its namespace, where the rules are few, nobody else's packets pass, and everything ends
//! with the namespace. The host's rules hold what only the host can: who is who ([`host`] pins each interface to its address
//! once more), which machines share a private network, that no machine reaches the host, and masquerading.

pub(crate) mod guest;
pub(crate) mod host;

use serde_json::{Value, json};

use crate::address::IpRange;
use crate::nft::{is, meta, payload, set};
use crate::policy::PortRange;

/// A family's word in rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// The type of its addresses in sets.
    pub(crate) fn set_type(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    pub(crate) fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }

    pub(crate) fn source(self) -> Value {
        payload(self.word(), "saddr")
    }

    pub(crate) fn destination(self) -> Value {
        payload(self.word(), "daddr")
    }

    pub(crate) fn has(self, range: IpRange) -> bool {
        range.is_ipv4() == (self == Self::V4)
    }
}

pub(crate) fn range(range: IpRange) -> Value {
    json!({ "prefix": { "addr": range.address().to_string(), "len": range.prefix() } })
}

/// The ranges of the family as a set without a name; none when there is none. Ranges that others cover are left out: a set of
/// intervals takes no overlap.
pub(crate) fn ranges(family: Family, all: &[IpRange]) -> Option<Value> {
    let mut mine: Vec<IpRange> = all.iter().copied().filter(|range| family.has(*range)).collect();
    mine.sort_unstable_by_key(|range| (range.prefix(), range.address()));
    let mut kept: Vec<IpRange> = Vec::new();
    for range in mine {
        if !kept.iter().any(|wider| wider.covers(range)) {
            kept.push(range);
        }
    }
    // A range of everything is no interval that a set could hold beside others, and nothing is left beside it.
    (!kept.is_empty()).then(|| set(kept.into_iter().map(range)))
}

/// Whether a packet is of TCP or UDP and goes to one of the ports.
pub(crate) fn to_ports(ports: &[PortRange]) -> [Value; 2] {
    let mut sorted: Vec<(u16, u16)> = ports.iter().map(|range| range.ends()).collect();
    sorted.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    let ports = merged
        .into_iter()
        .map(|(first, last)| if first == last { json!(first) } else { json!({ "range": [first, last] }) });
    [is(meta("l4proto"), set([json!("tcp"), json!("udp")])), is(payload("th", "dport"), set(ports))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_others_cover_are_left_out() {
        let all: Vec<IpRange> = ["10.1.0.0/16", "10.0.0.0/8", "fd00::/8", "10.1.0.0/16"]
            .iter()
            .map(|r| r.parse().unwrap())
            .collect();
        let expected = json!({ "set": [{ "prefix": { "addr": "10.0.0.0", "len": 8 } }] });
        assert_eq!(ranges(Family::V4, &all), Some(expected));
        assert_eq!(ranges(Family::V6, &all[..2]), None);
    }

    #[test]
    fn ports_that_touch_become_one_range() {
        let of = |ends: &[(u16, u16)]| {
            let ports: Vec<_> =
                ends.iter().map(|(first, last)| PortRange::new(*first, *last).unwrap()).collect();
            to_ports(&ports)[1]["match"]["right"]["set"].clone()
        };
        assert_eq!(of(&[(443, 443), (80, 90), (85, 100), (101, 101)]), json!([{ "range": [80, 101] }, 443]));
        assert_eq!(of(&[(65_535, 65_535), (1, 65_535)]), json!([{ "range": [1, 65_535] }]));
    }
}
