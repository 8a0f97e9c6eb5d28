//! What the host's operator decides.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flames_error::{Error, Result};

use crate::address::Blocks;
use crate::names::ClusterName;
use crate::policy::PortRange;

/// How the networks of this host's machines are made.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Whose they are.
    pub cluster: ClusterName,
    /// Where their addresses come from. Nothing else on the host may use these.
    pub blocks: Blocks,
    /// The largest packet in bytes, 1280 (RFC 8200's minimum) to 65,535. Not larger than the host's own uplink carries.
    pub mtu: u32,
    /// Ports of TCP and UDP that every machine may reach on the host, at [`crate::HOST_ADDRESS`]. Usually none.
    pub host_ports: Vec<PortRange>,
    /// The most connections that one machine holds open at once. The host's table of connections is shared by all
    /// (`net.netfilter.nf_conntrack_max`): one machine must not fill it.
    pub max_connections: u32,
    /// Whether `net.ipv4.ip_forward`, and for a block of IPv6 `net.ipv6.conf.all.forwarding`, may be switched on when they are
    /// off. They stay on. The latter makes the kernel ignore router advertisements on interfaces whose `accept_ra` is not 2.
    pub enable_forwarding: bool,
    /// The machines' DNS forwarders.
    pub dns: DnsConfig,
    /// The longest that one call of `nft` may take.
    pub command_deadline: Duration,
    /// The network namespace that is taken for the host, as a file. None: the one of this process.
    pub host_namespace: Option<PathBuf>,
    /// Called after each step of [`crate::Networks::create`] and [`crate::Networks::remove`]; for tests of what a crash leaves.
    pub after_step: Option<AfterStep>,
}

/// Called with a step's name; its error ends the operation there, and nothing is cleaned up, as after a crash.
#[derive(Clone)]
pub struct AfterStep(pub Arc<dyn Fn(&'static str) -> Result<()> + Send + Sync>);

impl fmt::Debug for AfterStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AfterStep(..)")
    }
}

/// How names are resolved for machines.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// The resolvers that are asked, in order, from the host's namespace. Without any, no name resolves.
    pub upstreams: Vec<SocketAddr>,
    /// How long one resolver may take before the next is asked.
    pub upstream_deadline: Duration,
    /// The shortest time that a resolved address stays reachable, whatever the answer's TTL.
    pub shortest_lifetime: Duration,
    /// The longest, and the longest TTL that a machine is told.
    pub longest_lifetime: Duration,
    /// The most queries of one machine that are under way at once; those beyond are dropped.
    pub concurrent_queries: usize,
    /// The most queries of one machine in a second, on average; those beyond, after a burst of twice as many, are dropped.
    pub queries_per_second: u32,
    /// The most connections of DNS over TCP that one machine holds open at once.
    pub tcp_connections: usize,
    /// How long a connection of DNS over TCP may be idle, or take for one message.
    pub tcp_deadline: Duration,
    /// The most addresses of one machine that are reachable at once because a name resolved to them.
    pub resolved_addresses: u32,
}

impl DnsConfig {
    /// Defaults with these resolvers.
    pub fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self {
            upstreams,
            upstream_deadline: Duration::from_secs(2),
            shortest_lifetime: Duration::from_secs(30),
            longest_lifetime: Duration::from_secs(3600),
            concurrent_queries: 32,
            queries_per_second: 100,
            tcp_connections: 8,
            tcp_deadline: Duration::from_secs(5),
            resolved_addresses: 4096,
        }
    }
}

impl NetworkConfig {
    /// Defaults with this cluster, these blocks and these resolvers: 1500 bytes, no port of the host, 8,192 connections a
    /// machine, forwarding not switched on.
    pub fn new(cluster: ClusterName, blocks: Blocks, upstreams: Vec<SocketAddr>) -> Self {
        Self {
            cluster,
            blocks,
            mtu: 1500,
            host_ports: Vec::new(),
            max_connections: 8192,
            enable_forwarding: false,
            dns: DnsConfig::new(upstreams),
            command_deadline: Duration::from_secs(10),
            host_namespace: None,
            after_step: None,
        }
    }

    /// `InvalidInput`, with the field, for what cannot work.
    pub fn validate(&self) -> Result<()> {
        let wrong =
            |field: &'static str, sentence: &str| Err(Error::invalid("network.config", field, sentence));
        self.blocks.validate()?;
        if !(1280..=65_535).contains(&self.mtu) {
            return wrong("mtu", "A machine's network carries packets of 1280 to 65535 bytes.");
        }
        if self.max_connections == 0 {
            return wrong("max_connections", "A machine may hold at least one connection.");
        }
        let dns = &self.dns;
        if dns.upstreams.len() > 8 {
            return wrong("dns.upstreams", "At most eight resolvers are asked.");
        }
        if dns.shortest_lifetime < Duration::from_secs(1) || dns.shortest_lifetime > dns.longest_lifetime {
            return wrong(
                "dns.shortest_lifetime",
                "It is at least a second and at most `dns.longest_lifetime`.",
            );
        }
        if dns.longest_lifetime > Duration::from_secs(7 * 86_400) {
            return wrong("dns.longest_lifetime", "It is at most a week (RFC 8767, section 4).");
        }
        let counts = [
            dns.concurrent_queries,
            dns.tcp_connections,
            dns.queries_per_second as usize,
            dns.resolved_addresses as usize,
        ];
        if counts.contains(&0) {
            return wrong("dns", "Every limit of the DNS forwarder is at least one.");
        }
        if dns.upstream_deadline.is_zero() || dns.tcp_deadline.is_zero() || self.command_deadline.is_zero() {
            return wrong("dns", "A deadline is longer than nothing.");
        }
        Ok(())
    }

    pub(crate) fn step_done(&self, step: &'static str) -> Result<()> {
        self.after_step.as_ref().map_or(Ok(()), |AfterStep(call)| call(step))
    }
}
