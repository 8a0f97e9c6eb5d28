//! The state suite's cases about broken networks, over the memory store behind injected faults: each fault does to a call what a network
//! would.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_clock::SimulatedClock;
use flames_conformance_runner::failures;
use flames_decorate::{Decorated, Fault, FaultInjection, FaultPlan};
use flames_error::ErrorKind;
use flames_state::StateStore;
use flames_state_conformance::{Faults, Fixture, Harness, Held, Hook, Hooks, Time, async_trait, suite};
use flames_state_memory::MemoryStore;

const DEADLINE: Duration = Duration::from_secs(1);

/// What is broken, as one connection would have it that carries all calls.
#[derive(Debug, Default)]
struct Weather {
    cut_next: bool,
    budget: Option<u64>,
    passed: u64,
    stalled: bool,
    answers_stalled: bool,
    exhausted: bool,
    cuts: u64,
}

#[derive(Debug, Clone, Default)]
struct Network {
    weather: Arc<Mutex<Weather>>,
    /// The lie: a commit whose answer was lost is said to be `Unavailable`.
    is_dishonest: bool,
}

impl Network {
    fn set(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.weather.lock().unwrap());
    }

    fn lost_answer(&self, operation: &str) -> Fault {
        let changes = matches!(operation, "commit" | "trim_log");
        Fault::FailAfter(if changes && !self.is_dishonest {
            ErrorKind::OutcomeUnknown
        } else {
            ErrorKind::Unavailable
        })
    }
}

impl FaultPlan for Network {
    fn decide(&self, _provider: &'static str, operation: &'static str) -> Fault {
        let mut weather = self.weather.lock().unwrap();
        if weather.exhausted {
            return Fault::FailBefore(ErrorKind::Exhausted);
        }
        if weather.stalled {
            return Fault::Hang(DEADLINE);
        }
        if weather.answers_stalled {
            return self.lost_answer(operation);
        }
        // Request and answer of each call, about.
        let bytes: u64 = match operation {
            "get" => 150,
            "scan" => 7_000,
            "read_log" => 5_000,
            _ => 300,
        };
        let left = weather.budget.map(|budget| budget.saturating_sub(weather.passed));
        weather.passed += bytes;
        if weather.cut_next || left.is_some_and(|left| left < bytes) {
            weather.cuts += 1;
            weather.passed = 0;
            // In the request, or in the answer.
            let in_the_request = if std::mem::take(&mut weather.cut_next) {
                weather.cuts.is_multiple_of(2)
            } else {
                left < Some(bytes / 2)
            };
            return if in_the_request {
                Fault::FailBefore(ErrorKind::Unavailable)
            } else {
                self.lost_answer(operation)
            };
        }
        Fault::None
    }
}

#[async_trait]
impl Faults for Network {
    async fn cut_connections(&self) {
        self.set(|weather| weather.cut_next = true);
    }
    async fn cut_after(&self, bytes: u64) {
        self.set(|weather| {
            weather.budget = Some(bytes);
            weather.passed = 0;
        });
    }
    async fn stall(&self) {
        self.set(|weather| weather.stalled = true);
    }
    async fn stall_answers(&self) {
        self.set(|weather| weather.answers_stalled = true);
    }
    async fn heal(&self) {
        self.set(|weather| *weather = Weather { cuts: weather.cuts, ..Weather::default() });
    }
}

struct Flaky {
    network: Network,
    store: Arc<dyn StateStore>,
}

impl Fixture for Flaky {
    fn store(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.store)
    }
}

#[async_trait]
impl Hooks for Flaky {
    fn operation_deadline(&self) -> Duration {
        DEADLINE
    }
    fn faults(&self) -> &dyn Faults {
        &self.network
    }
    async fn exhaust(&self) -> Held {
        struct Until(Network);
        impl Drop for Until {
            fn drop(&mut self) {
                self.0.set(|weather| weather.exhausted = false);
            }
        }
        self.network.set(|weather| weather.exhausted = true);
        Box::new(Until(self.network.clone()))
    }
}

struct BehindFaults {
    is_dishonest: bool,
}

#[async_trait]
impl Harness<dyn Fixture> for BehindFaults {
    fn name(&self) -> &'static str {
        "memory"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    fn hooks(&self) -> &'static [Hook] {
        &[Hook::Faults, Hook::Exhaustion]
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let network = Network { is_dishonest: self.is_dishonest, ..Network::default() };
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let injection = FaultInjection::new(clock, network.clone());
        Box::new(Flaky { network, store: Arc::new(Decorated::new(Arc::new(MemoryStore::new()), injection)) })
    }
}

#[test]
fn a_store_behind_honest_faults_passes_its_suite() {
    let suite = suite(BehindFaults { is_dishonest: false });
    let through_faults = suite.cases.iter().filter(|case| case.ignored.is_none()).count();
    assert!(through_faults > 55, "{through_faults} cases, those through faults among them");
    assert_eq!(failures(suite.cases, suite.time), std::collections::BTreeMap::new());
}

#[test]
fn a_fault_that_lies_about_what_was_applied_is_caught_by_the_suite() {
    let suite = suite(BehindFaults { is_dishonest: true });
    let caught: BTreeSet<_> = failures(suite.cases, suite.time).into_keys().collect();
    for case in [
        "a_commit_cut_at_any_byte_is_told_truthfully",
        "an_answer_that_never_comes_is_an_unknown_outcome",
        "no_commit_reports_success_for_what_is_not_there",
        "an_error_that_is_definite_changed_nothing",
        "histories_under_faults_are_linearizable",
    ] {
        assert!(caught.contains(case), "{case} is not among {caught:?}");
    }
}
