//! Ports that nobody else uses.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

/// Below this, well-known services live.
const LOWEST: u16 = 15_000;

/// Where Linux takes the ports of outgoing connections from when `/proc` does not say (ip(7)).
const USUAL_EPHEMERAL_START: u16 = 32_768;

/// How often a random port is tried before the kernel is asked for any.
const TRIES: usize = 200;

/// What this process has been given already, since a port is free again until its server has bound it.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Finds `count` different TCP ports of 127.0.0.1 that nobody listens on.
///
/// They come from below the range of outgoing connections: while a server is down between `kill` and `restart`, no
/// connection can take its port, and a client that tries to reach it cannot by accident connect to itself. Another process may
/// still bind one of them before the caller does; who starts a server tries again then.
///
/// # Errors
/// When the system has no free port.
pub fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    // All are held until all are found, so that no two are the same.
    let mut held: Vec<(u16, TcpListener)> = Vec::with_capacity(count);
    while held.len() < count {
        let (port, listener) = free_port(&given)?;
        given.insert(port);
        held.push((port, listener));
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

fn free_port(given: &BTreeSet<u16>) -> io::Result<(u16, TcpListener)> {
    let end = ephemeral_start();
    if end > LOWEST + 1_000 {
        for _ in 0..TRIES {
            let offset = random() % u64::from(end - LOWEST);
            let port = LOWEST + u16::try_from(offset).unwrap_or_default();
            if given.contains(&port) {
                continue;
            }
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                return Ok((port, listener));
            }
        }
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok((listener.local_addr()?.port(), listener))
}

fn ephemeral_start() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|start| start.parse().ok()).unwrap_or(USUAL_EPHEMERAL_START)
}

/// A number that differs from call to call and from process to process: the standard library seeds each `RandomState`
/// from the system.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_different_and_can_be_bound() {
        let ports = free_ports(20).unwrap();
        let different: BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(different.len(), 20);
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        }
    }

    #[test]
    fn a_port_is_not_given_twice_by_one_process() {
        let first = free_ports(50).unwrap();
        let second = free_ports(50).unwrap();
        assert!(first.iter().all(|port| !second.contains(port)));
    }
}
