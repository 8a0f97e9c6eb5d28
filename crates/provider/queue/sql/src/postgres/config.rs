//! How the server is reached.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use flames_error::{Error, Result};
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use super::schema;
use crate::DEFAULT_PARKED_RETENTION;

/// How to reach the server.
#[derive(Clone)]
pub struct PostgresQueueConfig {
    /// Where the server is, as which user, which database and how: `postgres://user:password@host:port/database?sslmode=verify-full`.
    /// A secret, when it holds a password. The connection must be one session throughout: no pooler that shares it between
    /// transactions.
    pub url: String,
    /// The schema that the tables are in. It is made when it is not there, which needs the right `CREATE` on the database.
    pub schema: String,
    /// How many connections operations use at most. Two more carry hints. At least 1.
    pub max_connections: u32,
    /// How long an operation may take, waiting for a connection included. One that found none is `Exhausted` or `Unavailable`
    /// then, one that was sent is `OutcomeUnknown` if it changes anything.
    pub operation_deadline: Duration,
    /// How long parked jobs are kept; none: until they are requeued.
    pub parked_retention: Option<Duration>,
}

impl PostgresQueueConfig {
    /// The server at `url` with the defaults: schema `flames_queue`, 10 connections, 10 seconds, 14 days.
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            schema: "flames_queue".to_owned(),
            max_connections: 10,
            operation_deadline: Duration::from_secs(10),
            parked_retention: Some(DEFAULT_PARKED_RETENTION),
        }
    }

    /// How to connect, and what holds for each session.
    pub(crate) fn options(&self) -> Result<PgConnectOptions> {
        let refused = || {
            Error::invalid(
                schema::OPERATION,
                "url",
                "Queue `postgres`, setting `url`: this is no address of a Postgres server. Write postgres://user:password@host:port/database.",
            )
        };
        // The library takes any scheme.
        if !["postgres://", "postgresql://"].iter().any(|scheme| self.url.starts_with(scheme)) {
            return Err(refused());
        }
        let parsed = PgConnectOptions::from_str(&self.url).map_err(|error| refused().with_source(error))?;
        let deadline = self.operation_deadline.as_millis().max(1).to_string();
        Ok(parsed.application_name("flames-queue").disable_statement_logging().options([
            ("statement_timeout", deadline.as_str()),
            ("lock_timeout", deadline.as_str()),
            // Each statement has one right plan: down the one index that is made for it. Statistics of a table whose contents change
            // altogether within a second could only mislead.
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
            ("enable_bitmapscan", "off"),
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("jit", "off"),
        ]))
    }
}

impl fmt::Debug for PostgresQueueConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresQueueConfig")
            .field("url", &"(not shown)")
            .field("schema", &self.schema)
            .field("max_connections", &self.max_connections)
            .field("operation_deadline", &self.operation_deadline)
            .field("parked_retention", &self.parked_retention)
            .finish()
    }
}
