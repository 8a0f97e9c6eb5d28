//! CacheStore in memory: the reference answer.
//!
//! moka bounds it (the least recently used go first) and makes each change of one key atomic. Whether a value has expired is
//! judged here, by the injected clock: moka's own expiry follows the operating system's time and is not used. So an expired value
//! keeps its room until it is asked for or pushed out.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_cache::{CacheCapabilities, CacheKey, CacheStore, validate_value};
use flames_clock::{Clock, Monotonic};
use flames_error::{Error, ErrorKind, Result};
use moka::future::Cache;
use moka::ops::compute::{CompResult, Op};
use moka::policy::EvictionPolicy;

/// How many bytes [`MemoryCache::new`] keeps.
pub const DEFAULT_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// What an entry costs beyond its key and value: the entry, its `Arc`s and moka's bookkeeping, by their sizes on x86-64.
const ENTRY_BYTES: usize = 256;

/// A CacheStore that lives in this process. Clones share one cache.
#[derive(Clone)]
pub struct MemoryCache {
    clock: Arc<dyn Clock>,
    entries: Cache<String, Kept>,
}

#[derive(Clone)]
struct Kept {
    value: Bytes,
    until: Monotonic,
}

impl MemoryCache {
    /// An empty cache of at most [`DEFAULT_MAX_BYTES`], whose values expire by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::with_max_bytes(clock, DEFAULT_MAX_BYTES)
    }

    /// An empty cache of at most `max_bytes` (keys, values and what keeping them costs). What does not fit is forgotten at once.
    pub fn with_max_bytes(clock: Arc<dyn Clock>, max_bytes: u64) -> Self {
        let weight = |key: &String, kept: &Kept| {
            u32::try_from(key.len() + kept.value.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
        };
        let entries = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(weight)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { clock, entries }
    }

    fn is_alive(&self, kept: &Kept) -> bool {
        self.clock.monotonic() < kept.until
    }

    /// Changes one key by what it holds at that instant. Every write goes through here: moka orders these among themselves, but
    /// not with a plain insert.
    async fn change(
        &self,
        key: &CacheKey,
        decide: impl FnOnce(Option<&Bytes>) -> Op<Kept> + Send,
    ) -> CompResult<String, Kept> {
        self.entries
            .entry_by_ref(key.as_str())
            .and_compute_with(|entry| {
                let kept = entry.map(moka::Entry::into_value).filter(|kept| self.is_alive(kept));
                std::future::ready(decide(kept.as_ref().map(|kept| &kept.value)))
            })
            .await
    }

    /// The operation that leaves `value` there for `ttl` from now.
    fn keep(&self, value: Bytes, ttl: Duration) -> Op<Kept> {
        if ttl.is_zero() {
            return Op::Remove;
        }
        Op::Put(Kept { value, until: self.clock.monotonic().saturating_add(ttl) })
    }
}

impl Debug for MemoryCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryCache").field("entries", &self.entries.entry_count()).finish_non_exhaustive()
    }
}

#[async_trait]
impl CacheStore for MemoryCache {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> CacheCapabilities {
        CacheCapabilities { compare_and_set: true }
    }

    async fn get(&self, key: &CacheKey) -> Result<Bytes> {
        let missed = || {
            Error::new(ErrorKind::CacheMiss, "cache.get", "no value").with_resource("cache_key", key.as_str())
        };
        let kept = self.entries.get(key.as_str()).await.ok_or_else(missed)?;
        if self.is_alive(&kept) {
            return Ok(kept.value);
        }
        // Gives its room back, unless another value came meanwhile.
        self.change(key, |alive| if alive.is_none() { Op::Remove } else { Op::Nop }).await;
        Err(missed())
    }

    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Duration) -> Result<()> {
        validate_value(&value, ttl)?;
        self.change(key, |_| self.keep(value, ttl)).await;
        Ok(())
    }

    async fn delete(&self, key: &CacheKey) -> Result<()> {
        self.change(key, |_| Op::Remove).await;
        Ok(())
    }

    async fn compare_and_set(
        &self,
        key: &CacheKey,
        expected: Option<&Bytes>,
        value: Bytes,
        ttl: Duration,
    ) -> Result<bool> {
        validate_value(&value, ttl)?;
        let mut did = false;
        self.change(key, |current| {
            did = current == expected;
            if did { self.keep(value, ttl) } else { Op::Nop }
        })
        .await;
        Ok(did)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flames_clock::SimulatedClock;

    fn key(text: &str) -> CacheKey {
        CacheKey::new(text).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn it_forgets_rather_than_grow() {
        let cache = MemoryCache::with_max_bytes(Arc::new(SimulatedClock::at_fixed_start()), 100 * 1024);
        let hour = Duration::from_secs(3_600);
        for number in 0..1_000 {
            cache.set(&key(&format!("k{number}")), vec![0; 1024].into(), hour).await.unwrap();
        }
        cache.entries.run_pending_tasks().await;
        assert!(cache.entries.weighted_size() <= 100 * 1024);
        assert!(cache.entries.entry_count() > 50, "and keeps what fits");
        assert!(cache.get(&key("k999")).await.is_ok(), "the newest stays");
        assert!(cache.get(&key("k0")).await.is_err(), "the oldest went");
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_that_expired_gives_its_room_back_when_asked_for() {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let cache = MemoryCache::new(Arc::<SimulatedClock>::clone(&clock));
        cache.set(&key("k"), "v".into(), Duration::from_secs(1)).await.unwrap();
        clock.advance(Duration::from_secs(1)).await;
        assert!(cache.get(&key("k")).await.is_err());
        cache.entries.run_pending_tasks().await;
        assert_eq!(cache.entries.entry_count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_jumps_does_not_expire_anything() {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let cache = MemoryCache::new(Arc::<SimulatedClock>::clone(&clock));
        cache.set(&key("k"), "v".into(), Duration::from_secs(1)).await.unwrap();
        clock.jump_wall(86_400_000);
        assert_eq!(cache.get(&key("k")).await.unwrap(), "v");
    }
}
