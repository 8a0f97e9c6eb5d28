//! Local files keep the promises of `BlobStore`.

// Helpers of tests may panic.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use flames_blob::BlobStore;
use flames_blob_conformance::{Fixture, Harness, Hooks, async_trait};
use flames_blob_object_store::FsBlobStore;
use flames_clock::SystemClock;
use tempfile::TempDir;

struct LocalFiles;

struct Fresh {
    store: Mutex<Option<Arc<FsBlobStore>>>,
    folder: TempDir,
}

async fn open(folder: &TempDir) -> Arc<FsBlobStore> {
    Arc::new(FsBlobStore::open(folder.path(), Arc::new(SystemClock::new())).await.unwrap())
}

#[async_trait]
impl Harness<dyn Fixture> for LocalFiles {
    fn name(&self) -> &'static str {
        "fs"
    }
    fn is_durable(&self) -> bool {
        true
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let folder = tempfile::tempdir().unwrap();
        Box::new(Fresh { store: Mutex::new(Some(open(&folder).await)), folder })
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
        let store = open(&self.folder).await;
        *self.store.lock().unwrap() = Some(store);
    }
}

fn main() -> ExitCode {
    flames_blob_conformance::run(LocalFiles)
}
