//! What goes wrong with calls, drawn from the seed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::{Random, RandomExt, SeededRandom};
use flames_decorate::{Fault, FaultPlan};
use flames_error::ErrorKind;

/// How often each fault fired, by what it hit.
pub type Histogram = BTreeMap<String, u64>;

/// Faults from a seed, counted.
#[derive(Debug)]
pub(crate) struct Faults {
    random: SeededRandom,
    on: AtomicBool,
    fired: Mutex<Histogram>,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            random: SeededRandom::new(seed ^ 0xfa_0175),
            on: AtomicBool::new(false),
            fired: Mutex::default(),
        })
    }

    pub(crate) fn switch(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, what: impl Into<String>) {
        *self.fired.lock().unwrap_or_else(PoisonError::into_inner).entry(what.into()).or_default() += 1;
    }

    pub(crate) fn histogram(&self) -> Histogram {
        self.fired.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn random(&self) -> &dyn Random {
        &self.random
    }

    /// Whether something that happens once in `of` happens now. Never while faults are off.
    pub(crate) fn strikes(&self, of: u64) -> bool {
        self.is_on() && self.random.below(of) == 0
    }
}

/// Whether an operation changes something, so that its answer can be lost after it was applied.
fn changes_something(operation: &str) -> bool {
    matches!(
        operation,
        "commit"
            | "trim_log"
            | "enqueue"
            | "extend"
            | "ack"
            | "nack"
            | "park"
            | "requeue"
            | "prepare"
            | "start"
            | "pause"
            | "resume"
            | "update"
            | "stop"
            | "destroy"
    )
}

impl FaultPlan for Faults {
    fn decide(&self, provider: &'static str, operation: &'static str) -> Fault {
        let once_in = match (provider, changes_something(operation)) {
            ("state", true) => 25,
            ("state", false) => 120,
            ("vmm", _) => 40,
            _ => 60,
        };
        if !self.strikes(once_in) {
            return Fault::None;
        }
        let moment = Duration::from_millis(1 + self.random.below(3_000));
        let (name, fault) = match self.random.below(if changes_something(operation) { 5 } else { 3 }) {
            0 => ("unavailable", Fault::FailBefore(ErrorKind::Unavailable)),
            1 => ("delayed", Fault::Delay(moment)),
            2 => ("hangs", Fault::Hang(moment)),
            3 => ("unknown, applied", Fault::FailAfter(ErrorKind::OutcomeUnknown)),
            _ => ("unknown, not applied", Fault::FailBefore(ErrorKind::OutcomeUnknown)),
        };
        self.count(format!("{provider}.{operation} {name}"));
        fault
    }
}

/// A plan that several providers share.
pub(crate) struct Shared(pub(crate) Arc<Faults>);

impl FaultPlan for Shared {
    fn decide(&self, provider: &'static str, operation: &'static str) -> Fault {
        self.0.decide(provider, operation)
    }
}
