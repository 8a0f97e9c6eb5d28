//! A server that one fixture has for itself.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use crate::{Etcd, Nats, Postgres, Redis, SeaweedFs, Unavailable};

/// A server that is started by its folder alone.
pub trait Startable: Sized + Send + Sync + 'static {
    /// Starts it with its data below `folder`.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    fn start(folder: &Path) -> Result<Self, Unavailable>;

    /// Kills it and starts it again on the same ports and data.
    ///
    /// # Errors
    /// When it does not serve within a minute, with the end of its log.
    fn restart(&self) -> Result<(), Unavailable>;
}

macro_rules! startable {
    ($($server:ident),+) => {
        $(impl Startable for $server {
            fn start(folder: &Path) -> Result<Self, Unavailable> {
                Self::start(folder)
            }
            fn restart(&self) -> Result<(), Unavailable> {
                self.restart()
            }
        })+
    };
}

startable!(Etcd, Nats, Postgres, Redis, SeaweedFs);

/// A server, in a folder of its own, of a fixture that kills it.
#[derive(Debug)]
pub struct OwnServer<S> {
    server: Arc<S>,
    // Behind the server: dropped after it.
    _folder: TempDir,
}

impl<S: Startable> OwnServer<S> {
    /// Starts it, without holding up the runtime.
    ///
    /// # Panics
    /// When it does not start, which fails the case.
    pub async fn start() -> Self {
        let starting = blocking(|| {
            let folder = TempDir::new().map_err(|error| error.to_string())?;
            let server = S::start(folder.path()).map_err(|missing| missing.to_string())?;
            Ok(Self { server: Arc::new(server), _folder: folder })
        });
        starting.await
    }

    /// Kills it by SIGKILL, starts it again on its data, and returns once it serves.
    ///
    /// # Panics
    /// When it does not start again, which fails the case.
    pub async fn restart(&self) {
        let server = Arc::clone(&self.server);
        blocking(move || server.restart().map_err(|missing| missing.to_string())).await;
    }
}

impl<S> Deref for OwnServer<S> {
    type Target = S;
    fn deref(&self) -> &S {
        &self.server
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => done,
        Ok(Err(why)) => panic!("{why}"),
        Err(error) => panic!("{error}"),
    }
}
