//! The agent as a service, in this process, with real processes and files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod files;
mod processes;
mod sessions;
