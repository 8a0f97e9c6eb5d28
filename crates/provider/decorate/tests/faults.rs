//! What each fault does to a call.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_clock::{Clock, ClockExt, SimulatedClock};
use flames_decorate::{Decorated, Fault, FaultInjection, FaultPlan};
use flames_error::{Error, ErrorKind};
use flames_state::{Check, Commit, Key, StateStore, StateStoreExt};
use flames_state_memory::MemoryStore;

/// One fault for each commit, in turn; then none. Reads are left alone.
#[derive(Default)]
struct Script(Mutex<Vec<Fault>>);

impl FaultPlan for Script {
    fn decide(&self, provider: &'static str, operation: &'static str) -> Fault {
        assert_eq!(provider, "state");
        match operation {
            "commit" => self.0.lock().unwrap().pop().unwrap_or(Fault::None),
            _ => Fault::None,
        }
    }
}

struct Bench {
    clock: Arc<SimulatedClock>,
    store: Decorated<MemoryStore, FaultInjection>,
}

fn bench(faults: &[Fault]) -> Bench {
    let clock = Arc::new(SimulatedClock::at_fixed_start());
    let plan = Script(Mutex::new(faults.iter().rev().copied().collect()));
    let store = Decorated::new(Arc::new(MemoryStore::new()), FaultInjection::new(clock.clone(), plan));
    Bench { clock, store }
}

fn key() -> Key {
    Key::new("k").unwrap()
}

fn create() -> Commit {
    let mut commit = Commit::new();
    commit.check(Check::Absent(key())).put(key(), "v");
    commit
}

impl Bench {
    async fn fails(&self) -> (Error, Duration) {
        let start = self.clock.monotonic();
        let error = self.store.commit(&create()).await.unwrap_err();
        (error, self.clock.monotonic().saturating_since(start))
    }

    async fn is_applied(&self) -> bool {
        self.store.get(&key()).await.unwrap().is_some()
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_fault_the_call_goes_through() {
    let bench = bench(&[]);
    bench.store.commit(&create()).await.unwrap();
    assert!(bench.is_applied().await);
}

#[tokio::test(start_paused = true)]
async fn failing_before_applies_nothing() {
    let bench = bench(&[Fault::FailBefore(ErrorKind::Unavailable)]);
    let (error, took) = bench.fails().await;
    assert_eq!((error.kind(), error.operation()), (ErrorKind::Unavailable, "state.commit"));
    assert_eq!(took, Duration::ZERO);
    assert!(!bench.is_applied().await);
}

#[tokio::test(start_paused = true)]
async fn failing_after_applies_and_loses_the_answer() {
    let lost = Fault::FailAfter(ErrorKind::OutcomeUnknown);
    let bench = bench(&[lost, lost]);
    let (error, _) = bench.fails().await;
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(error.context(), [("injected", "after".to_owned()), ("applied", "ok".to_owned())]);
    assert!(bench.is_applied().await);

    let (error, _) = bench.fails().await;
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "a refusal is an answer, too, and lost");
    assert_eq!(error.context()[1], ("applied", "conflict".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn whoever_commits_the_same_again_learns_of_a_lost_answer() {
    let bench = bench(&[Fault::FailAfter(ErrorKind::OutcomeUnknown)]);
    let outcome = bench.store.commit_knowing(&create(), &key(), 3).await.unwrap();
    assert_eq!(outcome, None, "applied, and the version lost with the answer");
    assert!(bench.is_applied().await);
}

#[tokio::test(start_paused = true)]
async fn hanging_takes_its_time_and_applies_nothing() {
    let bench = bench(&[Fault::Hang(Duration::from_secs(30))]);
    let (error, took) = bench.fails().await;
    assert_eq!((error.kind(), took), (ErrorKind::Unavailable, Duration::from_secs(30)));
    assert!(!bench.is_applied().await);
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_a_deadline_is_not_held_by_a_call_that_hangs() {
    let bench = bench(&[Fault::Hang(Duration::from_secs(3_600))]);
    let limit = Duration::from_secs(5);
    let commit = create();
    assert!(bench.clock.timeout(limit, bench.store.commit(&commit)).await.is_err());
    assert!(!bench.is_applied().await);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_call_is_applied_when_its_time_has_come() {
    let bench = bench(&[Fault::Delay(Duration::from_secs(30))]);
    let commit = create();
    let (applied, seen_meanwhile) = futures::join!(bench.store.commit(&commit), async {
        bench.clock.sleep(Duration::from_secs(29)).await;
        bench.is_applied().await
    });
    applied.unwrap();
    assert!(!seen_meanwhile);
    assert!(bench.is_applied().await);
}
