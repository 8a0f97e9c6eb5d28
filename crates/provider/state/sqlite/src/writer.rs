//! The one connection that writes, and the task that has it under load.
//!
//! Commits that come together share a transaction, and so an fsync: a task gathers them. One that comes alone would pay for the way to
//! that task and back, which is more than its own work; so while nobody else waits, its caller takes the connection itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flames_error::Result;
use flames_state::{Commit, Committed, HintFanout, Key, Position, Version};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection as _, SqliteConnection};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};

use crate::batch::Batch;
use crate::error::{at_commit, not_written};
use crate::sql::{self, Changes};

/// How many requests may wait for the writer; further callers wait to hand theirs in.
pub(crate) const QUEUE: usize = 256;
/// How many requests share a transaction at most.
const BATCH: usize = 128;
/// How often the writer lets the other tasks go first before it takes fewer requests than last time. Those whose commits were just
/// answered are about to hand in the next ones, and an fsync is better paid for all of them than for the first few.
const COURTESIES: usize = 6;
/// At how many bytes a batch takes no further commit: what a batch holds beside the callers' own copies.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// How many log entries one request to trim removes, so that a long log does not hold up the commits.
pub(crate) const TRIM_STEP: u32 = 1_000;

const COMMIT: &str = "state.commit";
const TRIM: &str = "state.trim_log";

/// What the writer is asked for. It answers once the outcome is on disk.
#[derive(Debug)]
pub(crate) enum Request {
    /// To apply a commit that is within the limits.
    Commit { commit: Commit, answer: oneshot::Sender<Result<Committed>> },
    /// To remove at most [`TRIM_STEP`] entries of a log; answers how many were removed.
    Trim { log: Key, through: Position, answer: oneshot::Sender<Result<u64>> },
}

impl Request {
    fn bytes(&self) -> usize {
        match self {
            Self::Commit { commit, .. } => commit.bytes(),
            Self::Trim { .. } => 0,
        }
    }

    /// Nobody waits for the answer any more, so that leaving it undone is as right as doing it.
    fn is_abandoned(&self) -> bool {
        match self {
            Self::Commit { answer, .. } => answer.is_closed(),
            Self::Trim { answer, .. } => answer.is_closed(),
        }
    }

    fn commit(&self) -> Option<&Commit> {
        match self {
            Self::Commit { commit, .. } => Some(commit),
            Self::Trim { .. } => None,
        }
    }
}

/// What became of a request, when its transaction was committed.
enum Done {
    Commit(Result<Committed>),
    Trim(u64),
}

/// Why a transaction was not committed.
enum Failed {
    /// It was certainly not applied.
    Before(Arc<sqlx::Error>),
    /// Its `COMMIT` failed.
    AtCommit(Arc<sqlx::Error>),
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Before(Arc::new(error))
    }
}

/// The connection that writes, and what goes with it.
pub(crate) struct Connection {
    pub(crate) hints: Arc<HintFanout>,
    /// How many transactions were committed.
    pub(crate) transactions: Arc<AtomicU64>,
    pub(crate) path: PathBuf,
    pub(crate) options: SqliteConnectOptions,
    /// None after a failure that left its state in doubt, and while a transaction is under way: one that was dropped half-way is rolled back
    /// by closing its connection. Opened anew for the next batch.
    pub(crate) open: Option<SqliteConnection>,
    /// The store is closed: nothing is written any more.
    pub(crate) closed: bool,
}

/// What callers and the writer share.
pub(crate) struct Shared {
    pub(crate) connection: Mutex<Connection>,
    /// The last batch had several requests: more will come together, and are better gathered.
    crowded: AtomicBool,
}

impl Shared {
    pub(crate) fn new(connection: Connection) -> Arc<Self> {
        Arc::new(Self { connection: Mutex::new(connection), crowded: AtomicBool::new(false) })
    }

    /// Applies a request at once when nobody else writes or waits; else gives it back. A call that is dropped leaves the outcome unknown.
    pub(crate) async fn apply_alone(
        &self,
        requests: &mpsc::Sender<Request>,
        request: Request,
    ) -> Result<(), Request> {
        let somebody_waits = requests.capacity() < requests.max_capacity();
        if somebody_waits || self.crowded.load(Ordering::Relaxed) {
            return Err(request);
        }
        match self.connection.try_lock() {
            Ok(mut connection) if !connection.closed => {
                connection.apply(vec![request]).await;
                Ok(())
            }
            _ => Err(request),
        }
    }
}

/// The task that gathers requests.
pub(crate) struct Writer {
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) closing: Arc<Notify>,
    pub(crate) shared: Arc<Shared>,
}

