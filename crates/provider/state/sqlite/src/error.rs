//! What users are told of a state file in trouble.

use std::path::Path;
use std::sync::Arc;

use flames_error::{Error, ErrorKind};
use flames_sqlite::error::{Trouble, not_applied, outcome_unknown};

/// The error for commits whose transaction's `COMMIT` failed, on the file at `path`.
///
/// A full disk is no unknown outcome: the frame that makes the transaction count is the last one written, and it was not
/// (<https://www.sqlite.org/walformat.html>). Whether a failed sync has left anything on the disk, nobody knows.
pub(crate) fn at_commit(operation: &'static str, path: &Path, source: Arc<sqlx::Error>) -> Error {
    if Trouble::of(&source) == Trouble::NoRoom {
        return full(not_applied(operation, source), path);
    }
    outcome_unknown(operation, source).with_context("path", path.display())
}

/// As [`not_applied`], for a write to the file at `path`.
pub(crate) fn not_written(operation: &'static str, path: &Path, source: Arc<sqlx::Error>) -> Error {
    let is_full = Trouble::of(&source) == Trouble::NoRoom;
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

/// The error for a file that cannot be opened or made, with a line for the user: which provider, which file, what to do.
pub(crate) fn not_opened(operation: &'static str, path: &Path, error: impl Into<Arc<sqlx::Error>>) -> Error {
    let source = error.into();
    let trouble = Trouble::of(&source);
    let error = not_applied(operation, source).with_context("path", path.display());
    match trouble {
        Trouble::NoDatabase => say(error, path, "is no SQLite database", ANOTHER_FILE),
        Trouble::Damaged => {
            say(error, path, "is damaged", "Restore it from a backup, or choose another data folder.")
        }
        Trouble::NoRoom => say(
            error,
            path,
            "has no room left: its disk is full",
            "Make room there, or choose another data folder.",
        ),
        Trouble::NotWritable => {
            let error = error.with_kind(ErrorKind::PermissionDenied);
            say(
                error,
                path,
                "cannot be written",
                "Let this user write to the file and its folder, or choose another data folder.",
            )
        }
        Trouble::Locked => say(
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
