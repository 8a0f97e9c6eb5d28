//! How long things take.

use std::time::Duration;

use flames_clock::{Random, RandomExt};

/// A duration with jitter: uniformly between `least` and `least + jitter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The shortest that it can be.
    pub least: Duration,
    /// How much longer it can be.
    pub jitter: Duration,
}

impl Span {
    /// No time at all: no sleep, no random number drawn.
    pub const ZERO: Self = Self { least: Duration::ZERO, jitter: Duration::ZERO };

    /// Always the same duration.
    pub const fn exactly(duration: Duration) -> Self {
        Self { least: duration, jitter: Duration::ZERO }
    }

    /// Between two durations; exactly `least` when `most` is shorter.
    pub const fn between(least: Duration, most: Duration) -> Self {
        Self { least, jitter: most.saturating_sub(least) }
    }

    pub(crate) fn draw(&self, random: &dyn Random) -> Duration {
        let jitter = u64::try_from(self.jitter.as_nanos()).unwrap_or(u64::MAX);
        if jitter == 0 { self.least } else { self.least + Duration::from_nanos(random.below(jitter)) }
    }
}

/// How long each step of a simulated machine takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimulatedTimings {
    /// Making what an incarnation needs. While it lasts, the incarnation is half made: found as `Unknown`.
    pub prepare: Span,
    /// From the monitor's start until the guest's kernel runs. The guest gets there by itself, also when the driver dies.
    pub start: Span,
    /// The same from a snapshot.
    pub restore: Span,
    /// Stopping the processors.
    pub pause: Span,
    /// Letting them run on.
    pub resume: Span,
    /// Saving a guest.
    pub snapshot: Span,
    /// How long a guest without a program takes to end after its power button was pressed.
    pub power_off: Span,
    /// From the kill until the monitor is gone.
    pub kill: Span,
    /// Removing what is left.
    pub destroy: Span,
}

impl SimulatedTimings {
    /// Everything at once: for benches of what stands above the driver.
    pub const INSTANT: Self = Self {
        prepare: Span::ZERO,
        start: Span::ZERO,
        restore: Span::ZERO,
        pause: Span::ZERO,
        resume: Span::ZERO,
        snapshot: Span::ZERO,
        power_off: Span::ZERO,
        kill: Span::ZERO,
        destroy: Span::ZERO,
    };

    /// As a microVM monitor with hardware virtualisation does it. Start, pause, snapshot and restore are of the order that
    /// Firecracker 1.16 showed when measured (monitor ready in 6 ms, its promise of 125 ms to the guest's init, pause 0.2 ms, full
    /// snapshot 40 to 160 ms, restore 10 to 16 ms); the others are guesses.
    pub const fn realistic() -> Self {
        const fn between(least_us: u64, most_us: u64) -> Span {
            Span::between(Duration::from_micros(least_us), Duration::from_micros(most_us))
        }
        Self {
            prepare: between(2_000, 10_000),
            start: between(20_000, 125_000),
            restore: between(10_000, 16_000),
            pause: between(200, 400),
            resume: between(200, 400),
            snapshot: between(40_000, 160_000),
            power_off: between(50_000, 300_000),
            kill: between(1_000, 5_000),
            destroy: between(1_000, 5_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use flames_clock::SeededRandom;

    use super::*;

    #[test]
    fn a_span_is_drawn_between_its_ends() {
        let (least, most) = (Duration::from_millis(3), Duration::from_millis(9));
        let random = SeededRandom::new(1);
        let drawn: Vec<_> = (0..100).map(|_| Span::between(least, most).draw(&random)).collect();
        assert!(drawn.iter().all(|duration| (least..most).contains(duration)));
        assert!(drawn.iter().any(|duration| *duration != drawn[0]));
        assert_eq!(Span::between(most, least).draw(&random), most);
    }
}
