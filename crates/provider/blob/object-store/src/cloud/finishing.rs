//! The last step of a put or delete, which readers see.
//!
//! A request that is dropped while it is under way may still reach the server: after, and instead of, a later one. So this step runs
//! in a task of the store's own, which a dropped call does not end, and the steps of one key run one after the other.

use std::collections::hash_map::DefaultHasher;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use flames_blob::BlobKey;
use flames_error::{Error, ErrorKind, Result};
use tokio::runtime::Handle;
use tokio::sync::{Mutex as Turn, oneshot};
use tokio::task::JoinSet;

/// Keys that share a turn wait for each other; so many can go at a time.
const TURNS: usize = 64;

/// Tasks that the store owns: they end with it.
#[derive(Debug)]
pub(super) struct Finishing {
    turns: Arc<[Turn<()>; TURNS]>,
    tasks: Mutex<JoinSet<()>>,
}

impl Default for Finishing {
    fn default() -> Self {
        Self { turns: Arc::new(std::array::from_fn(|_| Turn::default())), tasks: Mutex::default() }
    }
}

impl Finishing {
    /// Runs `step` when it is this key's turn, to its end, whether or not the caller waits.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &BlobKey,
        step: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let turn = usize::try_from(hasher.finish() % TURNS as u64).unwrap_or(0);
        let turns = Arc::clone(&self.turns);
        let (sender, outcome) = oneshot::channel();
        self.own(async move {
            let _turn = turns[turn].lock().await;
            // Nobody may wait for it any more.
            let _ = sender.send(step.await);
        });
        outcome.await.unwrap_or_else(|cut_off| {
            Err(Error::new(ErrorKind::OutcomeUnknown, operation, "the store was closed meanwhile")
                .with_source(cut_off))
        })
    }

    /// Runs work that nobody waits for. Without a runtime, which is how things are dropped when a program ends, it is left undone.
    pub(super) fn own(&self, work: impl Future<Output = ()> + Send + 'static) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(work, &runtime);
    }
}
