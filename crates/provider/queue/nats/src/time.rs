//! The server's clock, as seen from here.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::{Clock, Monotonic, Timestamp};

/// By how much a sample may be wrong besides its round trip: times are told in whole milliseconds.
const ROUNDING: i64 = 1;

/// Two clocks drift apart by at most one part in so many: more than the fastest slew of an NTP client (500 ppm) and an oscillator's error
/// together. So an old sample gives way to a new one that is a little worse.
const DRIFT: i64 = 1_000;

/// By how many milliseconds a clock was set back that seems to be earlier, and is not only known better.
const SET_BACK: i64 = 1_000;

/// Tells the server's time without asking it each time: its answers to other questions carry it, and between them this process's
/// monotonic clock runs on. So a wall clock that jumps here changes nothing, and all processes judge by one clock, each to within half
/// the round trip of its best sample and the drift since. A slow answer does not replace what is known better; one that contradicts it
/// does, however slow: the clock was set, or another server answers.
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
    /// By how many milliseconds that was wrong at most when it was taken.
    error: i64,
    taken: Monotonic,
}

impl Sample {
    /// By how many milliseconds it is wrong at most at `now`.
    fn error_at(&self, now: Monotonic) -> i64 {
        self.error.saturating_add(millis(now.saturating_since(self.taken)) / DRIFT)
    }
}

impl ServerTime {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, sample: Mutex::new(None), told: AtomicI64::new(i64::MIN) }
    }

    /// Learns from an answer made at `told`, to a question asked at `asked` and answered now.
    pub(crate) fn learn(&self, told: Timestamp, asked: Monotonic) {
        let taken = self.clock.monotonic();
        let half = taken.saturating_since(asked) / 2;
        let middle = millis(asked.since_origin() + half);
        let new = Sample { offset: told.as_millisecond() - middle, error: millis(half) + ROUNDING, taken };
        let mut sample = self.sample.lock().unwrap_or_else(PoisonError::into_inner);
        let keeps_old = sample.is_some_and(|old| {
            let error = old.error_at(taken);
            let agree = old.offset.abs_diff(new.offset) <= error.saturating_add(new.error).unsigned_abs();
            agree && error < new.error
        });
        if !keeps_old {
            *sample = Some(new);
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
    async fn a_slow_answer_changes_nothing_that_is_known_better_until_that_is_old() {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let time = ServerTime::new(Arc::<SimulatedClock>::clone(&clock));
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        time.learn(at(1_000_000), clock.monotonic());
        // Its question was held up: told just before it was answered, it would be taken for a second later than it is.
        let asked = clock.monotonic();
        clock.sleep(Duration::from_secs(2)).await;
        time.learn(at(1_002_000), asked);
        assert_eq!(time.now(), 1_002_000);
        // By now the first may be wrong by as much as the second was.
        clock.sleep(Duration::from_secs(1_100)).await;
        let asked = clock.monotonic();
        clock.sleep(Duration::from_secs(2)).await;
        time.learn(at(1_104_000), asked);
        assert_eq!(time.now(), 1_105_000, "half the round trip after it was told");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_that_contradicts_what_is_known_is_believed() {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let time = ServerTime::new(Arc::<SimulatedClock>::clone(&clock));
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        time.learn(at(1_000_000), clock.monotonic());
        let asked = clock.monotonic();
        clock.sleep(Duration::from_secs(2)).await;
        time.learn(at(9_000_000), asked);
        assert_eq!(time.now(), 9_001_000);
    }
}
