//! How many commits a second the memory adapter takes, beside the same changes to a bare locked map. Each commit is like a creation: a
//! check, three keys, one log entry.
//!
//! `cargo run --release -p flames-state-memory --example changes_per_second`; the ratio is to stay at or above 0.3.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use flames_state::{Check, Commit, Key, StateStore};
use flames_state_memory::MemoryStore;

const COMMITS: usize = 200_000;
const ROUNDS: usize = 3;

/// The keys of one creation.
struct Names {
    name: Key,
    vm: Key,
    due: Key,
}

#[derive(Default)]
struct Bare {
    entries: BTreeMap<Key, Bytes>,
    log: BTreeMap<u64, Bytes>,
}

#[tokio::main(flavor = "current_thread")]
#[allow(clippy::print_stdout)]
async fn main() -> flames_error::Result<()> {
    let names = (0..COMMITS)
        .map(|n| {
            let key = |kind: &str| Key::new(format!("default/{kind}/{:08}", n * 7_919 % COMMITS));
            Ok(Names { name: key("name")?, vm: key("vm")?, due: key("due")? })
        })
        .collect::<flames_error::Result<Vec<_>>>()?;
    let log = Key::new("default/events")?;
    let (vm, event) = (Bytes::from(vec![0; 1_000]), Bytes::from(vec![0; 200]));
    for _ in 0..ROUNDS {
        let bare = Mutex::new(Bare::default());
        let started = Instant::now();
        for (number, names) in (0..).zip(&names) {
            let mut bare = bare.lock().unwrap_or_else(PoisonError::into_inner);
            if !bare.entries.contains_key(&names.name) {
                bare.entries.insert(names.name.clone(), Bytes::from_static(b"vm"));
                bare.entries.insert(names.vm.clone(), vm.clone());
                bare.entries.insert(names.due.clone(), Bytes::new());
                bare.log.insert(number, event.clone());
            }
        }
        let bare_rate = COMMITS as f64 / started.elapsed().as_secs_f64();

        let store: Arc<dyn StateStore> = Arc::new(MemoryStore::new());
        let started = Instant::now();
        for names in &names {
            let mut commit = Commit::new();
            commit
                .check(Check::Absent(names.name.clone()))
                .put(names.name.clone(), Bytes::from_static(b"vm"));
            commit.put(names.vm.clone(), vm.clone()).put(names.due.clone(), Bytes::new());
            commit.append(log.clone(), event.clone());
            store.commit(&commit).await?;
        }
        let rate = COMMITS as f64 / started.elapsed().as_secs_f64();
        println!("bare {bare_rate:.0}/s, memory adapter {rate:.0}/s, ratio {:.2}", rate / bare_rate);
    }
    Ok(())
}
