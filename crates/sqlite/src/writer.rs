//! The one connection that writes, and the task that has it under load.
//!
//! Requests that come together share a transaction, and so an fsync: a task gathers them. One that comes alone would pay for the way to
//! that task and back, which is more than its own work; so while nobody else waits, its caller takes the connection itself.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use flames_error::{Error, ErrorKind, Result};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use sqlx::{ConnectOptions, Connection as _, SqliteConnection};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

/// How many requests may wait for the writer; further callers wait to hand theirs in.
const QUEUE: usize = 256;
/// How many requests share a transaction at most.
const BATCH: usize = 128;
/// How often the writer lets the other tasks go first before it takes fewer requests than last time. Those whose requests were just
/// answered are about to hand in the next ones, and an fsync is better paid for all of them than for the first few.
const COURTESIES: usize = 6;
/// At how many bytes a batch takes no further request: what a batch holds beside the callers' own copies.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// What is written, and how.
pub trait Work: Send + 'static {
    /// What is asked for, with a way to answer it.
    type Request: Send + Sync + 'static;
    /// What became of a request, when its transaction was committed.
    type Done: Send;

    /// About how many bytes a request holds.
    fn bytes(request: &Self::Request) -> usize;

    /// Whether nobody waits for the answer any more, so that leaving the request undone is as right as doing it.
    fn is_abandoned(request: &Self::Request) -> bool;

    /// Carries requests out in their order and commits them; answers what became of each. On a failure, a transaction that it began is
    /// rolled back by the caller, and none of them counts.
    fn transact(
        &mut self,
        connection: &mut SqliteConnection,
        requests: &[Self::Request],
    ) -> impl Future<Output = Result<Vec<Self::Done>, Failed>> + Send;

    /// Tells what became of a request. It is on disk.
    fn answer(&mut self, request: Self::Request, done: Self::Done);

    /// Tells that a request was not done, or that nobody knows.
    fn refuse(&mut self, request: Self::Request, failed: &Failed);

    /// Nothing is written any more.
    fn close(&mut self) {}
}

/// Why a transaction was not committed.
#[derive(Debug)]
pub enum Failed {
    /// It was certainly not applied.
    Before(Arc<sqlx::Error>),
    /// As [`Failed::Before`], and no transaction was begun: the connection is as it was.
    Alone(Arc<sqlx::Error>),
    /// Its `COMMIT` failed.
    AtCommit(Arc<sqlx::Error>),
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Before(Arc::new(error))
    }
}

/// The connection that writes, and what goes with it.
struct Connection<W> {
    work: W,
    transactions: Arc<AtomicU64>,
    options: SqliteConnectOptions,
    /// None after a failure that left its state in doubt; opened anew for the next batch.
    open: Option<SqliteConnection>,
    /// A transaction is under way, or was dropped half-way: then it is rolled back before the next one. Its connection is kept, since
    /// only one that is at hand can be waited for: SQLite goes on with what it was told, and a file that is closed meanwhile would be left
    /// as by a crash.
    half_way: bool,
    /// Nothing is written any more.
    closed: bool,
}

/// What callers and the task share.
struct Shared<W> {
    connection: Mutex<Connection<W>>,
    /// The last batch had several requests: more will come together, and are better gathered.
    crowded: AtomicBool,
    closing: Notify,
}

/// Who writes one file for all of this process. Dropped, it stops at once, as a crash would; see [`Writer::close`].
pub struct Writer<W: Work> {
    clock: Arc<dyn Clock>,
    operation_deadline: Duration,
    requests: mpsc::Sender<W::Request>,
    shared: Arc<Shared<W>>,
    transactions: Arc<AtomicU64>,
    task: StdMutex<Option<Task>>,
}

/// Ends with whoever has it.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<W: Work> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("transactions", &self.transactions()).finish_non_exhaustive()
    }
}

