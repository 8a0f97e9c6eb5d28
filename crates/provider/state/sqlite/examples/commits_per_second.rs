//! How many commits a second the SQLite adapter takes, by the number of clients that wait for theirs, beside what one fsync for each
//! commit allows: bare statements, one transaction each, with the same settings. Each commit is like a creation: a check, three keys,
//! one log entry.
//!
//! `cargo run --release -p flames-state-sqlite --example commits_per_second [FOLDER]`; the files go into a new folder in FOLDER
//! (default: the system's temporary folder). The ratio at 64 clients is to stay at or above 10.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flames_clock::SystemClock;
use flames_error::{Error, Result};
use flames_state::{Check, Commit, Key, StateStore};
use flames_state_sqlite::{SqliteConfig, SqliteStore};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};

const PERIOD: Duration = Duration::from_secs(3);

async fn client(store: Arc<dyn StateStore>, name: String, until: Instant) -> Result<usize> {
    let mut done = 0;
    while Instant::now() < until {
        let key = |kind: &str| Key::new(format!("default/{kind}/{name}/{done:08}"));
        let mut commit = Commit::new();
        commit.check(Check::Absent(key("name")?)).put(key("name")?, "vm").put(key("vm")?, vec![0; 1_000]);
        commit.put(key("due")?, "").append(Key::new("default/events")?, vec![0; 200]);
        store.commit(&commit).await?;
        done += 1;
    }
    Ok(done)
}

/// The same work as one transaction per commit, without anything of ours.
async fn one_fsync_each(path: &Path) -> sqlx::Result<f64> {
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging()
        .connect()
        .await?;
    for statement in [
        "CREATE TABLE entry (key BLOB PRIMARY KEY NOT NULL, version INTEGER NOT NULL, value BLOB NOT NULL) STRICT",
        "CREATE TABLE log (name BLOB NOT NULL, major INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (name, major)) \
         STRICT, WITHOUT ROWID",
    ] {
        sqlx::query(statement).execute(&mut connection).await?;
    }
    let (started, mut done) = (Instant::now(), 0_i64);
    while started.elapsed() < PERIOD {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let name = format!("default/name/{done:08}");
        sqlx::query("SELECT version FROM entry WHERE key = ?")
            .bind(name.as_bytes())
            .fetch_optional(&mut *transaction)
            .await?;
        sqlx::query("INSERT INTO entry (key, version, value) VALUES (?,?,?), (?,?,?), (?,?,?)")
            .bind(name.as_bytes())
            .bind(done)
            .bind(&b"vm"[..])
            .bind(format!("default/vm/{done:08}").into_bytes())
            .bind(done)
            .bind(vec![0; 1_000])
            .bind(format!("default/due/{done:08}").into_bytes())
            .bind(done)
            .bind(&b""[..])
            .execute(&mut *transaction)
            .await?;
        sqlx::query("INSERT INTO log (name, major, payload) VALUES (?,?,?)")
            .bind(&b"default/events"[..])
            .bind(done)
            .bind(vec![0; 200])
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        done += 1;
    }
    let rate = done as f64 / started.elapsed().as_secs_f64();
    connection.close().await?;
    Ok(rate)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stdout)]
async fn main() -> Result<()> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let failed = |error| Error::unavailable("example", "no folder").with_source(error);
    let folder = tempfile::tempdir_in(parent).map_err(failed)?;
    let config = SqliteConfig::at(folder.path().join("state.db"));
    let store = Arc::new(SqliteStore::open(config, Arc::new(SystemClock::new())).await?);
    let bare_failed = |error| Error::internal("example", "the bare statements failed").with_source(error);
    let bare = one_fsync_each(&folder.path().join("bare.db")).await.map_err(bare_failed)?;
    println!("one fsync per commit, bare: {bare:.0} commits/s");
    for clients in [1, 16, 64, 256] {
        let until = Instant::now() + PERIOD;
        let running: Vec<_> = (0..clients)
            .map(|n| {
                tokio::spawn(client(
                    Arc::clone(&store) as Arc<dyn StateStore>,
                    format!("{clients}.{n}"),
                    until,
                ))
            })
            .collect();
        let mut done = 0;
        for client in running {
            done += client
                .await
                .map_err(|error| Error::internal("example", "a client failed").with_source(error))??;
        }
        let rate = done as f64 / PERIOD.as_secs_f64();
        println!("{clients:>3} clients: {rate:.0} commits/s, {:.1} times the bare rate", rate / bare);
    }
    println!("{store:?}");
    store.close().await
}
