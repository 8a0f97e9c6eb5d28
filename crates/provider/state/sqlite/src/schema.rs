//! The file's schema: what is in it, and whether it is ours.

use std::path::Path;

use flames_error::{Error, ErrorKind, Result};
use sqlx::{Connection, SqliteConnection};

use crate::error::{ANOTHER_FILE, not_opened, say};

/// "FLMS" in ASCII, as `PRAGMA application_id` and file(1) show it.
const APPLICATION_ID: i64 = 0x464C_4D53;
/// The schema that this version reads and writes, as `PRAGMA user_version`.
pub(crate) const SCHEMA_VERSION: i64 = 1;

const OPERATION: &str = "state.open";

/// Schema 1.
///
/// * `counter`: one row, the number of the last commit. It gives versions and the first part of log positions.
/// * `entry`: the keys. `version` stands before `value`, so that checks do not walk through a long value's overflow pages.
/// * `log`: the entries of all logs, by the number of their commit and their place in it.
///
/// The application id and the schema number are set in the same transaction.
const CREATE: &[&str] = &[
    "CREATE TABLE counter (id INTEGER PRIMARY KEY CHECK (id = 0), value INTEGER NOT NULL) STRICT",
    "INSERT INTO counter (id, value) VALUES (0, 0)",
    "CREATE TABLE entry (key BLOB PRIMARY KEY NOT NULL, version INTEGER NOT NULL, value BLOB NOT NULL) STRICT",
    "CREATE TABLE log (name BLOB NOT NULL, major INTEGER NOT NULL, minor INTEGER NOT NULL, payload BLOB NOT NULL, \
     PRIMARY KEY (name, major, minor)) STRICT, WITHOUT ROWID",
    // A pragma takes no parameters; a test compares these with the constants.
    "PRAGMA application_id = 1179405651",
    "PRAGMA user_version = 1",
];

/// What a file is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing is in it yet.
    Empty,
    /// Ours, with the schema of this version.
    Current,
}

/// Tells what the file is, without changing it. `NotSupported` when a newer version of Flames made it, `InvalidInput` when
/// something else did.
pub(crate) async fn inspect(connection: &mut SqliteConnection, path: &Path) -> Result<Found> {
    let failed = |error: sqlx::Error| not_opened(OPERATION, path, error);
    let application: i64 =
        sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *connection).await.map_err(failed)?;
    let version: i64 =
        sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *connection).await.map_err(failed)?;
    let objects: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    match (application, version) {
        (0, 0) if objects == 0 => Ok(Found::Empty),
        (APPLICATION_ID, SCHEMA_VERSION) => Ok(Found::Current),
        (APPLICATION_ID, newer) if newer > SCHEMA_VERSION => {
            let error = Error::new(
                ErrorKind::NotSupported,
                OPERATION,
                "the state file was written by a newer version",
            )
            .with_context("path", path.display())
            .with_context("schema", newer)
            .with_context("supported", SCHEMA_VERSION);
            let what = format!(
                "was written by a newer version of Flames (schema {newer}; this version knows up to {SCHEMA_VERSION})"
            );
            Err(say(error, path, &what, "Use the newer version, or choose another data folder."))
        }
        _ => {
            let error = Error::invalid(OPERATION, "path", "the file is the database of another program")
                .with_context("path", path.display());
            Err(say(error, path, "is a database, but not one of Flames", ANOTHER_FILE))
        }
    }
}

/// Makes the tables, unless another process has just done so.
pub(crate) async fn create(connection: &mut SqliteConnection, path: &Path) -> Result<()> {
    let failed = |error: sqlx::Error| not_opened(OPERATION, path, error);
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    if inspect(&mut transaction, path).await? == Found::Empty {
        for statement in CREATE {
            sqlx::query(*statement).execute(&mut *transaction).await.map_err(failed)?;
        }
    }
    transaction.commit().await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pragmas_set_what_the_constants_say() {
        assert!(CREATE.contains(&format!("PRAGMA application_id = {APPLICATION_ID}").as_str()));
        assert!(CREATE.contains(&format!("PRAGMA user_version = {SCHEMA_VERSION}").as_str()));
    }
}
