//! From SQLite's errors to the house's.

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

/// What is wrong with a file, as far as somebody can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The disk is full, or the file has the size that it was given.
    NoRoom,
    /// Memory ran out.
    NoMemory,
    /// It is damaged.
    Damaged,
    /// It is no SQLite database.
    NoDatabase,
    /// Another process holds its lock.
    Locked,
    /// It cannot be opened, or is read-only.
    NotWritable,
    /// Reading or writing failed in the middle.
    Disk,
    /// The statement was interrupted.
    Interrupted,
    /// Anything else.
    Other,
}

impl Trouble {
    /// What an error tells of the file.
    pub fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(database) => {
                Self::of_code(database.code().and_then(|code| code.parse().ok()))
            }
            sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => Self::Disk,
            _ => Self::Other,
        }
    }

    fn of_code(extended: Option<u32>) -> Self {
        // The low byte of an extended code is its primary code.
        match extended.map(|code| code & 0xff) {
            Some(code::FULL) => Self::NoRoom,
            Some(code::NOMEM) => Self::NoMemory,
            Some(code::CORRUPT) => Self::Damaged,
            Some(code::NOTADB) => Self::NoDatabase,
            Some(code::BUSY | code::LOCKED | code::PROTOCOL) => Self::Locked,
            Some(code::CANTOPEN | code::READONLY | code::PERM) => Self::NotWritable,
            Some(code::IOERR) => Self::Disk,
            Some(code::INTERRUPT) => Self::Interrupted,
            _ => Self::Other,
        }
    }

    fn kind_and_message(self) -> (ErrorKind, &'static str) {
        match self {
            Self::NoRoom => (ErrorKind::Exhausted, "the disk is full, or the file has its configured size"),
            Self::NoMemory => (ErrorKind::Exhausted, "out of memory"),
            Self::Damaged => (ErrorKind::Corrupt, "the file is damaged"),
            Self::NoDatabase => (ErrorKind::Corrupt, "the file is no SQLite database"),
            Self::Locked => (ErrorKind::Unavailable, "another process holds the file's lock"),
            Self::NotWritable | Self::Disk | Self::Interrupted => {
                (ErrorKind::Unavailable, "the file cannot be read or written")
            }
            Self::Other => (ErrorKind::Internal, "the statement failed"),
        }
    }
}

/// The error for an operation that failed before it changed anything.
pub fn not_applied(operation: &'static str, error: impl Into<Arc<sqlx::Error>>) -> Error {
    let error = error.into();
    let (kind, message) = match &*error {
        sqlx::Error::PoolTimedOut => (ErrorKind::Exhausted, "no connection was free in time"),
        sqlx::Error::PoolClosed => (ErrorKind::Unavailable, "the file is closed"),
        sqlx::Error::WorkerCrashed => (ErrorKind::Unavailable, "the connection's thread ended"),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            (ErrorKind::Corrupt, "a row is of another shape")
        }
        error => Trouble::of(error).kind_and_message(),
    };
    Error::new(kind, operation, message).with_source(error)
}

/// The error for an operation whose `COMMIT` failed: whether a failed sync has left anything on the disk, nobody knows.
pub fn outcome_unknown(operation: &'static str, error: impl Into<Arc<sqlx::Error>>) -> Error {
    Error::new(ErrorKind::OutcomeUnknown, operation, "COMMIT failed").with_source(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_codes_are_judged_by_their_primary_code() {
        let of_code = |code| Trouble::of_code(code).kind_and_message().0;
        assert_eq!(of_code(Some(13)), ErrorKind::Exhausted);
        assert_eq!(of_code(Some(10 | (4 << 8))), ErrorKind::Unavailable, "SQLITE_IOERR_FSYNC");
        assert_eq!(of_code(Some(11 | (1 << 8))), ErrorKind::Corrupt, "SQLITE_CORRUPT_VTAB");
        assert_eq!(of_code(Some(19)), ErrorKind::Internal, "SQLITE_CONSTRAINT");
        assert_eq!(of_code(None), ErrorKind::Internal);
    }
}
