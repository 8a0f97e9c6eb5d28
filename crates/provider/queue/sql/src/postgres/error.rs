//! From Postgres' errors to the house's.

use std::sync::Arc;

use flames_error::{Error, ErrorKind};
use sqlx::postgres::PgConnectOptions;

/// Why an operation failed. Kept apart from the operation, since one statement may have served many.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// All connections were in use until the deadline.
    Exhausted,
    /// The queue was closed.
    Closed,
    /// It certainly changed nothing: no connection could be made, the server refused the statement, or it only read.
    NotApplied(Arc<sqlx::Error>),
    /// The deadline passed before anything was sent, or while something was read.
    Late,
    /// The answer was lost.
    Unknown(Option<Arc<sqlx::Error>>),
}

impl Failure {
    pub(crate) fn into_error(self, operation: &'static str) -> Error {
        match self {
            Self::Exhausted => Error::new(
                ErrorKind::Exhausted,
                operation,
                "all connections to the server were in use until the deadline",
            ),
            Self::Closed => Error::unavailable(operation, "the queue is closed"),
            Self::NotApplied(error) => {
                let (kind, message) = of_failed(&error);
                Error::new(kind, operation, message).with_source(error)
            }
            Self::Late => Error::unavailable(operation, "the server did not answer in time"),
            Self::Unknown(source) => {
                let error = Error::new(ErrorKind::OutcomeUnknown, operation, "the server's answer was lost");
                match source {
                    Some(source) => error.with_source(source),
                    None => error,
                }
            }
        }
    }
}

/// The kind of an error that changed nothing. Codes: <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
fn of_failed(error: &sqlx::Error) -> (ErrorKind, &'static str) {
    match error {
        sqlx::Error::Database(database) => of_code(database.code().as_deref().unwrap_or_default()),
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => {
            (ErrorKind::Unavailable, "the server cannot be reached")
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
            (ErrorKind::Corrupt, "a row is of another shape")
        }
        _ => (ErrorKind::Internal, "the statement failed"),
    }
}

fn of_code(code: &str) -> (ErrorKind, &'static str) {
    match code {
        "53300" => (ErrorKind::Exhausted, "the server has no connection left"),
        "53100" => (ErrorKind::Exhausted, "the server's disk is full"),
        "42501" | "28000" | "28P01" => (ErrorKind::PermissionDenied, "the server does not let this user in"),
        "25006" => (ErrorKind::Unavailable, "the server is read-only"),
        "57014" => (ErrorKind::Unavailable, "the server gave the statement up"),
        "3D000" | "3F000" | "42P01" => (ErrorKind::Unavailable, "the database or its tables are not there"),
        "40001" | "40P01" | "55P03" => (ErrorKind::Unavailable, "another transaction was in the way"),
        _ => match code.get(..2) {
            Some("53") => (ErrorKind::Exhausted, "the server lacks a resource"),
            Some("08" | "57" | "58") => (ErrorKind::Unavailable, "the server is going away"),
            Some("XX") => (ErrorKind::Corrupt, "the server found its data damaged"),
            _ => (ErrorKind::Internal, "the statement failed"),
        },
    }
}

/// Whether the statement lost against another and can be sent again as it is: it was rolled back.
pub(crate) fn is_worth_repeating(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if matches!(database.code().as_deref(), Some("40001" | "40P01")))
}

/// Whether the server itself refused the statement, so that it certainly changed nothing, over a connection that goes on.
pub(crate) fn is_refusal(error: &sqlx::Error) -> bool {
    match error {
        // 08: connection; 57P: shutdown or crash; 58: trouble of the operating system. After these the connection is gone, and a
        // statement under way may have been committed before. 40003: completion unknown.
        sqlx::Error::Database(database) => {
            let code = database.code();
            let code = code.as_deref().unwrap_or_default();
            !(code.starts_with("08") || code.starts_with("57P") || code.starts_with("58") || code == "40003")
        }
        _ => false,
    }
}

/// The error for a server that cannot be used, with a sentence that says what to do.
pub(crate) fn not_opened(operation: &'static str, options: &PgConnectOptions, error: sqlx::Error) -> Error {
    let code = match &error {
        sqlx::Error::Database(database) => database.code().map(|code| code.into_owned()),
        _ => None,
    };
    let server = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    let (user, database) = (options.get_username(), options.get_database().unwrap_or("(the user's)"));
    let sentence = match code.as_deref() {
        Some("28P01" | "28000") => format!(
            "Queue `postgres`, setting `url`: {server} does not let user `{user}` in. Correct the user or the password."
        ),
        Some("3D000") => format!(
            "Queue `postgres`, setting `url`: {server} has no database `{database}`. Make it (createdb {database}), or name another."
        ),
        Some("42501") => format!(
            "Queue `postgres`, setting `url`: user `{user}` may not make a schema in database `{database}`. Grant it CREATE there, or name \
             another user."
        ),
        Some("53300") => format!(
            "Queue `postgres`, setting `max_connections`: {server} has no connection left. Lower the setting, or raise the server's."
        ),
        Some("25006") => {
            format!("Queue `postgres`, setting `url`: {server} is read-only. Name the primary server.")
        }
        _ if matches!(error, sqlx::Error::Tls(_)) => format!(
            "Queue `postgres`, setting `url`: no encrypted connection to {server} can be made. Check `sslmode` and the certificates."
        ),
        _ => format!(
            "Queue `postgres`, setting `url`: {server} cannot be reached. See that the server runs there and lets this host in."
        ),
    };
    Failure::NotApplied(Arc::new(error)).into_error(operation).with_field("url").with_user_message(sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_apart_by_what_a_caller_can_do() {
        for (code, kind) in [
            ("53300", ErrorKind::Exhausted),
            ("53200", ErrorKind::Exhausted),
            ("28P01", ErrorKind::PermissionDenied),
            ("57P03", ErrorKind::Unavailable),
            ("08006", ErrorKind::Unavailable),
            ("3D000", ErrorKind::Unavailable),
            ("XX001", ErrorKind::Corrupt),
            ("22021", ErrorKind::Internal),
            ("", ErrorKind::Internal),
        ] {
            assert_eq!(of_code(code).0, kind, "{code}");
        }
    }

    #[test]
    fn a_lost_answer_is_no_refusal() {
        let lost = sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert!(!is_refusal(&lost) && !is_worth_repeating(&lost));
        assert_eq!(Failure::Unknown(None).into_error("test").kind(), ErrorKind::OutcomeUnknown);
        assert_eq!(Failure::NotApplied(Arc::new(lost)).into_error("test").kind(), ErrorKind::Unavailable);
    }
}
