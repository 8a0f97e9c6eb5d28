//! The SQLite adapter under the suite that every StateStore must pass.

// What fails here fails the case.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use flames_state::StateStore;
use flames_state_conformance::{Fixture, Harness, Hook, Hooks, SettableClock, async_trait};
use flames_state_sqlite::{SqliteConfig, SqliteStore};
use tempfile::TempDir;

struct Sqlite;

struct File {
    store: Mutex<Arc<SqliteStore>>,
    clock: Arc<SettableClock>,
    folder: TempDir,
}

async fn open(folder: &TempDir, clock: &Arc<SettableClock>) -> Arc<SqliteStore> {
    let config = SqliteConfig::at(folder.path().join("state.db"));
    Arc::new(SqliteStore::open(config, Arc::<SettableClock>::clone(clock)).await.unwrap())
}

impl Fixture for File {
    fn store(&self) -> Arc<dyn StateStore> {
        Arc::<SqliteStore>::clone(&self.store.lock().unwrap())
    }
}

#[async_trait]
impl Hooks for File {
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
    fn jump_clock(&self, by_ms: i64) {
        self.clock.jump(by_ms);
    }
}

#[async_trait]
impl Harness<dyn Fixture> for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }
    fn is_durable(&self) -> bool {
        true
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(SettableClock::new());
        Box::new(File { store: Mutex::new(open(&folder, &clock).await), clock, folder })
    }
    fn hooks(&self) -> &'static [Hook] {
        &[Hook::Restart, Hook::Clock]
    }
}

fn main() -> ExitCode {
    flames_state_conformance::run(Sqlite)
}
