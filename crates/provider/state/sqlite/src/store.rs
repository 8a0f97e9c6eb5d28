//! The store.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flames_clock::{Clock, ClockExt};
use flames_error::{Error, Result};
use flames_sqlite::{Writer, file};
use flames_state::{
    Commit, Committed, Entry, HintFanout, HintStream, Key, KeyRange, LogEntry, Page, PageRequest, Position,
    StateStore, validate_limit,
};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection as _};

use crate::error::{not_made, not_opened};
use crate::writer::{COMMIT, Commits, Request, TRIM, TRIM_STEP};
use crate::{schema, sql};

const OPEN: &str = "state.open";

/// How many pages of the `-wal` file make a commit move them into the file itself (32 MiB). A page that many commits wrote is then moved
/// once; each move costs two more fsyncs.
const CHECKPOINT_PAGES: u32 = 8_192;
/// What the writer may keep of the file in memory, in KiB. SQLite's default of 2,000 makes it read the inner pages of its trees again
/// and again.
const WRITER_CACHE_KIB: u32 = 32 * 1_024;

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
        file::options(&self.path, self.operation_deadline)
    }

    fn writer_options(&self) -> SqliteConnectOptions {
        let options = file::writing(self.options())
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string())
            // A negative number is in KiB.
            .pragma("cache_size", format!("-{WRITER_CACHE_KIB}"))
            // Statements of many rows keep what they may have to undo; not in a file.
            .pragma("temp_store", "MEMORY");
        match self.max_bytes {
            Some(bytes) => options.pragma("max_page_count", file::pages(bytes).to_string()),
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
    writer: Writer<Commits>,
    readers: SqlitePool,
    hints: Arc<HintFanout>,
}

impl SqliteStore {
    /// Opens the file, or makes it. Must be called within a tokio runtime, on which the writer then runs.
    ///
    /// Errors, each with a line for the user that names the file and says what to do, and nothing changed: `NotSupported` when a newer
    /// version of Flames wrote the file, `InvalidInput` when it is another program's database, `Corrupt` when it is no database or
    /// damaged, `PermissionDenied` when the file or its folder is read-only, `Exhausted` when the disk is full, `Unavailable` when the
    /// folder is not there or the file cannot be opened for another reason.
    pub async fn open(config: SqliteConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        file::make_private(&config.path).await.map_err(|error| not_made(OPEN, &config.path, error))?;
        let failed = |error: sqlx::Error| not_opened(OPEN, &config.path, error);
        // Without WAL: switching a file to it changes the file, so first see whether it is ours.
        let mut connection = config.options().connect().await.map_err(failed)?;
        let is_empty = schema::is_empty(&mut connection, &config.path).await;
        connection.close().await.map_err(failed)?;
        let is_empty = is_empty?;

        let options = config.writer_options();
        let mut connection = options.connect().await.map_err(failed)?;
        if is_empty {
            schema::create(&mut connection, &config.path).await?;
        }
        // Less than the deadline, so that a pool that is used up is told as such.
        let readers = file::readers(config.options(), config.readers, config.operation_deadline / 2);
        let hints = Arc::new(HintFanout::new());
        let commits = Commits { hints: Arc::clone(&hints), path: config.path.clone() };
        let writer =
            Writer::start(commits, connection, options, Arc::clone(&clock), config.operation_deadline);
        Ok(Self {
            path: config.path,
            clock,
            operation_deadline: config.operation_deadline,
            writer,
            readers,
            hints,
        })
    }

    /// Applies what was handed in, then closes the file. Afterwards every operation is `Unavailable`. A second call does nothing.
    ///
    /// Errors: `Unavailable` when it does not end within twice the operations' deadline; the file is then left as by a crash.
    pub async fn close(&self) -> Result<()> {
        self.writer.close("state.close", &self.readers).await
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
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.path)
            .field("transactions", &self.writer.transactions())
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
        self.writer.request(COMMIT, |answer| Request::Commit { commit: commit.clone(), answer }).await
    }

    async fn read_log(&self, log: &Key, after: Position, limit: usize) -> Result<Vec<LogEntry>> {
        const OPERATION: &str = "state.read_log";
        validate_limit(OPERATION, limit)?;
        self.read(OPERATION, sql::read_log(&self.readers, OPERATION, log, after, limit)).await
    }

    async fn trim_log(&self, log: &Key, through: Position) -> Result<()> {
        loop {
            let request = |answer| Request::Trim { log: log.clone(), through, answer };
            if self.writer.request(TRIM, request).await? < u64::from(TRIM_STEP) {
                return Ok(());
            }
        }
    }

    async fn changes(&self, prefix: &Key) -> Result<HintStream> {
        Ok(self.hints.subscribe(prefix))
    }
}
