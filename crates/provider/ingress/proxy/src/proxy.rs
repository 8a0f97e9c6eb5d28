//! The proxy as a whole: its listeners, its janitor, its end; and the provider that it is.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use flames_error::{Error, ErrorKind, Result};
use flames_ingress::{
    IngressCapabilities, IngressProvider, MAX_PAGE, Registration, RegistrationPage, Route, RouteKey,
    RouteOwner, Target,
};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::client::serve;
use crate::config::{Hooks, ProtocolOf, ProxyConfig};
use crate::headers::Origin;
use crate::network::Network;
use crate::problem::TOO_MANY_CONNECTIONS;
use crate::shared::{Place, Shared, Spawner};
use crate::table::{Retired, Table};
use crate::tls::Certificates;
use crate::upstream::{Connector, Upstream};
use crate::wake::Wakes;
use crate::workers::Workers;

/// A running proxy. See the crate's docs. Dropping it ends it at once; [`Proxy::shutdown`] ends it in order.
pub struct Proxy {
    shared: Arc<Shared>,
    connector: Arc<Connector>,
    protocol: ProtocolOf,
    addresses: Vec<SocketAddr>,
    certificates: Option<Arc<Certificates>>,
    removed: Removed,
    workers: Workers,
    /// `https` or `http`, and the port when it is not the scheme's own.
    url: (&'static str, Option<u16>),
}

/// Targets whose routes were removed, and when what runs to them ends.
type Removed = Arc<Mutex<Vec<(Instant, Arc<Upstream>)>>>;

impl Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy")
            .field("addresses", &self.addresses)
            .field("routes", &self.shared.table.len())
            .finish_non_exhaustive()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.spawner.kill();
    }
}

impl Proxy {
    /// Binds all listeners, starts the workers and serves. Called on a tokio runtime.
    ///
    /// Errors: `InvalidInput`, naming the setting, for a configuration or certificate that cannot be; `Unavailable` when an
    /// address cannot be listened at.
    pub async fn start(config: ProxyConfig, hooks: Hooks) -> Result<Self> {
        config.validate()?;
        let certificates = if config.tls.is_empty() {
            None
        } else {
            Some(Arc::new(Certificates::read(config.tls.clone())?))
        };
        let acceptor = match &certificates {
            Some(certificates) => Some(TlsAcceptor::from(Arc::new(certificates.server_config()?))),
            None => None,
        };
        let unusable = |error: std::io::Error| {
            Error::internal("ingress.start", "a listener cannot be used").with_source(error)
        };
        let mut listeners = Vec::new();
        for listener in &config.listeners {
            let bound = TcpListener::bind(listener.address).await.map_err(|error| {
                Error::unavailable("ingress.start", "the address cannot be listened at")
                    .with_context("address", listener.address)
                    .with_user_message(format!("The proxy cannot listen at {}: {error}", listener.address))
                    .with_source(error)
            })?;
            listeners.push((bound.into_std().map_err(unusable)?, acceptor.clone().filter(|_| listener.tls)));
        }
        let addresses = listeners
            .iter()
            .map(|(bound, _)| bound.local_addr())
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(unusable)?;

        let is_tls = config.public_tls.unwrap_or(config.listeners[0].tls);
        let (scheme, own_port) = if is_tls { ("https", 443) } else { ("http", 80) };
        let port = config.public_port.unwrap_or(addresses[0].port());
        let spawner = Spawner::new();
        let connector = Arc::new(Connector {
            dial: hooks.dial,
            limits: config.limits.clone(),
            timeouts: config.timeouts.clone(),
            spawner: spawner.clone(),
            pooled: Mutex::default(),
        });
        let limits = &config.limits;
        let wakes = hooks.wake.map(|hook| Wakes::new(hook, limits.waiting_per_vm, limits.waiting));
        let shared = Arc::new(Shared {
            table: Table::new(config.domain),
            limits: config.limits,
            timeouts: config.timeouts,
            access_log: hooks.access_log,
            wakes,
            spawner: spawner.clone(),
            tunnels: Arc::new(AtomicUsize::new(0)),
            connections: Arc::new(AtomicUsize::new(0)),
            refusals: Arc::new(AtomicUsize::new(0)),
        });
        let trusted: Arc<[Network]> = config.trusted_proxies.into();
        let workers = Workers::start(config.workers)?;
        for (listener, tls) in &listeners {
            for worker in workers.handles() {
                let listener = listener.try_clone().map_err(unusable)?;
                let accept = listen(Arc::clone(&shared), listener, tls.clone(), Arc::clone(&trusted));
                spawner.spawn_on(worker, accept);
            }
        }
        let removed = Removed::default();
        let house = keep_house(Arc::clone(&connector), Arc::clone(&removed), certificates.clone());
        spawner.spawn_on(&workers.handles()[0], house);
        Ok(Self {
            shared,
            connector,
            protocol: hooks.protocol,
            addresses,
            certificates,
            removed,
            workers,
            url: (scheme, Some(port).filter(|port| *port != own_port)),
        })
    }

