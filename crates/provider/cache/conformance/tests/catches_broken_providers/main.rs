//! The suite's own test: caches that are wrong in one way each, and the case that catches each.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flames_cache::{CacheCapabilities, CacheKey, CacheStore, CacheStoreExt, MAX_TTL, MAX_VALUE_BYTES};
use flames_cache_conformance::{Faults, Fixture, Harness, Hook, Hooks, Time, async_trait, suite};
use flames_cache_memory::MemoryCache;
use flames_clock::{Clock, SimulatedClock};
use flames_conformance_runner::{Caught, SimulatedNetwork, WrongProviders, caught};
use flames_error::{Error, ErrorKind, Result};

/// The deadline of each call.
const DEADLINE: Duration = Duration::from_secs(1);
/// What a request takes, and an answer.
const MESSAGE: u64 = 200;

/// Where a call broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// On the way there: nothing happened.
    Request,
    /// On the way back: it happened, and nobody told.
    Answer,
}

/// The one way in which a [`BrokenCache`] is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// It cannot compare and set, says so, and is right.
    NoCompareAndSet,
    /// It cannot compare and set, says so, and does it all the same.
    CompareAndSetUndeclared,
    EverythingForgotten,
    TimeToLiveIgnored,
    /// A newer value lives as long as the first.
    FirstTimeToLiveStays,
    ZeroMeansForever,
    FirstValueStays,
    DeleteDoesNothing,
    DeleteOfAbsentFails,
    /// Keys are compared without regard to case.
    KeysFold,
    EmptyValueIsAMiss,
    MissIsEmpty,
    ValueCut,
    /// What passes a limit is bent into it.
    LimitsBent,
    SetWithoutCompare,
    NoneIgnored,
    ExpiredStillCompares,
    CompareThenSet,
    SwappedValueLivesForever,
    /// A month is the longest time to live.
    LongTimesRefused,
    /// Whole seconds are the shortest.
    ShortTimesRounded,
    /// A value of the greatest length is refused.
    LongestValueRefused,
    SwapForNoTimeKeeps,
    /// An empty value does not replace another.
    EmptyValueNotSet,
    LostRequestsCalledDone,
    LostAnswersCalledUnavailable,
    /// Compare and set is done again when its answer was lost, and finds its own value.
    SwapsDoneTwice,
    WaitsForEver,
    /// After a stall nothing works any more.
    StaysStalled,
    /// A server that starts again has what it had before.
    OldFileRead,
}

#[derive(Debug)]
struct BrokenCache {
    flaw: Flaw,
    right: MemoryCache,
    seen: Mutex<BTreeMap<CacheKey, (Bytes, Duration)>>,
    network: SimulatedNetwork,
    was_stalled: AtomicBool,
}

/// What a caller is told of a change that broke.
fn told(lost: Lost) -> Error {
    match lost {
        Lost::Request => Error::unavailable("cache.call", "the connection was lost"),
        Lost::Answer => Error::new(ErrorKind::OutcomeUnknown, "cache.call", "the answer was lost"),
    }
}

impl BrokenCache {
    async fn there_and_back(&self) -> std::result::Result<(), Lost> {
        let mut connection = self.network.connect();
        let sent = tokio::time::timeout(DEADLINE, connection.send(MESSAGE)).await;
        if !sent.is_ok_and(|sent| sent.is_ok()) {
            return Err(Lost::Request);
        }
        let received = tokio::time::timeout(DEADLINE, connection.receive(MESSAGE)).await;
        received.is_ok_and(|received| received.is_ok()).then_some(()).ok_or(Lost::Answer)
    }

    /// Passes the network: whether the call is done, and what its caller is told if it broke.
    async fn pass(&self) -> (bool, Result<()>) {
        if self.is(Flaw::StaysStalled) && self.was_stalled.load(Ordering::SeqCst) {
            return (false, Err(told(Lost::Request)));
        }
        let started = tokio::time::Instant::now();
        let passed = self.there_and_back().await;
        if passed.is_err() && started.elapsed() >= DEADLINE {
            self.was_stalled.store(true, Ordering::SeqCst);
            if self.is(Flaw::WaitsForEver) {
                std::future::pending::<()>().await;
            }
        }
        match passed {
            Ok(()) => (true, Ok(())),
            Err(Lost::Request) if self.is(Flaw::LostRequestsCalledDone) => (false, Ok(())),
            Err(Lost::Answer) if self.is(Flaw::LostAnswersCalledUnavailable) => {
                (true, Err(told(Lost::Request)))
            }
            Err(lost) => (lost == Lost::Answer, Err(told(lost))),
        }
    }

    async fn restart(&self) {
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        for (key, (value, _)) in seen {
            let _ = self.right.delete(&key).await;
            if self.is(Flaw::OldFileRead) {
                self.right.set(&key, value, MAX_TTL).await.unwrap();
            }
        }
    }

    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn key(&self, key: &CacheKey) -> CacheKey {
        match self.flaw {
            Flaw::KeysFold => CacheKey::new(key.as_str().to_lowercase()).unwrap(),
            _ => key.clone(),
        }
    }

