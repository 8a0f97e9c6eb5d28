//! The statements, and rows to records.

use std::future::Future;
use std::sync::Arc;

use flames_error::{Error, ErrorKind};
use flames_state::{Entry, Key, KeyRange, LogEntry, MAX_KEY_BYTES, Position, Version};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use crate::commit;

/// At how many bytes of keys and values a page ends before it has as many entries as asked.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// How many bits of a version and of a position's first number the transaction id takes; the generation is above. 2^48
/// transactions are 89 years at 100,000 a second.
const TRANSACTION_BITS: u32 = 48;
/// How many log entries one statement removes, so that none takes long.
pub(crate) const TRIM_STEP: i64 = 1_000;

const GET: &str = "SELECT version, value FROM {schema}.entry WHERE key = $1";
/// A value behind the page's bytes is not sent; its row only says that there is more.
const SCAN: &str = "\
    SELECT key, version, CASE WHEN coalesce(before, 0) < {page_bytes} THEN value END FROM (\
        SELECT key, version, value, sum(octet_length(key) + octet_length(value)) \
               OVER (ORDER BY key ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before \
        FROM (SELECT key, version, value FROM {schema}.entry WHERE key >= $1 AND key < $2 ORDER BY key LIMIT $3) AS entries\
    ) AS page ORDER BY key";
/// `pg_snapshot_xmin`: every transaction before it has ended, and this statement sees all that they did.
const READ_LOG: &str = "\
    SELECT major, ordinal, major < settled, CASE WHEN major < settled AND coalesce(before, 0) < {page_bytes} THEN payload END FROM (\
        SELECT major, ordinal, payload, sum(octet_length(payload)) \
               OVER (ORDER BY major, ordinal ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before, \
               ($5::bigint << {transaction_bits}) \
               | pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS settled \
        FROM (SELECT major, ordinal, payload FROM {schema}.log WHERE name = $1 AND (major, ordinal) > ($2, $3) \
              ORDER BY major, ordinal LIMIT $4) AS entries\
    ) AS page ORDER BY major, ordinal";
const SETTLED: &str =
    "SELECT ($1::bigint << {transaction_bits}) | pg_snapshot_xmin(pg_current_snapshot())::text::bigint";
const TRIM: &str = "\
    DELETE FROM {schema}.log WHERE ctid = ANY (ARRAY(\
        SELECT ctid FROM {schema}.log WHERE name = $1 AND (major, ordinal) <= ($2, $3) ORDER BY major, ordinal LIMIT $4))";
/// Who holds back the logs. Others' transaction ids show only to a member of pg_read_all_stats.
const OLDEST_TRANSACTION: &str = "\
    SELECT pid, coalesce(datname, '') FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY age(backend_xid) DESC LIMIT 1";

/// The statements for one schema.
#[derive(Debug)]
pub(crate) struct Statements {
    schema: String,
    get: Arc<str>,
    scan: Arc<str>,
    pub(crate) commit: Arc<str>,
    pub(crate) replace: Arc<str>,
    pub(crate) put: Arc<str>,
    read_log: Arc<str>,
    settled: Arc<str>,
    trim: Arc<str>,
}

/// What a read of a log found.
pub(crate) struct LogPage {
    /// The entries that are settled.
    pub(crate) entries: Vec<LogEntry>,
    /// The last commit among those that follow them and are there, and that an older transaction, still running, may yet add
    /// entries before.
    pub(crate) unsettled: Option<i64>,
}

/// What a statement is run with besides its connection.
pub(crate) struct Context<'a> {
    pub(crate) statements: &'a Statements,
    /// The generation that the connection is in: see [`crate::schema::continue_lineage`].
    pub(crate) generation: i32,
}

/// A statement with its arguments. It may be run again, on another connection.
pub(crate) trait Statement: Sync {
    /// What it answers.
    type Answer: Send;

    /// Runs it, to the end of the server's answer: a connection with an answer half read must not go back to the pool, and only the
    /// end says that a transaction was committed.
    fn run(
        &self,
        connection: &mut PgConnection,
        context: &Context<'_>,
    ) -> impl Future<Output = sqlx::Result<Self::Answer>> + Send;
}

