//! BlobStore in memory: the reference answer, for `--ephemeral` and for tests.
//!
//! Chunks stay as they came, so that a blob of any size is never copied into one piece; only small ones are gathered, so that a
//! stream of single bytes does not cost an allocation each. The capacity bounds every byte that is held: stored, on its way in,
//! or replaced and still being read.

mod capacity;
mod chunks;

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use flames_blob::{
    BlobInfo, BlobKey, BlobPage, BlobRead, BlobStore, ByteStream, PutOptions, Verifier, validate_page_limit,
};
use flames_clock::Clock;
use flames_error::{Error, Result};
use futures::StreamExt;

use crate::capacity::{Capacity, Reservation};
use crate::chunks::{ChunkBuilder, Chunks};

/// Blobs in memory. They are gone when the last handle is.
#[derive(Debug)]
pub struct MemoryBlobStore {
    clock: Arc<dyn Clock>,
    capacity: Arc<Capacity>,
    blobs: Mutex<BTreeMap<BlobKey, Arc<Blob>>>,
}

#[derive(Debug)]
struct Blob {
    info: BlobInfo,
    chunks: Chunks,
    /// Given back when the last reader is gone too.
    _reservation: Reservation,
}

impl MemoryBlobStore {
    /// An empty store without a bound; `clock` says when a blob was stored.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::with_capacity(clock, u64::MAX)
    }

    /// An empty store that holds at most `capacity` bytes of blobs. A put that passes it gets `Exhausted`. A replaced blob
    /// counts until its successor is whole and its last reader is gone.
    pub fn with_capacity(clock: Arc<dyn Clock>, capacity: u64) -> Self {
        Self { clock, capacity: Arc::new(Capacity::new(capacity)), blobs: Mutex::default() }
    }

    /// How many bytes of blobs are held now.
    pub fn used(&self) -> u64 {
        self.capacity.used()
    }

    fn blobs(&self) -> MutexGuard<'_, BTreeMap<BlobKey, Arc<Blob>>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, operation: &'static str, key: &BlobKey) -> Result<Arc<Blob>> {
        self.blobs().get(key).cloned().ok_or_else(|| Error::not_found(operation, "blob", key.as_str()))
    }
}

#[async_trait]
impl BlobStore for MemoryBlobStore {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn put(&self, key: &BlobKey, mut stream: ByteStream, options: PutOptions) -> Result<BlobInfo> {
        options.validate()?;
        let mut reservation = Reservation::nothing(&self.capacity);
        let mut builder = ChunkBuilder::default();
        let mut verifier = Verifier::new(&options);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            verifier.admit(chunk.len() as u64)?;
            reservation
                .grow(chunk.len() as u64)
                .map_err(|error| error.with_resource("blob", key.as_str()))?;
            verifier.update(&chunk);
            builder.push(chunk);
        }
        let info = BlobInfo::of_put(key.clone(), options, verifier.finish()?, self.clock.now());
        let blob = Blob { info: info.clone(), chunks: builder.finish(), _reservation: reservation };
        let replaced = self.blobs().insert(key.clone(), Arc::new(blob));
        // Freed only now, outside the lock: a blob may be a million chunks.
        drop(replaced);
        Ok(info)
    }

    async fn get(&self, key: &BlobKey, range: Option<Range<u64>>) -> Result<BlobRead> {
        let blob = self.find("blob.get", key)?;
        let range = blob.info.readable(range)?;
        let info = blob.info.clone();
        let pieces = blob.chunks.pieces(range.clone());
        let stream = futures::stream::iter(pieces).map(move |piece| Ok(blob.chunks.slice(&piece))).boxed();
        Ok(BlobRead { info, range, stream })
    }

    async fn head(&self, key: &BlobKey) -> Result<BlobInfo> {
        Ok(self.find("blob.head", key)?.info.clone())
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        let removed = self.blobs().remove(key);
        drop(removed);
        Ok(())
    }

    async fn list(&self, prefix: &str, after: Option<&BlobKey>, limit: usize) -> Result<BlobPage> {
        validate_page_limit(limit)?;
        let blobs = self.blobs();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = blobs
            .range::<BlobKey, _>((start, Bound::Unbounded))
            .skip_while(|(key, _)| key.as_str() < prefix)
            .take_while(|(key, _)| key.as_str().starts_with(prefix));
        let page: Vec<_> = found.by_ref().take(limit).map(|(_, blob)| blob.info.clone()).collect();
        let next = found.next().and(page.last()).map(|info| info.key.clone());
        Ok(BlobPage { blobs: page, next })
    }
}
