//! Waiting longer each time.

use std::time::Duration;

use flames_clock::{Random, RandomExt};

use crate::config::Timings;

/// Waits that double, up to a most, each cut by up to a half at random so that many who failed together do not come back together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(timings: &Timings) -> Self {
        Self::between(timings.backoff_first, timings.backoff_most)
    }

    pub(crate) fn between(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// The next wait.
    pub(crate) fn next(&mut self, random: &dyn Random) -> Duration {
        let whole = self.next.min(self.most);
        self.next = (whole * 2).min(self.most);
        let half = u64::try_from(whole.as_nanos() / 2).unwrap_or(u64::MAX);
        whole - Duration::from_nanos(random.below(half))
    }

    /// Begins anew, after a success.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use flames_clock::SeededRandom;

    use super::*;

    #[test]
    fn waits_grow_to_the_most_and_begin_anew_after_a_success() {
        let timings = Timings::default();
        let random = SeededRandom::new(1);
        let mut backoff = Backoff::new(&timings);
        let waits: Vec<_> = (0..20).map(|_| backoff.next(&random)).collect();
        assert!(waits[0] <= timings.backoff_first && waits[0] >= timings.backoff_first / 2);
        assert!(waits.iter().all(|wait| *wait <= timings.backoff_most));
        assert!(waits[19] >= timings.backoff_most / 2);
        backoff.reset();
        assert!(backoff.next(&random) <= timings.backoff_first);
    }
}
