//! The memory adapter keeps the promises of `BlobStore`.

use std::process::ExitCode;
use std::sync::Arc;

use flames_blob::BlobStore;
use flames_blob_conformance::{Fixture, Harness, Hooks, Time, async_trait};
use flames_blob_memory::MemoryBlobStore;
use flames_clock::SimulatedClock;

struct Memory;

struct Fresh(Arc<MemoryBlobStore>);

#[async_trait]
impl Harness<dyn Fixture> for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        Box::new(Fresh(Arc::new(MemoryBlobStore::new(Arc::new(SimulatedClock::at_fixed_start())))))
    }
}

impl Hooks for Fresh {}

impl Fixture for Fresh {
    fn store(&self) -> Arc<dyn BlobStore> {
        self.0.clone()
    }
}

fn main() -> ExitCode {
    flames_blob_conformance::run(Memory)
}
