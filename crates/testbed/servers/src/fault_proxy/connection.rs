//! One connection through the proxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;

use super::plan::{Direction, Fault};
use super::{Counters, Orders, reset};

/// The largest piece passed on at once.
const CHUNK: usize = 16 * 1024;

/// How long the server may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Both sides have said all, or one is gone.
    Over,
    Cut,
    Reset,
}

/// Counts an open connection for as long as it is.
struct Open(Arc<Counters>);

impl Open {
    fn new(counters: Arc<Counters>) -> Self {
        counters.open.fetch_add(1, Ordering::SeqCst);
        Self(counters)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(super) async fn run(
    mut client: TcpStream,
    upstream: SocketAddr,
    fault: Fault,
    mut orders: watch::Receiver<Orders>,
    counters: Arc<Counters>,
) {
    let _open = Open::new(Arc::clone(&counters));
    let before = orders.borrow_and_update().clone();
    let connected = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(upstream)).await;
    let Ok(Ok(mut server)) = connected else {
        // A proxy cannot refuse what it has accepted. A reset is the nearest to it.
        reset(&client);
        return;
    };
    // What was written at once arrives at once; both fail only for sockets that are closed.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let damaged = AtomicBool::new(false);
    let end = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let pump = |direction| Pump {
            direction,
            fault,
            orders: orders.clone(),
            damaged: &damaged,
            counters: &counters,
        };
        let both = both(
            pump(Direction::ToServer).run(from_client, to_server),
            pump(Direction::ToClient).run(from_server, to_client),
        );
        tokio::select! {
            end = both => end,
            end = ordered_end(orders, before, &damaged) => end,
        }
    };
    if end != End::Over {
        counters.faults.fetch_add(1, Ordering::SeqCst);
    }
    match end {
        End::Over => {}
        End::Cut => {
            // With unread bytes in it, a closed socket sends a reset; the end comes first like this.
            let _ = (client.shutdown().await, server.shutdown().await);
        }
        End::Reset => {
            reset(&client);
            reset(&server);
        }
    }
}

/// Both directions to their ends, unless one of them ends the connection.
async fn both(to_server: impl Future<Output = End>, to_client: impl Future<Output = End>) -> End {
    tokio::pin!(to_server, to_client);
    let (first, rest_is_to_client) = tokio::select! {
        end = &mut to_server => (end, true),
        end = &mut to_client => (end, false),
    };
    if first != End::Over {
        return first;
    }
    if rest_is_to_client { to_client.await } else { to_server.await }
}

/// Waits until a command ends this connection.
async fn ordered_end(mut orders: watch::Receiver<Orders>, before: Orders, damaged: &AtomicBool) -> End {
    loop {
        {
            let now = orders.borrow_and_update();
            if now.resets > before.resets {
                return End::Reset;
            }
            if now.cuts > before.cuts || (now.heals > before.heals && damaged.load(Ordering::SeqCst)) {
                return End::Cut;
            }
        }
        if orders.changed().await.is_err() {
            // The proxy is being dropped, which ends this task.
            return std::future::pending().await;
        }
    }
}

/// One direction.
struct Pump<'a> {
    direction: Direction,
    fault: Fault,
    orders: watch::Receiver<Orders>,
    /// Set when this connection can never be whole again.
    damaged: &'a AtomicBool,
    counters: &'a Counters,
}

impl Pump<'_> {
    async fn run(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> End {
        let mut buffer = vec![0; CHUNK];
        let mut passed = 0_u64;
        let mut swallowing = false;
        loop {
            if !swallowing && self.limit().is_some_and(|limit| passed >= limit) {
                match self.fault {
                    Fault::CutAfter { .. } => return End::Cut,
                    Fault::ResetAfter { .. } => return End::Reset,
                    Fault::StallAfter { .. } => {
                        self.damage();
                        return std::future::pending().await;
                    }
                    Fault::SwallowAfter { .. } => {
                        self.damage();
                        swallowing = true;
                    }
                    Fault::None | Fault::Delay { .. } => {}
                }
            }
            self.wait_while_stalled().await;
            // Never more than what may pass, so that the fault strikes at exactly its byte.
            let room = self.limit().filter(|_| !swallowing).map_or(CHUNK as u64, |limit| limit - passed);
            let room = usize::try_from(room).unwrap_or(CHUNK).min(CHUNK);
            let read = match from.read(buffer.get_mut(..room).unwrap_or_default()).await {
                Ok(0) => {
                    self.wait_while_stalled().await;
                    // A half-open connection hides the end of its lost direction too.
                    if swallowing || self.is_swallowing_by_order() {
                        return std::future::pending().await;
                    }
                    let _ = to.shutdown().await;
                    return End::Over;
                }
                Ok(read) => read,
                Err(_) => return End::Reset,
            };
            self.wait_while_stalled().await;
            self.delay().await;
            if !swallowing && self.is_swallowing_by_order() {
                self.damage();
                swallowing = true;
            }
            if swallowing {
                continue;
            }
            if to.write_all(buffer.get(..read).unwrap_or_default()).await.is_err() {
                return End::Reset;
            }
            passed += read as u64;
        }
    }

    fn damage(&self) {
        self.damaged.store(true, Ordering::SeqCst);
        self.counters.faults.fetch_add(1, Ordering::SeqCst);
    }

    /// After how many bytes of this direction the fault strikes.
    fn limit(&self) -> Option<u64> {
        match self.fault {
            Fault::CutAfter { bytes, direction }
            | Fault::ResetAfter { bytes, direction }
            | Fault::StallAfter { bytes, direction }
            | Fault::SwallowAfter { bytes, direction } => (direction == self.direction).then_some(bytes),
            Fault::None | Fault::Delay { .. } => None,
        }
    }

    /// Also for the whole connection that a [`Fault::StallAfter`] of the other direction has stopped.
    async fn wait_while_stalled(&mut self) {
        // Only a proxy that is being dropped gives no more orders.
        let _ = self.orders.wait_for(|orders| !orders.stalled).await;
        if matches!(self.fault, Fault::StallAfter { .. }) && self.damaged.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    async fn delay(&self) {
        let ordered = self.orders.borrow().delay;
        let own = match self.fault {
            Fault::Delay { per_chunk } => per_chunk,
            _ => Duration::ZERO,
        };
        let longer = ordered.max(own);
        if !longer.is_zero() {
            tokio::time::sleep(longer).await;
        }
    }

    fn is_swallowing_by_order(&self) -> bool {
        self.orders.borrow().swallowing == Some(self.direction)
    }
}
