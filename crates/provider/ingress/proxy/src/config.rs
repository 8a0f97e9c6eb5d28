//! What the proxy is told when it starts.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flames_error::{Error, Result};
use flames_ingress::{Dial, Route, RouteKey};

use crate::access::{AccessLog, TracingAccessLog};
use crate::network::Network;
use crate::wake::WakeTarget;

/// Where the proxy listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// The address; port 0 takes a free one ([`crate::Proxy::addresses`] tells which).
    pub address: SocketAddr,
    /// Whether it speaks TLS (then [`ProxyConfig::tls`] must be set).
    pub tls: bool,
}

/// One certificate and what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// Server names (SNI) that it is shown for: `a.example`, or `*.example` for one label in front. Empty: for every name that no
    /// other certificate is for, and for clients that name none.
    pub hosts: Vec<String>,
    /// PEM: the certificate, then its chain.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

/// Everything that can be set. [`ProxyConfig::new`] gives defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Where it listens; at least one.
    pub listeners: Vec<Listener>,
    /// The domain under which VMs are named: a port of a VM is `{port}-{vm}.{domain}`.
    pub domain: String,
    /// The port that URLs name, when it is not the one of the first listener (a load balancer in front).
    pub public_port: Option<u16>,
    /// The scheme that URLs name, when it is not the one of the first listener: true for `https`.
    pub public_tls: Option<bool>,
    /// The certificates, when a listener speaks TLS. Read again when a file changes.
    pub tls: Vec<CertificateFiles>,
    /// Peers whose `Forwarded` and `X-Forwarded-*` headers are believed and extended. From all others they are overwritten.
    pub trusted_proxies: Vec<Network>,
    /// Threads that serve, each with a runtime of its own; hooks are called there. 0: the runtime that the proxy is started on
    /// serves. Default: one for each processor.
    pub workers: usize,
    /// How much of anything there may be.
    pub limits: Limits,
    /// How long anything may take.
    pub timeouts: Timeouts,
}

impl ProxyConfig {
    /// One plain listener at `address`, and defaults for the rest.
    pub fn new(address: SocketAddr, domain: impl Into<String>) -> Self {
        Self {
            listeners: vec![Listener { address, tls: false }],
            domain: domain.into(),
            public_port: None,
            public_tls: None,
            tls: Vec::new(),
            trusted_proxies: Vec::new(),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }

    /// `InvalidInput`, naming the setting, when something cannot be.
    pub(crate) fn validate(&self) -> Result<()> {
        const OPERATION: &str = "ingress.start";
        let refuse = |field: &str, sentence: &str| Err(Error::invalid(OPERATION, field, sentence));
        if self.listeners.is_empty() {
            return refuse("listeners", "The proxy needs at least one listener.");
        }
        if self.listeners.iter().any(|listener| listener.tls) && self.tls.is_empty() {
            return refuse("tls", "A listener speaks TLS, and there is no certificate.");
        }
        let vm = flames_ingress::RouteOwner::new("vm")?;
        let domain = Route { key: RouteKey { vm, port: 1 }, hosts: vec![self.domain.clone()] };
        if domain.validate().is_err() {
            return refuse("domain", "The domain is a lower-case DNS name.");
        }
        let limits = &self.limits;
        let counts = [
            ("limits.connections", limits.connections),
            ("limits.headers", limits.headers),
            ("limits.uri_bytes", limits.uri_bytes),
            ("limits.requests_per_target", limits.requests_per_target),
            ("limits.tunnels", limits.tunnels),
            ("limits.streams_per_connection", limits.streams_per_connection as usize),
        ];
        if let Some((field, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return refuse(field, "This limit is at least 1.");
        }
        if !(8 * 1024..=1024 * 1024).contains(&limits.header_bytes) {
            return refuse("limits.header_bytes", "This limit is 8 KiB to 1 MiB.");
        }
        if self.workers > 1_024 {
            return refuse("workers", "There are at most 1,024 workers.");
        }
        let t = &self.timeouts;
        let spans = [
            ("timeouts.header_read", t.header_read),
            ("timeouts.connect", t.connect),
            ("timeouts.response", t.response),
            ("timeouts.body_idle", t.body_idle),
            ("timeouts.client_idle", t.client_idle),
            ("timeouts.upstream_idle", t.upstream_idle),
            ("timeouts.tunnel_idle", t.tunnel_idle),
            ("timeouts.wake", t.wake),
        ];
        match spans.iter().find(|(_, span)| span.is_zero()) {
            Some((field, _)) => refuse(field, "This timeout is more than 0."),
            None => Ok(()),
        }
    }
}

/// How much of anything there may be. What is above is refused with the status named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Client connections at once. One more gets 503 (over TLS: is closed). Default 10,240.
    pub connections: usize,
    /// Bytes of a request's or response's head. 431, or 502 for a response. 8 KiB to 1 MiB; default 64 KiB.
    pub header_bytes: usize,
    /// Headers of a request or response. 431, or 502. Default 100.
    pub headers: usize,
    /// Bytes of a request's path and query. 414. Default 8 KiB.
    pub uri_bytes: usize,
    /// Bytes of a request's body. 413. Default: no limit, it streams.
    pub request_body: Option<u64>,
    /// Requests in flight, tunnels included, to one target. 503. Default 1,024.
    pub requests_per_target: usize,
    /// Idle connections kept to one target. Default 64.
    pub idle_per_target: usize,
    /// Upgraded connections (WebSockets) at once. 503. Default 10,240.
    pub tunnels: usize,
    /// Requests at once in one HTTP/2 connection; the client is told. Default 128.
    pub streams_per_connection: u32,
    /// Requests that wait for one VM to wake. 503. Default 128.
    pub waiting_per_vm: usize,
    /// Requests that wait for VMs to wake in all. 503. Default 1,024.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_240,
            header_bytes: 64 * 1024,
            headers: 100,
            uri_bytes: 8 * 1024,
            request_body: None,
            requests_per_target: 1_024,
            idle_per_target: 64,
            tunnels: 10_240,
            streams_per_connection: 128,
            waiting_per_vm: 128,
            waiting: 1_024,
        }
    }
}

