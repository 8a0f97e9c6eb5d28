//! The API as its callers meet it.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test")]

mod access;
mod common;
mod events;
mod guest;
mod images;
mod requests;
mod serving;
mod snapshots;
mod vms;
