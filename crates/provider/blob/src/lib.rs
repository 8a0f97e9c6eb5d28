//! BlobStore: large immutable bytes under flat keys, as an interface.
//!
//! Guarantees, each proven by cases of `flames-blob-conformance` (named behind each method):
//!
//! * A put is atomic: the whole blob becomes visible at once, or nothing does. A put that fails or is abandoned leaves
//!   nothing visible and the old blob as it was.
//! * What is read is what was put: size and SHA-256 are computed while the bytes pass, stored with the blob, and a digest
//!   or size that the caller declared and that does not match is refused.
//! * No implementation holds a whole blob in memory: bytes stream in chunks of at most [`MAX_CHUNK`].

mod key;
mod verify;

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use futures::StreamExt;
use futures::stream::BoxStream;
use jiff::Timestamp;

pub use key::BlobKey;
pub use verify::{DEFAULT_CONTENT_TYPE, ReadVerifier, Verifier, validate_page_limit};

/// The longest chunk that a reader is handed, in bytes.
pub const MAX_CHUNK: usize = 1024 * 1024;
/// The most entries that one page of [`BlobStore::list`] holds.
pub const MAX_PAGE: usize = 1_000;
/// The most metadata pairs of one blob.
pub const MAX_METADATA_PAIRS: usize = 16;
/// The most bytes that a blob's metadata (keys and values) take together, as S3 counts them.
pub const MAX_METADATA_BYTES: usize = 2_048;

/// A SHA-256 digest, written `sha256:<64 hex digits>` as in the OCI image specification (descriptor digests).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits alone.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Digest {
    type Err = Error;

    /// `InvalidInput` unless the text is `sha256:` and 64 lower-case hex digits.
    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::invalid("blob.digest", "digest", "A digest is `sha256:` and 64 lower-case hex digits.");
        let digits = text.strip_prefix("sha256:").ok_or_else(wrong)?;
        if digits.len() != 64 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[index * 2..index * 2 + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// The bytes of a blob on their way in or out. An error ends the stream.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// What a caller says about a blob that it puts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// The media type; [`DEFAULT_CONTENT_TYPE`] when absent.
    pub content_type: Option<String>,
    /// Refuse the put unless exactly this many bytes came.
    pub expected_size: Option<u64>,
    /// Refuse the put unless the bytes have this digest.
    pub expected_digest: Option<Digest>,
    /// Pairs kept with the blob. Keys: `a-z`, `0-9` and `-`, at most 64 bytes; values: printable ASCII. See
    /// [`MAX_METADATA_PAIRS`] and [`MAX_METADATA_BYTES`].
    pub metadata: BTreeMap<String, String>,
}

impl PutOptions {
    /// `InvalidInput` when the metadata or content type pass the stated limits. Adapters call it before they read a byte.
    pub fn validate(&self) -> Result<()> {
        const OPERATION: &str = "blob.put";
        let printable = |text: &str| text.bytes().all(|b| (0x20..0x7f).contains(&b));
        if self.metadata.len() > MAX_METADATA_PAIRS {
            return Err(Error::invalid(OPERATION, "metadata", "A blob has at most 16 metadata pairs."));
        }
        let bytes: usize = self.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > MAX_METADATA_BYTES {
            return Err(Error::invalid(OPERATION, "metadata", "A blob's metadata is at most 2,048 bytes."));
        }
        for (key, value) in &self.metadata {
            let key_fits = (1..=64).contains(&key.len())
                && key.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
            if !key_fits || !printable(value) {
                return Err(Error::invalid(
                    OPERATION,
                    "metadata",
                    "Metadata keys are 1 to 64 of a-z, 0-9 and `-`; values are printable ASCII.",
                ));
            }
        }
        match &self.content_type {
            Some(kind) if kind.is_empty() || kind.len() > 255 || !printable(kind) => Err(Error::invalid(
                OPERATION,
                "content_type",
                "A content type is 1 to 255 printable ASCII bytes.",
            )),
            _ => Ok(()),
        }
    }
}

/// What is known of a stored blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its key.
    pub key: BlobKey,
    /// Its length in bytes.
    pub size: u64,
    /// The SHA-256 of its bytes.
    pub digest: Digest,
    /// Its media type.
    pub content_type: String,
    /// The pairs that were put with it.
    pub metadata: BTreeMap<String, String>,
    /// When it became visible, by the provider's clock.
    pub stored_at: Timestamp,
}

