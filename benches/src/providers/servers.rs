//! The servers: those of the environment, or ones started for the run.

use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use flames_test_servers::{Nats, Postgres, Redis, S3Access, SeaweedFs, Unavailable, shared};
use tempfile::TempDir;

/// Starts what is asked for, once, and ends it with the run.
pub(crate) struct Servers {
    folder: TempDir,
    postgres: OnceLock<Result<Postgres, Unavailable>>,
    nats: OnceLock<Result<Nats, Unavailable>>,
    redis: OnceLock<Result<Redis, Unavailable>>,
    s3: OnceLock<Result<SeaweedFs, Unavailable>>,
}

#[cfg_attr(
    not(all(feature = "postgres", feature = "nats", feature = "redis", feature = "s3")),
    allow(dead_code, reason = "each is for one backend's feature")
)]
impl Servers {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            folder: tempfile::tempdir().context("a folder for the servers")?,
            postgres: OnceLock::new(),
            nats: OnceLock::new(),
            redis: OnceLock::new(),
            s3: OnceLock::new(),
        })
    }

    /// A server's address; an error says why there is none. Starting one blocks this thread: nothing is measured meanwhile.
    pub(crate) fn postgres(&self) -> Result<String, Unavailable> {
        shared::postgres().or_else(|_| {
            let started = self.postgres.get_or_init(|| Postgres::start(self.folder.path()));
            started.as_ref().map(Postgres::url).map_err(Clone::clone)
        })
    }

    pub(crate) fn nats(&self) -> Result<String, Unavailable> {
        shared::nats().or_else(|_| {
            let started = self.nats.get_or_init(|| Nats::start(self.folder.path()));
            started.as_ref().map(Nats::url).map_err(Clone::clone)
        })
    }

    pub(crate) fn redis(&self) -> Result<String, Unavailable> {
        shared::redis().or_else(|_| {
            let started = self.redis.get_or_init(|| Redis::start(self.folder.path()));
            started.as_ref().map(Redis::url).map_err(Clone::clone)
        })
    }

    pub(crate) fn s3(&self) -> Result<S3Access, Unavailable> {
        shared::s3().or_else(|_| {
            let started = self.s3.get_or_init(|| SeaweedFs::start(self.folder.path()));
            started.as_ref().map(SeaweedFs::access).map_err(Clone::clone)
        })
    }
}
