use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;

/// A non-blocking descriptor whose readiness tokio watches. It is shared, and closed with its last owner.
pub(crate) type WatchedFd = AsyncFd<Arc<OwnedFd>>;

/// Watches a descriptor. Must be called within a tokio runtime.
///
/// Errors: when the kernel cannot watch it.
#[allow(unsafe_code)]
pub(crate) fn watch(fd: Arc<OwnedFd>) -> io::Result<WatchedFd> {
    // SAFETY: the `Arc` keeps its descriptor open as long as the `AsyncFd` lives, and always gives the same number.
    Ok(unsafe { AsyncFd::register(fd)? })
}
