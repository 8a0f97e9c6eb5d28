//! The queue.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_clock::{Clock, ClockExt, RandomExt, SystemRandom, Timestamp};
use flames_error::{Error, ErrorKind, Result};
use flames_queue::{
    EnqueueOptions, Enqueued, Job, JobId, Lease, LeaseToken, ParkedPage, Topic, TopicStats, WakeupStream,
    WorkQueue, WorkerId,
};
use flames_sqlite::error::not_applied;
use flames_sqlite::{Writer, file};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::error::not_opened;
use super::schema;
use super::time::LeaseClock;
use super::writer::{Done, Operation, Operations, Request};
use super::{dialect, sql};
use crate::DEFAULT_PARKED_RETENTION;
use crate::hints::Hints;
use crate::text::{FORGET_STEP, Statements};
use crate::values::{self, Delivery, check_count, check_lease, kept_reason, milliseconds, not_before};

/// What is kept behind [`SqliteQueueConfig::max_bytes`], for what goes on when no more jobs are taken in.
const SPARE_BYTES: u64 = 4 * 1024 * 1024;
/// How often old parked jobs are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(600);

/// How to open a queue.
#[derive(Debug, Clone)]
pub struct SqliteQueueConfig {
    /// The file. It is made when it is not there; its folder must be. No other database may be in it.
    pub path: PathBuf,
    /// How long an operation may take. A read, or an operation that the writer could not take in, is `Unavailable` or `Exhausted` then; one
    /// that it has is `OutcomeUnknown`.
    pub operation_deadline: Duration,
    /// How large the file may become, in bytes (the `-wal` file beside it apart); none: as large as the disk allows. Behind it, an enqueue is
    /// `Exhausted`, while jobs are still taken and settled; enqueues that come together may pass it by up to 4 MiB.
    pub max_bytes: Option<u64>,
    /// How long parked jobs are kept; none: until they are requeued.
    pub parked_retention: Option<Duration>,
    /// Whether what was answered survives that the machine loses its power (`synchronous = FULL`). If not, a crash of the process still
    /// loses nothing, and each transaction costs no fsync.
    pub survives_power_loss: bool,
}

impl SqliteQueueConfig {
    /// The file at `path` with the defaults: 10 seconds, no limit of size, 14 days, and it survives a loss of power.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            operation_deadline: Duration::from_secs(10),
            max_bytes: None,
            parked_retention: Some(DEFAULT_PARKED_RETENTION),
            survives_power_loss: true,
        }
    }

    fn options(&self) -> SqliteConnectOptions {
        file::options(&self.path, self.operation_deadline)
    }

    fn writer_options(&self) -> SqliteConnectOptions {
        let synchronous =
            if self.survives_power_loss { SqliteSynchronous::Full } else { SqliteSynchronous::Normal };
        let options = file::writing(self.options()).synchronous(synchronous);
        match self.max_bytes {
            // What takes and settles jobs needs room as well.
            Some(bytes) => {
                options.pragma("max_page_count", (file::pages(bytes) + file::pages(SPARE_BYTES)).to_string())
            }
            None => options,
        }
    }
}

/// A WorkQueue in one SQLite file. See the crate's docs.
///
/// Several processes may open one file: the write lock is SQLite's. Hints reach only the same process.
///
/// Dropped without [`SqliteQueue::close`], it leaves the file as a crash would: whole, with everything that was answered.
pub struct SqliteQueue {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    operation_deadline: Duration,
    epoch: i64,
    time: Arc<LeaseClock>,
    statements: Arc<Statements>,
    writer: Writer<Operations>,
    forgetter: Mutex<Option<Forgetter>>,
    readers: SqlitePool,
    hints: Arc<Hints>,
}

/// The task that forgets old parked jobs; ends with whoever has it.
struct Forgetter(JoinHandle<()>);

