//! Identifiers.

use std::fmt::Debug;
use std::sync::Arc;

use uuid::Uuid;

use crate::{Clock, Random, RandomExt};

/// The source of globally unique identifiers.
pub trait IdSource: Debug + Send + Sync + 'static {
    /// An identifier that is never given out again: a UUID of version 7 (RFC 9562, section 5.7), which sorts by creation time.
    fn next_id(&self) -> Uuid;
}

/// UUIDs of version 7 from an injected clock and injected randomness.
#[derive(Debug, Clone)]
pub struct UuidSource {
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
}

impl UuidSource {
    /// Ids whose time part is `clock`'s and whose 74 random bits are `random`'s.
    pub fn new(clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self { clock, random }
    }
}

impl IdSource for UuidSource {
    fn next_id(&self) -> Uuid {
        let millis = u64::try_from(self.clock.now().as_millisecond()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(millis, &self.random.bytes::<10>()).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SeededRandom, SystemClock, SystemRandom};

    #[test]
    fn ids_are_version_7_and_differ() {
        let ids = UuidSource::new(Arc::new(SystemClock::new()), Arc::new(SystemRandom));
        let (a, b) = (ids.next_id(), ids.next_id());
        assert_ne!(a, b);
        assert_eq!(a.get_version_num(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn under_simulation_one_seed_gives_the_same_ids_twice() {
        let draw = || {
            let clock = Arc::new(crate::SimulatedClock::at_fixed_start());
            let ids = UuidSource::new(clock, Arc::new(SeededRandom::new(3)));
            (0..4).map(|_| ids.next_id()).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
    }
}
