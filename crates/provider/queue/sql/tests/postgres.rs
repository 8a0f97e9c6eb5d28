//! The Postgres adapter under the suite that every WorkQueue must pass, each case in a schema of its own on the server that
//! `FLAMES_TEST_POSTGRES` names.

// What fails here fails the case.
#![allow(clippy::unwrap_used)]

#[path = "server/schema.rs"]
mod schema;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_clock::{Clock, SystemClock};
use flames_queue::WorkQueue;
use flames_queue_conformance::{Faults, Fixture, Harness, Held, Hook, Hooks, Unavailable, async_trait};
use flames_queue_sql::{PostgresQueue, PostgresQueueConfig};
use flames_test_servers::{CutProxy, OwnServer, shared};
use schema::Schema;

struct Postgres;

struct Fresh {
    config: PostgresQueueConfig,
    queue: Mutex<Arc<PostgresQueue>>,
    clock: SystemClock,
    network: Option<CutProxy>,
    // Behind the queue: dropped after it.
    _schema: Option<Schema>,
    server: Option<OwnServer<flames_test_servers::Postgres>>,
}

async fn open(config: &PostgresQueueConfig) -> Arc<PostgresQueue> {
    Arc::new(PostgresQueue::open(config.clone(), Arc::new(SystemClock::new())).await.unwrap())
}

impl Fresh {
    /// In a schema of its own on the shared server.
    async fn shared(change: impl FnOnce(&mut PostgresQueueConfig)) -> Self {
        let schema = Schema::new();
        let mut config = schema.config();
        change(&mut config);
        let queue = Mutex::new(open(&config).await);
        let clock = SystemClock::new();
        Self { config, queue, clock, network: None, _schema: Some(schema), server: None }
    }

    /// As [`Fresh::shared`], over a network that breaks.
    async fn breakable() -> Self {
        let (network, through) = CutProxy::before_url(&shared::postgres().unwrap()).await.unwrap();
        let fresh = Self::shared(|config| {
            config.url = through;
            config.operation_deadline = Duration::from_millis(1_500);
        });
        Self { network: Some(network), ..fresh.await }
    }

    async fn over_a_server_of_its_own() -> Self {
        let server = OwnServer::<flames_test_servers::Postgres>::start().await;
        let mut config = PostgresQueueConfig::at(server.url());
        config.operation_deadline = Duration::from_millis(1_500);
        Self {
            queue: Mutex::new(open(&config).await),
            config,
            clock: SystemClock::new(),
            network: None,
            _schema: None,
            server: Some(server),
        }
    }

    fn queue(&self) -> Arc<PostgresQueue> {
        Arc::clone(&self.queue.lock().unwrap())
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
        &[Hook::Faults, Hook::Restart, Hook::Exhaustion]
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        Box::new(Fresh::shared(|_| {}).await)
    }
    async fn fresh_for(&self, hook: Hook) -> Box<dyn Fixture> {
        Box::new(match hook {
            Hook::Faults => Fresh::breakable().await,
            Hook::Restart => Fresh::over_a_server_of_its_own().await,
            Hook::Exhaustion => {
                let small = |config: &mut PostgresQueueConfig| {
                    config.max_connections = 3;
                    config.operation_deadline = Duration::from_secs(1);
                };
                Fresh::shared(small).await
            }
            Hook::Clock => Fresh::shared(|_| {}).await,
        })
    }
}

impl Fixture for Fresh {
    fn queue(&self) -> Arc<dyn WorkQueue> {
        self.queue()
    }
    fn clock(&self) -> &dyn Clock {
        &self.clock
    }
    fn unit(&self) -> Duration {
        Duration::from_millis(300)
    }
}

#[async_trait]
impl Hooks for Fresh {
    async fn reopen(&self) {
        self.queue().close().await.unwrap();
        let again = open(&self.config).await;
        *self.queue.lock().unwrap() = again;
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
    async fn exhaust(&self) -> Held {
        let mut held = Vec::new();
        for _ in 0..self.config.max_connections {
            held.push(self.queue().occupy().await.unwrap());
        }
        Box::new(held)
    }
}

fn main() -> ExitCode {
    flames_queue_conformance::run(Postgres)
}
