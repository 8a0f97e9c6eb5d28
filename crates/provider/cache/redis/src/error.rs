//! What an error of Redis means to a caller.

use flames_error::{Error, ErrorKind};
use redis::{ErrorKind as Cause, RedisError, ServerErrorKind};

use crate::config::RedisConfig;

/// How far a call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    /// It never left, or the server said no.
    Refused,
    /// The server may have done it.
    Perhaps,
}

/// An error, and whether what was asked may be done.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) reached: Reached,
    /// Whether the connection is of no more use.
    pub(crate) breaks_connection: bool,
    pub(crate) error: Error,
}

impl Failure {
    /// For a call that only reads.
    pub(crate) fn of_read(self) -> Error {
        self.error
    }

    /// For a call that changes something.
    pub(crate) fn of_change(self) -> Error {
        match self.reached {
            Reached::Refused => self.error,
            Reached::Perhaps => self.error.with_kind(ErrorKind::OutcomeUnknown),
        }
    }
}

/// No connection, or no answer.
pub(crate) fn unreachable(config: &RedisConfig, operation: &'static str, what: &str) -> Error {
    Error::unavailable(
        operation,
        format!("redis: `{}` cannot be reached ({what}). Start it, or correct `urls`.", config.place()),
    )
}

/// What went wrong while a connection was made: nothing was asked yet.
pub(crate) fn of_connecting(config: &RedisConfig, operation: &'static str, error: RedisError) -> Error {
    if is_denied(&error) {
        return denied(config, operation, error);
    }
    match error.kind() {
        Cause::InvalidClientConfig => {
            Error::invalid(operation, "urls", "redis: the settings do not fit together.").with_source(error)
        }
        Cause::Server(_) => Error::unavailable(operation, "redis: the server does not take connections yet")
            .with_source(error),
        _ => unreachable(config, operation, "no connection").with_source(error),
    }
}

/// What went wrong with a command.
pub(crate) fn of_command(config: &RedisConfig, operation: &'static str, error: RedisError) -> Failure {
    let refused = |error: Error| Failure { reached: Reached::Refused, breaks_connection: false, error };
    if is_denied(&error) {
        return Failure { breaks_connection: true, ..refused(denied(config, operation, error)) };
    }
    match error.kind() {
        Cause::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask,
        ) => Failure {
            // Another node may have the key by now: a new connection learns which.
            breaks_connection: true,
            ..refused(Error::unavailable(operation, "redis: the server cannot do it now").with_source(error))
        },
        Cause::Server(_) | Cause::Extension => refused(match error.code() {
            Some("OOM") => Error::new(ErrorKind::Exhausted, operation, "redis: `maxmemory` is used up")
                .with_source(error),
            Some("WRONGTYPE") => Error::new(
                ErrorKind::Corrupt,
                operation,
                "redis: another program uses this key, see `prefix`",
            )
            .with_source(error),
            _ => Error::internal(operation, "redis: the server does not take the command").with_source(error),
        }),
        Cause::UnexpectedReturnType | Cause::Parse => Failure {
            reached: Reached::Perhaps,
            breaks_connection: true,
            error: Error::internal(operation, "redis: the answer makes no sense").with_source(error),
        },
        _ => Failure {
            reached: Reached::Perhaps,
            breaks_connection: true,
            error: unreachable(config, operation, "the connection was lost").with_source(error),
        },
    }
}

fn is_denied(error: &RedisError) -> bool {
    matches!(error.kind(), Cause::AuthenticationFailed | Cause::Server(ServerErrorKind::NoPerm))
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
}

fn denied(config: &RedisConfig, operation: &'static str, error: RedisError) -> Error {
    Error::new(
        ErrorKind::PermissionDenied,
        operation,
        format!(
            "redis: `{}` refuses this user. Correct `username` and `password`, or allow the user the commands and the keys `{}*`.",
            config.place(),
            config.prefix
        ),
    )
    .with_source(error)
}
