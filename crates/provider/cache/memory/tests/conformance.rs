//! The suite, on the memory cache under simulated time.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use flames_cache::{CacheCapabilities, CacheStore};
use flames_cache_conformance::{Fixture, Harness, Time, async_trait};
use flames_cache_memory::MemoryCache;
use flames_clock::{Clock, SimulatedClock};

struct Memory;

struct Fresh {
    clock: Arc<SimulatedClock>,
    cache: MemoryCache,
}

#[async_trait]
impl Harness for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    fn capabilities(&self) -> CacheCapabilities {
        CacheCapabilities { compare_and_set: true }
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        Box::new(Fresh { cache: MemoryCache::new(Arc::<SimulatedClock>::clone(&clock)), clock })
    }
}

#[async_trait]
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
    flames_cache_conformance::run(Memory)
}