impl<W: Work> Writer<W> {
    /// Starts on the present runtime, over a connection that was opened with `options`. A connection whose state is in doubt is
    /// replaced by another one of them.
    pub fn start(
        work: W,
        connection: SqliteConnection,
        options: SqliteConnectOptions,
        clock: Arc<dyn Clock>,
        operation_deadline: Duration,
    ) -> Self {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let transactions = Arc::new(AtomicU64::new(0));
        let connection = Connection {
            work,
            transactions: Arc::clone(&transactions),
            options,
            open: Some(connection),
            half_way: false,
            closed: false,
        };
        let shared = Arc::new(Shared {
            connection: Mutex::new(connection),
            crowded: AtomicBool::new(false),
            closing: Notify::new(),
        });
        let task = tokio::spawn(gather_and_apply(receiver, Arc::clone(&shared)));
        Self {
            clock,
            operation_deadline,
            requests,
            shared,
            transactions,
            task: StdMutex::new(Some(Task(task))),
        }
    }

    /// How many transactions were committed.
    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    /// Whether requests are refused: it was closed, or has stopped.
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Where requests are handed in that nobody waits for with a deadline.
    pub fn requests(&self) -> mpsc::Sender<W::Request> {
        self.requests.clone()
    }

    /// Has a request carried out, at once or with others, and waits for its answer.
    ///
    /// Errors: as answered; `Unavailable` when it is closed, `Exhausted` when too many wait, `OutcomeUnknown` when it was not done in
    /// time. A call that is dropped leaves the outcome unknown.
    pub async fn request<T: Send>(
        &self,
        operation: &'static str,
        request: impl FnOnce(oneshot::Sender<Result<T>>) -> W::Request + Send,
    ) -> Result<T> {
        let unknown = |message| Error::new(ErrorKind::OutcomeUnknown, operation, message);
        let late = |late| unknown("it was not done in time").with_source(late);
        let (answer, outcome) = oneshot::channel();
        let started = self.clock.monotonic();
        let alone = self.apply_alone(request(answer));
        let alone = self.clock.timeout(self.operation_deadline, alone).await.map_err(late)?;
        if let Err(request) = alone {
            match self.clock.timeout(self.operation_deadline, self.requests.send(request)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::unavailable(operation, "the file is closed")),
                Err(late) => {
                    let error = Error::new(ErrorKind::Exhausted, operation, "too many requests are waiting");
                    return Err(error.with_source(late));
                }
            }
        }
        let left = self.operation_deadline.saturating_sub(self.clock.monotonic().saturating_since(started));
        match self.clock.timeout(left, outcome).await.map_err(late)? {
            Ok(outcome) => outcome,
            Err(_) => Err(unknown("the writer ended without an answer")),
        }
    }

    /// Applies a request at once when nobody else writes or waits; else gives it back.
    async fn apply_alone(&self, request: W::Request) -> Result<(), W::Request> {
        let somebody_waits = self.requests.capacity() < self.requests.max_capacity();
        if somebody_waits || self.requests.is_closed() || self.shared.crowded.load(Ordering::Relaxed) {
            return Err(request);
        }
        match self.shared.connection.try_lock() {
            Ok(mut connection) if !connection.closed => {
                connection.apply(vec![request]).await;
                Ok(())
            }
            _ => Err(request),
        }
    }

    /// Carries out what was handed in, then closes the file and its readers. Afterwards every request is `Unavailable`. A second call
    /// does nothing.
    ///
    /// Errors: `Unavailable` when it does not end within twice the operations' deadline; the file is then left as by a crash.
    pub async fn close(&self, operation: &'static str, readers: &SqlitePool) -> Result<()> {
        self.shared.closing.notify_one();
        let task = self.take_task();
        let work = async {
            readers.close().await;
            let Some(mut task) = task else { return Ok(()) };
            let ended = (&mut task.0).await;
            ended.map_err(|error| Error::internal(operation, "the writer failed").with_source(error))?;
            // After the readers: the last connection moves the contents of the `-wal` file into the file itself, and of two that are
            // closed at the same time neither finds itself the last.
            self.shared.connection.lock().await.close().await;
            Ok(())
        };
        let limit = self.operation_deadline.saturating_mul(2);
        self.clock.timeout(limit, work).await.unwrap_or_else(|late| {
            Err(Error::unavailable(operation, "operations are still under way").with_source(late))
        })
    }

    /// Stops at once, in the middle of whatever is under way, as a crash of the process does: requests that were handed in are of unknown
    /// outcome, and later ones are `Unavailable`. The file is whole, with everything that was answered.
    pub fn abandon(&self) {
        drop(self.take_task());
    }

    fn take_task(&self) -> Option<Task> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Applies requests until told to close, or until nobody can hand any in. What was handed in before is still applied. The file stays open.