impl Drop for Forgetter {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl SqliteQueue {
    /// Opens the file, or makes it. Must be called within a tokio runtime, on which the writer then runs. Leases are judged by the
    /// monotonic time of `clock`, delays by its wall time.
    ///
    /// Errors: `NotSupported` when a newer version of Flames wrote the file, `InvalidInput` when it is another program's database (in
    /// both cases nothing is changed), `Corrupt` when it is no database or damaged, `Unavailable` when it cannot be opened, `Exhausted`
    /// when there is no room for it.
    pub async fn open(config: SqliteQueueConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        file::make_private(&config.path).await.map_err(|error| not_made(&config.path, error))?;
        let failed = |error| not_opened(&config.path, not_applied(schema::OPERATION, error));
        // Without WAL: switching a file to it changes the file, so first see whether it is ours.
        let mut connection = config.options().connect().await.map_err(failed)?;
        let is_empty = schema::is_empty(&mut connection, &config.path).await;
        connection.close().await.map_err(failed)?;
        let is_empty = is_empty?;

        let options = config.writer_options();
        let mut connection = options.connect().await.map_err(failed)?;
        if is_empty {
            // Positive, so that it reads well in a token.
            let epoch = i64::try_from(SystemRandom.next_u64() >> 2).unwrap_or(1);
            schema::create(&mut connection, &config.path, epoch).await?;
        }
        let (epoch, newest_lease) = schema::read(&mut connection, &config.path).await?;
        let readers = file::readers(config.options(), 2, config.operation_deadline);
        let hints = Arc::new(Hints::default());
        let statements = Arc::new(dialect().statements());
        let time = Arc::new(LeaseClock::new(Arc::clone(&clock), newest_lease));
        let operations = Operations {
            hints: Arc::clone(&hints),
            statements: Arc::clone(&statements),
            time: Arc::clone(&time),
            epoch,
            max_pages: config.max_bytes.map(file::pages),
        };
        let writer =
            Writer::start(operations, connection, options, Arc::clone(&clock), config.operation_deadline);
        let forgetter = config.parked_retention.map(|retention| {
            Forgetter(tokio::spawn(forget_parked(writer.requests(), Arc::clone(&clock), retention)))
        });
        Ok(Self {
            path: config.path,
            clock,
            operation_deadline: config.operation_deadline,
            epoch,
            time,
            statements,
            writer,
            forgetter: Mutex::new(forgetter),
            readers,
            hints,
        })
    }

    /// Carries out what was handed in, then closes the file. Afterwards every operation is `Unavailable`, and hints end. A second call does
    /// nothing.
    ///
    /// Errors: `Unavailable` when it does not end within twice the operations' deadline; the file is then left as by a crash.
    pub async fn close(&self) -> Result<()> {
        drop(self.take_forgetter());
        self.writer.close("queue.close", &self.readers).await
    }

    fn take_forgetter(&self) -> Option<Forgetter> {
        self.forgetter.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Stops at once, in the middle of whatever is under way, as a crash of the process does: operations that were handed in are of unknown
    /// outcome, and later ones are `Unavailable`. The file is whole, with everything that was answered.
    pub fn abandon(&self) {
        drop(self.take_forgetter());
        self.writer.abandon();
    }

    async fn read<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        self.clock.timeout(self.operation_deadline, work).await.unwrap_or_else(|late| {
            Err(Error::unavailable(operation, "the read took too long").with_source(late))
        })
    }

    async fn request(&self, operation: Operation) -> Result<Done> {
        self.writer.request(operation.name(), |answer| Request { operation, answer }).await
    }

    async fn settle(&self, operation: Operation) -> Result<()> {
        let name = operation.name();
        match self.request(operation).await? {
            Done::Settled => Ok(()),
            other => Err(of_another_kind(name, &other)),
        }
    }
}

fn of_another_kind(operation: &'static str, done: &Done) -> Error {
    Error::internal(operation, "the writer answered something else")
        .with_context("answer", format!("{done:?}"))
}

/// Has old parked jobs forgotten, now and then, until the queue is gone.
async fn forget_parked(requests: mpsc::Sender<Request>, clock: Arc<dyn Clock>, retention: Duration) {
    let older_than = milliseconds(retention);
    loop {
        let (answer, outcome) = oneshot::channel();
        if requests.send(Request { operation: Operation::Forget { older_than }, answer }).await.is_err() {
            return;
        }
        match outcome.await {
            Ok(Ok(Done::Forgot(count))) if i64::try_from(count).is_ok_and(|count| count >= FORGET_STEP) => {
                continue;
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "old parked jobs could not be forgotten; trying again later")
            }
            _ => {}
        }
        clock.sleep(FORGET_EVERY).await;
    }
}

