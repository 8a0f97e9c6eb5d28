//! Configuration.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use flames_error::{Error, Result};

/// How to reach NATS, and what to keep there.
#[derive(Clone)]
pub struct NatsConfig {
    /// The servers, as `nats://host:port` or `tls://host:port`; one suffices to find the others of a cluster. A name and password in the
    /// URL are used, and are not shown by `Debug`.
    pub servers: Vec<String>,
    /// Who we are.
    pub credentials: Credentials,
    /// A file of PEM certificates of the authorities that the servers' certificates are signed by; none: the system's.
    pub certificate_authorities: Option<PathBuf>,
    /// What sets this queue apart from others in one account: 1 to 32 bytes of `a-z A-Z 0-9 _ -`. The stream is named
    /// `<prefix>_jobs`, its subjects `<prefix>.jobs.>`.
    pub prefix: String,
    /// On how many servers of a cluster the stream is kept, 1, 3 or 5. Used when the stream is made; an existing one is left as it is.
    pub replicas: usize,
    /// The most jobs that the queue holds, parked ones among them. An enqueue that would make one more is `Exhausted`, as far as this
    /// process knows: processes that enqueue at one moment may pass it by what they do not know of each other yet.
    pub max_jobs: usize,
    /// The most bytes that the stream may take on disk; none: as many as the server gives. Used when the stream is made. Behind it, every
    /// change is `Exhausted`.
    pub max_bytes: Option<u64>,
    /// How long an operation may take, connecting among them.
    pub operation_deadline: Duration,
}

/// What a server knows us by.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Nothing, or what stands in the servers' URLs.
    #[default]
    None,
    /// A credentials file, as `nsc generate creds` writes it.
    File(PathBuf),
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token.
    Token(String),
}

impl NatsConfig {
    /// The defaults with one server: no credentials, the prefix `flames`, one replica, a million jobs, no limit of bytes, 10 seconds.
    pub fn at(server: impl Into<String>) -> Self {
        Self {
            servers: vec![server.into()],
            credentials: Credentials::None,
            certificate_authorities: None,
            prefix: "flames".to_owned(),
            replicas: 1,
            max_jobs: 1_000_000,
            max_bytes: None,
            operation_deadline: Duration::from_secs(10),
        }
    }

    /// The name of the stream.
    pub fn stream(&self) -> String {
        format!("{}_jobs", self.prefix)
    }

    /// What every subject of the queue starts with.
    pub(crate) fn subject_prefix(&self) -> String {
        format!("{}.jobs", self.prefix)
    }

    pub(crate) fn validate(&self, operation: &'static str) -> Result<()> {
        if self.servers.is_empty() {
            return Err(Error::invalid(
                operation,
                "servers",
                "The queue `nats` needs at least one server in `servers`.",
            ));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if !(1..=32).contains(&self.prefix.len()) || !self.prefix.bytes().all(allowed) {
            return Err(Error::invalid(
                operation,
                "prefix",
                "The `prefix` of the queue `nats` is 1 to 32 bytes of a-z, A-Z, 0-9, `_` and `-`.",
            ));
        }
        if !matches!(self.replicas, 1 | 3 | 5) {
            return Err(Error::invalid(
                operation,
                "replicas",
                "The `replicas` of the queue `nats` are 1, 3 or 5.",
            ));
        }
        Ok(())
    }

    /// The servers without their secrets, for messages.
    pub(crate) fn shown_servers(&self) -> String {
        self.servers.iter().map(|url| without_secret(url)).collect::<Vec<_>>().join(", ")
    }
}

/// A URL without what stands before its `@`.
fn without_secret(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    match rest.rsplit_once('@') {
        Some((_, host)) if scheme.is_empty() => format!("***@{host}"),
        Some((_, host)) => format!("{scheme}://***@{host}"),
        None => url.to_owned(),
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Password { user, .. } => {
                f.debug_struct("Password").field("user", user).field("password", &"***").finish()
            }
            Self::Token(_) => f.write_str("Token(***)"),
        }
    }
}

impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsConfig")
            .field("servers", &self.shown_servers())
            .field("credentials", &self.credentials)
            .field("certificate_authorities", &self.certificate_authorities)
            .field("prefix", &self.prefix)
            .field("replicas", &self.replicas)
            .field("max_jobs", &self.max_jobs)
            .field("max_bytes", &self.max_bytes)
            .field("operation_deadline", &self.operation_deadline)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let mut config = NatsConfig::at("nats://user:hunter2@host:4222");
        config.servers.push("user:hunter2@other".to_owned());
        for credentials in [
            Credentials::Token("hunter2".to_owned()),
            Credentials::Password { user: "u".to_owned(), password: "hunter2".to_owned() },
        ] {
            config.credentials = credentials;
            let shown = format!("{config:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(shown.contains("nats://***@host:4222, ***@other"), "{shown}");
        }
    }

    #[test]
    fn a_prefix_that_is_no_name_of_a_stream_is_refused_by_name() {
        for prefix in ["", "a.b", "a b", "a*", &"x".repeat(33)] {
            let config = NatsConfig { prefix: prefix.to_owned(), ..NatsConfig::at("nats://h") };
            assert_eq!(config.validate("queue.open").unwrap_err().field(), Some("prefix"), "{prefix:?}");
        }
    }
}
