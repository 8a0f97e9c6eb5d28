//! The bytes of a blob on their way in.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flames_blob::{ByteStream, Digest, Verifier};
use flames_error::{Error, ErrorKind, Result};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use object_store::PutPayload;
use object_store::multipart::PartId;
use object_store::path::Path;

use super::calls::Calls;
use super::failures::Failure;
use super::finishing::Finishing;

const OPERATION: &str = "blob.put";
/// The most parts of an upload, as S3 and GCS count them.
const MAX_PARTS: u64 = 10_000;
/// Chunks shorter than this are gathered, so that a stream of single bytes does not cost an allocation each.
const GATHER_BELOW: usize = 16 * 1024;

/// Writes a stream to `path`, where nobody looks yet, and tells its size and digest. What did not become whole is removed.
pub(super) async fn upload(
    calls: &Arc<Calls>,
    finishing: &Arc<Finishing>,
    path: &Path,
    mut stream: ByteStream,
    mut verifier: Verifier,
    expected_size: Option<u64>,
) -> Result<(u64, Digest)> {
    let part_bytes = part_bytes(calls.limits.part_bytes, expected_size);
    let mut buffer = PartBuffer::default();
    let mut multipart: Option<Multipart> = None;
    while let Some(chunk) = next_chunk(&mut stream, multipart.as_mut()).await? {
        let chunk = chunk?;
        verifier.admit(chunk.len() as u64)?;
        verifier.update(&chunk);
        buffer.push(chunk);
        // A part goes only when more came: the last one must not be empty.
        while buffer.length > part_bytes {
            let part = buffer.take(part_bytes);
            let upload = match &mut multipart {
                Some(upload) => upload,
                none => none.insert(Multipart::begin(calls, finishing, path).await?),
            };
            upload.push(part).await?;
        }
    }
    let measured = verifier.finish()?;
    let rest = buffer.take(usize::MAX);
    match multipart {
        Some(mut upload) => {
            upload.push(rest).await?;
            upload.complete(measured.0).await?;
        }
        None => calls.put(OPERATION, path, rest).await.map_err(|failure| failure.into_error(OPERATION))?,
    }
    Ok(measured)
}

/// The configured size, or more where the declared size would need too many parts.
fn part_bytes(configured: usize, expected_size: Option<u64>) -> usize {
    let needed = expected_size.unwrap_or(0).div_ceil(MAX_PARTS);
    configured.max(usize::try_from(needed).unwrap_or(usize::MAX))
}

/// The next chunk of the stream. Parts that are under way go on meanwhile.
async fn next_chunk(
    stream: &mut ByteStream,
    multipart: Option<&mut Multipart>,
) -> Result<Option<Result<Bytes>>> {
    let Some(upload) = multipart else { return Ok(stream.next().await) };
    loop {
        if upload.under_way.is_empty() {
            return Ok(stream.next().await);
        }
        tokio::select! {
            chunk = stream.next() => return Ok(chunk),
            Some(part) = upload.under_way.next() => upload.keep(part?),
        }
    }
}

/// What came and was not sent.
#[derive(Debug, Default)]
struct PartBuffer {
    chunks: std::collections::VecDeque<Bytes>,
    gathered: BytesMut,
    length: usize,
}

impl PartBuffer {
    fn push(&mut self, chunk: Bytes) {
        self.length += chunk.len();
        if chunk.len() < GATHER_BELOW {
            self.gathered.extend_from_slice(&chunk);
            if self.gathered.len() >= GATHER_BELOW {
                self.flush();
            }
        } else {
            self.flush();
            self.chunks.push_back(chunk);
        }
    }

    fn flush(&mut self) {
        if !self.gathered.is_empty() {
            self.chunks.push_back(self.gathered.split().freeze());
        }
    }

    /// The first `bytes` of it, or all.
    fn take(&mut self, bytes: usize) -> PutPayload {
        self.flush();
        let mut rest = bytes;
        let mut taken = Vec::new();
        while rest > 0 {
            let Some(mut chunk) = self.chunks.pop_front() else { break };
            let part = chunk.split_to(chunk.len().min(rest));
            rest -= part.len();
            self.length -= part.len();
            taken.push(part);
            if !chunk.is_empty() {
                self.chunks.push_front(chunk);
            }
        }
        taken.into_iter().collect()
    }
}

type SentPart = Result<(usize, PartId)>;

/// A multipart upload under way. Dropped before it is complete, it is aborted.
struct Multipart {
    calls: Arc<Calls>,
    finishing: Arc<Finishing>,
    path: Path,
    id: String,
    next_part: usize,
    under_way: FuturesUnordered<BoxFuture<'static, SentPart>>,
    sent: Vec<(usize, PartId)>,
    is_over: bool,
}

