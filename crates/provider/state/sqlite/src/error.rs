//! From SQLite's errors to the house's.

use std::path::Path;
use std::sync::Arc;

use flames_error::{Error, ErrorKind};

/// The primary result codes (<https://www.sqlite.org/rescode.html>) that a caller can act on.
mod code {
    pub(super) const PERM: u32 = 3;
    pub(super) const BUSY: u32 = 5;
    pub(super) const LOCKED: u32 = 6;
    pub(super) const NOMEM: u32 = 7;
    pub(super) const READONLY: u32 = 8;
    pub(super) const INTERRUPT: u32 = 9;
    pub(super) const IOERR: u32 = 10;
    pub(super) const CORRUPT: u32 = 11;
    pub(super) const FULL: u32 = 13;
    pub(super) const CANTOPEN: u32 = 14;
    pub(super) const PROTOCOL: u32 = 15;
    pub(super) const NOTADB: u32 = 26;
}

/// The error for an operation that failed before it changed anything.
pub(crate) fn not_applied(operation: &'static str, error: impl Into<Arc<sqlx::Error>>) -> Error {
    let error = error.into();
    let (kind, message) = match &*error {
        sqlx::Error::Database(database) => of_code(database.code().and_then(|code| code.parse().ok())),
        sqlx::Error::Io(_) => (ErrorKind::Unavailable, "the file cannot be read or written"),
        sqlx::Error::PoolTimedOut => (ErrorKind::Exhausted, "no connection was free in time"),
        sqlx::Error::PoolClosed => (ErrorKind::Unavailable, "the store is closed"),
        sqlx::Error::WorkerCrashed => (ErrorKind::Unavailable, "the connection's thread ended"),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            (ErrorKind::Corrupt, "a row is of another shape")
        }
        _ => (ErrorKind::Internal, "the statement failed"),
    };
    Error::new(kind, operation, message).with_source(error)
}

fn of_code(extended: Option<u32>) -> (ErrorKind, &'static str) {
    // The low byte of an extended code is its primary code.
    match extended.map(|code| code & 0xff) {
        Some(code::FULL) => (ErrorKind::Exhausted, "the disk is full, or the store has its configured size"),
        Some(code::NOMEM) => (ErrorKind::Exhausted, "out of memory"),
        Some(code::CORRUPT) => (ErrorKind::Corrupt, "the file is damaged"),
        Some(code::NOTADB) => (ErrorKind::Corrupt, "the file is no SQLite database"),
        Some(code::BUSY | code::LOCKED | code::PROTOCOL) => {
            (ErrorKind::Unavailable, "another process holds the file's lock")
        }
        Some(code::IOERR | code::CANTOPEN | code::READONLY | code::PERM | code::INTERRUPT) => {
            (ErrorKind::Unavailable, "the file cannot be read or written")
        }
        _ => (ErrorKind::Internal, "the statement failed"),
    }
}

/// The error for commits whose transaction's `COMMIT` failed, on the file at `path`.
///
/// A full disk is no unknown outcome: the frame that makes the transaction count is the last one written, and it was not
/// (<https://www.sqlite.org/walformat.html>). Whether a failed sync has left anything on the disk, nobody knows.
pub(crate) fn at_commit(operation: &'static str, path: &Path, source: Arc<sqlx::Error>) -> Error {
    if primary_code(&source) == Some(code::FULL) {
        return full(not_applied(operation, source), path);
    }
    Error::new(ErrorKind::OutcomeUnknown, operation, "COMMIT failed")
        .with_context("path", path.display())
        .with_source(source)
}

/// As [`not_applied`], for a write to the file at `path`.
pub(crate) fn not_written(operation: &'static str, path: &Path, source: Arc<sqlx::Error>) -> Error {
    let is_full = primary_code(&source) == Some(code::FULL);
    let error = not_applied(operation, source);
    if is_full { full(error, path) } else { error.with_context("path", path.display()) }
}

