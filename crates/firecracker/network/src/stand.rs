//! Making, taking apart and finding what stands on the host: everything here blocks, and runs on a thread of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;

use flames_error::{Error, ErrorKind, Result};

use crate::config::NetworkConfig;
use crate::kernel::namespace::{self, Namespace};
use crate::kernel::netlink::{Link, Netlink, Route};
use crate::kernel::{settings, tap};
use crate::names::{Alias, Incarnation, Slot, TAP, UPLINK};
use crate::networks::lock;
use crate::nft;
use crate::plan::Plan;
use crate::policy::Policy;
use crate::rules::host::{HostRules, HostTable, Joining};
use crate::rules::{guest, host};
use crate::{GATEWAY_LINK_IPV6, HOST_ADDRESS, HOST_LINK_IPV6, UPLINK_IPV6};

const OPERATION: &str = "network.stand";

/// The host, as the calling thread works on it.
#[derive(Debug)]
pub(crate) struct Host<'a> {
    pub(crate) netlink: Netlink,
    pub(crate) namespace: &'a Namespace,
    /// Held while the host's rules are read and changed.
    pub(crate) rules: &'a Mutex<HostRules>,
}

/// What is there of a machine's network.
#[derive(Debug)]
pub(crate) enum State {
    /// Nothing.
    Absent,
    /// A part: its making or its removal did not come to its end.
    Half,
    /// All of it.
    Whole(Namespace),
}

/// How far the network of the plan is made. The calling thread stays in the host's namespace.
///
/// Errors: `Conflict` when the slot's interface is another's.
pub(crate) fn state(plan: &Plan, host: &Host<'_>) -> Result<State> {
    let namespace = Namespace::open(&namespace::path(&plan.namespace()))?;
    let link = host.netlink.link(&plan.interface())?;
    let alias = link.as_ref().and_then(|link| link.alias.as_deref());
    match (&link, alias.map(Alias::parse)) {
        (None, _) => Ok(if namespace.is_some() { State::Half } else { State::Absent }),
        (Some(_), Some(Some(alias)))
            if alias.cluster == plan.config.cluster && alias.incarnation == plan.request.incarnation =>
        {
            match namespace {
                Some(namespace) if alias.complete => Ok(State::Whole(namespace)),
                _ => Ok(State::Half),
            }
        }
        // Its making was cut off before it was told whose it is.
        (Some(link), None) if leads_to(namespace.as_ref(), link, host)? => Ok(State::Half),
        _ => Err(Error::new(ErrorKind::Conflict, OPERATION, "the slot's interface is another's")
            .with_context("interface", plan.interface())
            .with_context("alias", alias.unwrap_or("none"))
            .with_resource("incarnation", plan.request.incarnation.as_str())),
    }
}

/// Whether the namespace's uplink is the other end of the host's interface.
fn leads_to(namespace: Option<&Namespace>, link: &Link, host: &Host<'_>) -> Result<bool> {
    let Some(namespace) = namespace else { return Ok(false) };
    namespace.enter()?;
    let uplink = Netlink::open()?.link(UPLINK)?;
    host.namespace.enter()?;
    Ok(uplink.is_some_and(|uplink| uplink.peer == Some(link.index) && link.peer == Some(uplink.index)))
}

/// Makes a namespace with a tap and no way out of it, for a machine that is to come. The calling thread ends up in it.
pub(crate) fn build_spare(config: &NetworkConfig, name: &str, tap_owner: u32) -> Result<Namespace> {
    let done = |step| config.step_done(step);
    let namespace = namespace::create(name)?;
    done("namespace")?;
    namespace_settings(config)?;
    done("namespace settings")?;
    tap::create(TAP, tap_owner)?;
    done("tap")?;
    Ok(namespace)
}

