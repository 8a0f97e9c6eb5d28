//! From etcd's errors to the house's.

use flames_error::{Error, ErrorKind};

pub(crate) const OPEN: &str = "state.open";

/// The gRPC codes (<https://grpc.io/docs/guides/status-codes/>) that etcd answers with and a caller can act on.
mod code {
    pub(super) const PERMISSION_DENIED: i64 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i64 = 8;
    pub(super) const OUT_OF_RANGE: i64 = 11;
    pub(super) const UNAUTHENTICATED: i64 = 16;
    pub(super) const INVALID_ARGUMENT: i64 = 3;
    pub(super) const FAILED_PRECONDITION: i64 = 9;
}

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was not sent, or was refused: nothing was changed.
    NotApplied(Error),
    /// It was sent, and its answer is missing.
    Unanswered(Error),
    /// The cluster does not know the user's token, or not any more; nothing was changed.
    TokenRefused(Error),
    /// The revision asked for was compacted away meanwhile; nothing was changed.
    Compacted(Error),
    /// The answer is longer than is read.
    TooLong(Error),
}

impl Failure {
    /// The error of an operation that changes nothing.
    pub(crate) fn of_read(self) -> Error {
        match self {
            Self::NotApplied(error)
            | Self::Unanswered(error)
            | Self::TokenRefused(error)
            | Self::Compacted(error)
            | Self::TooLong(error) => error,
        }
    }

    /// The error of an operation that may have changed something.
    pub(crate) fn of_write(self) -> Error {
        match self {
            Self::NotApplied(error) | Self::TokenRefused(error) | Self::Compacted(error) => error,
            Self::Unanswered(error) | Self::TooLong(error) => error.with_kind(ErrorKind::OutcomeUnknown),
        }
    }
}

/// What a refusal means. etcd's sentences are fixed (<https://github.com/etcd-io/etcd/blob/main/api/v3rpc/rpctypes/error.go>).
pub(crate) fn refusal(operation: &'static str, grpc_code: Option<i64>, sentence: &str) -> Failure {
    let error = |kind, message: &str| {
        Error::new(kind, operation, format!("etcd: {message}")).with_context("etcd", sentence)
    };
    match grpc_code {
        Some(code::RESOURCE_EXHAUSTED) if sentence.contains("space exceeded") => Failure::NotApplied(error(
            ErrorKind::Exhausted,
            "the cluster's space is used up: compact and defragment it, clear the alarm, or raise its --quota-backend-bytes",
        )),
        Some(code::RESOURCE_EXHAUSTED) => Failure::NotApplied(error(
            ErrorKind::Exhausted,
            "the cluster takes no more requests at the moment",
        )),
        Some(code::UNAUTHENTICATED) => Failure::TokenRefused(error(
            ErrorKind::PermissionDenied,
            "the cluster does not know the user's token",
        )),
        // Users or roles were changed meanwhile.
        Some(code::INVALID_ARGUMENT) if sentence.contains("auth store is old") => {
            Failure::TokenRefused(error(ErrorKind::PermissionDenied, "the cluster's users were changed"))
        }
        Some(code::PERMISSION_DENIED) => {
            let line = "the user may not read and write the keys below the setting `prefix`: grant it that, or correct the setting `username`";
            Failure::NotApplied(error(ErrorKind::PermissionDenied, line).with_field("username"))
        }
        Some(code::OUT_OF_RANGE) => {
            Failure::Compacted(error(ErrorKind::Unavailable, "the revision was compacted while it was read"))
        }
        Some(code::INVALID_ARGUMENT) if sentence.contains("user name is empty") => {
            let line = "the cluster asks for a user: set `username` and `password`";
            Failure::NotApplied(error(ErrorKind::PermissionDenied, line).with_field("username"))
        }
        Some(code::INVALID_ARGUMENT) if sentence.contains("authentication failed") => {
            let line = "the cluster refused the user: correct the settings `username` and `password`";
            Failure::NotApplied(error(ErrorKind::PermissionDenied, line).with_field("password"))
        }
        Some(code::FAILED_PRECONDITION) if sentence.contains("not enabled") => {
            let line = "the cluster has no users: remove the settings `username` and `password`, or enable its authentication";
            Failure::NotApplied(error(ErrorKind::InvalidInput, line).with_field("username"))
        }
        Some(code::INVALID_ARGUMENT) => Failure::NotApplied(error(
            ErrorKind::Internal,
            "the request is refused: are --max-txn-ops and --max-request-bytes below their defaults?",
        )),
        // No leader, a leader that changed, a timeout: it may have been applied all the same.
        _ => Failure::Unanswered(error(ErrorKind::Unavailable, "the cluster did not carry the request out")),
    }
}

/// The error for something stored that no version of ours writes.
pub(crate) fn corrupt(operation: &'static str, message: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, operation, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_changed_nothing_and_what_timed_out_may_have() {
        let kind = |code, sentence| refusal("state.commit", code, sentence).of_write().kind();
        assert_eq!(kind(Some(8), "etcdserver: mvcc: database space exceeded"), ErrorKind::Exhausted);
        assert_eq!(kind(Some(8), "etcdserver: too many requests"), ErrorKind::Exhausted);
        assert_eq!(kind(Some(14), "etcdserver: request timed out"), ErrorKind::OutcomeUnknown);
        assert_eq!(kind(None, ""), ErrorKind::OutcomeUnknown);
        let read = refusal("state.get", Some(14), "etcdserver: no leader").of_read();
        assert_eq!(read.kind(), ErrorKind::Unavailable);
    }
}
