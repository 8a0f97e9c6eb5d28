//! Blobs through a server keep the promises of `BlobStore`: all that hosts may do goes through the routes of the host API, to a store in
//! memory behind them. What hosts may not do (remove, list) goes to that store itself, so that every case of the suite can be run.

// Helpers of tests may panic.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use flames_blob::{BlobInfo, BlobKey, BlobPage, BlobRead, BlobStore, ByteStream, PutOptions};
use flames_blob_conformance::{Fixture, Harness, Hooks, Time, async_trait};
use flames_blob_memory::MemoryBlobStore;
use flames_blob_remote::{Limits, RemoteBlobStore};
use flames_clock::{Clock, SimulatedClock};
use flames_error::Result;
use flames_transport_host::{BlobAccess, BlobGate, blob_router};

/// Lets everybody in.
#[derive(Debug)]
struct Open;

#[async_trait]
impl BlobGate for Open {
    async fn admit(&self, _: &HeaderMap, _: &BlobKey, _: BlobAccess) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Split {
    remote: RemoteBlobStore,
    behind: Arc<MemoryBlobStore>,
}

#[async_trait]
impl BlobStore for Split {
    fn name(&self) -> &'static str {
        self.remote.name()
    }
    async fn put(&self, key: &BlobKey, stream: ByteStream, options: PutOptions) -> Result<BlobInfo> {
        self.remote.put(key, stream, options).await
    }
    async fn get(&self, key: &BlobKey, range: Option<Range<u64>>) -> Result<BlobRead> {
        self.remote.get(key, range).await
    }
    async fn head(&self, key: &BlobKey) -> Result<BlobInfo> {
        self.remote.head(key).await
    }
    async fn exists(&self, key: &BlobKey) -> Result<bool> {
        self.remote.exists(key).await
    }
    async fn delete(&self, key: &BlobKey) -> Result<()> {
        self.behind.delete(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&BlobKey>, limit: usize) -> Result<BlobPage> {
        self.behind.list(prefix, after, limit).await
    }
}

struct Remote;

struct Fresh(Arc<Split>);

#[async_trait]
impl Harness<dyn Fixture> for Remote {
    fn name(&self) -> &'static str {
        "remote"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let clock: Arc<dyn Clock> = Arc::new(SimulatedClock::at_fixed_start());
        let behind = Arc::new(MemoryBlobStore::new(clock.clone()));
        let router = blob_router(behind.clone(), Arc::new(Open), clock.clone(), Duration::from_secs(30));
        let remote = RemoteBlobStore::over(router, clock, Limits::default());
        Box::new(Fresh(Arc::new(Split { remote, behind })))
    }
}

impl Hooks for Fresh {}

impl Fixture for Fresh {
    fn store(&self) -> Arc<dyn BlobStore> {
        self.0.clone()
    }
}

fn main() -> ExitCode {
    flames_blob_conformance::run(Remote)
}
