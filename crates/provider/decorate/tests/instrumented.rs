//! What an observer is told.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flames_cache::{CacheKey, CacheStore};
use flames_cache_memory::MemoryCache;
use flames_clock::{ClockExt, SimulatedClock};
use flames_decorate::{Call, Decorated, Fault, FaultInjection, Instrumentation, Observed, Observer, Outcome};
use flames_error::ErrorKind;

#[derive(Default)]
struct Notes(Mutex<Vec<Observed>>);

impl Observer for Notes {
    fn observe(&self, observed: Observed) {
        self.0.lock().unwrap().push(observed);
    }
}

impl Notes {
    /// What was told since the last time: operation, outcome, seconds.
    fn take(&self) -> Vec<(&'static str, &'static str, u64)> {
        let told = std::mem::take(&mut *self.0.lock().unwrap());
        told.iter()
            .map(|told| (told.call.operation, told.outcome.as_str(), told.duration.as_secs()))
            .collect()
    }
}

/// A cache whose reads take two seconds, under an observer.
fn cache() -> (Arc<SimulatedClock>, Arc<Notes>, Arc<dyn CacheStore>) {
    let (clock, notes) = (Arc::new(SimulatedClock::at_fixed_start()), Arc::new(Notes::default()));
    let slow = FaultInjection::new(clock.clone(), |_, operation| match operation {
        "get" => Fault::Delay(Duration::from_secs(2)),
        _ => Fault::None,
    });
    let slow = Decorated::new(Arc::new(MemoryCache::new(clock.clone())), slow);
    let cache = Decorated::new(Arc::new(slow), Instrumentation::new(clock.clone(), notes.clone()));
    (clock, notes, Arc::new(cache))
}

fn key() -> CacheKey {
    CacheKey::new("k").unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_call_is_told_once_with_its_outcome_and_duration() {
    let (_, notes, cache) = cache();
    assert!(cache.get(&key()).await.is_err());
    cache.set(&key(), Bytes::new(), Duration::from_secs(60)).await.unwrap();
    cache.get(&key()).await.unwrap();
    assert!(cache.set(&key(), Bytes::new(), Duration::MAX).await.is_err());
    assert_eq!(
        notes.take(),
        [("get", "cache_miss", 2), ("set", "ok", 0), ("get", "ok", 2), ("set", "invalid_input", 0)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_is_named_by_interface_adapter_and_operation() {
    let (_, notes, cache) = cache();
    cache.delete(&key()).await.unwrap();
    let expected =
        Call { provider: "cache", adapter: "memory", operation: "delete", full_name: "cache.delete" };
    let told = notes.0.lock().unwrap().clone();
    assert_eq!(told, [Observed { call: expected, outcome: Outcome::Ok, duration: Duration::ZERO }]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_its_caller_gave_up_is_told_as_abandoned() {
    let (clock, notes, cache) = cache();
    let key = key();
    assert!(clock.timeout(Duration::from_secs(1), cache.get(&key)).await.is_err());
    assert_eq!(notes.take(), [("get", "abandoned", 1)]);
    drop(cache.get(&key));
    assert_eq!(notes.take(), [], "a call that was never polled did not begin");
}

#[tokio::test(start_paused = true)]
async fn outcomes_have_the_names_of_their_kinds() {
    assert_eq!(Outcome::Ok.as_str(), "ok");
    for kind in ErrorKind::ALL {
        assert_eq!(Outcome::Error(kind).as_str(), kind.as_str());
    }
}