/// A blob being read.
pub struct BlobRead {
    /// The whole blob's description.
    pub info: BlobInfo,
    /// The bytes that [`BlobRead::stream`] gives, as offsets into the blob.
    pub range: Range<u64>,
    /// The bytes.
    pub stream: ByteStream,
}

impl Debug for BlobRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobRead")
            .field("info", &self.info)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlobPage {
    /// The blobs, in ascending key order. `digest`, `content_type` and `metadata` are those of [`BlobStore::head`].
    pub blobs: Vec<BlobInfo>,
    /// Where the next page starts (exclusive); none when this was the last.
    pub next: Option<BlobKey>,
}

/// Large immutable bytes under flat keys. See the crate's docs for the guarantees.
///
/// All methods are cancel-safe: a dropped call leaves either its whole effect or none.
#[async_trait]
pub trait BlobStore: Debug + Send + Sync + 'static {
    /// The adapter's name (`memory`, `fs`, `s3`).
    fn name(&self) -> &'static str;

    /// Stores the stream's bytes under `key`, replacing what was there, and answers what was stored. Durable when it returns,
    /// unless the adapter is a memory one.
    ///
    /// Errors: `InvalidInput` when the options pass a limit, or size or digest do not match (nothing is stored); the
    /// stream's own error when it fails (nothing is stored); `Exhausted` when there is no room; `PermissionDenied`; `Unavailable`;
    /// `OutcomeUnknown` when it may have become visible.
    ///
    /// Cases: `a_blob_reads_back_as_it_was_put`, `a_put_replaces_the_blob_whole`, `a_put_whose_stream_fails_leaves_nothing`,
    /// `a_put_whose_stream_fails_keeps_the_old_blob`, `an_abandoned_put_leaves_nothing`, `a_wrong_digest_is_refused`,
    /// `a_wrong_size_is_refused`, `two_puts_racing_leave_one_of_them_whole`, `an_empty_blob_is_a_blob`,
    /// `a_put_is_invisible_until_it_is_whole`, `a_put_dropped_at_any_point_has_its_whole_effect_or_none`,
    /// `an_abandoned_put_does_not_undo_a_later_one`, `a_stream_longer_than_declared_is_refused_before_it_ends`,
    /// `options_past_a_limit_are_refused`, `every_limit_is_met_exactly_and_passed_by_one`, `a_long_blob_streams_in_short_chunks`,
    /// `keys_that_look_alike_are_apart`, `a_blob_outlives_its_store`,
    /// `thirty_two_puts_and_deletes_of_one_key_leave_it_whole_or_absent`, `random_operations_agree_with_a_reference_model`. Where there
    /// is a network: `a_put_cut_at_any_byte_is_told_truthfully`, `no_put_reports_success_for_what_is_not_there`,
    /// `a_put_whose_answer_never_comes_is_told_truthfully`, `a_stalled_network_ends_every_call_within_its_deadline`; where there is a
    /// server: `what_was_put_is_there_after_the_server_was_killed_under_load`.
    async fn put(&self, key: &BlobKey, stream: ByteStream, options: PutOptions) -> Result<BlobInfo>;

    /// Reads a blob, or the part of it that lies in `range` (cut at the blob's end).
    ///
    /// Errors: `NotFound`; `InvalidInput` when the range is reversed or starts past the end (a start at the end gives no bytes);
    /// `Corrupt` (also in the stream, before its last chunk); `Unavailable` and `Conflict` (also in the stream: the connection is lost, or
    /// the blob that the read began with is gone for good. Then the bytes that came are right, and no others follow).
    ///
    /// Cases: `a_range_reads_just_those_bytes`, `a_range_past_the_end_is_cut`, `a_range_that_starts_past_the_end_is_refused`,
    /// `a_read_that_began_sees_one_blob_though_it_is_replaced`, `readers_see_whole_blobs_while_they_are_replaced`,
    /// `what_is_not_there_is_not_found`, `a_reversed_range_is_refused`. Where there is a network:
    /// `a_read_cut_at_any_byte_is_right_or_told`, `a_read_that_goes_on_after_a_replacement_is_never_stitched`.
    async fn get(&self, key: &BlobKey, range: Option<Range<u64>>) -> Result<BlobRead>;

    /// Describes a blob without reading it. Errors: `NotFound`; `Corrupt`; `Unavailable`.
    ///
    /// Cases: `head_tells_size_digest_type_and_metadata`.
    async fn head(&self, key: &BlobKey) -> Result<BlobInfo>;

    /// Removes a blob. No error when it is not there.
    ///
    /// Errors: `PermissionDenied`; `Unavailable`; `OutcomeUnknown`.
    ///
    /// Cases: `a_deleted_blob_is_gone`, `deleting_what_is_not_there_is_no_error`,
    /// `what_was_deleted_or_refused_stays_away_after_a_restart`,
    /// `thirty_two_puts_and_deletes_of_one_key_leave_it_whole_or_absent`. Where there is a network:
    /// `a_delete_cut_at_any_byte_is_told_truthfully`.
    async fn delete(&self, key: &BlobKey) -> Result<()>;

    /// Lists the blobs whose key begins with `prefix`, after `after`, at most `limit` (1 to [`MAX_PAGE`]) a page. A blob that is
    /// there throughout appears exactly once over all pages.
    ///
    /// Errors: `InvalidInput` when `limit` is out of range; `Unavailable`.
    ///
    /// Cases: `a_listing_is_ordered_and_pages_meet`, `a_prefix_lists_only_its_own`, `a_page_limit_out_of_range_is_refused`,
    /// `a_page_that_ends_on_the_last_blob_says_so`, `more_blobs_than_a_page_holds_are_listed_once_each`, `a_page_tells_what_head_tells`,
    /// `a_blob_that_stays_is_listed_once_while_others_come_and_go`, `a_listing_while_others_put_and_delete_tells_no_blob_twice`. Where
    /// there is a network: `a_listing_cut_at_any_byte_is_right_or_told`.
    async fn list(&self, prefix: &str, after: Option<&BlobKey>, limit: usize) -> Result<BlobPage>;

    /// Whether a blob is there.
    ///
    /// Cases: `exists_tells_the_truth`.
    async fn exists(&self, key: &BlobKey) -> Result<bool> {
        match self.head(key).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Conveniences over any [`BlobStore`].
#[async_trait]
pub trait BlobStoreExt: BlobStore {
    /// Puts bytes that are in memory already.
    async fn put_bytes(&self, key: &BlobKey, bytes: Bytes, options: PutOptions) -> Result<BlobInfo> {
        let stream = futures::stream::once(async move { Ok(bytes) }).boxed();
        self.put(key, stream, options).await
    }

    /// Reads a whole blob of at most `limit` bytes. `Exhausted` when it is longer.
    async fn get_bytes(&self, key: &BlobKey, limit: u64) -> Result<Bytes> {
        let mut read = self.get(key, None).await?;
        if read.info.size > limit {
            return Err(Error::new(
                ErrorKind::Exhausted,
                "blob.get_bytes",
                "the blob is longer than the caller takes",
            )
            .with_resource("blob", key.as_str())
            .with_context("size", read.info.size)
            .with_context("limit", limit));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(read.info.size).unwrap_or(0));
        while let Some(chunk) = read.stream.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        Ok(bytes.into())
    }
}

impl<B: BlobStore + ?Sized> BlobStoreExt for B {}

#[async_trait]
impl<B: BlobStore + ?Sized> BlobStore for Arc<B> {
    fn name(&self) -> &'static str {
        (**self).name()
    }
    async fn put(&self, key: &BlobKey, stream: ByteStream, options: PutOptions) -> Result<BlobInfo> {
        (**self).put(key, stream, options).await
    }
    async fn get(&self, key: &BlobKey, range: Option<Range<u64>>) -> Result<BlobRead> {
        (**self).get(key, range).await
    }
    async fn head(&self, key: &BlobKey) -> Result<BlobInfo> {
        (**self).head(key).await
    }
    async fn delete(&self, key: &BlobKey) -> Result<()> {
        (**self).delete(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&BlobKey>, limit: usize) -> Result<BlobPage> {
        (**self).list(prefix, after, limit).await
    }
    async fn exists(&self, key: &BlobKey) -> Result<bool> {
        (**self).exists(key).await
    }
}
