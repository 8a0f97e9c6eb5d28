//! StateStore in Postgres: the source of truth of a fleet. Needs Postgres 13 or newer, and nothing installed in it.
//!
//! # How it keeps the contract
//!
//! * **A commit is one statement**, hence one round trip: a call of the function `commit_1` in the store's schema, in the
//!   transaction that Postgres makes of a single statement. (A commit of one put, checked or not, is a plain `UPDATE` or `INSERT` that
//!   takes the same lock.) Statements are prepared once for each connection.
//! * **Checks by advisory locks.** The function first takes a transaction-level advisory lock for each key that the commit names,
//!   exclusive where it writes and shared where it only checks, in the order of the locks' numbers; then it checks, and then it
//!   writes, each under a snapshot taken after the locks were granted. Why these locks and neither row locks nor `SERIALIZABLE`: a key
//!   that is not there has no row to lock, and yet `Absent` must hold until the commit; commits that contend wait their turn
//!   instead of being rolled back; waiting for an advisory lock takes no transaction id, so a commit that waits does not hold
//!   back the readers of logs; and one order for all locks means no deadlock. Two keys whose numbers collide (64 bits) only wait for each
//!   other. The numbers are part of the format: every version of Flames computes the same.
//! * **Versions and log positions** are the transaction's id (64 bits, never given twice by one server), below a *generation* in
//!   the upper 15 bits. A connection compares the server's identifier and its timeline with those that the store was last used
//!   on, and begins a new generation when they differ. So after a failover, a point-in-time restore, an upgrade or a dump
//!   loaded elsewhere, all versions and positions lie behind all that were given before. Not covered: a file-level snapshot of a
//!   running server that is started again under the same identifier and timeline takes transaction ids back. After that,
//!   with all of Flames stopped, run `INSERT INTO <schema>.lineage SELECT generation + 1, system_identifier, timeline FROM
//!   <schema>.lineage ORDER BY generation DESC LIMIT 1`. And commits that an asynchronous standby never received are lost with
//!   their primary: use `synchronous_commit` and `synchronous_standby_names` where that matters.
//! * **Logs are read below the oldest running transaction** (`pg_snapshot_xmin`), since a transaction takes its id before it
//!   commits. A reader waits until what it finds above that has settled: for at most a second when it has entries to answer, else for
//!   the operation's deadline, behind which it is `Unavailable` and names the transaction that is open. Any transaction that
//!   writes, in whatever database of the server, holds back the logs while it is open: keep long-running writes of other programs off
//!   this server.
//! * **Reads** are single statements under `READ COMMITTED` on the primary. A connection to a standby, or to a server that is set to
//!   read-only, is refused.
//! * **Durability**: a session whose `synchronous_commit` is `off` is set to `on`.
//! * Serialization failures and deadlocks, which nothing of ours causes, are retried inside at most five times.
//!
//! # Hints
//!
//! `NOTIFY` in a transaction takes a lock that all of the server's committing notifiers share, so commits do not notify. Each
//! process has one connection that tells others what was committed, after the commit, coalesced (at most one notification round in five
//! milliseconds), and one that listens and fans out to the subscribers in memory. The process's own subscribers are told directly.
//!
//! # What it takes
//!
//! [`PostgresConfig::max_connections`] connections and two for hints. An operation holds at most 64 advisory locks: the
//! server's default lock table (`max_locks_per_transaction` 64 × `max_connections` 100) has room for all of 100 connections. Connect
//! directly, or through a pooler in session mode: session settings do not survive a transaction-mode pooler.
//!
//! One page of a scan or of a log also ends when its values reach 8 MiB, so that a reader's memory stays bounded.

mod commit;
mod config;
mod error;
mod hints;
mod outbox;
mod pool;
mod schema;
mod session;
mod sql;
mod store;
mod views;

pub use config::PostgresConfig;
pub use pool::PooledConnection;
pub use store::PostgresStore;
pub use views::{ColumnKind, ViewColumn, ViewDefinition};