impl Statements {
    /// For a schema whose name was checked: see [`crate::PostgresConfig::schema`].
    pub(crate) fn new(schema: &str) -> Self {
        let text = |statement: &str| Arc::<str>::from(in_schema(schema, statement));
        Self {
            schema: schema.to_owned(),
            get: text(GET),
            scan: text(SCAN),
            commit: text(commit::COMMIT),
            replace: text(commit::REPLACE),
            put: text(commit::PUT),
            read_log: text(READ_LOG),
            settled: text(SETTLED),
            trim: text(TRIM),
        }
    }

    pub(crate) fn schema_name(&self) -> &str {
        &self.schema
    }

    /// A statement with the schema's name in place of `{schema}`, and the constants in place of their names.
    pub(crate) fn text(&self, statement: &str) -> String {
        in_schema(&self.schema, statement)
    }

    /// As [`Statements::text`], for sqlx. Safe, since the schema's name was checked and all data is bound.
    pub(crate) fn of(&self, statement: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(self.text(statement))
    }

    /// The channel of this store's hints: a name of at most 63 bytes.
    pub(crate) fn channel(&self) -> String {
        format!("flames_{}", self.schema)
    }

    /// The advisory lock of a key: FNV-1a, 64 bits (<https://datatracker.ietf.org/doc/html/draft-eastlake-fnv-21>), over the schema's
    /// name, a zero byte and the key. Part of the format: every version must compute the same.
    pub(crate) fn lock_number(&self, key: &[u8]) -> i64 {
        let bytes = self.schema.as_bytes().iter().chain(&[0]).chain(key);
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        hash.cast_signed()
    }
}

fn in_schema(schema: &str, statement: &str) -> String {
    statement
        .replace("{schema}", &format!("\"{schema}\""))
        .replace("{page_bytes}", &PAGE_BYTES.to_string())
        .replace("{transaction_bits}", &TRANSACTION_BITS.to_string())
}

/// Postgres counts in i64. No number of ours reaches its end, so beyond it is behind everything.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn position_to_sql(position: Position) -> (i64, i32) {
    let (major, minor) = position.as_raw();
    (to_sql(major), i32::try_from(minor).unwrap_or(i32::MAX))
}

pub(crate) fn corrupt(message: &'static str) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: message.to_owned(), source: message.into() }
}

fn from_sql(number: i64) -> sqlx::Result<u64> {
    u64::try_from(number).map_err(|_| corrupt("a number is negative"))
}

/// The entry at a key.
pub(crate) struct Get<'a>(pub(crate) &'a Key);

impl Statement for Get<'_> {
    type Answer = Option<Entry>;

    async fn run(&self, connection: &mut PgConnection, context: &Context<'_>) -> sqlx::Result<Self::Answer> {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(AssertSqlSafe(Arc::clone(&context.statements.get)))
            .bind(self.0.as_bytes())
            .fetch_all(connection)
            .await?;
        let Some((version, value)) = rows.into_iter().next() else { return Ok(None) };
        Ok(Some(Entry {
            key: self.0.clone(),
            value: value.into(),
            version: Version::from_raw(from_sql(version)?),
        }))
    }
}

/// Entries of a range behind `after`, ascending, at most `limit` of them, and whether there are more.
pub(crate) struct Scan<'a> {
    pub(crate) range: &'a KeyRange,
    pub(crate) after: Option<&'a Key>,
    pub(crate) limit: usize,
}

impl Statement for Scan<'_> {
    type Answer = (Vec<Entry>, bool);

    async fn run(&self, connection: &mut PgConnection, context: &Context<'_>) -> sqlx::Result<Self::Answer> {
        // The first key behind `after` is the one with a zero byte added.
        let behind = self.after.map(|after| [after.as_bytes(), &[0]].concat());
        let start =
            behind.as_deref().filter(|behind| *behind > self.range.start()).unwrap_or(self.range.start());
        let no_key = [0xff; MAX_KEY_BYTES + 1];
        let rows: Vec<(Vec<u8>, i64, Option<Vec<u8>>)> =
            sqlx::query_as(AssertSqlSafe(Arc::clone(&context.statements.scan)))
                .bind(start)
                .bind(self.range.end().unwrap_or(&no_key))
                .bind(to_sql(self.limit as u64 + 1))
                .fetch_all(connection)
                .await?;
        let found = rows.len();
        let mut entries = Vec::with_capacity(found.min(self.limit));
        for (key, version, value) in rows.into_iter().take(self.limit) {
            let Some(value) = value else { break };
            let key = Key::new(key).map_err(|_| corrupt("a key is too long or empty"))?;
            entries.push(Entry { key, value: value.into(), version: Version::from_raw(from_sql(version)?) });
        }
        let more = entries.len() < found;
        Ok((entries, more))
    }
}