impl Writer {
    /// Applies requests until told to close, or until the store is dropped. What was handed in before is still applied.
    pub(crate) async fn run(mut self) {
        let closing = Arc::clone(&self.closing);
        let shared = Arc::clone(&self.shared);
        let mut closed = false;
        let mut last = 0;
        loop {
            for _ in 0..COURTESIES {
                if last < 2 || self.requests.len() >= last {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let first = tokio::select! {
                biased;
                () = closing.notified(), if !closed => {
                    self.requests.close();
                    closed = true;
                    continue;
                }
                request = self.requests.recv() => request,
            };
            let Some(first) = first else { break };
            let mut connection = shared.connection.lock().await;
            let batch = self.gather(first);
            last = batch.len();
            shared.crowded.store(last > 1, Ordering::Relaxed);
            if !batch.is_empty() {
                connection.apply(batch).await;
            }
        }
        let mut connection = shared.connection.lock().await;
        connection.closed = true;
        if let Some(open) = connection.open.take()
            && let Err(error) = open.close().await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "closing the state file failed");
        }
    }

    fn gather(&mut self, first: Request) -> Vec<Request> {
        let mut bytes = first.bytes();
        let mut batch = vec![first];
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let Ok(request) = self.requests.try_recv() else { break };
            bytes += request.bytes();
            batch.push(request);
        }
        batch.retain(|request| !request.is_abandoned());
        batch
    }
}

impl Connection {
    async fn apply(&mut self, batch: Vec<Request>) {
        let mut open = match self.open().await {
            Ok(open) => open,
            Err(error) => return refuse(batch, &self.path, &error.into()),
        };
        match transact(&mut open, &batch).await {
            Ok(done) => {
                self.open = Some(open);
                self.transactions.fetch_add(1, Ordering::Relaxed);
                for (request, done) in batch.into_iter().zip(done) {
                    self.answer(request, done);
                }
            }
            Err(failed) => {
                self.roll_back(open).await;
                refuse(batch, &self.path, &failed);
            }
        }
    }

    async fn open(&mut self) -> sqlx::Result<SqliteConnection> {
        match self.open.take() {
            Some(open) => Ok(open),
            None => self.options.connect().await,
        }
    }

    /// After a failure: no transaction may stay open, and a connection that cannot be brought to that is given up.
    async fn roll_back(&mut self, mut open: SqliteConnection) {
        match sqlx::query("ROLLBACK").execute(&mut open).await {
            Ok(_) => self.open = Some(open),
            // SQLite has rolled back by itself, or cannot: either way a new connection starts clean.
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the writer's connection is replaced"
                );
            }
        }
    }

    fn answer(&self, request: Request, done: Done) {
        // Nobody may be waiting for an answer any more; what was done stays done.
        match (request, done) {
            (Request::Commit { commit, answer }, Done::Commit(outcome)) => {
                if outcome.is_ok() {
                    self.hints.publish(&commit);
                }
                let _ = answer.send(outcome);
            }
            (Request::Trim { answer, .. }, Done::Trim(removed)) => {
                let _ = answer.send(Ok(removed));
            }
            // An answer dropped is an unknown outcome for the caller: right for what cannot be.
            (Request::Commit { .. }, Done::Trim(_)) | (Request::Trim { .. }, Done::Commit(_)) => {}
        }
    }
}

/// Applies a batch in one transaction.
async fn transact(connection: &mut SqliteConnection, requests: &[Request]) -> Result<Vec<Done>, Failed> {
    let checked: BTreeSet<&Key> = requests
        .iter()
        .filter_map(Request::commit)
        .flat_map(|commit| &commit.checks)
        .map(|check| check.key())
        .collect();
    let checked: Vec<_> = checked.into_iter().collect();
    let (first_number, stored) = sql::begin(connection, requests.len(), &checked).await?;
    let stored = stored
        .iter()
        .map(|(key, version)| (&key[..], Version::from_raw(u64::try_from(*version).unwrap_or(0))));
    let mut batch = Batch::over(stored);
    let mut done = Vec::with_capacity(requests.len());
    for (number, request) in (first_number..).zip(requests) {
        done.push(match request {
            Request::Commit { commit, .. } => Done::Commit(batch.apply(commit, number)),
            Request::Trim { log, through, .. } => {
                Done::Trim(sql::trim(connection, log, *through, TRIM_STEP).await?)
            }
        });
    }
    let changes = Changes { puts: batch.puts(), deletes: batch.deletes(), appends: batch.appends() };
    sql::write(connection, &changes).await?;
    if batch.is_unchanged() && !requests.iter().any(|request| matches!(request, Request::Trim { .. })) {
        // Every commit was refused: nothing is worth an fsync.
        sqlx::query("ROLLBACK").execute(connection).await?;
        return Ok(done);
    }
    sqlx::query("COMMIT").execute(connection).await.map_err(|error| Failed::AtCommit(Arc::new(error)))?;
    Ok(done)
}

fn refuse(batch: Vec<Request>, path: &Path, failed: &Failed) {
    let error = |operation| match failed {
        Failed::Before(cause) => not_written(operation, path, Arc::clone(cause)),
        Failed::AtCommit(cause) => at_commit(operation, path, Arc::clone(cause)),
    };
    for request in batch {
        // Nobody may be waiting any more.
        match request {
            Request::Commit { answer, .. } => drop(answer.send(Err(error(COMMIT)))),
            Request::Trim { answer, .. } => drop(answer.send(Err(error(TRIM)))),
        }
    }
}
