//! The suite that every CacheStore must pass.
//!
//! An adapter implements [`Harness`] and [`Fixture`] in its `tests/conformance.rs` and calls [`run`] from `main`. Cases measure
//! time in [`Fixture::unit`]s: any length under simulated time, as short as the backend's timers allow under real time.
//!
//! A cache may forget anything at any time, so most cases would hold for one that forgets everything, too. The fixture brings a
//! cache that has room and no reason to forget; the cases say so where they need that.

// Cases are tests: a panic is how they fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod compare_and_set;
mod faults;
mod limits;
mod model;
mod values;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_cache::{CacheCapabilities, CacheKey, CacheStore};
use flames_clock::Clock;
pub use flames_conformance_runner::{Faults, Harness, Hook, Hooks, Time, Unavailable, async_trait, failures};
use flames_conformance_runner::{Interface, Row, Suite, table};
use flames_error::{ErrorKind, Result};

/// One fresh cache and its time.
#[async_trait]
pub trait Fixture: Hooks {
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

fn interface() -> Interface<dyn Fixture> {
    let rows: Vec<Row<Box<dyn Fixture>>> = table![
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
            a_time_to_live_of_a_year_is_taken_and_one_of_a_nanosecond_is_soon_over,
            a_deleted_key_is_a_miss,
            deleting_what_is_not_there_is_no_error;
        limits:
            what_passes_a_limit_is_refused,
            the_longest_key_and_value_are_taken,
            each_limit_is_met_exactly_and_passed_by_one;
        model:
            random_operations_agree_with_a_model_that_may_forget;
        compare_and_set:
            compare_and_set_replaces_only_what_was_expected if compare_and_set,
            compare_and_set_of_none_needs_no_value if compare_and_set,
            an_expired_value_counts_as_none_in_a_compare_and_set if compare_and_set,
            compare_and_set_brings_its_own_time_to_live if compare_and_set,
            compare_and_set_for_no_time_forgets if compare_and_set,
            one_of_many_compare_and_sets_wins if compare_and_set,
            a_storm_of_compare_and_sets_loses_no_step if compare_and_set,
            what_passes_a_limit_is_refused_by_compare_and_set if compare_and_set,
            without_the_capability_compare_and_set_says_so if no_compare_and_set;
        faults:
            a_call_cut_at_any_byte_is_told_truthfully if faults,
            no_call_reports_success_for_what_is_not_so if faults,
            an_answer_that_never_comes_is_an_unknown_outcome if faults,
            a_stalled_network_ends_every_call_within_its_deadline if faults,
            a_server_killed_under_load_makes_forget_and_never_lie if restart,
    ];
    Interface { name: "cache", noun: "cache", rows }
}

/// The suite for one adapter, whose cache can do what `told` says, as it tells it itself.
pub fn suite(harness: impl Harness<dyn Fixture>, told: CacheCapabilities) -> Suite {
    let lacks = |capability: &str| match capability {
        "compare_and_set" => (!told.compare_and_set).then(|| "the cache has no compare_and_set".to_owned()),
        "no_compare_and_set" => told.compare_and_set.then(|| "the cache has compare_and_set".to_owned()),
        unknown => panic!("the table names a capability that does not exist: {unknown}"),
    };
    interface().suite_with(harness, lacks, async move |fixture| {
        assert_eq!(fixture.cache().capabilities(), told, "the harness tells the truth");
    })
}

/// The whole of an adapter's `tests/conformance.rs` (`harness = false`): `fn main() -> ExitCode { run(Adapter, …) }`.
pub fn run(harness: impl Harness<dyn Fixture>, told: CacheCapabilities) -> ExitCode {
    flames_conformance_runner::run(suite(harness, told))
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
        let names: Vec<&str> = super::interface().rows.iter().map(|row| row.name).collect();
        assert_table_is_complete(
            &names,
            &[
                include_str!("compare_and_set.rs"),
                include_str!("faults.rs"),
                include_str!("limits.rs"),
                include_str!("model.rs"),
                include_str!("values.rs"),
            ],
            &[include_str!("../../src/lib.rs")],
        );
    }
}
