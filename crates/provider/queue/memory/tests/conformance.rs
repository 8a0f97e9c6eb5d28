//! The suite, on the memory queue under simulated time.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::{Clock, SimulatedClock};
use flames_queue::WorkQueue;
use flames_queue_conformance::{Fixture, Harness, Hook, Hooks, Time, async_trait};
use flames_queue_memory::MemoryQueue;

struct Memory;

struct Fresh {
    clock: Arc<SimulatedClock>,
    queue: MemoryQueue,
}

#[async_trait]
impl Harness<dyn Fixture> for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    fn hooks(&self) -> &'static [Hook] {
        &[Hook::Clock]
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        Box::new(Fresh { queue: MemoryQueue::new(Arc::<SimulatedClock>::clone(&clock)), clock })
    }
}

impl Fixture for Fresh {
    fn queue(&self) -> Arc<dyn WorkQueue> {
        Arc::new(self.queue.clone())
    }
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
    fn unit(&self) -> Duration {
        Duration::from_secs(10)
    }
}

impl Hooks for Fresh {
    fn jump_clock(&self, by_ms: i64) {
        self.clock.jump_wall(by_ms);
    }
}

fn main() -> ExitCode {
    flames_queue_conformance::run(Memory)
}
