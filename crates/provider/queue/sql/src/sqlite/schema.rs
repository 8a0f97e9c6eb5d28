//! The file's schema: what is in it, and whether it is ours.

use std::path::Path;

use flames_error::{Error, ErrorKind, Result};
use flames_sqlite::error::not_applied;
use flames_sqlite::file::{Found, Signature};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use super::dialect;
use super::error::not_opened;
use crate::text::SCHEMA_VERSION;

/// The application id is "FLMQ" in ASCII.
const SIGNATURE: Signature = Signature { application: 0x464C_4D51, schema: SCHEMA_VERSION };

pub(crate) const OPERATION: &str = "queue.open";

/// Tells whether the tables are to be made yet, without changing anything. `NotSupported` when a newer version of Flames made the file,
/// `InvalidInput` when something else did.
pub(crate) async fn is_empty(connection: &mut SqliteConnection, path: &Path) -> Result<bool> {
    let found = SIGNATURE.inspect(connection).await;
    let shown = path.display();
    match found.map_err(|error| not_opened(path, not_applied(OPERATION, error)))? {
        Found::Empty => Ok(true),
        Found::Current => Ok(false),
        Found::Newer(schema) => Err(Error::new(
            ErrorKind::NotSupported,
            OPERATION,
            "the queue file was written by a newer version",
        )
        .with_context("path", &shown)
        .with_context("schema", schema)
        .with_context("supported", SCHEMA_VERSION)
        .with_field("path")
        .with_user_message(format!(
            "Queue `sqlite`, setting `path`: {shown} was written by a newer version of Flames (schema {schema}; this version knows up to \
             {SCHEMA_VERSION}). Nothing was changed. Use the newer version, or another file."
        ))),
        Found::Foreign => Err(Error::invalid(
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
    if is_empty(&mut transaction, path).await? {
        for statement in dialect().tables(epoch) {
            sqlx::query(AssertSqlSafe(statement)).execute(&mut *transaction).await.map_err(failed)?;
        }
        SIGNATURE.sign(&mut transaction).await.map_err(failed)?;
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