    fn bend(&self, value: &mut Bytes, ttl: &mut Duration) {
        match self.flaw {
            Flaw::LimitsBent => {
                value.truncate(MAX_VALUE_BYTES);
                *ttl = (*ttl).min(MAX_TTL);
            }
            Flaw::ValueCut => value.truncate(MAX_VALUE_BYTES - 1),
            Flaw::TimeToLiveIgnored | Flaw::ExpiredStillCompares => *ttl = MAX_TTL,
            Flaw::ZeroMeansForever if ttl.is_zero() => *ttl = MAX_TTL,
            _ => {}
        }
    }
}

#[async_trait]
impl CacheStore for BrokenCache {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn capabilities(&self) -> CacheCapabilities {
        capabilities(self.flaw)
    }

    async fn get(&self, key: &CacheKey) -> Result<Bytes> {
        self.pass().await.1.map_err(|error| error.with_kind(ErrorKind::Unavailable))?;
        let found = self.right.get(&self.key(key)).await;
        match (self.flaw, found) {
            (Flaw::EmptyValueIsAMiss, Ok(value)) if value.is_empty() => {
                Err(Error::new(ErrorKind::CacheMiss, "cache.get", "no value"))
            }
            (Flaw::MissIsEmpty, Err(error)) if error.kind() == ErrorKind::CacheMiss => Ok(Bytes::new()),
            (_, found) => found,
        }
    }

    async fn set(&self, key: &CacheKey, mut value: Bytes, mut ttl: Duration) -> Result<()> {
        self.bend(&mut value, &mut ttl);
        let first = self.seen.lock().unwrap().entry(key.clone()).or_insert((value.clone(), ttl)).clone();
        match self.flaw {
            Flaw::EverythingForgotten => ttl = Duration::ZERO,
            Flaw::FirstValueStays => value = first.0,
            Flaw::FirstTimeToLiveStays => ttl = first.1,
            Flaw::LongTimesRefused if ttl > Duration::from_secs(30 * 24 * 3_600) => {
                return Err(Error::invalid("cache.set", "ttl", "too long"));
            }
            Flaw::ShortTimesRounded if !ttl.is_zero() => ttl = ttl.max(Duration::from_secs(60)),
            Flaw::LongestValueRefused if value.len() == MAX_VALUE_BYTES => {
                return Err(Error::invalid("cache.set", "value", "too long"));
            }
            Flaw::EmptyValueNotSet if value.is_empty() && self.right.find(key).await?.is_some() => {
                return Ok(());
            }
            _ => {}
        }
        let (is_done, told) = self.pass().await;
        if is_done {
            self.right.set(&self.key(key), value, ttl).await?;
        }
        told
    }

    async fn delete(&self, key: &CacheKey) -> Result<()> {
        if self.is(Flaw::DeleteDoesNothing) {
            return Ok(());
        }
        if self.is(Flaw::DeleteOfAbsentFails) && self.right.find(key).await?.is_none() {
            return Err(Error::not_found("cache.delete", "cache_key", key.as_str()));
        }
        let (is_done, told) = self.pass().await;
        if is_done {
            self.right.delete(&self.key(key)).await?;
        }
        told
    }

    async fn compare_and_set(
        &self,
        key: &CacheKey,
        expected: Option<&Bytes>,
        mut value: Bytes,
        mut ttl: Duration,
    ) -> Result<bool> {
        self.bend(&mut value, &mut ttl);
        match self.flaw {
            Flaw::NoCompareAndSet => {
                return Err(Error::new(ErrorKind::NotSupported, "cache.compare_and_set", "not supported"));
            }
            Flaw::SetWithoutCompare => {
                self.right.set(key, value, ttl).await?;
                return Ok(true);
            }
            Flaw::NoneIgnored if expected.is_none() => {
                self.right.set(key, value, ttl).await?;
                return Ok(true);
            }
            Flaw::CompareThenSet => {
                let found = self.right.find(key).await?;
                tokio::task::yield_now().await;
                let matches = found.as_ref() == expected;
                if matches {
                    self.right.set(key, value, ttl).await?;
                }
                return Ok(matches);
            }
            Flaw::SwappedValueLivesForever => ttl = MAX_TTL,
            Flaw::SwapForNoTimeKeeps if ttl.is_zero() => ttl = MAX_TTL,
            _ => {}
        }
        let (is_done, told) = self.pass().await;
        if !is_done {
            return told.map(|()| true);
        }
        let did = self.right.compare_and_set(&self.key(key), expected, value.clone(), ttl).await?;
        if told.is_err() && self.is(Flaw::SwapsDoneTwice) {
            return self.right.compare_and_set(&self.key(key), expected, value, ttl).await;
        }
        told.map(|()| did)
    }
}