/// Makes the network of the plan where there is nothing of it, from a spare where there is one. The calling thread ends up in some namespace.
pub(crate) fn build(plan: &Plan, host: &Host<'_>, spare: Option<&Incarnation>) -> Result<Namespace> {
    let config = &plan.config;
    let done = |step| config.step_done(step);
    let namespace = match spare {
        Some(spare) => {
            let namespace = namespace::rename(&config.cluster.namespace(spare), &plan.namespace())?;
            done("spare's new name")?;
            namespace
        }
        None => build_spare(config, &plan.namespace(), plan.request.tap_owner)?,
    };
    let inside = Netlink::open()?;
    // Before the first packet can come, and before there is a way out.
    guest::ruleset(plan, None).apply()?;
    done("machine's rules")?;
    let tap = inside.require_link(TAP)?;
    inside.add_address(tap.index, plan.addresses.gateway.into(), plan.addresses.prefix)?;
    if let Some(ipv6) = &plan.addresses.ipv6 {
        inside.add_address(tap.index, ipv6.gateway.into(), ipv6.prefix)?;
        // A router asks for its neighbours from a link-local address (RFC 4861, section 4.3); without one it asks nobody.
        inside.add_address(tap.index, GATEWAY_LINK_IPV6.into(), 64)?;
    }
    inside.set_up(tap.index, Some(config.mtu))?;
    done("tap's addresses")?;

    let interface = plan.interface();
    inside.add_veth(UPLINK, &interface, host.namespace.as_raw_fd(), config.mtu).map_err(
        |error| match error.kind() {
            ErrorKind::AlreadyExists => {
                error.with_kind(ErrorKind::Conflict).with_context("interface", &interface)
            }
            _ => error,
        },
    )?;
    // Until it bears its owner's name, the host's end is known by the other, which is in the owner's namespace.
    done("veth")?;
    host.namespace.enter()?;
    let outer = host.netlink.require_link(&interface)?;
    host.netlink.set_alias(outer.index, &alias(plan, false))?;
    done("owner's name")?;

    link_settings(plan, &interface)?;
    host.netlink.add_address(outer.index, HOST_ADDRESS.into(), 32)?;
    if plan.addresses.ipv6.is_some() {
        host.netlink.add_address(outer.index, HOST_LINK_IPV6.into(), 64)?;
    }
    host.netlink.set_up(outer.index, None)?;
    done("host's addresses")?;
    namespace_routes(plan, &inside)?;
    done("namespace's routes")?;
    host_routes(plan, &host.netlink, &outer)?;
    done("host's routes")?;
    {
        let mut rules = lock(host.rules);
        match rules.change(config, host::join(plan, Joining::First)) {
            // Of one whose interface somebody else took away.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                rules.change(config, host::join(plan, Joining::Again(None)))?;
            }
            done => done?,
        }
    }
    done("host's rules")?;
    host.netlink.set_alias(outer.index, &alias(plan, true))?;
    done("whole")?;
    Ok(namespace)
}

fn alias(plan: &Plan, complete: bool) -> String {
    let alias = Alias {
        cluster: plan.config.cluster.clone(),
        incarnation: plan.request.incarnation.clone(),
        complete,
    };
    alias.to_string()
}

/// Settings of a fresh namespace, the calling thread's.
fn namespace_settings(config: &NetworkConfig) -> Result<()> {
    // IPv4's are copied from the host's (`net.core.devconf_inherit_init_net`), whatever these are.
    for interface in ["all", "default"] {
        for (setting, value) in [
            ("rp_filter", "0"),
            ("accept_redirects", "0"),
            ("send_redirects", "0"),
            ("accept_source_route", "0"),
            ("proxy_arp", "0"),
            // The host asks the uplink for the gateway's address, which is the tap's.
            ("arp_ignore", "0"),
        ] {
            settings::write(&format!("ipv4/conf/{interface}/{setting}"), value)?;
        }
    }
    settings::write("ipv4/ip_forward", "1")?;
    if config.blocks.ipv6.is_some() {
        for (setting, value) in [
            ("ipv6/conf/default/addr_gen_mode", "1"),
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv6/conf/default/accept_redirects", "0"),
            ("ipv6/conf/all/accept_redirects", "0"),
            ("ipv6/conf/all/forwarding", "1"),
        ] {
            settings::write(setting, value)?;
        }
    } else {
        settings::write_if_there("ipv6/conf/all/disable_ipv6", "1")?;
        settings::write_if_there("ipv6/conf/default/disable_ipv6", "1")?;
    }
    Ok(())
}

/// Settings of the host's end, in the host's namespace; they go with the interface.
fn link_settings(plan: &Plan, interface: &str) -> Result<()> {
    for (setting, value) in
        [("rp_filter", "1"), ("accept_redirects", "0"), ("send_redirects", "0"), ("forwarding", "1")]
    {
        settings::write(&format!("ipv4/conf/{interface}/{setting}"), value)?;
    }
    let ipv6 = |setting: &str| format!("ipv6/conf/{interface}/{setting}");
    if plan.addresses.ipv6.is_some() {
        settings::write(&ipv6("addr_gen_mode"), "1")?;
        settings::write(&ipv6("accept_ra"), "0")?;
        settings::write(&ipv6("accept_redirects"), "0")
    } else {
        settings::write_if_there(&ipv6("disable_ipv6"), "1")
    }
}

fn namespace_routes(plan: &Plan, inside: &Netlink) -> Result<()> {
    let uplink = inside.require_link(UPLINK)?.index;
    inside.set_up(uplink, None)?;
    let default = |to: IpAddr, by: IpAddr| Route { to: (to, 0), by: Some(by), over: uplink, source: None };
    if plan.addresses.ipv6.is_some() {
        inside.add_address(uplink, UPLINK_IPV6.into(), 64)?;
        inside.add_route(&default(Ipv6Addr::UNSPECIFIED.into(), HOST_LINK_IPV6.into()))?;
    }
    inside.add_route(&default(Ipv4Addr::UNSPECIFIED.into(), HOST_ADDRESS.into()))
}

