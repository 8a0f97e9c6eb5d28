//! The queue in a SQLite file.

mod error;
mod queue;
mod schema;
mod sql;
mod time;
mod writer;

pub use queue::{SqliteQueue, SqliteQueueConfig};

use crate::text::Dialect;

/// SQLite's words.
fn dialect() -> Dialect {
    Dialect {
        job: "job".to_owned(),
        meta: "meta".to_owned(),
        now: None,
        lease_now: None,
        words: &[
            ("{identity}", "INTEGER PRIMARY KEY AUTOINCREMENT"),
            ("{integer}", "INTEGER"),
            ("{small}", "INTEGER"),
            ("{bytes}", "BLOB"),
            ("{topic}", "TEXT"),
            ("{strict}", " STRICT"),
            ("{greatest}", "max"),
            ("{least}", "min"),
            ("{skip_locked}", ""),
        ],
    }
}
