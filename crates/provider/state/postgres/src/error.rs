//! From Postgres' errors to the house's.

use flames_error::{Error, ErrorKind};
use sqlx::postgres::PgConnectOptions;

pub(crate) const OPEN: &str = "state.open";

/// The code (<https://www.postgresql.org/docs/current/errcodes-appendix.html>) of an error that the server told.
fn code(error: &sqlx::Error) -> Option<String> {
    match error {
        sqlx::Error::Database(database) => database.code().map(|code| code.into_owned()),
        _ => None,
    }
}

/// Whether the connection is of no more use. An error of the statement leaves it as it was.
pub(crate) fn is_connection_lost(error: &sqlx::Error) -> bool {
    match code(error) {
        Some(code) => is_session_over(&code),
        None => !matches!(
            error,
            sqlx::Error::RowNotFound
                | sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::Encode(_)
        ),
    }
}

fn is_session_over(code: &str) -> bool {
    // Connection exceptions; the session was ended by an operator, a crash, a shutdown or a limit of idleness; and a server that
    // became a standby, from which a new connection may lead away.
    code.starts_with("08") || code.starts_with("57P") || code == "25006"
}

/// Whether the same statement, sent again, may go through at once.
pub(crate) fn is_worth_a_retry(error: &sqlx::Error) -> bool {
    // serialization_failure, deadlock_detected
    matches!(code(error).as_deref(), Some("40001" | "40P01"))
}

/// The error for an operation that certainly changed nothing.
pub(crate) fn not_applied(operation: &'static str, error: sqlx::Error) -> Error {
    let (kind, message) = match &error {
        sqlx::Error::Database(_) => of_code(code(&error).as_deref().unwrap_or_default()),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::RowNotFound => {
            (ErrorKind::Corrupt, "a row is of another shape")
        }
        sqlx::Error::Encode(_) => (ErrorKind::Internal, "a parameter cannot be sent"),
        _ => (ErrorKind::Unavailable, "the connection was lost"),
    };
    Error::new(kind, operation, message).with_source(error)
}

/// The error for a commit or a trim that was sent.
pub(crate) fn sent(operation: &'static str, error: sqlx::Error) -> Error {
    let refused = match code(&error) {
        // A refusal rolls back; but a session that ends may have committed before it could say so.
        Some(code) => !is_session_over(&code) || code == "25006",
        None => matches!(error, sqlx::Error::Encode(_)),
    };
    if refused {
        return not_applied(operation, error);
    }
    Error::new(ErrorKind::OutcomeUnknown, operation, "the connection was lost before the answer")
        .with_source(error)
}

fn of_code(code: &str) -> (ErrorKind, &'static str) {
    match code {
        "53100" => (ErrorKind::Exhausted, "the server's disk is full"),
        "53200" => {
            (ErrorKind::Exhausted, "the server is out of memory or of locks (max_locks_per_transaction)")
        }
        "53300" => (ErrorKind::Exhausted, "the server takes no more connections"),
        "57014" => (ErrorKind::Unavailable, "the statement took too long"),
        "40001" | "40P01" | "55P03" => {
            (ErrorKind::Unavailable, "the statement lost against others each time")
        }
        "25006" => (ErrorKind::Unavailable, "the server is read-only; writes go to the primary"),
        "42501" => (ErrorKind::PermissionDenied, "the user may not use the store's tables"),
        "42P01" | "42883" | "3F000" | "42703" => {
            (ErrorKind::Corrupt, "tables or functions of the store are missing")
        }
        "XX001" | "XX002" => (ErrorKind::Corrupt, "the server says that its data is damaged"),
        _ if is_session_over(code) => (ErrorKind::Unavailable, "the server ended the session"),
        _ if code.starts_with("53") => (ErrorKind::Exhausted, "the server has reached a limit"),
        _ => (ErrorKind::Internal, "the statement failed"),
    }
}

/// Where a connection was to lead to, for errors: never the password.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    server: String,
    user: String,
    database: String,
}

