//! What some cases do to a store beyond calling it: break its network, kill its server, use up its connections.
//!
//! A harness says with [`Harness::hooks`](crate::Harness::hooks), when the cases are listed, which of these its fixtures can do; cases
//! that need another are skipped and say so. A case that needs one runs on a fixture made by
//! [`Harness::fresh_for`](crate::Harness::fresh_for), so that only those cases pay for a proxy, a server of their own or a small pool.

use std::any::Any;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use flames_clock::{Clock, Monotonic, SystemClock, Timestamp};

/// One thing that a fixture can do to its store from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// [`Fixture::faults`](crate::Fixture::faults): the way between the store and its server can be broken.
    Faults,
    /// [`Fixture::restart_server`](crate::Fixture::restart_server): the server can be killed and started again with its data.
    Restart,
    /// [`Fixture::exhaust`](crate::Fixture::exhaust): all that the store's operations need one of (connections) can be used up.
    Exhaustion,
    /// [`Fixture::turn_clock_back`](crate::Fixture::turn_clock_back): the wall clock that was handed to the store can be turned back.
    Clock,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Hook; 4] = [Hook::Faults, Hook::Restart, Hook::Exhaustion, Hook::Clock];

    /// The capability's name, as the table of cases has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Faults => "faults",
            Self::Restart => "restart",
            Self::Exhaustion => "exhaustion",
            Self::Clock => "clock",
        }
    }

    /// Why a case that needs the hook is skipped.
    pub(crate) fn missing(self) -> &'static str {
        match self {
            Self::Faults => "there is no network to break between the store and its contents",
            Self::Restart => "there is no server to restart",
            Self::Exhaustion => "there is no pool to exhaust",
            Self::Clock => "the store is handed no clock",
        }
    }
}

/// The way between a store and its server, broken on demand: what a TCP proxy between the two can do.
///
/// No method fails: a proxy that cannot do as told panics, which fails the case. Each takes effect before it returns.
#[async_trait]
pub trait Faults: Send + Sync {
    /// Cuts every open connection now. Connections made afterwards work.
    async fn cut_connections(&self);

    /// Until [`Faults::heal`]: each connection, open now or made later, is cut once `bytes` more bytes have passed over it (both
    /// directions counted together, from this call or from the connection's begin). The bytes before that arrive.
    async fn cut_after(&self, bytes: u64);

    /// Until [`Faults::heal`]: nothing passes in either direction, and nothing is closed.
    async fn stall(&self);

    /// Until [`Faults::heal`]: what the store sends arrives, and no answer comes back.
    async fn stall_answers(&self);

    /// Ends every fault. Connections that were stalled may go on or be cut; new ones work.
    async fn heal(&self);
}

/// Whatever uses up what a store needs, until dropped.
pub type Held = Box<dyn Any + Send>;

/// The system's clock, with a wall time that can be turned back: what a fixture with [`Hook::Clock`] hands to its store.
#[derive(Debug, Default)]
pub struct TurnableClock {
    system: SystemClock,
    back_ms: AtomicI64,
}

impl TurnableClock {
    /// A clock that shows the system's time.
    pub fn new() -> Self {
        Self::default()
    }

    /// Turns the wall time back; monotonic time goes on.
    pub fn turn_back(&self, by: Duration) {
        self.back_ms.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }
}

#[async_trait]
impl Clock for TurnableClock {
    fn now(&self) -> Timestamp {
        let shown = self.system.now().as_millisecond() - self.back_ms.load(Ordering::SeqCst);
        Timestamp::from_millisecond(shown).unwrap_or(Timestamp::MIN)
    }
    fn monotonic(&self) -> Monotonic {
        self.system.monotonic()
    }
    async fn sleep(&self, duration: Duration) {
        self.system.sleep(duration).await;
    }
}
