//! What is in the database, and whether it is ours.
//!
//! Migrations only go forward, and only add: a version of Flames that is running goes on to work while a newer one migrates
//! below it. Each migration says what it still allows (`oldest_code`): the lowest schema number of code that may use the
//! database after it. Code opens a database that is newer than itself as long as that number is not above its own. What a
//! later version needs otherwise it adds under a new name (`commit_2`); what no running version uses any more is dropped by a migration that
//! raises `oldest_code` first.

use flames_error::{Error, ErrorKind, Result};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};

use crate::error::{OPEN, not_applied};
use crate::session::Lineage;
use crate::sql::Statements;

/// The schema number of this code: that of its last migration.
pub(crate) const SCHEMA: i32 = 1;
struct Migration {
    number: i32,
    oldest_code: i32,
    /// Statements with `{schema}` for the schema's name, quoted.
    sql: &'static str,
}

const MIGRATIONS: &[Migration] =
    &[Migration { number: 1, oldest_code: 1, sql: include_str!("migration_1.sql") }];

/// Before the first migration: what tells the others.
const PREPARE: &str = "\
    CREATE SCHEMA IF NOT EXISTS {schema};
    CREATE TABLE IF NOT EXISTS {schema}.migration (
        number integer PRIMARY KEY,
        oldest_code integer NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    );
    COMMENT ON TABLE {schema}.migration IS 'What Flames has made of this schema so far. Written by Flames alone.'";

#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// No tables yet.
    Nothing,
    /// Another program's tables.
    Foreign,
    /// The last migration, and the oldest code that it allows.
    Ours { number: i32, oldest_code: i32 },
}

async fn inspect(connection: &mut PgConnection, statements: &Statements) -> sqlx::Result<Found> {
    let (relations, has_migrations): (i64, bool) = sqlx::query_as(
        "SELECT count(*), coalesce(bool_or(c.relname = 'migration' AND c.relkind = 'r'), false) FROM pg_class c \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
    )
    .persistent(false)
    .bind(statements.schema_name())
    .fetch_one(&mut *connection)
    .await?;
    if !has_migrations {
        return Ok(if relations == 0 { Found::Nothing } else { Found::Foreign });
    }
    let last =
        statements.of("SELECT number, oldest_code FROM {schema}.migration ORDER BY number DESC LIMIT 1");
    let last: sqlx::Result<Option<(i32, i32)>> =
        sqlx::query_as(last).persistent(false).fetch_optional(connection).await;
    match last {
        Ok(Some((number, oldest_code))) => Ok(Found::Ours { number, oldest_code }),
        Ok(None) => Ok(Found::Foreign),
        // undefined_column: a table of that name, but not ours.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42703") => Ok(Found::Foreign),
        Err(error) => Err(error),
    }
}

/// Brings the database to this code's schema, or refuses it unchanged: `NotSupported` when a newer version of Flames made it
/// unusable for this one, `InvalidInput` when the schema is another program's.
pub(crate) async fn migrate(
    connection: &mut PgConnection,
    statements: &Statements,
    lineage: Lineage,
) -> Result<()> {
    let failed = |error| {
        not_applied(OPEN, error).with_field("schema").with_context("schema", statements.schema_name())
    };
    if is_current(inspect(connection, statements).await.map_err(failed)?, statements)? {
        return Ok(());
    }
    let mut transaction = connection.begin().await.map_err(failed)?;
    // Others who open the same store meanwhile wait here, and then find the work done.
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .persistent(false)
        .bind(statements.lock_number(MIGRATION_LOCK))
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    let found = inspect(&mut transaction, statements).await.map_err(failed)?;
    if is_current(found, statements)? {
        return Ok(());
    }
    apply(&mut transaction, statements, lineage).await.map_err(|error| {
        let error = failed(error);
        match error.kind() {
            ErrorKind::PermissionDenied => Error::new(
                ErrorKind::PermissionDenied,
                OPEN,
                format!(
                    "postgres: the user may not make tables in the schema `{0}`: let an administrator run CREATE SCHEMA {0} \
                     AUTHORIZATION <user>, or correct the settings `url` and `schema`",
                    statements.schema_name()
                ),
            )
            .with_field("schema")
            .with_source(error),
            _ => error,
        }
    })?;
    transaction.commit().await.map_err(failed)
}

