//! The store.

use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use flames_clock::{Clock, ClockExt, Monotonic};
use flames_error::{Error, ErrorKind, Result};
use flames_state::{
    Commit, Committed, Entry, HintFanout, HintStream, Key, KeyRange, LogEntry, Page, PageRequest, Position,
    StateStore, validate_limit,
};
use sqlx::Connection;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::commit::CommitArguments;
use crate::error::{OPEN, Target, is_connection_lost, is_worth_a_retry, not_applied, sent};
use crate::hints::Hints;
use crate::outbox::Outbox;
use crate::pool::{Pool, PooledConnection};
use crate::session::Connector;
use crate::sql::{self, Statement, Statements, TRIM_STEP};
use crate::{PostgresConfig, ViewDefinition, schema, views};

/// How often a commit that lost to a serialization failure or a deadlock is tried.
const ATTEMPTS: u32 = 5;
/// The first pause between such tries, and between looks whether a log has settled; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause between two looks whether a log has settled.
const LONGEST_LOOK: Duration = Duration::from_millis(50);
/// How long a log that has something to answer waits for what follows to settle. A page may be short; it should not be late.
const LONGEST_WAIT_WITH_ENTRIES: Duration = Duration::from_secs(1);

/// A StateStore in Postgres. See the crate's docs.
///
/// Dropped, it gives up its connections and its two tasks. What was answered is in the database either way.
pub struct PostgresStore {
    pool: Arc<Pool>,
    clock: Arc<dyn Clock>,
    operation_deadline: Duration,
    hints: Arc<Hints>,
    listening: watch::Receiver<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl PostgresStore {
    /// Connects, and makes or migrates the tables. Must be called within a tokio runtime, on which the hints then run.
    ///
    /// Errors, each with one line that names provider and setting and says what to do: `InvalidInput` for a wrong setting, an
    /// unknown database or a schema of another program; `PermissionDenied` for a wrong user or password and for missing rights;
    /// `NotSupported` for a schema that a newer version of Flames made unusable for this one and for a server older than 13;
    /// `Exhausted` when the server takes no more connections; `Unavailable` when the server does not answer or takes no writes. Nothing
    /// was changed then.
    pub async fn open(config: PostgresConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        let options = config.options()?;
        let connector = |statement_timeout| Connector {
            target: Target::of(&options),
            options: options.clone(),
            statement_timeout,
        };
        let statements = Arc::new(Statements::new(&config.schema));
        // The server gives up first, so that a slow statement mostly ends with a certain "not applied".
        let operations = connector(config.operation_deadline / 10 * 9);

        let late = |_| operations.target.too_late(OPEN);
        let connecting = operations.connect(OPEN);
        let (mut connection, lineage) =
            clock.timeout(config.connect_deadline, connecting).await.map_err(late)??;
        let migrating = async {
            let migrated = schema::migrate(&mut connection, &statements, lineage).await;
            let closed = connection.close().await;
            migrated?;
            closed.map_err(|error| not_applied(OPEN, error))
        };
        clock.timeout(config.operation_deadline, migrating).await.map_err(late)??;

        let hints = Arc::new(Hints {
            connector: Arc::new(connector(config.operation_deadline)),
            channel: statements.channel(),
            clock: Arc::clone(&clock),
            outbox: Outbox::default(),
            fanout: HintFanout::new(),
            teller: AtomicU32::new(0),
        });
        let (tried, listening) = watch::channel(false);
        let tasks =
            vec![tokio::spawn(Arc::clone(&hints).tell()), tokio::spawn(Arc::clone(&hints).listen(tried))];
        Ok(Self {
            pool: Arc::new(Pool::new(operations, statements, Arc::clone(&clock), &config)),
            clock,
            operation_deadline: config.operation_deadline,
            hints,
            listening,
            tasks: Mutex::new(tasks),
        })
    }

    /// Ends the hints and closes the connections in order. Operations under way end; later ones are `Unavailable`.
    pub async fn close(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
            // Cancelled is how it is to end.
            let _ = task.await;
        }
        self.pool.close().await;
    }

    /// One of the store's connections, for an operator's tool or a measurement against bare SQL. It counts among
    /// [`PostgresConfig::max_connections`] until given back or dropped.
    ///
    /// Errors: `Exhausted` when none becomes free in time; else as [`PostgresStore::open`].
    pub async fn connection(&self) -> Result<PooledConnection> {
        self.pool.acquire("state.connection", self.until()).await
    }

