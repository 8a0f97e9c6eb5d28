//! The server's clock, as seen from here.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::{Clock, Monotonic, Timestamp};

/// How long a sample is preferred over one that took longer.
const SAMPLE_AGE: Duration = Duration::from_secs(30);

/// By how many milliseconds a clock was set back that seems to be earlier, and is not only known better.
const SET_BACK: i64 = 1_000;

/// Tells the server's time without asking it each time: its answers to other questions carry it, and between them this process's
/// monotonic clock runs on. So a wall clock that jumps here changes nothing, and all processes judge by one clock, each to within half
/// the round trip of its best sample and the drift since.
#[derive(Debug)]
pub(crate) struct ServerTime {
    clock: Arc<dyn Clock>,
    sample: Mutex<Option<Sample>>,
    /// The latest time told.
    told: AtomicI64,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Server time in milliseconds since the Unix epoch, less this process's monotonic time.
    offset: i64,
    round_trip: Duration,
    taken: Monotonic,
}

impl ServerTime {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, sample: Mutex::new(None), told: AtomicI64::new(i64::MIN) }
    }

    /// Learns from an answer made at `told`, to a question asked at `asked` and answered now.
    pub(crate) fn learn(&self, told: Timestamp, asked: Monotonic) {
        let taken = self.clock.monotonic();
        let round_trip = taken.saturating_since(asked);
        let middle = millis(asked.since_origin() + round_trip / 2);
        let new = Sample { offset: told.as_millisecond() - middle, round_trip, taken };
        let mut sample = self.sample.lock().unwrap_or_else(PoisonError::into_inner);
        let keeps_old = sample
            .is_some_and(|old| old.round_trip < round_trip && taken.saturating_since(old.taken) < SAMPLE_AGE);
        if !keeps_old {
            *sample = Some(new);
        }
    }

    /// Forgets what was learnt: another server may answer from now on.
    pub(crate) fn forget_samples_at_next(&self) {
        let mut sample = self.sample.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sample) = &mut *sample {
            sample.round_trip = Duration::MAX;
        }
    }

    /// Milliseconds since the Unix epoch by the server's clock. A better sample may tell that it is a little earlier than was thought;
    /// then time stands still for that long, so that what was ready stays so. Only a clock that was set back goes back.
    pub(crate) fn now(&self) -> i64 {
        let sample = *self.sample.lock().unwrap_or_else(PoisonError::into_inner);
        let now = match sample {
            Some(sample) => millis(self.clock.monotonic().since_origin()) + sample.offset,
            // Only before the queue is open.
            None => return self.clock.now().as_millisecond(),
        };
        let told = self.told.fetch_max(now, Ordering::Relaxed);
        if now < told && told.saturating_sub(now) > SET_BACK {
            self.told.store(now, Ordering::Relaxed);
            return now;
        }
        now.max(told)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flames_clock::SimulatedClock;

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_jumps_here_does_not_move_the_servers_time() {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let time = ServerTime::new(Arc::<SimulatedClock>::clone(&clock));
        let told = Timestamp::from_millisecond(1_000_000).unwrap();
        time.learn(told, clock.monotonic());
        clock.jump_wall(3_600_000);
        clock.sleep(Duration::from_secs(5)).await;
        assert_eq!(time.now(), 1_005_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_better_sample_does_not_turn_time_back_and_a_clock_set_back_does() {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let time = ServerTime::new(Arc::<SimulatedClock>::clone(&clock));
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        time.learn(at(1_000_000), clock.monotonic());
        assert_eq!(time.now(), 1_000_000);
        time.learn(at(999_990), clock.monotonic());
        assert_eq!(time.now(), 1_000_000, "it stands still");
        clock.sleep(Duration::from_millis(15)).await;
        assert_eq!(time.now(), 1_000_005, "and goes on");
        time.learn(at(500_000), clock.monotonic());
        assert_eq!(time.now(), 500_000);
    }

    #[tokio::test(start_paused = true)]
    async fn the_sample_of_the_shorter_round_trip_counts_until_it_is_old() {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let time = ServerTime::new(Arc::<SimulatedClock>::clone(&clock));
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        time.learn(at(1_000_000), clock.monotonic());
        let asked = clock.monotonic();
        clock.sleep(Duration::from_secs(2)).await;
        time.learn(at(9_000_000), asked);
        assert_eq!(time.now(), 1_002_000);
        clock.sleep(SAMPLE_AGE).await;
        let asked = clock.monotonic();
        clock.sleep(Duration::from_secs(2)).await;
        time.learn(at(9_000_000), asked);
        assert_eq!(time.now(), 9_001_000, "half the round trip after it was told");
    }
}
