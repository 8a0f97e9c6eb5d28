//! How a VM is connected: the request, and what is shown of it.

use flames_error::{Error, Result};
use flames_model::{DomainPattern, IpRange};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Reason, codes};

/// What a VM may reach, and who may reach it. Absent: nothing, and nobody; its published ports are reached all the same.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"egress": {"mode": "allow_list", "domains": ["pypi.org", "*.pythonhosted.org"], "ports": [{"first": 443, "last": 443}]}}))]
pub struct Network {
    /// What it may open connections to.
    #[serde(default)]
    pub egress: Egress,
    /// The private network of its project: VMs of one host that name the same one reach each other. Absent: no other VM reaches it, nor it
    /// them.
    #[serde(default)]
    #[schema(
        pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        min_length = 1,
        max_length = 63,
        example = "team-a"
    )]
    pub private_network: Option<String>,
    /// What it may send. Absent: no limit.
    #[serde(default)]
    pub upload: Option<Bandwidth>,
    /// What it may receive. Absent: no limit.
    #[serde(default)]
    pub download: Option<Bandwidth>,
}

/// What a VM may open connections to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// How it is judged.
    #[serde(default)]
    pub mode: EgressMode,
    /// For `allow`: ranges within private, link-local, metadata and other special ones that are reached too. For `allow_list`: what is
    /// reached; of special addresses only what a range covers that lies within one of the special ranges. Else none.
    #[serde(default)]
    #[schema(max_items = 128, example = json!(["10.20.0.0/16"]))]
    pub ranges: Vec<String>,
    /// For `allow_list`: names that resolve and are reached, as `api.example.com`, or `*.example.com` for every name below one.
    #[serde(default)]
    #[schema(max_items = 128, example = json!(["*.example.com"]))]
    pub domains: Vec<String>,
    /// For `allow_list`: ports of TCP and UDP at the above. Absent: every port and every protocol.
    #[serde(default)]
    #[schema(max_items = 128)]
    pub ports: Vec<PortRange>,
}

/// How a VM's connections are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EgressMode {
    /// Nothing is reached, and no name resolves.
    #[default]
    Deny,
    /// The public internet is reached; private, link-local and metadata addresses only where a range names them.
    Allow,
    /// Only what is listed is reached.
    AllowList,
    /// Whatever the host reaches, private and metadata addresses among it.
    Unrestricted,
}

/// Ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// The lower end.
    #[schema(minimum = 1, maximum = 65535, example = 443)]
    pub first: u16,
    /// The upper end.
    #[schema(minimum = 1, maximum = 65535, example = 443)]
    pub last: u16,
}

/// A limit of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// Bytes in a second, on average.
    #[schema(minimum = 10000, maximum = 12500000000u64, example = 1250000)]
    pub bytes_per_second: u64,
    /// Bytes that may go at once after a pause. Absent: what goes in a tenth of a second, at least 65562.
    #[serde(default)]
    #[schema(minimum = 65562, maximum = 1073741824)]
    pub burst_bytes: Option<u64>,
}

/// Which of the networks that were wanted of a VM is in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct NetworkStatus {
    /// Counts the changes of `spec.network`.
    pub revision: u64,
    /// The one that its machine is under; null while it has no machine.
    pub applied_revision: Option<u64>,
    /// Whether its machine is under what `spec.network` says.
    pub in_force: bool,
    /// Why it is not, when that needs saying.
    pub reason: Option<Reason>,
}

impl NetworkStatus {
    pub(crate) fn new(vm: &flames_model::Vm, incarnation: Option<&flames_model::Incarnation>) -> Self {
        let trouble =
            incarnation.and_then(|incarnation| incarnation.network.trouble_with(vm.network_revision));
        Self {
            revision: vm.network_revision,
            applied_revision: incarnation.and_then(flames_model::Incarnation::network_applied),
            in_force: vm.is_network_in_force(incarnation),
            reason: trouble.map(Into::into),
        }
    }
}

/// A guest's own address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Address {
    /// Of IPv4.
    #[schema(example = "10.201.16.6")]
    pub ipv4: String,
    /// Of IPv6, where its host has a block of some.
    pub ipv6: Option<String>,
}

fn refuse(field: &str, sentence: &str) -> Error {
    Error::invalid("wire.network", field, sentence).with_code(codes::INVALID_FIELD)
}

impl Egress {
    fn into_model(self) -> Result<flames_model::Egress> {
        let Self { mode, ranges, domains, ports } = self;
        let read_ranges = |ranges: &[String]| {
            let field = "spec.network.egress.ranges";
            let read = ranges.iter().map(|text| text.parse::<IpRange>());
            read.collect::<Result<Vec<_>>>().map_err(|_| refuse(field, IpRange::RULE))
        };
        let lists = mode == EgressMode::AllowList;
        if !lists && (!domains.is_empty() || !ports.is_empty()) {
            let field =
                if domains.is_empty() { "spec.network.egress.ports" } else { "spec.network.egress.domains" };
            return Err(refuse(field, "Domains and ports are listed for the mode `allow_list` only."));
        }
        if !matches!(mode, EgressMode::Allow | EgressMode::AllowList) && !ranges.is_empty() {
            return Err(refuse(
                "spec.network.egress.ranges",
                "Ranges are listed for the modes `allow` and `allow_list` only.",
            ));
        }
        Ok(match mode {
            EgressMode::Deny => flames_model::Egress::Deny,
            EgressMode::Unrestricted => flames_model::Egress::Unrestricted,
            EgressMode::Allow => flames_model::Egress::Allow { named: read_ranges(&ranges)? },
            EgressMode::AllowList => flames_model::Egress::AllowList {
                ranges: read_ranges(&ranges)?,
                domains: domains
                    .iter()
                    .map(|text| DomainPattern::new(text))
                    .collect::<Result<_>>()
                    .map_err(|_| refuse("spec.network.egress.domains", DomainPattern::RULE))?,
                ports: ports
                    .iter()
                    .map(|ports| flames_model::PortRange { first: ports.first, last: ports.last })
                    .collect(),
            },
        })
    }
}

