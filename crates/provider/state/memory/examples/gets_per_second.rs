//! How many reads a second the memory adapter answers, beside a bare locked map of the same contents.
//!
//! `cargo run --release -p flames-state-memory --example gets_per_second`; the ratio is to stay at or above 0.3.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use flames_state::{Commit, Key, StateStore};
use flames_state_memory::MemoryStore;

const KEYS: usize = 10_000;
const READS: usize = 2_000_000;

#[tokio::main(flavor = "current_thread")]
#[allow(clippy::print_stdout)]
async fn main() -> flames_error::Result<()> {
    let keys = (0..KEYS)
        .map(|n| Key::new(format!("default/vm/{n:08}")))
        .collect::<flames_error::Result<Vec<_>>>()?;
    let value = Bytes::from(vec![0; 1_000]);
    let store: Arc<dyn StateStore> = Arc::new(MemoryStore::new());
    for key in &keys {
        store.commit(Commit::new().put(key.clone(), value.clone())).await?;
    }
    let bare = Mutex::new(keys.iter().map(|key| (key.clone(), value.clone())).collect::<BTreeMap<_, _>>());

    let started = Instant::now();
    for key in keys.iter().cycle().step_by(7_919).take(READS) {
        black_box(bare.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(key).cloned());
    }
    let bare_rate = READS as f64 / started.elapsed().as_secs_f64();

    let started = Instant::now();
    for key in keys.iter().cycle().step_by(7_919).take(READS) {
        black_box(store.get(key).await?);
    }
    let rate = READS as f64 / started.elapsed().as_secs_f64();
    println!("bare {bare_rate:.0}/s, memory adapter {rate:.0}/s, ratio {:.2}", rate / bare_rate);
    Ok(())
}
