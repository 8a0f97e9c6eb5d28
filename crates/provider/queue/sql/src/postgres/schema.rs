//! The schema in the server: making it, bringing it up to date, and refusing a newer one.

use flames_error::{Error, ErrorKind, Result};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::dialect;
use super::error::not_opened;
use crate::text::SCHEMA_VERSION;

pub(crate) const OPERATION: &str = "queue.open";

/// Held while the schema is made or changed, so that of many processes that start at once one does it. "FLMQ" in ASCII.
const MIGRATION_LOCK: i64 = 0x464C_4D51;

/// Beyond the tables: dead rows are swept by their number and not by their share of the table, which may hold a million parked jobs while
/// the few that are ready come and go.
const TUNING: &str = "ALTER TABLE {job} SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, \
    autovacuum_vacuum_cost_limit = 2000, autovacuum_analyze_scale_factor = 0.1, autovacuum_analyze_threshold = 10000)";

/// Brings the schema to this version, if it is older or not there, and answers its epoch. `epoch` is for a new one.
///
/// Errors: `NotSupported` when a newer version of Flames has been here; nothing is changed then.
pub(crate) async fn prepare(
    connection: &mut PgConnection,
    options: &PgConnectOptions,
    schema: &str,
    epoch: i64,
) -> Result<i64> {
    let failed = |error| not_opened(OPERATION, options, error);
    // Most often it is there: then nothing needs a lock, or a right to make anything.
    if let Some((version, epoch)) = found(connection, schema).await.map_err(failed)?
        && check(version, schema)?
    {
        return Ok(epoch);
    }
    let mut transaction = connection.begin().await.map_err(failed)?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(MIGRATION_LOCK)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    // Another process may have been first.
    if let Some((version, epoch)) = found(&mut transaction, schema).await.map_err(failed)?
        && check(version, schema)?
    {
        return Ok(epoch);
    }
    let words = dialect(schema);
    let mut statements = vec![format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\"")];
    statements.extend(words.tables(epoch));
    statements.push(TUNING.replace("{job}", &words.job));
    for statement in statements {
        // Made of constants and of a schema's name that was checked.
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *transaction).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)?;
    Ok(epoch)
}

/// The version and epoch of the schema, if it is there.
async fn found(connection: &mut PgConnection, schema: &str) -> sqlx::Result<Option<(i64, i64)>> {
    // Not by `to_regclass`: that one answers from what this session remembers, which another's commit does not always reach in time.
    let is_there: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class AS class JOIN pg_catalog.pg_namespace AS namespace \
         ON namespace.oid = class.relnamespace WHERE namespace.nspname = $1 AND class.relname = 'meta')",
    )
    .bind(schema)
    .fetch_one(&mut *connection)
    .await?;
    if !is_there {
        return Ok(None);
    }
    let statement = AssertSqlSafe(format!("SELECT schema_version, epoch FROM {}", dialect(schema).meta));
    sqlx::query_as(statement).fetch_optional(&mut *connection).await
}

/// Whether the schema is this version's; an older one is to be changed.
fn check(version: i64, schema: &str) -> Result<bool> {
    if version <= SCHEMA_VERSION {
        return Ok(version == SCHEMA_VERSION);
    }
    Err(Error::new(ErrorKind::NotSupported, OPERATION, "the queue's tables were made by a newer version")
        .with_context("schema", schema)
        .with_context("version", version)
        .with_context("supported", SCHEMA_VERSION)
        .with_field("schema")
        .with_user_message(format!(
            "Queue `postgres`, setting `schema`: the tables in `{schema}` were made by a newer version of Flames (schema {version}; this \
             version knows up to {SCHEMA_VERSION}). Nothing was changed. Use the newer version, or name another schema."
        )))
}

/// A schema's name that needs no quoting, short enough for a channel to be named after it.
pub(crate) fn check_name(schema: &str) -> Result<()> {
    let mut letters = schema.bytes();
    let begins = letters.next().is_some_and(|first| first.is_ascii_lowercase() || first == b'_');
    let goes_on = letters.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if begins && goes_on && schema.len() <= 48 && !schema.starts_with("pg_") {
        return Ok(());
    }
    Err(Error::invalid(
        OPERATION,
        "schema",
        "Queue `postgres`, setting `schema`: a schema's name is 1 to 48 of a-z, 0-9 and _, begins with no digit and not with pg_.",
    ))
}
