//! The rules of the host: one table for all machines of the cluster.
//!
//! Its chains are written anew with every change before which somebody else changed rules of the host ([`HostRules`]), so that a table
//! which somebody flushed is whole again with the next one. What belongs to one machine are elements, each deterministic from its slot:
//! adding what is there changes nothing.

use flames_error::Result;
use serde_json::{Value, json};

use crate::address::IpRange;
use crate::config::NetworkConfig;
use crate::names::{Incarnation, PrivateNetwork, Slot};
use crate::nf_tables::{Generation, Outcome};
use crate::nft::{Transaction, accept, ct_state, drop_it, goto, is, is_not, meta, payload, set};
use crate::plan::Plan;
use crate::{HOST_ADDRESS, UPLINK_IPV6};

use super::{Family, range, to_ports};

/// What the host's table says of machines.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct HostTable {
    /// An interface's element in the set of sources: family, the element's value, whose it is.
    sources: Vec<(Family, String, Value, Option<Incarnation>)>,
    /// The interfaces that have an entry in the map of private networks.
    peers: Vec<String>,
    /// The chains of private networks.
    chains: Vec<String>,
    /// The members of each private network.
    members: Vec<(String, Vec<String>)>,
}

impl HostTable {
    /// Reads what `nft -j list table` answers.
    pub(crate) fn read(objects: &[Value]) -> Self {
        let mut table = Self::default();
        for object in objects {
            if let Some(chain) = object.pointer("/chain/name").and_then(Value::as_str) {
                if chain.starts_with(CHAIN) {
                    table.chains.push(chain.to_owned());
                }
                continue;
            }
            let Some(named) = object.get("set").or_else(|| object.get("map")) else { continue };
            let name = named.get("name").and_then(Value::as_str).unwrap_or_default();
            let elements = named.get("elem").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let texts = || elements.iter().filter_map(interface_of).map(str::to_owned).collect::<Vec<_>>();
            if let Some(family) = Family::BOTH.into_iter().find(|family| name == sources(*family)) {
                for element in elements {
                    let value = element.pointer("/elem/val").unwrap_or(element);
                    let comment = element.pointer("/elem/comment").and_then(Value::as_str);
                    if let Some(interface) = value.pointer("/concat/0").and_then(Value::as_str) {
                        let whose = comment.and_then(|text| Incarnation::new(text).ok());
                        table.sources.push((family, interface.to_owned(), value.clone(), whose));
                    }
                }
            } else if name == PEERS {
                table.peers = texts();
            } else if name.starts_with(MEMBERS) {
                table.members.push((name.to_owned(), texts()));
            }
        }
        table
    }

    /// The machines that have elements: their interfaces, and whose they are.
    pub(crate) fn machines(&self) -> impl Iterator<Item = (&str, Option<&Incarnation>)> {
        self.sources.iter().map(|(_, interface, _, whose)| (interface.as_str(), whose.as_ref()))
    }

    /// Takes an interface out of its private network, and away with a network that nobody else is in.
    fn leave_network(
        &self,
        table: &str,
        interface: &str,
        slot: Slot,
        keep: Option<&str>,
        all: &mut Transaction,
    ) {
        if self.peers.iter().any(|peer| peer == interface) && keep.is_none() {
            all.delete("element", elements(table, PEERS, vec![json!(interface)]));
        }
        let chain = chain(slot);
        if self.chains.contains(&chain) && keep.is_none() {
            all.flush("chain", json!({ "family": "inet", "table": table, "name": chain }));
            all.delete("chain", json!({ "family": "inet", "table": table, "name": chain }));
        }
        for (name, members) in &self.members {
            if Some(name.as_str()) == keep || !members.iter().any(|member| member == interface) {
                continue;
            }
            if members.len() == 1 {
                all.delete("set", json!({ "family": "inet", "table": table, "name": name }));
            } else {
                all.delete("element", elements(table, name, vec![json!(interface)]));
            }
        }
    }
}