fn host_routes(plan: &Plan, host: &Netlink, outer: &Link) -> Result<()> {
    // With it the host takes the gateway's questions for its own address as coming from where they should (rp_filter, which a
    // host may have switched on for all interfaces).
    host.add_route(&Route {
        to: (plan.addresses.gateway.into(), 32),
        by: None,
        over: outer.index,
        source: Some(HOST_ADDRESS.into()),
    })?;
    host.add_route(&Route {
        to: (plan.addresses.guest.into(), 32),
        by: Some(plan.addresses.gateway.into()),
        over: outer.index,
        source: Some(HOST_ADDRESS.into()),
    })?;
    let Some(ipv6) = &plan.addresses.ipv6 else { return Ok(()) };
    host.add_route(&Route {
        to: (ipv6.guest.into(), 128),
        by: Some(UPLINK_IPV6.into()),
        over: outer.index,
        source: None,
    })
}

/// Writes the rules of a network that is whole anew. `replaced` is the policy before, when it is known. `resolved` are
/// addresses of names that stay reachable.
pub(crate) fn apply_policy(
    plan: &Plan,
    namespace: &Namespace,
    host: &Host<'_>,
    replaced: Option<&Policy>,
    resolved: &[guest::Resolved],
) -> Result<()> {
    namespace.enter()?;
    let mut rules = guest::ruleset(plan, replaced);
    rules.append(guest::resolve(plan, resolved));
    rules.apply()?;
    host.namespace.enter()?;
    if replaced.is_some_and(|old| old.private_network == plan.request.policy.private_network) {
        // The host knows of a machine only who it is, and with whom it shares a network.
        return Ok(());
    }
    let mut rules = lock(host.rules);
    let before = host_table(&plan.config)?;
    rules.change(&plan.config, host::join(plan, Joining::Again(before.as_ref())))
}

fn host_table(config: &NetworkConfig) -> Result<Option<HostTable>> {
    let objects = nft::list(&["table", "inet", &config.cluster.table()], config.command_deadline)?;
    Ok(objects.as_deref().map(HostTable::read))
}

/// Takes away what there is of an incarnation's network; nothing there: no error. The calling thread is in the host's namespace.
///
/// Order: what the host knows of the machine first, its name last, so that after a crash anywhere the rest is found by its name.
pub(crate) fn demolish(config: &NetworkConfig, incarnation: &Incarnation, host: &Host<'_>) -> Result<()> {
    let done = |step| config.step_done(step);
    {
        let mut rules = lock(host.rules);
        let before = host_table(config)?;
        if let Some((change, is_last)) = before.and_then(|before| host::leave(config, incarnation, &before)) {
            rules.reduce(change, is_last)?;
        }
    }
    done("host's rules gone")?;
    let mut has_named = false;
    for link in host.netlink.links()? {
        let alias = link.alias.as_deref().and_then(Alias::parse);
        if alias.is_some_and(|alias| alias.cluster == config.cluster && alias.incarnation == *incarnation) {
            host.netlink.remove_link(link.index)?;
            has_named = true;
        }
    }
    let namespace = Namespace::open(&namespace::path(&config.cluster.namespace(incarnation)))?;
    if let Some(namespace) = namespace.filter(|_| !has_named) {
        // One that does not bear a name yet; the kernel would take it away too, but some time after the namespace.
        namespace.enter()?;
        let inside = Netlink::open()?;
        if let Some(uplink) = inside.link(UPLINK)? {
            inside.remove_link(uplink.index)?;
        }
        host.namespace.enter()?;
    }
    done("veth gone")?;
    namespace::remove(&config.cluster.namespace(incarnation))?;
    done("namespace gone")
}

/// What stands in the name of the cluster, by incarnation.
#[derive(Debug, Default, Clone)]
pub(crate) struct Standing {
    pub(crate) slot: Option<Slot>,
    pub(crate) namespace: bool,
    /// Whether its interface is there and says that its making came to its end.
    pub(crate) complete: bool,
    pub(crate) rules: bool,
}

/// Everything that stands in the name of the cluster. The calling thread is in the host's namespace.
pub(crate) fn survey(config: &NetworkConfig, host: &Host<'_>) -> Result<BTreeMap<Incarnation, Standing>> {
    let mut found: BTreeMap<Incarnation, Standing> = BTreeMap::new();
    for name in namespace::names()? {
        if let Some(incarnation) = config.cluster.incarnation_of_namespace(&name) {
            found.entry(incarnation).or_default().namespace = true;
        }
    }
    for link in host.netlink.links()? {
        let Some(alias) = link.alias.as_deref().and_then(Alias::parse) else { continue };
        if alias.cluster == config.cluster {
            let standing = found.entry(alias.incarnation).or_default();
            standing.complete = alias.complete;
            standing.slot = config.cluster.slot_of_interface(&link.name).or(standing.slot);
        }
    }
    if let Some(table) = host_table(config)? {
        for (interface, whose) in table.machines() {
            let Some(incarnation) = whose else { continue };
            let standing = found.entry(incarnation.clone()).or_default();
            standing.rules = true;
            standing.slot = standing.slot.or(config.cluster.slot_of_interface(interface));
        }
    }
    Ok(found)
}
