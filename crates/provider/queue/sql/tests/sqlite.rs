//! The SQLite adapter under the suite that every WorkQueue must pass.

// What fails here fails the case.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_clock::Clock;
use flames_queue::WorkQueue;
use flames_queue_conformance::{Fixture, Harness, Hook, Hooks, SettableClock, async_trait};
use flames_queue_sql::{SqliteQueue, SqliteQueueConfig};
use tempfile::TempDir;

struct Sqlite;

struct File {
    queue: Mutex<Option<Arc<SqliteQueue>>>,
    clock: Arc<SettableClock>,
    folder: TempDir,
}

impl File {
    async fn open(&self) {
        let config = SqliteQueueConfig::at(self.folder.path().join("queue.db"));
        let clock = Arc::<SettableClock>::clone(&self.clock);
        let queue = Arc::new(SqliteQueue::open(config, clock).await.unwrap());
        *self.queue.lock().unwrap() = Some(queue);
    }

    fn queue(&self) -> Arc<SqliteQueue> {
        Arc::clone(self.queue.lock().unwrap().as_ref().unwrap())
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
    fn hooks(&self) -> &'static [Hook] {
        &[Hook::Clock, Hook::Restart]
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let (clock, folder) = (Arc::new(SettableClock::new()), tempfile::tempdir().unwrap());
        let file = File { queue: Mutex::new(None), clock, folder };
        file.open().await;
        Box::new(file)
    }
}

impl Fixture for File {
    fn queue(&self) -> Arc<dyn WorkQueue> {
        self.queue()
    }
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
    fn unit(&self) -> Duration {
        Duration::from_millis(300)
    }
}

#[async_trait]
impl Hooks for File {
    async fn reopen(&self) {
        self.queue().close().await.unwrap();
        self.open().await;
    }
    /// The queue is given up with what it is about, as when its process is killed, and the file is opened anew.
    async fn restart_server(&self) {
        self.queue().abandon();
        self.open().await;
    }
    fn jump_clock(&self, by_ms: i64) {
        self.clock.jump(by_ms);
    }
}

fn main() -> ExitCode {
    flames_queue_conformance::run(Sqlite)
}
