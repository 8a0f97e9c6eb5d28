//! The cache.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_cache::{CacheCapabilities, CacheKey, CacheStore, MAX_VALUE_BYTES, validate_value};
use flames_clock::{Clock, ClockExt};
use flames_error::{Error, ErrorKind, Result};
use redis::{RedisResult, Script};

use crate::config::{OPEN, RedisConfig};
use crate::error::{Failure, Reached, of_command, unreachable};
use crate::link::{Link, Wire};

/// One step on one key, so that it is atomic and can run on whatever node of a cluster has the key. `ARGV`: whether a value is
/// expected, it, the new value, its time to live in milliseconds (0: forget).
const COMPARE_AND_SET: &str = r"
local current = redis.call('GET', KEYS[1])
if ARGV[1] == '1' then
  if current ~= ARGV[2] then return 0 end
elseif current then
  return 0
end
if ARGV[4] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
end
return 1
";

/// A CacheStore in Redis or Valkey. Clones share one connection.
#[derive(Clone)]
pub struct RedisCache {
    link: Arc<Link>,
    compare_and_set: Arc<Script>,
}

impl fmt::Debug for RedisCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCache").field("config", self.link.config()).finish_non_exhaustive()
    }
}

impl RedisCache {
    /// A cache that connects when it is first used.
    ///
    /// Errors: `InvalidInput` when a setting cannot work.
    pub fn new(config: RedisConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        let link = Arc::new(Link::new(config, clock)?);
        Ok(Self { link, compare_and_set: Arc::new(Script::new(COMPARE_AND_SET)) })
    }

    /// As [`RedisCache::new`], and connects now, to find wrong settings early.
    ///
    /// Errors, each in one line that names the setting: also `PermissionDenied` (wrong user or password) and `Unavailable` (not
    /// reachable), both within the configured times.
    pub async fn open(config: RedisConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        let cache = Self::new(config, clock)?;
        let asked = cache
            .call(OPEN, true, async |mut wire, _| redis::cmd("PING").query_async::<String>(&mut wire).await)
            .await;
        match asked.map_err(Failure::of_read) {
            Ok(_) => Ok(cache),
            Err(error) => {
                let line = error.message().to_owned();
                Err(error.with_user_message(line))
            }
        }
    }

    /// Runs `command` on the shared connection, within the deadline. What only reads is tried once more on a new connection when the
    /// old one turned out to be lost; what changes something only when it certainly was not done.
    async fn call<T, C, F>(&self, operation: &'static str, only_reads: bool, command: C) -> Result<T, Failure>
    where
        C: Fn(Wire, Arc<str>) -> F + Send + Sync,
        F: Future<Output = RedisResult<T>> + Send,
        T: Send,
    {
        let config = self.link.config();
        let began = self.link.clock().monotonic();
        let mut is_second = false;
        loop {
            let left = config.call.saturating_sub(self.link.clock().monotonic().saturating_since(began));
            let linked = match self.link.clock().timeout(left, self.link.get(operation)).await {
                Ok(Ok(linked)) => linked,
                Ok(Err(error)) => return Err(not_sent(error)),
                Err(deadline) => {
                    let error = unreachable(config, operation, "no connection in time").with_source(deadline);
                    return Err(not_sent(error));
                }
            };
            let left = config.call.saturating_sub(self.link.clock().monotonic().saturating_since(began));
            let asked = command(linked.wire.clone(), Arc::clone(&linked.prefix));
            let failure = match self.link.clock().timeout(left, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => of_command(config, operation, error),
                Err(deadline) => {
                    // What is behind it in the pipeline would wait, too.
                    self.link.give_up(&linked);
                    return Err(Failure {
                        reached: Reached::Perhaps,
                        breaks_connection: true,
                        error: unreachable(config, operation, "no answer in time").with_source(deadline),
                    });
                }
            };
            if failure.breaks_connection {
                self.link.give_up(&linked);
            }
            let may_repeat = only_reads || failure.reached == Reached::Refused;
            if is_second || !failure.breaks_connection || !may_repeat {
                return Err(failure);
            }
            is_second = true;
        }
    }
}

fn not_sent(error: Error) -> Failure {
    Failure { reached: Reached::Refused, breaks_connection: false, error }
}

fn named(prefix: &str, key: &CacheKey) -> String {
    format!("{prefix}{key}")
}

/// In whole milliseconds, rounded up: a value that is to live lives. Never more than a year of them.
fn milliseconds(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[async_trait]
impl CacheStore for RedisCache {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn capabilities(&self) -> CacheCapabilities {
        CacheCapabilities { compare_and_set: true }
    }

    async fn get(&self, key: &CacheKey) -> Result<Bytes> {
        const OPERATION: &str = "cache.get";
        let found = self
            .call(OPERATION, true, async |mut wire, prefix| {
                redis::cmd("GET").arg(named(&prefix, key)).query_async::<Option<Bytes>>(&mut wire).await
            })
            .await
            .map_err(Failure::of_read)?;
        match found {
            Some(value) if value.len() <= MAX_VALUE_BYTES => Ok(value),
            Some(_) => Err(Error::new(ErrorKind::Corrupt, OPERATION, "redis: the value is none of ours")
                .with_resource("cache_key", key.as_str())),
            None => Err(Error::new(ErrorKind::CacheMiss, OPERATION, "no value")
                .with_resource("cache_key", key.as_str())),
        }
    }

    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Duration) -> Result<()> {
        validate_value(&value, ttl)?;
        if ttl.is_zero() {
            return self.delete(key).await;
        }
        self.call("cache.set", false, async |mut wire, prefix| {
            redis::cmd("SET")
                .arg(named(&prefix, key))
                .arg(&value[..])
                .arg("PX")
                .arg(milliseconds(ttl))
                .query_async::<()>(&mut wire)
                .await
        })
        .await
        .map_err(Failure::of_change)
    }

    async fn delete(&self, key: &CacheKey) -> Result<()> {
        self.call("cache.delete", false, async |mut wire, prefix| {
            redis::cmd("DEL").arg(named(&prefix, key)).query_async::<()>(&mut wire).await
        })
        .await
        .map_err(Failure::of_change)
    }

    async fn compare_and_set(
        &self,
        key: &CacheKey,
        expected: Option<&Bytes>,
        value: Bytes,
        ttl: Duration,
    ) -> Result<bool> {
        validate_value(&value, ttl)?;
        self.call("cache.compare_and_set", false, async |mut wire, prefix| {
            self.compare_and_set
                .key(named(&prefix, key))
                .arg(u8::from(expected.is_some()))
                .arg(expected.map_or(&[][..], |expected| &expected[..]))
                .arg(&value[..])
                .arg(milliseconds(ttl))
                .invoke_async::<bool>(&mut wire)
                .await
        })
        .await
        .map_err(Failure::of_change)
    }
}
