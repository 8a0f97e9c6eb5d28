//! The forwarder's sockets and tasks.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flames_clock::Random;
use flames_error::{Error, ErrorKind, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::grants::{Admission, Grants};
use super::message::{A, AAAA, HTTPS, META_TYPES, Query, SVCB, Unreadable, rcode};
use super::reply::{self, Addresses, Transport};
use super::upstream::Upstream;
use crate::config::{DnsConfig, NetworkConfig};
use crate::kernel::namespace::Namespace;
use crate::kernel::refused;
use crate::networks::lock;

/// The largest query: the longest name, EDNS and some options.
const LARGEST_QUERY: usize = 512;
/// The most queries over one connection of TCP.
const MOST_OVER_TCP: usize = 100;
/// How long is waited after an error of a socket that may last, as when descriptors are used up.
const PAUSE: Duration = Duration::from_millis(100);

/// The sockets of a forwarder, made inside of the machine's namespace.
#[derive(Debug)]
pub(crate) struct ForwarderSockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    host: Option<Namespace>,
}

impl ForwarderSockets {
    /// In the calling thread's namespace. `Conflict` when another listens there.
    pub(crate) fn open(addresses: &[IpAddr]) -> Result<Self> {
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                Error::new(ErrorKind::Conflict, "network.dns", "another forwarder serves the machine")
                    .with_source(error)
            }
            _ => refused("network.dns", "opening the forwarder's sockets", error),
        };
        let mut sockets = Self { udp: Vec::new(), tcp: Vec::new(), host: None };
        for address in addresses {
            let at = SocketAddr::new(*address, 53);
            let udp = UdpSocket::bind(at).map_err(failed)?;
            udp.set_nonblocking(true).map_err(failed)?;
            sockets.udp.push(udp);
            let tcp = TcpListener::bind(at).map_err(failed)?;
            tcp.set_nonblocking(true).map_err(failed)?;
            sockets.tcp.push(tcp);
        }
        Ok(sockets)
    }

    pub(crate) fn with_host(mut self, host: Namespace) -> Self {
        self.host = Some(host);
        self
    }
}

/// A running forwarder. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Forwarder {
    grants: Arc<Grants>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Forwarder {
    pub(crate) fn start(
        config: &NetworkConfig,
        sockets: ForwarderSockets,
        grants: Arc<Grants>,
        random: Arc<dyn Random>,
    ) -> Result<Self> {
        let failed = |error| refused("network.dns", "serving the forwarder's sockets", error);
        let dns = config.dns.clone();
        // Without a namespace of its own the host is where this process is, and where any thread may open a socket.
        let host = sockets.host.filter(|_| config.host_namespace.is_some()).map(Arc::new);
        let upstream = Upstream::new(dns.upstreams.clone(), dns.upstream_deadline, host, random);
        let server = Arc::new(Server {
            upstream,
            grants: Arc::clone(&grants),
            queries: Arc::new(Semaphore::new(dns.concurrent_queries)),
            connections: Arc::new(Semaphore::new(dns.tcp_connections)),
            rate: Mutex::new(Rate::new(dns.queries_per_second)),
            dns,
        });
        let mut forwarder = Self { grants, tasks: Vec::new() };
        for socket in sockets.udp {
            let socket = tokio::net::UdpSocket::from_std(socket).map_err(failed)?;
            forwarder.tasks.push(tokio::spawn(Arc::clone(&server).serve_udp(Arc::new(socket))));
        }
        for listener in sockets.tcp {
            let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
            forwarder.tasks.push(tokio::spawn(Arc::clone(&server).serve_tcp(listener)));
        }
        Ok(forwarder)
    }

    pub(crate) fn grants(&self) -> Arc<Grants> {
        Arc::clone(&self.grants)
    }

    /// Ends it and waits until its sockets are closed.
    pub(crate) async fn stop(mut self) {
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            let _ = task.await;
        }
    }
}

#[derive(Debug)]
struct Server {
    dns: DnsConfig,
    upstream: Upstream,
    grants: Arc<Grants>,
    queries: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    rate: Mutex<Rate>,
}

