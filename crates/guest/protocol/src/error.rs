use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::MAX_ERROR_TEXT;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure an [`Error`] is; callers match on it and never on text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// What was named is not there (a process, a file, a program).
    NotFound,
    /// What was to be made is already there.
    AlreadyExists,
    /// The state of the thing does not allow the operation.
    Conflict,
    /// The request itself is wrong.
    InvalidInput,
    /// The peer does not know the operation, or no common protocol version exists.
    NotSupported,
    /// The key or the incarnation is not the peer's, or the guest's file system said no.
    PermissionDenied,
    /// A bound was reached (processes, streams, disk space).
    Exhausted,
    /// The peer is gone, silent, or not ready; nothing of the operation was applied.
    Unavailable,
    /// The connection was lost after the request went out: it may or may not have been applied.
    OutcomeUnknown,
    /// The peer broke the protocol, or a config drive is damaged.
    Corrupt,
    /// Anything else: a defect.
    Internal,
}

impl ErrorKind {
    const NAMES: [(Self, &'static str); 11] = [
        (Self::NotFound, "not_found"),
        (Self::AlreadyExists, "already_exists"),
        (Self::Conflict, "conflict"),
        (Self::InvalidInput, "invalid_input"),
        (Self::NotSupported, "not_supported"),
        (Self::PermissionDenied, "permission_denied"),
        (Self::Exhausted, "exhausted"),
        (Self::Unavailable, "unavailable"),
        (Self::OutcomeUnknown, "outcome_unknown"),
        (Self::Corrupt, "corrupt"),
        (Self::Internal, "internal"),
    ];

    /// The name on the wire, stable for ever.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::NAMES.iter().find(|(kind, _)| *kind == self).map_or("internal", |(_, name)| name)
    }

    /// The kind of this name; a name of a newer version is [`ErrorKind::Internal`].
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        Self::NAMES.iter().find(|(_, known)| *known == name).map_or(Self::Internal, |(kind, _)| *kind)
    }
}

impl std::fmt::Display for ErrorKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Serialize for ErrorKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_name(&String::deserialize(deserializer)?))
    }
}

/// A failure, as it stands on the wire and as callers get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Error {
    /// What callers match on.
    pub kind: ErrorKind,
    /// What a person reads. Of a guest's answer: cut to [`MAX_ERROR_TEXT`] characters, without control characters.
    pub message: String,
}

impl Error {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The error for an input/output failure of the operating system during `operation`.
    #[must_use]
    pub fn from_io(operation: &str, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::AlreadyExists => ErrorKind::AlreadyExists,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
            Io::InvalidInput
            | Io::NotADirectory
            | Io::IsADirectory
            | Io::InvalidFilename
            | Io::ArgumentListTooLong => ErrorKind::InvalidInput,
            Io::DirectoryNotEmpty | Io::ResourceBusy | Io::ExecutableFileBusy => ErrorKind::Conflict,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge | Io::OutOfMemory => ErrorKind::Exhausted,
            Io::TimedOut
            | Io::ConnectionRefused
            | Io::ConnectionReset
            | Io::ConnectionAborted
            | Io::NotConnected
            | Io::BrokenPipe
            | Io::WriteZero
            | Io::UnexpectedEof => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, format!("{operation}: {error}"))
    }

    /// The same error with a message that is safe to show and to log.
    #[must_use]
    pub(crate) fn sanitized(self) -> Self {
        let message = self
            .message
            .chars()
            .take(MAX_ERROR_TEXT)
            .map(|character| if character.is_control() { ' ' } else { character })
            .collect();
        Self { kind: self.kind, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_kind_of_a_newer_peer_is_internal() {
        let error: Error = serde_json::from_str(r#"{"kind":"brand_new","message":"x","more":1}"#).unwrap();
        assert_eq!(error.kind, ErrorKind::Internal);
    }

    #[test]
    fn every_kind_survives_the_wire() {
        for (kind, name) in ErrorKind::NAMES {
            assert_eq!(kind.as_str(), name);
            assert_eq!(ErrorKind::from_name(name), kind);
        }
    }

    #[test]
    fn a_hostile_text_is_cut_and_loses_its_control_characters() {
        let text = format!("\u{1b}[31m{}", "x".repeat(100_000));
        let clean = Error::new(ErrorKind::Internal, text).sanitized();
        assert_eq!(clean.message.chars().count(), MAX_ERROR_TEXT);
        assert!(!clean.message.contains('\u{1b}'));
    }
}
