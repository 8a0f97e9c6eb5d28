//! What cases share.

use std::time::Duration;

use bytes::Bytes;
use flames_blob::{BlobInfo, BlobKey, BlobStore, ByteStream, Digest, MAX_CHUNK, PutOptions};
use flames_error::{Error, ErrorKind, Result};
use futures::{SinkExt, StreamExt};
use sha2::{Digest as _, Sha256};

/// How long one step of a case may take.
const STEP_LIMIT: Duration = Duration::from_secs(20);
/// How long what must not happen is waited for.
const LATE_EFFECT: Duration = Duration::from_millis(60);

pub(crate) fn key(text: &str) -> BlobKey {
    BlobKey::new(text).expect("the case's key fits")
}

/// Bytes that differ by `seed` and do not repeat within a chunk (xorshift64).
pub(crate) fn bytes_of(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

/// The bytes in chunks of `chunk`, letting other tasks run before each.
pub(crate) fn stream_of(bytes: &Bytes, chunk: usize) -> ByteStream {
    let rest = bytes.clone();
    futures::stream::unfold(rest, move |mut rest| async move {
        tokio::task::yield_now().await;
        if rest.is_empty() {
            return None;
        }
        let part = rest.split_to(rest.len().min(chunk));
        Some((Ok(part), rest))
    })
    .boxed()
}

/// The bytes, and then an error of kind `PermissionDenied`, which no store has a reason to give.
pub(crate) fn stream_that_fails(bytes: &Bytes) -> ByteStream {
    let broken = futures::stream::once(async {
        Err(Error::new(ErrorKind::PermissionDenied, "case", "the stream fails, as the case wants"))
    });
    stream_of(bytes, 1_000).chain(broken).boxed()
}

/// A stream that gives what is sent and ends when the sender is dropped.
pub(crate) fn fed_stream() -> (futures::channel::mpsc::Sender<Result<Bytes>>, ByteStream) {
    let (sender, receiver) = futures::channel::mpsc::channel(0);
    (sender, receiver.boxed())
}

/// Sends `count` chunks and returns when the reader has taken them (all but one, at least).
pub(crate) async fn feed(
    sender: &mut futures::channel::mpsc::Sender<Result<Bytes>>,
    chunk: &Bytes,
    count: usize,
) {
    for _ in 0..count {
        within(sender.send(Ok(chunk.clone()))).await.expect("the put reads its stream");
    }
}

pub(crate) async fn within<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(STEP_LIMIT, work).await.expect("the store answers in time")
}

/// Gives what must not happen time to happen.
pub(crate) async fn settle() {
    tokio::time::sleep(LATE_EFFECT).await;
}

pub(crate) async fn put(store: &dyn BlobStore, name: &str, bytes: &Bytes) -> BlobInfo {
    put_with(store, name, bytes, PutOptions::default()).await
}

pub(crate) async fn put_with(
    store: &dyn BlobStore,
    name: &str,
    bytes: &Bytes,
    options: PutOptions,
) -> BlobInfo {
    within(store.put(&key(name), stream_of(bytes, 64 * 1024), options)).await.expect("the put succeeds")
}

/// The kind of the put's error; none when it succeeds.
pub(crate) async fn refusal(
    store: &dyn BlobStore,
    name: &str,
    stream: ByteStream,
    options: PutOptions,
) -> Option<ErrorKind> {
    within(store.put(&key(name), stream, options)).await.err().map(|error| error.kind())
}

/// Reads a stream to its end. No chunk may be longer than the contract says.
pub(crate) async fn collect(mut stream: ByteStream) -> Bytes {
    let mut bytes = Vec::new();
    while let Some(chunk) = within(stream.next()).await {
        let chunk = chunk.expect("the stream gives its bytes");
        assert!(chunk.len() <= MAX_CHUNK, "a chunk of {} bytes", chunk.len());
        bytes.extend_from_slice(&chunk);
    }
    bytes.into()
}

/// Reads a whole blob, having checked that its description fits its bytes.
pub(crate) async fn read(store: &dyn BlobStore, name: &str) -> (BlobInfo, Bytes) {
    let read = within(store.get(&key(name), None)).await.expect("the blob is there");
    let bytes = collect(read.stream).await;
    assert_eq!(read.info.key, key(name), "a blob under another key");
    assert_eq!(read.info.size, bytes.len() as u64, "the size told is not that of the bytes");
    assert_eq!(read.range, 0..read.info.size, "the range told is not the whole");
    assert!(read.info.digest == digest_of(&bytes), "the digest told is not that of the bytes");
    (read.info, bytes)
}

/// Asserts without printing megabytes.
#[track_caller]
pub(crate) fn assert_same_bytes(found: &Bytes, wanted: &Bytes) {
    let first = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
    assert!(
        found == wanted,
        "{} bytes instead of {}, first difference at {first:?}",
        found.len(),
        wanted.len()
    );
}

/// Asserts that the store holds the blob, whole.
pub(crate) async fn assert_holds(store: &dyn BlobStore, name: &str, bytes: &Bytes) {
    assert_same_bytes(&read(store, name).await.1, bytes);
}

/// Asserts that no way to look finds the blob.
pub(crate) async fn assert_absent(store: &dyn BlobStore, name: &str) {
    let key = key(name);
    let kind = |error: Option<Error>| error.map(|error| error.kind());
    assert_eq!(kind(within(store.head(&key)).await.err()), Some(ErrorKind::NotFound), "head of {name}");
    assert_eq!(kind(within(store.get(&key, None)).await.err()), Some(ErrorKind::NotFound), "get of {name}");
    assert!(!within(store.exists(&key)).await.expect("exists answers"), "{name} exists");
    assert!(!keys(store, "").await.contains(&name.to_owned()), "{name} is listed");
}

/// The keys of a prefix, over pages of the largest size.
pub(crate) async fn keys(store: &dyn BlobStore, prefix: &str) -> Vec<String> {
    pages(store, prefix, flames_blob::MAX_PAGE).await.into_iter().flatten().collect()
}

/// The keys of a prefix, page by page.
pub(crate) async fn pages(store: &dyn BlobStore, prefix: &str, limit: usize) -> Vec<Vec<String>> {
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let page = within(store.list(prefix, after.as_ref(), limit)).await.expect("the listing answers");
        assert!(page.blobs.len() <= limit, "a page of {} where {limit} were asked for", page.blobs.len());
        pages.push(page.blobs.into_iter().map(|info| info.key.to_string()).collect());
        match page.next {
            None => return pages,
            next => {
                assert!(next > after, "the next page starts at or before this one");
                after = next;
            }
        }
    }
}
