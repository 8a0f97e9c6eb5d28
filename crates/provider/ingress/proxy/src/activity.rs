//! What a client's connection does, so that one that does nothing is closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Milliseconds count from the connection's start; 0 in `head_began` means that no head is under way.
#[derive(Debug)]
pub(crate) struct Activity {
    start: Instant,
    in_flight: AtomicUsize,
    last_moved: AtomicU64,
    head_began: AtomicU64,
}

/// Why a connection is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Fine,
    /// No request for long: it ends in order.
    Idle,
    /// It keeps the proxy waiting: it ends at once.
    Stalled,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            in_flight: AtomicUsize::new(0),
            last_moved: AtomicU64::new(0),
            head_began: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Something of a request or response moved.
    pub(crate) fn moved(&self) {
        self.last_moved.store(self.now(), Ordering::Relaxed);
    }

    /// Bytes came in. While no request is in flight they begin the head of one.
    pub(crate) fn bytes_came(&self) {
        if self.in_flight.load(Ordering::Relaxed) == 0 && self.head_began.load(Ordering::Relaxed) == 0 {
            self.head_began.store(self.now().max(1), Ordering::Relaxed);
        }
    }

    /// `head`: how long a head may take, for HTTP/1. `stall`: how long nothing may move while requests are in flight.
    pub(crate) fn verdict(&self, head: Option<Duration>, idle: Duration, stall: Duration) -> Verdict {
        let now = self.now();
        let since = |moment: u64| Duration::from_millis(now.saturating_sub(moment));
        let moved = since(self.last_moved.load(Ordering::Relaxed));
        let began = self.head_began.load(Ordering::Relaxed);
        if self.in_flight.load(Ordering::Acquire) > 0 {
            if moved >= stall { Verdict::Stalled } else { Verdict::Fine }
        } else if head.is_some_and(|head| began > 0 && since(began) >= head) {
            Verdict::Stalled
        } else if moved >= idle {
            Verdict::Idle
        } else {
            Verdict::Fine
        }
    }
}

/// A request of the connection, from its head to the end of its response.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Activity>);

impl UnderWay {
    pub(crate) fn begin(activity: &Arc<Activity>) -> Self {
        activity.in_flight.fetch_add(1, Ordering::AcqRel);
        activity.head_began.store(0, Ordering::Relaxed);
        activity.moved();
        Self(Arc::clone(activity))
    }

    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.0
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.moved();
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
