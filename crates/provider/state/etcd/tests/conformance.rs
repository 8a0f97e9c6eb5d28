//! The etcd adapter under the suite that every StateStore must pass.

// What fails here fails the case.
#![allow(clippy::unwrap_used, clippy::print_stderr, unreachable_pub)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_state::{Entry, Key, StateStore};
use flames_state_conformance::{
    Faults, Fixture, Harness, Held, Hook, Hooks, SettableClock, Unavailable, async_trait,
};
use flames_state_etcd::{EtcdConfig, EtcdStore};
use flames_test_servers::{CutProxy, OwnServer, shared};

struct Etcd;

struct Cluster {
    config: EtcdConfig,
    clock: Arc<SettableClock>,
    store: Mutex<Arc<EtcdStore>>,
    network: Option<Arc<CutProxy>>,
    server: Option<OwnServer<flames_test_servers::Etcd>>,
}

async fn open(config: &EtcdConfig, clock: &Arc<SettableClock>) -> Arc<EtcdStore> {
    Arc::new(EtcdStore::open(config.clone(), clock.clone()).await.unwrap())
}

/// The shared cluster, with a prefix that no other fixture has. What is left below it goes with the cluster.
fn own_prefix() -> EtcdConfig {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mut config = EtcdConfig::at(shared::etcd().unwrap());
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    config.prefix = format!("test/{}.{number}.{started}/", std::process::id());
    config
}

impl Cluster {
    async fn shared() -> Self {
        let config = own_prefix();
        let clock = Arc::new(SettableClock::new());
        let store = Mutex::new(open(&config, &clock).await);
        Self { config, clock, store, network: None, server: None }
    }

    async fn breakable(change: impl FnOnce(&mut EtcdConfig)) -> Self {
        let mut config = own_prefix();
        let (network, through) = CutProxy::before_url(&config.endpoints[0]).await.unwrap();
        let network = Arc::new(network);
        config.endpoints = vec![through];
        config.operation_deadline = Duration::from_secs(2);
        change(&mut config);
        let clock = Arc::new(SettableClock::new());
        let store = Mutex::new(open(&config, &clock).await);
        Self { config, clock, store, network: Some(network), server: None }
    }

    async fn of_its_own() -> Self {
        let server = OwnServer::<flames_test_servers::Etcd>::start().await;
        let mut config = EtcdConfig::at(server.url());
        config.operation_deadline = Duration::from_secs(2);
        let clock = Arc::new(SettableClock::new());
        let store = Mutex::new(open(&config, &clock).await);
        Self { config, clock, store, network: None, server: Some(server) }
    }

    fn store(&self) -> Arc<EtcdStore> {
        Arc::clone(&self.store.lock().unwrap())
    }
}

/// Requests that have every turn and no answer.
struct Hanging {
    tasks: Vec<tokio::task::JoinHandle<flames_error::Result<Option<Entry>>>>,
    network: Arc<CutProxy>,
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.network.heal_now();
    }
}

impl Fixture for Cluster {
    fn store(&self) -> Arc<dyn StateStore> {
        self.store()
    }
}

#[async_trait]
impl Hooks for Cluster {
    async fn reopen(&self) {
        self.store().close().await;
        let again = open(&self.config, &self.clock).await;
        *self.store.lock().unwrap() = again;
    }
    fn operation_deadline(&self) -> Duration {
        self.config.operation_deadline
    }
    fn faults(&self) -> &dyn Faults {
        &**self.network.as_ref().unwrap()
    }
    async fn restart_server(&self) {
        self.server.as_ref().unwrap().restart().await;
    }
    fn jump_clock(&self, by_ms: i64) {
        self.clock.jump(by_ms);
    }
    async fn exhaust(&self) -> Held {
        let network = Arc::clone(self.network.as_ref().unwrap());
        network.stall().await;
        let hanging = (0..self.config.max_requests).map(|_| {
            let store = self.store();
            tokio::spawn(async move { store.get(&Key::new("hangs").unwrap()).await })
        });
        let hanging = Hanging { tasks: hanging.collect(), network };
        // They have their turns.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Box::new(hanging)
    }
}

#[async_trait]
impl Harness<dyn Fixture> for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }
    fn unavailable(&self) -> Option<Unavailable> {
        shared::etcd().err().map(Into::into)
    }
    fn is_durable(&self) -> bool {
        true
    }
    fn hooks(&self) -> &'static [Hook] {
        &[Hook::Faults, Hook::Restart, Hook::Exhaustion, Hook::Clock]
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        Box::new(Cluster::shared().await)
    }
    async fn fresh_for(&self, hook: Hook) -> Box<dyn Fixture> {
        Box::new(match hook {
            Hook::Faults => Cluster::breakable(|_| {}).await,
            Hook::Exhaustion => {
                let small = |config: &mut EtcdConfig| {
                    config.max_requests = 3;
                    config.acquire_deadline = Duration::from_millis(300);
                    config.operation_deadline = Duration::from_secs(4);
                };
                Cluster::breakable(small).await
            }
            Hook::Restart => Cluster::of_its_own().await,
            Hook::Clock => Cluster::shared().await,
        })
    }
}

fn main() -> ExitCode {
    flames_state_conformance::run(Etcd)
}
