//! The SQLite adapter under the suite that every StateStore must pass.

// What fails here fails the case.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use flames_state::StateStore;
use flames_state_conformance::{Fixture, Harness, Hook, TurnableClock};
use flames_state_sqlite::{SqliteConfig, SqliteStore};
use tempfile::TempDir;

struct Sqlite;

struct File {
    store: Mutex<Arc<SqliteStore>>,
    clock: Arc<TurnableClock>,
    folder: TempDir,
}

async fn open(folder: &TempDir, clock: &Arc<TurnableClock>) -> Arc<SqliteStore> {
    let config = SqliteConfig::at(folder.path().join("state.db"));
    Arc::new(SqliteStore::open(config, Arc::<TurnableClock>::clone(clock)).await.unwrap())
}

#[async_trait]
impl Fixture for File {
    fn store(&self) -> Arc<dyn StateStore> {
        Arc::<SqliteStore>::clone(&self.store.lock().unwrap())
    }
    async fn reopen(&self) {
        let before = Arc::clone(&self.store.lock().unwrap());
        before.close().await.unwrap();
        let again = open(&self.folder, &self.clock).await;
        *self.store.lock().unwrap() = again;
    }
    async fn restart_server(&self) {
        // There is no server: the file is closed under whatever load there is, and opened anew. `kill -9` stands in `durability.rs`.
        self.reopen().await;
    }
    fn turn_clock_back(&self, by: Duration) {
        self.clock.turn_back(by);
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
        let clock = Arc::new(TurnableClock::new());
        Box::new(File { store: Mutex::new(open(&folder, &clock).await), clock, folder })
    }
    fn hooks(&self) -> &'static [Hook] {
        &[Hook::Restart, Hook::Clock]
    }
}

fn main() -> ExitCode {
    flames_state_conformance::run(Sqlite)
}
