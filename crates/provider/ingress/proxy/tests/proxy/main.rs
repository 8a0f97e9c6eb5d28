//! The proxy between real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

mod changes;
mod hostile;
mod limits;
mod requests;
mod shutdown;
mod support;
mod tls;
mod upgrades;
mod wake;
