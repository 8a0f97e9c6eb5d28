//! SQLite, by hand: one connection that writes, WAL, `synchronous = FULL`, a transaction and so an fsync for each commit; four that read.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context as _, Result};
use flames_clock::SystemClock;
use flames_state_sqlite::{SqliteConfig, SqliteStore};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

use super::compare::{compare, operation};
use super::state::{KEYS, Ours, index_key, next, record_key, value};
use super::{Findings, ProvidersArguments};

const READERS: u32 = 4;

struct Bare {
    writer: SqlitePool,
    readers: SqlitePool,
    reads: AtomicU64,
}

impl Bare {
    async fn new(path: &std::path::Path) -> Result<Arc<Self>> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        sqlx::query("CREATE TABLE entry (key BLOB PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID, STRICT")
            .execute(&writer)
            .await?;
        for number in 0..KEYS {
            for key in [record_key(number), index_key(number)] {
                sqlx::query("INSERT INTO entry VALUES (?, ?, 1)")
                    .bind(key.into_bytes())
                    .bind(value().to_vec())
                    .execute(&writer)
                    .await?;
            }
        }
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .connect_with(options.pragma("query_only", "ON"))
            .await?;
        Ok(Arc::new(Self { writer, readers, reads: AtomicU64::new(0) }))
    }

    async fn commit(&self, client: usize) -> Result<()> {
        let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let record = record_key(client).into_bytes();
        let version: i64 = sqlx::query_scalar("SELECT version FROM entry WHERE key = ?")
            .bind(&record)
            .fetch_one(&mut *transaction)
            .await?;
        for key in [record, index_key(client).into_bytes()] {
            sqlx::query("INSERT INTO entry VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version")
                .bind(key)
                .bind(value().to_vec())
                .bind(version + 1)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    async fn get(&self) -> Result<()> {
        let key = record_key(next(&self.reads)).into_bytes();
        let row: Option<(Vec<u8>, i64)> = sqlx::query_as("SELECT value, version FROM entry WHERE key = ?")
            .bind(key)
            .fetch_optional(&self.readers)
            .await?;
        row.context("a value")?;
        Ok(())
    }
}

pub(crate) async fn measure(arguments: &ProvidersArguments, findings: &mut Findings) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut config = SqliteConfig::at(folder.path().join("ours.db"));
    config.readers = READERS;
    let store = Arc::new(SqliteStore::open(config, Arc::new(SystemClock::new())).await?);
    let ours = Ours::new(Arc::<SqliteStore>::clone(&store)).await?;
    let bare = Bare::new(&folder.path().join("bare.db")).await?;
    let commits = operation(&bare, async |bare, client| bare.commit(client).await.map(|()| 1));
    let gets = operation(&bare, async |bare, _| bare.get().await.map(|()| 1));
    let mut rows = Vec::new();
    for clients in [1, 16, 64] {
        let compared = compare(arguments.effort(), clients, &ours.commits(), &commits).await?;
        rows.push(compared.row(format!("commit, {clients} clients")));
        if clients == 64 {
            findings.at_least(
                "state/sqlite commit, 64 clients: ours / one fsync for each",
                10.0,
                compared.ratio(),
            );
        } else {
            findings.adapter_bars(&format!("state/sqlite commit, {clients} clients"), &compared);
        }
    }
    for clients in [1, 16] {
        let compared = compare(arguments.effort(), clients, &ours.gets(), &gets).await?;
        rows.push(compared.row(format!("get, {clients} clients")));
        findings.adapter_bars(&format!("state/sqlite get, {clients} clients"), &compared);
    }
    findings.section(
        "state/sqlite beside bare SQL in WAL with synchronous = FULL, by one writer and four readers",
        "work",
        rows,
    );
    store.close().await?;
    Ok(())
}
