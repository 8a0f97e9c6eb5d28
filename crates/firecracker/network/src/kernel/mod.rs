//! What is asked of the kernel: namespaces, links, addresses and routes, taps, settings.
//!
//! All of it blocks, and much of it is about the namespace of the calling thread: it runs on threads of its own
//! ([`on_own_thread`]), never on one that goes on to other work.

pub(crate) mod namespace;
pub(crate) mod netlink;
pub(crate) mod settings;
pub(crate) mod tap;

use std::io;

use flames_error::{Error, ErrorKind, Result};

/// Runs `work` on a fresh thread, which may change its namespace, and ends with it.
///
/// Errors: those of the work; `Exhausted` when there is no thread; `Internal` when it panicked.
pub(crate) fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("flames-network".to_owned()).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| {
            Error::new(ErrorKind::Exhausted, "network.thread", "no thread can be started").with_source(error)
        })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(Error::internal("network.thread", "a part of the network has panicked")))
    })
}

/// An error of the kernel, with what was tried and what to do.
pub(crate) fn refused(operation: &'static str, tried: &str, error: io::Error) -> Error {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let (kind, advice) = match errno {
        Some(Errno::PERM | Errno::ACCESS) => {
            (ErrorKind::PermissionDenied, "; it needs root with CAP_NET_ADMIN and CAP_SYS_ADMIN")
        }
        Some(Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::NOSYS) => {
            (ErrorKind::NotSupported, "; this kernel lacks it")
        }
        Some(Errno::ROFS) => (ErrorKind::NotSupported, "; its file system is mounted read-only"),
        Some(Errno::NODEV | Errno::NOENT | Errno::NXIO) => (ErrorKind::NotFound, ""),
        Some(Errno::EXIST) => (ErrorKind::AlreadyExists, ""),
        Some(Errno::NOBUFS | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::NOSPC) => {
            (ErrorKind::Exhausted, "")
        }
        Some(Errno::AGAIN | Errno::INTR | Errno::BUSY) => (ErrorKind::Unavailable, ""),
        _ => (ErrorKind::Internal, ""),
    };
    Error::new(kind, operation, format!("{tried} failed{advice}")).with_source(error)
}
