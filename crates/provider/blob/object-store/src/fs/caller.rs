//! Whether somebody still waits for a call.
//!
//! Work on a blocking thread goes on when the call that asked for it is dropped. Left alone, it could become visible after, and
//! instead of, a later call of the same caller. So it looks here, under the folder's lock, before it changes anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Held by the call; when it is dropped, nobody waits any more.
pub(super) struct Caller(Arc<AtomicBool>);

/// Held by the work.
pub(super) struct Waiting(Arc<AtomicBool>);

impl Caller {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    pub(super) fn watch(&self) -> Waiting {
        Waiting(Arc::clone(&self.0))
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Waiting {
    pub(super) fn is_over(&self) -> bool {
        !self.0.load(Ordering::SeqCst)
    }
}
