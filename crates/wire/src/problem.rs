//! The one form of every error: problem details for HTTP APIs (RFC 9457).

use std::time::Duration;

use flames_error::{Error, ErrorKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::codes;

/// What went wrong, as problem details (RFC 9457). Match on `code`, never on the texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "type": "/docs/errors/INVALID_FIELD",
    "title": "An input field is missing, of the wrong type, or out of its range",
    "status": 400,
    "detail": "A VM has 1 to 64 vCPUs.",
    "code": "INVALID_FIELD",
    "kind": "invalid_input",
    "field": "spec.vcpus",
    "request_id": "01890a5d-ac96-774b-bcce-b302099a8057"
}))]
pub struct Problem {
    /// Where the code is explained: a path on this server.
    #[serde(rename = "type")]
    #[schema(example = "/docs/errors/INVALID_FIELD")]
    pub type_uri: String,
    /// The code's title.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What happened here, and what to do: for a person.
    pub detail: String,
    /// The stable code.
    #[schema(pattern = "^[A-Z_]+$")]
    pub code: String,
    /// The class of the error (`not_found`, `conflict`, `invalid_input`, `unavailable`, …).
    pub kind: String,
    /// The input field that is wrong, as a path (`spec.vcpus`); a header or query parameter by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The path of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The request, as the server's log knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// When a retry of the same request makes sense, in milliseconds from now. Absent: a retry cannot help, or nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// How long a client waits at least before it repeats a request that may succeed later, when nothing better is known.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

impl Problem {
    /// The media type of problem details.
    pub const MEDIA_TYPE: &str = "application/problem+json";

