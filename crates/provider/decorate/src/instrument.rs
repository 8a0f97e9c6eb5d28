//! Calls that are counted and timed.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::{Clock, Monotonic};
use flames_error::{ErrorKind, Result};

use crate::{Call, Interceptor};

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// With an answer.
    Ok,
    /// With an error of this kind. A miss of a cache is one, too.
    Error(ErrorKind),
    /// The caller gave up: it dropped the call before there was an answer.
    Abandoned,
}

impl Outcome {
    /// The outcome's name in snake case, for the label of a metric: `ok`, `abandoned` or the error's kind.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error(kind) => kind.as_str(),
            Self::Abandoned => "abandoned",
        }
    }
}

/// One call that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Which call it was.
    pub call: Call,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took, by the injected clock's monotonic time.
    pub duration: Duration,
}

/// Is told of each call that ended.
pub trait Observer: Send + Sync + 'static {
    /// Counts the call. Called on the path of the call itself: it must be quick and must not block or panic.
    fn observe(&self, observed: Observed);
}

impl<F: Fn(Observed) + Send + Sync + 'static> Observer for F {
    fn observe(&self, observed: Observed) {
        self(observed);
    }
}

/// Tells an [`Observer`] of each call: exactly once, when it has ended or was given up. A call that is never polled did not begin.
#[derive(Clone)]
pub struct Instrumentation {
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
}

impl Instrumentation {
    /// Tells `observer`; durations are by `clock`.
    pub fn new(clock: Arc<dyn Clock>, observer: Arc<dyn Observer>) -> Self {
        Self { clock, observer }
    }
}

/// A call under way, which is told of when it is dropped.
struct UnderWay<'i> {
    instrumentation: &'i Instrumentation,
    call: Call,
    since: Monotonic,
    outcome: Outcome,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let Self { instrumentation, call, since, outcome } = *self;
        let duration = instrumentation.clock.monotonic().saturating_since(since);
        instrumentation.observer.observe(Observed { call, outcome, duration });
    }
}

impl Interceptor for Instrumentation {
    async fn intercept<T: Send>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let since = self.clock.monotonic();
        let mut under_way = UnderWay { instrumentation: self, call, since, outcome: Outcome::Abandoned };
        let answer = work.await;
        under_way.outcome =
            answer.as_ref().map_or_else(|error| Outcome::Error(error.kind()), |_| Outcome::Ok);
        answer
    }
}