    /// Where it listens, in the order of [`ProxyConfig::listeners`].
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Reads the certificate files again, now. New connections get the new ones; when a file cannot be used, `InvalidInput` names
    /// it and the old ones stay.
    pub async fn reload_certificates(&self) -> Result<()> {
        let Some(certificates) = self.certificates.clone() else { return Ok(()) };
        let reload = tokio::task::spawn_blocking(move || certificates.reload());
        reload.await.map_err(|error| Error::internal("ingress.certificates", error.to_string()))?
    }

    /// Accepts no more connections, lets requests and upgraded connections end within `deadline`, then ends the rest. Answers how
    /// many tasks had to be ended.
    pub async fn shutdown(&self, deadline: Duration) -> usize {
        let spawner = &self.shared.spawner;
        spawner.drain();
        let left = match timeout(deadline, spawner.ended()).await {
            Ok(()) => 0,
            Err(_) => spawner.running(),
        };
        spawner.kill();
        spawner.ended().await;
        self.workers.stop();
        while !self.workers.have_ended() {
            sleep(Duration::from_millis(1)).await;
        }
        left
    }

    fn url_of(&self, route: &Route) -> String {
        let (scheme, port) = self.url;
        let host =
            route.hosts.first().cloned().unwrap_or_else(|| self.shared.table.conventional_host(&route.key));
        match port {
            Some(port) => format!("{scheme}://{host}:{port}/"),
            None => format!("{scheme}://{host}/"),
        }
    }

    fn retire(&self, retired: Option<Retired>) {
        match retired {
            None => {}
            Some(Retired::Replaced(upstream)) => upstream.retire(),
            Some(Retired::Removed(upstream)) => {
                upstream.retire();
                let deadline = Instant::now() + self.shared.timeouts.removed_target;
                self.removed.lock().unwrap_or_else(PoisonError::into_inner).push((deadline, upstream));
            }
        }
    }
}

#[async_trait]
impl IngressProvider for Proxy {
    fn name(&self) -> &'static str {
        "proxy"
    }

    fn capabilities(&self) -> IngressCapabilities {
        IngressCapabilities { forwards: true, guest_targets: self.connector.dial.is_some() }
    }

    fn url(&self, route: &Route) -> Option<String> {
        Some(self.url_of(route))
    }

    async fn register(&self, route: Route, target: Target) -> Result<Registration> {
        if matches!(target, Target::Guest { .. }) && self.connector.dial.is_none() {
            return Err(Error::new(
                ErrorKind::NotSupported,
                "ingress.register",
                "the proxy was started without a way to dial guests",
            ));
        }
        let url = self.url_of(&route);
        let protocol = (self.protocol)(&route.key);
        let (registration, retired) = self.shared.table.register(route, target, url, |target| {
            Arc::new(Upstream::new(target.clone(), protocol, Arc::clone(&self.connector)))
        })?;
        self.retire(retired);
        Ok(registration)
    }

    async fn unregister_port(&self, key: &RouteKey) -> Result<()> {
        self.retire(self.shared.table.remove(key, |_| true));
        Ok(())
    }

    async fn unregister(&self, vm: &RouteOwner) -> Result<()> {
        for registration in self.shared.table.of(vm) {
            self.retire(self.shared.table.remove(&registration.route.key, |_| true));
        }
        Ok(())
    }

    async fn unregister_target(&self, key: &RouteKey, target: &Target) -> Result<bool> {
        let retired = self.shared.table.remove(key, |standing| standing == target);
        let was_there = retired.is_some();
        self.retire(retired);
        Ok(was_there)
    }

    async fn get(&self, vm: &RouteOwner) -> Result<Vec<Registration>> {
        Ok(self.shared.table.of(vm))
    }

    async fn list(&self, after: Option<&RouteKey>, limit: usize) -> Result<RegistrationPage> {
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(Error::invalid("ingress.list", "limit", "A page has 1 to 1,000 routes."));
        }
        Ok(self.shared.table.page(after, limit))
    }
}

