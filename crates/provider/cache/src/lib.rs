//! CacheStore: values that may be forgotten at any time, as an interface.
//!
//! The system is correct, only slower, when every get misses; a test of the testbed runs it so. What a cache does remember
//! it remembers right: guarantees are proven by cases of `flames-cache-conformance` (named behind each method).

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 512;
/// The longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// The longest time to live.
pub const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);

/// A cache key: 1 to [`MAX_KEY_BYTES`] bytes of printable ASCII without spaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey(String);

impl CacheKey {
    /// Checks and wraps a key. `InvalidInput` when it is none.
    pub fn new(key: impl Into<String>) -> Result<Self> {
        let key = key.into();
        if (1..=MAX_KEY_BYTES).contains(&key.len()) && key.bytes().all(|b| (0x21..0x7f).contains(&b)) {
            Ok(Self(key))
        } else {
            Err(Error::invalid(
                "cache.key",
                "key",
                "A cache key is 1 to 512 bytes of printable ASCII without spaces.",
            ))
        }
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for CacheKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// `InvalidInput` when value or time to live pass a limit. Every adapter calls it before it stores.
pub fn validate_value(value: &Bytes, ttl: Duration) -> Result<()> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Error::invalid("cache.set", "value", "A cached value is at most 1 MiB."));
    }
    if ttl > MAX_TTL {
        return Err(Error::invalid("cache.set", "ttl", "A time to live is at most 366 days."));
    }
    Ok(())
}

/// What a cache can do beyond the minimum. Known without connecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheCapabilities {
    /// Whether [`CacheStore::compare_and_set`] works.
    pub compare_and_set: bool,
}

/// Values that may be forgotten. See the crate's docs for the guarantees.
#[async_trait]
pub trait CacheStore: Debug + Send + Sync + 'static {
    /// The adapter's name (`memory`, `redis`).
    fn name(&self) -> &'static str;

    /// What this cache can do.
    fn capabilities(&self) -> CacheCapabilities;

    /// The value last set, unless it expired or was forgotten.
    ///
    /// Errors: `CacheMiss`; `Unavailable`.
    ///
    /// Cases: `what_was_set_is_read_or_missed_never_wrong`, `a_missing_key_is_a_miss`, `an_expired_value_is_a_miss`,
    /// `an_empty_value_is_a_value`, `random_operations_agree_with_a_model_that_may_forget`. Where there is a server:
    /// `a_server_killed_under_load_makes_forget_and_never_lie`, `a_stalled_network_ends_every_call_within_its_deadline`.
    async fn get(&self, key: &CacheKey) -> Result<Bytes>;

    /// Remembers `value` for at most `ttl`. A `ttl` of zero forgets the key.
    ///
    /// Errors: `InvalidInput` when a limit is passed; `Exhausted`; `Unavailable`; `OutcomeUnknown`.
    ///
    /// Cases: `a_newer_value_replaces_the_older`, `a_newer_value_brings_its_own_time_to_live`, `a_time_to_live_of_zero_forgets`,
    /// `a_time_to_live_of_a_year_is_taken_and_one_of_a_nanosecond_is_soon_over`, `what_passes_a_limit_is_refused`,
    /// `each_limit_is_met_exactly_and_passed_by_one`. Where there is a network: `a_call_cut_at_any_byte_is_told_truthfully`,
    /// `no_call_reports_success_for_what_is_not_so`, `an_answer_that_never_comes_is_an_unknown_outcome`.
    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Duration) -> Result<()>;

    /// Forgets a key. No error when it is not there.
    ///
    /// Errors: `Unavailable`; `OutcomeUnknown`.
    ///
    /// Cases: `a_deleted_key_is_a_miss`, `deleting_what_is_not_there_is_no_error`.
    async fn delete(&self, key: &CacheKey) -> Result<()>;

    /// Sets `value` if the key's value is `expected` (none: no value) at that instant, and tells whether it did. A forgotten value
    /// counts as none, so this gives no mutual exclusion across a forgetful cache: use the StateStore for that.
    ///
    /// Errors: `NotSupported`; `InvalidInput`; `Unavailable`; `OutcomeUnknown`.
    ///
    /// Cases: `compare_and_set_replaces_only_what_was_expected`, `compare_and_set_of_none_needs_no_value`,
    /// `compare_and_set_for_no_time_forgets`, `one_of_many_compare_and_sets_wins`, `a_storm_of_compare_and_sets_loses_no_step`, `without_the_capability_compare_and_set_says_so`.
    async fn compare_and_set(
        &self,
        key: &CacheKey,
        expected: Option<&Bytes>,
        value: Bytes,
        ttl: Duration,
    ) -> Result<bool>;
}

/// Conveniences over any [`CacheStore`].
#[async_trait]
pub trait CacheStoreExt: CacheStore {
    /// As [`CacheStore::get`], with none for a miss.
    async fn find(&self, key: &CacheKey) -> Result<Option<Bytes>> {
        match self.get(key).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == ErrorKind::CacheMiss => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl<C: CacheStore + ?Sized> CacheStoreExt for C {}

#[async_trait]
impl<C: CacheStore + ?Sized> CacheStore for Arc<C> {
    fn name(&self) -> &'static str {
        (**self).name()
    }
    fn capabilities(&self) -> CacheCapabilities {
        (**self).capabilities()
    }
    async fn get(&self, key: &CacheKey) -> Result<Bytes> {
        (**self).get(key).await
    }
    async fn set(&self, key: &CacheKey, value: Bytes, ttl: Duration) -> Result<()> {
        (**self).set(key, value, ttl).await
    }
    async fn delete(&self, key: &CacheKey) -> Result<()> {
        (**self).delete(key).await
    }
    async fn compare_and_set(
        &self,
        key: &CacheKey,
        expected: Option<&Bytes>,
        value: Bytes,
        ttl: Duration,
    ) -> Result<bool> {
        (**self).compare_and_set(key, expected, value, ttl).await
    }
}
