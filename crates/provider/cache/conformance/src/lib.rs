//! The suite that every CacheStore must pass.
//!
//! An adapter implements [`Harness`] and [`Fixture`] in its `tests/conformance.rs` and calls [`run`] from `main`. Cases measure
//! time in [`Fixture::unit`]s: any length under simulated time, as short as the backend's timers allow under real time.
//!
//! A cache may forget anything at any time, so most cases would hold for one that forgets everything, too. The fixture brings a
//! cache that has room and no reason to forget; the cases say so where they need that.

// Cases are tests: a panic is how they fail.
#![allow(clippy::unwrap_used)]

mod compare_and_set;
mod limits;
mod values;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

pub use async_trait::async_trait;
use bytes::Bytes;
use flames_cache::{CacheCapabilities, CacheKey, CacheStore};
use flames_clock::Clock;
use flames_conformance_runner::{Row, Suite, cases, table};
pub use flames_conformance_runner::{Time, Unavailable, failures};
use flames_error::{ErrorKind, Result};

/// How an adapter is brought under test.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// The adapter's name, as its cache tells it.
    fn name(&self) -> &'static str;

    /// The time that the cases run in.
    fn time(&self) -> Time;

    /// What the cache can do, as it tells it itself.
    fn capabilities(&self) -> CacheCapabilities;

    /// Why the adapter cannot be tested here, known without connecting.
    fn unavailable(&self) -> Option<Unavailable> {
        None
    }

    /// An empty cache, for one case.
    async fn fresh(&self) -> Box<dyn Fixture>;
}

/// One fresh cache and its time.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The cache.
    fn cache(&self) -> Arc<dyn CacheStore>;

    /// The clock that moves with the cache's.
    fn clock(&self) -> &dyn Clock;

    /// The measure of the cases' times: at least ten times the finest step in which the cache judges a time to live.
    fn unit(&self) -> Duration;

    /// Lets `duration` pass for the cache.
    async fn advance(&self, duration: Duration) {
        self.clock().sleep(duration).await;
    }
}

fn rows() -> Vec<Row<Box<dyn Fixture>>> {
    table![
        values:
            what_was_set_is_read_or_missed_never_wrong,
            a_value_is_remembered_while_nothing_pushes_it_out,
            a_missing_key_is_a_miss,
            an_empty_value_is_a_value,
            keys_are_apart,
            a_newer_value_replaces_the_older,
            a_newer_value_brings_its_own_time_to_live,
            an_expired_value_is_a_miss,
            a_time_to_live_of_zero_forgets,
            a_deleted_key_is_a_miss,
            deleting_what_is_not_there_is_no_error;
        limits:
            what_passes_a_limit_is_refused,
            the_longest_key_and_value_are_taken;
        compare_and_set:
            compare_and_set_replaces_only_what_was_expected if compare_and_set,
            compare_and_set_of_none_needs_no_value if compare_and_set,
            an_expired_value_counts_as_none_in_a_compare_and_set if compare_and_set,
            compare_and_set_brings_its_own_time_to_live if compare_and_set,
            one_of_many_compare_and_sets_wins if compare_and_set,
            what_passes_a_limit_is_refused_by_compare_and_set if compare_and_set,
            without_the_capability_compare_and_set_says_so if no_compare_and_set,
    ]
}

/// The suite for one adapter.
pub fn suite(harness: impl Harness) -> Suite {
    let harness = Arc::new(harness);
    let fresh = Arc::clone(&harness);
    let lacks = |capability: &str| {
        let can = harness.capabilities().compare_and_set;
        match capability {
            "compare_and_set" if !can => Some("the cache has no compare_and_set".to_owned()),
            "no_compare_and_set" if can => Some("the cache has compare_and_set".to_owned()),
            _ => None,
        }
    };
    Suite {
        name: "cache",
        provider: harness.name(),
        unavailable: harness.unavailable(),
        time: harness.time(),
        cases: cases(rows(), lacks, move || {
            let harness = Arc::clone(&fresh);
            async move {
                let fixture = harness.fresh().await;
                assert_eq!(
                    fixture.cache().capabilities(),
                    harness.capabilities(),
                    "the harness tells the truth"
                );
                fixture
            }
        }),
    }
}

/// The whole of an adapter's `tests/conformance.rs` (`harness = false`): `fn main() -> ExitCode { run(Harness) }`.
pub fn run(harness: impl Harness) -> ExitCode {
    flames_conformance_runner::run(suite(harness))
}

/// What cases do over and over, in the words that they are read in.
struct Bench<'f> {
    fixture: &'f dyn Fixture,
    cache: Arc<dyn CacheStore>,
    key: CacheKey,
}

impl<'f> Bench<'f> {
    fn new(fixture: &'f dyn Fixture) -> Self {
        Self { fixture, cache: fixture.cache(), key: key("vm/1") }
    }

    /// A time to live that no case outlives by accident.
    fn long(&self) -> Duration {
        self.units(100)
    }

    fn units(&self, count: u32) -> Duration {
        self.fixture.unit() * count
    }

    async fn pass(&self, units: u32) {
        self.fixture.advance(self.units(units)).await;
    }

    async fn set_for(&self, value: &str, units: u32) {
        self.cache.set(&self.key, bytes(value), self.units(units)).await.unwrap();
    }

    async fn set(&self, value: &str) {
        self.set_for(value, 100).await;
    }

    async fn swap(&self, expected: Option<&str>, value: &str) -> bool {
        let expected = expected.map(bytes);
        let long = self.long();
        self.cache.compare_and_set(&self.key, expected.as_ref(), bytes(value), long).await.unwrap()
    }

    async fn is(&self, value: &str) {
        assert_eq!(self.cache.get(&self.key).await.unwrap(), bytes(value));
    }

    async fn is_missed(&self) {
        refused(self.cache.get(&self.key).await, ErrorKind::CacheMiss);
    }
}

fn key(text: &str) -> CacheKey {
    CacheKey::new(text).unwrap()
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T>, kind: ErrorKind) {
    assert_eq!(answer.unwrap_err().kind(), kind);
}

#[cfg(test)]
mod tests {
    use flames_conformance_runner::assert_table_is_complete;

    #[test]
    fn the_table_holds_every_case_written_and_every_case_promised() {
        let names: Vec<&str> = super::rows().iter().map(|row| row.name).collect();
        assert_table_is_complete(
            &names,
            &[include_str!("compare_and_set.rs"), include_str!("limits.rs"), include_str!("values.rs")],
            &[include_str!("../../src/lib.rs")],
        );
    }
}