fn full(error: Error, path: &Path) -> Error {
    error.with_context("path", path.display()).with_user_message(format!(
        "The state store (sqlite) has no room left for {}: its disk is full, or it has its configured size. Make room there and \
         try again; nothing was changed.",
        path.display()
    ))
}

fn primary_code(error: &sqlx::Error) -> Option<u32> {
    let sqlx::Error::Database(database) = error else { return None };
    // The low byte of an extended code is its primary code.
    Some(database.code()?.parse::<u32>().ok()? & 0xff)
}

/// The error for a file that cannot be opened or made, with a line for the user: which provider, which file, what to do.
pub(crate) fn not_opened(operation: &'static str, path: &Path, error: impl Into<Arc<sqlx::Error>>) -> Error {
    let source = error.into();
    let code = primary_code(&source);
    let error = not_applied(operation, source).with_context("path", path.display());
    match code {
        Some(code::NOTADB) => say(error, path, "is no SQLite database", ANOTHER_FILE),
        Some(code::CORRUPT) => {
            say(error, path, "is damaged", "Restore it from a backup, or choose another data folder.")
        }
        Some(code::FULL) => say(
            error,
            path,
            "has no room left: its disk is full",
            "Make room there, or choose another data folder.",
        ),
        Some(code::READONLY | code::CANTOPEN | code::PERM) => {
            let error = error.with_kind(ErrorKind::PermissionDenied);
            say(
                error,
                path,
                "cannot be written",
                "Let this user write to the file and its folder, or choose another data folder.",
            )
        }
        Some(code::BUSY | code::LOCKED | code::PROTOCOL) => say(
            error,
            path,
            "is locked by another process",
            "Stop the other one, or choose another data folder.",
        ),
        _ => say(
            error,
            path,
            "cannot be opened",
            "Look at the log for the reason, or choose another data folder.",
        ),
    }
}

/// What to do about a file that is not ours.
pub(crate) const ANOTHER_FILE: &str = "Move the file away, or choose another data folder.";

/// The error for a file that cannot be made.
pub(crate) fn not_made(operation: &'static str, path: &Path, source: std::io::Error) -> Error {
    use std::io::ErrorKind as Io;
    let (kind, what, advice) = match source.kind() {
        Io::NotFound | Io::NotADirectory => (
            ErrorKind::Unavailable,
            "cannot be made: its folder is not there",
            "Make the folder, or choose another data folder.",
        ),
        Io::PermissionDenied | Io::ReadOnlyFilesystem => (
            ErrorKind::PermissionDenied,
            "cannot be made: its folder is read-only",
            "Let this user write to it, or choose another data folder.",
        ),
        Io::StorageFull | Io::QuotaExceeded => (
            ErrorKind::Exhausted,
            "cannot be made: the disk is full",
            "Make room there, or choose another data folder.",
        ),
        _ => (
            ErrorKind::Unavailable,
            "cannot be made",
            "Look at the log for the reason, or choose another data folder.",
        ),
    };
    let error = Error::new(kind, operation, "the state file cannot be made").with_source(source);
    say(error.with_context("path", path.display()), path, what, advice)
}

/// Adds the line for the user.
pub(crate) fn say(error: Error, path: &Path, what: &str, advice: &str) -> Error {
    error.with_user_message(format!(
        "The state store (sqlite): {} {what}. Nothing was changed. {advice}",
        path.display()
    ))
}

/// The error for a row that no version of ours writes.
pub(crate) fn corrupt(operation: &'static str, message: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, operation, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_codes_are_judged_by_their_primary_code() {
        assert_eq!(of_code(Some(13)).0, ErrorKind::Exhausted);
        assert_eq!(of_code(Some(10 | (4 << 8))).0, ErrorKind::Unavailable, "SQLITE_IOERR_FSYNC");
        assert_eq!(of_code(Some(11 | (1 << 8))).0, ErrorKind::Corrupt, "SQLITE_CORRUPT_VTAB");
        assert_eq!(of_code(Some(19)).0, ErrorKind::Internal, "SQLITE_CONSTRAINT");
        assert_eq!(of_code(None).0, ErrorKind::Internal);
    }
}