impl Server {
    async fn serve_udp(self: Arc<Self>, socket: Arc<tokio::net::UdpSocket>) {
        let mut under_way = JoinSet::new();
        // One byte more, to tell a longer one.
        let mut buffer = [0; LARGEST_QUERY + 1];
        loop {
            while under_way.try_join_next().is_some() {}
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            if length > LARGEST_QUERY || !lock(&self.rate).take() {
                continue;
            }
            let Ok(permit) = Arc::clone(&self.queries).try_acquire_owned() else { continue };
            let query = buffer.get(..length).unwrap_or_default().to_vec();
            let (server, socket) = (Arc::clone(&self), Arc::clone(&socket));
            under_way.spawn(async move {
                if let Some(answer) = server.answer(&query, Transport::Udp).await {
                    let _ = socket.send_to(&answer, from).await;
                }
                drop(permit);
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: tokio::net::TcpListener) {
        let mut open = JoinSet::new();
        loop {
            while open.try_join_next().is_some() {}
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            // Beyond the bound it is closed again.
            let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else { continue };
            let server = Arc::clone(&self);
            open.spawn(async move {
                server.serve_connection(stream).await;
                drop(permit);
            });
        }
    }

    async fn serve_connection(&self, mut stream: tokio::net::TcpStream) {
        for _ in 0..MOST_OVER_TCP {
            let message = timeout(self.dns.tcp_deadline, async {
                let length = usize::from(stream.read_u16().await.ok()?);
                if length > LARGEST_QUERY {
                    return None;
                }
                let mut message = vec![0; length];
                stream.read_exact(&mut message).await.ok()?;
                Some(message)
            });
            let Ok(Some(message)) = message.await else { return };
            if !lock(&self.rate).take() {
                return;
            }
            let Ok(_permit) = self.queries.try_acquire() else { return };
            let Some(answer) = self.answer(&message, Transport::Tcp).await else { return };
            let mut framed = u16::try_from(answer.len()).unwrap_or_default().to_be_bytes().to_vec();
            framed.extend(answer);
            match timeout(self.dns.tcp_deadline, stream.write_all(&framed)).await {
                Ok(Ok(())) => {}
                _ => return,
            }
        }
    }

    /// None: nothing is answered.
    async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = match Query::read(bytes) {
            Ok(query) => query,
            Err(Unreadable::Ignore) => return None,
            Err(Unreadable::Code { id, code }) => return Some(reply::unreadable(id, code)),
        };
        let plan = self.grants.plan();
        let policy = &plan.request.policy;
        let refused = || Some(reply::empty(&query, rcode::REFUSED));
        let Some(name) = query.name.text().filter(|name| policy.resolves(name)) else { return refused() };
        if META_TYPES.contains(&query.kind) {
            return refused();
        }
        let no_data = || Some(reply::empty(&query, rcode::NO_ERROR));
        let without_ipv6 = query.kind == AAAA && plan.addresses.ipv6.is_none();
        if without_ipv6 || query.kind == HTTPS || query.kind == SVCB {
            return no_data();
        }
        let failed = || Some(reply::empty(&query, rcode::SERVER_FAILURE));
        let Ok(response) = self.upstream.ask(&query).await else { return failed() };
        match response.code {
            rcode::NO_ERROR => {}
            rcode::NO_SUCH_NAME => return Some(reply::empty(&query, rcode::NO_SUCH_NAME)),
            _ => return failed(),
        }
        if query.kind != A && query.kind != AAAA {
            return reply::passed_on(&query, &response, transport).or_else(failed);
        }
        let blocks = plan.blocks();
        let may = |address: IpAddr| policy.may_resolve_to(address) && !blocks.contain(address);
        let found = Addresses::find(&query, &response, may);
        if found.addresses.is_empty() {
            return no_data();
        }
        let longest = u32::try_from(self.dns.longest_lifetime.as_secs()).unwrap_or(u32::MAX);
        let ttl = found.ttl.min(longest);
        let (grants, addresses) = (Arc::clone(&self.grants), found.addresses.clone());
        let lifetime = Duration::from_secs(ttl.into());
        let admitted = flames_host::blocking(move || grants.admit(&name, &addresses, lifetime)).await;
        match admitted {
            Ok(Admission::Admitted) => Some(found.encode(&query, ttl, transport)),
            Ok(Admission::Refused) => refused(),
            Err(_) => failed(),
        }
    }
}

/// So many in a second on average, after a burst of twice as many.
#[derive(Debug)]
struct Rate {
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Rate {
    fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: 2.0 * per_second, at: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let now = Instant::now();
        let gained = now.duration_since(self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + gained).min(2.0 * self.per_second);
        self.at = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}
