//! The NATS adapter under the suite that every WorkQueue must pass, each case in a stream of its own on the server that FLAMES_TEST_NATS
//! names.
//!
//! Not held to the cases about an exhausted pool (there is one connection, which all calls share) and about a wall clock that is set (the
//! server's judges, and local ones play no part).

// What fails here fails the case.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_clock::{Clock, RandomExt, SystemClock, SystemRandom};
use flames_queue::WorkQueue;
use flames_queue_conformance::{Faults, Fixture, Harness, Hook, Hooks, Unavailable, async_trait};
use flames_queue_nats::{NatsConfig, NatsQueue};
use flames_test_servers::{CutProxy, OwnServer, shared};

/// The deadline of operations in cases that break something.
const SHORT: Duration = Duration::from_millis(1_500);

struct Nats;

struct Fresh {
    config: NatsConfig,
    queue: Mutex<Arc<NatsQueue>>,
    clock: SystemClock,
    network: Option<CutProxy>,
    /// The URL at which the stream is removed at the end: of the shared server alone.
    shared: Option<String>,
    server: Option<OwnServer<flames_test_servers::Nats>>,
}

async fn open(config: &NatsConfig) -> Arc<NatsQueue> {
    let clock = Arc::new(SystemClock::new());
    Arc::new(NatsQueue::open(config.clone(), clock, Arc::new(SystemRandom)).await.unwrap())
}

impl Fresh {
    async fn new(config: NatsConfig) -> Self {
        let queue = Mutex::new(open(&config).await);
        let clock = SystemClock::new();
        Self { config, queue, clock, network: None, shared: None, server: None }
    }

    /// In a stream of its own on the shared server.
    async fn shared() -> Self {
        let url = shared::nats().unwrap();
        let prefix = format!("t{:016x}", SystemRandom.next_u64());
        let mut fresh = Self::new(NatsConfig { prefix, ..NatsConfig::at(url.clone()) }).await;
        fresh.shared = Some(url);
        fresh
    }

    /// As [`Fresh::shared`], over a network that breaks.
    async fn breakable() -> Self {
        let url = shared::nats().unwrap();
        let (network, through) = CutProxy::before_url(&url).await.unwrap();
        let prefix = format!("t{:016x}", SystemRandom.next_u64());
        let config = NatsConfig { prefix, operation_deadline: SHORT, ..NatsConfig::at(through) };
        let mut fresh = Self::new(config).await;
        fresh.shared = Some(url);
        fresh.network = Some(network);
        fresh
    }

    async fn over_a_server_of_its_own() -> Self {
        let server = OwnServer::<flames_test_servers::Nats>::start().await;
        let config = NatsConfig { operation_deadline: SHORT, ..NatsConfig::at(server.url()) };
        let mut fresh = Self::new(config).await;
        fresh.server = Some(server);
        fresh
    }

    fn queue(&self) -> Arc<NatsQueue> {
        Arc::clone(&self.queue.lock().unwrap())
    }
}

#[async_trait]
impl Harness<dyn Fixture> for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }
    fn unavailable(&self) -> Option<Unavailable> {
        shared::nats().err().map(Into::into)
    }
    fn is_durable(&self) -> bool {
        true
    }
    fn hooks(&self) -> &'static [Hook] {
        &[Hook::Faults, Hook::Restart]
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        Box::new(Fresh::shared().await)
    }
    async fn fresh_for(&self, hook: Hook) -> Box<dyn Fixture> {
        Box::new(match hook {
            Hook::Faults => Fresh::breakable().await,
            Hook::Restart => Fresh::over_a_server_of_its_own().await,
            Hook::Exhaustion | Hook::Clock => Fresh::shared().await,
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
        self.queue().close().await;
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
}

impl Drop for Fresh {
    /// Deletes the case's stream: the shared server outlives it.
    fn drop(&mut self) {
        let (Some(url), stream) = (self.shared.take(), self.config.stream()) else { return };
        let removal = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = async_nats::connect(url).await.unwrap();
                async_nats::jetstream::new(client).delete_stream(stream).await.unwrap();
            });
        });
        // After a case that failed the server may be gone too; the case's own message is what counts then.
        let _ = removal.join();
    }
}

fn main() -> ExitCode {
    flames_queue_conformance::run(Nats)
}
