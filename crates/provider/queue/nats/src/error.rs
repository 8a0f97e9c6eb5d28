//! NATS' errors as the house's.

use std::error::Error as StdError;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use flames_error::{Error, ErrorKind};

/// Why a compare-and-set did not happen, or is not known to have.
#[derive(Debug)]
pub(crate) enum NotWritten {
    /// The subject's newest message is another one: at the sequence told, 0 for none; nothing when the server does not tell.
    Conflict(Option<u64>),
    Failed(Error),
}

/// What an answer with an error of JetStream means.
pub(crate) fn api(operation: &'static str, error: &async_nats::jetstream::Error) -> Error {
    let code = error.error_code();
    let kind = match code {
        ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::STREAM_MAX_STREAM_BYTES_EXCEEDED
        | ErrorCode::MAXIMUM_STREAMS_LIMIT
        | ErrorCode::MAXIMUM_CONSUMERS_LIMIT
        // The server answers this for a stream that is full (`maximum bytes exceeded`) and for a disk that is.
        | ErrorCode::STREAM_STORE_FAILED => ErrorKind::Exhausted,
        ErrorCode::CLUSTER_NOT_AVAILABLE | ErrorCode::STREAM_NOT_FOUND => ErrorKind::Unavailable,
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            ErrorKind::NotSupported
        }
        _ => ErrorKind::Internal,
    };
    Error::new(kind, operation, format!("NATS refused: {error}"))
}

/// What the answer to a publication, or its absence, means.
pub(crate) fn published(operation: &'static str, error: PublishError) -> NotWritten {
    let answer = error.source().and_then(|source| source.downcast_ref::<async_nats::jetstream::Error>());
    let kind = error.kind();
    NotWritten::Failed(match (kind, answer) {
        (PublishErrorKind::WrongLastSequence, Some(answer)) => {
            return NotWritten::Conflict(told_sequence(&answer.to_string()));
        }
        (_, Some(answer)) if answer.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => {
            return NotWritten::Conflict(None);
        }
        (_, Some(answer)) => api(operation, answer),
        (PublishErrorKind::StreamNotFound, None) => Error::unavailable(
            operation,
            "no JetStream stream takes the job: JetStream is down, or the stream was deleted",
        )
        .with_source(error),
        (PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe, None) => {
            Error::new(ErrorKind::OutcomeUnknown, operation, "NATS did not answer").with_source(error)
        }
        (_, None) => Error::internal(operation, "NATS did not take the job").with_source(error),
    })
}

/// The sequence in `wrong last sequence: 7 (code 400, error code 10071)`.
fn told_sequence(text: &str) -> Option<u64> {
    let rest = text.strip_prefix("wrong last sequence: ")?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_of_a_conflict_is_read_from_what_the_server_says() {
        assert_eq!(told_sequence("wrong last sequence: 7 (code 400, error code 10071)"), Some(7));
        assert_eq!(told_sequence("wrong last sequence (code 400, error code 10164)"), None);
    }
}