fn not_made(path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        _ => ErrorKind::Unavailable,
    };
    let error = Error::new(kind, schema::OPERATION, "the queue file cannot be made").with_source(error);
    not_opened(path, error)
}

impl fmt::Debug for SqliteQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteQueue")
            .field("path", &self.path)
            .field("transactions", &self.writer.transactions())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl WorkQueue for SqliteQueue {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    async fn enqueue(&self, topic: &Topic, payload: Bytes, options: EnqueueOptions) -> Result<Enqueued> {
        options.validate(&payload)?;
        match self.request(Operation::Enqueue { topic: topic.clone(), payload, options }).await? {
            Done::Enqueued(enqueued) => Ok(enqueued),
            other => Err(of_another_kind("queue.enqueue", &other)),
        }
    }

    async fn dequeue(
        &self,
        topic: &Topic,
        worker: &WorkerId,
        max: usize,
        lease: Duration,
    ) -> Result<Vec<Job>> {
        let max = check_count("queue.dequeue", "max", max)?;
        let lease = check_lease("queue.dequeue", lease)?;
        let operation = Operation::Dequeue { topic: topic.clone(), worker: worker.clone(), max, lease };
        match self.request(operation).await? {
            Done::Taken(jobs) => Ok(jobs),
            other => Err(of_another_kind("queue.dequeue", &other)),
        }
    }

    async fn extend(&self, lease: &LeaseToken, lease_for: Duration) -> Result<Lease> {
        let length = check_lease("queue.extend", lease_for)?;
        let delivery = Delivery::of("queue.extend", lease, self.epoch)?;
        let operation = Operation::Extend { token: lease.clone(), delivery, lease: length };
        match self.request(operation).await? {
            Done::Extended(lease) => Ok(lease),
            other => Err(of_another_kind("queue.extend", &other)),
        }
    }

    async fn ack(&self, lease: &LeaseToken) -> Result<()> {
        let delivery = Delivery::of("queue.ack", lease, self.epoch)?;
        self.settle(Operation::Ack { token: lease.clone(), delivery }).await
    }

    async fn nack(&self, lease: &LeaseToken, retry_at: Timestamp) -> Result<()> {
        let delivery = Delivery::of("queue.nack", lease, self.epoch)?;
        let retry_at = not_before(retry_at);
        self.settle(Operation::Nack { token: lease.clone(), delivery, retry_at }).await
    }

    async fn park(&self, lease: &LeaseToken, reason: &str) -> Result<()> {
        let delivery = Delivery::of("queue.park", lease, self.epoch)?;
        let reason = kept_reason(reason).to_owned();
        self.settle(Operation::Park { token: lease.clone(), delivery, reason }).await
    }

    async fn parked(&self, topic: &Topic, after: Option<&JobId>, limit: usize) -> Result<ParkedPage> {
        const OPERATION: &str = "queue.parked";
        let rows = check_count(OPERATION, "limit", limit)?;
        let start = values::page_start(OPERATION, after)?;
        let read = sql::parked(&self.readers, &self.statements, topic, start, rows + 1);
        values::parked_page(OPERATION, self.read(OPERATION, read).await?, limit)
    }

    async fn requeue(&self, topic: &Topic, job: &JobId) -> Result<()> {
        self.settle(Operation::Requeue { topic: topic.clone(), job: job.clone() }).await
    }

    async fn stats(&self, topic: &Topic) -> Result<TopicStats> {
        let read = sql::stats(&self.readers, &self.statements, topic, self.time.now());
        self.read("queue.stats", read).await.map(values::stats)
    }

    async fn wakeups(&self, topic: &Topic) -> Result<WakeupStream> {
        if self.writer.is_closed() {
            return Err(Error::unavailable("queue.wakeups", "the queue is closed"));
        }
        Ok(self.hints.subscribe(topic))
    }
}
