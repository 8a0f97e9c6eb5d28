//! The queue on a Postgres server.

mod batches;
mod carriers;
mod config;
mod connections;
mod error;
mod notify;
mod queue;
mod schema;
mod sql;

pub use config::PostgresQueueConfig;
pub use connections::Occupied;
pub use queue::PostgresQueue;

use crate::text::Dialect;

/// The server's clock, in whole milliseconds: one clock for all clients. When the statement began, so that it is one for a statement and can
/// be looked up in an index.
const NOW: &str = "(floor(date_part('epoch', statement_timestamp()) * 1000)::bigint)";

/// Postgres' words, for tables in `schema`.
fn dialect(schema: &str) -> Dialect {
    Dialect {
        job: format!("\"{schema}\".job"),
        meta: format!("\"{schema}\".meta"),
        now: Some(NOW),
        lease_now: Some(NOW),
        words: &[
            ("{identity}", "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"),
            ("{integer}", "BIGINT"),
            ("{small}", "SMALLINT"),
            ("{bytes}", "BYTEA"),
            ("{topic}", "TEXT COLLATE \"C\""),
            ("{strict}", ""),
            ("{greatest}", "greatest"),
            ("{least}", "least"),
            ("{skip_locked}", "FOR UPDATE SKIP LOCKED"),
        ],
    }
}
