//! The rules of one machine's namespace.
//!
//! The jailed Firecracker lives in that namespace too: what comes out of the namespace itself (the hook `output`) is held to the
//! answers of the DNS forwarder and a few messages of ICMP, so that a process that broke out of the guest gains no network.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::HOST_ADDRESS;
use crate::address::{IpRange, metadata_ranges, special_ranges};
use crate::names::{TAP, UPLINK, fnv1a};
use crate::nft::{Transaction, accept, ct, ct_state, drop_it, goto, is, is_not, meta, payload, reject, set};
use crate::plan::{Plan, mac_text};
use crate::policy::{Egress, Policy, PortRange, is_within};

use super::{Family, range, ranges, to_ports};

/// A reachable address, and for how long.
pub(crate) type Resolved = (IpAddr, Duration);

/// The set that addresses of resolved names are in. It is named after the policy's names: under other names it is another set,
/// and no address stays reachable by a name that is gone.
fn resolved_set(family: Family, policy: &Policy) -> String {
    format!("resolved{}_{:016x}", family.digit(), policy.domains_digest())
}

/// All rules of the machine's namespace. What was resolved under the same names stays. `replaced` is the policy before this one,
/// when it is known: its sets go.
pub(crate) fn ruleset(plan: &Plan, replaced: Option<&Policy>) -> Transaction {
    let mut rules = Rules { plan, table: plan.config.cluster.table(), all: Transaction::default() };
    rules.frames();
    rules.sets();
    rules.input();
    rules.output();
    rules.forward();
    rules.egress();
    rules.ingress();
    if let Some(replaced) =
        replaced.filter(|old| old.domains_digest() != plan.request.policy.domains_digest())
    {
        for family in Family::BOTH {
            let name = resolved_set(family, replaced);
            // Added first, so that it is there to be deleted.
            rules.resolved(&name, family);
            rules.all.delete("set", json!({ "family": "inet", "table": rules.table, "name": name }));
        }
    }
    rules.all
}

/// Makes addresses reachable for a time that begins anew, whatever time they had left.
pub(crate) fn resolve(plan: &Plan, resolved: &[Resolved]) -> Transaction {
    let mut all = Transaction::default();
    let table = plan.config.cluster.table();
    for (address, lifetime) in resolved {
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        let name = resolved_set(family, &plan.request.policy);
        let element = |elem: Value| json!({ "family": "inet", "table": table, "name": name, "elem": [elem] });
        let seconds = lifetime.as_secs().max(1);
        let timed = json!({ "elem": { "val": address.to_string(), "timeout": seconds } });
        // An element that is there keeps its old time (before Linux 6.12), so it is taken out first; and it must be there to be
        // taken out.
        all.add("element", element(timed.clone()));
        all.delete("element", element(json!(address.to_string())));
        all.add("element", element(timed));
    }
    all
}

struct Rules<'a> {
    plan: &'a Plan,
    table: String,
    all: Transaction,
}

