//! The client against servers that answer well, badly, late, or not at all.
#![allow(clippy::unwrap_used)]

mod answers;
mod connections;
mod server;
