//! A queue in SQL, by hand.

/// SQLite: one connection that writes, WAL, `synchronous = FULL`, each statement a transaction.
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite {
    use std::sync::Arc;

    use anyhow::{Result, ensure};
    use async_trait::async_trait;
    use bytes::Bytes;
    use flames_clock::SystemClock;
    use flames_queue_sql::{SqliteQueue, SqliteQueueConfig};
    use sqlx::sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
    };

    use crate::providers::queue::{BareQueue, Goals, Ours, beside};
    use crate::providers::{Findings, ProvidersArguments};

    struct Bare {
        pool: SqlitePool,
    }

    impl Bare {
        async fn new(path: &std::path::Path) -> Result<Arc<Self>> {
            let pool = one_writer(path).await?;
            sqlx::query(
                "CREATE TABLE job (id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload BLOB NOT NULL, state INTEGER NOT NULL DEFAULT 0, \
                 deliveries INTEGER NOT NULL DEFAULT 0, leased_until INTEGER) STRICT",
            )
            .execute(&pool)
            .await?;
            sqlx::query("CREATE INDEX job_ready ON job (topic, id) WHERE state = 0").execute(&pool).await?;
            Ok(Arc::new(Self { pool }))
        }
    }

    async fn one_writer(path: &std::path::Path) -> Result<SqlitePool> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        Ok(SqlitePoolOptions::new()
            .max_connections(1)
            .test_before_acquire(false)
            .connect_with(options)
            .await?)
    }

    #[async_trait]
    impl BareQueue for Bare {
        type Taken = (i64, i64);
        async fn add(&self, payload: Bytes) -> Result<()> {
            sqlx::query("INSERT INTO job (topic, payload) VALUES ('bench', ?)")
                .bind(payload.to_vec())
                .execute(&self.pool)
                .await?;
            Ok(())
        }
        async fn take(&self, max: usize) -> Result<Vec<(i64, i64)>> {
            let rows: Vec<(i64, i64, Vec<u8>)> = sqlx::query_as(
                "UPDATE job SET state = 2, deliveries = deliveries + 1, leased_until = unixepoch() + 60 WHERE id IN \
                 (SELECT id FROM job WHERE topic = 'bench' AND state = 0 ORDER BY id LIMIT ?) RETURNING id, deliveries, payload",
            )
            .bind(i64::try_from(max)?)
            .fetch_all(&self.pool)
            .await?;
            Ok(rows.into_iter().map(|(id, deliveries, _)| (id, deliveries)).collect())
        }
        async fn finish(&self, (id, deliveries): (i64, i64)) -> Result<()> {
            let done = sqlx::query("DELETE FROM job WHERE id = ? AND deliveries = ? AND state = 2 AND leased_until > unixepoch()")
                .bind(id)
                .bind(deliveries)
                .execute(&self.pool)
                .await?;
            ensure!(done.rows_affected() == 1, "the lease was lost");
            Ok(())
        }
    }

    pub(crate) async fn measure(arguments: &ProvidersArguments, findings: &mut Findings) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("ours.db");
        let mut config = SqliteQueueConfig::at(&path);
        config.survives_power_loss = true;
        let queue = Arc::new(SqliteQueue::open(config, Arc::new(SystemClock::new())).await?);
        let ours = Ours::new(Arc::<SqliteQueue>::clone(&queue))?;
        let bare = Bare::new(&folder.path().join("bare.db")).await?;
        let goals = Goals { batches: None, flat: 1.2, old_jobs: arguments.old_jobs };
        let old_jobs = arguments.old_jobs;
        beside("sqlite", arguments, findings, (&ours, &bare), goals, async || {
            let pool = one_writer(&path).await?;
            sqlx::query(
                "WITH RECURSIVE old(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM old WHERE n < ?) \
                 INSERT INTO job (topic, payload, priority, state, ready_at, attempts, deliveries, parked_at, reason) \
                 SELECT 'bench', x'00', 0, 3, 0, 1, 1, unixepoch() * 1000, x'6f6c64' FROM old",
            )
            .bind(old_jobs)
            .execute(&pool)
            .await?;
            pool.close().await;
            Ok(())
        })
        .await?;
        queue.close().await?;
        Ok(())
    }
}

/// Postgres: a pool as large as the queue's, each statement a transaction.
#[cfg(feature = "postgres")]
pub(crate) mod postgres {
    use std::sync::Arc;

