//! What some cases do to a provider beyond calling it: break its network, kill its server, use up its connections, set its clock.
//!
//! A harness says with [`Harness::hooks`](crate::Harness::hooks), when the cases are listed, which of these its fixtures can do; cases
//! that need another are skipped and say so. A case that needs one runs on a fixture made by
//! [`Harness::fresh_for`](crate::Harness::fresh_for), so that only those cases pay for a proxy, a server of their own or a small pool.

use std::any::Any;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use flames_clock::{Clock, Monotonic, SystemClock, Timestamp};

/// One thing that a fixture can do to its provider from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// [`Hooks::faults`]: the way between the provider and its server can be broken.
    Faults,
    /// [`Hooks::restart_server`]: the server can be killed and started again with its data.
    Restart,
    /// [`Hooks::exhaust`]: all that the provider's operations need one of (connections) can be used up.
    Exhaustion,
    /// [`Hooks::jump_clock`]: the wall clock that was handed to the provider can be set.
    Clock,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Hook; 4] = [Hook::Faults, Hook::Restart, Hook::Exhaustion, Hook::Clock];

    /// The hook that a table of cases calls by this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "faults" => Some(Self::Faults),
            "restart" => Some(Self::Restart),
            "exhaustion" => Some(Self::Exhaustion),
            "clock" => Some(Self::Clock),
            _ => None,
        }
    }

    /// Why a case that needs the hook is skipped.
    pub(crate) fn missing(self, noun: &str) -> String {
        match self {
            Self::Faults => format!("there is no network to break between the {noun} and its contents"),
            Self::Restart => "there is no server to restart".to_owned(),
            Self::Exhaustion => "there is no pool to exhaust".to_owned(),
            Self::Clock => format!("the clock of the {noun} is not the test's to set"),
        }
    }
}

/// What a fixture does to its provider from outside. A fixture implements what its harness says of it ([`Harness::is_durable`],
/// [`Harness::hooks`]) and leaves the rest.
///
/// [`Harness::is_durable`]: crate::Harness::is_durable
/// [`Harness::hooks`]: crate::Harness::hooks
#[async_trait]
pub trait Hooks: Send + Sync {
    /// When the harness is durable: closes the provider in order and opens it again, as the next process would. Afterwards the fixture
    /// answers the one opened last.
    async fn reopen(&self) {
        panic!("the harness says that the provider is durable, but its fixture has no `reopen`");
    }

    /// Within how long each operation ends, whatever the network and the server do: the provider's configured deadline, over all its
    /// tries. Cases that break something wait for it several times, so fixtures for [`Hook`]s set 1 to 3 seconds.
    fn operation_deadline(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// With [`Hook::Faults`]: the way between the provider and its server.
    fn faults(&self) -> &dyn Faults {
        panic!("the harness has `Hook::Faults`, but its fixture has no `faults`");
    }

    /// With [`Hook::Restart`]: kills the server without a warning (SIGKILL), starts it again on whatever it kept, and returns once it
    /// takes connections. A provider inside this process is dropped, as by a crash, and opened anew instead. The fixture is asked for
    /// its provider again for each operation afterwards; it may answer the same one as before.
    async fn restart_server(&self) {
        panic!("the harness has `Hook::Restart`, but its fixture has no `restart_server`");
    }

    /// With [`Hook::Exhaustion`]: uses up whatever the provider's changes need one of (takes every connection of its pool, or makes
    /// as many operations hang as there are connections), until the answer is dropped. Reads may be held up as well, or not.
    async fn exhaust(&self) -> Held {
        panic!("the harness has `Hook::Exhaustion`, but its fixture has no `exhaust`");
    }

    /// With [`Hook::Clock`]: makes the wall clock that was handed to the provider jump, forward or back; monotonic time goes on
    /// ([`SettableClock::jump`]).
    fn jump_clock(&self, by_ms: i64) {
        panic!("the harness has `Hook::Clock`, but its fixture has no `jump_clock` ({by_ms} ms)");
    }
}

/// The way between a provider and its server, broken on demand: what a TCP proxy between the two can do. The proxies of
/// `flames-test-servers` are such ways.
///
/// No method fails: a proxy that cannot do as told panics, which fails the case. Each takes effect before it returns.
#[async_trait]
pub trait Faults: Send + Sync {
    /// Cuts every open connection now. Connections made afterwards work.
    async fn cut_connections(&self);

    /// Until [`Faults::heal`]: each connection, open now or made later, is cut once `bytes` more bytes have passed over it (both
    /// directions counted together, or each for itself; from this call or from the connection's begin). The bytes before that arrive.
    async fn cut_after(&self, bytes: u64);

    /// Until [`Faults::heal`]: nothing passes in either direction, and nothing is closed.
    async fn stall(&self);

    /// Until [`Faults::heal`]: what the provider sends arrives, and no answer comes back.
    async fn stall_answers(&self);

    /// Ends every fault. Connections that were stalled may go on or be cut; new ones work.
    async fn heal(&self);
}

/// Whatever uses up what a provider needs, until dropped.
pub type Held = Box<dyn Any + Send>;

/// The system's clock, with a wall time that can be set: what a fixture with [`Hook::Clock`] hands to a provider that runs in real time.
#[derive(Debug, Default)]
pub struct SettableClock {
    system: SystemClock,
    ahead_ms: AtomicI64,
}

impl SettableClock {
    /// A clock that shows the system's time.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the wall time jump, forward or back; monotonic time goes on.
    pub fn jump(&self, by_ms: i64) {
        self.ahead_ms.fetch_add(by_ms, Ordering::SeqCst);
    }
}

#[async_trait]
impl Clock for SettableClock {
    fn now(&self) -> Timestamp {
        let shown = self.system.now().as_millisecond() + self.ahead_ms.load(Ordering::SeqCst);
        Timestamp::from_millisecond(shown).unwrap_or(Timestamp::MIN)
    }
    fn monotonic(&self) -> Monotonic {
        self.system.monotonic()
    }
    async fn sleep(&self, duration: Duration) {
        self.system.sleep(duration).await;
    }
}
