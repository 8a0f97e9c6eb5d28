//! What a failure of the file system means to a caller.

use std::io;
use std::path::Path;

use flames_error::{Error, ErrorKind};

/// A failure before anything changed.
pub(super) fn failed(operation: &'static str, what: &'static str, path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ErrorKind::Exhausted
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
        _ => ErrorKind::Unavailable,
    };
    let failed = Error::new(kind, operation, what).with_context("path", path.display()).with_source(error);
    match kind {
        ErrorKind::Exhausted => failed.with_user_message("There is no room for this blob."),
        _ => failed,
    }
}

/// A file that is not what was written.
pub(super) fn corrupt(operation: &'static str, what: &'static str, path: &Path) -> Error {
    Error::new(ErrorKind::Corrupt, operation, what).with_context("path", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_exhausted_and_a_failing_one_unavailable() {
        for (error, kind) in [
            (io::ErrorKind::StorageFull, ErrorKind::Exhausted),
            (io::ErrorKind::QuotaExceeded, ErrorKind::Exhausted),
            (io::ErrorKind::ReadOnlyFilesystem, ErrorKind::PermissionDenied),
            (io::ErrorKind::Other, ErrorKind::Unavailable),
        ] {
            assert_eq!(failed("blob.put", "writing", Path::new("x"), error.into()).kind(), kind);
        }
    }
}
