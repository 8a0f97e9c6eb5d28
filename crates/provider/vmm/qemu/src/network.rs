//! Ports of the host that lead into guests.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use flames_error::{Error, ErrorKind, Result};
use flames_vmm::PortForward;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};

/// A port that is held for a monitor which will listen on it.
///
/// The socket is bound and does not listen: no other process is given the port, while a monitor, which sets `SO_REUSEADDR` as this
/// socket does, can bind and listen beside it (socket(7)).
#[derive(Debug)]
pub(crate) struct PortReservation {
    _socket: OwnedFd,
}

/// Holds every port that is asked for. `InvalidInput`, `NotSupported`, or `Exhausted` when a port is taken.
pub(crate) fn reserve(forwards: &[PortForward]) -> Result<(BTreeMap<u16, SocketAddr>, Vec<PortReservation>)> {
    const OPERATION: &str = "vmm.prepare";
    let mut addresses = BTreeMap::new();
    let mut reservations = Vec::new();
    for forward in forwards {
        if forward.guest_port == 0 {
            return Err(Error::invalid(OPERATION, "network.forwards", "A port of the guest is 1 to 65535."));
        }
        if !forward.listen.is_ipv4() {
            let sentence = "QEMU's user-mode network forwards from IPv4 addresses only.";
            return Err(Error::new(ErrorKind::NotSupported, OPERATION, sentence).with_user_message(sentence));
        }
        let (reservation, address) = hold(forward.listen).map_err(|error| {
            let sentence = match error.kind() {
                io::ErrorKind::AddrInUse => format!("Port {} of the host is in use.", forward.listen.port()),
                _ => format!("Port {} of the host cannot be listened on.", forward.listen.port()),
            };
            let kind = match error.kind() {
                io::ErrorKind::AddrInUse => ErrorKind::Exhausted,
                _ => ErrorKind::InvalidInput,
            };
            Error::new(kind, OPERATION, sentence.clone())
                .with_field("network.forwards")
                .with_user_message(sentence)
                .with_source(error)
        })?;
        if addresses.insert(forward.guest_port, address).is_some() {
            return Err(Error::invalid(
                OPERATION,
                "network.forwards",
                "A port of the guest is forwarded once.",
            ));
        }
        reservations.push(reservation);
    }
    Ok((addresses, reservations))
}

/// Holds ports again that an earlier driver settled, as far as that is possible.
pub(crate) fn reserve_again(addresses: &BTreeMap<u16, SocketAddr>) -> Vec<PortReservation> {
    addresses.values().filter_map(|address| Some(hold(*address).ok()?.0)).collect()
}

fn hold(address: SocketAddr) -> io::Result<(PortReservation, SocketAddr)> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A port of the kernel's choice must be one that nobody shares, so sharing is allowed only after the choice.
    let chosen_by_kernel = address.port() == 0;
    if !chosen_by_kernel {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    if chosen_by_kernel {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    let bound = SocketAddr::try_from(getsockname(&socket)?).map_err(io::Error::from)?;
    Ok((PortReservation { _socket: socket }, bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(listen: &str, guest_port: u16) -> PortForward {
        PortForward { listen: listen.parse().unwrap(), guest_port }
    }

    #[test]
    fn a_held_port_is_given_to_nobody_else_and_can_be_listened_on_by_the_monitor() {
        let (addresses, _held) = reserve(&[forward("127.0.0.1:0", 80)]).unwrap();
        let address = addresses[&80];
        assert_ne!(address.port(), 0);
        // std's listener sets SO_REUSEADDR, as QEMU does.
        let monitor = std::net::TcpListener::bind(address).unwrap();
        let taken = reserve(&[forward(&address.to_string(), 80)]).unwrap_err();
        assert_eq!((taken.kind(), taken.field()), (ErrorKind::Exhausted, Some("network.forwards")));
        drop(monitor);
    }

    #[test]
    fn wrong_forwards_are_refused() {
        assert_eq!(reserve(&[forward("127.0.0.1:0", 0)]).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(reserve(&[forward("[::1]:0", 80)]).unwrap_err().kind(), ErrorKind::NotSupported);
        let twice = [forward("127.0.0.1:0", 80), forward("127.0.0.1:0", 80)];
        assert_eq!(reserve(&twice).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(reserve(&[forward("192.0.2.1:0", 80)]).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
