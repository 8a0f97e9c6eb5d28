//! What can go wrong with an image, in a form that crosses a process boundary.

use std::fmt;
use std::io;

use flames_error::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

/// `Result` with this crate's error.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

/// What is wrong, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageErrorKind {
    /// The input is damaged or not of the form that it claims.
    Malformed,
    /// The input tries something that no honest image needs (a path or link that leads out, a device node).
    Hostile,
    /// A stated limit would be passed.
    TooLarge,
    /// Bytes do not have the digest or size that they were announced with.
    DigestMismatch,
    /// The input is sound, and of a form that is not supported.
    Unsupported,
    /// The file is not a kernel that can be booted here.
    NotAKernel,
    /// A file or package that was named is not there.
    NotFound,
    /// A thing of that name is there already and differs.
    Conflict,
    /// A program of the machine that is needed is not installed.
    MissingProgram,
    /// The work did not end within its time.
    TimedOut,
    /// The disk is full.
    NoSpace,
    /// Reading or writing failed.
    Io,
    /// A defect of ours.
    Internal,
}

/// An error about an image: its kind, a sentence, and the archive entry or file concerned.
///
/// The sentence of the kinds that the input's author can act on may be shown to users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageError {
    /// What is wrong.
    pub kind: ImageErrorKind,
    /// One sentence.
    pub message: String,
    /// The archive entry or file concerned, printable.
    pub entry: Option<String>,
}

impl ImageError {
    /// An error of `kind` with a sentence.
    pub fn new(kind: ImageErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), entry: None }
    }

    /// Names the archive entry concerned; the outermost caller that knows it wins only where none is named yet.
    #[must_use]
    pub fn at(mut self, entry: &[u8]) -> Self {
        self.entry.get_or_insert_with(|| printable(entry));
        self
    }

    /// Names the file concerned, where none is named yet.
    #[must_use]
    pub fn at_path(self, path: &std::path::Path) -> Self {
        self.at(path.as_os_str().as_encoded_bytes())
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(ImageErrorKind::Malformed, message)
    }

    pub(crate) fn hostile(message: impl Into<String>) -> Self {
        Self::new(ImageErrorKind::Hostile, message)
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(ImageErrorKind::TooLarge, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ImageErrorKind::Unsupported, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ImageErrorKind::Internal, message)
    }
}

/// Bytes of a stranger as text that is safe on a terminal and bounded in length.
pub(crate) fn printable(bytes: &[u8]) -> String {
    const LONGEST: usize = 300;
    let shown = &bytes[..bytes.len().min(LONGEST)];
    let mut text: String = String::from_utf8_lossy(shown).escape_debug().collect();
    if bytes.len() > LONGEST {
        text.push('…');
    }
    text
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.entry {
            Some(entry) => write!(f, "{entry}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for ImageError {}

/// An error of ours that travelled through a reader comes out as it was.
impl From<io::Error> for ImageError {
    fn from(error: io::Error) -> Self {
        if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()) {
            return inner.clone();
        }
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ImageErrorKind::NoSpace,
            io::ErrorKind::FileTooLarge => ImageErrorKind::TooLarge,
            io::ErrorKind::NotFound => ImageErrorKind::NotFound,
            io::ErrorKind::UnexpectedEof => ImageErrorKind::Malformed,
            _ => ImageErrorKind::Io,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<rustix::io::Errno> for ImageError {
    fn from(errno: rustix::io::Errno) -> Self {
        io::Error::from(errno).into()
    }
}

impl From<ImageError> for io::Error {
    fn from(error: ImageError) -> Self {
        Self::other(error)
    }
}

/// The house's error. The public codes are `IMAGE_MALFORMED`, `IMAGE_REFUSED`, `IMAGE_TOO_LARGE`, `IMAGE_DIGEST_MISMATCH`,
/// `IMAGE_UNSUPPORTED`, `NOT_A_KERNEL`, `IMAGE_CONVERSION_TIMED_OUT` and `IMAGE_NO_SPACE`.
impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        const OPERATION: &str = "image";
        let text = error.to_string();
        let (kind, code) = match error.kind {
            ImageErrorKind::Malformed => (ErrorKind::InvalidInput, Some("IMAGE_MALFORMED")),
            ImageErrorKind::Hostile => (ErrorKind::InvalidInput, Some("IMAGE_REFUSED")),
            ImageErrorKind::TooLarge => (ErrorKind::InvalidInput, Some("IMAGE_TOO_LARGE")),
            ImageErrorKind::DigestMismatch => (ErrorKind::InvalidInput, Some("IMAGE_DIGEST_MISMATCH")),
            ImageErrorKind::Unsupported => (ErrorKind::InvalidInput, Some("IMAGE_UNSUPPORTED")),
            ImageErrorKind::NotAKernel => (ErrorKind::InvalidInput, Some("NOT_A_KERNEL")),
            ImageErrorKind::TimedOut => (ErrorKind::Exhausted, Some("IMAGE_CONVERSION_TIMED_OUT")),
            ImageErrorKind::NoSpace => (ErrorKind::Exhausted, Some("IMAGE_NO_SPACE")),
            ImageErrorKind::NotFound => (ErrorKind::NotFound, None),
            ImageErrorKind::Conflict => (ErrorKind::Conflict, None),
            ImageErrorKind::MissingProgram => (ErrorKind::NotSupported, None),
            ImageErrorKind::Io => (ErrorKind::Unavailable, None),
            ImageErrorKind::Internal => (ErrorKind::Internal, None),
        };
        let mut house = Self::new(kind, OPERATION, text.clone());
        if let Some(code) = code {
            house = house.with_code(code).with_user_message(text);
        }
        house.with_source(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_travels_through_a_reader_keeps_its_kind_and_entry() {
        let sent = ImageError::hostile("the path is absolute").at(b"/etc/\x1bpasswd");
        let received = ImageError::from(io::Error::from(sent.clone()));
        assert_eq!(received, sent);
        assert_eq!(received.to_string(), "/etc/\\u{1b}passwd: the path is absolute");
    }

    #[test]
    fn what_a_user_can_act_on_is_shown_and_what_is_internal_is_not() {
        let shown = Error::from(ImageError::hostile("the path is absolute").at(b"/x"));
        assert_eq!(shown.kind(), ErrorKind::InvalidInput);
        assert_eq!(shown.user_message(), Some("/x: the path is absolute"));
        let hidden = Error::from(ImageError::from(io::Error::other("/var/lib/secret is gone")));
        assert_eq!(hidden.user_message(), None);
    }
}
