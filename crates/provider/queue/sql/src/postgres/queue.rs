//! The queue.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_clock::{Clock, ClockExt, Monotonic, RandomExt, SystemRandom, Timestamp};
use flames_error::{Error, Result};
use flames_queue::{
    EnqueueOptions, Enqueued, Job, JobId, Lease, LeaseToken, ParkedPage, Topic, TopicStats, WakeupStream,
    WorkQueue, WorkerId,
};
use sqlx::ConnectOptions;
use tokio::task::JoinHandle;

use super::batches::Batches;
use super::carriers::{Acks, Enqueues, Shared};
use super::config::PostgresQueueConfig;
use super::connections::{Connections, Effect, Occupied, on_a_connection};
use super::error::{Failure, not_opened};
use super::notify::{Channel, Listener, Notifier};
use super::sql::{EnqueueRow, EnqueuedRow, Settled};
use super::{dialect, schema, sql};
use crate::hints::Hints;
use crate::text::FORGET_STEP;
use crate::values::{
    self, Delivery, check_count, check_lease, job_id, job_number, kept_reason, lease_lost, milliseconds,
    not_before, timestamp,
};

/// How many statements of one kind one process has under way at most; more than that only stand in each other's way.
const MOST_LANES: usize = 16;
/// How often old parked jobs are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(600);

/// A WorkQueue on a Postgres server. See the crate's docs.
///
/// Dropped without [`PostgresQueue::close`], it only leaves the server without a good-bye.
pub struct PostgresQueue {
    schema: String,
    clock: Arc<dyn Clock>,
    operation_deadline: Duration,
    epoch: i64,
    shared: Arc<Shared>,
    enqueues: Batches<EnqueueRow, EnqueuedRow, Enqueues>,
    acks: Batches<Delivery, Settled, Acks>,
    listener: Listener,
    forgetter: Mutex<Option<JoinHandle<()>>>,
    is_closed: AtomicBool,
}

impl PostgresQueue {
    /// Connects, and makes the tables where there are none. Must be called within a tokio runtime. `clock` measures deadlines; leases and
    /// delays are judged by the server's clock.
    ///
    /// Errors: `InvalidInput` when the url or the schema's name is none, `PermissionDenied` when the server does not let the user in or
    /// the user may not make the schema, `NotSupported` when a newer version of Flames has been there (nothing is changed then),
    /// `Unavailable` when the server or the database is not there, `Exhausted` when it has no connection left.
    pub async fn open(config: PostgresQueueConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        const OPERATION: &str = schema::OPERATION;
        schema::check_name(&config.schema)?;
        let options = config.options()?;
        let opening = async {
            let mut connection =
                options.connect().await.map_err(|error| not_opened(OPERATION, &options, error))?;
            // Positive, so that it reads well in a token.
            let fresh = i64::try_from(SystemRandom.next_u64() >> 2).unwrap_or(1);
            let epoch = schema::prepare(&mut connection, &options, &config.schema, fresh).await?;
            Ok::<_, Error>((connection, epoch))
        };
        let (connection, epoch) =
            clock.timeout(config.operation_deadline, opening).await.unwrap_or_else(|_| {
                let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
                Err(not_opened(OPERATION, &options, late.into()))
            })?;
        let connections =
            Arc::new(Connections::new(options.clone(), Arc::clone(&clock), config.max_connections));
        connections.put_back(connection);
        let channel = Channel { name: format!("flames_{}", config.schema), sender: SystemRandom.next_u64() };
        let hints = Arc::new(Hints::default());
        let notifier = Notifier::new(options.clone(), Arc::clone(&clock), channel.clone());
        let listener = Listener::new(options, Arc::clone(&clock), channel, Arc::clone(&hints));
        let statements = dialect(&config.schema).statements();
        let shared = Arc::new(Shared { connections, statements, hints, notifier });
        // Half of the connections each: the other operations need some as well.
        let lanes = usize::try_from(config.max_connections / 2).unwrap_or(1).clamp(1, MOST_LANES);
        let enqueues = Batches::new(Arc::new(Enqueues(Arc::clone(&shared))), Arc::clone(&clock), lanes);
        let acks = Batches::new(Arc::new(Acks(Arc::clone(&shared))), Arc::clone(&clock), lanes);
        let forgetter = config.parked_retention.map(|retention| {
            let deadline = config.operation_deadline;
            tokio::spawn(forget_parked(Arc::clone(&shared), Arc::clone(&clock), retention, deadline))
        });
        Ok(Self {
            schema: config.schema,
            clock,
            operation_deadline: config.operation_deadline,
            epoch,
            shared,
            enqueues,
            acks,
            listener,
            forgetter: Mutex::new(forgetter),
            is_closed: AtomicBool::new(false),
        })
    }

