//! Where the server is, and how patient the adapter is with it.

use std::fmt;
use std::time::Duration;

use flames_error::{Error, Result};
use redis::{ConnectionInfo, IntoConnectionInfo};

pub(crate) const OPEN: &str = "cache.open";

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

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

/// A Redis or Valkey, and how to use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// `redis://host:port/database`, or `rediss://…` for TLS. For a cluster, one or more of its nodes. No password in it: it would
    /// stand in logs.
    pub urls: Vec<String>,
    /// Whether the nodes are those of a cluster (`cluster-enabled yes`).
    pub is_cluster: bool,
    /// The user, where the server has users (ACL).
    pub username: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// What all our keys begin with, so that a server can be shared: 1 to 128 bytes of printable ASCII without spaces.
    pub prefix: String,
    /// How long a connection may take to be made, with signing in.
    pub connect: Duration,
    /// How long a call may take, with making a connection where there is none.
    pub call: Duration,
}

impl RedisConfig {
    /// One node, without a password, with patience for a network within a data centre.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            is_cluster: false,
            username: None,
            password: None,
            prefix: "flames:".to_owned(),
            connect: Duration::from_millis(800),
            call: Duration::from_secs(1),
        }
    }

    /// The first URL, for messages.
    pub(crate) fn place(&self) -> &str {
        self.urls.first().map_or("", String::as_str)
    }

    /// `InvalidInput`, naming the setting, when something cannot work.
    pub(crate) fn nodes(&self) -> Result<Vec<ConnectionInfo>> {
        if self.urls.is_empty() || (self.urls.len() > 1 && !self.is_cluster) {
            return Err(Error::invalid(
                OPEN,
                "urls",
                "redis: `urls` is one URL, or for a cluster (`is_cluster`) those of some of its nodes.",
            ));
        }
        let prefix_fits =
            (1..=128).contains(&self.prefix.len()) && self.prefix.bytes().all(|b| (0x21..0x7f).contains(&b));
        if !prefix_fits {
            return Err(Error::invalid(
                OPEN,
                "prefix",
                "redis: `prefix` is 1 to 128 bytes of printable ASCII without spaces.",
            ));
        }
        self.urls.iter().map(|url| self.node(url)).collect()
    }

    fn node(&self, url: &str) -> Result<ConnectionInfo> {
        let authority =
            url.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
        if authority.contains('@') {
            return Err(Error::invalid(
                OPEN,
                "urls",
                "redis: a URL in `urls` has a user or password in it: use `username` and `password`.",
            ));
        }
        let info = url.into_connection_info().map_err(|error| {
            Error::invalid(
                OPEN,
                "urls",
                format!("redis: `{url}` in `urls` is not `redis://host:port` or `rediss://host:port`."),
            )
            .with_source(error)
        })?;
        let mut settings = info.redis_settings().clone();
        if let Some(username) = &self.username {
            settings = settings.set_username(username);
        }
        if let Some(Secret(password)) = &self.password {
            settings = settings.set_password(password);
        }
        Ok(info.set_redis_settings(settings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_named() {
        let right = RedisConfig::new("redis://127.0.0.1:6379/2");
        assert_eq!(right.nodes().unwrap().len(), 1);
        for (setting, wrong) in [
            ("urls", RedisConfig::new("127.0.0.1:6379")),
            ("urls", RedisConfig::new("redis://user:hush@127.0.0.1:6379")),
            ("urls", RedisConfig { urls: Vec::new(), ..right.clone() }),
            ("urls", RedisConfig { urls: vec!["redis://a".into(), "redis://b".into()], ..right.clone() }),
            ("prefix", RedisConfig { prefix: String::new(), ..right.clone() }),
            ("prefix", RedisConfig { prefix: "a b".into(), ..right.clone() }),
        ] {
            let error = wrong.nodes().unwrap_err();
            assert_eq!(error.field(), Some(setting), "{wrong:?}");
            assert!(!format!("{error:?}").contains("hush"));
        }
    }

    #[test]
    fn the_password_is_never_shown() {
        let config = RedisConfig { password: Some("hush".into()), ..RedisConfig::new("redis://a") };
        assert!(!format!("{config:?}").contains("hush"));
    }
}
