//! The plain way to a queue in SQL: insert, take with SKIP LOCKED, delete.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool, SqliteConnection};
use tokio::sync::Mutex;

use super::PAYLOAD;
use super::rounds::Subject;

pub(crate) async fn make_table(connection: &mut PgConnection, schema: &str) {
    let statements = format!(
        "CREATE TABLE {schema}.bare (id BIGSERIAL PRIMARY KEY, topic TEXT NOT NULL, payload BYTEA NOT NULL, priority SMALLINT NOT NULL, \
         run_at TIMESTAMPTZ NOT NULL DEFAULT now(), state SMALLINT NOT NULL DEFAULT 0, attempts INT NOT NULL DEFAULT 0, \
         locked_until TIMESTAMPTZ, worker TEXT); \
         CREATE INDEX ON {schema}.bare (topic, priority DESC, run_at, id) WHERE state = 0"
    );
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await.unwrap();
}

#[derive(Debug, Clone)]
struct Statements {
    insert: String,
    take: String,
    delete: String,
}

impl Statements {
    fn new(schema: &str) -> Self {
        Self {
            insert: format!(
                "INSERT INTO {schema}.bare (topic, payload, priority) VALUES ($1, $2, $3) RETURNING id"
            ),
            take: format!(
                "UPDATE {schema}.bare SET state = 1, attempts = attempts + 1, worker = $2, locked_until = now() + interval '60 s' \
                 WHERE id = (SELECT id FROM {schema}.bare WHERE topic = $1 AND state = 0 AND run_at <= now() \
                 ORDER BY priority DESC, run_at, id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id, payload, attempts"
            ),
            delete: format!(
                "DELETE FROM {schema}.bare WHERE id = $1 AND attempts = $2 AND locked_until > now()"
            ),
        }
    }
}

/// A way of a job, statement by statement, on whatever `$executor` is.
macro_rules! way_of_a_job {
    ($statements:expr, $executor:expr) => {{
        let statements = $statements;
        let _: i64 = sqlx::query_scalar(AssertSqlSafe(statements.insert.clone()))
            .bind("vms")
            .bind(PAYLOAD)
            .bind(0_i16)
            .fetch_one($executor)
            .await
            .unwrap();
        let taken: Option<(i64, Vec<u8>, i32)> = sqlx::query_as(AssertSqlSafe(statements.take.clone()))
            .bind("vms")
            .bind("bench")
            .fetch_optional($executor)
            .await
            .unwrap();
        match taken {
            Some((id, _, attempts)) => {
                sqlx::query(AssertSqlSafe(statements.delete.clone()))
                    .bind(id)
                    .bind(attempts)
                    .execute($executor)
                    .await
                    .unwrap();
                1
            }
            None => 0,
        }
    }};
}

/// Through the library's pool, as large as the queue's.
pub(crate) struct Pooled {
    pool: PgPool,
    statements: Statements,
}

impl Pooled {
    pub(crate) async fn new(url: &str, schema: &str) -> Self {
        let pool = sqlx::postgres::PgPoolOptions::new().max_connections(10).connect(url).await.unwrap();
        Self { pool, statements: Statements::new(schema) }
    }
}

#[async_trait::async_trait]
impl Subject for Pooled {
    async fn way_of_jobs(&self, _client: usize) -> usize {
        way_of_a_job!(&self.statements, &self.pool)
    }
}

/// Each client with a connection of its own: nothing at all in between.
pub(crate) struct Dedicated {
    connections: Vec<Mutex<PgConnection>>,
    statements: Statements,
}

impl Dedicated {
    pub(crate) async fn new(url: &str, schema: &str, clients: usize) -> Self {
        let mut connections = Vec::new();
        for _ in 0..clients {
            connections.push(Mutex::new(PgConnection::connect(url).await.unwrap()));
        }
        Self { connections, statements: Statements::new(schema) }
    }
}

#[async_trait::async_trait]
impl Subject for Dedicated {
    async fn way_of_jobs(&self, client: usize) -> usize {
        let mut connection = self.connections[client].lock().await;
        way_of_a_job!(&self.statements, &mut *connection)
    }
}

/// One connection that writes, as SQLite has it, each statement a transaction by itself.
pub(crate) struct BareSqlite(Mutex<SqliteConnection>);

impl BareSqlite {
    pub(crate) async fn new(path: &Path) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .disable_statement_logging();
        let mut connection = options.connect().await.unwrap();
        let statements = "CREATE TABLE bare (id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload BLOB NOT NULL, priority INTEGER NOT NULL, \
             run_at INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, locked_until INTEGER, worker TEXT); \
             CREATE INDEX bare_ready ON bare (topic, priority DESC, run_at, id) WHERE state = 0";
        sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
        Self(Mutex::new(connection))
    }
}

const SQLITE_TAKE: &str = "UPDATE bare SET state = 1, attempts = attempts + 1, worker = $2, locked_until = 60 \
    WHERE id = (SELECT id FROM bare WHERE topic = $1 AND state = 0 AND run_at <= 1 ORDER BY priority DESC, run_at, id LIMIT 1) \
    RETURNING id, payload, attempts";

#[async_trait::async_trait]
impl Subject for BareSqlite {
    async fn way_of_jobs(&self, _client: usize) -> usize {
        {
            let mut connection = self.0.lock().await;
            let insert =
                "INSERT INTO bare (topic, payload, priority, run_at) VALUES ($1, $2, $3, 0) RETURNING id";
            let query = sqlx::query(insert).bind("vms").bind(PAYLOAD).bind(0);
            query.fetch_all(&mut *connection).await.unwrap();
        }
        let taken: Vec<(i64, Vec<u8>, i64)> = {
            let mut connection = self.0.lock().await;
            let query = sqlx::query_as(SQLITE_TAKE).bind("vms").bind("bench");
            query.fetch_all(&mut *connection).await.unwrap()
        };
        for (id, _, attempts) in &taken {
            let mut connection = self.0.lock().await;
            let delete = "DELETE FROM bare WHERE id = $1 AND attempts = $2 AND locked_until > 0";
            sqlx::query(delete).bind(id).bind(attempts).execute(&mut *connection).await.unwrap();
        }
        taken.len()
    }
}
