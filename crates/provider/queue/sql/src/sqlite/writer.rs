//! The one connection that writes, and the task that has it under load.
//!
//! Operations that come together share a transaction, and so an fsync: a task gathers them. One that comes alone would pay for the way
//! to that task and back, which is more than its own work; so while nobody else waits, its caller takes the connection itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use flames_queue::{EnqueueOptions, Enqueued, Job, JobId, Lease, LeaseToken, Topic, WorkerId};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection as _, SqliteConnection};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};

use super::error::{is_trouble_with_the_disk, not_applied, outcome_unknown};
use super::sql::{self, Operations};
use super::time::{LeaseClock, Now};
use crate::hints::Hints;
use crate::text::Statements;
use crate::values::{Delivery, job_id, job_number, jobs, lease_lost, timestamp};

/// How many requests may wait for the writer; further callers wait to hand theirs in.
pub(crate) const QUEUE: usize = 256;
/// How many requests share a transaction at most.
const BATCH: usize = 128;

/// What the writer is asked for. Everything is checked before.
#[derive(Debug)]
pub(crate) enum Operation {
    Enqueue {
        topic: Topic,
        payload: Bytes,
        options: EnqueueOptions,
    },
    Dequeue {
        topic: Topic,
        worker: WorkerId,
        max: i64,
        lease: i64,
    },
    Extend {
        token: LeaseToken,
        delivery: Delivery,
        lease: i64,
    },
    Ack {
        token: LeaseToken,
        delivery: Delivery,
    },
    Nack {
        token: LeaseToken,
        delivery: Delivery,
        retry_at: i64,
    },
    Park {
        token: LeaseToken,
        delivery: Delivery,
        reason: String,
    },
    Requeue {
        topic: Topic,
        job: JobId,
    },
    /// Forgets some of the jobs that were parked longer ago than this, in milliseconds.
    Forget {
        older_than: i64,
    },
}

impl Operation {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Enqueue { .. } => "queue.enqueue",
            Self::Dequeue { .. } => "queue.dequeue",
            Self::Extend { .. } => "queue.extend",
            Self::Ack { .. } => "queue.ack",
            Self::Nack { .. } => "queue.nack",
            Self::Park { .. } => "queue.park",
            Self::Requeue { .. } => "queue.requeue",
            Self::Forget { .. } => "queue.forget_parked",
        }
    }
}

/// What came of an operation.
#[derive(Debug)]
pub(crate) enum Done {
    Enqueued(Enqueued),
    Taken(Vec<Job>),
    Extended(Lease),
    Settled,
    Forgot(u64),
}

/// An operation and where its outcome goes, once it is on disk.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) answer: oneshot::Sender<Result<Done>>,
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

/// What one operation did within its transaction.
struct Outcome {
    answer: Result<Done>,
    /// The topic that may have a job ready since.
    woken: Option<String>,
    changed: bool,
}

impl Outcome {
    fn changed(done: Done, woken: Option<String>) -> Self {
        Self { answer: Ok(done), woken, changed: true }
    }
    fn refused(error: Error) -> Self {
        Self { answer: Err(error), woken: None, changed: false }
    }
}

/// The connection that writes, and what goes with it.
pub(crate) struct Connection {
    pub(crate) hints: Arc<Hints>,
    pub(crate) statements: Arc<Statements>,
    pub(crate) time: Arc<LeaseClock>,
    pub(crate) epoch: i64,
    /// How many transactions were committed.
    pub(crate) transactions: Arc<AtomicU64>,
    /// At how many pages in use no more jobs are taken in.
    pub(crate) max_pages: Option<u64>,
    pub(crate) options: SqliteConnectOptions,
    /// None after a failure that left its state in doubt, and while a transaction is under way: one that was dropped half-way is rolled back
    /// by closing its connection. Opened anew for the next batch.
    pub(crate) open: Option<SqliteConnection>,
    /// The queue is closed: nothing is written any more.
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

    /// Carries a request out at once when nobody else writes or waits; else gives it back. A call that is dropped leaves the outcome unknown.
    pub(crate) async fn apply_alone(
        &self,
        requests: &mpsc::Sender<Request>,
        request: Request,
    ) -> Result<(), Request> {
        let somebody_waits = requests.capacity() < requests.max_capacity();
        if somebody_waits || requests.is_closed() || self.crowded.load(Ordering::Relaxed) {
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
    /// Carries out requests until told to close, or until the queue is dropped. What was handed in before is still carried out.
    pub(crate) async fn run(mut self) {
        let closing = Arc::clone(&self.closing);
        let shared = Arc::clone(&self.shared);
        let mut closed = false;
        loop {
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
            shared.crowded.store(batch.len() > 1, Ordering::Relaxed);
            if !batch.is_empty() {
                connection.apply(batch).await;
            }
        }
        let mut connection = shared.connection.lock().await;
        connection.closed = true;
        connection.hints.end();
        if let Some(open) = connection.open.take()
            && let Err(error) = open.close().await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "closing the queue file failed");
        }
    }

    fn gather(&mut self, first: Request) -> Vec<Request> {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            let Ok(request) = self.requests.try_recv() else { break };
            batch.push(request);
        }
        // Nobody waits for the answer of these any more, so that leaving them undone is as right as doing them.
        batch.retain(|request| !request.answer.is_closed());
        batch
    }
}

