//! Looking at a Postgres without changing it.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::Found;
use crate::config::{Problem, Section};

/// The schema numbers that this build's adapters make. A test against a server holds these against the adapters.
pub(super) const STATE_SCHEMA: i64 = 1;
pub(super) const QUEUE_SCHEMA: i64 = 1;

/// What is looked for.
pub(super) struct Wanted<'w> {
    pub(super) url: &'w str,
    pub(super) schema: &'w str,
    /// The table that tells the schema's number.
    pub(super) table: &'w str,
    /// The number's expression in it.
    pub(super) number: &'w str,
    pub(super) current: i64,
    /// Whether the adapter wants the schema for itself.
    pub(super) refuses_foreign_tables: bool,
}

/// What was found. A note: the adapter would make or change tables, so it is not to be opened.
pub(super) struct Looked {
    pub(super) found: Found,
}

/// The URL of a session that may not write.
pub(super) fn read_only(url: &str) -> String {
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}options[default_transaction_read_only]=on")
}

/// The problem of a server that was lost in the middle.
pub(super) fn lost(section: Section, error: &LookError) -> Problem {
    let sentence = format!("the server could not be looked at ({}): see its log, and check again.", error.0);
    Problem::new(section, format!("{}.url", section.name()), sentence).of_backend("postgres")
}

/// Why nothing could be found out: a short text without a secret.
pub(super) struct LookError(String);

impl From<sqlx::Error> for LookError {
    fn from(error: sqlx::Error) -> Self {
        Self(match error {
            sqlx::Error::Database(database) => database.message().to_owned(),
            _ => "no connection".to_owned(),
        })
    }
}

/// Connects, and tells what is there and what the adapter would do.
pub(super) async fn look(
    wanted: &Wanted<'_>,
    patience: Duration,
    clock: &Arc<dyn Clock>,
) -> Result<Looked, LookError> {
    match clock.timeout(patience, look_now(wanted)).await {
        Ok(looked) => looked,
        Err(_) => Err(LookError("it took too long".to_owned())),
    }
}

async fn look_now(wanted: &Wanted<'_>) -> Result<Looked, LookError> {
    let options = PgConnectOptions::from_str(wanted.url)?;
    let options = options.disable_statement_logging().options([("default_transaction_read_only", "on")]);
    let mut connection = options.connect().await?;
    let (version, may_make, relations, has_number): (String, bool, i64, bool) = sqlx::query_as(
        "SELECT current_setting('server_version'), \
                coalesce((SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1), \
                         has_database_privilege(current_database(), 'CREATE')), \
                (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                  WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')), \
                EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                  WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'r')",
    )
    .bind(wanted.schema)
    .bind(wanted.table)
    .fetch_one(&mut connection)
    .await?;
    let number: Option<i64> = match has_number {
        false => None,
        true => {
            let schema = wanted.schema.replace('"', "\"\"");
            let statement = format!("SELECT max({}) FROM \"{schema}\".\"{}\"", wanted.number, wanted.table);
            sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut connection).await?
        }
    };
    // What is known is known, however the connection ends.
    let _ = connection.close().await;
    let version = version.split(' ').next().unwrap_or_default().to_owned();
    let (schema, current) = (wanted.schema, wanted.current);
    let found = match number {
        // The adapter refuses these itself, and says why.
        None if relations > 0 && wanted.refuses_foreign_tables => Found::ok("answers"),
        None if !may_make => Found::ok("answers"),
        None => Found::note(format!(
            "answers; the first start makes its tables (schema `{schema}`, number {current})"
        )),
        Some(number) if number < current => Found::note(format!(
            "answers; the next start migrates the schema `{schema}` from number {number} to {current}"
        )),
        Some(number) => Found::ok(format!("answers; the schema `{schema}` is of number {number}")),
    };
    Ok(Looked { found: found.of_version(format!("Postgres {version}")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_may_not_write_is_asked_for_whatever_the_url() {
        for url in ["postgres://u@h/d", "postgres://u@h/d?sslmode=require"] {
            let options = PgConnectOptions::from_str(&read_only(url)).unwrap();
            assert!(options.get_options().unwrap().contains("default_transaction_read_only=on"), "{url}");
        }
    }
}
