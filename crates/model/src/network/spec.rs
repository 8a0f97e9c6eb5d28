//! What a user asks of a VM's network.

use std::fmt::{self, Display};

use flames_error::{Error, Result};
use serde::{Deserialize, Serialize};

use super::IpRange;
use crate::{Controller, INVALID_FIELD, PrivateNetworkName};

/// What a VM may reach, and who may reach it. As it stands: nothing and nobody, its published ports apart, which are reached through its
/// agent. See ADR 0011 for why that is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// What it may open connections to.
    #[serde(default)]
    pub egress: Egress,
    /// The private network of its project that it shares with other VMs of its host. None: no other VM reaches it, nor it them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_network: Option<PrivateNetworkName>,
    /// What it may send. None: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Bandwidth>,
    /// What it may receive. None: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<Bandwidth>,
}

/// What a VM may open connections to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Nothing. No name resolves.
    #[default]
    Deny,
    /// The public internet, and the special ranges named (see [`IpRange::is_special`]); no other private, link-local or metadata address.
    Allow {
        /// Ranges that lie within special ones.
        #[serde(default)]
        named: Vec<IpRange>,
    },
    /// Only what is listed. Special addresses are reached only by a range that lies within one of the special ones.
    AllowList {
        /// Ranges.
        #[serde(default)]
        ranges: Vec<IpRange>,
        /// Names. They alone resolve.
        #[serde(default)]
        domains: Vec<DomainPattern>,
        /// Ports of TCP and UDP at the above. Empty: every port and every protocol.
        #[serde(default)]
        ports: Vec<PortRange>,
    },
    /// Whatever its host reaches, private and metadata addresses among it: for guests that one trusts, and for hosts whose driver knows
    /// nothing between this and [`Egress::Deny`].
    Unrestricted,
}

impl Egress {
    /// Its name as users see it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Allow { .. } => "allow",
            Self::AllowList { .. } => "allow_list",
            Self::Unrestricted => "unrestricted",
        }
    }
}

/// A limit of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Bytes in a second, on average: [`Bandwidth::MIN_RATE`] to [`Bandwidth::MAX_RATE`].
    pub bytes_per_second: u64,
    /// Bytes that may go at once after a pause: [`Bandwidth::MIN_BURST`] to [`Bandwidth::MAX_BURST`].
    pub burst_bytes: u64,
}

impl Bandwidth {
    /// The lowest rate: below it not even a name resolves in time.
    pub const MIN_RATE: u64 = 10_000;
    /// The highest rate: 100 Gbit/s.
    pub const MAX_RATE: u64 = 12_500_000_000;
    /// The smallest burst: the largest packet that a guest hands over, with its headers (Firecracker's `MAX_BUFFER_SIZE`).
    pub const MIN_BURST: u64 = 65_562;
    /// The largest burst: 1 GiB.
    pub const MAX_BURST: u64 = 1 << 30;

    /// This rate, with what goes in a tenth of a second as its burst.
    pub fn of(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            burst_bytes: (bytes_per_second / 10).clamp(Self::MIN_BURST, Self::MAX_BURST),
        }
    }
}

/// A name (`api.example.com`), or every name below one (`*.example.com`, which `example.com` itself is not), in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainPattern(String);

impl DomainPattern {
    /// What is allowed, as a sentence for users.
    pub const RULE: &'static str = "A domain is a name such as `api.example.com`, or `*.example.com` for every name below one; international ones in their ASCII form.";

    /// `InvalidInput` when the text is neither. RFC 1035, sections 2.3.1 and 2.3.4, with the `_` of service names (RFC 8552).
    pub fn new(text: &str) -> Result<Self> {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let name = text.strip_prefix("*.").unwrap_or(&text);
        let is_letter = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(is_letter);
        if name.len() <= 253 && name.split('.').all(is_label) {
            Ok(Self(text))
        } else {
            Err(Error::invalid("model.domain", "domains", Self::RULE))
        }
    }

    /// The pattern's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for DomainPattern {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        Self::new(&text)
    }
}

impl From<DomainPattern> for String {
    fn from(pattern: DomainPattern) -> Self {
        pattern.0
    }
}

/// Ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRange {
    /// The lower end, at least 1.
    pub first: u16,
    /// The upper end.
    pub last: u16,
}

/// How a host's driver connects guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverNetwork {
    /// Not at all: nothing is reachable from a guest.
    None,
    /// By a network in the monitor's own process. It can be cut off, or reach what the host reaches; nothing in between.
    #[default]
    User,
    /// By a tap behind a firewall of the guest's own, with addresses of the host's block: every policy is kept.
    Tap,
}

fn refuse(field: &str, sentence: impl Into<String>) -> Error {
    Error::invalid(INVALID_FIELD, field, sentence)
}

impl NetworkSpec {
    /// The most ranges, the most names and the most ports of one policy.
    pub const MAX_ENTRIES: usize = 128;

