//! Wall time, monotonic time and sleeping.

use std::fmt::Debug;
use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};

/// Time since an arbitrary origin of this process that never goes backwards.
///
/// Only differences between two readings of the same [`Clock`] mean anything. Leases and deadlines are judged by this,
/// never by wall time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Monotonic(Duration);

impl Monotonic {
    /// A reading that lies `since_origin` after the clock's origin.
    pub const fn from_origin(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// How long after the clock's origin this reading was taken.
    pub fn since_origin(self) -> Duration {
        self.0
    }

    /// How much later this reading is than `earlier`; zero when it is not later.
    pub fn saturating_since(self, earlier: Monotonic) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The reading `by` later.
    pub fn saturating_add(self, by: Duration) -> Monotonic {
        Monotonic(self.0.saturating_add(by))
    }
}

/// The source of time.
#[async_trait]
pub trait Clock: Debug + Send + Sync + 'static {
    /// Wall-clock time (UTC), whole milliseconds. It may jump in either direction.
    fn now(&self) -> Timestamp;

    /// Monotonic time. Never goes backwards within a process.
    fn monotonic(&self) -> Monotonic;

    /// Returns once at least `duration` has passed on the monotonic clock.
    ///
    /// Cancel-safe: dropping the future only stops the waiting.
    async fn sleep(&self, duration: Duration);
}

/// A deadline passed before the work was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadlineExceeded {
    /// How long was waited.
    pub after: Duration,
}

impl std::fmt::Display for DeadlineExceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not done within {:?}", self.after)
    }
}

impl std::error::Error for DeadlineExceeded {}

/// Conveniences over any [`Clock`].
pub trait ClockExt: Clock {
    /// Runs `work` for at most `limit`; the work is dropped when the limit passes first.
    fn timeout<F: Future + Send>(
        &self,
        limit: Duration,
        work: F,
    ) -> impl Future<Output = Result<F::Output, DeadlineExceeded>> + Send {
        async move {
            tokio::select! {
                biased;
                output = work => Ok(output),
                () = self.sleep(limit) => Err(DeadlineExceeded { after: limit }),
            }
        }
    }

    /// Wall-clock time `after` from now, saturating at the end of time.
    fn now_plus(&self, after: Duration) -> Timestamp {
        let after = SignedDuration::try_from(after).unwrap_or(SignedDuration::MAX);
        self.now().saturating_add(after).unwrap_or(Timestamp::MAX)
    }
}

impl<C: Clock + ?Sized> ClockExt for C {}

fn whole_milliseconds(timestamp: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(timestamp.as_millisecond()).unwrap_or(timestamp)
}

/// The operating system's time.
#[derive(Debug, Clone)]
pub struct SystemClock {
    origin: std::time::Instant,
}

impl SystemClock {
    /// A clock whose monotonic origin is now.
    pub fn new() -> Self {
        Self { origin: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        whole_milliseconds(Timestamp::now())
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(self.origin.elapsed())
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// Time as tokio's paused clock tells it: it stands still while anything can run and jumps to the next timer when nothing
/// can, or moves when [`SimulatedClock::advance`] is called.
///
/// Needs a current-thread runtime with paused time (`start_paused`). Wall time starts where the test says and can be made to
/// jump by [`SimulatedClock::jump_wall`], which leaves monotonic time alone.
#[derive(Debug)]
pub struct SimulatedClock {
    origin: tokio::time::Instant,
    wall_at_origin: Timestamp,
    wall_offset_ms: AtomicI64,
}

impl SimulatedClock {
    /// A clock that shows `wall` now. Call it inside the runtime whose time it follows.
    pub fn new(wall: Timestamp) -> Self {
        Self {
            origin: tokio::time::Instant::now(),
            wall_at_origin: whole_milliseconds(wall),
            wall_offset_ms: AtomicI64::new(0),
        }
    }

    /// A clock that shows 2026-01-01T00:00:00Z now.
    pub fn at_fixed_start() -> Self {
        Self::new(Timestamp::from_second(1_767_225_600).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    /// Moves time forward by `duration`, firing each timer on the way.
    pub async fn advance(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Makes the wall clock jump (in milliseconds, either direction) as a time daemon or an operator does.
    pub fn jump_wall(&self, by_ms: i64) {
        self.wall_offset_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

#[async_trait]
impl Clock for SimulatedClock {
    fn now(&self) -> Timestamp {
        let since = i64::try_from(self.origin.elapsed().as_millis()).unwrap_or(i64::MAX);
        let offset = since.saturating_add(self.wall_offset_ms.load(Ordering::Relaxed));
        self.wall_at_origin.saturating_add(SignedDuration::from_millis(offset)).unwrap_or(Timestamp::MAX)
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(self.origin.elapsed())
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_moves_only_when_told_or_when_nothing_can_run() {
        let clock = SimulatedClock::at_fixed_start();
        let (wall, monotonic) = (clock.now(), clock.monotonic());
        tokio::task::yield_now().await;
        assert_eq!(clock.now(), wall);
        clock.advance(Duration::from_secs(90)).await;
        assert_eq!(clock.monotonic().saturating_since(monotonic), Duration::from_secs(90));
        assert_eq!(clock.now().duration_since(wall), SignedDuration::from_secs(90));
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_of_the_wall_clock_leaves_monotonic_time_alone() {
        let clock = SimulatedClock::at_fixed_start();
        let (wall, monotonic) = (clock.now(), clock.monotonic());
        clock.jump_wall(-5_000);
        assert_eq!(clock.monotonic(), monotonic);
        assert_eq!(clock.now().duration_since(wall), SignedDuration::from_secs(-5));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_outlives_its_deadline_is_dropped() {
        let clock = SimulatedClock::at_fixed_start();
        let limit = Duration::from_secs(2);
        let outcome = clock.timeout(limit, std::future::pending::<()>()).await;
        assert_eq!(outcome, Err(DeadlineExceeded { after: limit }));
        assert_eq!(clock.timeout(limit, async { 7 }).await, Ok(7));
    }
}