fn capabilities(flaw: Flaw) -> CacheCapabilities {
    CacheCapabilities {
        compare_and_set: !matches!(flaw, Flaw::NoCompareAndSet | Flaw::CompareAndSetUndeclared),
    }
}

struct Broken(Flaw);

struct Fresh {
    clock: Arc<SimulatedClock>,
    cache: Arc<BrokenCache>,
}

#[async_trait]
impl Harness<dyn Fixture> for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    fn hooks(&self) -> &'static [Hook] {
        &[Hook::Faults, Hook::Restart]
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let cache = Arc::new(BrokenCache {
            flaw: self.0,
            right: MemoryCache::new(Arc::<SimulatedClock>::clone(&clock)),
            seen: Mutex::default(),
            network: SimulatedNetwork::default(),
            was_stalled: AtomicBool::default(),
        });
        Box::new(Fresh { clock, cache })
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
        Duration::from_secs(10)
    }
}

#[async_trait]
impl Hooks for Fresh {
    fn operation_deadline(&self) -> Duration {
        DEADLINE
    }
    fn faults(&self) -> &dyn Faults {
        &self.cache.network
    }
    async fn restart_server(&self) {
        self.cache.restart().await;
    }
}

const CAUGHT: &Caught<Flaw> = caught![Flaw:
    EverythingForgotten => a_value_is_remembered_while_nothing_pushes_it_out;
    TimeToLiveIgnored => an_expired_value_is_a_miss, a_time_to_live_of_zero_forgets,
        random_operations_agree_with_a_model_that_may_forget;
    FirstTimeToLiveStays => a_newer_value_brings_its_own_time_to_live;
    ZeroMeansForever => a_time_to_live_of_zero_forgets;
    FirstValueStays => a_newer_value_replaces_the_older, what_was_set_is_read_or_missed_never_wrong;
    DeleteDoesNothing => a_deleted_key_is_a_miss, what_was_set_is_read_or_missed_never_wrong;
    DeleteOfAbsentFails => deleting_what_is_not_there_is_no_error;
    KeysFold => keys_are_apart;
    EmptyValueIsAMiss => an_empty_value_is_a_value;
    MissIsEmpty => a_missing_key_is_a_miss;
    ValueCut => the_longest_key_and_value_are_taken;
    LimitsBent => what_passes_a_limit_is_refused, what_passes_a_limit_is_refused_by_compare_and_set;
    SetWithoutCompare => compare_and_set_replaces_only_what_was_expected,
        random_operations_agree_with_a_model_that_may_forget;
    NoneIgnored => compare_and_set_of_none_needs_no_value;
    ExpiredStillCompares => an_expired_value_counts_as_none_in_a_compare_and_set;
    CompareThenSet => one_of_many_compare_and_sets_wins, a_storm_of_compare_and_sets_loses_no_step;
    SwappedValueLivesForever => compare_and_set_brings_its_own_time_to_live;
    LongTimesRefused => a_time_to_live_of_a_year_is_taken_and_one_of_a_nanosecond_is_soon_over;
    ShortTimesRounded => a_time_to_live_of_a_year_is_taken_and_one_of_a_nanosecond_is_soon_over;
    LongestValueRefused => each_limit_is_met_exactly_and_passed_by_one;
    SwapForNoTimeKeeps => compare_and_set_for_no_time_forgets;
    EmptyValueNotSet => random_operations_agree_with_a_model_that_may_forget;
    LostRequestsCalledDone => a_call_cut_at_any_byte_is_told_truthfully, no_call_reports_success_for_what_is_not_so;
    LostAnswersCalledUnavailable => a_call_cut_at_any_byte_is_told_truthfully,
        an_answer_that_never_comes_is_an_unknown_outcome;
    SwapsDoneTwice => a_call_cut_at_any_byte_is_told_truthfully;
    WaitsForEver => a_stalled_network_ends_every_call_within_its_deadline;
    StaysStalled => a_stalled_network_ends_every_call_within_its_deadline;
    OldFileRead => a_server_killed_under_load_makes_forget_and_never_lie;
    CompareAndSetUndeclared => without_the_capability_compare_and_set_says_so;
];

fn main() -> ExitCode {
    let broken = |flaw| suite(Broken(flaw), capabilities(flaw));
    let forgetful = &[
        "what_was_set_is_read_or_missed_never_wrong",
        "a_missing_key_is_a_miss",
        "a_time_to_live_of_zero_forgets",
        "random_operations_agree_with_a_model_that_may_forget",
        "a_call_cut_at_any_byte_is_told_truthfully",
    ];
    WrongProviders::new()
        .add("cache", broken, &[Flaw::None, Flaw::NoCompareAndSet], CAUGHT)
        .passes("cache", broken, Flaw::EverythingForgotten, forgetful)
        .run()
}
