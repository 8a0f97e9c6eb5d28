//! What an answer that is no success means.

use flames_error::{Error, ErrorKind};
use http::StatusCode;
use serde::Deserialize;

use crate::operation::Operation;

/// The most characters of a fault message that are kept. They can hold a whole deserialisation error with a body's text.
const MESSAGE_LIMIT: usize = 2048;

/// The body of a refusal: `Error` of the description.
#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

/// What a fault message is known to mean, by words in it. Firecracker answers 400 to nearly everything, so the words are all there
/// is; the first that matches counts. Taken from its sources, `src/vmm/src/rpc_interface.rs`, `src/vmm/src/vmm_config/*.rs` and
/// `src/firecracker/src/api_server/parsed_request.rs` of 1.14.4 to 1.16.1. A test with a real Firecracker meets each that can be
/// met without a guest.
const MEANINGS: &[(&str, ErrorKind)] = &[
    // The version does not have the operation, the property, or the device.
    ("Invalid request method and/or path", ErrorKind::NotSupported),
    // Of the HTTP server, before 1.16: a DELETE.
    ("Unsupported HTTP method", ErrorKind::NotSupported),
    ("unknown field `", ErrorKind::NotSupported),
    ("The requested operation is not supported:", ErrorKind::NotSupported),
    ("PCI is not enabled", ErrorKind::NotSupported),
    ("Error creating KVM object", ErrorKind::NotSupported),
    ("Missing KVM capabilities", ErrorKind::NotSupported),
    // The machine is in another state.
    ("not supported after starting the microVM", ErrorKind::Conflict),
    ("not supported before starting the microVM", ErrorKind::Conflict),
    ("not allowed after configuring boot-specific resources", ErrorKind::Conflict),
    ("Operation not allowed", ErrorKind::Conflict),
    // What is named.
    ("Device ID in use", ErrorKind::AlreadyExists),
    ("Address in use (os error 98)", ErrorKind::AlreadyExists),
    ("Address already in use (os error 98)", ErrorKind::AlreadyExists),
    ("Device not found", ErrorKind::NotFound),
    ("No balloon device found", ErrorKind::NotFound),
    ("The MMDS data store is not initialized", ErrorKind::NotFound),
    ("The MMDS resource does not exist", ErrorKind::NotFound),
    // The host has no more: space, quota, memory, descriptors (errno(3)), each in both ways that Rust writes an error.
    ("(os error 28)", ErrorKind::Exhausted),
    ("Os { code: 28,", ErrorKind::Exhausted),
    ("(os error 122)", ErrorKind::Exhausted),
    ("Os { code: 122,", ErrorKind::Exhausted),
    ("(os error 12)", ErrorKind::Exhausted),
    ("Os { code: 12,", ErrorKind::Exhausted),
    ("(os error 24)", ErrorKind::Exhausted),
    ("Os { code: 24,", ErrorKind::Exhausted),
];

/// An error answer as an error, and whether the connection can be used again.
pub(crate) fn refused(operation: &Operation, status: StatusCode, body: &[u8]) -> (Error, bool) {
    let fault = serde_json::from_slice::<Fault>(body).ok().map(|fault| fault.fault_message);
    // Firecracker's HTTP server, as against its API, answers `{ "error": … }`, which is not always JSON: when it could not parse the
    // request, of which it may go on to read the rest as another, or when it has too many connections.
    let is_from_the_api = fault.is_some();
    let message = fault.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let kind = match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => ErrorKind::Unavailable,
        StatusCode::NOT_FOUND => ErrorKind::NotFound,
        StatusCode::PAYLOAD_TOO_LARGE => ErrorKind::InvalidInput,
        StatusCode::BAD_REQUEST => kind_of(&message),
        _ => ErrorKind::Internal,
    };
    let message = message.trim();
    let message = match message.char_indices().nth(MESSAGE_LIMIT) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None if message.is_empty() => "no reason given".to_owned(),
        None => message.to_owned(),
    };
    let error = Error::new(kind, operation.name, format!("Firecracker refused: {message}"))
        .with_context("status", status.as_u16());
    (error, is_from_the_api)
}

fn kind_of(message: &str) -> ErrorKind {
    MEANINGS
        .iter()
        .find(|(words, _)| message.contains(words))
        .map_or(ErrorKind::InvalidInput, |(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::{PATCH_VM, PUT_DRIVE};

    fn kind(status: u16, message: &str) -> ErrorKind {
        let body = serde_json::json!({ "fault_message": message }).to_string();
        refused(&PATCH_VM, StatusCode::from_u16(status).unwrap(), body.as_bytes()).0.kind()
    }

    #[test]
    fn a_refusal_has_the_kind_that_its_words_are_known_to_mean() {
        let before = "The requested operation is not supported before starting the microVM.";
        assert_eq!(kind(400, before), ErrorKind::Conflict);
        assert_eq!(kind(400, "Invalid request method and/or path: PATCH pmem."), ErrorKind::NotSupported);
        assert_eq!(
            kind(400, "Create snapshot error: No space left on device (os error 28)"),
            ErrorKind::Exhausted
        );
        let debugged =
            "Io { inner: Os { code: 28, kind: StorageFull, message: \"No space left on device\" } }";
        assert_eq!(kind(400, debugged), ErrorKind::Exhausted);
        assert_eq!(
            kind(400, "Machine config error: The number of vCPUs must be greater"),
            ErrorKind::InvalidInput
        );
        assert_eq!(kind(413, "MMDS limit exceeded error"), ErrorKind::InvalidInput);
        assert_eq!(kind(503, "anything"), ErrorKind::Unavailable);
        assert_eq!(kind(500, "anything"), ErrorKind::Internal);
    }

    #[test]
    fn a_refusal_has_the_servers_words_bounded_and_none_for_users() {
        let (error, reusable) =
            refused(&PUT_DRIVE, StatusCode::BAD_REQUEST, br#"{"fault_message":"no such /srv/x"}"#);
        assert_eq!(error.message(), "Firecracker refused: no such /srv/x");
        assert_eq!(error.operation(), "firecracker.drive.put");
        assert_eq!(error.user_message(), None);
        assert!(reusable);
        let endless = format!(r#"{{"fault_message":"{}"}}"#, "é".repeat(60_000));
        let (error, _) = refused(&PUT_DRIVE, StatusCode::BAD_REQUEST, endless.as_bytes());
        assert!(error.message().len() < 3 * MESSAGE_LIMIT);
    }

    #[test]
    fn after_an_answer_that_is_not_the_apis_the_connection_is_given_up() {
        for body in ["{ \"error\": \"Too\nmany\" }", "", "<html>", "\u{0}\u{1}"] {
            let (error, reusable) = refused(&PUT_DRIVE, StatusCode::BAD_REQUEST, body.as_bytes());
            assert!(!reusable && error.kind() == ErrorKind::InvalidInput, "{body}");
        }
    }
}
