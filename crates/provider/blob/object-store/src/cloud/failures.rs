//! What a failed request means: for the next try, and for a caller.

use std::error::Error as StdError;

use flames_error::{Error, ErrorKind};
use object_store::client::{HttpError, HttpErrorKind};

/// Which cloud, and what it is called there: for messages.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The adapter's name.
    pub(super) provider: &'static str,
    /// The bucket or container.
    pub(super) bucket: String,
    /// The setting that names it.
    pub(super) bucket_setting: &'static str,
    /// Where the server is.
    pub(super) endpoint: String,
    /// The settings that say who we are.
    pub(super) credential_settings: &'static str,
}

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The object is not there.
    Missing,
    /// The object is there, or is not the version that the request was about.
    Refused,
    /// The server does not know such a request.
    NotKnown(Error),
    /// Another try may succeed.
    Passing {
        /// Whether the server may have done what was asked.
        may_be_done: bool,
        error: Error,
    },
    /// Another try cannot help.
    Final(Error),
}

impl Failure {
    /// The error of a request that changes nothing which a reader could see.
    pub(super) fn into_error(self, operation: &'static str) -> Error {
        match self {
            Self::Missing => Error::new(ErrorKind::NotFound, operation, "the object is not there"),
            Self::Refused => Error::new(ErrorKind::Conflict, operation, "the object is another version"),
            Self::NotKnown(error) | Self::Passing { error, .. } | Self::Final(error) => error,
        }
    }

    /// The error of a request that a reader sees done.
    pub(super) fn into_error_of_change(self, operation: &'static str) -> Error {
        match self {
            Self::Passing { may_be_done: true, error } => error.with_kind(ErrorKind::OutcomeUnknown),
            failure => failure.into_error(operation),
        }
    }
}

impl Place {
    /// A request that had no answer within its deadline.
    pub(super) fn too_slow(
        &self,
        operation: &'static str,
        deadline: impl StdError + Send + Sync + 'static,
    ) -> Failure {
        let error = self.unreachable(operation, "no answer came in time").with_source(deadline);
        Failure::Passing { may_be_done: true, error }
    }

    fn unreachable(&self, operation: &'static str, what: &str) -> Error {
        let line = format!(
            "{}: `{}` cannot be reached ({what}). Start it, or correct `endpoint`.",
            self.provider, self.endpoint
        );
        Error::unavailable(operation, line)
    }

    fn denied(&self, operation: &'static str) -> Error {
        Error::new(
            ErrorKind::PermissionDenied,
            operation,
            format!(
                "{}: `{}` refuses these credentials. Correct {}, or let them read, write and list `{}`.",
                self.provider, self.endpoint, self.credential_settings, self.bucket
            ),
        )
    }

    fn no_bucket(&self, operation: &'static str) -> Error {
        Error::unavailable(
            operation,
            format!(
                "{}: there is no `{}` at `{}`. Make it, or correct `{}`.",
                self.provider, self.bucket, self.endpoint, self.bucket_setting
            ),
        )
    }

