//! What a machine may reach.

use std::net::IpAddr;

use flames_error::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::address::{IpRange, metadata_ranges, special_ranges};
use crate::names::PrivateNetwork;

/// What one machine may reach, and who may reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// What it may open connections to.
    pub egress: Egress,
    /// The private network that it shares with other machines of this host. None: no other machine reaches it, nor it them.
    pub private_network: Option<PrivateNetwork>,
}

impl Policy {
    /// Nothing is reachable.
    pub fn deny() -> Self {
        Self { egress: Egress::Deny, private_network: None }
    }

    /// The public internet is reachable.
    pub fn allow() -> Self {
        Self { egress: Egress::Allow { named: Vec::new() }, private_network: None }
    }
}

/// What a machine may open connections to, beyond its private network and the ports of the host that the configuration lists.
///
/// Special ranges ([`crate::SPECIAL`]: private, shared, link-local and the like) are unreachable unless *named*: a range names
/// what it covers of a special range when it lies wholly within that special range. So `10.1.0.0/16` opens itself, and
/// `0.0.0.0/0` opens no private address. Addresses of metadata services ([`crate::METADATA`]) are special ranges of their own:
/// `169.254.0.0/16` does not name them. Other machines of the host are reachable through a private network only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Egress {
    /// Nothing. Every name is refused.
    Deny,
    /// Everything public, and the special ranges named. Every name resolves.
    Allow {
        /// Ranges that lie within special ones.
        named: Vec<IpRange>,
    },
    /// Only what is listed.
    AllowList {
        /// Ranges.
        ranges: Vec<IpRange>,
        /// Names. They alone resolve, and their addresses are reachable for as long as their answers live.
        domains: Vec<DomainPattern>,
        /// The ports of TCP and UDP that are reachable at the above. Empty: every port and every protocol.
        ports: Vec<PortRange>,
    },
}

/// The most ranges, the most names, and the most ranges of ports of one policy.
pub const MAX_ENTRIES: usize = 256;

impl Policy {
    /// `InvalidInput`, with the field, when a list is too long or a range in [`Egress::Allow`] names nothing special.
    pub fn validate(&self) -> Result<()> {
        const OPERATION: &str = "network.policy";
        let short = |field: &'static str, length: usize| {
            if length <= MAX_ENTRIES {
                Ok(())
            } else {
                Err(Error::invalid(
                    OPERATION,
                    field,
                    format!("A policy lists at most {MAX_ENTRIES} of these."),
                ))
            }
        };
        match &self.egress {
            Egress::Deny => Ok(()),
            Egress::Allow { named } => {
                short("egress.allow.named", named.len())?;
                match named.iter().find(|range| !names_something_special(**range)) {
                    None => Ok(()),
                    Some(range) => Err(Error::invalid(
                        OPERATION,
                        "egress.allow.named",
                        format!("{range} does not lie within a private, link-local or other special range."),
                    )),
                }
            }
            Egress::AllowList { ranges, domains, ports } => {
                short("egress.allow_list.ranges", ranges.len())?;
                short("egress.allow_list.domains", domains.len())?;
                short("egress.allow_list.ports", ports.len())
            }
        }
    }

    /// The ranges that the policy lists.
    pub(crate) fn ranges(&self) -> &[IpRange] {
        match &self.egress {
            Egress::Deny => &[],
            Egress::Allow { named } => named,
            Egress::AllowList { ranges, .. } => ranges,
        }
    }

    /// Whether a machine under this policy may resolve the name (lower case, without the last dot).
    pub(crate) fn resolves(&self, name: &str) -> bool {
        match &self.egress {
            Egress::Deny => false,
            Egress::Allow { .. } => true,
            Egress::AllowList { domains, .. } => domains.iter().any(|pattern| pattern.matches(name)),
        }
    }

    /// Whether an answer may hold the address: it is public, or the policy names it.
    pub(crate) fn may_resolve_to(&self, address: IpAddr) -> bool {
        match tier(address) {
            Tier::Public => true,
            Tier::Special => self
                .ranges()
                .iter()
                .any(|range| range.contains(address) && is_within(*range, special_ranges())),
            Tier::Metadata => self
                .ranges()
                .iter()
                .any(|range| range.contains(address) && is_within(*range, metadata_ranges())),
        }
    }

    /// What the patterns of names are, as one number that is the same for the same set of them.
    pub(crate) fn domains_digest(&self) -> u64 {
        let mut patterns: Vec<String> = match &self.egress {
            Egress::AllowList { domains, .. } => {
                domains.iter().map(|pattern| pattern.clone().into()).collect()
            }
            _ => Vec::new(),
        };
        patterns.sort_unstable();
        patterns.dedup();
        crate::names::fnv1a(patterns.join(" ").as_bytes())
    }
}

enum Tier {
    Public,
    Special,
    Metadata,
}

fn tier(address: IpAddr) -> Tier {
    if metadata_ranges().any(|range| range.contains(address)) {
        Tier::Metadata
    } else if special_ranges().any(|range| range.contains(address)) {
        Tier::Special
    } else {
        Tier::Public
    }
}

pub(crate) fn is_within(range: IpRange, mut wider: impl Iterator<Item = IpRange>) -> bool {
    wider.any(|wider| wider.covers(range))
}

fn names_something_special(range: IpRange) -> bool {
    is_within(range, special_ranges()) || is_within(range, metadata_ranges())
}

/// A name (`api.example.com`), or every name below one (`*.example.com`, which `example.com` itself is not).
///
/// Labels are of letters, digits, `-` and `_`, compared without regard to case; international names in their ASCII form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainPattern {
    below: bool,
    name: String,
}

