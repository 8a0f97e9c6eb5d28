//! The Postgres adapter under the suite that every StateStore must pass.

// What fails here fails the case.
#![allow(clippy::unwrap_used, clippy::print_stderr, unreachable_pub)]

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_state::StateStore;
use flames_state_conformance::{
    Faults, Fixture, Harness, Held, Hook, Hooks, SettableClock, Unavailable, async_trait,
};
use flames_state_postgres::{PostgresConfig, PostgresStore};
use flames_test_servers::{CutProxy, OwnServer, shared};

#[path = "support/schema.rs"]
mod schema;

use schema::Schema;

struct Postgres;

struct Database {
    config: PostgresConfig,
    clock: Arc<SettableClock>,
    store: Mutex<Arc<PostgresStore>>,
    network: Option<CutProxy>,
    // Behind the store: dropped after it.
    _schema: Option<Schema>,
    server: Option<OwnServer<flames_test_servers::Postgres>>,
}

async fn open(config: &PostgresConfig, clock: &Arc<SettableClock>) -> Arc<PostgresStore> {
    Arc::new(PostgresStore::open(config.clone(), clock.clone()).await.unwrap())
}

impl Database {
    async fn shared(change: impl FnOnce(&mut PostgresConfig), breakable: bool) -> Self {
        let schema = Schema::new(&shared::postgres().unwrap()).await;
        let mut config = PostgresConfig::at(&schema.url);
        config.schema.clone_from(&schema.name);
        let mut network = None;
        if breakable {
            let (proxy, through) = CutProxy::before_url(&schema.url).await.unwrap();
            (network, config.url) = (Some(proxy), through);
        }
        change(&mut config);
        let clock = Arc::new(SettableClock::new());
        let store = Mutex::new(open(&config, &clock).await);
        Self { config, clock, store, network, _schema: Some(schema), server: None }
    }

    async fn of_its_own() -> Self {
        let server = OwnServer::<flames_test_servers::Postgres>::start().await;
        let mut config = PostgresConfig::at(server.url());
        config.operation_deadline = Duration::from_secs(2);
        let clock = Arc::new(SettableClock::new());
        let store = Mutex::new(open(&config, &clock).await);
        Self { config, clock, store, network: None, _schema: None, server: Some(server) }
    }

    fn store(&self) -> Arc<PostgresStore> {
        Arc::clone(&self.store.lock().unwrap())
    }
}

impl Fixture for Database {
    fn store(&self) -> Arc<dyn StateStore> {
        self.store()
    }
}

#[async_trait]
impl Hooks for Database {
    async fn reopen(&self) {
        self.store().close().await;
        let again = open(&self.config, &self.clock).await;
        *self.store.lock().unwrap() = again;
    }
    fn operation_deadline(&self) -> Duration {
        self.config.operation_deadline
    }
    fn faults(&self) -> &dyn Faults {
        self.network.as_ref().unwrap()
    }
    async fn restart_server(&self) {
        self.server.as_ref().unwrap().restart().await;
    }
    fn jump_clock(&self, by_ms: i64) {
        self.clock.jump(by_ms);
    }
    async fn exhaust(&self) -> Held {
        let mut held = Vec::new();
        for _ in 0..self.config.max_connections {
            held.push(self.store().connection().await.unwrap());
        }
        Box::new(held)
    }
}

#[async_trait]
impl Harness<dyn Fixture> for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }
    fn unavailable(&self) -> Option<Unavailable> {
        shared::postgres().err().map(Into::into)
    }
    fn is_durable(&self) -> bool {
        true
    }
    fn hooks(&self) -> &'static [Hook] {
        &[Hook::Faults, Hook::Restart, Hook::Exhaustion, Hook::Clock]
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        Box::new(Database::shared(|_| {}, false).await)
    }
    async fn fresh_for(&self, hook: Hook) -> Box<dyn Fixture> {
        Box::new(match hook {
            Hook::Faults => {
                Database::shared(|config| config.operation_deadline = Duration::from_secs(2), true).await
            }
            Hook::Exhaustion => {
                let small = |config: &mut PostgresConfig| {
                    config.max_connections = 3;
                    config.operation_deadline = Duration::from_secs(2);
                    config.acquire_deadline = Duration::from_millis(500);
                };
                Database::shared(small, false).await
            }
            Hook::Restart => Database::of_its_own().await,
            Hook::Clock => Database::shared(|_| {}, false).await,
        })
    }
}

fn main() -> ExitCode {
    flames_state_conformance::run(Postgres)
}
