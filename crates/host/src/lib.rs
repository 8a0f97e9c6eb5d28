//! What every driver does with its host, whatever monitor it runs.
//!
//! * [`process`]: starting one that outlives us, telling it apart from any other, waiting for its end.
//! * [`files`]: files and records that are either old or new whenever the host dies, and are read with a bound.
//! * [`console`]: a log that is bounded on disk, in memory and in rate, whatever a guest writes.
//!
//! A leaf: it knows nothing of VMs (`docs/adr/0008-a-leaf-for-the-host.md`).

pub mod console;
pub mod files;
pub mod process;
mod spawn;
mod vfork;

use flames_error::{Error, Result};

/// Runs what blocks on the file system, or on fork, where it holds nobody up. It runs to its end even when the caller is dropped.
///
/// Errors: those of the work; `Internal` when it panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => {
            Err(Error::internal("host.blocking", "a part of the driver has panicked").with_source(error))
        }
    }
}
