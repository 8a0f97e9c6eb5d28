//! What a bounded store in memory promises beyond the suite.

// Helpers of tests may panic.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_blob::{BlobKey, BlobStore, BlobStoreExt, PutOptions};
use flames_blob_memory::MemoryBlobStore;
use flames_clock::{Clock, SimulatedClock};
use flames_error::ErrorKind;
use futures::StreamExt;

fn bounded(capacity: u64) -> MemoryBlobStore {
    MemoryBlobStore::with_capacity(Arc::new(SimulatedClock::at_fixed_start()), capacity)
}

fn key(text: &str) -> BlobKey {
    BlobKey::new(text).unwrap()
}

async fn put(store: &MemoryBlobStore, name: &str, size: usize) -> flames_error::Result<u64> {
    let bytes = Bytes::from(vec![1; size]);
    store.put_bytes(&key(name), bytes, PutOptions::default()).await.map(|info| info.size)
}

#[tokio::test(start_paused = true)]
async fn a_put_past_the_capacity_is_refused_and_leaves_nothing() {
    let store = bounded(100);
    put(&store, "a", 60).await.unwrap();
    let refused = put(&store, "b", 41).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Exhausted);
    assert!(!store.exists(&key("b")).await.unwrap());
    assert_eq!(store.used(), 60);
    put(&store, "b", 40).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_or_replaced_makes_room() {
    let store = bounded(100);
    put(&store, "a", 60).await.unwrap();
    put(&store, "a", 30).await.unwrap();
    assert_eq!(store.used(), 30);
    store.delete(&key("a")).await.unwrap();
    assert_eq!(store.used(), 0);
    put(&store, "b", 100).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deleted_blob_counts_while_it_is_still_read() {
    let store = bounded(100);
    put(&store, "a", 60).await.unwrap();
    let mut read = store.get(&key("a"), None).await.unwrap();
    store.delete(&key("a")).await.unwrap();
    assert_eq!(put(&store, "b", 60).await.unwrap_err().kind(), ErrorKind::Exhausted);
    assert_eq!(read.stream.next().await.unwrap().unwrap().len(), 60);
    drop(read);
    put(&store, "b", 60).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_put_gives_back_what_it_took() {
    let store = bounded(100);
    let endless = futures::stream::once(async { Ok(Bytes::from(vec![1; 50])) })
        .chain(futures::stream::pending())
        .boxed();
    let key = key("a");
    let put = store.put(&key, endless, PutOptions::default());
    assert!(tokio::time::timeout(Duration::from_secs(1), put).await.is_err());
    assert_eq!(store.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_injected_clock_says_when_a_blob_was_stored() {
    let clock = Arc::new(SimulatedClock::at_fixed_start());
    let store = MemoryBlobStore::new(clock.clone());
    clock.advance(Duration::from_secs(90)).await;
    put(&store, "a", 1).await.unwrap();
    assert_eq!(store.head(&key("a")).await.unwrap().stored_at, clock.now());
}