    /// Whether it is what a VM has that asks for nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the network is allowed. `InvalidInput` names the field of the VM's spec and the allowed range.
    pub fn validate(&self) -> Result<()> {
        let bounded = |field: &str, length: usize| {
            if length <= Self::MAX_ENTRIES {
                Ok(())
            } else {
                Err(refuse(field, format!("A policy lists at most {} of these.", Self::MAX_ENTRIES)))
            }
        };
        match &self.egress {
            Egress::Deny | Egress::Unrestricted => {}
            Egress::Allow { named } => {
                bounded("spec.network.egress.ranges", named.len())?;
                if let Some(range) = named.iter().find(|range| !range.is_special()) {
                    return Err(refuse(
                        "spec.network.egress.ranges",
                        format!(
                            "`allow` reaches the public internet anyway; {range} does not lie within a private, link-local, metadata or \
                             other special range."
                        ),
                    ));
                }
            }
            Egress::AllowList { ranges, domains, ports } => {
                bounded("spec.network.egress.ranges", ranges.len())?;
                bounded("spec.network.egress.domains", domains.len())?;
                bounded("spec.network.egress.ports", ports.len())?;
                if ranges.is_empty() && domains.is_empty() {
                    return Err(refuse(
                        "spec.network.egress",
                        "An allow list names ranges or domains; to reach nothing, use `deny`.",
                    ));
                }
                if ports.iter().any(|ports| ports.first == 0 || ports.first > ports.last) {
                    return Err(refuse(
                        "spec.network.egress.ports",
                        "Ports are 1 to 65535, the lower one first.",
                    ));
                }
            }
        }
        for (field, limit) in [("upload", self.upload), ("download", self.download)] {
            let Some(Bandwidth { bytes_per_second, burst_bytes }) = limit else { continue };
            if !(Bandwidth::MIN_RATE..=Bandwidth::MAX_RATE).contains(&bytes_per_second) {
                return Err(refuse(
                    &format!("spec.network.{field}.bytes_per_second"),
                    "A limit is 10000 to 12500000000 bytes in a second.",
                ));
            }
            if !(Bandwidth::MIN_BURST..=Bandwidth::MAX_BURST).contains(&burst_bytes) {
                return Err(refuse(
                    &format!("spec.network.{field}.burst_bytes"),
                    "A burst is 65562 bytes, one largest packet, to 1073741824 bytes.",
                ));
            }
        }
        Ok(())
    }

    /// Why a controller's driver cannot connect a VM so, as a part of a sentence; none: it can. `host_port`: the VM asks for a port of its
    /// host by number.
    pub fn misfit(&self, host_port: bool, controller: &Controller) -> Option<String> {
        let driver = &controller.driver.name;
        let network = match controller.driver.network {
            DriverNetwork::Tap if controller.address_block.is_none() => DriverNetwork::None,
            network => network,
        };
        let known = match (&self.egress, network) {
            (_, DriverNetwork::Tap) | (Egress::Deny, _) | (Egress::Unrestricted, DriverNetwork::User) => None,
            (_, DriverNetwork::User) => Some("`deny` and `unrestricted`"),
            (_, DriverNetwork::None) => Some("`deny`"),
        };
        if let Some(known) = known {
            let asked = self.egress.as_str();
            return Some(format!("its driver {driver} keeps to no egress policy `{asked}`, only to {known}"));
        }
        if network != DriverNetwork::Tap && self.private_network.is_some() {
            return Some(format!("its driver {driver} has no private networks"));
        }
        if network != DriverNetwork::Tap && (self.upload.is_some() || self.download.is_some()) {
            return Some(format!("its driver {driver} limits no bandwidth"));
        }
        if network != DriverNetwork::User && host_port {
            return Some(format!(
                "its driver {driver} gives no port of the host away: leave the host's port out, and use the port's URL or the VM's address"
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(spec: &NetworkSpec) -> String {
        spec.validate().unwrap_err().field().unwrap().to_owned()
    }

    fn with(egress: Egress) -> NetworkSpec {
        NetworkSpec { egress, ..NetworkSpec::default() }
    }

    #[test]
    fn the_default_reaches_nothing_and_is_allowed() {
        let spec = NetworkSpec::default();
        spec.validate().unwrap();
        assert_eq!((spec.egress.as_str(), spec.is_default()), ("deny", true));
        assert_eq!(serde_json::from_str::<NetworkSpec>("{}").unwrap(), spec);
    }

    #[test]
    fn what_a_policy_cannot_hold_is_refused_with_its_field() {
        let range = |text: &str| text.parse::<IpRange>().unwrap();
        with(Egress::Allow { named: vec![range("10.1.0.0/16")] }).validate().unwrap();
        assert_eq!(
            refused(&with(Egress::Allow { named: vec![range("8.8.8.8")] })),
            "spec.network.egress.ranges"
        );
        let list = |ranges: Vec<IpRange>, ports: Vec<PortRange>| {
            with(Egress::AllowList { ranges, domains: Vec::new(), ports })
        };
        assert_eq!(refused(&list(Vec::new(), Vec::new())), "spec.network.egress");
        let many = vec![range("1.1.1.1"); NetworkSpec::MAX_ENTRIES + 1];
        assert_eq!(refused(&list(many, Vec::new())), "spec.network.egress.ranges");
        for (first, last) in [(0, 1), (443, 80)] {
            let ports = vec![PortRange { first, last }];
            assert_eq!(refused(&list(vec![range("1.1.1.1")], ports)), "spec.network.egress.ports");
        }
        let limited = |upload| NetworkSpec { upload: Some(upload), ..NetworkSpec::default() };
        limited(Bandwidth::of(Bandwidth::MIN_RATE)).validate().unwrap();
        limited(Bandwidth::of(Bandwidth::MAX_RATE)).validate().unwrap();
        assert_eq!(refused(&limited(Bandwidth::of(9_999))), "spec.network.upload.bytes_per_second");
        let small = Bandwidth { bytes_per_second: 1_000_000, burst_bytes: 1_500 };
        assert_eq!(refused(&limited(small)), "spec.network.upload.burst_bytes");
    }

    #[test]
    fn a_domain_is_a_name_or_all_below_one() {
        assert_eq!(DomainPattern::new("API.Example.com.").unwrap().as_str(), "api.example.com");
        DomainPattern::new("*.example.com").unwrap();
        for text in
            ["", "*", "*.", "a..b", ".a", "a b", "a*.com", "*.*.com", "ä.example", "a/b", &"a".repeat(64)]
        {
            assert!(DomainPattern::new(text).is_err(), "{text}");
        }
    }
}