/// The host's rules as this process left them. Whoever holds it is the only one of this process who changes them.
#[derive(Debug, Default)]
pub(crate) struct HostRules {
    /// The generation at which the frame was whole. None: it may be otherwise, or not be there.
    whole_at: Option<Generation>,
}

impl HostRules {
    /// Makes a change for one machine in one transaction, with the frame before it where that may not be whole. The calling thread is in
    /// the host's namespace.
    pub(crate) fn change(&mut self, config: &NetworkConfig, change: Transaction) -> Result<()> {
        if let Some(generation) = self.whole_at {
            if change.apply_at(generation)? == Outcome::Applied {
                self.whole_at = Some(generation.next());
                return Ok(());
            }
            self.whole_at = None;
        }
        let mut all = frame(config);
        all.append(change);
        // Who writes rules all the time makes generations pass; then only the knowledge of the frame is lost.
        for _ in 0..3 {
            let generation = Generation::current()?;
            if all.apply_at(generation)? == Outcome::Applied {
                self.whole_at = Some(generation.next());
                return Ok(());
            }
        }
        all.apply()
    }

    /// Takes something away in one transaction; nothing is made. The calling thread is in the host's namespace.
    pub(crate) fn reduce(&mut self, change: Transaction, takes_all: bool) -> Result<()> {
        let known = self.whole_at.take();
        match known.map(|generation| Ok((generation, change.apply_at(generation)?))).transpose()? {
            Some((generation, Outcome::Applied)) => {
                self.whole_at = (!takes_all).then(|| generation.next());
                Ok(())
            }
            Some((_, Outcome::Outdated)) | None => change.apply(),
        }
    }
}

fn interface_of(element: &Value) -> Option<&str> {
    match element {
        Value::String(name) => Some(name),
        // An element of a map is its key and its value.
        Value::Array(pair) => pair.first()?.as_str(),
        _ => None,
    }
}

const PEERS: &str = "peers";
const MEMBERS: &str = "members_";
const CHAIN: &str = "via_";

fn sources(family: Family) -> String {
    format!("sources{}", family.digit())
}

fn members(network: &PrivateNetwork) -> String {
    format!("{MEMBERS}{network}")
}

fn chain(slot: Slot) -> String {
    format!("{CHAIN}{:x}", slot.number())
}

fn elements(table: &str, name: &str, elem: Vec<Value>) -> Value {
    json!({ "family": "inet", "table": table, "name": name, "elem": elem })
}

/// Whether the machine may be among the host's already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joining<'a> {
    /// It is not. When its place is taken, it is `AlreadyExists`, and nothing is changed.
    First,
    /// It may be, as the table says, or another may have left something in its place.
    Again(Option<&'a HostTable>),
}

/// Puts a machine among the host's, whose frame stands.
pub(crate) fn join(plan: &Plan, joining: Joining<'_>) -> Transaction {
    let table = plan.config.cluster.table();
    let interface = plan.interface();
    let mut all = Transaction::default();
    for family in Family::BOTH {
        let Some(guest) = guest(plan, family) else { continue };
        let value = json!({ "concat": [interface, guest] });
        let stamped = json!({ "elem": { "val": value, "comment": plan.request.incarnation.as_str() } });
        if joining == Joining::First {
            // To take something out costs the next change a grace period of RCU.
            all.create("element", elements(&table, &sources(family), vec![stamped]));
            continue;
        }
        // Taken out first, so that the comment is this incarnation's.
        all.add("element", elements(&table, &sources(family), vec![stamped.clone()]));
        all.delete("element", elements(&table, &sources(family), vec![value]));
        all.add("element", elements(&table, &sources(family), vec![stamped]));
    }
    let network = plan.request.policy.private_network.as_ref().map(members);
    if let Some(name) = &network {
        let via = chain(plan.request.slot);
        all.add("set", json!({ "family": "inet", "table": table, "name": name, "type": "ifname" }));
        all.add("element", elements(&table, name, vec![json!(interface)]));
        all.add("chain", json!({ "family": "inet", "table": table, "name": via }));
        all.flush("chain", json!({ "family": "inet", "table": table, "name": via }));
        let rule = json!([is(meta("oifname"), format!("@{name}")), accept()]);
        all.add("rule", json!({ "family": "inet", "table": table, "chain": via, "expr": rule }));
        all.add("element", elements(&table, PEERS, vec![json!([interface, { "jump": { "target": via } }])]));
    }
    if let Joining::Again(Some(before)) = joining {
        before.leave_network(&table, &interface, plan.request.slot, network.as_deref(), &mut all);
    }
    all
}