async fn listen(
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    tls: Option<TlsAcceptor>,
    trusted: Arc<[Network]>,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a worker cannot listen"),
    };
    /// After an error that is not one connection's (no more file descriptors): accepting again at once would only burn time.
    const PAUSE: Duration = Duration::from_millis(50);
    let draining = shared.spawner.draining.clone();
    while let Some(accepted) = draining.run_until_cancelled(listener.accept()).await {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        // Only latency suffers when it cannot be set.
        let _ = stream.set_nodelay(true);
        let Some(place) = Place::take(&shared.connections, shared.limits.connections) else {
            refuse(&shared, stream, tls.is_some());
            continue;
        };
        let local_port = stream.local_addr().map_or(0, |local| local.port());
        let is_trusted = trusted.iter().any(|network| network.contains(peer.ip()));
        let origin = Origin::new(peer, local_port, tls.is_some(), is_trusted);
        let (task_shared, tls) = (Arc::clone(&shared), tls.clone());
        shared.spawner.spawn(async move {
            let _place = place;
            let Some(tls) = tls else { return serve(task_shared, stream, origin, false).await };
            match timeout(task_shared.timeouts.header_read, tls.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    serve(task_shared, stream, origin, is_http2).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => tracing::debug!("a TLS handshake took too long"),
            }
        });
    }
}

/// Tells a client that there are too many, when it can be told.
fn refuse(shared: &Shared, stream: TcpStream, is_tls: bool) {
    /// For a client to take the answer and close; nothing is read of it.
    const LINGER: Duration = Duration::from_secs(1);
    /// More than these at once are closed without a word.
    const AT_ONCE: usize = 64;
    tracing::debug!("a connection above the limit was refused");
    let taken = &shared.refusals;
    let Some(place) = Place::take(taken, AT_ONCE).filter(|_| !is_tls) else { return };
    let mut stream = stream;
    shared.spawner.spawn(async move {
        let _place = place;
        let farewell = async {
            stream.write_all(TOO_MANY_CONNECTIONS).await?;
            stream.shutdown().await?;
            // Closing with unread bytes would reset the connection, and the answer with it.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        };
        // A client that does not want to hear it is simply closed.
        let _ = timeout(LINGER, farewell).await;
    });
}

/// Closes idle connections to targets, ends what runs to removed ones, and looks at certificate files.
async fn keep_house(connector: Arc<Connector>, removed: Removed, certificates: Option<Arc<Certificates>>) {
    let times = &connector.timeouts;
    let soonest = times.upstream_idle.min(times.removed_target).min(times.certificate_check);
    let pause = (soonest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
    let mut next_check = Instant::now() + times.certificate_check;
    let draining = connector.spawner.draining.clone();
    while draining.run_until_cancelled(sleep(pause)).await.is_some() {
        let pooled = std::mem::take(&mut *connector.pooled.lock().unwrap_or_else(PoisonError::into_inner));
        let left: Vec<Weak<Upstream>> =
            pooled.into_iter().filter(|upstream| upstream.upgrade().is_some_and(|it| it.sweep())).collect();
        connector.pooled.lock().unwrap_or_else(PoisonError::into_inner).extend(left);

        let now = Instant::now();
        removed.lock().unwrap_or_else(PoisonError::into_inner).retain(|(deadline, upstream)| {
            let is_due = *deadline <= now;
            if is_due {
                upstream.cut();
            }
            !is_due
        });
        if let Some(certificates) = certificates.clone().filter(|_| next_check <= now) {
            next_check = now + connector.timeouts.certificate_check;
            // It reads files: not on a thread that serves. A panic in it is logged by the runtime.
            let _ = tokio::task::spawn_blocking(move || certificates.reload_if_changed()).await;
        }
    }
}
