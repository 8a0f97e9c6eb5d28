//! How to reach the database.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use flames_error::{Error, Result};
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use crate::error::OPEN;

/// How to open a store.
#[derive(Clone)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database?sslmode=verify-full`. `sslmode` is libpq's: `disable`, `prefer` (the default),
    /// `require`, `verify-ca`, `verify-full`; `sslrootcert`, `sslcert` and `sslkey` name files. What the URL leaves out comes
    /// from libpq's environment variables (`PGHOST`, `PGPASSWORD`, …). A secret: never shown by `Debug`.
    pub url: String,
    /// The schema that holds the store's tables: 1 to 40 of `a` to `z`, `0` to `9` and `_`, not beginning with a digit or `pg_`. It is
    /// made when it is not there. Several stores may live in one database, each in its schema.
    pub schema: String,
    /// How many connections run operations at the same time, at least 1. Two more serve hints. Behind this, operations wait.
    pub max_connections: u32,
    /// How long making a connection may take, TLS and authentication included. Behind it: `Unavailable`.
    pub connect_deadline: Duration,
    /// How long an operation may wait for a free connection. Behind it: `Exhausted`.
    pub acquire_deadline: Duration,
    /// How long an operation may take as a whole, the two above included. A read is `Unavailable` then, and a commit that
    /// was sent is `OutcomeUnknown`. The server gives up a statement at nine tenths of it.
    pub operation_deadline: Duration,
}

impl PostgresConfig {
    /// The database at `url` with the defaults: schema `flames`, 16 connections, 5 seconds to connect, 5 to wait for a free
    /// connection, 10 for an operation as a whole.
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            schema: "flames".to_owned(),
            max_connections: 16,
            connect_deadline: Duration::from_secs(5),
            acquire_deadline: Duration::from_secs(5),
            operation_deadline: Duration::from_secs(10),
        }
    }

    /// `InvalidInput` naming the setting that is wrong.
    pub(crate) fn options(&self) -> Result<PgConnectOptions> {
        let letters = self
            .schema
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        let begins = self.schema.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        if !letters || !begins || self.schema.len() > 40 || self.schema.starts_with("pg_") {
            return Err(Error::invalid(
                OPEN,
                "schema",
                "postgres: the setting `schema` is 1 to 40 of a-z, 0-9 and _, and begins with neither a digit nor `pg_`.",
            ));
        }
        if self.max_connections == 0 {
            return Err(Error::invalid(
                OPEN,
                "max_connections",
                "postgres: the setting `max_connections` is at least 1.",
            ));
        }
        let no_url = || {
            Error::invalid(
                OPEN,
                "url",
                "postgres: the setting `url` is no URL of the form postgres://user:password@host:port/database.",
            )
        };
        if !self.url.starts_with("postgres://") && !self.url.starts_with("postgresql://") {
            return Err(no_url());
        }
        // The source is left out: it may repeat the URL, password and all.
        let options = PgConnectOptions::from_str(&self.url).map_err(|_| no_url())?;
        Ok(options.application_name("flames").disable_statement_logging())
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("url", &"(secret)")
            .field("schema", &self.schema)
            .field("max_connections", &self.max_connections)
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
    fn the_password_is_not_shown() {
        let config = PostgresConfig::at("postgres://flames:hunter2@db/flames");
        assert!(!format!("{config:?}").contains("hunter2"));
        let mut wrong = config.clone();
        wrong.url = "postgres://flames:hunter2@db:not-a-port/flames".to_owned();
        assert!(!format!("{:?}", wrong.options().unwrap_err()).contains("hunter2"));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (schema, url, connections, field) in [
            ("flames", "mysql://db", 1, "url"),
            ("flames", "", 1, "url"),
            ("Flames", "postgres://db", 1, "schema"),
            ("", "postgres://db", 1, "schema"),
            ("1st", "postgres://db", 1, "schema"),
            ("pg_flames", "postgres://db", 1, "schema"),
            ("a\"b", "postgres://db", 1, "schema"),
            ("flames", "postgres://db", 0, "max_connections"),
        ] {
            let mut config = PostgresConfig::at(url);
            config.schema = schema.to_owned();
            config.max_connections = connections;
            assert_eq!(config.options().unwrap_err().field(), Some(field), "{schema} {url}");
        }
        assert!(PostgresConfig::at("postgres://u:p@h:1/d?sslmode=require").options().is_ok());
    }
}
