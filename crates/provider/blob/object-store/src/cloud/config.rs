//! What an operator says about a cloud, and how patient the adapter is with it.

use std::fmt;
use std::time::Duration;

use flames_error::{Error, Result};

const OPERATION: &str = "blob.open";

/// A text that is never shown: keys, tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// A bucket of Amazon S3, or of a server that speaks its protocol.
#[cfg(feature = "s3")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Config {
    /// The bucket. It must be there.
    pub bucket: String,
    /// What the names of all our objects begin with (`flames/blobs`), so that a bucket can be shared; may be empty. Two stores must
    /// not have the same bucket and prefix unless they mean the same blobs.
    pub prefix: String,
    /// Where the server is (`http://127.0.0.1:8333`). None: Amazon's, in `region`.
    pub endpoint: Option<String>,
    /// The region. Servers that are not Amazon's mostly want `us-east-1`.
    pub region: String,
    /// The access key. None, with `secret_key`: the role of this machine (instance metadata).
    pub access_key: Option<String>,
    /// The secret key.
    pub secret_key: Option<Secret>,
    /// The token that goes with temporary keys.
    pub session_token: Option<Secret>,
    /// Whether the bucket is part of the host name (`bucket.host`) instead of the path. With an `endpoint`, that then has the
    /// bucket in its host name already.
    pub virtual_hosted: bool,
}

#[cfg(feature = "s3")]
impl S3Config {
    /// A bucket of Amazon's in `us-east-1`, with the role of this machine.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: String::new(),
            endpoint: None,
            region: "us-east-1".to_owned(),
            access_key: None,
            secret_key: None,
            session_token: None,
            virtual_hosted: false,
        }
    }
}

/// A bucket of Google Cloud Storage. Not tested here.
#[cfg(feature = "gcs")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcsConfig {
    /// The bucket. It must be there.
    pub bucket: String,
    /// What the names of all our objects begin with; may be empty.
    pub prefix: String,
    /// The JSON key of a service account. None: the account of this machine (metadata server).
    pub service_account_key: Option<Secret>,
    /// Where the server is. None: Google's.
    pub endpoint: Option<String>,
}

/// A container of Azure Blob Storage. Not tested here.
#[cfg(feature = "azure")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AzureConfig {
    /// The storage account.
    pub account: String,
    /// The container. It must be there.
    pub container: String,
    /// What the names of all our objects begin with; may be empty.
    pub prefix: String,
    /// The account's access key. None: the managed identity of this machine.
    pub access_key: Option<Secret>,
    /// Where the server is. None: Azure's.
    pub endpoint: Option<String>,
}

/// How long the adapter waits, how often it tries, and how much memory a put takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloudLimits {
    /// How long a connection may take to be made.
    pub connect: Duration,
    /// How long one request may take, but for the body of a read: up to a part of `part_bytes` goes into it.
    pub call: Duration,
    /// How long the body of a read may stand still before the read is resumed over a new connection.
    pub stall: Duration,
    /// How often a request is tried (at least once). A read that goes on may be resumed so often for each MiB.
    pub attempts: u32,
    /// The pause after the first failed try. It doubles each time, up to `longest_pause`; a random half of it is left out.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// How long a put may take as a whole. What is older than twice that and visible nowhere was abandoned.
    pub put: Duration,
    /// The size of a part of a multipart upload: at least 5 MiB, which S3 wants. A put holds up to `parts_in_flight + 2` of them in
    /// memory. An upload has at most 10,000 parts, so a longer blob must declare its size; then parts grow as needed.
    pub part_bytes: usize,
    /// How many parts of one put are uploaded at a time.
    pub parts_in_flight: usize,
}

impl Default for CloudLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            call: Duration::from_secs(30),
            stall: Duration::from_secs(15),
            attempts: 4,
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(2),
            put: Duration::from_secs(6 * 3600),
            part_bytes: 8 * 1024 * 1024,
            parts_in_flight: 2,
        }
    }
}

/// The smallest part that S3 takes, but for the last of an upload.
const MIN_PART_BYTES: usize = 5 * 1024 * 1024;

impl CloudLimits {
    pub(super) fn validate(&self) -> Result<()> {
        if self.part_bytes < MIN_PART_BYTES {
            return Err(Error::invalid(OPERATION, "part_bytes", "`part_bytes` is at least 5 MiB."));
        }
        if self.attempts == 0 || self.parts_in_flight == 0 {
            return Err(Error::invalid(
                OPERATION,
                "attempts",
                "`attempts` and `parts_in_flight` are at least 1.",
            ));
        }
        Ok(())
    }
}

/// `InvalidInput` when a setting that must be given is empty.
pub(super) fn given(setting: &'static str, value: &str) -> Result<()> {
    if value.trim().is_empty() {
        return Err(Error::invalid(OPERATION, setting, format!("`{setting}` is empty: give it.")));
    }
    Ok(())
}

/// `InvalidInput` unless the endpoint is a URL of http or https.
pub(super) fn check_endpoint(endpoint: Option<&str>) -> Result<()> {
    let Some(endpoint) = endpoint else { return Ok(()) };
    let parsed = endpoint.parse::<http::Uri>();
    let fits = parsed.is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    });
    if fits {
        return Ok(());
    }
    Err(Error::invalid(
        OPERATION,
        "endpoint",
        format!("`endpoint` is `{endpoint}`: write it as `https://host` or `http://host:port`."),
    ))
}

/// The prefix with a slash behind it, or nothing. `InvalidInput` when it cannot begin the names of objects.
pub(super) fn root(prefix: &str) -> Result<String> {
    let trimmed = prefix.trim_matches('/');
    if trimmed.is_empty() {
        return Ok(String::new());
    }
    match flames_blob::BlobKey::new(trimmed) {
        Ok(_) if trimmed.len() <= 256 => Ok(format!("{trimmed}/")),
        _ => Err(Error::invalid(
            OPERATION,
            "prefix",
            "`prefix` is at most 256 of a-z, A-Z, 0-9 and `._-:/=`, without empty, `.` or `..` segments.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        assert_eq!(format!("{:?}", Secret::from("hush")), "<redacted>");
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        assert_eq!(given("bucket", " ").unwrap_err().field(), Some("bucket"));
        for endpoint in ["127.0.0.1:8333", "ftp://host", "http://", "a b"] {
            assert_eq!(check_endpoint(Some(endpoint)).unwrap_err().field(), Some("endpoint"), "{endpoint}");
        }
        for endpoint in ["http://127.0.0.1:8333", "https://s3.example.org/"] {
            check_endpoint(Some(endpoint)).unwrap();
        }
        assert_eq!(root("/a/b/").unwrap(), "a/b/");
        assert_eq!(root("").unwrap(), "");
        assert_eq!(root("a//b").unwrap_err().field(), Some("prefix"));
    }
}
