//! The bytes that the store may hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flames_error::{Error, ErrorKind, Result};

#[derive(Debug)]
pub(crate) struct Capacity {
    limit: u64,
    used: AtomicU64,
}

impl Capacity {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0) }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// Bytes taken from a [`Capacity`]; given back at drop.
#[derive(Debug)]
pub(crate) struct Reservation {
    capacity: Arc<Capacity>,
    bytes: u64,
}

impl Reservation {
    pub(crate) fn nothing(capacity: &Arc<Capacity>) -> Self {
        Self { capacity: Arc::clone(capacity), bytes: 0 }
    }

    /// Takes `more` bytes, or none and `Exhausted`.
    pub(crate) fn grow(&mut self, more: u64) -> Result<()> {
        let limit = self.capacity.limit;
        let fits = |used: u64| used.checked_add(more).filter(|total| *total <= limit);
        match self.capacity.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => {
                self.bytes += more;
                Ok(())
            }
            Err(used) => Err(Error::new(ErrorKind::Exhausted, "blob.put", "the memory for blobs is used up")
                .with_user_message("There is no room for this blob.")
                .with_context("capacity", limit)
                .with_context("used", used)),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.capacity.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