    /// Makes the views that let an operator read records as tables, in the store's schema; all views that were there before are
    /// dropped. In one transaction: others see the old ones or the new ones.
    ///
    /// Errors: `InvalidInput` for a definition that cannot be made; `PermissionDenied`; `Conflict` when a view of somebody else's
    /// stands on one of these; `Unavailable`; `OutcomeUnknown`.
    pub async fn apply_views(&self, definitions: &[ViewDefinition]) -> Result<()> {
        const OPERATION: &str = "state.apply_views";
        let made = views::statements(definitions, &self.pool.statements)?;
        let until = self.until();
        let mut connection = self.pool.acquire(OPERATION, until).await?;
        let work = views::apply(&mut connection, OPERATION, made);
        match self.clock.timeout(self.left(until), work).await {
            Ok(Ok(())) => {
                connection.release();
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(late) => Err(unknown(OPERATION).with_source(late)),
        }
    }

    fn until(&self) -> Monotonic {
        self.clock.monotonic().saturating_add(self.operation_deadline)
    }

    fn left(&self, until: Monotonic) -> Duration {
        until.saturating_since(self.clock.monotonic())
    }

    /// Runs a statement that changes nothing, once more on a new connection when the first was lost.
    async fn read<S: Statement>(
        &self,
        operation: &'static str,
        until: Monotonic,
        statement: &S,
    ) -> Result<S::Answer> {
        let mut retried = false;
        loop {
            let mut connection = self.pool.acquire(operation, until).await?;
            match self.clock.timeout(self.left(until), connection.run(statement)).await {
                Ok(Ok(answer)) => {
                    connection.release();
                    return Ok(answer);
                }
                Ok(Err(error)) if is_connection_lost(&error) => {
                    self.pool.drop_idle();
                    if retried {
                        return Err(not_applied(operation, error));
                    }
                    retried = true;
                }
                Ok(Err(error)) => {
                    connection.release();
                    return Err(not_applied(operation, error));
                }
                Err(late) => {
                    return Err(Error::unavailable(operation, "the read took too long").with_source(late));
                }
            }
        }
    }

    /// Waits until every transaction has ended that may append before the commit `last` and is running already. False when `patience` ends
    /// first.
    async fn is_settled(
        &self,
        operation: &'static str,
        until: Monotonic,
        patience: Duration,
        last: i64,
    ) -> Result<bool> {
        let wait_until = self.clock.monotonic().saturating_add(patience);
        let mut pause = FIRST_PAUSE;
        while self.left(wait_until) > pause * 2 {
            self.clock.sleep(pause).await;
            if self.read(operation, until, &sql::Settled).await? > last {
                return Ok(true);
            }
            pause = (pause * 2).min(LONGEST_LOOK);
        }
        Ok(false)
    }

    /// Runs a statement that may change something, at once or a few times when it lost to others; never again once it may
    /// have been applied.
    async fn write<S: Statement>(&self, operation: &'static str, statement: &S) -> Result<S::Answer> {
        let until = self.until();
        let mut connection = self.pool.acquire(operation, until).await?;
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            match self.clock.timeout(self.left(until), connection.run(statement)).await {
                Ok(Ok(answer)) => {
                    connection.release();
                    return Ok(answer);
                }
                Ok(Err(error))
                    if is_worth_a_retry(&error) && attempt < ATTEMPTS && self.left(until) > pause =>
                {
                    self.clock.sleep(pause).await;
                    pause *= 2;
                }
                Ok(Err(error)) => {
                    if is_connection_lost(&error) {
                        self.pool.drop_idle();
                    } else {
                        connection.release();
                    }
                    return Err(sent(operation, error));
                }
                // Dropped with the connection: the statement may still be running.
                Err(late) => return Err(unknown(operation).with_source(late)),
            }
        }
        Err(Error::internal(operation, "the attempts ended without an outcome"))
    }
}

fn unknown(operation: &'static str) -> Error {
    Error::new(ErrorKind::OutcomeUnknown, operation, "the server did not answer in time")
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("schema", &self.pool.statements.schema_name())
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl StateStore for PostgresStore {
    fn name(&self) -> &'static str {
        "postgres"
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        self.read("state.get", self.until(), &sql::Get(key)).await
    }

    async fn scan(&self, range: &KeyRange, page: PageRequest) -> Result<Page> {
        const OPERATION: &str = "state.scan";
        validate_limit(OPERATION, page.limit)?;
        let scan = sql::Scan { range, after: page.after.as_ref(), limit: page.limit };
        let (entries, more) = self.read(OPERATION, self.until(), &scan).await?;
        let next = entries.last().filter(|_| more).map(|entry| entry.key.clone());
        Ok(Page { entries, next })
    }

    async fn commit(&self, commit: &Commit) -> Result<Committed> {
        const OPERATION: &str = "state.commit";
        commit.validate()?;
        match self.write(OPERATION, &CommitArguments::of(commit, &self.pool.statements)).await? {
            Ok(version) => {
                self.hints.publish(commit);
                Ok(Committed { version })
            }
            Err(place) => {
                let error = Error::new(ErrorKind::Conflict, OPERATION, "a check does not hold");
                Err(match commit.checks.get(place.wrapping_sub(1)) {
                    Some(check) => error.with_context("key", check.key()),
                    None => error,
                })
            }
        }
    }

    async fn read_log(&self, log: &Key, after: Position, limit: usize) -> Result<Vec<LogEntry>> {
        const OPERATION: &str = "state.read_log";
        validate_limit(OPERATION, limit)?;
        let statement = sql::ReadLog { log, after, limit };
        let until = self.until();
        let page = self.read(OPERATION, until, &statement).await?;
        let Some(last) = page.unsettled.filter(|_| page.entries.len() < limit) else {
            return Ok(page.entries);
        };
        // Whoever committed what is there and not settled may have been answered before this read began.
        let patience = match page.entries.is_empty() {
            true => self.left(until),
            false => self.left(until).min(LONGEST_WAIT_WITH_ENTRIES),
        };
        if self.is_settled(OPERATION, until, patience, last).await? {
            return Ok(self.read(OPERATION, until, &statement).await?.entries);
        }
        if !page.entries.is_empty() {
            return Ok(page.entries);
        }
        let held_back = self.read(OPERATION, self.until(), &sql::HeldBack(OPERATION)).await;
        Err(held_back.unwrap_or_else(|error| error))
    }

    async fn trim_log(&self, log: &Key, through: Position) -> Result<()> {
        let statement = sql::Trim { log, through };
        loop {
            let removed = self.write("state.trim_log", &statement).await?;
            if removed < TRIM_STEP.unsigned_abs() {
                return Ok(());
            }
        }
    }

    async fn changes(&self, prefix: &Key) -> Result<HintStream> {
        let hints = self.hints.fanout.subscribe(prefix);
        // Whether the process hears others depends on the server; its own hints do not.
        let mut listening = self.listening.clone();
        let _ = self.clock.timeout(self.operation_deadline / 2, listening.wait_for(|tried| *tried)).await;
        Ok(hints)
    }
}
