//! WorkQueue in SQL: SQLite and Postgres, one schema.
//!
//! * [`SqliteQueue`] (feature `sqlite`, the default): one file of this host, a database of its own. One writer task owns the one
//!   connection that writes; it carries out whatever operations are waiting in one `BEGIN IMMEDIATE` transaction and answers them all after
//!   its `COMMIT`, so that a busy queue pays one fsync for many operations and an idle one waits for nobody. An operation that is alone is
//!   one statement by itself.
//! * [`PostgresQueue`] (feature `postgres`): any number of processes on one server. Jobs are taken with `FOR UPDATE SKIP LOCKED`, so that
//!   workers never wait for each other. Each operation is one statement, committed by itself; enqueues and acks that come while others are
//!   under way share one.
//!
//! What both keep, in one table (`job`):
//!
//! * A job that is done is deleted. What is ready, delayed, leased and parked stands in an index of its own, so that a million jobs in one
//!   state slow nothing that is done to those in another.
//! * A lease's token names a job and the number of a delivery; every settlement is a statement that finds the row only while that delivery
//!   holds its lease, by the provider's clock: the server's for Postgres, so that many clients are judged by one; the injected one for
//!   SQLite.
//! * Delayed jobs whose time has come, and jobs whose lease has ended, are made ready by the next dequeue that comes across them. So they
//!   are not hinted: [`wakeups`](flames_queue::WorkQueue::wakeups) hints what becomes ready by a call, and one who waits polls as well.
//! * Parked jobs are forgotten after a retention (14 days unless configured), and their dedupe keys with them.
//! * Migrations go forward only. A database of a newer schema is refused with `NotSupported`, and nothing is changed.

mod hints;
mod text;
mod values;

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

#[cfg(feature = "postgres")]
pub use postgres::{Occupied, PostgresQueue, PostgresQueueConfig};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteQueue, SqliteQueueConfig};

use std::time::Duration;

/// How long parked jobs are kept unless configured otherwise: time for somebody to look after a long absence.
pub const DEFAULT_PARKED_RETENTION: Duration = Duration::from_secs(14 * 24 * 3600);
