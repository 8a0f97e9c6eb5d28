//! Which fault happens to which connection.

use std::time::Duration;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// What goes wrong with one connection. Bytes count in one direction, from the connection's first; exactly that many are
/// delivered before the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Both sides see the end of the stream (FIN), whatever was still on its way is lost.
    CutAfter {
        /// How many bytes get through.
        bytes: u64,
        /// Counted in this direction.
        direction: Direction,
    },
    /// Both sides get a reset (RST, by `SO_LINGER` of 0).
    ResetAfter {
        /// How many bytes get through.
        bytes: u64,
        /// Counted in this direction.
        direction: Direction,
    },
    /// Nothing goes through any more, in either direction, and the connection stays open.
    StallAfter {
        /// How many bytes get through.
        bytes: u64,
        /// Counted in this direction.
        direction: Direction,
    },
    /// What goes in this direction is taken and thrown away, and the other direction works on: a half-open connection.
    SwallowAfter {
        /// How many bytes get through.
        bytes: u64,
        /// The direction that is lost.
        direction: Direction,
    },
    /// Each piece of at most 16 KiB waits that long, in both directions.
    Delay {
        /// How long.
        per_chunk: Duration,
    },
}

/// How faults are drawn for connections from a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultPlan {
    /// The same seed gives the same fault to the same connection (counted in order of arrival).
    pub seed: u64,
    /// Of how many connections in a hundred nothing is to become of.
    pub healthy_percent: u8,
    /// A fault strikes after at most so many bytes. The number is drawn by its size, so that few bytes (in the middle of a
    /// handshake) are as likely as many.
    pub max_bytes: u64,
    /// The longest delay of a chunk.
    pub max_delay: Duration,
    /// Whether connections may stall or be half-open too; then who uses them must have deadlines, and tests take as long
    /// as these.
    pub may_hang: bool,
}

impl FaultPlan {
    /// Half of the connections healthy; cuts, resets and delays of up to 20 ms; faults within the first 16 KiB; none that hangs.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            healthy_percent: 50,
            max_bytes: 16 * 1024,
            max_delay: Duration::from_millis(20),
            may_hang: false,
        }
    }

    /// A seed from the environment variable `FLAMES_TEST_SEED`, else a fresh one.
    #[must_use]
    pub fn seed_from_environment() -> u64 {
        let named = std::env::var("FLAMES_TEST_SEED").ok().and_then(|seed| seed.trim().parse().ok());
        named.unwrap_or_else(crate::ports::random)
    }

    /// What happens to the connection of that number, counted from 0.
    #[must_use]
    pub fn fault_of(&self, connection: u64) -> Fault {
        let mut random = SplitMix(self.seed ^ connection.wrapping_mul(0xA076_1D64_78BD_642F));
        if random.below(100) < u64::from(self.healthy_percent) {
            return Fault::None;
        }
        let direction = if random.below(2) == 0 { Direction::ToServer } else { Direction::ToClient };
        let bytes = random.by_size(self.max_bytes);
        match random.below(if self.may_hang { 5 } else { 3 }) {
            0 => Fault::CutAfter { bytes, direction },
            1 => Fault::ResetAfter { bytes, direction },
            2 => {
                let longest = u64::try_from(self.max_delay.as_micros()).unwrap_or(u64::MAX);
                Fault::Delay { per_chunk: Duration::from_micros(random.below(longest.saturating_add(1))) }
            }
            3 => Fault::StallAfter { bytes, direction },
            _ => Fault::SwallowAfter { bytes, direction },
        }
    }
}

/// Vigna's SplitMix64: one line, and the same everywhere.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next().checked_rem(end).unwrap_or_default()
    }

    /// 0 to `max`, each power of two as likely as the next.
    fn by_size(&mut self, max: u64) -> u64 {
        let bits = u64::BITS - max.leading_zeros();
        let size = self.below(u64::from(bits) + 1);
        let end = 1_u64.checked_shl(u32::try_from(size).unwrap_or(0)).unwrap_or(u64::MAX);
        self.below(end).min(max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_again_and_another_seed_others() {
        let faults =
            |seed| (0..100).map(|index| FaultPlan::new(seed).fault_of(index)).collect::<Vec<Fault>>();
        assert_eq!(faults(7), faults(7));
        assert_ne!(faults(7), faults(8));
    }

    #[test]
    fn every_kind_of_fault_comes_within_its_bounds_and_hanging_ones_only_when_asked_for() {
        let mut plan = FaultPlan { may_hang: true, healthy_percent: 20, ..FaultPlan::new(1) };
        let mut seen = [0; 6];
        for connection in 0..2_000 {
            let (kind, bytes) = match plan.fault_of(connection) {
                Fault::None => (0, 0),
                Fault::CutAfter { bytes, .. } => (1, bytes),
                Fault::ResetAfter { bytes, .. } => (2, bytes),
                Fault::StallAfter { bytes, .. } => (3, bytes),
                Fault::SwallowAfter { bytes, .. } => (4, bytes),
                Fault::Delay { per_chunk } => {
                    assert!(per_chunk <= plan.max_delay);
                    (5, 0)
                }
            };
            assert!(bytes <= plan.max_bytes);
            seen[kind] += 1;
        }
        assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
        plan.may_hang = false;
        let hangs = |fault| matches!(fault, Fault::StallAfter { .. } | Fault::SwallowAfter { .. });
        assert!((0..2_000).all(|connection| !hangs(plan.fault_of(connection))));
    }
}
