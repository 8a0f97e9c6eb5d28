//! The servers that one run of all tests shares.
//!
//! `cargo xtask test` and `cargo xtask servers` start one of each kind and name them in the environment. Nothing here connects
//! anywhere, so a suite can ask while its cases are listed. Whoever uses one makes a database, bucket, stream, prefix … of its own in it and
//! removes that at the end; who wants to kill a server starts one of their own.
//!
//! ```
//! // In the `Harness` of an adapter's suite, for its `unavailable`:
//! let missing = flames_test_servers::shared::postgres().err();
//! # let _ = missing.map(|missing| (missing.service.to_owned(), missing.reason));
//! ```

use std::path::PathBuf;

use crate::{S3Access, Unavailable};

/// `postgres://user:password@127.0.0.1:port/postgres` of a superuser, from `FLAMES_TEST_POSTGRES`.
///
/// # Errors
/// When the variable is not set; the reason is fit for a skip.
pub fn postgres() -> Result<String, Unavailable> {
    announced("postgres", "FLAMES_TEST_POSTGRES")
}

/// `redis://127.0.0.1:port`, from `FLAMES_TEST_REDIS`.
///
/// # Errors
/// As [`postgres`].
pub fn redis() -> Result<String, Unavailable> {
    announced("redis", "FLAMES_TEST_REDIS")
}

/// `nats://127.0.0.1:port` with JetStream, from `FLAMES_TEST_NATS`.
///
/// # Errors
/// As [`postgres`].
pub fn nats() -> Result<String, Unavailable> {
    announced("nats", "FLAMES_TEST_NATS")
}

/// `http://127.0.0.1:port`, from `FLAMES_TEST_ETCD`.
///
/// # Errors
/// As [`postgres`].
pub fn etcd() -> Result<String, Unavailable> {
    announced("etcd", "FLAMES_TEST_ETCD")
}

/// An S3 server, from `FLAMES_TEST_S3` (`http://ACCESSKEY:SECRET@127.0.0.1:port`).
///
/// # Errors
/// As [`postgres`], and when the variable has another form.
pub fn s3() -> Result<S3Access, Unavailable> {
    let url = announced("s3", "FLAMES_TEST_S3")?;
    S3Access::from_url(&url).ok_or_else(|| {
        Unavailable::broken("s3", "FLAMES_TEST_S3 is not http://ACCESSKEY:SECRET@HOST:PORT".to_owned())
    })
}

/// The Caddy program, from `FLAMES_TEST_CADDY`. Its configuration is one for the whole server, so each test starts one of its own
/// ([`crate::Caddy::start`]).
///
/// # Errors
/// As [`postgres`].
pub fn caddy() -> Result<PathBuf, Unavailable> {
    announced("caddy", "FLAMES_TEST_CADDY").map(PathBuf::from)
}

fn announced(service: &'static str, variable: &str) -> Result<String, Unavailable> {
    std::env::var(variable).ok().filter(|value| !value.is_empty()).ok_or_else(|| {
        let reason = format!("{variable} is not set (`cargo xtask servers {service} -- COMMAND` sets it)");
        Unavailable::absent(service, reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_nobody_announced_is_absent_and_the_reason_says_what_to_type() {
        let missing = announced("postgres", "FLAMES_TEST_NO_SUCH_SERVER").unwrap_err();
        assert!(missing.is_absent);
        assert_eq!(missing.service, "postgres");
        assert!(missing.reason.contains("cargo xtask servers postgres"), "{missing}");
    }
}
