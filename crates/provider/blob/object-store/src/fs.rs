//! Blobs in files of this host.
//!
//! One blob is one file: its bytes, then a trailer with all that is known of it ([`record`]). So one `rename` puts or replaces a
//! blob whole, one `unlink` removes it, and a reader that has the file open goes on reading the blob that it began with. The
//! order of a put is: write `temporary/N`, sync it, rename it to `blobs/<name of the key>`, sync the folder. A crash at any
//! point leaves the old blob or the new one, and perhaps a file in `temporary/`, which the next [`FsBlobStore::open`] removes.
//!
//! `object_store`'s own local files are not used here: they keep no content type or metadata, so that each blob would be two
//! objects which one rename cannot replace together.

mod caller;
mod errors;
mod folder;
mod names;
mod read;
mod record;
mod upload;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_blob::{
    BlobInfo, BlobKey, BlobPage, BlobRead, BlobStore, ByteStream, PutOptions, Verifier, validate_page_limit,
};
use flames_clock::Clock;
use flames_error::{Error, ErrorKind, Result};
use futures::StreamExt;

use caller::Caller;
use folder::Folder;
use upload::Upload;

/// How many bytes are gathered before a thread is asked to write them.
const WRITE_BATCH: usize = 256 * 1024;
/// How many chunks are gathered at most, so that a stream of single bytes stays small in memory.
const WRITE_BATCH_CHUNKS: usize = 4096;
/// How long [`FsBlobStore::open`] waits for the folder's lock: as long as what an ended store still had under way may take.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// How often it looks.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// Blobs in a folder of this host. Files are 0600, folders 0700.
///
/// * Durable: a put or delete that returned survives a power cut, as far as the file system keeps what was synced.
/// * A folder belongs to one store at a time, of one process (an advisory lock, `flock(2)`).
/// * A whole blob that was damaged on disk ends its read with `Corrupt` before the last bytes are handed out. Ranges are not
///   checked against the digest.
/// * `OutcomeUnknown` when the disk fails after the blob was put or removed and before that was made durable.
/// * [`BlobStore::list`] reads the names of all blobs for each page; while it does, puts and deletes wait to become visible.
///
/// Needs a tokio runtime: file work is done on its blocking threads, at most one at a time for each call.
#[derive(Debug)]
pub struct FsBlobStore {
    folder: Arc<Folder>,
    clock: Arc<dyn Clock>,
}

impl FsBlobStore {
    /// Opens the store in `folder`, which is made if it is not there, and removes what puts that were cut off left behind.
    /// `clock` says when a blob was stored.
    ///
    /// Errors: `Unavailable` when another store has the folder open (after waiting up to three seconds) or the disk fails;
    /// `PermissionDenied`; `Exhausted` when the disk is full.
    pub async fn open(folder: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Result<Self> {
        const OPERATION: &str = "blob.open";
        let path = folder.into();
        let waiting_since = clock.monotonic();
        loop {
            let path = path.clone();
            if let Some(folder) = blocking(OPERATION, move || Folder::open(&path)).await? {
                return Ok(Self { folder: Arc::new(folder), clock });
            }
            if clock.monotonic().saturating_since(waiting_since) >= LOCK_PATIENCE {
                break;
            }
            clock.sleep(LOCK_INTERVAL).await;
        }
        Err(Error::unavailable(OPERATION, "another process has the folder of blobs open")
            .with_user_message(
                "Another process uses this folder of blobs. Stop it first, or choose another folder.",
            )
            .with_context("folder", path.display()))
    }
}

/// Does file work where it may block.
async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(cut_off) => Err(Error::new(ErrorKind::OutcomeUnknown, operation, "the file work was cut off")
            .with_source(cut_off)),
    }
}

/// Chunks worth a write, and whether the stream ended: then it must not be asked again.
async fn next_batch(stream: &mut ByteStream) -> Result<(Vec<Bytes>, bool)> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < WRITE_BATCH && batch.len() < WRITE_BATCH_CHUNKS {
        let Some(chunk) = stream.next().await else { return Ok((batch, true)) };
        let chunk = chunk?;
        if !chunk.is_empty() {
            bytes += chunk.len();
            batch.push(chunk);
        }
    }
    Ok((batch, false))
}

#[async_trait]
impl BlobStore for FsBlobStore {
    fn name(&self) -> &'static str {
        "fs"
    }

    async fn put(&self, key: &BlobKey, mut stream: ByteStream, options: PutOptions) -> Result<BlobInfo> {
        const OPERATION: &str = "blob.put";
        options.validate()?;
        let folder = Arc::clone(&self.folder);
        let verifier = Verifier::new(&options);
        let mut upload = blocking(OPERATION, move || Upload::begin(&folder, verifier)).await?;
        let mut has_ended = false;
        while !has_ended {
            let (batch, was_last) = next_batch(&mut stream).await?;
            has_ended = was_last;
            if !batch.is_empty() {
                upload.admit(&batch)?;
                upload = blocking(OPERATION, move || upload.write(&batch)).await?;
            }
        }
        let info = BlobInfo::of_put(key.clone(), options, upload.measured()?, self.clock.now());
        let folder = Arc::clone(&self.folder);
        let caller = Caller::new();
        let waiting = caller.watch();
        blocking(OPERATION, move || {
            let sealed = upload.seal(&info)?;
            folder.publish(sealed, &info.key, &waiting)?;
            Ok(info)
        })
        .await
    }

    async fn get(&self, key: &BlobKey, range: Option<Range<u64>>) -> Result<BlobRead> {
        const OPERATION: &str = "blob.get";
        let (folder, wanted) = (Arc::clone(&self.folder), key.clone());
        let (file, info) = blocking(OPERATION, move || folder.find(OPERATION, &wanted)).await?;
        let range = info.readable(range)?;
        let stream = read::stream(file, &info, range.clone());
        Ok(BlobRead { info, range, stream })
    }

    async fn head(&self, key: &BlobKey) -> Result<BlobInfo> {
        const OPERATION: &str = "blob.head";
        let (folder, key) = (Arc::clone(&self.folder), key.clone());
        blocking(OPERATION, move || Ok(folder.find(OPERATION, &key)?.1)).await
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        let (folder, key) = (Arc::clone(&self.folder), key.clone());
        let caller = Caller::new();
        let waiting = caller.watch();
        blocking("blob.delete", move || folder.remove(&key, &waiting)).await
    }

    async fn list(&self, prefix: &str, after: Option<&BlobKey>, limit: usize) -> Result<BlobPage> {
        validate_page_limit(limit)?;
        let (folder, prefix, after) = (Arc::clone(&self.folder), prefix.to_owned(), after.cloned());
        blocking("blob.list", move || folder.page(&prefix, after.as_ref(), limit)).await
    }
}
