//! The SQLite adapter under the suite that every StateStore must pass.

// What fails here fails the case.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use flames_clock::SystemClock;
use flames_state::StateStore;
use flames_state_conformance::{Fixture, Harness};
use flames_state_sqlite::{SqliteConfig, SqliteStore};
use tempfile::TempDir;

struct Sqlite;

struct File {
    store: Mutex<Arc<SqliteStore>>,
    folder: TempDir,
}

async fn open(folder: &TempDir) -> Arc<SqliteStore> {
    let config = SqliteConfig::at(folder.path().join("state.db"));
    Arc::new(SqliteStore::open(config, Arc::new(SystemClock::new())).await.unwrap())
}

#[async_trait]
impl Fixture for File {
    fn store(&self) -> Arc<dyn StateStore> {
        Arc::<SqliteStore>::clone(&self.store.lock().unwrap())
    }
    async fn reopen(&self) {
        let before = Arc::clone(&self.store.lock().unwrap());
        before.close().await.unwrap();
        let again = open(&self.folder).await;
        *self.store.lock().unwrap() = again;
    }
}

#[async_trait]
impl Harness for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }
    fn is_durable(&self) -> bool {
        true
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let folder = tempfile::tempdir().unwrap();
        Box::new(File { store: Mutex::new(open(&folder).await), folder })
    }
}

fn main() -> ExitCode {
    flames_state_conformance::run(Sqlite)
}
