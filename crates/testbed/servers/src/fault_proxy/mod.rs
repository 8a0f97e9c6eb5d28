//! A TCP proxy that fails on demand.

mod connection;
mod plan;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use plan::{Direction, Fault, FaultPlan};

/// More connections at once than any pool under test opens; the next ones are refused.
const MAX_CONNECTIONS: usize = 1_024;

/// What the test commands, for all connections at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Orders {
    /// Each rise ends all connections.
    cuts: u64,
    resets: u64,
    /// Each rise ends the connections that faults have damaged, and lets the others go on.
    heals: u64,
    stalled: bool,
    refusing: bool,
    delay: Duration,
    swallowing: Option<Direction>,
    /// What happens to connections that come from now on, before the plan is asked.
    next: Option<Fault>,
    healed_plan: bool,
}

/// A proxy on a free port of 127.0.0.1 in front of one server. Its buffers are bounded (16 KiB for each direction of a
/// connection), so a reader that does not read is felt by the writer, as on a real network. When it is dropped, all its
/// tasks are ended and its connections closed.
///
/// Bytes are never delivered with a hole: what was swallowed from a connection is lost with that connection, as with TCP.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    orders: watch::Sender<Orders>,
    counters: Arc<Counters>,
    turns: AtomicU64,
    acceptor: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    open: AtomicU64,
    faults: AtomicU64,
}

impl FaultProxy {
    /// Starts one that passes everything on until it is told otherwise.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        Self::with_plan(upstream, None).await
    }

    /// As [`FaultProxy::start`], for the server that a URL names. Answers the URL by way of the proxy as well.
    ///
    /// # Errors
    /// When there is no port, or no such server.
    pub async fn before_url(url: &str) -> io::Result<(Self, String)> {
        let proxy = Self::start(crate::url::server_of(url).await?).await?;
        let through = crate::url::through(url, proxy.address);
        Ok((proxy, through))
    }

    /// Starts one that draws a fault for each connection, and prints the seed, so that a failed test tells it.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn seeded(upstream: SocketAddr, plan: FaultPlan) -> io::Result<Self> {
        #[allow(
            clippy::print_stderr,
            reason = "a failed test shows what it printed, and the seed must be there"
        )]
        {
            eprintln!("fault proxy: {plan:?} (FLAMES_TEST_SEED={} repeats it)", plan.seed);
        }
        Self::with_plan(upstream, Some(plan)).await
    }

    async fn with_plan(upstream: SocketAddr, plan: Option<FaultPlan>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let orders = watch::Sender::new(Orders::default());
        let counters = Arc::<Counters>::default();
        let acceptor =
            tokio::spawn(accept(listener, upstream, plan, orders.subscribe(), Arc::clone(&counters)));
        Ok(Self { address, orders, counters, turns: AtomicU64::new(0), acceptor })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection that is open now (FIN to both sides); what was on its way is lost.
    pub fn cut_now(&self) {
        self.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// Resets every connection that is open now (RST to both sides).
    pub fn reset_now(&self) {
        self.orders.send_modify(|orders| orders.resets += 1);
    }

    /// Stops all bytes in both directions, of connections that are open and that come, or lets them go on where they stopped.
    pub fn stall(&self, stalled: bool) {
        self.orders.send_modify(|orders| orders.stalled = stalled);
    }

    /// Makes each piece of at most 16 KiB wait that long, in both directions; zero: no longer.
    pub fn delay(&self, per_chunk: Duration) {
        self.orders.send_modify(|orders| orders.delay = per_chunk);
    }

    /// Takes what goes in that direction and throws it away, on all connections that are open and that come.
    pub fn swallow(&self, direction: Direction) {
        self.orders.send_modify(|orders| orders.swallowing = Some(direction));
    }

    /// Ends new connections at once, as when no server is there, or no longer. Open ones are left alone.
    pub fn refuse(&self, refusing: bool) {
        self.orders.send_modify(|orders| orders.refusing = refusing);
    }

    /// Gives that fault to every connection that comes from now on, until [`Self::heal`].
    pub fn fail_next(&self, fault: Fault) {
        self.orders.send_modify(|orders| orders.next = Some(fault));
    }

    /// Ends all faults: commands are taken back, the plan is over, connections that lost bytes or that a fault of their own had stalled
    /// are cut, and the others go on.
    pub fn heal(&self) {
        self.orders.send_modify(|orders| {
            *orders = Orders {
                cuts: orders.cuts,
                resets: orders.resets,
                heals: orders.heals + 1,
                healed_plan: true,
                ..Orders::default()
            };
        });
    }

    /// Whether requests are to be cut this time, and not answers.
    pub(crate) fn is_turn_of_requests(&self) -> bool {
        self.turns.fetch_add(1, Ordering::SeqCst).is_multiple_of(2)
    }

    /// How many connections have come so far; the next one has this number in a [`FaultPlan`].
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.counters.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    #[must_use]
    pub fn open_connections(&self) -> u64 {
        self.counters.open.load(Ordering::SeqCst)
    }

    /// How many faults have struck: cuts, resets, stalls and the begin of swallowing, by plan or command; delays not.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.counters.faults.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        // The connections are tasks of a set that this task owns, and end with it.
        self.acceptor.abort();
    }
}

async fn accept(
    listener: TcpListener,
    upstream: SocketAddr,
    plan: Option<FaultPlan>,
    orders: watch::Receiver<Orders>,
    counters: Arc<Counters>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A client that is gone before it was accepted; the next one may be there.
                let Ok((client, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let number = counters.accepted.fetch_add(1, Ordering::SeqCst);
                let now = orders.borrow().clone();
                if now.refusing || connections.len() >= MAX_CONNECTIONS {
                    reset(&client);
                    continue;
                }
                let planned = plan.as_ref().filter(|_| !now.healed_plan);
                let fault = now
                    .next
                    .or_else(|| planned.map(|plan| plan.fault_of(number)))
                    .unwrap_or(Fault::None);
                let (orders, counters) = (orders.clone(), Arc::clone(&counters));
                connections.spawn(connection::run(client, upstream, fault, orders, counters));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// So that the other side gets a reset when the socket is closed.
fn reset(stream: &TcpStream) {
    // It fails only for a socket that is closed already.
    let _ = stream.set_zero_linger();
}
