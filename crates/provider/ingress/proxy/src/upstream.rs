//! One target, and the connections to it.
//!
//! A connection is never spoken to from two tasks: whoever has a request for it takes it out of the pool, drives it, and puts it back
//! when the exchange is over. So a request crosses no thread and wakes no task. Each registration of a target has a pool of its own:
//! what was opened to one incarnation can never carry a request for another.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use flames_error::ErrorKind;
use flames_ingress::{Dial, Target};
use futures::task::AtomicWaker;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::body::RequestBody;
use crate::config::{Limits, Protocol, Timeouts};
use crate::connection::Connection;
use crate::problem::Problem;
use crate::shared::{Spawner, TaskExecutor};
use crate::stream::Stream;
use crate::workers;

/// Ends what runs to a target, from outside.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    is_cut: AtomicBool,
    waker: AtomicWaker,
}

impl Cut {
    /// Whether it is cut; the task is woken when it will be.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.is_cut()
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Acquire)
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// How connections are made, the same for all targets.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) dial: Option<Arc<dyn Dial>>,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) spawner: Spawner,
    /// Targets that keep idle connections, for the janitor.
    pub(crate) pooled: Mutex<Vec<Weak<Upstream>>>,
}

/// A target.
#[derive(Debug)]
pub(crate) struct Upstream {
    target: Target,
    pub(crate) protocol: Protocol,
    pub(crate) connector: Arc<Connector>,
    // Boxed as they are used: a connection is large, and is moved into and out of the pool by each request.
    #[allow(clippy::vec_box)]
    idle: Mutex<Vec<Box<Connection>>>,
    cuts: Mutex<Vec<Weak<Cut>>>,
    in_flight: AtomicUsize,
    is_retired: AtomicBool,
    is_with_janitor: AtomicBool,
    http2: tokio::sync::Mutex<Option<http2::SendRequest<RequestBody>>>,
    /// Its VM was woken: until then, what listens there may not do so yet. None again once it did.
    woken_until: Mutex<Option<Instant>>,
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Upstream>);

impl InFlight {
    /// Where it goes.
    pub(crate) fn upstream(&self) -> &Arc<Upstream> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upstream {
    pub(crate) fn new(target: Target, protocol: Protocol, connector: Arc<Connector>) -> Self {
        Self {
            target,
            protocol,
            connector,
            idle: Mutex::default(),
            cuts: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            is_retired: AtomicBool::new(false),
            is_with_janitor: AtomicBool::new(false),
            http2: tokio::sync::Mutex::default(),
            woken_until: Mutex::default(),
        }
    }

    /// Its VM was woken for a request that can wait until `deadline` for what listens there.
    pub(crate) fn woken(&self, deadline: Instant) {
        *lock(&self.woken_until) = Some(deadline);
    }

    /// A place for one more request.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<InFlight, Problem> {
        let place = InFlight(Arc::clone(self));
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        if before >= self.connector.limits.requests_per_target {
            return Err(Problem::TargetBusy);
        }
        Ok(place)
    }

    /// A cut for what has no connection of its own.
    pub(crate) fn new_cut(&self) -> Arc<Cut> {
        let cut = Arc::new(Cut::default());
        let mut cuts = lock(&self.cuts);
        // Room grows by doubling, so what is gone is swept rarely and the list stays as long as what lives, twice.
        if cuts.len() == cuts.capacity() {
            cuts.retain(|cut| cut.strong_count() > 0);
        }
        cuts.push(Arc::downgrade(&cut));
        cut
    }

