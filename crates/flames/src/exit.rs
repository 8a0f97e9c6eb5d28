//! How a command ends, and what it says when it fails.
//!
//! | Code | Meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | wrong usage, or input that is not allowed |
//! | 3 | what was named is not there |
//! | 4 | it does not fit what is there now (a conflict) |
//! | 5 | the API cannot be reached |
//!
//! `run`, `exec` and `attach` end with the workload's own code once it ran, 128 + n when signal n ended it.

use std::fmt;
use std::process::ExitCode;

use flames_error::{Error, ErrorKind};

/// Failed.
pub(crate) const FAILED: u8 = 1;
/// Wrong usage, or input that is not allowed.
pub(crate) const USAGE: u8 = 2;
/// What was named is not there.
pub(crate) const NOT_FOUND: u8 = 3;
/// A conflict.
pub(crate) const CONFLICT: u8 = 4;
/// The API cannot be reached.
pub(crate) const UNREACHABLE: u8 = 5;

/// How a command that did not fail ends.
pub(crate) type Outcome = Result<ExitCode, Failure>;

/// Why a command failed: for a person, with what to do.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// The process's exit code.
    pub(crate) exit: u8,
    /// What happened, as a sentence.
    pub(crate) message: Box<str>,
    /// What to do.
    pub(crate) advice: Option<Box<str>>,
    /// The stable code of the API's error.
    pub(crate) code: Option<Box<str>>,
    /// The input field that is wrong.
    pub(crate) field: Option<Box<str>>,
    /// The request, as the server's log knows it.
    pub(crate) request: Option<Box<str>>,
}

impl Failure {
    pub(crate) fn new(exit: u8, message: impl Into<String>) -> Self {
        Self { exit, message: message.into().into(), advice: None, code: None, field: None, request: None }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(FAILED, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// Words that are no command, as the parser tells of them: the sentence first, and then what is allowed.
    pub(crate) fn of_usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        let (message, advice) = text.split_once("\n\n").unwrap_or((&text, ""));
        let failure = Self::usage(message.strip_prefix("error: ").unwrap_or(message).trim());
        match advice.trim() {
            "" => failure,
            advice => failure.advise(advice),
        }
    }

    #[must_use]
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into().into());
        self
    }

    /// A failure to read or write something of this machine.
    pub(crate) fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { FAILED };
        Self::new(exit, format!("{what}: {error}"))
    }

    /// As a line of JSON, for `--json`.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "error": {
                "message": self.message,
                "code": self.code,
                "field": self.field,
                "advice": self.advice,
                "request_id": self.request,
                "exit_code": self.exit,
            }
        })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // Without a code it is not the server's word: nothing was heard from it.
        let heard = error.code().is_some();
        let exit = match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::NotSupported => USAGE,
            ErrorKind::NotFound => NOT_FOUND,
            ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::LeaseLost => CONFLICT,
            ErrorKind::Unavailable | ErrorKind::OutcomeUnknown if !heard => UNREACHABLE,
            ErrorKind::Unavailable
            | ErrorKind::OutcomeUnknown
            | ErrorKind::CacheMiss
            | ErrorKind::NoJobs
            | ErrorKind::PermissionDenied
            | ErrorKind::Exhausted
            | ErrorKind::Corrupt
            | ErrorKind::Internal => FAILED,
        };
        let advice = match (error.kind(), error.code()) {
            (ErrorKind::PermissionDenied, Some("UNAUTHENTICATED")) => Some(
                "Give the token of that server in FLAMES_TOKEN, or the folder of `flames up` with --data.",
            ),
            (_, None) if exit == UNREACHABLE => {
                Some("Start it with `flames up`, or name it with --data or FLAMES_API.")
            }
            _ => None,
        };
        let request = error.context().iter().find(|(key, _)| *key == "request");
        Self {
            exit,
            message: error.user_message().unwrap_or(error.message()).into(),
            advice: advice.map(Into::into),
            code: error.code().map(Into::into),
            field: error.field().map(Into::into),
            request: request.map(|(_, value)| value.as_str().into()),
        }
    }
}

/// The exit code that a workload's end becomes: its own, or 128 + the signal's number.
pub(crate) fn of_workload(code: Option<i32>, signal: Option<i32>) -> Option<u8> {
    match (code, signal) {
        // A process's status has eight bits (wait(2)).
        (Some(code), _) => Some((code & 0xff) as u8),
        (None, Some(signal)) => Some(128_u8.wrapping_add((signal & 0x7f) as u8)),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_s_end_becomes_the_exit_code_as_in_a_shell() {
        assert_eq!(of_workload(Some(0), None), Some(0));
        assert_eq!(of_workload(Some(3), None), Some(3));
        assert_eq!(of_workload(None, Some(9)), Some(137));
        assert_eq!(of_workload(None, None), None);
    }

    #[test]
    fn each_class_of_error_has_its_exit_code() {
        let exit = |error: Error| Failure::from(error).exit;
        assert_eq!(exit(Error::invalid("t", "f", "No.")), USAGE);
        assert_eq!(exit(Error::not_found("t", "vm", "x").with_code("VM_NOT_FOUND")), NOT_FOUND);
        assert_eq!(exit(Error::new(ErrorKind::Conflict, "t", "x").with_code("IMAGE_IN_USE")), CONFLICT);
        assert_eq!(exit(Error::unavailable("t", "no connection")), UNREACHABLE);
        assert_eq!(exit(Error::unavailable("t", "busy").with_code("UNAVAILABLE")), FAILED);
    }
}
