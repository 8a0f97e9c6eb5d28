//! The file's schema: what is in it, and whether it is ours.

use std::path::Path;

use flames_error::{Error, ErrorKind, Result};
use flames_sqlite::file::{Found, Signature};
use sqlx::{Connection, SqliteConnection};

use crate::error::{ANOTHER_FILE, not_opened, say};

/// The application id is "FLMS" in ASCII.
const SIGNATURE: Signature = Signature { application: 0x464C_4D53, schema: 1 };

const OPERATION: &str = "state.open";

/// Schema 1.
///
/// * `counter`: one row, the number of the last commit. It gives versions and the first part of log positions.
/// * `entry`: the keys. `version` stands before `value`, so that checks do not walk through a long value's overflow pages.
/// * `log`: the entries of all logs, by the number of their commit and their place in it.
///
/// The file is signed in the same transaction.
const CREATE: &[&str] = &[
    "CREATE TABLE counter (id INTEGER PRIMARY KEY CHECK (id = 0), value INTEGER NOT NULL) STRICT",
    "INSERT INTO counter (id, value) VALUES (0, 0)",
    "CREATE TABLE entry (key BLOB PRIMARY KEY NOT NULL, version INTEGER NOT NULL, value BLOB NOT NULL) STRICT",
    "CREATE TABLE log (name BLOB NOT NULL, major INTEGER NOT NULL, minor INTEGER NOT NULL, payload BLOB NOT NULL, \
     PRIMARY KEY (name, major, minor)) STRICT, WITHOUT ROWID",
];

/// Tells whether the tables are to be made yet, without changing anything. `NotSupported` when a newer version of Flames made the file,
/// `InvalidInput` when something else did.
pub(crate) async fn is_empty(connection: &mut SqliteConnection, path: &Path) -> Result<bool> {
    let found = SIGNATURE.inspect(connection).await.map_err(|error| not_opened(OPERATION, path, error))?;
    let supported = SIGNATURE.schema;
    match found {
        Found::Empty => Ok(true),
        Found::Current => Ok(false),
        Found::Newer(schema) => {
            let error = Error::new(
                ErrorKind::NotSupported,
                OPERATION,
                "the state file was written by a newer version",
            )
            .with_context("path", path.display())
            .with_context("schema", schema)
            .with_context("supported", supported);
            let what = format!(
                "was written by a newer version of Flames (schema {schema}; this version knows up to {supported})"
            );
            Err(say(error, path, &what, "Use the newer version, or choose another data folder."))
        }
        Found::Foreign => {
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
    if is_empty(&mut transaction, path).await? {
        for statement in CREATE {
            sqlx::query(*statement).execute(&mut *transaction).await.map_err(failed)?;
        }
        SIGNATURE.sign(&mut transaction).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}