    /// Waits for what is under way and takes leave of the server. Afterwards every operation is `Unavailable`, and hints end. A second call
    /// does nothing.
    ///
    /// Errors: `Unavailable` when operations are still under way after their deadline.
    pub async fn close(&self) -> Result<()> {
        if self.is_closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.stop_forgetting();
        let quiet = self.shared.connections.close(self.operation_deadline).await;
        self.shared.hints.end();
        if quiet {
            return Ok(());
        }
        Err(Error::unavailable("queue.close", "operations are still under way"))
    }

    /// Takes the place of one of [`PostgresQueueConfig::max_connections`] until dropped: for an operator who wants to hold the queue's
    /// load down for a while, and for tests of what happens when all are in use.
    ///
    /// Errors: `Exhausted` when none is free until the deadline; `Unavailable`.
    pub async fn occupy(&self) -> Result<Occupied> {
        const OPERATION: &str = "queue.occupy";
        let until = self.begin(OPERATION)?;
        self.shared.connections.occupy(until).await.map_err(|failure| failure.into_error(OPERATION))
    }

    fn stop_forgetting(&self) {
        if let Some(task) = self.forgetter.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }

    /// The latest end of an operation that begins now.
    fn begin(&self, operation: &'static str) -> Result<Monotonic> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Failure::Closed.into_error(operation));
        }
        Ok(self.clock.monotonic().saturating_add(self.operation_deadline))
    }

    /// What a settlement answers for what it did.
    fn settled(&self, operation: &'static str, token: &LeaseToken, settled: Settled) -> Result<()> {
        match settled {
            Settled::Done => Ok(()),
            Settled::GoesOn(topic) => {
                self.shared.woken(&topic);
                Ok(())
            }
            Settled::Lost => Err(lease_lost(operation, token)),
        }
    }
}

impl Drop for PostgresQueue {
    fn drop(&mut self) {
        self.stop_forgetting();
    }
}

impl fmt::Debug for PostgresQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresQueue").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// Forgets old parked jobs, now and then.
async fn forget_parked(shared: Arc<Shared>, clock: Arc<dyn Clock>, retention: Duration, deadline: Duration) {
    let older_than = milliseconds(retention);
    loop {
        let until = clock.monotonic().saturating_add(deadline);
        let statements = &shared.statements;
        let forgotten =
            on_a_connection!(shared.connections, Effect::Changes, until, |connection| sql::forget_parked(
                connection, statements, older_than
            ));
        match forgotten {
            Ok(count) if count >= FORGET_STEP => continue,
            Ok(_) => {}
            Err(failure) => {
                let error = failure.into_error("queue.forget_parked");
                tracing::warn!(%error, "old parked jobs could not be forgotten; trying again later");
            }
        }
        clock.sleep(FORGET_EVERY).await;
    }
}

