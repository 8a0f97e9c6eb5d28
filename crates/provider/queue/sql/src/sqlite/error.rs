//! From SQLite's errors to the house's.

use std::path::Path;
use std::sync::Arc;

use flames_error::{Error, ErrorKind};

/// The primary result codes (<https://www.sqlite.org/rescode.html>) that a caller can act on.
mod code {
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
        sqlx::Error::PoolClosed => (ErrorKind::Unavailable, "the queue is closed"),
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
        Some(code::FULL) => (ErrorKind::Exhausted, "the disk is full, or the queue has its configured size"),
        Some(code::NOMEM) => (ErrorKind::Exhausted, "out of memory"),
        Some(code::CORRUPT) => (ErrorKind::Corrupt, "the file is damaged"),
        Some(code::NOTADB) => (ErrorKind::Corrupt, "the file is no SQLite database"),
        Some(code::BUSY | code::LOCKED | code::PROTOCOL) => {
            (ErrorKind::Unavailable, "another process holds the file's lock")
        }
        Some(code::IOERR | code::CANTOPEN | code::READONLY | code::INTERRUPT) => {
            (ErrorKind::Unavailable, "the file cannot be read or written")
        }
        _ => (ErrorKind::Internal, "the statement failed"),
    }
}

/// Whether reading or writing failed in the middle, so that what was under way may or may not be on disk.
pub(crate) fn is_trouble_with_the_disk(error: &sqlx::Error) -> bool {
    let code = match error {
        sqlx::Error::Database(database) => database.code().and_then(|code| code.parse::<u32>().ok()),
        sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => return true,
        _ => return false,
    };
    code.map(|code| code & 0xff) == Some(code::IOERR)
}

/// The error for a file that cannot be opened, with a sentence that says what to do.
pub(crate) fn not_opened(path: &Path, error: Error) -> Error {
    let shown = path.display();
    let sentence = match error.kind() {
        ErrorKind::Corrupt => format!(
            "Queue `sqlite`, setting `path`: {shown} is damaged or no SQLite database. Move it away, and a new one is made: what is due is \
             found again in the state store."
        ),
        ErrorKind::Exhausted => {
            format!(
                "Queue `sqlite`, setting `path`: no room is left for {shown}. Free some, or choose another folder."
            )
        }
        _ => format!(
            "Queue `sqlite`, setting `path`: {shown} cannot be opened. See that its folder is there and can be written, and that no other \
             program holds the file."
        ),
    };
    error.with_context("path", &shown).with_field("path").with_user_message(sentence)
}

/// The error for operations whose transaction's `COMMIT` failed.
pub(crate) fn outcome_unknown(operation: &'static str, source: Arc<sqlx::Error>) -> Error {
    Error::new(ErrorKind::OutcomeUnknown, operation, "COMMIT failed").with_source(source)
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