impl Rules<'_> {
    fn chain(&mut self, family: &str, name: &str, hook: Option<Value>) {
        let mut chain = json!({ "family": family, "table": self.table, "name": name });
        let named = chain.clone();
        if let (Some(Value::Object(hook)), Some(object)) = (hook, chain.as_object_mut()) {
            object.extend(hook);
        }
        self.all.add("chain", chain);
        self.all.flush("chain", named);
    }

    fn rule(&mut self, chain: &str, expressions: impl IntoIterator<Item = Value>) {
        self.rule_of("inet", chain, expressions);
    }

    fn rule_of(&mut self, family: &str, chain: &str, expressions: impl IntoIterator<Item = Value>) {
        let expressions: Vec<Value> = expressions.into_iter().collect();
        self.all.add(
            "rule",
            json!({ "family": family, "table": self.table, "chain": chain, "expr": expressions }),
        );
    }

    /// The address of the guest, its gateway, and their block, where the machine has the family.
    fn addresses(&self, family: Family) -> Option<(IpAddr, IpAddr, IpRange)> {
        let addresses = &self.plan.addresses;
        match family {
            Family::V4 => Some((addresses.guest.into(), addresses.gateway.into(), self.plan.blocks().ipv4)),
            Family::V6 => {
                let mine = addresses.ipv6.as_ref()?;
                Some((mine.guest.into(), mine.gateway.into(), self.plan.blocks().ipv6?))
            }
        }
    }

    fn families(&self) -> Vec<(Family, IpAddr, IpAddr, IpRange)> {
        Family::BOTH
            .into_iter()
            .filter_map(|family| {
                let (guest, gateway, block) = self.addresses(family)?;
                Some((family, guest, gateway, block))
            })
            .collect()
    }

    /// Frames as they come out of the tap: from the machine's MAC and addresses, or nothing. Any other protocol than ARP and IP
    /// goes nowhere. Without IPv6 no frame of it passes.
    fn frames(&mut self) {
        self.all.add("table", json!({ "family": "netdev", "name": self.table }));
        // Before anything else that could look at a frame.
        let hook = json!({ "type": "filter", "hook": "ingress", "prio": -500, "policy": "drop", "dev": TAP });
        self.chain("netdev", "frames", Some(hook));
        let mac = mac_text(self.plan.request.mac);
        self.rule_of("netdev", "frames", [is_not(payload("ether", "saddr"), mac.clone()), drop_it()]);
        let guest = self.plan.addresses.guest.to_string();
        // 0.0.0.0: a probe whether an address is in use (RFC 5227).
        self.rule_of(
            "netdev",
            "frames",
            [
                is(payload("arp", "saddr ether"), mac),
                is(payload("arp", "saddr ip"), set([json!("0.0.0.0"), json!(guest)])),
                accept(),
            ],
        );
        for (family, guest, ..) in self.families() {
            self.rule_of("netdev", "frames", [is(family.source(), guest.to_string()), accept()]);
        }
        if self.addresses(Family::V6).is_some() {
            // Neighbour discovery comes from the unspecified and from link-local addresses too (RFC 4861, RFC 4862).
            let sources = set([json!("::"), json!({ "prefix": { "addr": "fe80::", "len": 10 } })]);
            self.rule_of("netdev", "frames", [is(Family::V6.source(), sources), neighbours(), accept()]);
        }
    }

    fn sets(&mut self) {
        self.all.add("table", json!({ "family": "inet", "name": self.table }));
        for family in Family::BOTH {
            let name = resolved_set(family, &self.plan.request.policy);
            self.resolved(&name, family);
        }
    }

    fn resolved(&mut self, name: &str, family: Family) {
        let set = json!({
            "family": "inet", "table": self.table, "name": name, "type": family.set_type(),
            "flags": ["timeout"], "size": self.plan.config.dns.resolved_addresses,
        });
        self.all.add("set", set);
    }

    /// To the namespace itself: queries to the DNS forwarder, pings of the gateway, neighbour discovery.
    fn input(&mut self) {
        self.chain("inet", "input", Some(base("input")));
        for (family, guest, gateway, _) in self.families() {
            let from_guest = |more: Vec<Value>| {
                let mut all = vec![
                    is(meta("iifname"), TAP),
                    is(family.source(), guest.to_string()),
                    is(family.destination(), gateway.to_string()),
                ];
                all.extend(more);
                all.push(accept());
                all
            };
            for protocol in ["udp", "tcp"] {
                let query = from_guest(vec![is(payload(protocol, "dport"), 53)]);
                self.rule("input", query);
            }
            let echo = is(payload(icmp(family), "type"), "echo-request");
            let slowly = json!({ "limit": { "rate": 10, "burst": 10, "per": "second" } });
            let ping = from_guest(vec![echo, slowly]);
            self.rule("input", ping);
        }
        self.neighbour_discovery("input");
    }

    /// From the namespace itself: answers.
    fn output(&mut self) {
        self.chain("inet", "output", Some(base("output")));
        for (family, guest, ..) in self.families() {
            let to_guest = |more: Vec<Value>| {
                let mut all = vec![is(meta("oifname"), TAP), is(family.destination(), guest.to_string())];
                all.extend(more);
                all.push(accept());
                all
            };
            for protocol in ["udp", "tcp"] {
                let answer = to_guest(vec![ct_state(&["established"]), is(payload(protocol, "sport"), 53)]);
                self.rule("output", answer);
            }
            let told: &[&str] = match family {
                Family::V4 => &["echo-reply", "destination-unreachable", "time-exceeded"],
                Family::V6 => &["echo-reply", "destination-unreachable", "packet-too-big", "time-exceeded"],
            };
            let told = set(told.iter().map(|kind| json!(kind)));
            let message = to_guest(vec![is(payload(icmp(family), "type"), told)]);
            self.rule("output", message);
        }
        self.neighbour_discovery("output");
    }

    fn neighbour_discovery(&mut self, chain: &str) {
        if self.addresses(Family::V6).is_some() {
            // 255: no router has passed it on (RFC 4861, section 7.1.1).
            self.rule(chain, [neighbours(), is(payload("ip6", "hoplimit"), 255), accept()]);
        }
    }

    fn forward(&mut self) {
        self.chain("inet", "egress", None);
        self.chain("inet", "ingress", None);
        self.chain("inet", "forward", Some(base("forward")));
        self.rule("forward", [ct_state(&["invalid"]), drop_it()]);
        self.rule("forward", [is(meta("iifname"), TAP), is(meta("oifname"), UPLINK), goto("egress")]);
        self.rule("forward", [is(meta("iifname"), UPLINK), is(meta("oifname"), TAP), goto("ingress")]);
    }

    /// A connection that was admitted bears the policy's mark and is not judged again, so that it outlives the answer that
    /// made its address reachable. Under another policy the mark is another: then its next packet from the side that opened it
    /// is judged as that of a new one.
    fn admitted(&mut self, chain: &str) {
        let mark = self.mark();
        self.rule(chain, [ct_state(&["established", "related"]), is(ct("mark"), mark), accept()]);
        self.rule(chain, [is(ct("direction"), "reply"), drop_it()]);
    }

    fn mark(&self) -> u32 {
        let text = serde_json::to_string(&self.plan.request.policy).unwrap_or_default();
        // Never 0, which is the mark of a connection that nobody has marked.
        u32::try_from(fnv1a(text.as_bytes()) & 0xffff_ffff).unwrap_or_default() | 1
    }

    fn admit(&self) -> [Value; 2] {
        [json!({ "mangle": { "key": ct("mark"), "value": self.mark() } }), accept()]
    }

    fn admit_if(&mut self, chain: &str, conditions: impl IntoIterator<Item = Value>) {
        let mut all: Vec<Value> = conditions.into_iter().collect();
        all.extend(self.admit());
        self.rule(chain, all);
    }

    /// Where the machine may go.
    fn egress(&mut self) {
        let plan = self.plan;
        let policy = &plan.request.policy;
        self.admitted("egress");
        let too_many = json!({ "ct count": { "val": plan.config.max_connections, "inv": true } });
        self.rule("egress", [ct_state(&["new"]), too_many, drop_it()]);
        if !plan.config.host_ports.is_empty() {
            let [protocol, ports] = to_ports(&plan.config.host_ports);
            self.admit_if(
                "egress",
                [is(Family::V4.destination(), HOST_ADDRESS.to_string()), protocol, ports],
            );
        }
        let ports: &[PortRange] = match &policy.egress {
            Egress::AllowList { ports, .. } => ports,
            _ => &[],
        };
        for (family, _, _, block) in self.families() {
            let neighbours = is(family.destination(), range(block));
            if policy.private_network.is_some() {
                // Which of the block's machines share the network is known to the host, which judges next.
                self.admit_if("egress", [neighbours.clone()]);
            }
            self.rule("egress", [neighbours, reject()]);

            // From the narrowest kind of special range to the widest, what is named goes before the kind is refused.
            let kinds: [Vec<IpRange>; 2] = [metadata_ranges().collect(), special_ranges().collect()];
            for kind in kinds {
                let named: Vec<IpRange> = policy
                    .ranges()
                    .iter()
                    .copied()
                    .filter(|range| is_within(*range, kind.iter().copied()))
                    .collect();
                self.admit_listed(family, &named, ports);
                if let Some(kind) = ranges(family, &kind) {
                    self.rule("egress", [is(family.destination(), kind), reject()]);
                }
            }
            match &policy.egress {
                Egress::Deny => {}
                Egress::Allow { .. } => self.admit_if("egress", [is(meta("nfproto"), nfproto(family))]),
                Egress::AllowList { ranges, .. } => {
                    self.admit_listed(family, ranges, ports);
                    let resolved = format!("@{}", resolved_set(family, policy));
                    let mut conditions = vec![is(family.destination(), resolved)];
                    conditions.extend(Self::ports(ports));
                    self.admit_if("egress", conditions);
                }
            }
        }
        self.rule("egress", [reject()]);
    }

    fn ports(ports: &[PortRange]) -> Vec<Value> {
        if ports.is_empty() { Vec::new() } else { to_ports(ports).into() }
    }

    fn admit_listed(&mut self, family: Family, listed: &[IpRange], ports: &[PortRange]) {
        let mine = listed.iter().filter(|range| family.has(**range));
        let conditions = if mine.clone().any(|range| range.prefix() == 0) {
            // A set of intervals cannot hold everything.
            Some(is(meta("nfproto"), nfproto(family)))
        } else {
            ranges(family, listed).map(|set| is(family.destination(), set))
        };
        if let Some(condition) = conditions {
            let mut all = vec![condition];
            all.extend(Self::ports(ports));
            self.admit_if("egress", all);
        }
    }

    /// Who may come to the machine: the host itself, and machines of its private network.
    fn ingress(&mut self) {
        self.admitted("ingress");
        self.admit_if("ingress", [is(Family::V4.source(), HOST_ADDRESS.to_string())]);
        if self.plan.request.policy.private_network.is_some() {
            for (family, _, _, block) in self.families() {
                self.admit_if("ingress", [is(family.source(), range(block))]);
            }
        }
        self.rule("ingress", [drop_it()]);
    }
}

fn base(hook: &str) -> Value {
    json!({ "type": "filter", "hook": hook, "prio": 0, "policy": "drop" })
}

fn icmp(family: Family) -> &'static str {
    match family {
        Family::V4 => "icmp",
        Family::V6 => "icmpv6",
    }
}

fn nfproto(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

/// Neighbour discovery's two messages between neighbours; those of routers are not among them.
fn neighbours() -> Value {
    is(payload("icmpv6", "type"), set([json!("nd-neighbor-solicit"), json!("nd-neighbor-advert")]))
}
