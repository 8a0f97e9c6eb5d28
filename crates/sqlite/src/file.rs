//! How a file is made, opened and told from another program's.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};
use sqlx::{ConnectOptions, SqliteConnection};

/// The size of a page of a file: SQLite's default, named since sizes of files are counted in it.
pub const PAGE_SIZE: u32 = 4_096;
/// What the `-wal` file is cut back to when a checkpoint has emptied it.
const WAL_LIMIT_BYTES: u32 = 64 * 1024 * 1024;

/// How many pages so many bytes are; at least 1.
pub fn pages(bytes: u64) -> u64 {
    (bytes / u64::from(PAGE_SIZE)).max(1)
}

/// Makes the file, for its owner alone, where there is none. An existing one is not opened here: closing a file gives up all
/// locks that this process has on it (<https://www.sqlite.org/howtocorrupt.html>, section 2.2).
pub async fn make_private(path: &Path) -> std::io::Result<()> {
    match tokio::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// How a file is opened whose operations may take so long.
pub fn options(path: &Path, operation_deadline: Duration) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .page_size(PAGE_SIZE)
        // Less than the deadline, so that a lock held by another process is told as such, and not as an unknown outcome.
        .busy_timeout(operation_deadline / 2)
        .disable_statement_logging()
}

/// How the connection that writes is opened: as by [`options`], with a write-ahead log. How it syncs is the adapter's to say.
pub fn writing(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options.journal_mode(SqliteJournalMode::Wal).pragma("journal_size_limit", WAL_LIMIT_BYTES.to_string())
}

/// Connections that read, opened as they are needed and kept. They wait `acquire` for one another at most.
pub fn readers(options: SqliteConnectOptions, count: u32, acquire: Duration) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(count.max(1))
        .acquire_timeout(acquire)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_lazy_with(options.pragma("query_only", "ON"))
}

/// What says whose a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// `PRAGMA application_id`, as file(1) shows it.
    pub application: i64,
    /// The schema that this version reads and writes, as `PRAGMA user_version`.
    pub schema: i64,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing is in it yet.
    Empty,
    /// Ours, with the schema of this version.
    Current,
    /// Ours, with the schema of a newer version.
    Newer(i64),
    /// The database of another program.
    Foreign,
}

impl Signature {
    /// Tells what a file is, without changing it.
    pub async fn inspect(&self, connection: &mut SqliteConnection) -> sqlx::Result<Found> {
        let application: i64 =
            sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *connection).await?;
        let schema: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *connection).await?;
        let objects: i64 =
            sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *connection).await?;
        Ok(match (application, schema) {
            (0, 0) if objects == 0 => Found::Empty,
            (application, schema) if application == self.application && schema == self.schema => {
                Found::Current
            }
            (application, newer) if application == self.application && newer > self.schema => {
                Found::Newer(newer)
            }
            _ => Found::Foreign,
        })
    }

    /// Makes a file ours: what makes its tables, and the signature itself, in the transaction that is under way.
    pub async fn sign(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        // A pragma takes no parameters; these are numbers.
        for statement in [
            format!("PRAGMA application_id = {}", self.application),
            format!("PRAGMA user_version = {}", self.schema),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut *connection).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Signature = Signature { application: 0x464C_4D58, schema: 2 };

    async fn found(path: &Path, by: Signature) -> Found {
        let mut connection = options(path, Duration::from_secs(10)).connect().await.unwrap();
        by.inspect(&mut connection).await.unwrap()
    }

    #[tokio::test]
    async fn a_file_is_empty_ours_of_a_newer_version_or_somebody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        make_private(&path).await.unwrap();
        assert_eq!(found(&path, OURS).await, Found::Empty);
        let mut connection = options(&path, Duration::from_secs(10)).connect().await.unwrap();
        OURS.sign(&mut connection).await.unwrap();
        drop(connection);
        assert_eq!(found(&path, OURS).await, Found::Current);
        assert_eq!(found(&path, Signature { schema: 1, ..OURS }).await, Found::Newer(2));
        assert_eq!(
            found(&path, Signature { schema: 3, ..OURS }).await,
            Found::Foreign,
            "nothing reads it yet"
        );
        assert_eq!(found(&path, Signature { application: 7, ..OURS }).await, Found::Foreign);
    }

    #[tokio::test]
    async fn a_file_is_made_for_its_owner_alone_and_one_that_is_there_is_left() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        make_private(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "kept").unwrap();
        make_private(&path).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
    }
}
