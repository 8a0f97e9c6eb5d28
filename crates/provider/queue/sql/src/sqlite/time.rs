//! The two readings that an operation is judged by.

use std::sync::Arc;
use std::time::Duration;

use flames_clock::{Clock, Monotonic};

use crate::values::milliseconds;

/// What the time is, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// The wall clock's: for delays.
    pub(crate) wall: i64,
    /// For leases.
    pub(crate) lease: i64,
}

impl Now {
    /// When a lease that ends at `leased_until` ends by the wall clock.
    pub(crate) fn ends_at(self, leased_until: i64) -> i64 {
        self.wall.saturating_add(leased_until.saturating_sub(self.lease))
    }
}

/// Delays are judged by the wall clock. Leases are not: they are judged by the monotonic clock, counted on from what the wall clock showed
/// when the file was opened, so that a wall clock that jumps never gives one job to two workers.
#[derive(Debug)]
pub(crate) struct LeaseClock {
    clock: Arc<dyn Clock>,
    /// What the lease clock showed at `origin`.
    at_origin: i64,
    origin: Monotonic,
}

impl LeaseClock {
    /// A clock that shows the wall clock's time now, or `newest_lease` when that is later: the wall clock was set back since that lease was
    /// given, and the leases in the file shall end when they would have.
    pub(crate) fn new(clock: Arc<dyn Clock>, newest_lease: Option<i64>) -> Self {
        let (wall, origin) = (clock.now().as_millisecond(), clock.monotonic());
        Self { clock, at_origin: newest_lease.map_or(wall, |newest| newest.max(wall)), origin }
    }

    pub(crate) fn now(&self) -> Now {
        let passed: Duration = self.clock.monotonic().saturating_since(self.origin);
        Now {
            wall: self.clock.now().as_millisecond(),
            lease: self.at_origin.saturating_add(milliseconds(passed)),
        }
    }
}
