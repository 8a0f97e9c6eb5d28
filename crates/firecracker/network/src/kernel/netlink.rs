//! Links, addresses and routes, by rtnetlink(7).
//!
//! One socket, one request at a time, on a thread that blocks: a socket stays in the namespace that it was made in, so one
//! thread holds one for the host and one for a machine's namespace.

use std::cell::Cell;
use std::net::IpAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use flames_error::{Error, Result};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

use super::refused;

/// How long the kernel may take to answer. It answers at once; a namespace that is being taken down may hold its lock for a while.
const DEADLINE: Duration = Duration::from_secs(10);

/// The kernel writes at most 32 KiB of a dump at once (`NLMSG_GOODSIZE`, netlink(7)).
const BUFFER: usize = 64 * 1024;

const OPERATION: &str = "network.netlink";

/// An interface.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    /// A veth's other end: its index, in whatever namespace it is.
    pub(crate) peer: Option<u32>,
}

/// A conversation with the kernel about one namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: Cell<u32>,
}

impl Netlink {
    /// About the calling thread's namespace, whatever namespace the thread enters later.
    pub(crate) fn open() -> Result<Self> {
        let failed = |error: rustix::io::Errno| refused(OPERATION, "opening a netlink socket", error.into());
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is 0.
            None,
        )
        .map_err(failed)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(DEADLINE)).map_err(failed)?;
        rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, 0)).map_err(failed)?;
        Ok(Self { socket, sequence: Cell::new(1) })
    }

    /// Makes a veth pair, one end in this namespace and the other in that one. Made where they belong: to move an interface takes some
    /// grace periods of RCU, which is longer than all the rest. `AlreadyExists` when a name is taken.
    pub(crate) fn add_veth(&self, name: &str, peer: &str, peers_namespace: RawFd, mtu: u32) -> Result<()> {
        let end = |name: &str| {
            let mut message = LinkMessage::default();
            // One queue each, told: the kernel makes one for each processor else, and takes them away again, which waits for RCU.
            message.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::Mtu(mtu),
                LinkAttribute::NumTxQueues(1),
                LinkAttribute::NumRxQueues(1),
            ];
            message
        };
        let mut other = end(peer);
        other.attributes.push(LinkAttribute::NetNsFd(peers_namespace));
        let mut message = end(name);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, "making a veth pair")
    }

    /// Every interface.
    pub(crate) fn links(&self) -> Result<Vec<Link>> {
        let answers = self.ask(
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            NLM_F_DUMP,
            "listing the interfaces",
        )?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(read_link(link)),
                _ => None,
            })
            .collect())
    }

    /// The interface of this name, if any.
    pub(crate) fn link(&self, name: &str) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.ask(RouteNetlinkMessage::GetLink(message), NLM_F_ACK, "looking up an interface") {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(read_link(link)),
                _ => None,
            })),
            Err(error) if error.kind() == flames_error::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The interface of this name. `NotFound` when there is none.
    pub(crate) fn require_link(&self, name: &str) -> Result<Link> {
        self.link(name)?.ok_or_else(|| Error::not_found(OPERATION, "interface", name))
    }

    pub(crate) fn set_alias(&self, index: u32, alias: &str) -> Result<()> {
        self.change_link(
            index,
            vec![LinkAttribute::IfAlias(alias.to_owned())],
            false,
            "naming an interface's owner",
        )
    }

    /// Switches an interface on, and sets its MTU where one is told.
    pub(crate) fn set_up(&self, index: u32, mtu: Option<u32>) -> Result<()> {
        let attributes = mtu.map(LinkAttribute::Mtu).into_iter().collect();
        self.change_link(index, attributes, true, "switching an interface on")
    }

    /// Removes an interface; a veth's other end goes with it. Nothing there: no error.
    pub(crate) fn remove_link(&self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.change(RouteNetlinkMessage::DelLink(message), 0, "removing an interface") {
            Err(error) if error.kind() == flames_error::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Gives an interface an address; one that it has is left.
    pub(crate) fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.header.scope = match address {
            IpAddr::V4(address) if address.is_link_local() => AddressScope::Link,
            IpAddr::V6(address) if address.is_unicast_link_local() => AddressScope::Link,
            _ => AddressScope::Universe,
        };
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        if address.is_ipv6() {
            // Nobody else can be on these links, and an address that is still being probed for duplicates cannot be used.
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.change(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            "adding an address",
        )
    }

    /// Routes a range over an interface: straight, or by a neighbour's address that is taken to be on the link.
    pub(crate) fn add_route(&self, route: &Route) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(route.to.0);
        message.header.destination_prefix_length = route.to.1;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = if route.by.is_some() { RouteScope::Universe } else { RouteScope::Link };
        if route.to.1 > 0 {
            message.attributes.push(RouteAttribute::Destination(RouteAddress::from(route.to.0)));
        }
        if let Some(neighbour) = route.by {
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(neighbour)));
        }
        if let Some(source) = route.source {
            message.attributes.push(RouteAttribute::PrefSource(RouteAddress::from(source)));
        }
        message.attributes.push(RouteAttribute::Oif(route.over));
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE, "adding a route")
    }

    fn change_link(&self, index: u32, attributes: Vec<LinkAttribute>, up: bool, tried: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        if up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        self.change(RouteNetlinkMessage::NewLink(message), 0, tried)
    }

    fn change(&self, message: RouteNetlinkMessage, flags: u16, tried: &str) -> Result<()> {
        self.ask(message, flags | NLM_F_ACK, tried).map(drop)
    }

    /// Sends a request and collects the answers, up to the acknowledgement or the end of the dump.
    fn ask(&self, message: RouteNetlinkMessage, flags: u16, tried: &str) -> Result<Vec<RouteNetlinkMessage>> {
        let failed = |error: rustix::io::Errno| refused(OPERATION, tried, error.into());
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1));
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        rustix::net::send(&self.socket, &bytes, SendFlags::empty()).map_err(failed)?;

        let mut answers = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let (length, _) =
                rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()).map_err(failed)?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let unreadable = |error: netlink_packet_core::DecodeError| {
                    Error::internal(OPERATION, format!("{tried}: the kernel's answer cannot be read"))
                        .with_source(error)
                };
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(unreadable)?;
                // Messages begin at multiples of four bytes (NLMSG_ALIGN, netlink(3)).
                let taken = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(taken.max(16)..).unwrap_or_default();
                if answer.header.sequence_number != sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(answers),
                            Some(_) => Err(refused(OPERATION, tried, error.to_io())),
                        };
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    pub(crate) to: (IpAddr, u8),
    /// The neighbour's address; none: the addresses themselves are on the link.
    pub(crate) by: Option<IpAddr>,
    /// The interface's index.
    pub(crate) over: u32,
    /// The address that the host's own packets get.
    pub(crate) source: Option<IpAddr>,
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn read_link(message: LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, name: String::new(), alias: None, peer: None };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Link(index) => link.peer = Some(index),
            _ => {}
        }
    }
    link
}
