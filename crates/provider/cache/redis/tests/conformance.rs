//! Redis keeps the promises of `CacheStore`. Against the server that `FLAMES_TEST_REDIS` names; the case that kills a server starts
//! one of its own.

// Helpers of tests may panic.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use flames_cache::{CacheCapabilities, CacheStore};
use flames_cache_conformance::{Faults, Fixture, Harness, Hook, Hooks, Unavailable, async_trait};
use flames_cache_redis::{RedisCache, RedisConfig};
use flames_clock::{Clock, RandomExt, SystemClock, SystemRandom};
use flames_test_servers::{FaultProxy, OwnServer, Redis, shared};

struct OverRedis;

struct Fresh {
    clock: Arc<SystemClock>,
    cache: Arc<RedisCache>,
    network: Option<FaultProxy>,
    server: Option<OwnServer<Redis>>,
}

const DEADLINE: Duration = Duration::from_secs(1);

impl Fresh {
    async fn new(url: String) -> Self {
        let clock = Arc::new(SystemClock::new());
        let unique: String = SystemRandom.bytes::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
        let config =
            RedisConfig { prefix: format!("test:{unique}:"), call: DEADLINE, ..RedisConfig::new(url) };
        let cache = RedisCache::open(config, Arc::<SystemClock>::clone(&clock)).await.unwrap();
        Self { clock, cache: Arc::new(cache), network: None, server: None }
    }
}

#[async_trait]
impl Harness<dyn Fixture> for OverRedis {
    fn name(&self) -> &'static str {
        "redis"
    }
    fn unavailable(&self) -> Option<Unavailable> {
        shared::redis().err().map(Into::into)
    }
    fn hooks(&self) -> &'static [Hook] {
        &[Hook::Faults, Hook::Restart]
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        Box::new(Fresh::new(shared::redis().unwrap()).await)
    }
    async fn fresh_for(&self, hook: Hook) -> Box<dyn Fixture> {
        match hook {
            Hook::Faults => {
                let (proxy, through) = FaultProxy::before_url(&shared::redis().unwrap()).await.unwrap();
                let mut fresh = Fresh::new(through).await;
                fresh.network = Some(proxy);
                Box::new(fresh)
            }
            Hook::Restart => {
                let server = OwnServer::<Redis>::start().await;
                let mut fresh = Fresh::new(server.url()).await;
                fresh.server = Some(server);
                Box::new(fresh)
            }
            Hook::Exhaustion | Hook::Clock => self.fresh().await,
        }
    }
}

impl Fixture for Fresh {
    fn cache(&self) -> Arc<dyn CacheStore> {
        self.cache.clone()
    }
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
    fn unit(&self) -> Duration {
        Duration::from_millis(120)
    }
}

#[async_trait]
impl Hooks for Fresh {
    fn operation_deadline(&self) -> Duration {
        DEADLINE
    }
    fn faults(&self) -> &dyn Faults {
        self.network.as_ref().unwrap()
    }
    async fn restart_server(&self) {
        self.server.as_ref().unwrap().restart().await;
    }
}

fn main() -> ExitCode {
    flames_cache_conformance::run(OverRedis, CacheCapabilities { compare_and_set: true })
}
