//! The file's schema: what is in it, and whether it is ours.

use std::path::Path;

use flames_error::{Error, ErrorKind, Result};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use super::dialect;
use super::error::{not_applied, not_opened};
use crate::text::SCHEMA_VERSION;

/// "FLMQ" in ASCII, as `PRAGMA application_id` and file(1) show it.
const APPLICATION_ID: i64 = 0x464C_4D51;

pub(crate) const OPERATION: &str = "queue.open";

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
    let failed = |error| not_opened(path, not_applied(OPERATION, error));
    let application: i64 =
        sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *connection).await.map_err(failed)?;
    let version: i64 =
        sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *connection).await.map_err(failed)?;
    let objects: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    let shown = path.display();
    match (application, version) {
        (0, 0) if objects == 0 => Ok(Found::Empty),
        (APPLICATION_ID, SCHEMA_VERSION) => Ok(Found::Current),
        (APPLICATION_ID, newer) if newer > SCHEMA_VERSION => Err(Error::new(
            ErrorKind::NotSupported,
            OPERATION,
            "the queue file was written by a newer version",
        )
        .with_context("path", &shown)
        .with_context("schema", newer)
        .with_context("supported", SCHEMA_VERSION)
        .with_field("path")
        .with_user_message(format!(
            "Queue `sqlite`, setting `path`: {shown} was written by a newer version of Flames (schema {newer}; this version knows up to \
             {SCHEMA_VERSION}). Nothing was changed. Use the newer version, or another file."
        ))),
        _ => Err(Error::invalid(
            OPERATION,
            "path",
            format!(
                "Queue `sqlite`, setting `path`: {shown} is a database, but not a queue of Flames. Nothing was changed. Name another file."
            ),
        )),
    }
}

/// Makes the tables, unless another process has just done so. Tokens of this file will carry `epoch`.
pub(crate) async fn create(connection: &mut SqliteConnection, path: &Path, epoch: i64) -> Result<()> {
    let failed = |error| not_opened(path, not_applied(OPERATION, error));
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    if inspect(&mut transaction, path).await? == Found::Empty {
        let mut statements = dialect().tables(epoch);
        // A pragma takes no parameters; these are numbers.
        statements.push(format!("PRAGMA application_id = {APPLICATION_ID}"));
        statements.push(format!("PRAGMA user_version = {SCHEMA_VERSION}"));
        for statement in statements {
            sqlx::query(AssertSqlSafe(statement)).execute(&mut *transaction).await.map_err(failed)?;
        }
    }
    transaction.commit().await.map_err(failed)
}

/// The file's epoch, and when the newest lease in it was given.
pub(crate) async fn read(connection: &mut SqliteConnection, path: &Path) -> Result<(i64, Option<i64>)> {
    let failed = |error| not_opened(path, not_applied(OPERATION, error));
    let epoch =
        sqlx::query_scalar("SELECT epoch FROM meta").fetch_one(&mut *connection).await.map_err(failed)?;
    let newest = sqlx::query_scalar("SELECT max(leased_at) FROM job WHERE state = 2")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    Ok((epoch, newest))
}
