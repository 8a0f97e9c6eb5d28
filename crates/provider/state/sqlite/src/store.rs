//! The store.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use flames_clock::{Clock, ClockExt};
use flames_error::{Error, ErrorKind, Result};
use flames_state::{
    Commit, Committed, Entry, HintFanout, HintStream, Key, KeyRange, LogEntry, Page, PageRequest, Position,
    StateStore, validate_limit,
};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection as _};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::error::{not_made, not_opened};
use crate::schema::{self, Found};
use crate::sql;
use crate::writer::{Connection, QUEUE, Request, Shared, TRIM_STEP, Writer};

const OPEN: &str = "state.open";

/// The size of a page of the file: SQLite's default, named since [`SqliteConfig::max_bytes`] is counted in it.
const PAGE_SIZE: u32 = 4_096;
/// How many pages of the `-wal` file make a commit move them into the file itself (32 MiB). A page that many commits wrote is then moved
/// once; each move costs two more fsyncs.
const CHECKPOINT_PAGES: u32 = 8_192;
/// What the writer may keep of the file in memory, in KiB. SQLite's default of 2,000 makes it read the inner pages of its trees again
/// and again.
const WRITER_CACHE_KIB: u32 = 32 * 1_024;
/// What the `-wal` file is cut back to when a checkpoint has emptied it.
const WAL_LIMIT_BYTES: u32 = 64 * 1024 * 1024;

/// How to open a store.
#[derive(Debug, Clone)]
pub struct SqliteConfig {
    /// The file. It is made when it is not there; its folder must be.
    pub path: PathBuf,
    /// How long an operation may take. A read is `Unavailable` then, or `Exhausted` when all it did was to wait for a connection; a
    /// commit that the writer could not take in is `Exhausted`, one that it has is `OutcomeUnknown`.
    pub operation_deadline: Duration,
    /// How many connections read at the same time. At least 1.
    pub readers: u32,
    /// How large the file may become, in bytes (the `-wal` file beside it apart); none: as large as the disk allows. Behind it,
    /// commits are `Exhausted`.
    pub max_bytes: Option<u64>,
}

impl SqliteConfig {
    /// The file at `path` with the defaults: 10 seconds, 4 readers, no limit of size.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), operation_deadline: Duration::from_secs(10), readers: 4, max_bytes: None }
    }

    fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .page_size(PAGE_SIZE)
            // Less than the deadline, so that a lock held by another process is told as such, and not as an unknown outcome.
            .busy_timeout(self.operation_deadline / 2)
            .disable_statement_logging()
    }

    fn writer_options(&self) -> SqliteConnectOptions {
        let options = self
            .options()
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("journal_size_limit", WAL_LIMIT_BYTES.to_string())
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string())
            // A negative number is in KiB.
            .pragma("cache_size", format!("-{WRITER_CACHE_KIB}"))
            // Statements of many rows keep what they may have to undo; not in a file.
            .pragma("temp_store", "MEMORY");
        match self.max_bytes {
            Some(bytes) => {
                options.pragma("max_page_count", (bytes / u64::from(PAGE_SIZE)).max(1).to_string())
            }
            None => options,
        }
    }
}

/// A StateStore in one SQLite file. See the crate's docs.
///
/// Dropped without [`SqliteStore::close`], it leaves the file as a crash would: whole, with everything that was answered.
pub struct SqliteStore {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    operation_deadline: Duration,
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
    closing: Arc<Notify>,
    writer: Mutex<Option<JoinHandle<()>>>,
    readers: SqlitePool,
    hints: Arc<HintFanout>,
    transactions: Arc<AtomicU64>,
}

impl SqliteStore {
    /// Opens the file, or makes it. Must be called within a tokio runtime, on which the writer then runs.
    ///
    /// Errors, each with a line for the user that names the file and says what to do, and nothing changed: `NotSupported` when a newer
    /// version of Flames wrote the file, `InvalidInput` when it is another program's database, `Corrupt` when it is no database or
    /// damaged, `PermissionDenied` when the file or its folder is read-only, `Exhausted` when the disk is full, `Unavailable` when the
    /// folder is not there or the file cannot be opened for another reason.
    pub async fn open(config: SqliteConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        make_private_file(&config.path).await?;
        let failed = |error: sqlx::Error| not_opened(OPEN, &config.path, error);
        // Without WAL: switching a file to it changes the file, so first see whether it is ours.
        let mut connection = config.options().connect().await.map_err(failed)?;
        let found = schema::inspect(&mut connection, &config.path).await;
        connection.close().await.map_err(failed)?;
        let found = found?;

        let options = config.writer_options();
        let mut connection = options.connect().await.map_err(failed)?;
        if found == Found::Empty {
            schema::create(&mut connection, &config.path).await?;
        }
        let readers = SqlitePoolOptions::new()
            .max_connections(config.readers.max(1))
            // Less than the deadline, so that a pool that is used up is told as such.
            .acquire_timeout(config.operation_deadline / 2)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_lazy_with(config.options().pragma("query_only", "ON"));
        let (requests, receiver) = mpsc::channel(QUEUE);
        let closing = Arc::new(Notify::new());
        let hints = Arc::new(HintFanout::new());
        let transactions = Arc::new(AtomicU64::new(0));
        let shared = Shared::new(Connection {
            hints: Arc::clone(&hints),
            transactions: Arc::clone(&transactions),
            path: config.path.clone(),
            options,
            open: Some(connection),
            closed: false,
        });
        let writer =
            Writer { requests: receiver, closing: Arc::clone(&closing), shared: Arc::clone(&shared) };
        Ok(Self {
            path: config.path,
            clock,
            operation_deadline: config.operation_deadline,
            requests,
            shared,
            closing,
            writer: Mutex::new(Some(tokio::spawn(writer.run()))),
            readers,
            hints,
            transactions,
        })
    }