async fn gather_and_apply<W: Work>(mut requests: mpsc::Receiver<W::Request>, shared: Arc<Shared<W>>) {
    let mut closed = false;
    let mut last = 0;
    loop {
        for _ in 0..COURTESIES {
            if last < 2 || requests.len() >= last {
                break;
            }
            tokio::task::yield_now().await;
        }
        let first = tokio::select! {
            biased;
            () = shared.closing.notified(), if !closed => {
                requests.close();
                closed = true;
                continue;
            }
            request = requests.recv() => request,
        };
        let Some(first) = first else { break };
        let mut connection = shared.connection.lock().await;
        let batch = gather::<W>(&mut requests, first);
        last = batch.len();
        shared.crowded.store(last > 1, Ordering::Relaxed);
        if !batch.is_empty() {
            connection.apply(batch).await;
        }
    }
    let mut connection = shared.connection.lock().await;
    connection.closed = true;
    connection.work.close();
}

fn gather<W: Work>(requests: &mut mpsc::Receiver<W::Request>, first: W::Request) -> Vec<W::Request> {
    let mut bytes = W::bytes(&first);
    let mut batch = vec![first];
    while batch.len() < BATCH && bytes < BATCH_BYTES {
        let Ok(request) = requests.try_recv() else { break };
        bytes += W::bytes(&request);
        batch.push(request);
    }
    batch.retain(|request| !W::is_abandoned(request));
    batch
}

impl<W: Work> Connection<W> {
    async fn apply(&mut self, batch: Vec<W::Request>) {
        if self.half_way {
            self.roll_back().await;
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => match self.options.connect().await {
                Ok(open) => open,
                Err(error) => return self.refuse(batch, &error.into()),
            },
        };
        let open = self.open.insert(open);
        self.half_way = true;
        match self.work.transact(open, &batch).await {
            Ok(done) => {
                self.half_way = false;
                self.transactions.fetch_add(1, Ordering::Relaxed);
                for (request, done) in batch.into_iter().zip(done) {
                    self.work.answer(request, done);
                }
            }
            Err(failed) => {
                match failed {
                    Failed::Alone(_) => self.half_way = false,
                    Failed::Before(_) | Failed::AtCommit(_) => self.roll_back().await,
                }
                self.refuse(batch, &failed);
            }
        }
    }

    /// No transaction may stay open, and a connection that cannot be brought to that is given up.
    async fn roll_back(&mut self) {
        if let Some(open) = &mut self.open
            && let Err(error) = sqlx::query("ROLLBACK").execute(open).await
        {
            // SQLite has rolled back by itself, had committed, or cannot: either way a new connection starts clean.
            tracing::debug!(error = &error as &dyn std::error::Error, "the writer's connection is replaced");
            self.close().await;
        }
        self.half_way = false;
    }

    /// Closes the file, when SQLite is through with what it was told.
    async fn close(&mut self) {
        if let Some(open) = self.open.take()
            && let Err(error) = open.close().await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "closing a SQLite file failed");
        }
    }

    fn refuse(&mut self, batch: Vec<W::Request>, failed: &Failed) {
        for request in batch {
            self.work.refuse(request, failed);
        }
    }
}
