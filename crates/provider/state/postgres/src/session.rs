//! How a connection is made fit for use.

use std::time::Duration;

use flames_error::{Error, ErrorKind, Result};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use crate::error::Target;
use crate::schema;
use crate::sql::Statements;

/// The first version with `pg_current_xact_id`: 13.
const OLDEST_SERVER: i32 = 130_000;

/// The settings that every statement of ours counts on, and what server this is.
///
/// * `READ COMMITTED`: each statement of `commit_1` must see what was committed before it, not before the transaction.
/// * Only nested loops over indexes, planned once: a plan made while a table was small would otherwise go on to read all of it.
const PREPARE: &str = "\
    SELECT set_config('statement_timeout', $1, false), set_config('default_transaction_isolation', 'read committed', false), \
           set_config('enable_seqscan', 'off', false), set_config('enable_hashjoin', 'off', false), \
           set_config('enable_mergejoin', 'off', false), set_config('jit', 'off', false), \
           set_config('plan_cache_mode', 'force_generic_plan', false), \
           CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', false) END";
const IDENTIFY: &str = "\
    SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', \
           current_setting('server_version_num')::int, (SELECT system_identifier FROM pg_control_system()), \
           CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_lsn()) END";

/// What tells one line of transaction ids from another: while both are the same, the server never gives an id twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lineage {
    /// `pg_control_system().system_identifier`: made by initdb.
    pub(crate) system_identifier: i64,
    /// The write-ahead log's timeline: grows with each promotion of a standby and each restore.
    pub(crate) timeline: i64,
}

/// Makes connections to one database.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) options: PgConnectOptions,
    pub(crate) target: Target,
    /// After how long the server gives up a statement.
    pub(crate) statement_timeout: Duration,
}

impl Connector {
    /// A connection to a primary of a version that is known, its session set up.
    pub(crate) async fn connect(&self, operation: &'static str) -> Result<(PgConnection, Lineage)> {
        let failed = |error| self.target.not_connected(operation, error);
        let mut connection = self.options.connect().await.map_err(failed)?;
        let timeout = self.statement_timeout.as_millis().max(1).to_string();
        sqlx::query(PREPARE)
            .persistent(false)
            .bind(timeout)
            .execute(&mut connection)
            .await
            .map_err(failed)?;
        let (standby, read_only, version, system_identifier, wal_file): (
            bool,
            bool,
            i32,
            i64,
            Option<String>,
        ) = sqlx::query_as(IDENTIFY).persistent(false).fetch_one(&mut connection).await.map_err(failed)?;
        let unfit = |kind, line: &str| Err(self.target.unfit(kind, operation, line));
        if version < OLDEST_SERVER {
            let line =
                format!("is Postgres {}, and 13 is the oldest that will do: upgrade it", version / 10_000);
            return unfit(ErrorKind::NotSupported, &line);
        }
        if standby {
            return unfit(
                ErrorKind::Unavailable,
                "is a standby and takes no writes: point the setting `url` at the primary",
            );
        }
        if read_only {
            return unfit(
                ErrorKind::Unavailable,
                "takes no writes (default_transaction_read_only is on): turn that off for this user, or correct the setting `url`",
            );
        }
        // A file's name begins with its timeline, in 8 hexadecimal digits.
        let timeline = wal_file.as_deref().and_then(|name| i64::from_str_radix(name.get(..8)?, 16).ok());
        let Some(timeline) = timeline else {
            return unfit(ErrorKind::NotSupported, "does not tell its write-ahead log's timeline");
        };
        Ok((connection, Lineage { system_identifier, timeline }))
    }

    /// A connection for the store's operations, and its generation: versions and positions lie behind all that were given before.
    pub(crate) async fn connect_to_store(
        &self,
        operation: &'static str,
        statements: &Statements,
    ) -> Result<(PgConnection, i32)> {
        let (mut connection, lineage) = self.connect(operation).await?;
        match schema::continue_lineage(&mut connection, statements, lineage).await {
            Ok(generation) => Ok((connection, generation)),
            Err(error) => {
                let error = crate::error::not_applied(operation, error);
                let _ = connection.close().await;
                Err(error)
            }
        }
    }
}

/// For a session that may lose what it wrote last when the server crashes: hints.
pub(crate) async fn give_up_durability(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT set_config('synchronous_commit', 'off', false)")
        .persistent(false)
        .execute(connection)
        .await?;
    Ok(())
}

/// The error for an operation of a store that was closed.
pub(crate) fn closed(operation: &'static str) -> Error {
    Error::unavailable(operation, "the store is closed")
}
