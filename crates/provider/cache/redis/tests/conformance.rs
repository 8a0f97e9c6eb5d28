//! Redis keeps the promises of `CacheStore`. Against the server that `FLAMES_TEST_REDIS` names; the case that kills a server starts
//! one of its own.

// Helpers of tests may panic.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flames_cache::{CacheCapabilities, CacheStore};
use flames_cache_conformance::{Faults, Fixture, Harness, Hook, Time, Unavailable, async_trait};
use flames_cache_redis::{RedisCache, RedisConfig};
use flames_clock::{Clock, RandomExt, SystemClock, SystemRandom};
use flames_test_servers::{Direction, Fault, FaultProxy, Redis, shared};
use tempfile::TempDir;

struct OverRedis;

struct Fresh {
    clock: Arc<SystemClock>,
    cache: Arc<RedisCache>,
    network: Option<Network>,
    server: Option<(Arc<Redis>, TempDir)>,
}

/// A proxy between the cache and the server.
struct Network {
    proxy: FaultProxy,
    cuts: AtomicU64,
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
impl Harness for OverRedis {
    fn name(&self) -> &'static str {
        "redis"
    }
    fn time(&self) -> Time {
        Time::Real
    }
    fn capabilities(&self) -> CacheCapabilities {
        CacheCapabilities { compare_and_set: true }
    }
    fn unavailable(&self) -> Option<Unavailable> {
        let missing = shared::redis().err()?;
        Some(Unavailable { service: missing.service.to_owned(), reason: missing.reason })
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
                let url = shared::redis().unwrap();
                let upstream: SocketAddr =
                    url.trim_start_matches("redis://").trim_end_matches('/').parse().unwrap();
                let proxy = FaultProxy::start(upstream).await.unwrap();
                let mut fresh = Fresh::new(format!("redis://{}", proxy.address())).await;
                fresh.network = Some(Network { proxy, cuts: AtomicU64::new(0) });
                Box::new(fresh)
            }
            Hook::Restart => {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().to_owned();
                let server = tokio::task::spawn_blocking(move || Redis::start(path)).await.unwrap().unwrap();
                let server = Arc::new(server);
                let mut fresh = Fresh::new(server.url()).await;
                fresh.server = Some((server, folder));
                Box::new(fresh)
            }
        }
    }
}

#[async_trait]
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
    fn operation_deadline(&self) -> Duration {
        DEADLINE
    }
    fn faults(&self) -> &dyn Faults {
        self.network.as_ref().unwrap()
    }
    async fn restart_server(&self) {
        let server = Arc::clone(&self.server.as_ref().unwrap().0);
        tokio::task::spawn_blocking(move || server.restart()).await.unwrap().unwrap();
    }
}

#[async_trait]
impl Faults for Network {
    async fn cut_connections(&self) {
        self.proxy.cut_now();
    }
    async fn cut_after(&self, bytes: u64) {
        // A fault belongs to a connection from its first byte: those that are open make way for new ones. Requests are cut, and
        // answers, in turn.
        let is_request = self.cuts.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        let direction = if is_request { Direction::ToServer } else { Direction::ToClient };
        self.proxy.fail_next(Fault::CutAfter { bytes, direction });
        self.proxy.cut_now();
    }
    async fn stall(&self) {
        self.proxy.stall(true);
    }
    async fn stall_answers(&self) {
        self.proxy.swallow(Direction::ToClient);
    }
    async fn heal(&self) {
        self.proxy.heal();
    }
}

fn main() -> ExitCode {
    flames_cache_conformance::run(OverRedis)
}
