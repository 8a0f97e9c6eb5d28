//! The connections, each used by one operation at a time.
//!
//! A pool of our own, since it must tell two things apart that the library's does not: that all connections are in use, and that none can
//! be made. It also spares the round trip by which that one tests every connection that comes back: one that was left in the middle of
//! something, for whatever reason, never comes back here.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::{Clock, ClockExt, DeadlineExceeded, Monotonic};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::error::{Failure, is_refusal, is_worth_repeating};

/// A connection that was idle for longer is asked for a sign of life before it is trusted with a statement.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// How long it may take to give one.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);
/// How often a statement that lost against others is sent again.
const REPEATS: u32 = 5;

/// Whether an operation leaves something behind in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Reads,
    Changes,
}

#[derive(Debug)]
pub(crate) struct Connections {
    options: PgConnectOptions,
    clock: Arc<dyn Clock>,
    max: usize,
    permits: Arc<Semaphore>,
    /// Those that nobody uses, with the time since when.
    idle: Mutex<Vec<(PgConnection, Monotonic)>>,
    /// How many are connected and in use.
    in_use: AtomicUsize,
}

/// A connection in use.
pub(crate) struct Lent<'p> {
    pool: &'p Connections,
    /// None once it went back.
    connection: Option<PgConnection>,
    repeats: u32,
    _permit: SemaphorePermit<'p>,
}

impl Lent<'_> {
    /// The connection, until it was judged.
    pub(crate) fn connection(&mut self) -> Result<&mut PgConnection, Failure> {
        self.connection.as_mut().ok_or(Failure::Unknown(None))
    }

    /// Tells what the outcome of an operation means, and gives the connection back if it can be trusted. None: it is worth repeating.
    pub(crate) fn judge<T>(
        &mut self,
        effect: Effect,
        outcome: Result<sqlx::Result<T>, DeadlineExceeded>,
    ) -> Option<Result<T, Failure>> {
        match outcome {
            Ok(Ok(done)) => {
                self.give_back();
                Some(Ok(done))
            }
            Ok(Err(error)) if is_worth_repeating(&error) && self.repeats < REPEATS => {
                self.repeats += 1;
                None
            }
            Ok(Err(error)) if is_refusal(&error) => {
                self.give_back();
                Some(Err(Failure::NotApplied(Arc::new(error))))
            }
            Ok(Err(error)) => {
                // What happened to this one has probably happened to all.
                self.pool.forget_idle();
                let error = Arc::new(error);
                Some(Err(match effect {
                    Effect::Reads => Failure::NotApplied(error),
                    Effect::Changes => Failure::Unknown(Some(error)),
                }))
            }
            Err(_late) => {
                self.pool.forget_idle();
                Some(Err(match effect {
                    Effect::Reads => Failure::Late,
                    Effect::Changes => Failure::Unknown(None),
                }))
            }
        }
    }

    fn give_back(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.put_back(connection);
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.pool.in_use.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The place of one connection, which no operation has until this is dropped.
#[derive(Debug)]
pub struct Occupied {
    pool: Arc<Connections>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.pool.in_use.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs an operation on a connection of its own: `on_a_connection!(connections, effect, until, |connection| sql::take(connection, …))`. A
/// macro, since a closure cannot say that its future borrows from both the connection and its surroundings.
macro_rules! on_a_connection {
    ($connections:expr, $effect:expr, $until:expr, |$connection:ident| $work:expr) => {{
        let (connections, effect, until) = (&$connections, $effect, $until);
        match connections.lend(until).await {
            Err(failure) => Err(failure),
            Ok(mut lent) => loop {
                let outcome = match lent.connection() {
                    Ok($connection) => {
                        flames_clock::ClockExt::timeout(connections.clock(), connections.left(until), $work)
                            .await
                    }
                    Err(failure) => break Err(failure),
                };
                if let Some(judged) = lent.judge(effect, outcome) {
                    break judged;
                }
            },
        }
    }};
}
pub(crate) use on_a_connection;

impl Connections {
    pub(crate) fn new(options: PgConnectOptions, clock: Arc<dyn Clock>, max: u32) -> Self {
        let max = usize::try_from(max).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS);
        Self {
            options,
            clock,
            max,
            permits: Arc::new(Semaphore::new(max)),
            idle: Mutex::default(),
            in_use: AtomicUsize::new(0),
        }
    }

    /// A connection for one operation, before `until`. Who drops it in the middle of something, drops the connection itself.
    pub(crate) async fn lend(&self, until: Monotonic) -> Result<Lent<'_>, Failure> {
        let permit = match self.clock.timeout(self.left(until), self.permits.acquire()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_closed)) => return Err(Failure::Closed),
            // Of those that hold a permit, some may wait for a connection themselves: then it is the server that is not there.
            Err(_) if self.in_use.load(Ordering::Relaxed) < self.max => return Err(Failure::Late),
            Err(_) => return Err(Failure::Exhausted),
        };
        let connection = self.connection(until).await?;
        self.in_use.fetch_add(1, Ordering::Relaxed);
        Ok(Lent { pool: self, connection: Some(connection), repeats: 0, _permit: permit })
    }

    /// Takes the place of one connection until dropped.
    pub(crate) async fn occupy(self: &Arc<Self>, until: Monotonic) -> Result<Occupied, Failure> {
        match self.clock.timeout(self.left(until), Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => {
                self.in_use.fetch_add(1, Ordering::Relaxed);
                Ok(Occupied { pool: Arc::clone(self), _permit: permit })
            }
            Ok(Err(_closed)) => Err(Failure::Closed),
            Err(_) => Err(Failure::Exhausted),
        }
    }

    /// How much time there is before `until`.
    pub(crate) fn left(&self, until: Monotonic) -> Duration {
        until.saturating_since(self.clock.monotonic())
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// An idle connection, or a new one.
    async fn connection(&self, until: Monotonic) -> Result<PgConnection, Failure> {
        loop {
            let newest = self.lock_idle().pop();
            let Some((mut connection, since)) = newest else { break };
            if self.clock.monotonic().saturating_since(since) < TRUSTED_FOR {
                return Ok(connection);
            }
            if let Ok(Ok(())) = self.clock.timeout(SIGN_OF_LIFE, connection.ping()).await {
                return Ok(connection);
            }
            self.forget_idle();
        }
        self.connect(until).await
    }

    async fn connect(&self, until: Monotonic) -> Result<PgConnection, Failure> {
        let left = until.saturating_since(self.clock.monotonic());
        match self.clock.timeout(left, self.options.connect()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Failure::NotApplied(Arc::new(error))),
            Err(_) => Err(Failure::Late),
        }
    }

    pub(crate) fn put_back(&self, connection: PgConnection) {
        if !self.permits.is_closed() {
            self.lock_idle().push((connection, self.clock.monotonic()));
        }
    }

    fn forget_idle(&self) {
        let idle = std::mem::take(&mut *self.lock_idle());
        drop(idle);
    }

    fn lock_idle(&self) -> std::sync::MutexGuard<'_, Vec<(PgConnection, Monotonic)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses further operations, waits for those under way, and says good-bye to the server.
    pub(crate) async fn close(&self, limit: Duration) -> bool {
        let all = u32::try_from(self.max).unwrap_or(u32::MAX);
        let quiet = self.clock.timeout(limit, self.permits.acquire_many(all)).await.is_ok();
        self.permits.close();
        let idle = std::mem::take(&mut *self.lock_idle());
        for (connection, _) in idle {
            // A server that is gone needs no good-bye.
            let _ = self.clock.timeout(SIGN_OF_LIFE, connection.close()).await;
        }
        quiet
    }
}
