//! How to reach the cluster.

use std::fmt;
use std::time::Duration;

use flames_error::{Error, Result};
use http::Uri;

use crate::error::OPEN;

/// The longest prefix, in bytes.
const MAX_PREFIX_BYTES: usize = 64;

/// How to open a store.
#[derive(Clone)]
pub struct EtcdConfig {
    /// The members' client URLs, `http://host:port`, at least one. When one does not answer, the next is asked.
    pub endpoints: Vec<String>,
    /// The user, where the cluster has users. Needs `password`, and the right to read and write the prefix
    /// (`etcdctl role grant-permission ROLE --prefix=true readwrite flames/`).
    pub username: Option<String>,
    /// The user's password. A secret: never shown by `Debug`.
    pub password: Option<String>,
    /// What the store's keys begin with: 1 to 64 bytes. Several stores may live in one cluster, each below its prefix; none of these may
    /// begin with another.
    pub prefix: String,
    /// How many requests are under way at the same time, at least 1, each on a connection. One more serves hints. Behind this,
    /// operations wait.
    pub max_requests: u32,
    /// How long making a connection may take. Behind it: `Unavailable`.
    pub connect_deadline: Duration,
    /// How long an operation may wait for its turn. Behind it: `Exhausted`.
    pub acquire_deadline: Duration,
    /// How long an operation may take as a whole, the two above included. A read is `Unavailable` then, and a commit that was sent is
    /// `OutcomeUnknown`.
    pub operation_deadline: Duration,
}

impl EtcdConfig {
    /// The cluster at `endpoint` with the defaults: the prefix `flames/`, 32 requests at a time, 2 seconds to connect, 5 to wait for a turn, 10 for an
    /// operation as a whole.
    pub fn at(endpoint: impl Into<String>) -> Self {
        Self {
            endpoints: vec![endpoint.into()],
            username: None,
            password: None,
            prefix: "flames/".to_owned(),
            max_requests: 32,
            connect_deadline: Duration::from_secs(2),
            acquire_deadline: Duration::from_secs(5),
            operation_deadline: Duration::from_secs(10),
        }
    }

    /// The endpoints, each as `http://host:port`. `InvalidInput` naming the setting that is wrong.
    pub(crate) fn checked(&self) -> Result<Vec<String>> {
        let refuse = |field: &str, sentence: &str| {
            Err(Error::invalid(OPEN, field, format!("etcd: the setting `{field}` {sentence}")))
        };
        if !(1..=MAX_PREFIX_BYTES).contains(&self.prefix.len()) {
            return refuse("prefix", "is 1 to 64 bytes.");
        }
        if self.max_requests == 0 {
            return refuse("max_requests", "is at least 1.");
        }
        if self.username.is_some() != self.password.is_some() {
            let field = if self.username.is_some() { "password" } else { "username" };
            return refuse(field, "is missing: a user and a password go together.");
        }
        let mut endpoints = Vec::new();
        for endpoint in &self.endpoints {
            let authority = endpoint.parse::<Uri>().ok().and_then(|uri| {
                let is_bare = uri.scheme_str() == Some("http") && uri.path().trim_matches('/').is_empty();
                uri.authority().filter(|_| is_bare).map(|authority| authority.as_str().to_owned())
            });
            match authority.filter(|authority| !authority.contains('@')) {
                Some(authority) => endpoints.push(format!("http://{authority}")),
                None => return refuse("endpoints", "is a list of URLs of the form http://host:port."),
            }
        }
        if endpoints.is_empty() {
            return refuse("endpoints", "names at least one member.");
        }
        Ok(endpoints)
    }
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "(secret)"))
            .field("prefix", &self.prefix)
            .field("max_requests", &self.max_requests)
            .field("connect_deadline", &self.connect_deadline)
            .field("acquire_deadline", &self.acquire_deadline)
            .field("operation_deadline", &self.operation_deadline)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_setting_is_named() {
        let field = |change: fn(&mut EtcdConfig)| {
            let mut config = EtcdConfig::at("http://127.0.0.1:2379/");
            change(&mut config);
            config.checked().map_err(|error| error.field().unwrap().to_owned())
        };
        assert_eq!(field(|_| {}), Ok(vec!["http://127.0.0.1:2379".to_owned()]));
        for wrong in
            ["", "127.0.0.1:2379", "https://etcd:2379", "http://etcd:2379/v3", "http://user:word@etcd:2379"]
        {
            let mut config = EtcdConfig::at(wrong);
            assert_eq!(config.checked().unwrap_err().field(), Some("endpoints"), "{wrong}");
            config.endpoints.clear();
            assert_eq!(config.checked().unwrap_err().field(), Some("endpoints"));
        }
        assert_eq!(field(|config| config.prefix.clear()), Err("prefix".to_owned()));
        assert_eq!(field(|config| config.prefix = "x".repeat(65)), Err("prefix".to_owned()));
        assert_eq!(field(|config| config.max_requests = 0), Err("max_requests".to_owned()));
        assert_eq!(field(|config| config.username = Some("u".to_owned())), Err("password".to_owned()));
        assert_eq!(field(|config| config.password = Some("p".to_owned())), Err("username".to_owned()));
    }

    #[test]
    fn the_password_is_not_shown() {
        let mut config = EtcdConfig::at("http://etcd:2379");
        config.password = Some("hunter2".to_owned());
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