async fn apply(connection: &mut PgConnection, statements: &Statements, lineage: Lineage) -> sqlx::Result<()> {
    // Not under CREATE SCHEMA IF NOT EXISTS alone: that asks for the right to create schemas even when the schema is there.
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
        .persistent(false)
        .bind(statements.schema_name())
        .fetch_one(&mut *connection)
        .await?;
    let prepare = if exists { PREPARE.split_once(';').map_or(PREPARE, |(_, rest)| rest) } else { PREPARE };
    sqlx::raw_sql(statements.of(prepare)).execute(&mut *connection).await?;
    let done = statements.of("SELECT coalesce(max(number), 0) FROM {schema}.migration");
    let done: i32 = sqlx::query_scalar(done).persistent(false).fetch_one(&mut *connection).await?;
    for migration in MIGRATIONS.iter().filter(|migration| migration.number > done) {
        sqlx::raw_sql(statements.of(migration.sql)).execute(&mut *connection).await?;
        sqlx::query(statements.of("INSERT INTO {schema}.migration (number, oldest_code) VALUES ($1, $2)"))
            .persistent(false)
            .bind(migration.number)
            .bind(migration.oldest_code)
            .execute(&mut *connection)
            .await?;
    }
    let first = "INSERT INTO {schema}.lineage (generation, system_identifier, timeline) SELECT 0, $1, $2 \
                 WHERE NOT EXISTS (SELECT FROM {schema}.lineage)";
    sqlx::query(statements.of(first))
        .persistent(false)
        .bind(lineage.system_identifier)
        .bind(lineage.timeline)
        .execute(connection)
        .await?;
    Ok(())
}

/// Whether nothing is to be done.
fn is_current(found: Found, statements: &Statements) -> Result<bool> {
    match found {
        Found::Nothing => Ok(false),
        Found::Ours { oldest_code, number } if oldest_code > SCHEMA => {
            let line = format!(
                "postgres: the schema `{}` was written by a newer version of Flames (schema {number}; it needs code of schema \
                 {oldest_code}, and this version has {SCHEMA}). Nothing was changed. Use the newer version, or another `schema`.",
                statements.schema_name()
            );
            Err(Error::new(ErrorKind::NotSupported, OPEN, line.clone())
                .with_field("schema")
                .with_user_message(line))
        }
        Found::Ours { number, .. } => Ok(number >= SCHEMA),
        Found::Foreign => Err(Error::invalid(
            OPEN,
            "schema",
            format!(
                "postgres: the schema `{}` holds tables of another program. Nothing was changed. Set another `schema`.",
                statements.schema_name()
            ),
        )),
    }
}

const MIGRATION_LOCK: &[u8] = b"\0migrate";
const LINEAGE_LOCK: &[u8] = b"\0lineage";

/// The generation that this server's transaction ids are in. Begins a new one when they may have gone back since the store was last
/// used.
pub(crate) async fn continue_lineage(
    connection: &mut PgConnection,
    statements: &Statements,
    lineage: Lineage,
) -> sqlx::Result<i32> {
    let (last, of_last) = last_lineage(connection, statements).await?;
    if of_last == lineage {
        return Ok(last);
    }
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .persistent(false)
        .bind(statements.lock_number(LINEAGE_LOCK))
        .execute(&mut *transaction)
        .await?;
    let (last, of_last) = last_lineage(&mut transaction, statements).await?;
    let generation = if of_last == lineage {
        last
    } else {
        // Not below the timeline, so that two restores from one backup, which count timelines on, differ too.
        let next = (last + 1).max(i32::try_from(lineage.timeline - 1).unwrap_or(0));
        tracing::warn!(
            generation = next,
            system_identifier = lineage.system_identifier,
            timeline = lineage.timeline,
            "the store is on another server or timeline than before: its versions and log positions go on in a new generation"
        );
        sqlx::query(statements.of(
            "INSERT INTO {schema}.lineage (generation, system_identifier, timeline) VALUES ($1, $2, $3)",
        ))
        .persistent(false)
        .bind(next)
        .bind(lineage.system_identifier)
        .bind(lineage.timeline)
        .execute(&mut *transaction)
        .await?;
        next
    };
    transaction.commit().await?;
    Ok(generation)
}

async fn last_lineage(
    connection: &mut PgConnection,
    statements: &Statements,
) -> sqlx::Result<(i32, Lineage)> {
    let last = "SELECT generation, system_identifier, timeline FROM {schema}.lineage ORDER BY generation DESC LIMIT 1";
    let (generation, system_identifier, timeline) =
        sqlx::query_as::<_, (i32, i64, i64)>(AssertSqlSafe(statements.text(last)))
            .persistent(false)
            .fetch_one(connection)
            .await?;
    Ok((generation, Lineage { system_identifier, timeline }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_count_up_to_the_schema_of_this_code() {
        let numbers: Vec<i32> = MIGRATIONS.iter().map(|migration| migration.number).collect();
        assert_eq!(numbers, (1..=SCHEMA).collect::<Vec<_>>());
        assert!(MIGRATIONS.is_sorted_by_key(|migration| migration.oldest_code));
        assert!(MIGRATIONS.iter().all(|migration| migration.oldest_code <= migration.number));
    }
}