impl Multipart {
    async fn begin(calls: &Arc<Calls>, finishing: &Arc<Finishing>, path: &Path) -> Result<Self> {
        let begun = calls.repeat(OPERATION, || calls.objects.create_multipart(path)).await;
        let id = begun.map_err(|failure| failure.into_error(OPERATION))?;
        Ok(Self {
            calls: Arc::clone(calls),
            finishing: Arc::clone(finishing),
            path: path.clone(),
            id,
            next_part: 0,
            under_way: FuturesUnordered::new(),
            sent: Vec::new(),
            is_over: false,
        })
    }

    fn keep(&mut self, part: (usize, PartId)) {
        self.sent.push(part);
    }

    /// Sends a part, having waited until there is room for it.
    async fn push(&mut self, payload: PutPayload) -> Result<()> {
        let number = self.next_part;
        if number as u64 >= MAX_PARTS {
            return Err(Error::new(ErrorKind::Exhausted, OPERATION, "the blob needs too many parts")
                .with_user_message("A blob this long must declare its size."));
        }
        while self.under_way.len() >= self.calls.limits.parts_in_flight {
            if let Some(part) = self.under_way.next().await {
                self.keep(part?);
            }
        }
        self.next_part += 1;
        let (calls, path, id) = (Arc::clone(&self.calls), self.path.clone(), self.id.clone());
        self.under_way.push(Box::pin(async move {
            let sent =
                calls.repeat(OPERATION, || calls.objects.put_part(&path, &id, number, payload.clone())).await;
            sent.map(|part| (number, part)).map_err(|failure| failure.into_error(OPERATION))
        }));
        Ok(())
    }

    /// Makes one object of the parts.
    async fn complete(mut self, size: u64) -> Result<()> {
        while let Some(part) = self.under_way.next().await {
            self.keep(part?);
        }
        let mut sent = std::mem::take(&mut self.sent);
        sent.sort_unstable_by_key(|(number, _)| *number);
        let parts: Vec<PartId> = sent.into_iter().map(|(_, part)| part).collect();
        let completed = self
            .calls
            .repeat(OPERATION, || self.calls.objects.complete_multipart(&self.path, &self.id, parts.clone()))
            .await;
        let failure = match completed {
            Ok(_) => {
                self.is_over = true;
                return Ok(());
            }
            Err(failure) => failure,
        };
        // An answer that was lost: the upload may be complete, and then a second try does not find it any more.
        let is_in_doubt = matches!(failure, Failure::Missing | Failure::Passing { may_be_done: true, .. });
        if is_in_doubt
            && self.calls.head(OPERATION, &self.path).await?.is_some_and(|found| found.size == size)
        {
            self.is_over = true;
            return Ok(());
        }
        Err(match failure {
            Failure::Missing => Error::unavailable(OPERATION, "the upload was aborted by somebody else"),
            failure => failure.into_error(OPERATION),
        })
    }
}

impl Drop for Multipart {
    fn drop(&mut self) {
        if self.is_over || self.id.is_empty() {
            return;
        }
        let (calls, path, id) = (Arc::clone(&self.calls), self.path.clone(), self.id.clone());
        // What cannot be aborted now is swept later.
        self.finishing.own(async move {
            let _ = calls.repeat(OPERATION, || calls.objects.abort_multipart(&path, &id)).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_the_size_asked_for_whatever_chunks_come() {
        let mut buffer = PartBuffer::default();
        let lengths = [1, 0, 20_000, 5, 70_000, 3];
        for length in lengths {
            buffer.push(Bytes::from(vec![u8::try_from(length % 251).unwrap(); length]));
        }
        let all: usize = lengths.iter().sum();
        let first = buffer.take(50_000);
        assert_eq!((first.content_length(), buffer.length), (50_000, all - 50_000));
        assert_eq!(buffer.take(usize::MAX).content_length(), all - 50_000);
        assert_eq!(buffer.take(usize::MAX).content_length(), 0);
    }

    #[test]
    fn a_declared_size_makes_parts_large_enough() {
        const MIB: usize = 1024 * 1024;
        assert_eq!(part_bytes(8 * MIB, None), 8 * MIB);
        assert_eq!(part_bytes(8 * MIB, Some(1 << 30)), 8 * MIB);
        let terabyte = part_bytes(8 * MIB, Some(1 << 40)) as u64;
        assert!(terabyte * MAX_PARTS >= 1 << 40);
    }
}
