//! Randomness.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Mutex;

/// The source of random numbers.
pub trait Random: Debug + Send + Sync + 'static {
    /// Fills `buffer` with random bytes. [`SystemRandom`]'s are fit for secrets; seeded ones are not.
    fn fill(&self, buffer: &mut [u8]);
}

/// Conveniences over any [`Random`].
pub trait RandomExt: Random {
    /// A uniformly random number.
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A number in `0..bound`, near enough to uniform for choices and jitter (bias below bound / 2^64); 0 when `bound` is 0.
    fn below(&self, bound: u64) -> u64 {
        u64::try_from((u128::from(self.next_u64()) * u128::from(bound)) >> 64).unwrap_or(0)
    }

    /// Random bytes, as many as asked.
    fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }
}

impl<R: Random + ?Sized> RandomExt for R {}

/// The operating system's random numbers, fit for secrets.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandom;

/// What one thread asked the operating system for ahead: a VM takes some five small draws, each of which would be a system call. What was
/// handed out is not kept. A process that forked without executing another program would repeat it, and this one never does; so would a machine that was saved
/// with its memory and restored twice, so programs within guests ask the kernel each time and not this.
struct Ahead {
    bytes: [u8; 256],
    /// How many of them, from the front, were not handed out.
    left: usize,
}

thread_local! {
    static AHEAD: RefCell<Ahead> = const { RefCell::new(Ahead { bytes: [0; 256], left: 0 }) };
}

impl Ahead {
    fn take(&mut self, buffer: &mut [u8]) {
        if self.left < buffer.len() {
            from_system(&mut self.bytes);
            self.left = self.bytes.len();
        }
        let rest = self.left - buffer.len();
        buffer.copy_from_slice(&self.bytes[rest..self.left]);
        self.bytes[rest..self.left].fill(0);
        self.left = rest;
    }
}

fn from_system(buffer: &mut [u8]) {
    // getrandom(2) on Linux cannot fail once the pool is initialised, and blocks until it is. A machine without it has no
    // way to make a secret, so there is nothing to fall back to.
    #[allow(clippy::expect_used)]
    getrandom::fill(buffer).expect("the operating system gives random bytes");
}

impl Random for SystemRandom {
    fn fill(&self, buffer: &mut [u8]) {
        // Long ones are asked for by themselves; so is everything while a thread ends.
        let drawn = buffer.len() <= 64 && AHEAD.try_with(|ahead| ahead.borrow_mut().take(buffer)).is_ok();
        if !drawn {
            from_system(buffer);
        }
    }
}

/// The same numbers for the same seed. For tests and simulation only.
#[derive(Debug)]
pub struct SeededRandom(Mutex<fastrand::Rng>);

impl SeededRandom {
    /// A source that repeats itself for the same `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(fastrand::Rng::with_seed(seed)))
    }
}

impl Random for SeededRandom {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).fill(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_the_same_numbers_twice() {
        let (a, b, c) = (SeededRandom::new(7), SeededRandom::new(7), SeededRandom::new(8));
        let draw = |r: &SeededRandom| (0..32).map(|_| r.below(1_000)).collect::<Vec<_>>();
        let first = draw(&a);
        assert_eq!(first, draw(&b));
        assert_ne!(first, draw(&c));
        assert!(first.iter().all(|n| *n < 1_000));
    }

    #[test]
    fn the_system_does_not_give_the_same_bytes_twice() {
        assert_ne!(SystemRandom.bytes::<32>(), SystemRandom.bytes::<32>());
        let draws: std::collections::BTreeSet<[u8; 8]> =
            (0..1_000).map(|_| SystemRandom.bytes::<8>()).collect();
        assert_eq!(draws.len(), 1_000);
    }

    #[test]
    fn what_the_system_gave_ahead_is_handed_out_once_whatever_the_lengths() {
        let mut ahead = Ahead { bytes: [0; 256], left: 0 };
        for length in [1, 64, 16, 33, 64, 64, 10, 64, 0, 7] {
            let (before, mut drawn) = (ahead.left, vec![0; length]);
            ahead.take(&mut drawn);
            assert!(length < 8 || drawn.iter().any(|byte| *byte != 0));
            assert!(ahead.left == before - length.min(before) || ahead.left == 256 - length);
            assert!(ahead.bytes[ahead.left..].iter().all(|byte| *byte == 0), "what was handed out is kept");
        }
    }
}