    /// Applies what was handed in, then closes the file. Afterwards every operation is `Unavailable`. A second call does nothing.
    ///
    /// Errors: `Unavailable` when it does not end within twice the operations' deadline; the file is then left as by a crash.
    pub async fn close(&self) -> Result<()> {
        const OPERATION: &str = "state.close";
        self.closing.notify_one();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let abort = writer.as_ref().map(JoinHandle::abort_handle);
        let work = async {
            // Readers first: the last connection to close moves the contents of the `-wal` file into the file itself.
            self.readers.close().await;
            match writer {
                Some(writer) => writer
                    .await
                    .map_err(|error| Error::internal(OPERATION, "the writer failed").with_source(error)),
                None => Ok(()),
            }
        };
        let limit = self.operation_deadline.saturating_mul(2);
        self.clock.timeout(limit, work).await.unwrap_or_else(|late| {
            if let Some(abort) = abort {
                abort.abort();
            }
            Err(Error::unavailable(OPERATION, "operations are still under way").with_source(late))
        })
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

    /// Applies a request, at once or through the writer, and waits for its answer.
    async fn request<T: Send>(
        &self,
        operation: &'static str,
        request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request + Send,
    ) -> Result<T> {
        let unknown = |message| Error::new(ErrorKind::OutcomeUnknown, operation, message);
        let late = |late| unknown("the commit was not done in time").with_source(late);
        let (answer, outcome) = oneshot::channel();
        let started = self.clock.monotonic();
        let alone = self.shared.apply_alone(&self.requests, request(answer));
        let alone = self.clock.timeout(self.operation_deadline, alone).await.map_err(late)?;
        if let Err(request) = alone {
            match self.clock.timeout(self.operation_deadline, self.requests.send(request)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::unavailable(operation, "the store is closed")),
                Err(late) => {
                    let error = Error::new(ErrorKind::Exhausted, operation, "too many commits are waiting");
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
}

/// Makes the file, for its owner alone, where there is none. An existing one is not opened here: closing a file gives up all
/// locks that this process has on it (<https://www.sqlite.org/howtocorrupt.html>, section 2.2).
async fn make_private_file(path: &Path) -> Result<()> {
    match tokio::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(not_made(OPEN, path, error)),
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            writer.abort();
        }
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.path)
            .field("transactions", &self.transactions.load(Ordering::Relaxed))
            .field("readers", &self.readers.size())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl StateStore for SqliteStore {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        const OPERATION: &str = "state.get";
        self.read(OPERATION, sql::get(&self.readers, OPERATION, key)).await
    }

    async fn scan(&self, range: &KeyRange, page: PageRequest) -> Result<Page> {
        const OPERATION: &str = "state.scan";
        validate_limit(OPERATION, page.limit)?;
        let read = sql::scan(&self.readers, OPERATION, range, page.after.as_ref(), page.limit);
        let (entries, more) = self.read(OPERATION, read).await?;
        let next = entries.last().filter(|_| more).map(|entry| entry.key.clone());
        Ok(Page { entries, next })
    }

    async fn commit(&self, commit: &Commit) -> Result<Committed> {
        commit.validate()?;
        self.request("state.commit", |answer| Request::Commit { commit: commit.clone(), answer }).await
    }

    async fn read_log(&self, log: &Key, after: Position, limit: usize) -> Result<Vec<LogEntry>> {
        const OPERATION: &str = "state.read_log";
        validate_limit(OPERATION, limit)?;
        self.read(OPERATION, sql::read_log(&self.readers, OPERATION, log, after, limit)).await
    }

    async fn trim_log(&self, log: &Key, through: Position) -> Result<()> {
        loop {
            let request = |answer| Request::Trim { log: log.clone(), through, answer };
            if self.request("state.trim_log", request).await? < u64::from(TRIM_STEP) {
                return Ok(());
            }
        }
    }

    async fn changes(&self, prefix: &Key) -> Result<HintStream> {
        Ok(self.hints.subscribe(prefix))
    }
}