#[async_trait]
impl WorkQueue for PostgresQueue {
    fn name(&self) -> &'static str {
        "postgres"
    }

    async fn enqueue(&self, topic: &Topic, payload: Bytes, options: EnqueueOptions) -> Result<Enqueued> {
        const OPERATION: &str = "queue.enqueue";
        options.validate(&payload)?;
        let until = self.begin(OPERATION)?;
        let row = EnqueueRow {
            topic: topic.as_str().to_owned(),
            dedupe_key: options.dedupe_key.map(String::into_bytes),
            payload: payload.into(),
            priority: i16::from(options.priority.0),
            not_before: options.not_before.map_or(i64::MIN, not_before),
        };
        let enqueued = self.enqueues.run(row, until).await;
        let (number, enqueues) = enqueued.map_err(|failure| failure.into_error(OPERATION))?;
        self.shared.woken(topic.as_str());
        Ok(Enqueued { job: job_id(OPERATION, number)?, coalesced: enqueues > 1 })
    }

    async fn dequeue(
        &self,
        topic: &Topic,
        worker: &WorkerId,
        max: usize,
        lease: Duration,
    ) -> Result<Vec<Job>> {
        const OPERATION: &str = "queue.dequeue";
        let max = check_count(OPERATION, "max", max)?;
        let lease = check_lease(OPERATION, lease)?;
        let until = self.begin(OPERATION)?;
        let (statements, topic_name) = (&self.shared.statements, topic.as_str());
        let taken = on_a_connection!(
            self.shared.connections,
            Effect::Changes,
            until,
            |connection| sql::take(connection, statements, topic_name, worker.as_str(), max, lease)
        );
        let rows = taken.map_err(|failure| failure.into_error(OPERATION))?;
        values::jobs(OPERATION, topic, self.epoch, rows, |until| until)
    }

    async fn extend(&self, lease: &LeaseToken, lease_for: Duration) -> Result<Lease> {
        const OPERATION: &str = "queue.extend";
        let length = check_lease(OPERATION, lease_for)?;
        let delivery = Delivery::of(OPERATION, lease, self.epoch)?;
        let until = self.begin(OPERATION)?;
        let statements = &self.shared.statements;
        let extended =
            on_a_connection!(self.shared.connections, Effect::Changes, until, |connection| sql::extend(
                connection, statements, delivery, length
            ));
        let end = extended.map_err(|failure| failure.into_error(OPERATION))?;
        let end = end.ok_or_else(|| lease_lost(OPERATION, lease))?;
        Ok(Lease { token: lease.clone(), expires_at: timestamp(OPERATION, end)? })
    }

    async fn ack(&self, lease: &LeaseToken) -> Result<()> {
        const OPERATION: &str = "queue.ack";
        let delivery = Delivery::of(OPERATION, lease, self.epoch)?;
        let until = self.begin(OPERATION)?;
        let settled = self.acks.run(delivery, until).await;
        self.settled(OPERATION, lease, settled.map_err(|failure| failure.into_error(OPERATION))?)
    }

    async fn nack(&self, lease: &LeaseToken, retry_at: Timestamp) -> Result<()> {
        const OPERATION: &str = "queue.nack";
        let delivery = Delivery::of(OPERATION, lease, self.epoch)?;
        let until = self.begin(OPERATION)?;
        let (statements, retry_at) = (&self.shared.statements, not_before(retry_at));
        let settled =
            on_a_connection!(self.shared.connections, Effect::Changes, until, |connection| sql::give_back(
                connection, statements, delivery, retry_at
            ));
        self.settled(OPERATION, lease, settled.map_err(|failure| failure.into_error(OPERATION))?)
    }

    async fn park(&self, lease: &LeaseToken, reason: &str) -> Result<()> {
        const OPERATION: &str = "queue.park";
        let delivery = Delivery::of(OPERATION, lease, self.epoch)?;
        let until = self.begin(OPERATION)?;
        let (statements, reason) = (&self.shared.statements, kept_reason(reason).as_bytes());
        let settled =
            on_a_connection!(self.shared.connections, Effect::Changes, until, |connection| sql::park(
                connection, statements, delivery, reason
            ));
        self.settled(OPERATION, lease, settled.map_err(|failure| failure.into_error(OPERATION))?)
    }

    async fn parked(&self, topic: &Topic, after: Option<&JobId>, limit: usize) -> Result<ParkedPage> {
        const OPERATION: &str = "queue.parked";
        let rows = check_count(OPERATION, "limit", limit)?;
        let start = values::page_start(OPERATION, after)?;
        let until = self.begin(OPERATION)?;
        let (statements, topic) = (&self.shared.statements, topic.as_str());
        let read = on_a_connection!(self.shared.connections, Effect::Reads, until, |connection| sql::parked(
            connection,
            statements,
            topic,
            start,
            rows + 1
        ));
        values::parked_page(OPERATION, read.map_err(|failure| failure.into_error(OPERATION))?, limit)
    }

    async fn requeue(&self, topic: &Topic, job: &JobId) -> Result<()> {
        const OPERATION: &str = "queue.requeue";
        let not_parked = || Error::not_found(OPERATION, "parked_job", job.as_str());
        let number = job_number(job).ok_or_else(not_parked)?;
        let until = self.begin(OPERATION)?;
        let (statements, name) = (&self.shared.statements, topic.as_str());
        let requeued =
            on_a_connection!(self.shared.connections, Effect::Changes, until, |connection| sql::requeue(
                connection, statements, name, number
            ));
        if !requeued.map_err(|failure| failure.into_error(OPERATION))? {
            return Err(not_parked());
        }
        self.shared.woken(name);
        Ok(())
    }

    async fn stats(&self, topic: &Topic) -> Result<TopicStats> {
        const OPERATION: &str = "queue.stats";
        let until = self.begin(OPERATION)?;
        let (statements, topic) = (&self.shared.statements, topic.as_str());
        let read = on_a_connection!(self.shared.connections, Effect::Reads, until, |connection| sql::stats(
            connection, statements, topic
        ));
        read.map(values::stats).map_err(|failure| failure.into_error(OPERATION))
    }

    async fn wakeups(&self, topic: &Topic) -> Result<WakeupStream> {
        self.begin("queue.wakeups")?;
        let stream = self.shared.hints.subscribe(topic);
        self.listener.begin().await;
        Ok(stream)
    }
}
