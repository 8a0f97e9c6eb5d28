//! The connections for operations.
//!
//! Not sqlx's pool: that one tests a connection with a round trip when it is given back, and answers a refused password or a
//! standby only with "timed out". Here a connection is given back only after an operation that ended well; one that was dropped in the midst of an
//! operation is closed.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::{Clock, ClockExt, Monotonic};
use flames_error::{Error, ErrorKind, Result};
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::session::{Connector, closed};
use crate::sql::{Context, Statement, Statements};

/// A connection that was idle for so long is asked whether it is still there before it is used.
const ASK_AFTER: Duration = Duration::from_secs(1);
/// How long that may take.
const ASK_DEADLINE: Duration = Duration::from_secs(1);
/// A connection this old is replaced, so that sessions do not grow for ever and follow a name that leads elsewhere.
const MOST_AGE: Duration = Duration::from_secs(30 * 60);

#[derive(Debug)]
struct Idle {
    connection: PgConnection,
    since: Monotonic,
    made: Made,
}

/// What is known of a connection since it was made.
#[derive(Debug, Clone, Copy)]
struct Made {
    at: Monotonic,
    /// See [`crate::schema::continue_lineage`].
    generation: i32,
}

/// Connections to one store, at most so many.
pub(crate) struct Pool {
    idle: Mutex<Vec<Idle>>,
    permits: Arc<Semaphore>,
    size: u32,
    pub(crate) connector: Connector,
    pub(crate) statements: Arc<Statements>,
    pub(crate) clock: Arc<dyn Clock>,
    connect_deadline: Duration,
    acquire_deadline: Duration,
}

/// A connection of a store's pool, with the session set up as for the store's own statements.
///
/// Dropped, it is closed; [`PooledConnection::release`] gives it back.
#[derive(Debug)]
pub struct PooledConnection {
    connection: Option<PgConnection>,
    made: Made,
    pool: Arc<Pool>,
    // Behind the connection, so that it is given up after it.
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn new(
        connector: Connector,
        statements: Arc<Statements>,
        clock: Arc<dyn Clock>,
        config: &crate::PostgresConfig,
    ) -> Self {
        let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
        let size = config.max_connections.clamp(1, most);
        Self {
            idle: Mutex::default(),
            permits: Arc::new(Semaphore::new(usize::try_from(size).unwrap_or(Semaphore::MAX_PERMITS))),
            size,
            connector,
            statements,
            clock,
            connect_deadline: config.connect_deadline,
            acquire_deadline: config.acquire_deadline,
        }
    }

    fn left(&self, until: Monotonic) -> Duration {
        until.saturating_since(self.clock.monotonic())
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection. `Exhausted` when none becomes free in time, else as [`Connector::connect`].
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        operation: &'static str,
        until: Monotonic,
    ) -> Result<PooledConnection> {
        let permit = match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(tokio::sync::TryAcquireError::Closed) => return Err(closed(operation)),
            Err(tokio::sync::TryAcquireError::NoPermits) => {
                let patience = self.acquire_deadline.min(self.left(until));
                match self.clock.timeout(patience, Arc::clone(&self.permits).acquire_owned()).await {
                    Ok(permit) => permit.map_err(|_| closed(operation))?,
                    Err(late) => return Err(self.used_up(operation).with_source(late)),
                }
            }
        };
        let (connection, made) = match self.pop(until).await {
            Some(reused) => reused,
            None => self.connect(operation, until).await?,
        };
        Ok(PooledConnection { connection: Some(connection), made, pool: Arc::clone(self), _permit: permit })
    }

    fn used_up(&self, operation: &'static str) -> Error {
        Error::new(
            ErrorKind::Exhausted,
            operation,
            "postgres: every connection is in use: raise the setting `max_connections`, or ask for less at a time",
        )
        .with_field("max_connections")
        .with_context("max_connections", self.size)
        .with_context("acquire_deadline", format!("{:?}", self.acquire_deadline))
    }

    /// An idle connection that is still good. The one used last comes first, so that those too many stay idle.
    async fn pop(&self, until: Monotonic) -> Option<(PgConnection, Made)> {
        loop {
            let Idle { mut connection, since, made } = self.idle().pop()?;
            let now = self.clock.monotonic();
            if now.saturating_since(made.at) > MOST_AGE {
                continue;
            }
            if now.saturating_since(since) < ASK_AFTER {
                return Some((connection, made));
            }
            match self.clock.timeout(ASK_DEADLINE.min(self.left(until) / 2), connection.ping()).await {
                Ok(Ok(())) => return Some((connection, made)),
                // What took this one has probably taken all.
                Ok(Err(_)) | Err(_) => self.drop_idle(),
            }
        }
    }

    /// Closes what is idle: after a connection was lost, the others are not trusted.
    pub(crate) fn drop_idle(&self) {
        let idle = std::mem::take(&mut *self.idle());
        drop(idle);
    }

    async fn connect(&self, operation: &'static str, until: Monotonic) -> Result<(PgConnection, Made)> {
        let patience = self.connect_deadline.min(self.left(until));
        match self.clock.timeout(patience, self.connector.connect_to_store(operation, &self.statements)).await
        {
            Ok(Ok((connection, generation))) => {
                Ok((connection, Made { at: self.clock.monotonic(), generation }))
            }
            Ok(Err(error)) => Err(error),
            Err(late) => Err(self.connector.target.too_late(operation).with_source(late)),
        }
    }

    /// Refuses further operations, and closes what is idle in order.
    pub(crate) async fn close(&self) {
        self.permits.close();
        let idle = std::mem::take(&mut *self.idle());
        let closing = futures::future::join_all(idle.into_iter().map(|idle| idle.connection.close()));
        if self.clock.timeout(self.connect_deadline, closing).await.is_err() {
            tracing::debug!("the server did not answer when connections were closed");
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("size", &self.size)
            .field("free", &self.permits.available_permits())
            .field("idle", &self.idle().len())
            .finish_non_exhaustive()
    }
}

impl PooledConnection {
    /// Runs one of the store's statements.
    pub(crate) async fn run<S: Statement>(&mut self, statement: &S) -> sqlx::Result<S::Answer> {
        let pool = Arc::clone(&self.pool);
        let context = Context { statements: &pool.statements, generation: self.made.generation };
        statement.run(self, &context).await
    }

    /// Gives the connection back. Only when no statement was left half-way and no transaction open, and the session is as it was.
    pub fn release(mut self) {
        if let Some(connection) = self.connection.take()
            && !self.pool.permits.is_closed()
        {
            let since = self.pool.clock.monotonic();
            self.pool.idle().push(Idle { connection, since, made: self.made });
        }
    }
}

impl Deref for PooledConnection {
    type Target = PgConnection;
    #[allow(clippy::expect_used)]
    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("only release takes it, and consumes the guard")
    }
}

impl DerefMut for PooledConnection {
    #[allow(clippy::expect_used)]
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("only release takes it, and consumes the guard")
    }
}
