//! The suite, on the memory cache under simulated time.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use flames_cache::{CacheCapabilities, CacheStore};
use flames_cache_conformance::{Fixture, Harness, Hooks, Time, async_trait};
use flames_cache_memory::MemoryCache;
use flames_clock::{Clock, SimulatedClock};

struct Memory;

struct Fresh {
    clock: Arc<SimulatedClock>,
    cache: MemoryCache,
}

#[async_trait]
impl Harness<dyn Fixture> for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        Box::new(Fresh { cache: MemoryCache::new(Arc::<SimulatedClock>::clone(&clock)), clock })
    }
}

impl Hooks for Fresh {}

impl Fixture for Fresh {
    fn cache(&self) -> Arc<dyn CacheStore> {
        Arc::new(self.cache.clone())
    }
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
    fn unit(&self) -> Duration {
        Duration::from_secs(10)
    }
}

fn main() -> ExitCode {
    flames_cache_conformance::run(Memory, CacheCapabilities { compare_and_set: true })
}