/// How long anything may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first byte of a request (or of a TLS handshake) to the end of its head; a client that sends nothing at all after it
    /// connected has as long. The connection is closed. Default 10 s; checked four times in that span.
    pub header_read: Duration,
    /// To connect to a target. 504. Default 5 s.
    pub connect: Duration,
    /// From the request to the head of the target's response. 504. Default 60 s.
    pub response: Duration,
    /// Without a byte of a body moving, either way. The request is cut. Default 60 s.
    pub body_idle: Duration,
    /// From the request to the end of its response; upgrades and waking count until they are done. 504, or the response is cut.
    /// Default: none.
    pub request: Option<Duration>,
    /// A client connection without a request. Closed. Default 75 s.
    pub client_idle: Duration,
    /// A kept connection to a target without a request. Closed. Default 30 s.
    pub upstream_idle: Duration,
    /// An upgraded connection without a byte either way. Closed. Default 1 h.
    pub tunnel_idle: Duration,
    /// For a VM to wake and its route to be there. 503. Default 30 s.
    pub wake: Duration,
    /// How long what runs to a target whose route was removed may run on. Default 10 s.
    pub removed_target: Duration,
    /// How often certificate files are looked at. Default 10 s.
    pub certificate_check: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            header_read: seconds(10),
            connect: seconds(5),
            response: seconds(60),
            body_idle: seconds(60),
            request: None,
            client_idle: seconds(75),
            upstream_idle: seconds(30),
            tunnel_idle: seconds(3_600),
            wake: seconds(30),
            removed_target: seconds(10),
            certificate_check: seconds(10),
        }
    }
}

/// What a target speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// HTTP/1.1, with pooled connections, each for one request at a time.
    #[default]
    Http1,
    /// HTTP/2 without TLS, by prior knowledge (RFC 9113, section 3.3): one connection for all requests.
    Http2,
}

/// Says what the target of a route speaks. Asked once for each registration.
pub type ProtocolOf = Arc<dyn Fn(&RouteKey) -> Protocol + Send + Sync>;

/// What the proxy asks and tells.
#[derive(Clone)]
pub struct Hooks {
    /// How guests' ports are reached. None: only addresses can be targets.
    pub dial: Option<Arc<dyn Dial>>,
    /// Who wakes VMs that rest. None: nobody.
    pub wake: Option<Arc<dyn WakeTarget>>,
    /// Where finished requests are told. Default: one `tracing` event each, target `flames::access`.
    pub access_log: Arc<dyn AccessLog>,
    /// What targets speak. Default: HTTP/1.1.
    pub protocol: ProtocolOf,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            dial: None,
            wake: None,
            access_log: Arc::new(TracingAccessLog),
            protocol: Arc::new(|_| Protocol::Http1),
        }
    }
}

impl Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks")
            .field("dial", &self.dial)
            .field("wake", &self.wake)
            .field("access_log", &self.access_log)
            .finish_non_exhaustive()
    }
}
