//! The memory adapter under the suite that every StateStore must pass.

use std::process::ExitCode;
use std::sync::Arc;

use flames_state_conformance::{Fixture, Harness, Volatile, async_trait};
use flames_state_memory::MemoryStore;

struct Memory;

#[async_trait]
impl Harness<dyn Fixture> for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        Box::new(Volatile(Arc::new(MemoryStore::new())))
    }
}

fn main() -> ExitCode {
    flames_state_conformance::run(Memory)
}