impl DomainPattern {
    /// `InvalidInput` when the text is neither.
    pub fn new(text: &str) -> Result<Self> {
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if is_host_name(&name) {
            Ok(Self { below, name })
        } else {
            Err(Error::invalid(
                "network.domain",
                "domains",
                "A domain is a name such as `api.example.com`, or `*.example.com` for every name below one.",
            ))
        }
    }

    /// Whether it stands for the name (lower case, without the last dot).
    pub fn matches(&self, name: &str) -> bool {
        if self.below {
            name.strip_suffix(&self.name).is_some_and(|front| front.len() > 1 && front.ends_with('.'))
        } else {
            name == self.name
        }
    }
}

/// RFC 1035, section 2.3.4 (lengths) and 2.3.1 (letters), with the `_` that service names have (RFC 8552).
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    name.len() <= 253 && name.split('.').all(label)
}

impl TryFrom<String> for DomainPattern {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        Self::new(&text)
    }
}

impl From<DomainPattern> for String {
    fn from(pattern: DomainPattern) -> Self {
        format!("{}{}", if pattern.below { "*." } else { "" }, pattern.name)
    }
}

/// Ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(u16, u16)", into = "(u16, u16)")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// `InvalidInput` when the first is 0 or behind the last.
    pub fn new(first: u16, last: u16) -> Result<Self> {
        if first > 0 && first <= last {
            Ok(Self { first, last })
        } else {
            Err(Error::invalid("network.ports", "ports", "Ports are 1 to 65535, the lower one first."))
        }
    }

    /// One port. `InvalidInput` for 0.
    pub fn single(port: u16) -> Result<Self> {
        Self::new(port, port)
    }

    /// Both ends.
    pub fn ends(self) -> (u16, u16) {
        (self.first, self.last)
    }
}

impl TryFrom<(u16, u16)> for PortRange {
    type Error = Error;
    fn try_from((first, last): (u16, u16)) -> Result<Self> {
        Self::new(first, last)
    }
}

impl From<PortRange> for (u16, u16) {
    fn from(range: PortRange) -> Self {
        range.ends()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ranges: &[&str], domains: &[&str]) -> Policy {
        Policy {
            egress: Egress::AllowList {
                ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
                domains: domains.iter().map(|domain| DomainPattern::new(domain).unwrap()).collect(),
                ports: Vec::new(),
            },
            private_network: None,
        }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_pattern_matches_its_names_and_no_look_alike() {
        let exact = DomainPattern::new("API.example.com.").unwrap();
        assert!(exact.matches("api.example.com"));
        assert!(!exact.matches("x.api.example.com") && !exact.matches("example.com"));
        let below = DomainPattern::new("*.example.com").unwrap();
        assert!(below.matches("a.example.com") && below.matches("a.b.example.com"));
        for other in ["example.com", ".example.com", "badexample.com", "example.com.evil.org", ""] {
            assert!(!below.matches(other), "{other}");
        }
    }

    #[test]
    fn texts_that_are_no_domains_are_refused() {
        let long = format!("{}.com", "a".repeat(64));
        for text in ["", "*", "*.", "a..b", ".a", "a b", "a*.com", "*.*.com", "ä.example", "a/b", &long] {
            assert!(DomainPattern::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_special_address_must_be_named_and_a_wide_range_names_none() {
        let wide = list(&["0.0.0.0/0", "8.0.0.0/6", "::/0"], &[]);
        let named = list(&["10.1.0.0/16", "fd12::/16", "169.254.0.0/16"], &[]);
        for private in ["10.1.2.3", "fd12::1", "169.254.7.7"] {
            assert!(!wide.may_resolve_to(address(private)), "{private}");
            assert!(named.may_resolve_to(address(private)), "{private}");
        }
        assert!(!named.may_resolve_to(address("169.254.169.254")), "link-local does not name metadata");
        assert!(list(&["169.254.169.254"], &[]).may_resolve_to(address("169.254.169.254")));
        assert!(!list(&["fc00::/7"], &[]).may_resolve_to(address("fd00:ec2::254")));
        for inside in ["::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "::1", "0.0.0.0", "224.0.0.1"] {
            assert!(!wide.may_resolve_to(address(inside)), "{inside}");
        }
        assert!(wide.may_resolve_to(address("198.51.100.1")) && wide.may_resolve_to(address("2600::1")));
    }

    #[test]
    fn what_allow_names_must_be_special() {
        let allow = |range: &str| Policy {
            egress: Egress::Allow { named: vec![range.parse().unwrap()] },
            private_network: None,
        };
        assert!(allow("192.168.7.0/24").validate().is_ok());
        assert!(allow("169.254.169.254").validate().is_ok());
        let wrong = allow("0.0.0.0/0").validate().unwrap_err();
        assert_eq!(wrong.field(), Some("egress.allow.named"));
        let many = vec!["1.1.1.1"; MAX_ENTRIES + 1];
        assert_eq!(list(&many, &[]).validate().unwrap_err().field(), Some("egress.allow_list.ranges"));
    }

    #[test]
    fn a_policy_reads_back_as_it_was_written() {
        let policy = list(&["10.1.0.0/16"], &["*.example.com"]);
        let text = serde_json::to_string(&policy).unwrap();
        assert!(text.contains("\"10.1.0.0/16\"") && text.contains("\"*.example.com\""), "{text}");
        assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), policy);
        assert!(serde_json::from_str::<Policy>(r#"{"egress":"deny","private_network":null,"x":1}"#).is_err());
    }

    #[test]
    fn the_digest_of_names_is_of_the_set_of_them() {
        let digest = |domains: &[&str]| list(&[], domains).domains_digest();
        assert_eq!(digest(&["a.com", "*.b.com"]), digest(&["*.b.com", "a.com", "a.com"]));
        assert_ne!(digest(&["a.com"]), digest(&["*.a.com"]));
    }
}