    /// A kept connection that still stands, and that this worker made: another's would have to be woken there.
    pub(crate) fn take_idle(&self) -> Option<Box<Connection>> {
        let own = workers::current();
        loop {
            let mut connection = {
                let mut idle = lock(&self.idle);
                let last = idle.iter().rposition(|connection| connection.worker == own)?;
                idle.remove(last)
            };
            let is_fresh = connection.idle_since.elapsed() < self.connector.timeouts.upstream_idle;
            if is_fresh && connection.is_usable() {
                connection.reused = true;
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request, when it can carry one.
    pub(crate) fn put_back(self: &Arc<Self>, mut connection: Box<Connection>) {
        if self.is_retired.load(Ordering::Acquire) || !connection.is_over() {
            return;
        }
        connection.idle_since = Instant::now();
        {
            let mut idle = lock(&self.idle);
            if idle.len() >= self.connector.limits.idle_per_target {
                return;
            }
            idle.push(connection);
            // Retired meanwhile: the sweep of `retire` may have come before this one was there.
            if self.is_retired.load(Ordering::Acquire) {
                idle.clear();
            }
        }
        if !self.is_with_janitor.swap(true, Ordering::AcqRel) {
            lock(&self.connector.pooled).push(Arc::downgrade(self));
        }
    }

    /// Closes connections that idled too long. Answers whether there is anything left to sweep.
    pub(crate) fn sweep(&self) -> bool {
        let mut idle = lock(&self.idle);
        idle.retain(|connection| connection.idle_since.elapsed() < self.connector.timeouts.upstream_idle);
        if idle.is_empty() {
            self.is_with_janitor.store(false, Ordering::Release);
        }
        !idle.is_empty()
    }

    /// Lets nothing new use its connections. What is under way goes on.
    pub(crate) fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
        lock(&self.idle).clear();
        if let Ok(mut http2) = self.http2.try_lock() {
            *http2 = None;
        }
    }

    /// Ends what is under way.
    pub(crate) fn cut(&self) {
        for cut in lock(&self.cuts).drain(..).filter_map(|cut| cut.upgrade()) {
            cut.cut();
        }
    }

    /// Connects; of a VM that was just woken, again and again until something listens there. Nothing of a request is sent before.
    async fn dial(&self) -> Result<Stream, Problem> {
        /// The pauses between tries begin with this and double.
        const FIRST_PAUSE: Duration = Duration::from_millis(10);
        const LONGEST_PAUSE: Duration = Duration::from_millis(200);
        let mut pause = FIRST_PAUSE;
        loop {
            let woken_until = *lock(&self.woken_until);
            let dialled = self.dial_once().await;
            let Some(until) = woken_until else { return dialled };
            let may_wait = Instant::now() + pause < until && !self.is_retired.load(Ordering::Acquire);
            if !may_wait || !matches!(dialled, Err(Problem::TargetUnreachable)) {
                *lock(&self.woken_until) = None;
                return dialled;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn dial_once(&self) -> Result<Stream, Problem> {
        let connect = async {
            match &self.target {
                Target::Address(address) => {
                    let stream = TcpStream::connect(*address).await.map_err(|error| {
                        tracing::debug!(%address, %error, "a target does not accept connections");
                        Problem::TargetUnreachable
                    })?;
                    // Only latency suffers when it cannot be set.
                    let _ = stream.set_nodelay(true);
                    Ok(Stream::Tcp(stream))
                }
                Target::Guest { incarnation, port } => {
                    let dial = self.connector.dial.as_ref().ok_or(Problem::TargetUnreachable)?;
                    dial.dial(incarnation, *port).await.map(Stream::Guest).map_err(|error| {
                        if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unavailable) {
                            tracing::warn!(incarnation, port, error = ?error, "a guest could not be dialled");
                        }
                        Problem::TargetUnreachable
                    })
                }
            }
        };
        timeout(self.connector.timeouts.connect, connect).await.unwrap_or(Err(Problem::ConnectTimeout))
    }

    /// A new HTTP/1.1 connection.
    pub(crate) async fn connect(&self) -> Result<Box<Connection>, Problem> {
        let stream = self.dial().await?;
        let limits = &self.connector.limits;
        let limits = (limits.header_bytes, limits.headers);
        Ok(Box::new(Connection::new(stream, self.new_cut(), workers::current(), limits)))
    }

    /// The HTTP/2 connection that all requests share; a new one when there is none that stands.
    pub(crate) async fn http2(self: &Arc<Self>) -> Result<http2::SendRequest<RequestBody>, Problem> {
        /// How long a target may leave a ping unanswered while requests are open.
        const PING_TIMEOUT: Duration = Duration::from_secs(20);
        let mut standing = self.http2.lock().await;
        if let Some(sender) = standing.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = self.dial().await?;
        let limits = &self.connector.limits;
        let spawner = self.connector.spawner.clone();
        let handshake = http2::Builder::new(TaskExecutor(spawner.clone()))
            .timer(TokioTimer::new())
            .keep_alive_interval(self.connector.timeouts.upstream_idle)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .max_concurrent_reset_streams(limits.requests_per_target.min(1_024))
            .handshake(TokioIo::new(stream));
        let (sender, mut driver) = timeout(self.connector.timeouts.connect, handshake)
            .await
            .map_err(|_| Problem::ConnectTimeout)?
            .map_err(|_| Problem::TargetBroke)?;
        let cut = self.new_cut();
        spawner.spawn(std::future::poll_fn(move |cx| {
            if cut.poll(cx) { Poll::Ready(()) } else { std::pin::Pin::new(&mut driver).poll(cx).map(drop) }
        }));
        // A target that was replaced while this connected serves the requests that it has, and is not kept.
        if !self.is_retired.load(Ordering::Acquire) {
            *standing = Some(sender.clone());
        }
        Ok(sender)
    }
}
