//! What adapters do with a SQLite file of their own.
//!
//! * [`Writer`]: the one connection that writes. Requests that come together share a transaction, and so an fsync.
//! * [`mod@file`]: how a file is made, opened, told from another program's, and read.
//! * [`error`]: SQLite's errors as the house's.
//!
//! It knows no table: statements, schema and what a user is told stay in the adapter. A leaf beside `flames-host` (ADR 0016).

pub mod error;
pub mod file;
mod writer;

pub use writer::{Failed, Work, Writer};
