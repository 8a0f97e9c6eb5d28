//! A host with a world around it, each a network namespace of the test's own: the machine's real network is never touched.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::support::{entering, finish};

/// Servers of the world listen here, on port 80.
pub(crate) const PUBLIC: &str = "198.51.100.10";
pub(crate) const PUBLIC_TOO: &str = "198.51.100.11";
pub(crate) const PRIVATE: &str = "10.40.0.5";
pub(crate) const METADATA: &str = "169.254.169.254";
pub(crate) const PUBLIC6: &str = "2001:db8:100::10";
/// A port of the world's servers, beside 80.
pub(crate) const OTHER_PORT: u16 = 81;
/// The resolver, which knows the names of [`answer`].
pub(crate) const RESOLVER: &str = "198.51.100.53";

static NEXT: AtomicU32 = AtomicU32::new(0);
/// The namespaces of this process.
static MADE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Removes all namespaces of this process that are still there.
pub(crate) fn clear_all() {
    for name in std::mem::take(&mut *MADE.lock().unwrap_or_else(PoisonError::into_inner)) {
        if Path::new("/run/netns").join(&name).exists() {
            let _ = Command::new("ip").args(["netns", "delete", &name]).status();
        }
    }
}

/// Runs a program that must succeed.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    finish(Command::new(words.next().unwrap()).args(words), b"").ok()
}

/// A namespace that ends with this.
#[derive(Debug)]
pub(crate) struct Ns(String);

impl Ns {
    fn new(name: String) -> Self {
        MADE.lock().unwrap().push(name.clone());
        run(&format!("ip netns add {name}"));
        let made = Self(name);
        made.ip("link set lo up");
        made
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.0))
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// The two namespaces, and what serves in the world.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) host: Ns,
    _world: Ns,
    end: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let name = format!("flt{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (host, world) = (Ns::new(format!("{name}h")), Ns::new(format!("{name}w")));
        run(&format!("ip -n {} link add out type veth peer name in netns {}", host.0, world.0));
        host.ip("address add 203.0.113.1/24 dev out");
        host.ip("link set out up");
        world.ip("address add 203.0.113.254/24 dev in");
        world.ip("link set in up");
        host.ip("route add default via 203.0.113.254");
        // Usable at once: duplicates are not looked for.
        host.ip("address add 2001:db8:1::1/64 dev out nodad");
        world.ip("address add 2001:db8:1::254/64 dev in nodad");
        world.ip(&format!("address add {PUBLIC6}/128 dev lo nodad"));
        host.ip("route add default via 2001:db8:1::254");
        for address in [PUBLIC, PUBLIC_TOO, PRIVATE, METADATA, RESOLVER] {
            world.ip(&format!("address add {address}/32 dev lo"));
        }
        let end = Arc::new(AtomicBool::new(false));
        let mut servers = vec![resolve(&world, Arc::clone(&end))];
        servers.extend([80, OTHER_PORT].map(|port| accept(&world, port, Arc::clone(&end))));
        Self { host, _world: world, end, servers }
    }

    /// What a program in the host's namespace says.
    pub(crate) fn on_host(&self, program: &str, arguments: &[&str]) -> crate::support::Ended {
        finish(entering(&self.host.path(), program).args(arguments), b"")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for server in self.servers.drain(..) {
            let _ = server.join();
        }
    }
}

/// Runs `work` on a thread inside of the namespace.
fn inside<T: Send + 'static>(namespace: &Ns, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let path = namespace.path();
    thread::spawn(move || {
        let file = File::open(path).unwrap();
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), network).unwrap();
        work()
    })
}

/// Takes every connection to a port in the world, and ends it, until it is told to end itself.
fn accept(world: &Ns, port: u16, end: Arc<AtomicBool>) -> JoinHandle<()> {
    inside(world, move || {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        while !end.load(Ordering::Relaxed) {
            drop(listener.accept());
            thread::sleep(Duration::from_millis(5));
        }
    })
}

/// A resolver in the world, until it is told to end.
fn resolve(world: &Ns, end: Arc<AtomicBool>) -> JoinHandle<()> {
    inside(world, move || {
        let address: IpAddr = RESOLVER.parse().unwrap();
        let socket = UdpSocket::bind(SocketAddr::new(address, 53)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut query = [0; 512];
        while !end.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
            if let Some(reply) = answer(&query[..length]) {
                let _ = socket.send_to(&reply, from);
            }
        }
    })
}

/// The answer to a question for an address (RFC 1035, section 4): `good.test` and `other.test` are public, `inside.test` is private. A
/// question for anything else has no answer in it.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let question = query.get(12..at + 4)?;
    let is_for_ipv4 = question.get(question.len() - 4..)? == [0, 1, 0, 1];
    let known = match labels.join(".").as_str() {
        "good.test" => Some(PUBLIC),
        "other.test" => Some(PUBLIC_TOO),
        "inside.test" => Some(PRIVATE),
        _ => None,
    };
    let found: Option<Ipv4Addr> = known.filter(|_| is_for_ipv4).map(|address| address.parse().unwrap());
    let mut reply = query.get(..2)?.to_vec();
    // A response, recursion desired and available, without an error; one question, no authority, nothing additional.
    reply.extend([0x81, 0x80, 0, 1, 0, u8::from(found.is_some()), 0, 0, 0, 0]);
    reply.extend(question);
    if let Some(address) = found {
        // The question's name, an address of the internet, for 60 s.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}