/// Takes a machine from among the host's; the whole table, and true, when it was the last. None when nothing of it is there.
pub(crate) fn leave(
    config: &NetworkConfig,
    incarnation: &Incarnation,
    before: &HostTable,
) -> Option<(Transaction, bool)> {
    let table = config.cluster.table();
    let mine = |whose: &Option<Incarnation>| whose.as_ref() == Some(incarnation);
    if before.sources.iter().all(|(.., whose)| mine(whose)) {
        let mut all = Transaction::default();
        all.delete("table", json!({ "family": "inet", "name": table }));
        return Some((all, true));
    }
    let mut all = Transaction::default();
    for (family, interface, value, whose) in &before.sources {
        if !mine(whose) {
            continue;
        }
        all.delete("element", elements(&table, &sources(*family), vec![value.clone()]));
        // Once, with the family that every machine has.
        if let (Family::V4, Some(slot)) = (family, config.cluster.slot_of_interface(interface)) {
            before.leave_network(&table, interface, slot, None, &mut all);
        }
    }
    (!all.is_empty()).then_some((all, false))
}

fn guest(plan: &Plan, family: Family) -> Option<String> {
    match family {
        Family::V4 => Some(plan.addresses.guest.to_string()),
        Family::V6 => plan.addresses.ipv6.as_ref().map(|ipv6| ipv6.guest.to_string()),
    }
}

/// The table, its sets and its chains: all that is no machine's.
pub(crate) fn frame(config: &NetworkConfig) -> Transaction {
    let mut frame = Frame { table: config.cluster.table(), all: Transaction::default() };
    frame.all.add("table", json!({ "family": "inet", "name": frame.table }));
    for family in Family::BOTH {
        frame.all.add(
            "set",
            json!({
                "family": "inet", "table": frame.table, "name": sources(family),
                "type": ["ifname", family.set_type()],
            }),
        );
    }
    frame.all.add(
        "map",
        json!({ "family": "inet", "table": frame.table, "name": PEERS, "type": "ifname", "map": "verdict" }),
    );
    let machines = format!("{}*", config.cluster.interface_prefix());
    frame.prerouting(&machines);
    frame.input(&machines, config);
    frame.forward(&machines, config);
    frame.postrouting(&machines, config);
    frame.all
}

struct Frame {
    table: String,
    all: Transaction,
}

impl Frame {
    fn chain(&mut self, name: &str, hook: Option<(&str, &str, i32)>) {
        let named = json!({ "family": "inet", "table": self.table, "name": name });
        let mut chain = named.clone();
        if let (Some((kind, hook, priority)), Some(object)) = (hook, chain.as_object_mut()) {
            // Others' packets are nobody's business here.
            let hook = json!({ "type": kind, "hook": hook, "prio": priority, "policy": "accept" });
            object.extend(hook.as_object().cloned().unwrap_or_default());
        }
        self.all.add("chain", chain);
        self.all.flush("chain", named);
    }

    fn rule(&mut self, chain: &str, expressions: impl IntoIterator<Item = Value>) {
        let expressions: Vec<Value> = expressions.into_iter().collect();
        self.all.add(
            "rule",
            json!({ "family": "inet", "table": self.table, "chain": chain, "expr": expressions }),
        );
    }

