//! A blob on its way out.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use flames_blob::{BlobInfo, BlobKey, ByteStream, ReadVerifier};
use flames_error::{Error, ErrorKind, Result};
use futures::StreamExt;

const OPERATION: &str = "blob.get";
/// How much is read at once: enough to make the hop to a blocking thread cheap, little enough for many readers at once.
const READ_CHUNK: usize = 256 * 1024;

struct Reader {
    file: File,
    key: BlobKey,
    range: Range<u64>,
    verifier: ReadVerifier,
}

/// The bytes in `range`, which must lie within the blob.
pub(super) fn stream(file: File, info: &BlobInfo, range: Range<u64>) -> ByteStream {
    let verifier = ReadVerifier::new(info, &range);
    let reader = Reader { file, key: info.key.clone(), range, verifier };
    futures::stream::try_unfold(reader, |reader| async move {
        if reader.range.is_empty() {
            return Ok(None);
        }
        super::blocking(OPERATION, move || reader.next()).await.map(Some)
    })
    .boxed()
}

impl Reader {
    fn next(mut self) -> Result<(Bytes, Self)> {
        let rest = self.range.end - self.range.start;
        let mut chunk = vec![0; usize::try_from(rest).unwrap_or(usize::MAX).min(READ_CHUNK)];
        self.file.read_exact_at(&mut chunk, self.range.start).map_err(|error| self.failed(error))?;
        self.range.start += chunk.len() as u64;
        self.verifier.update(&chunk)?;
        Ok((chunk.into(), self))
    }

    fn failed(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::new(ErrorKind::Corrupt, OPERATION, "the blob's file was cut while it was read")
                    .with_resource("blob", self.key.as_str())
            }
            _ => Error::unavailable(OPERATION, "the blob cannot be read")
                .with_resource("blob", self.key.as_str())
                .with_source(error),
        }
    }
}
