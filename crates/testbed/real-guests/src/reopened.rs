//! A driver that is dropped as a kill of its process would, and opened anew.

use std::fmt;
use std::sync::{Arc, Mutex};

use flames_vmm::VmDriver;

type Open = dyn Fn() -> Arc<dyn VmDriver> + Send + Sync;

/// The driver of a fixture.
pub struct Reopened {
    // Dropped before what it works on, which `open` holds.
    driver: Mutex<Option<Arc<dyn VmDriver>>>,
    open: Box<Open>,
}

impl fmt::Debug for Reopened {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Reopened").field("driver", &self.driver).finish_non_exhaustive()
    }
}

impl Reopened {
    /// Opens the driver. `open` holds the host on which it works.
    pub fn new(open: impl Fn() -> Arc<dyn VmDriver> + Send + Sync + 'static) -> Self {
        Self { driver: Mutex::new(Some(open())), open: Box::new(open) }
    }

    /// The one that was opened last. It must be open.
    pub fn driver(&self) -> Arc<dyn VmDriver> {
        self.driver.lock().unwrap().clone().expect("the driver is open")
    }

    /// Drops it.
    pub fn close(&self) {
        self.driver.lock().unwrap().take();
    }

    /// Drops it, when it is open, and opens the next.
    pub fn reopen(&self) {
        self.close();
        *self.driver.lock().unwrap() = Some((self.open)());
    }
}