    use anyhow::{Result, ensure};
    use async_trait::async_trait;
    use bytes::Bytes;
    use flames_clock::SystemClock;
    use flames_queue_sql::{PostgresQueue, PostgresQueueConfig};
    use sqlx::postgres::{PgPool, PgPoolOptions};
    use sqlx::{AssertSqlSafe, Connection, Executor};

    use crate::providers::queue::{BareQueue, Goals, Ours, beside};
    use crate::providers::{Findings, ProvidersArguments};

    const SCHEMA: &str = "flames_bench_queue";

    struct Bare {
        pool: PgPool,
    }

    #[async_trait]
    impl BareQueue for Bare {
        type Taken = (i64, i64);
        async fn add(&self, payload: Bytes) -> Result<()> {
            sqlx::query("INSERT INTO flames_bench_queue.bare_job (topic, payload) VALUES ('bench', $1)")
                .bind(payload.to_vec())
                .execute(&self.pool)
                .await?;
            Ok(())
        }
        async fn take(&self, max: usize) -> Result<Vec<(i64, i64)>> {
            let rows: Vec<(i64, i64, Vec<u8>)> = sqlx::query_as(
                "UPDATE flames_bench_queue.bare_job SET state = 2, deliveries = deliveries + 1, leased_until = now() + interval '60 s' WHERE id IN \
                 (SELECT id FROM flames_bench_queue.bare_job WHERE topic = 'bench' AND state = 0 ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED) \
                 RETURNING id, deliveries, payload",
            )
            .bind(i64::try_from(max)?)
            .fetch_all(&self.pool)
            .await?;
            Ok(rows.into_iter().map(|(id, deliveries, _)| (id, deliveries)).collect())
        }
        async fn finish(&self, (id, deliveries): (i64, i64)) -> Result<()> {
            let done = sqlx::query(
                "DELETE FROM flames_bench_queue.bare_job WHERE id = $1 AND deliveries = $2 AND state = 2 AND leased_until > now()",
            )
            .bind(id)
            .bind(deliveries)
            .execute(&self.pool)
            .await?;
            ensure!(done.rows_affected() == 1, "the lease was lost");
            Ok(())
        }
    }

    async fn drop_schema(url: &str) -> Result<()> {
        let mut connection = sqlx::PgConnection::connect(url).await?;
        connection.execute(AssertSqlSafe(format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))).await?;
        connection.close().await?;
        Ok(())
    }

    pub(crate) async fn measure(
        arguments: &ProvidersArguments,
        url: &str,
        findings: &mut Findings,
    ) -> Result<()> {
        drop_schema(url).await?;
        let config = PostgresQueueConfig { schema: SCHEMA.to_owned(), ..PostgresQueueConfig::at(url) };
        let connections = config.max_connections;
        let queue = Arc::new(PostgresQueue::open(config, Arc::new(SystemClock::new())).await?);
        let ours = Ours::new(Arc::<PostgresQueue>::clone(&queue))?;
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .min_connections(connections)
            .test_before_acquire(false)
            .connect(url)
            .await?;
        pool.execute(
            "CREATE TABLE flames_bench_queue.bare_job (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, topic text NOT NULL, payload bytea NOT NULL, \
             state smallint NOT NULL DEFAULT 0, deliveries bigint NOT NULL DEFAULT 0, leased_until timestamptz); \
             CREATE INDEX bare_job_ready ON flames_bench_queue.bare_job (topic, id) WHERE state = 0",
        )
        .await?;
        let bare = Arc::new(Bare { pool: pool.clone() });
        let goals = Goals { batches: Some(5.0), flat: 1.2, old_jobs: arguments.old_jobs };
        let old_jobs = i64::from(arguments.old_jobs);
        beside("postgres", arguments, findings, (&ours, &bare), goals, async || {
            sqlx::query(
                "INSERT INTO flames_bench_queue.job (topic, payload, priority, state, ready_at, attempts, deliveries, parked_at, reason) \
                 SELECT 'bench', '\\x00', 0, 3, 0, 1, 1, (extract(epoch FROM now()) * 1000)::bigint, 'old' FROM generate_series(1, $1)",
            )
            .bind(old_jobs)
            .execute(&pool)
            .await?;
            Ok(())
        })
        .await?;
        queue.close().await?;
        pool.close().await;
        drop_schema(url).await
    }
}