/// Entries of a log behind `after`, in order, at most `limit` of them.
pub(crate) struct ReadLog<'a> {
    pub(crate) log: &'a Key,
    pub(crate) after: Position,
    pub(crate) limit: usize,
}

impl Statement for ReadLog<'_> {
    type Answer = LogPage;

    async fn run(&self, connection: &mut PgConnection, context: &Context<'_>) -> sqlx::Result<Self::Answer> {
        let (major, minor) = position_to_sql(self.after);
        let rows: Vec<(i64, i32, bool, Option<Vec<u8>>)> =
            sqlx::query_as(AssertSqlSafe(Arc::clone(&context.statements.read_log)))
                .bind(self.log.as_bytes())
                .bind(major)
                .bind(minor)
                .bind(to_sql(self.limit as u64))
                .bind(context.generation)
                .fetch_all(connection)
                .await?;
        let unsettled = rows.last().filter(|(_, _, settled, _)| !settled).map(|(major, ..)| *major);
        let mut entries = Vec::with_capacity(rows.len());
        for (major, ordinal, _, payload) in rows {
            let Some(payload) = payload else { break };
            let position = Position::from_raw(from_sql(major)?, from_sql(ordinal.into())?);
            entries.push(LogEntry { position, payload: payload.into() });
        }
        Ok(LogPage { entries, unsettled })
    }
}

/// Removes at most [`TRIM_STEP`] entries of a log up to and including `through`; answers how many.
pub(crate) struct Trim<'a> {
    pub(crate) log: &'a Key,
    pub(crate) through: Position,
}

impl Statement for Trim<'_> {
    type Answer = u64;

    async fn run(&self, connection: &mut PgConnection, context: &Context<'_>) -> sqlx::Result<Self::Answer> {
        let (major, minor) = position_to_sql(self.through);
        let done = sqlx::query(AssertSqlSafe(Arc::clone(&context.statements.trim)))
            .bind(self.log.as_bytes())
            .bind(major)
            .bind(minor)
            .bind(TRIM_STEP)
            .execute(connection)
            .await?;
        Ok(done.rows_affected())
    }
}

/// Below which commit every log is settled.
pub(crate) struct Settled;

impl Statement for Settled {
    type Answer = i64;

    async fn run(&self, connection: &mut PgConnection, context: &Context<'_>) -> sqlx::Result<Self::Answer> {
        let rows: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(Arc::clone(&context.statements.settled)))
            .bind(context.generation)
            .fetch_all(connection)
            .await?;
        rows.first().copied().ok_or_else(|| corrupt("no row says what is settled"))
    }
}

/// The error for a log that cannot be read, since a transaction that may still add to it stays open.
pub(crate) struct HeldBack(pub(crate) &'static str);

impl Statement for HeldBack {
    type Answer = Error;

    async fn run(&self, connection: &mut PgConnection, _context: &Context<'_>) -> sqlx::Result<Self::Answer> {
        let oldest: Option<(i32, String)> =
            sqlx::query_as(OLDEST_TRANSACTION).persistent(false).fetch_optional(connection).await?;
        let (pid, database) =
            oldest.map_or_else(Default::default, |(pid, database)| (pid.to_string(), database));
        Ok(Error::new(
            ErrorKind::Unavailable,
            self.0,
            "postgres: the log cannot be read further while an older transaction is open on the server: end it, or wait",
        )
        .with_context("pid", pid)
        .with_context("database", database))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_locks_are_what_every_version_computes() {
        // FNV-1a of "flames\0a", computed apart from this code.
        assert_eq!(Statements::new("flames").lock_number(b"a"), 4_970_639_172_749_560_446);
        assert_ne!(Statements::new("flames").lock_number(b"a"), Statements::new("other").lock_number(b"a"));
    }

    #[test]
    fn every_statement_names_the_schema_and_nothing_is_left_open() {
        let statements = Statements::new("s1");
        for statement in
            [&statements.get, &statements.scan, &statements.commit, &statements.read_log, &statements.trim]
        {
            assert!(statement.contains("\"s1\".") && !statement.contains('{'), "{statement}");
        }
    }
}