    /// What a client may be told of an error. Texts for logs, context and sources stay behind.
    pub fn of(error: &Error) -> Self {
        let code = public_code(error);
        let retry_after = error.retry_after().or_else(|| error.is_retryable().then_some(DEFAULT_RETRY_AFTER));
        Self {
            type_uri: format!("/docs/errors/{code}"),
            title: codes::title(code).to_owned(),
            status: status(error, code),
            detail: error.user_message().unwrap_or_else(|| sentence(error.kind())).to_owned(),
            code: code.to_owned(),
            kind: error.kind().as_str().to_owned(),
            field: error.field().map(str::to_owned),
            instance: None,
            request_id: None,
            retry_after_ms: retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// The error that the server spoke of, for `operation` of a client. An unknown kind of a newer server is `Internal`.
    pub fn into_error(self, operation: &'static str) -> Error {
        let kind = ErrorKind::from_name(&self.kind).unwrap_or(ErrorKind::Internal);
        let mut error = Error::new(kind, operation, format!("{}: {}", self.code, self.detail))
            .with_user_message(self.detail)
            .with_context("status", self.status);
        if let Some(code) = codes::known(&self.code) {
            error = error.with_code(code);
        }
        if let Some(field) = self.field {
            error = error.with_field(field);
        }
        if let Some(request) = self.request_id {
            error = error.with_context("request", request);
        }
        if let Some(after) = self.retry_after_ms {
            error = error.with_retry_after(Duration::from_millis(after));
        }
        error
    }
}

/// The code of an error, also of one that has none of its own.
fn public_code(error: &Error) -> &'static str {
    error.code().and_then(codes::known).unwrap_or(match error.kind() {
        ErrorKind::InvalidInput if error.field().is_some() => codes::INVALID_FIELD,
        ErrorKind::InvalidInput => codes::INVALID_REQUEST,
        ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::LeaseLost => "CONTENDED",
        ErrorKind::NotSupported => "NOT_SUPPORTED",
        ErrorKind::PermissionDenied => "FORBIDDEN",
        ErrorKind::Exhausted => "EXHAUSTED",
        ErrorKind::Unavailable | ErrorKind::OutcomeUnknown => "UNAVAILABLE",
        ErrorKind::NotFound
        | ErrorKind::CacheMiss
        | ErrorKind::NoJobs
        | ErrorKind::Corrupt
        | ErrorKind::Internal => codes::INTERNAL,
    })
}

/// The HTTP status of an error.
fn status(error: &Error, code: &'static str) -> u16 {
    match code {
        "IDEMPOTENCY_KEY_REUSED" => 422,
        "GENERATION_MISMATCH" => 412,
        "UNAUTHENTICATED" => 401,
        "METHOD_NOT_ALLOWED" => 405,
        "BODY_TOO_LARGE" => 413,
        "UNSUPPORTED_MEDIA_TYPE" => 415,
        "REQUEST_TIMEOUT" => 504,
        "CONTROLLER_NOT_FOUND"
        | "IMAGE_NOT_FOUND"
        | "PROCESS_NOT_FOUND"
        | "ROUTE_NOT_FOUND"
        | "VM_NOT_FOUND" => 404,
        codes::INTERNAL => 500,
        _ => match error.kind() {
            ErrorKind::NotFound => 404,
            ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::LeaseLost => 409,
            ErrorKind::InvalidInput => 400,
            ErrorKind::NotSupported => 422,
            ErrorKind::PermissionDenied => 403,
            ErrorKind::Exhausted => 429,
            ErrorKind::Unavailable | ErrorKind::OutcomeUnknown => 503,
            ErrorKind::CacheMiss | ErrorKind::NoJobs | ErrorKind::Corrupt | ErrorKind::Internal => 500,
        },
    }
}

/// What a user is told of an error that has no sentence of its own.
fn sentence(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "What the request names is not there.",
        ErrorKind::AlreadyExists => "A thing of that name is already there.",
        ErrorKind::Conflict => "The request does not fit what is there now. Read it again and decide anew.",
        ErrorKind::LeaseLost => "Another has taken over; this one must stop.",
        ErrorKind::InvalidInput => "The request is not allowed as it is.",
        ErrorKind::NotSupported => "That is not supported here.",
        ErrorKind::PermissionDenied => "That is not allowed.",
        ErrorKind::Exhausted => "A limit is used up. Try again later.",
        ErrorKind::Unavailable => "A part of the control plane cannot be reached right now. Try again.",
        ErrorKind::OutcomeUnknown => {
            "The answer of a part of the control plane was lost; the request may have been carried out. Send it again with the same Idempotency-Key."
        }
        ErrorKind::CacheMiss | ErrorKind::NoJobs | ErrorKind::Corrupt | ErrorKind::Internal => {
            "Flames made a mistake. The server's log has the details under this request's id."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_internal_is_told() {
        let error = Error::internal("state.commit", "table vm_records is locked")
            .with_resource("key", "default/vm/1")
            .with_context("path", "/var/lib/flames")
            .with_source(std::io::Error::other("disk on fire"));
        let text = serde_json::to_string(&Problem::of(&error)).unwrap();
        for secret in ["vm_records", "default/vm", "/var/lib", "fire", "state.commit"] {
            assert!(!text.contains(secret), "{secret} leaks: {text}");
        }
        assert_eq!(Problem::of(&error).status, 500);
        assert_eq!(Problem::of(&error).code, "INTERNAL");
    }

    #[test]
    fn a_client_gets_back_kind_code_field_and_sentence() {
        let error = Error::invalid("model.validate", "spec.vcpus", "A VM has 1 to 64 vCPUs.");
        let problem = Problem::of(&error);
        assert_eq!((problem.status, problem.code.as_str()), (400, "INVALID_FIELD"));
        let back = problem.into_error("client.create_vm");
        assert_eq!(back.kind(), ErrorKind::InvalidInput);
        assert_eq!(back.code(), Some("INVALID_FIELD"));
        assert_eq!(back.field(), Some("spec.vcpus"));
        assert_eq!(back.user_message(), Some("A VM has 1 to 64 vCPUs."));
        assert_eq!(back.retry_after(), None);
    }

    #[test]
    fn what_may_succeed_later_says_when_and_what_cannot_does_not() {
        for kind in ErrorKind::ALL {
            let problem = Problem::of(&Error::new(kind, "test", "test"));
            assert_eq!(problem.retry_after_ms.is_some(), kind.is_retryable(), "{kind}");
            assert!((400..600).contains(&problem.status));
        }
    }
}
