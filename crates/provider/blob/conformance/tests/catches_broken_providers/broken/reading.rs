//! Reading parts, over connections that break.

use std::ops::Range;

use bytes::Bytes;
use flames_blob::{BlobInfo, ByteStream};
use flames_error::{Error, Result};
use futures::StreamExt;

use super::{BrokenStore, Flaw};
use crate::network::{Lost, told};

impl BrokenStore {
    /// The bytes of a part over connections that break: from where the last one ended, if it is still the same blob.
    pub(super) fn over_the_network(&self, info: BlobInfo, part: Bytes, start: usize) -> ByteStream {
        let state = (self.clone(), info, part, start, 0);
        futures::stream::try_unfold(state, |(store, info, mut part, mut start, mut losses)| async move {
            while !part.is_empty() {
                let mut connection = store.connect().await?;
                let is_there = connection.request(0).await.is_ok();
                let arrived = if is_there { connection.answer(part.len()).await.unwrap_or(0) } else { 0 };
                if arrived < part.len() {
                    losses += 1;
                }
                if arrived > 0 {
                    let chunk = part.split_to(arrived.min(300_000));
                    start += chunk.len();
                    if arrived < part.len() && store.has(Flaw::EndsCutReads) {
                        part.clear();
                    }
                    // What follows comes over another connection, on which the blob may be another.
                    let now = store.blobs.lock().unwrap().get(&info.key).cloned();
                    if let Some(now) = now.filter(|now| now.info != info)
                        && store.has(Flaw::StitchesReplacedBlobs)
                    {
                        part = now.bytes.slice(start.min(now.bytes.len())..);
                    }
                    return Ok(Some((chunk, (store, info, part, start, losses))));
                }
                if losses > 3 {
                    return Err(told("blob.get", Lost::Request));
                }
            }
            Ok(None)
        })
        .boxed()
    }

    pub(super) fn range(&self, range: Option<Range<u64>>, size: u64) -> Result<Range<u64>> {
        let Range { start, end } = range.unwrap_or(0..size);
        let invalid = || Error::invalid("blob.get", "range", "wrong range");
        if self.has(Flaw::IgnoresRanges) {
            return Ok(0..size);
        }
        if start > end {
            return if self.has(Flaw::TakesReversedRanges) { Ok(0..0) } else { Err(invalid()) };
        }
        if start > size {
            return if self.has(Flaw::TakesStartsPastTheEnd) { Ok(size..size) } else { Err(invalid()) };
        }
        if end > size && self.has(Flaw::RefusesRangesPastTheEnd) {
            return Err(invalid());
        }
        let end = end.saturating_add(u64::from(self.has(Flaw::TakesRangesAsInclusive)));
        Ok(start..end.min(size))
    }
}