impl Connection {
    async fn apply(&mut self, batch: Vec<Request>) {
        let mut open = match self.open().await {
            Ok(open) => open,
            Err(error) => return refuse(batch, &error.into()),
        };
        let limits = (self.epoch, self.max_pages);
        match transact(&mut open, &self.statements, &self.time, limits, &batch).await {
            Ok(outcomes) => {
                self.open = Some(open);
                self.transactions.fetch_add(1, Ordering::Relaxed);
                for (request, outcome) in batch.into_iter().zip(outcomes) {
                    // Nobody may be waiting for an answer any more; what was done stays done.
                    let _ = request.answer.send(outcome.answer);
                    if let Some(topic) = outcome.woken {
                        self.hints.publish(&topic);
                    }
                }
            }
            Err(failed) => {
                if batch.len() > 1 {
                    self.roll_back(open).await;
                } else if matches!(failed, Failed::Before(_)) {
                    self.open = Some(open);
                }
                refuse(batch, &failed);
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
}

fn refuse(batch: Vec<Request>, failed: &Failed) {
    for request in batch {
        let operation = request.operation.name();
        // Nobody may be waiting any more.
        let _ = request.answer.send(Err(match failed {
            Failed::Before(cause) => not_applied(operation, Arc::clone(cause)),
            Failed::AtCommit(cause) => outcome_unknown(operation, Arc::clone(cause)),
        }));
    }
}

/// Carries out a batch, one operation after the other, in one transaction.
///
/// An operation that is alone needs none: each of its statements is one by itself, and whatever stands between two of them (a job made ready and
/// not yet taken, a job not finished and not yet renewed) is a state that any other operation may find as well.
async fn transact(
    connection: &mut SqliteConnection,
    statements: &Statements,
    time: &LeaseClock,
    (epoch, max_pages): (i64, Option<u64>),
    requests: &[Request],
) -> Result<Vec<Outcome>, Failed> {
    let is_alone = requests.len() == 1;
    if !is_alone {
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    }
    // Read when the lock is held: what another process did before is not judged by an earlier time. (Alone, it may be: then the delivery's number
    // still tells whether the lease was given on.)
    let now = time.now();
    let is_full = match max_pages {
        Some(max) => sql::used_pages(connection).await? >= max,
        None => false,
    };
    let mut operations = Operations { connection, statements, now };
    let mut outcomes = Vec::with_capacity(requests.len());
    for request in requests {
        let enqueues = matches!(request.operation, Operation::Enqueue { .. });
        outcomes.push(if is_full && enqueues {
            Outcome::refused(Error::new(
                ErrorKind::Exhausted,
                request.operation.name(),
                "the queue has its configured size",
            ))
        } else {
            carry_out(&mut operations, epoch, now, &request.operation).await.map_err(|error| {
                // Alone, a statement that cannot write may have failed when it was committed.
                if is_alone && is_trouble_with_the_disk(&error) {
                    Failed::AtCommit(Arc::new(error))
                } else {
                    Failed::from(error)
                }
            })?
        });
    }
    if is_alone {
        return Ok(outcomes);
    }
    if !outcomes.iter().any(|outcome| outcome.changed) {
        // Nothing is worth an fsync.
        sqlx::query("ROLLBACK").execute(connection).await?;
        return Ok(outcomes);
    }
    sqlx::query("COMMIT").execute(connection).await.map_err(|error| Failed::AtCommit(Arc::new(error)))?;
    Ok(outcomes)
}

async fn carry_out(
    operations: &mut Operations<'_>,
    epoch: i64,
    now: Now,
    operation: &Operation,
) -> sqlx::Result<Outcome> {
    let name = operation.name();
    let settled = |token: &LeaseToken, woken: Option<Option<String>>| match woken {
        Some(topic) => Outcome::changed(Done::Settled, topic),
        None => Outcome::refused(lease_lost(name, token)),
    };
    Ok(match operation {
        Operation::Enqueue { topic, payload, options } => {
            let (number, enqueues) = operations.enqueue(topic, payload, options).await?;
            let done =
                job_id(name, number).map(|job| Done::Enqueued(Enqueued { job, coalesced: enqueues > 1 }));
            Outcome { answer: done, woken: Some(topic.as_str().to_owned()), changed: true }
        }
        Operation::Dequeue { topic, worker, max, lease } => {
            let rows = operations.take(topic, worker, *max, *lease).await?;
            let changed = !rows.is_empty();
            let taken = jobs(name, topic, epoch, rows, |until| now.ends_at(until));
            Outcome { answer: taken.map(Done::Taken), woken: None, changed }
        }
        Operation::Extend { token, delivery, lease } => {
            if operations.extend(*delivery, *lease).await? {
                let expires_at = timestamp(name, now.wall.saturating_add(*lease));
                let extended =
                    expires_at.map(|at| Done::Extended(Lease { token: token.clone(), expires_at: at }));
                Outcome { answer: extended, woken: None, changed: true }
            } else {
                Outcome::refused(lease_lost(name, token))
            }
        }
        Operation::Ack { token, delivery } => settled(token, operations.acknowledge(*delivery).await?),
        Operation::Nack { token, delivery, retry_at } => {
            settled(token, operations.give_back(*delivery, *retry_at).await?.map(Some))
        }
        Operation::Park { token, delivery, reason } => {
            let parked = operations.park(*delivery, reason).await?;
            settled(token, parked.map(|(topic, goes_on)| goes_on.then_some(topic)))
        }
        Operation::Requeue { topic, job } => {
            let requeued = match job_number(job) {
                Some(number) => operations.requeue(topic, number).await?,
                None => false,
            };
            if requeued {
                Outcome::changed(Done::Settled, Some(topic.as_str().to_owned()))
            } else {
                Outcome::refused(Error::not_found(name, "parked_job", job.as_str()))
            }
        }
        Operation::Forget { older_than } => {
            let forgotten = operations.forget_parked(*older_than).await?;
            Outcome { answer: Ok(Done::Forgot(forgotten)), woken: None, changed: forgotten > 0 }
        }
    })
}
