use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use flames_guest_protocol::config::{MacAddress, NetworkConfig};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::{BootResult, wait_for};
use crate::console;

// Linux, include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,if}.h.
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 0x02;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const HEADER: usize = 16;

/// Brings the loopback interface up.
pub(super) fn loopback() -> BootResult<()> {
    let Some(index) = interface_index("lo") else { return Ok(()) };
    send(RTM_NEWLINK, 0, &link(index, true, None, None)).map_err(|error| format!("bring lo up: {error}"))
}

/// Sets the static network, once the interface is there.
///
/// A kernel without IPv6 is given none.
///
/// Errors: when the interface does not appear, or the kernel refuses an address or a route.
pub(super) fn configure(network: &NetworkConfig, limit: Duration) -> BootResult<()> {
    let name = &network.interface;
    let index = wait_for(limit, || interface_index(name))
        .ok_or_else(|| format!("the network interface {name:?} did not appear"))?;
    send(RTM_NEWLINK, 0, &link(index, true, network.mtu, None))
        .map_err(|error| format!("bring {name} up: {error}"))?;
    let has_ipv6 = Path::new("/proc/sys/net/ipv6").exists();
    let is_known = |address: IpAddr| address.is_ipv4() || has_ipv6;
    for assigned in network.addresses.iter().filter(|assigned| is_known(assigned.address)) {
        let message = address(index, assigned.address, assigned.prefix);
        send(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &message)
            .map_err(|error| format!("give {name} {}/{}: {error}", assigned.address, assigned.prefix))?;
    }
    for gateway in network.gateways.iter().filter(|gateway| is_known(**gateway)) {
        send(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &default_route(index, *gateway))
            .map_err(|error| format!("route by {gateway}: {error}"))?;
    }
    Ok(())
}

/// Takes the addresses of `old` away that `new` has not, and sets `new`, with its MAC address. The interface is down in between, so that
/// routes and neighbours of the old network go with it.
///
/// Errors: as [`configure`]; when the kernel refuses the MAC address.
pub(crate) fn replace(old: Option<&NetworkConfig>, new: &NetworkConfig) -> BootResult<()> {
    if old == Some(new) {
        return Ok(());
    }
    if let Some(old) = old
        && let Some(index) = interface_index(&old.interface)
    {
        for assigned in old.addresses.iter().filter(|assigned| !new.addresses.contains(assigned)) {
            // One that is gone already is as wanted.
            let _ = send(RTM_DELADDR, 0, &address(index, assigned.address, assigned.prefix));
        }
    }
    let name = &new.interface;
    if let Some(index) = interface_index(name) {
        send(RTM_NEWLINK, 0, &link(index, false, None, new.mac))
            .map_err(|error| format!("take {name} down for its new network: {error}"))?;
    }
    configure(new, Duration::from_secs(5))
}

fn interface_index(name: &str) -> Option<u32> {
    if name.contains('/') || name.is_empty() || name.starts_with('.') {
        return None;
    }
    std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok()
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    }
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// `struct ifinfomsg`: family, type, index, flags, mask of flags; the MTU and the MAC address.
fn link(index: u32, up: bool, mtu: Option<u32>, mac: Option<MacAddress>) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend_from_slice(&index.to_ne_bytes());
    message.extend_from_slice(&(if up { IFF_UP } else { 0 }).to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    if let Some(MacAddress(bytes)) = mac {
        attribute(&mut message, IFLA_ADDRESS, &bytes);
    }
    if let Some(mtu) = mtu {
        attribute(&mut message, IFLA_MTU, &mtu.to_ne_bytes());
    }
    message
}

/// `struct ifaddrmsg`: family, prefix, flags, scope, index.
fn address(index: u32, address: IpAddr, prefix: u8) -> Vec<u8> {
    let (family, octets) = octets(address);
    // An address that the host assigned is no one else's: it is usable at once.
    let mut message = vec![family, prefix, if family == AF_INET6 { IFA_F_NODAD } else { 0 }, 0];
    message.extend_from_slice(&index.to_ne_bytes());
    attribute(&mut message, IFA_LOCAL, &octets);
    attribute(&mut message, IFA_ADDRESS, &octets);
    message
}

/// `struct rtmsg`: family, lengths of destination and source, type of service, table, protocol, scope, type, flags.
fn default_route(index: u32, gateway: IpAddr) -> Vec<u8> {
    let (family, octets) = octets(gateway);
    let mut message = vec![family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0, 0, 0, 0];
    attribute(&mut message, RTA_GATEWAY, &octets);
    attribute(&mut message, RTA_OIF, &index.to_ne_bytes());
    message
}

/// Sends one request to the kernel and reads its acknowledgement.
fn send(kind: u16, flags: u16, body: &[u8]) -> std::io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE is protocol 0, the default.
        None,
    )?;
    let mut message = Vec::with_capacity(HEADER + body.len());
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(body);
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;

    let mut reply = [0; 1024];
    let (count, _) = rustix::net::recv(&socket, &mut reply, RecvFlags::empty())?;
    let unreadable = || std::io::Error::other("the kernel's answer is no acknowledgement");
    let reply = reply.get(..count).unwrap_or_default();
    let kind = reply.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = reply.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(std::io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(unreadable()),
    }
}

/// Writes `/etc/hosts` and `/etc/resolv.conf`; an image that does not let us is left as it is.
pub(crate) fn write_files(hostname: &str, network: Option<&NetworkConfig>) {
    let Some(network) = network else {
        if !Path::new("/etc/hosts").exists() {
            write("/etc/hosts", &hosts(hostname, None));
        }
        return;
    };
    write("/etc/hosts", &hosts(hostname, Some(network)));
    if !network.dns.is_empty() {
        let servers = network.dns.iter().map(|server| format!("nameserver {server}\n"));
        write("/etc/resolv.conf", &servers.collect::<String>());
    }
}

fn hosts(hostname: &str, network: Option<&NetworkConfig>) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    if !hostname.is_empty() {
        let address = network.and_then(|network| network.addresses.first());
        let address = address.map_or_else(|| "127.0.1.1".to_owned(), |first| first.address.to_string());
        text.push_str(&format!("{address} {hostname}\n"));
    }
    text
}

pub(crate) fn write(path: &str, content: &str) {
    // Images often have a link here that leads nowhere.
    if Path::new(path).is_symlink() {
        let _ = std::fs::remove_file(path);
    }
    let _ = std::fs::create_dir_all("/etc");
    if let Err(error) = std::fs::write(path, content) {
        console::line(&format!("write {path}: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_the_loopback_message() {
        // Bringing up what is up changes nothing; it needs no more than root.
        if rustix::process::getuid().is_root() {
            loopback().unwrap();
        }
    }

    #[test]
    fn the_kernel_names_what_it_refuses() {
        let error =
            send(RTM_NEWADDR, 0, &address(0x7fff_fff0, "192.0.2.1".parse().unwrap(), 24)).unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error}");
    }
}
