//! S3 keeps the promises of `BlobStore`. Against the server that `FLAMES_TEST_S3` names; the cases that kill a server start
//! one of their own.

// Helpers of tests may panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_blob::BlobStore;
use flames_blob_conformance::{Faults, Fixture, Harness, Hook, Time, Unavailable, async_trait};
use flames_blob_object_store::{CloudBlobStore, CloudLimits, S3Config};
use flames_test_servers::{Direction, Fault, FaultProxy, SeaweedFs, shared};
use tempfile::TempDir;

struct S3;

struct Fresh {
    store: Mutex<Option<Arc<CloudBlobStore>>>,
    config: S3Config,
    limits: CloudLimits,
    network: Option<Network>,
    server: Option<(Arc<SeaweedFs>, TempDir)>,
}

/// A proxy between the store and the server.
struct Network {
    proxy: FaultProxy,
    cuts: AtomicU64,
}

impl Fresh {
    async fn new(config: S3Config, limits: CloudLimits) -> Self {
        let store = common::open(&config, limits).await.unwrap();
        Self { store: Mutex::new(Some(store)), config, limits, network: None, server: None }
    }
}

#[async_trait]
impl Harness for S3 {
    fn name(&self) -> &'static str {
        "s3"
    }
    fn time(&self) -> Time {
        Time::Real
    }
    fn is_durable(&self) -> bool {
        true
    }
    fn unavailable(&self) -> Option<Unavailable> {
        let missing = shared::s3().err()?;
        Some(Unavailable { service: missing.service.to_owned(), reason: missing.reason })
    }
    fn hooks(&self) -> &'static [Hook] {
        &[Hook::Faults, Hook::Restart]
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let access = shared::s3().unwrap();
        common::make_bucket(&access).await;
        Box::new(Fresh::new(common::config(&access), CloudLimits::default()).await)
    }
    async fn fresh_for(&self, hook: Hook) -> Box<dyn Fixture> {
        match hook {
            Hook::Faults => {
                let access = shared::s3().unwrap();
                common::make_bucket(&access).await;
                let upstream = access.endpoint.trim_start_matches("http://").parse().unwrap();
                let proxy = FaultProxy::start(upstream).await.unwrap();
                let config = common::config(&access.through(proxy.address()));
                let mut fresh = Fresh::new(config, common::impatient()).await;
                fresh.network = Some(Network { proxy, cuts: AtomicU64::new(0) });
                Box::new(fresh)
            }
            Hook::Restart => {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().to_owned();
                let server = tokio::task::spawn_blocking(move || SeaweedFs::start(path)).await.unwrap();
                let server = Arc::new(server.unwrap());
                let access = server.access();
                common::make_bucket(&access).await;
                let mut fresh = Fresh::new(common::config(&access), common::impatient()).await;
                fresh.server = Some((server, folder));
                Box::new(fresh)
            }
        }
    }
}

#[async_trait]
impl Fixture for Fresh {
    fn store(&self) -> Arc<dyn BlobStore> {
        self.store.lock().unwrap().clone().unwrap()
    }
    async fn reopen(&self) -> Arc<dyn BlobStore> {
        drop(self.store.lock().unwrap().take());
        let store = common::open(&self.config, self.limits).await.unwrap();
        *self.store.lock().unwrap() = Some(Arc::clone(&store));
        store
    }
    fn operation_deadline(&self) -> Duration {
        (self.limits.call + self.limits.longest_pause) * self.limits.attempts
    }
    fn faults(&self) -> &dyn Faults {
        self.network.as_ref().unwrap()
    }
    async fn restart_server(&self) {
        let server = Arc::clone(&self.server.as_ref().unwrap().0);
        tokio::task::spawn_blocking(move || server.restart()).await.unwrap().unwrap();
    }
}

#[async_trait]
impl Faults for Network {
    async fn cut_connections(&self) {
        self.proxy.cut_now();
    }
    async fn cut_after(&self, bytes: u64) {
        // A fault belongs to a connection from its first byte: those that are open make way for new ones.
        // Requests are cut, and answers, in turn.
        let is_request = self.cuts.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        let direction = if is_request { Direction::ToServer } else { Direction::ToClient };
        self.proxy.fail_next(Fault::CutAfter { bytes, direction });
        self.proxy.cut_now();
    }
    async fn stall(&self) {
        self.proxy.stall(true);
    }
    async fn stall_answers(&self) {
        self.proxy.swallow(Direction::ToClient);
    }
    async fn heal(&self) {
        self.proxy.heal();
        self.proxy.cut_now();
    }
}

fn main() -> ExitCode {
    flames_blob_conformance::run(S3)
}
