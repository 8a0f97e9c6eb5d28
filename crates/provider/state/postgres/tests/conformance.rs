//! The Postgres adapter under the suite that every StateStore must pass.

// What fails here fails the case.
#![allow(clippy::unwrap_used, clippy::print_stderr, unreachable_pub)]

use std::net::ToSocketAddrs;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use flames_state::StateStore;
use flames_state_conformance::{Faults, Fixture, Harness, Held, Hook, TurnableClock, Unavailable};
use flames_state_postgres::{PostgresConfig, PostgresStore};
use flames_test_servers::shared;

// Shared with other adapters' tests, which use more of it.
#[allow(dead_code)]
#[path = "support/network.rs"]
mod network;
#[path = "support/schema.rs"]
mod schema;

use network::Network;
use schema::Schema;

struct Postgres;

struct Database {
    config: PostgresConfig,
    clock: Arc<TurnableClock>,
    store: Mutex<Arc<PostgresStore>>,
    network: Option<Network>,
    // Behind the store: dropped after it.
    _schema: Option<Schema>,
    server: Option<Arc<flames_test_servers::Postgres>>,
    _folder: Option<tempfile::TempDir>,
}

async fn open(config: &PostgresConfig, clock: &Arc<TurnableClock>) -> Arc<PostgresStore> {
    Arc::new(PostgresStore::open(config.clone(), clock.clone()).await.unwrap())
}

/// The server's address, from `postgres://user:password@address/database`.
fn address_in(url: &str) -> &str {
    url.rsplit_once('@').unwrap().1.split('/').next().unwrap()
}

impl Database {
    async fn shared(change: impl FnOnce(&mut PostgresConfig), breakable: bool) -> Self {
        let schema = Schema::new(&shared::postgres().unwrap()).await;
        let mut config = PostgresConfig::at(&schema.url);
        config.schema.clone_from(&schema.name);
        let network = if breakable {
            let server = address_in(&schema.url);
            let network = Network::before(server.to_socket_addrs().unwrap().next().unwrap()).await;
            config.url = schema.url.replace(server, &network.address().to_string());
            Some(network)
        } else {
            None
        };
        change(&mut config);
        let clock = Arc::new(TurnableClock::new());
        let store = Mutex::new(open(&config, &clock).await);
        Self { config, clock, store, network, _schema: Some(schema), server: None, _folder: None }
    }

    async fn of_its_own() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let start = tokio::task::spawn_blocking(move || flames_test_servers::Postgres::start(path));
        let server = Arc::new(start.await.unwrap().unwrap());
        let mut config = PostgresConfig::at(server.url());
        config.operation_deadline = Duration::from_secs(2);
        let clock = Arc::new(TurnableClock::new());
        let store = Mutex::new(open(&config, &clock).await);
        Self {
            config,
            clock,
            store,
            network: None,
            _schema: None,
            server: Some(server),
            _folder: Some(folder),
        }
    }

    fn store(&self) -> Arc<PostgresStore> {
        Arc::clone(&self.store.lock().unwrap())
    }
}

#[async_trait]
impl Fixture for Database {
    fn store(&self) -> Arc<dyn StateStore> {
        self.store()
    }
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
        let server = Arc::clone(self.server.as_ref().unwrap());
        tokio::task::spawn_blocking(move || server.restart()).await.unwrap().unwrap();
    }
    fn turn_clock_back(&self, by: Duration) {
        self.clock.turn_back(by);
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
impl Harness for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }
    fn unavailable(&self) -> Option<Unavailable> {
        let missing = shared::postgres().err()?;
        Some(Unavailable { service: missing.service.to_owned(), reason: missing.reason })
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
