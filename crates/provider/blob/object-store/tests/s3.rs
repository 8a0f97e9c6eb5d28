//! S3 keeps the promises of `BlobStore`. Against the server that `FLAMES_TEST_S3` names; the cases that kill a server start
//! one of their own.

// Helpers of tests may panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_blob::BlobStore;
use flames_blob_conformance::{Faults, Fixture, Harness, Hook, Hooks, Unavailable, async_trait};
use flames_blob_object_store::{CloudBlobStore, CloudLimits, S3Config};
use flames_test_servers::{FaultProxy, OwnServer, SeaweedFs, shared};

struct S3;

struct Fresh {
    store: Mutex<Option<Arc<CloudBlobStore>>>,
    config: S3Config,
    limits: CloudLimits,
    network: Option<FaultProxy>,
    server: Option<OwnServer<SeaweedFs>>,
}

impl Fresh {
    async fn new(config: S3Config, limits: CloudLimits) -> Self {
        let store = common::open(&config, limits).await.unwrap();
        Self { store: Mutex::new(Some(store)), config, limits, network: None, server: None }
    }
}

#[async_trait]
impl Harness<dyn Fixture> for S3 {
    fn name(&self) -> &'static str {
        "s3"
    }
    fn is_durable(&self) -> bool {
        true
    }
    fn unavailable(&self) -> Option<Unavailable> {
        shared::s3().err().map(Into::into)
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
                let (proxy, _) = FaultProxy::before_url(&access.endpoint).await.unwrap();
                let config = common::config(&access.through(proxy.address()));
                let mut fresh = Fresh::new(config, common::impatient()).await;
                fresh.network = Some(proxy);
                Box::new(fresh)
            }
            Hook::Restart => {
                let server = OwnServer::<SeaweedFs>::start().await;
                let access = server.access();
                common::make_bucket(&access).await;
                let mut fresh = Fresh::new(common::config(&access), common::impatient()).await;
                fresh.server = Some(server);
                Box::new(fresh)
            }
            Hook::Exhaustion | Hook::Clock => self.fresh().await,
        }
    }
}

impl Fixture for Fresh {
    fn store(&self) -> Arc<dyn BlobStore> {
        self.store.lock().unwrap().clone().unwrap()
    }
}

#[async_trait]
impl Hooks for Fresh {
    async fn reopen(&self) {
        drop(self.store.lock().unwrap().take());
        let store = common::open(&self.config, self.limits).await.unwrap();
        *self.store.lock().unwrap() = Some(store);
    }
    fn operation_deadline(&self) -> Duration {
        (self.limits.call + self.limits.longest_pause) * self.limits.attempts
    }
    fn faults(&self) -> &dyn Faults {
        self.network.as_ref().unwrap()
    }
    async fn restart_server(&self) {
        self.server.as_ref().unwrap().restart().await;
    }
}

fn main() -> ExitCode {
    flames_blob_conformance::run(S3)
}