    /// What an error of the client library means.
    pub(super) fn failure(&self, operation: &'static str, error: object_store::Error) -> Failure {
        use object_store::Error as Cause;
        let told = chain(&error);
        let source = Told::of(&error);
        match error {
            Cause::NotFound { .. } => self.missing(operation, &told, source),
            Cause::AlreadyExists { .. } | Cause::Precondition { .. } | Cause::NotModified { .. } => {
                Failure::Refused
            }
            Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. } => {
                Failure::Final(self.denied(operation).with_source(source))
            }
            Cause::NotSupported { .. } | Cause::NotImplemented { .. } => Failure::NotKnown(
                Error::new(ErrorKind::NotSupported, operation, "the server cannot do that")
                    .with_source(source),
            ),
            Cause::Generic { .. } => self.generic(operation, transport(&error), &told, source),
            _ => Failure::Final(
                Error::internal(operation, "the request could not be made").with_source(source),
            ),
        }
    }

    fn missing(&self, operation: &'static str, told: &str, source: Told) -> Failure {
        // The codes of S3 and GCS, and of Azure.
        if told.contains("NoSuchBucket") || told.contains("ContainerNotFound") {
            return Failure::Final(self.no_bucket(operation).with_source(source));
        }
        Failure::Missing
    }

    /// What the client library has no error of its own for.
    fn generic(
        &self,
        operation: &'static str,
        transport: Option<HttpErrorKind>,
        told: &str,
        source: Told,
    ) -> Failure {
        if let Some(kind) = transport {
            let (may_be_done, what) = match kind {
                HttpErrorKind::Connect => (false, "no connection"),
                _ => (true, "the connection was lost"),
            };
            let error = self.unreachable(operation, what).with_source(source);
            return Failure::Passing { may_be_done, error };
        }
        let elsewhere =
            ["incorrectly configured region", "PermanentRedirect", "AuthorizationHeaderMalformed"];
        if elsewhere.iter().any(|sign| told.contains(sign)) {
            let line =
                format!("{}: `{}` is in another region. Correct `region`.", self.provider, self.bucket);
            return Failure::Final(Error::invalid(operation, "region", line).with_source(source));
        }
        let credentials = ["InvalidAccessKeyId", "ExpiredToken", "InvalidToken", "AuthenticationFailed"];
        match status(told) {
            Some(401 | 403) => Failure::Final(self.denied(operation).with_source(source)),
            Some(404) => self.missing(operation, told, source),
            Some(409 | 412) => Failure::Refused,
            Some(501 | 405) => Failure::NotKnown(
                Error::new(ErrorKind::NotSupported, operation, "the server cannot do that")
                    .with_source(source),
            ),
            Some(507 | 413) => Failure::Final(
                Error::new(ErrorKind::Exhausted, operation, "the server has no room").with_source(source),
            ),
            Some(400..=499) if credentials.iter().any(|code| told.contains(code)) => {
                Failure::Final(self.denied(operation).with_source(source))
            }
            Some(429) => Failure::Passing {
                may_be_done: false,
                error: Error::unavailable(operation, "the server has too much to do").with_source(source),
            },
            Some(408 | 500..=599) | None => Failure::Passing {
                may_be_done: true,
                error: Error::unavailable(operation, "the server failed").with_source(source),
            },
            Some(_) => Failure::Final(
                Error::internal(operation, "the server does not take the request").with_source(source),
            ),
        }
    }
}

/// What the client library told, in one line of bounded length: its own errors tell everything once more at each level.
#[derive(Debug)]
struct Told(String);

impl Told {
    const MAX_LETTERS: usize = 600;

    fn of(error: &object_store::Error) -> Self {
        let words: Vec<_> = error.to_string().split_whitespace().map(str::to_owned).collect();
        Self(words.join(" ").chars().take(Self::MAX_LETTERS).collect())
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Told {}

/// All that an error and its sources tell.
fn chain(error: &object_store::Error) -> String {
    let mut told = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        told.push_str(": ");
        told.push_str(&cause.to_string());
        source = cause.source();
    }
    told
}

/// How the connection failed, if it did.
fn transport(error: &object_store::Error) -> Option<HttpErrorKind> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(http) = cause.downcast_ref::<HttpError>() {
            return Some(http.kind());
        }
        source = cause.source();
    }
    None
}

/// The HTTP status, which the client library tells in words only (`Server returned non-2xx status code: 503 …`).
fn status(told: &str) -> Option<u16> {
    let (_, rest) = told.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            provider: "s3",
            bucket: "images".into(),
            bucket_setting: "bucket",
            endpoint: "http://127.0.0.1:1".into(),
            credential_settings: "`access_key` and `secret_key`",
        }
    }

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: source.into() }
    }

    #[test]
    fn what_may_be_done_is_told_from_what_is_not() {
        let lost = HttpError::new(HttpErrorKind::Interrupted, std::io::Error::other("reset"));
        let never = HttpError::new(HttpErrorKind::Connect, std::io::Error::other("refused"));
        for (error, expected) in [
            (generic(lost), true),
            (generic(never), false),
            (generic("Server returned non-2xx status code: 503 Service Unavailable: "), true),
            (generic("Server returned non-2xx status code: 429 Too Many Requests: "), false),
        ] {
            match place().failure("blob.put", error) {
                Failure::Passing { may_be_done, error } => {
                    assert_eq!((may_be_done, error.kind()), (expected, ErrorKind::Unavailable));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_wrong_setting_is_named_in_one_line() {
        let refused =
            |text: &str| object_store::Error::PermissionDenied { path: "x".into(), source: text.into() };
        let error = place().failure("blob.open", refused("SignatureDoesNotMatch")).into_error("blob.open");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.message().contains("`secret_key`") && !error.message().contains('\n'));
        let missing = object_store::Error::NotFound { path: "x".into(), source: "NoSuchBucket".into() };
        let error = place().failure("blob.open", missing).into_error("blob.open");
        assert!(error.message().contains("`images`") && error.message().contains("`bucket`"));
        let elsewhere = generic("Received redirect without LOCATION, … an incorrectly configured region");
        let error = place().failure("blob.open", elsewhere).into_error("blob.open");
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("region")));
    }
}