impl Target {
    pub(crate) fn of(options: &PgConnectOptions) -> Self {
        let server = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        Self {
            server,
            user: options.get_username().to_owned(),
            database: options.get_database().unwrap_or(options.get_username()).to_owned(),
        }
    }

    /// The error for a connection that was not made: one line that says what to do.
    pub(crate) fn not_connected(&self, operation: &'static str, error: sqlx::Error) -> Error {
        let Target { server, user, database } = self;
        let code = code(&error).unwrap_or_default();
        let (kind, field, line) = match (&error, &*code) {
            (_, "28P01" | "28000") => (
                ErrorKind::PermissionDenied,
                "url",
                format!(
                    "the server {server} refused the user `{user}`: correct user and password in the setting `url`"
                ),
            ),
            (_, "3D000") => (
                ErrorKind::InvalidInput,
                "url",
                format!(
                    "the server {server} has no database `{database}`: create it, or correct the setting `url`"
                ),
            ),
            (_, "42501") => (
                ErrorKind::PermissionDenied,
                "url",
                format!(
                    "the user `{user}` may not connect to the database `{database}`: grant it CONNECT, or correct the setting `url`"
                ),
            ),
            (_, "53300") => (
                ErrorKind::Exhausted,
                "max_connections",
                format!(
                    "the server {server} takes no more connections: lower the setting `max_connections`, or raise the server's"
                ),
            ),
            (_, "57P03") => (
                ErrorKind::Unavailable,
                "url",
                format!("the server {server} is starting or stopping: wait, or see its log"),
            ),
            (sqlx::Error::Configuration(_), _) => (
                ErrorKind::InvalidInput,
                "url",
                "a file or option named by the setting `url` cannot be used".to_owned(),
            ),
            (sqlx::Error::Tls(_), _) => (
                ErrorKind::Unavailable,
                "url",
                format!(
                    "no TLS connection to the server {server}: correct `sslmode` and the certificates in the setting `url`"
                ),
            ),
            _ => (
                ErrorKind::Unavailable,
                "url",
                format!("no server answers at {server}: start it, or correct the setting `url`"),
            ),
        };
        self.refusal(kind, operation, field, line).with_source(error)
    }

    /// The error for a connection that was not made in time.
    pub(crate) fn too_late(&self, operation: &'static str) -> Error {
        let line = format!(
            "the server {} did not answer in time: see to the network, or correct the settings `url` and `connect_deadline`",
            self.server
        );
        self.refusal(ErrorKind::Unavailable, operation, "url", line)
    }

    /// The error for a server that answers and yet cannot be used.
    pub(crate) fn unfit(&self, kind: ErrorKind, operation: &'static str, line: &str) -> Error {
        self.refusal(kind, operation, "url", format!("the server {} {line}", self.server))
    }

    fn refusal(&self, kind: ErrorKind, operation: &'static str, field: &'static str, line: String) -> Error {
        Error::new(kind, operation, format!("postgres: {line}"))
            .with_field(field)
            .with_context("database", &self.database)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_kinds_that_callers_act_on() {
        assert_eq!(of_code("53100").0, ErrorKind::Exhausted);
        assert_eq!(of_code("53400").0, ErrorKind::Exhausted);
        assert_eq!(of_code("57P01").0, ErrorKind::Unavailable);
        assert_eq!(of_code("42P01").0, ErrorKind::Corrupt);
        assert_eq!(of_code("22000").0, ErrorKind::Internal);
    }

    #[test]
    fn a_commit_whose_connection_broke_is_of_unknown_outcome() {
        let broken = || sqlx::Error::Io(std::io::ErrorKind::UnexpectedEof.into());
        assert_eq!(sent("state.commit", broken()).kind(), ErrorKind::OutcomeUnknown);
        assert_eq!(not_applied("state.get", broken()).kind(), ErrorKind::Unavailable);
        assert!(is_connection_lost(&broken()));
    }
}
