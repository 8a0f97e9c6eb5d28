//! How many commits a second the SQLite adapter takes, by the number of clients that wait for theirs. Each commit is like a
//! creation: a check, three keys, one log entry.
//!
//! `cargo run --release -p flames-state-sqlite --example commits_per_second [FOLDER]`; the file goes into a new folder in FOLDER
//! (default: the system's temporary folder).

use std::sync::Arc;
use std::time::{Duration, Instant};

use flames_clock::SystemClock;
use flames_error::{Error, Result};
use flames_state::{Check, Commit, Key, StateStore};
use flames_state_sqlite::{SqliteConfig, SqliteStore};

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

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stdout)]
async fn main() -> Result<()> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let failed = |error| Error::unavailable("example", "no folder").with_source(error);
    let folder = tempfile::tempdir_in(parent).map_err(failed)?;
    let config = SqliteConfig::at(folder.path().join("state.db"));
    let store = Arc::new(SqliteStore::open(config, Arc::new(SystemClock::new())).await?);
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
        println!("{clients:>3} clients: {:.0} commits/s", done as f64 / PERIOD.as_secs_f64());
    }
    println!("{store:?}");
    store.close().await
}
