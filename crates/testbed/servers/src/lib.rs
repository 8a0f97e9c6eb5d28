//! Real servers for tests, and a network between that fails on demand.
//!
//! * [`Postgres`], [`Redis`], [`Nats`], [`Etcd`], [`SeaweedFs`] (S3), [`Caddy`] and [`Nginx`]: the real programs, on private
//!   ports of 127.0.0.1, with their data in a folder of their own. Each can be killed (`kill -9`), frozen, and started again on
//!   the same ports and data. When the value is dropped, and also when the process that has it is killed, no process and
//!   no folder of it is left.
//! * [`shared`]: where the servers are that `cargo xtask test` (or `cargo xtask servers`) started for all tests of a run.
//! * `FaultProxy` (feature `fault-proxy`): a TCP proxy that cuts, resets, stalls, delays and swallows, as the test says or
//!   as a seed says. `CutProxy` does as it was told last, also to connections that are open. Both are the `Faults` of the conformance
//!   suites.
//! * `OwnServer` (the same feature): a server that a fixture has for itself and kills.
//!
//! To start a server takes between 0.1 s (Redis) and some seconds (SeaweedFS), and the calls block: on an asynchronous runtime,
//! call them where that does no harm (`tokio::task::spawn_blocking`, or a runtime of several threads).
//!
//! Programs are found by the variable `FLAMES_TEST_<SERVER>_PROGRAM` (a file; for Postgres, which is several programs,
//! `FLAMES_TEST_POSTGRES_BIN`, a folder), else on `PATH`, else where Debian keeps them.

#[cfg(feature = "fault-proxy")]
mod cut_proxy;
mod etcd;
#[cfg(feature = "fault-proxy")]
mod fault_proxy;
#[cfg(feature = "fault-proxy")]
mod faults;
mod http;
mod locate;
mod nats;
#[cfg(feature = "fault-proxy")]
mod own;
mod ports;
mod postgres;
mod process;
mod redis;
mod seaweed;
mod server;
pub mod shared;
#[cfg(feature = "fault-proxy")]
mod url;
mod web;

use std::fmt;

#[cfg(feature = "fault-proxy")]
pub use cut_proxy::CutProxy;
pub use etcd::Etcd;
#[cfg(feature = "fault-proxy")]
pub use fault_proxy::{Direction, Fault, FaultPlan, FaultProxy};
pub use locate::{prefer_folder, version as program_version};
pub use nats::Nats;
#[cfg(feature = "fault-proxy")]
pub use own::{OwnServer, Startable};
pub use ports::free_ports;
pub use postgres::Postgres;
pub use redis::Redis;
pub use seaweed::{S3Access, SeaweedFs};
pub use web::{Caddy, Nginx};

/// A server that a test needs and that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// Which, as `FLAMES_REQUIRE` names it: `postgres`, `redis`, `nats`, `etcd`, `s3`, `caddy`, `nginx`.
    pub service: &'static str,
    /// Whether it is simply not installed or not announced: a reason to skip. Otherwise it is there and does not work:
    /// a reason to fail.
    pub is_absent: bool,
    /// What is missing or went wrong, with the end of the server's log, and what to do about it.
    pub reason: String,
}

impl Unavailable {
    fn absent(service: &'static str, reason: String) -> Self {
        Self { service, is_absent: true, reason }
    }

    fn broken(service: &'static str, reason: String) -> Self {
        Self { service, is_absent: false, reason }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.service, self.reason)
    }
}

impl std::error::Error for Unavailable {}
