//! The checks that every adapter makes, in one place: what a put declared, what a read gives, what a page may hold.

use std::ops::Range;

use flames_error::{Error, ErrorKind, Result};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::{BlobInfo, BlobKey, Digest, MAX_PAGE, PutOptions};

/// The media type of a blob that was put without one.
pub const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";

const PUT: &str = "blob.put";
const GET: &str = "blob.get";

/// Measures a blob on its way in and holds it to what its put declared.
///
/// For each chunk: [`Verifier::admit`] before it takes room, [`Verifier::update`] as it is kept. At the end, before anything
/// becomes visible: [`Verifier::finish`].
#[derive(Debug, Clone)]
pub struct Verifier {
    hasher: Sha256,
    size: u64,
    expected_size: Option<u64>,
    expected_digest: Option<Digest>,
}

impl Verifier {
    /// For a put with these options.
    pub fn new(options: &PutOptions) -> Self {
        let PutOptions { expected_size, expected_digest, .. } = *options;
        Self { hasher: Sha256::new(), size: 0, expected_size, expected_digest }
    }

    /// `InvalidInput` when `more` bytes would make the blob longer than its put declared.
    pub fn admit(&self, more: u64) -> Result<()> {
        match self.expected_size {
            Some(expected) if self.size.saturating_add(more) > expected => Err(wrong_size(expected)),
            _ => Ok(()),
        }
    }

    /// Counts these bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.size = self.size.saturating_add(bytes.len() as u64);
    }

    /// How many bytes came so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Size and digest of all that came. `InvalidInput` when the put declared other ones.
    pub fn finish(self) -> Result<(u64, Digest)> {
        if let Some(expected) = self.expected_size.filter(|expected| *expected != self.size) {
            return Err(wrong_size(expected).with_context("size", self.size));
        }
        let digest = Digest::from_bytes(self.hasher.finalize().into());
        if self.expected_digest.is_some_and(|expected| expected != digest) {
            return Err(Error::invalid(
                PUT,
                "expected_digest",
                "The blob does not have the digest that was declared.",
            )
            .with_context("digest", digest));
        }
        Ok((self.size, digest))
    }
}

fn wrong_size(expected: u64) -> Error {
    Error::invalid(PUT, "expected_size", "The blob does not have the size that was declared.")
        .with_context("expected", expected)
}

/// Holds a blob on its way out to its digest. Only a read of the whole blob can be checked; of a part, only the length is.
#[derive(Debug, Clone)]
pub struct ReadVerifier {
    hasher: Option<Sha256>,
    expected: Digest,
    rest: u64,
    key: BlobKey,
}

impl ReadVerifier {
    /// For a read of `range`, which must lie within the blob.
    pub fn new(info: &BlobInfo, range: &Range<u64>) -> Self {
        Self {
            hasher: (*range == (0..info.size)).then(Sha256::new),
            expected: info.digest,
            rest: range.end.saturating_sub(range.start),
            key: info.key.clone(),
        }
    }

    /// Counts in a chunk, in order, before it is handed out. `Corrupt` when it is the last one and the blob does not have its digest,
    /// or when more came than the range holds: then the chunk must not be handed out.
    pub fn update(&mut self, chunk: &[u8]) -> Result<()> {
        self.rest = self
            .rest
            .checked_sub(chunk.len() as u64)
            .ok_or_else(|| self.damaged("more bytes came than the blob has"))?;
        let Some(hasher) = &mut self.hasher else { return Ok(()) };
        hasher.update(chunk);
        if self.rest == 0 && Digest::from_bytes(hasher.finalize_reset().into()) != self.expected {
            return Err(self.damaged("the blob's bytes do not have its digest"));
        }
        Ok(())
    }

    fn damaged(&self, what: &'static str) -> Error {
        Error::new(ErrorKind::Corrupt, GET, what).with_resource("blob", self.key.as_str())
    }
}

impl BlobInfo {
    /// The description of a blob that was put with `options`, as [`Verifier::finish`] measured it.
    pub fn of_put(key: BlobKey, options: PutOptions, measured: (u64, Digest), stored_at: Timestamp) -> Self {
        let (size, digest) = measured;
        let content_type = options.content_type.unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned());
        Self { key, size, digest, content_type, metadata: options.metadata, stored_at }
    }

    /// The part of the blob that a read of `range` gives, cut at the blob's end; all of it when none is asked for.
    /// `InvalidInput` when the range is reversed or starts past the end.
    pub fn readable(&self, range: Option<Range<u64>>) -> Result<Range<u64>> {
        let Range { start, end } = range.unwrap_or(0..self.size);
        if start > end || start > self.size {
            return Err(Error::invalid(
                GET,
                "range",
                "A range must not be reversed or start past the blob's end.",
            )
            .with_resource("blob", self.key.as_str())
            .with_context("size", self.size));
        }
        Ok(start..end.min(self.size))
    }
}

/// `InvalidInput` unless a page of a listing may hold `limit` blobs.
pub fn validate_page_limit(limit: usize) -> Result<()> {
    if (1..=MAX_PAGE).contains(&limit) {
        Ok(())
    } else {
        Err(Error::invalid("blob.list", "limit", "A page of blobs holds 1 to 1,000."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> Digest {
        Digest::from_bytes(Sha256::digest(bytes).into())
    }

    fn info(bytes: &[u8]) -> BlobInfo {
        let key = BlobKey::new("a").unwrap();
        let measured = (bytes.len() as u64, digest(bytes));
        BlobInfo::of_put(key, PutOptions::default(), measured, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_put_is_held_to_what_it_declared() {
        let declared = |expected_size, expected_digest| {
            let options = PutOptions { expected_size, expected_digest, ..PutOptions::default() };
            let mut verifier = Verifier::new(&options);
            verifier.admit(4)?;
            verifier.update(b"blob");
            verifier.finish()
        };
        assert_eq!(declared(None, None).unwrap(), (4, digest(b"blob")));
        assert!(declared(Some(4), Some(digest(b"blob"))).is_ok());
        for (size, sum) in [(Some(3), None), (Some(5), None), (None, Some(digest(b"other")))] {
            assert_eq!(declared(size, sum).unwrap_err().kind(), ErrorKind::InvalidInput, "{size:?}");
        }
    }

    #[test]
    fn a_damaged_blob_is_found_before_its_last_chunk_and_a_part_only_by_its_length() {
        let (blob, whole) = (info(b"blob"), 0..4);
        let mut verifier = ReadVerifier::new(&blob, &whole);
        verifier.update(b"bl").unwrap();
        assert_eq!(verifier.clone().update(b"ab").unwrap_err().kind(), ErrorKind::Corrupt);
        verifier.update(b"ob").unwrap();
        assert_eq!(verifier.update(b"s").unwrap_err().kind(), ErrorKind::Corrupt, "a byte too many");
        ReadVerifier::new(&blob, &(1..3)).update(b"xx").unwrap();
    }
}
