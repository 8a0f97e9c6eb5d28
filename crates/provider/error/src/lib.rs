//! The one structured error that every provider, and everything above them, speaks.
//!
//! Callers match on [`ErrorKind`], never on text. What a log needs ([`Error::message`], context, source) and what a user may
//! read ([`Error::user_message`], [`Error::code`], [`Error::field`]) are different fields, so that nothing internal leaks.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// `Result` with the house's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// The thing named is not there.
    NotFound,
    /// A thing of that name is already there.
    AlreadyExists,
    /// A precondition did not hold; nothing was changed. Read again and decide anew.
    Conflict,
    /// The lease or fencing token is expired or superseded; its holder must stop.
    LeaseLost,
    /// The request is wrong in itself; repeating it cannot help.
    InvalidInput,
    /// This provider, host or version cannot do that.
    NotSupported,
    /// A cache has no value; ask the source of truth.
    CacheMiss,
    /// A queue has no job that is ready.
    NoJobs,
    /// The caller may not do that.
    PermissionDenied,
    /// A limit, quota or capacity is used up.
    Exhausted,
    /// Not reachable right now; nothing was changed.
    Unavailable,
    /// The answer was lost: the operation may or may not have been applied. Submit the same one again, then read.
    OutcomeUnknown,
    /// Stored data is damaged or of a shape that this version cannot read.
    Corrupt,
    /// A defect of ours or of what we stand on.
    Internal,
}

impl ErrorKind {
    /// Every kind, in the order of declaration.
    pub const ALL: [ErrorKind; 14] = [
        Self::NotFound,
        Self::AlreadyExists,
        Self::Conflict,
        Self::LeaseLost,
        Self::InvalidInput,
        Self::NotSupported,
        Self::CacheMiss,
        Self::NoJobs,
        Self::PermissionDenied,
        Self::Exhausted,
        Self::Unavailable,
        Self::OutcomeUnknown,
        Self::Corrupt,
        Self::Internal,
    ];

    /// Whether the same call, unchanged, may succeed later.
    ///
    /// `Conflict` is not retryable in this sense: the caller must read and decide again first.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::Exhausted | Self::Unavailable | Self::OutcomeUnknown | Self::NoJobs => true,
            Self::NotFound
            | Self::AlreadyExists
            | Self::Conflict
            | Self::LeaseLost
            | Self::InvalidInput
            | Self::NotSupported
            | Self::CacheMiss
            | Self::PermissionDenied
            | Self::Corrupt
            | Self::Internal => false,
        }
    }

    /// The kind's name in snake case, for logs, metrics and wire formats.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Conflict => "conflict",
            Self::LeaseLost => "lease_lost",
            Self::InvalidInput => "invalid_input",
            Self::NotSupported => "not_supported",
            Self::CacheMiss => "cache_miss",
            Self::NoJobs => "no_jobs",
            Self::PermissionDenied => "permission_denied",
            Self::Exhausted => "exhausted",
            Self::Unavailable => "unavailable",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Corrupt => "corrupt",
            Self::Internal => "internal",
        }
    }

    /// The kind that [`ErrorKind::as_str`] names, if any.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error: its kind, the operation and resource concerned, and separate texts for logs and for users.
///
/// Small (one pointer), so that `Result<T>` stays cheap.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    message: String,
    user_message: Option<String>,
    code: Option<&'static str>,
    field: Option<String>,
    resource: Option<(&'static str, String)>,
    context: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` in `operation` (for instance `"state.commit"`), with a sentence for logs.
    pub fn new(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            operation,
            message: message.into(),
            user_message: None,
            code: None,
            field: None,
            resource: None,
            context: Vec::new(),
            retry_after: None,
            source: None,
        }))
    }

    /// Names the resource concerned, as type and id.
    #[must_use]
    pub fn with_resource(mut self, kind: &'static str, id: impl Into<String>) -> Self {
        self.0.resource = Some((kind, id.into()));
        self
    }

    /// Adds a pair that helps whoever reads the log.
    #[must_use]
    pub fn with_context(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((key, value.to_string()));
        self
    }

    /// Says when a retry makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Sets the sentence that a user may read. It must not hold anything internal (paths of ours, SQL, addresses).
    #[must_use]
    pub fn with_user_message(mut self, message: impl Into<String>) -> Self {
        self.0.user_message = Some(message.into());
        self
    }

    /// Sets the stable public code, documented in `docs/errors/<CODE>.md`.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.0.code = Some(code);
        self
    }

    /// Names the input field that is wrong, as a path (`spec.vcpus`).
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.0.field = Some(field.into());
        self
    }

    /// Sets the kind anew, keeping the rest.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operation that failed.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The sentence for logs.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The sentence for users, when there is one.
    pub fn user_message(&self) -> Option<&str> {
        self.0.user_message.as_deref()
    }

    /// The stable public code, when there is one.
    pub fn code(&self) -> Option<&'static str> {
        self.0.code
    }

    /// The input field that is wrong, when one is.
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// The resource concerned, as type and id.
    pub fn resource(&self) -> Option<(&'static str, &str)> {
        self.0.resource.as_ref().map(|(kind, id)| (*kind, id.as_str()))
    }

    /// The pairs for logs.
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }

    /// When a retry makes sense, if known.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether the same call may succeed later. See [`ErrorKind::is_retryable`].
    pub fn is_retryable(&self) -> bool {
        self.0.kind.is_retryable()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.0.operation, self.0.kind, self.0.message)?;
        if let Some((kind, id)) = &self.0.resource {
            write!(f, " [{kind} {id}]")?;
        }
        for (key, value) in &self.0.context {
            write!(f, " {key}={value}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// Shorthands for the kinds that are made most often.
impl Error {
    /// [`ErrorKind::NotFound`] for the resource named.
    pub fn not_found(operation: &'static str, kind: &'static str, id: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, operation, format!("no such {kind}")).with_resource(kind, id)
    }

    /// [`ErrorKind::InvalidInput`] for the field named; the sentence says what is allowed and may be shown to users.
    pub fn invalid(operation: &'static str, field: impl Into<String>, sentence: impl Into<String>) -> Self {
        let sentence = sentence.into();
        Self::new(ErrorKind::InvalidInput, operation, sentence.clone())
            .with_field(field)
            .with_user_message(sentence)
    }

    /// [`ErrorKind::Internal`] with a sentence for logs.
    pub fn internal(operation: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, operation, message)
    }

    /// [`ErrorKind::Unavailable`] with a sentence for logs.
    pub fn unavailable(operation: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, operation, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_name_and_comes_back_from_it() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_name(kind.as_str()), Some(kind));
        }
        assert_eq!(ErrorKind::from_name("anything else"), None);
    }

    #[test]
    fn what_a_user_reads_is_apart_from_what_a_log_reads() {
        let error = Error::internal("state.commit", "table vm_records is locked")
            .with_resource("vm", "vm_1")
            .with_context("attempt", 3)
            .with_source(std::io::Error::other("disk"))
            .with_user_message("The request could not be stored. Try again.");
        assert_eq!(error.user_message(), Some("The request could not be stored. Try again."));
        assert_eq!(
            format!("{error:?}"),
            "state.commit: internal: table vm_records is locked [vm vm_1] attempt=3: disk"
        );
    }

    #[test]
    fn an_error_is_one_pointer_wide() {
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }
}
