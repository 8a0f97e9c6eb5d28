//! StateStore in one SQLite file: the default of an all-in-one Flames, with nothing to install and nothing to run.
//!
//! * One writer task owns the one connection that writes. It takes whatever commits are waiting, evaluates them one after the
//!   other, writes what they leave in one `BEGIN IMMEDIATE` transaction, and answers them all after its `COMMIT`. So a busy store
//!   pays one fsync for many commits, and an idle one waits for nobody.
//! * WAL with `synchronous = FULL`: what was answered is on disk, and readers never wait for the writer. A read is one statement,
//!   hence one snapshot, taken when it starts: it sees every commit answered before.
//! * Versions and log positions come from one counter that is kept in the file, so they are never given twice, whatever is
//!   deleted, trimmed or restarted.
//! * The file is made with mode 0600 (SQLite gives its `-wal` and `-shm` files the same), carries an application id and a schema
//!   number, and is refused when either is not ours to use.
//!
//! Several processes may open one file: the write lock and the counter are SQLite's. Hints reach only the same process.
//!
//! What cannot go on is told with a line for the user that names the file and says what to do: a file of a newer version or of
//! another program, a disk that is full, a folder that is read-only.
//!
//! One page of a scan or of a log also ends when its values reach 8 MiB, so that a reader's memory stays bounded.

mod batch;
mod error;
mod schema;
mod sql;
mod store;
mod writer;

pub use store::{SqliteConfig, SqliteStore};