    /// What comes from a machine's interface comes from that machine's address, or is dropped before a connection is made of it.
    fn prerouting(&mut self, machines: &str) {
        self.chain("sources", None);
        for family in Family::BOTH {
            let who = json!({ "concat": [meta("iifname"), family.source()] });
            self.rule("sources", [is(who, format!("@{}", sources(family))), accept()]);
        }
        self.rule("sources", Self::neighbours());
        self.rule("sources", [drop_it()]);
        // Before connections are tracked (-200, netfilter_ipv4.h).
        self.chain("prerouting", Some(("filter", "prerouting", -300)));
        self.rule("prerouting", [is(meta("iifname"), machines), goto("sources")]);
    }

    /// The namespace asks for the host's hardware address, and answers for its own.
    fn neighbours() -> [Value; 4] {
        [
            is(Family::V6.source(), UPLINK_IPV6.to_string()),
            is(payload("icmpv6", "type"), set([json!("nd-neighbor-solicit"), json!("nd-neighbor-advert")])),
            is(payload("ip6", "hoplimit"), 255),
            accept(),
        ]
    }

    /// The host itself: answers to what it asked, and the ports that are listed.
    fn input(&mut self, machines: &str, config: &NetworkConfig) {
        self.chain("to_host", None);
        self.rule("to_host", [ct_state(&["established", "related"]), accept()]);
        self.rule("to_host", Self::neighbours());
        if !config.host_ports.is_empty() {
            let [protocol, ports] = to_ports(&config.host_ports);
            let there = is(Family::V4.destination(), HOST_ADDRESS.to_string());
            self.rule("to_host", [there, protocol, ports, accept()]);
        }
        self.rule("to_host", [drop_it()]);
        self.chain("input", Some(("filter", "input", 0)));
        self.rule("input", [is(meta("iifname"), machines), goto("to_host")]);
    }

    fn forward(&mut self, machines: &str, config: &NetworkConfig) {
        // From one machine to another: by a private network of both.
        self.chain("between", None);
        self.rule("between", [json!({ "vmap": { "key": meta("iifname"), "data": format!("@{PEERS}") } })]);
        self.rule("between", [drop_it()]);
        // From elsewhere to a machine: answers only.
        self.chain("to_machines", None);
        self.rule("to_machines", [ct_state(&["established", "related"]), accept()]);
        self.rule("to_machines", [drop_it()]);

        self.chain("forward", Some(("filter", "forward", 0)));
        self.rule("forward", [is(meta("iifname"), machines), is(meta("oifname"), machines), goto("between")]);
        self.rule("forward", [is(meta("oifname"), machines), goto("to_machines")]);
        // To an address of the block that no machine has: nobody outside is meant.
        for (family, block) in blocks(config) {
            self.rule(
                "forward",
                [is(meta("iifname"), machines), is(family.destination(), range(block)), drop_it()],
            );
        }
    }

    /// Machines go out under the host's address, except from a block of IPv6 that is routed to the host.
    fn postrouting(&mut self, machines: &str, config: &NetworkConfig) {
        self.chain("postrouting", Some(("nat", "postrouting", 100)));
        for (family, block) in blocks(config) {
            if family == Family::V4 || is_unique_local(block) {
                let from_machine = is(family.source(), range(block));
                self.rule(
                    "postrouting",
                    [from_machine, is_not(meta("oifname"), machines), json!({ "masquerade": null })],
                );
            }
        }
    }
}

fn blocks(config: &NetworkConfig) -> impl Iterator<Item = (Family, IpRange)> {
    let ipv6 = config.blocks.ipv6.map(|block| (Family::V6, block));
    [(Family::V4, config.blocks.ipv4)].into_iter().chain(ipv6)
}

/// RFC 4193: never routed on the internet.
fn is_unique_local(block: IpRange) -> bool {
    matches!(block.address(), std::net::IpAddr::V6(address) if address.is_unique_local())
}