impl Network {
    /// In the model's terms. `InvalidInput` names the field. What is allowed is checked by the model's own validation.
    pub fn into_model(self) -> Result<flames_model::NetworkSpec> {
        let limit = |limit: Bandwidth| {
            let own = flames_model::Bandwidth::of(limit.bytes_per_second);
            flames_model::Bandwidth { burst_bytes: limit.burst_bytes.unwrap_or(own.burst_bytes), ..own }
        };
        Ok(flames_model::NetworkSpec {
            egress: self.egress.into_model()?,
            private_network: self
                .private_network
                .map(flames_model::PrivateNetworkName::new)
                .transpose()
                .map_err(|error| error.with_code(codes::INVALID_FIELD))?,
            upload: self.upload.map(limit),
            download: self.download.map(limit),
        })
    }
}

impl From<&flames_model::Egress> for Egress {
    fn from(egress: &flames_model::Egress) -> Self {
        let text = |ranges: &[IpRange]| ranges.iter().map(ToString::to_string).collect();
        match egress {
            flames_model::Egress::Deny => Self::default(),
            flames_model::Egress::Unrestricted => Self { mode: EgressMode::Unrestricted, ..Self::default() },
            flames_model::Egress::Allow { named } => {
                Self { mode: EgressMode::Allow, ranges: text(named), ..Self::default() }
            }
            flames_model::Egress::AllowList { ranges, domains, ports } => Self {
                mode: EgressMode::AllowList,
                ranges: text(ranges),
                domains: domains.iter().map(ToString::to_string).collect(),
                ports: ports.iter().map(|ports| PortRange { first: ports.first, last: ports.last }).collect(),
            },
        }
    }
}

impl From<&flames_model::NetworkSpec> for Network {
    fn from(network: &flames_model::NetworkSpec) -> Self {
        let limit = |limit: flames_model::Bandwidth| Bandwidth {
            bytes_per_second: limit.bytes_per_second,
            burst_bytes: Some(limit.burst_bytes),
        };
        Self {
            egress: (&network.egress).into(),
            private_network: network.private_network.as_ref().map(ToString::to_string),
            upload: network.upload.map(limit),
            download: network.download.map(limit),
        }
    }
}

impl From<&flames_model::GuestAddress> for Address {
    fn from(address: &flames_model::GuestAddress) -> Self {
        Self { ipv4: address.ipv4.to_string(), ipv6: address.ipv6.map(|address| address.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(json: &str) -> Result<flames_model::NetworkSpec> {
        serde_json::from_str::<Network>(json).unwrap().into_model()
    }

    #[test]
    fn nothing_said_is_deny_and_what_is_shown_reads_back_as_it_was_asked() {
        assert_eq!(model("{}").unwrap(), flames_model::NetworkSpec::default());
        let asked = model(
            r#"{"egress":{"mode":"allow_list","ranges":["192.0.2.0/24","2001:db8::1"],"domains":["*.Example.com"],
               "ports":[{"first":80,"last":90}]},"private_network":"team","upload":{"bytes_per_second":1000000}}"#,
        )
        .unwrap();
        let shown = Network::from(&asked);
        assert_eq!(shown.egress.domains, ["*.example.com"]);
        assert_eq!(shown.upload.unwrap().burst_bytes, Some(100_000));
        assert_eq!(shown.into_model().unwrap(), asked);
    }

    #[test]
    fn a_list_that_its_mode_does_not_take_is_refused_and_so_is_what_cannot_be_read() {
        for (json, field) in [
            (r#"{"egress":{"ranges":["10.0.0.0/8"]}}"#, "spec.network.egress.ranges"),
            (r#"{"egress":{"mode":"unrestricted","ranges":["10.0.0.0/8"]}}"#, "spec.network.egress.ranges"),
            (r#"{"egress":{"mode":"allow","domains":["a.com"]}}"#, "spec.network.egress.domains"),
            (r#"{"egress":{"mode":"deny","ports":[{"first":1,"last":2}]}}"#, "spec.network.egress.ports"),
            (r#"{"egress":{"mode":"allow","ranges":["10.0.0.1/8"]}}"#, "spec.network.egress.ranges"),
            (r#"{"egress":{"mode":"allow_list","domains":["a b"]}}"#, "spec.network.egress.domains"),
            (r#"{"private_network":"Team A"}"#, "spec.network.private_network"),
        ] {
            let error = model(json).unwrap_err();
            assert_eq!((error.field(), error.code()), (Some(field), Some(codes::INVALID_FIELD)), "{json}");
        }
    }
}
