//! Postgres, by hand: the same transaction in three statements and the same read, over the store's own pool.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context as _, Result};
use flames_clock::SystemClock;
use flames_state_postgres::{PostgresConfig, PostgresStore};
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::compare::{compare, operation};
use super::state::{KEYS, MOST_CLIENTS, Ours, index_key, next, record_key, value};
use super::{Findings, ProvidersArguments};

const SCHEMA: &str = "flames_bench_state";

struct Bare {
    store: Arc<PostgresStore>,
    reads: AtomicU64,
}

impl Bare {
    async fn fill(&self) -> Result<()> {
        let mut connection = self.store.connection().await?;
        let table = format!(
            "CREATE TABLE {SCHEMA}.bare_entry (key bytea PRIMARY KEY, value bytea NOT NULL, version bigint NOT NULL) WITH (fillfactor = 80)"
        );
        connection.execute(AssertSqlSafe(table)).await?;
        for number in 0..KEYS {
            for key in [record_key(number), index_key(number)] {
                sqlx::query(AssertSqlSafe(format!("INSERT INTO {SCHEMA}.bare_entry VALUES ($1, $2, 1)")))
                    .bind(key.into_bytes())
                    .bind(value().to_vec())
                    .execute(&mut *connection)
                    .await?;
            }
        }
        connection.release();
        Ok(())
    }

    async fn commit(&self, client: usize) -> Result<()> {
        let mut connection = self.store.connection().await?;
        let mut transaction = connection.begin().await?;
        let record = record_key(client).into_bytes();
        let read = format!("SELECT version FROM {SCHEMA}.bare_entry WHERE key = $1 FOR UPDATE");
        let version: i64 =
            sqlx::query_scalar(AssertSqlSafe(read)).bind(&record).fetch_one(&mut *transaction).await?;
        let write = format!(
            "INSERT INTO {SCHEMA}.bare_entry VALUES ($1, $2, $3) ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version"
        );
        for key in [record, index_key(client).into_bytes()] {
            sqlx::query(AssertSqlSafe(write.clone()))
                .bind(key)
                .bind(value().to_vec())
                .bind(version + 1)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        connection.release();
        Ok(())
    }

    async fn get(&self) -> Result<()> {
        let mut connection = self.store.connection().await?;
        let read = format!("SELECT value, version FROM {SCHEMA}.bare_entry WHERE key = $1");
        let row: Option<(Vec<u8>, i64)> = sqlx::query_as(AssertSqlSafe(read))
            .bind(record_key(next(&self.reads)).into_bytes())
            .fetch_optional(&mut *connection)
            .await?;
        row.context("a value")?;
        connection.release();
        Ok(())
    }
}

/// Removes what a run made.
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
    let config = PostgresConfig { schema: SCHEMA.to_owned(), ..PostgresConfig::at(url) };
    let store = Arc::new(PostgresStore::open(config, Arc::new(SystemClock::new())).await?);
    let ours = Ours::new(Arc::<PostgresStore>::clone(&store)).await?;
    let bare = Arc::new(Bare { store: Arc::clone(&store), reads: AtomicU64::new(0) });
    bare.fill().await?;
    let commits = operation(&bare, async |bare, client| bare.commit(client).await.map(|()| 1));
    let gets = operation(&bare, async |bare, _| bare.get().await.map(|()| 1));
    let mut rows = Vec::new();
    for clients in [1, 16, MOST_CLIENTS] {
        let compared = compare(arguments.effort(), clients, &ours.commits(), &commits).await?;
        rows.push(compared.row(format!("commit, {clients} clients")));
        findings.adapter_bars(&format!("state/postgres commit, {clients} clients"), &compared);
        let compared = compare(arguments.effort(), clients, &ours.gets(), &gets).await?;
        rows.push(compared.row(format!("get, {clients} clients")));
        findings.adapter_bars(&format!("state/postgres get, {clients} clients"), &compared);
    }
    findings.section("state/postgres beside bare SQL over the same pool of 16", "work", rows);
    store.close().await;
    drop_schema(url).await
}
