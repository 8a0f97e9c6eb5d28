//! A host, a world around it, and guests: each a network namespace of the test's own. The machine's real network is never touched.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use flames_clock::SystemRandom;
use flames_firecracker_network::{
    Attachment, Blocks, ClusterName, Incarnation, NetworkConfig, NetworkRequest, Networks, Policy, Slot,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::resolver::Resolver;

/// Addresses that servers of the world listen at.
pub(crate) const PUBLIC: &str = "198.51.100.10";
pub(crate) const PUBLIC_TOO: &str = "198.51.100.11";
pub(crate) const RESOLVER: &str = "198.51.100.53";
pub(crate) const PRIVATE: [&str; 4] = ["10.200.0.5", "172.16.9.9", "192.168.7.7", "100.64.0.9"];
pub(crate) const LINK_LOCAL: &str = "169.254.7.7";
pub(crate) const METADATA: &str = "169.254.169.254";
pub(crate) const PUBLIC6: &str = "2001:db8:100::10";
pub(crate) const PRIVATE6: [&str; 2] = ["fd99::5", "fd00:ec2::254"];

/// A port of the world's servers, beside 80.
pub(crate) const OTHER_PORT: u16 = 8443;
/// Ports of the host's servers: one that machines may be let to, and one that they are never.
pub(crate) const HOST_PORTS: [u16; 2] = [7001, 7002];

const BLOCK: &str = "10.77.0.0/24";
const BLOCK6: &str = "fd77:77::/64";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs a program that must succeed.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{command}`: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `work` on a thread inside of the namespace.
pub(crate) fn inside<T: Send + 'static>(
    namespace: impl AsRef<Path>,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let path = namespace.as_ref().to_owned();
    std::thread::spawn(move || {
        let file = File::open(path).unwrap();
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    })
    .join()
    .unwrap()
}

/// A namespace that ends with this.
#[derive(Debug)]
pub(crate) struct Ns {
    pub(crate) name: String,
}

impl Ns {
    pub(crate) fn new(name: String) -> Self {
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {name} link set lo up"));
        Self { name }
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.name))
    }

    pub(crate) fn nft(&self, arguments: &str) -> String {
        run(&format!("ip netns exec {} nft {arguments}", self.name))
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Threads that serve until they are told to end.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    pub(crate) fn ended(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.end)
    }

    pub(crate) fn add(&mut self, thread: JoinHandle<()>) {
        self.threads.push(thread);
    }

    /// Answers whoever connects with the address that it comes from, then repeats what is said.
    pub(crate) fn tcp(&mut self, namespace: &Ns, port: u16) {
        let listener =
            inside(namespace.path(), move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
        listener.set_nonblocking(true).unwrap();
        let end = self.ended();
        self.add(std::thread::spawn(move || {
            let mut open = Vec::new();
            while !end.load(Ordering::Relaxed) {
                while let Ok((mut stream, from)) = listener.accept() {
                    stream.set_nonblocking(true).unwrap();
                    let _ = writeln!(stream, "{}", from.ip().to_canonical());
                    open.push(stream);
                }
                open.retain_mut(|stream: &mut TcpStream| {
                    let mut buffer = [0; 256];
                    match stream.read(&mut buffer) {
                        Ok(0) => false,
                        Ok(length) => stream.write_all(&buffer[..length]).is_ok(),
                        Err(error) => error.kind() == ErrorKind::WouldBlock,
                    }
                });
                std::thread::sleep(Duration::from_millis(3));
            }
        }));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// How long a packet may take here: long enough for one that is sent again after a second, as a question for a neighbour is on a
/// link that has just come up. What is denied is awaited for as long.
const PATIENCE: Duration = Duration::from_millis(1300);

/// Connects and tells who the server saw, or why not.
pub(crate) fn greet(stream: &mut TcpStream) -> Result<String, String> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) if byte[0] == b'\n' => return Ok(String::from_utf8(line).unwrap()),
            Ok(1) => line.push(byte[0]),
            other => return Err(format!("no greeting: {other:?}")),
        }
    }
}

pub(crate) fn connect(namespace: &Path, to: &str, port: u16) -> Result<TcpStream, String> {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    inside(namespace, move || TcpStream::connect_timeout(&to, PATIENCE).map_err(|error| error.to_string()))
}

pub(crate) fn reach(namespace: &Path, to: &str, port: u16) -> Result<String, String> {
    greet(&mut connect(namespace, to, port)?)
}

/// Whether a connection still carries what is said.
pub(crate) fn still_talks(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; 5];
    stream.write_all(b"hello").is_ok() && stream.read_exact(&mut answer).is_ok() && answer == *b"hello"
}

/// A host and the world around it.
pub(crate) struct Lab {
    pub(crate) host: Ns,
    pub(crate) world: Ns,
    pub(crate) cluster: ClusterName,
    pub(crate) resolver: Resolver,
    // Before the namespaces: their threads' sockets hold these.
    servers: Servers,
    guests: AtomicU32,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let tag = format!("{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (host, world) = (Ns::new(format!("flt{tag}h")), Ns::new(format!("flt{tag}w")));
        host.ip(&format!("link add wan type veth peer name lan netns {}", world.name));
        for (namespace, link) in [(&host, "wan"), (&world, "lan")] {
            // The kernel's choice of a link-local address would appear a second later, in the middle of a comparison.
            let setting = format!("/proc/sys/net/ipv6/conf/{link}/addr_gen_mode");
            inside(namespace.path(), move || std::fs::write(setting, "1").unwrap());
        }
        for (namespace, link, own) in [(&host, "wan", "1"), (&world, "lan", "2")] {
            namespace.ip(&format!("addr add 203.0.113.{own}/24 dev {link}"));
            namespace.ip(&format!("addr add 2001:db8:1::{own}/64 dev {link} nodad"));
            namespace.ip(&format!("addr add fe80::a{own}/64 dev {link} nodad"));
            namespace.ip(&format!("link set {link} up"));
        }
        host.ip("route add default via 203.0.113.2");
        host.ip("route add default via 2001:db8:1::2");
        let addresses = [PUBLIC, PUBLIC_TOO, RESOLVER, LINK_LOCAL, METADATA, PUBLIC6];
        for address in addresses.iter().chain(&PRIVATE).chain(&PRIVATE6) {
            let flags = if address.contains(':') { " nodad" } else { "" };
            world.ip(&format!("addr add {address} dev lo{flags}"));
        }
        // Into the block without asking the host for it: what answers a machine must do so by its own address.
        world.ip(&format!("route add {BLOCK} via 203.0.113.1"));
        world.ip(&format!("route add {BLOCK6} via 2001:db8:1::1"));
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            inside(host.path(), move || std::fs::write(format!("/proc/sys/net/{setting}"), "1").unwrap());
        }
        let mut servers = Servers::default();
        servers.tcp(&world, 80);
        servers.tcp(&world, OTHER_PORT);
        for port in HOST_PORTS {
            servers.tcp(&host, port);
        }
        let resolver = Resolver::start(&world, RESOLVER, &mut servers);
        for address in [PUBLIC, PUBLIC6] {
            let there = (0..10).any(|_| reach(&host.path(), address, 80).is_ok());
            assert!(there, "the world is there: {address}");
        }
        let cluster = ClusterName::new(format!("t{tag}")).unwrap();
        Self { host, world, cluster, resolver, servers, guests: AtomicU32::new(0) }
    }

    pub(crate) fn config(&self) -> NetworkConfig {
        let blocks = Blocks { ipv4: BLOCK.parse().unwrap(), ipv6: Some(BLOCK6.parse().unwrap()) };
        NetworkConfig {
            host_namespace: Some(self.host.path()),
            ..NetworkConfig::new(
                self.cluster.clone(),
                blocks,
                vec![SocketAddr::new(RESOLVER.parse().unwrap(), 53)],
            )
        }
    }

    pub(crate) async fn networks(&self) -> Networks {
        self.networks_with(self.config()).await
    }

    pub(crate) async fn networks_with(&self, config: NetworkConfig) -> Networks {
        Networks::open(config, Arc::new(SystemRandom)).await.unwrap()
    }

    pub(crate) fn request(&self, slot: u32, policy: Policy) -> NetworkRequest {
        NetworkRequest {
            incarnation: Incarnation::new(format!("inc_{slot}")).unwrap(),
            slot: Slot::new(slot).unwrap(),
            mac: [0x02, 0xf1, 0, 0, 0, u8::try_from(slot).unwrap()],
            tap_owner: 0,
            policy,
        }
    }

    pub(crate) fn guest(&self, attachment: &Attachment) -> Guest {
        let number = self.guests.fetch_add(1, Ordering::Relaxed);
        Guest::start(&format!("{}g{number}", self.host.name), attachment)
    }

    /// That the host is as it was.
    pub(crate) fn assert_as(&self, before: &BTreeMap<&'static str, String>, when: &str) {
        let now = self.snapshot();
        for (what, text) in before {
            assert_eq!(now[what], *text, "{what}, {when}");
        }
    }

    /// Everything of the host that a network could leave behind, and the names of the cluster's namespaces.
    pub(crate) fn snapshot(&self) -> BTreeMap<&'static str, String> {
        let host = &self.host;
        let own = format!("flames-{}-", self.cluster.as_str());
        let namespaces = run("ip netns list");
        let settings = inside(host.path(), || {
            [
                "ipv4/ip_forward",
                "ipv4/conf/all/rp_filter",
                "ipv4/conf/default/rp_filter",
                "ipv4/conf/all/accept_redirects",
                "ipv6/conf/all/forwarding",
                "ipv6/conf/default/addr_gen_mode",
                "ipv6/conf/all/disable_ipv6",
            ]
            .map(|setting| std::fs::read_to_string(format!("/proc/sys/net/{setting}")).unwrap())
            .concat()
        });
        let neighbours_of =
            |text: String| text.lines().filter(|line| !line.contains("cache")).collect::<Vec<_>>().join("\n");
        // That both ends of a link are up is known to the kernel at once, and shown a moment later.
        let settled = |text: String| {
            let words = [("NO-CARRIER,", ""), (" state DOWN ", " state UP "), (" linkdown", "")];
            words.iter().fold(text, |text, (shown, then)| text.replace(shown, then))
        };
        BTreeMap::from([
            ("links", settled(host.ip("-o link show"))),
            ("addresses", host.ip("-o addr show")),
            ("routes", settled(neighbours_of(host.ip("route show table all")))),
            ("routes of IPv6", settled(neighbours_of(host.ip("-6 route show table all")))),
            ("rules", host.nft("list ruleset")),
            ("settings", settings),
            ("namespaces", namespaces.lines().filter(|name| name.starts_with(&own)).collect()),
        ])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(std::mem::take(&mut self.servers));
        // A case that failed leaves networks behind, and one has a second cluster.
        let own = ["", "b"].map(|more| format!("flames-{}{more}-", self.cluster.as_str()));
        for name in run("ip netns list").lines().filter_map(|line| line.split_whitespace().next()) {
            if own.iter().any(|own| name.starts_with(own)) {
                let _ = Command::new("ip").args(["netns", "del", name]).status();
            }
        }
    }
}

/// A guest's kernel: a namespace with an `eth0` whose frames go into the machine's tap, and come out of it, as those of a
/// guest's go through Firecracker.
pub(crate) struct Guest {
    pub(crate) ns: Ns,
    pub(crate) attachment: Attachment,
    end: Arc<AtomicBool>,
    pump: Option<JoinHandle<()>>,
}

impl Guest {
    fn start(name: &str, attachment: &Attachment) -> Self {
        let ns = Ns::new(name.to_owned());
        let machine = attachment.open_tap().unwrap();
        let own = Attachment { namespace: ns.path(), tap: "eth0".to_owned(), ..attachment.clone() };
        let guest = own.open_tap().unwrap();
        let mac = attachment.mac.map(|byte| format!("{byte:02x}")).join(":");
        ns.ip(&format!("link set eth0 address {mac} mtu {} up", attachment.mtu));
        let addresses = &attachment.addresses;
        ns.ip(&format!("addr add {}/{} dev eth0", addresses.guest, addresses.prefix));
        ns.ip(&format!("route add default via {}", addresses.gateway));
        if let Some(ipv6) = &addresses.ipv6 {
            ns.ip(&format!("addr add {}/{} dev eth0 nodad", ipv6.guest, ipv6.prefix));
            ns.ip(&format!("route add default via {}", ipv6.gateway));
        }
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let pump = std::thread::spawn(move || pump(machine, guest, &ended));
        Self { ns, attachment: attachment.clone(), end, pump: Some(pump) }
    }

    pub(crate) fn reach(&self, to: &str, port: u16) -> Result<String, String> {
        reach(&self.ns.path(), to, port)
    }

    pub(crate) fn connect(&self, to: &str, port: u16) -> Result<TcpStream, String> {
        let mut stream = connect(&self.ns.path(), to, port)?;
        greet(&mut stream).map(|_| stream)
    }

    pub(crate) fn gateway(&self) -> String {
        self.attachment.addresses.gateway.to_string()
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.attachment.addresses.guest.into()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(pump) = self.pump.take() {
            let _ = pump.join();
        }
    }
}

/// Carries frames both ways.
fn pump(machine: File, guest: File, end: &AtomicBool) {
    let tick = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    let mut buffer = vec![0; 70_000];
    while !end.load(Ordering::Relaxed) {
        let mut both = [PollFd::new(&machine, PollFlags::IN), PollFd::new(&guest, PollFlags::IN)];
        if poll(&mut both, Some(&tick)).is_err() {
            continue;
        }
        let ready = both.map(|one| one.revents());
        if ready.iter().any(|one| one.contains(PollFlags::ERR)) {
            // The tap is gone, or not up yet.
            std::thread::sleep(Duration::from_millis(2));
        }
        for (ready, mut from, mut to) in [(ready[0], &machine, &guest), (ready[1], &guest, &machine)] {
            let length = if ready.contains(PollFlags::IN) { from.read(&mut buffer).unwrap_or(0) } else { 0 };
            if length > 0 {
                let _ = to.write(&buffer[..length]);
            }
        }
    }
}
