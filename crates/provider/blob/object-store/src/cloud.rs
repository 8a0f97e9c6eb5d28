//! Blobs in a cloud.
//!
//! # The layout
//!
//! A blob is two objects: its bytes (`data/<key>!<id>`, written once, never changed) and a small JSON record (`blobs/<key>`) that
//! names them and tells size, digest, type and metadata ([`names`], [`crate::record`]). Writing the record makes the blob visible;
//! replacing the record replaces the blob; removing it removes the blob. This, and not the bytes with attributes on them, because:
//!
//! * the digest is known when the last byte came, but S3 takes an object's metadata when its upload begins, and changing it later
//!   copies the object (up to 5 GiB only); GCS and Azure differ again. A record works alike on all three;
//! * one small put can be made conditional on the version that it replaces, a multipart upload cannot everywhere. So a put whose
//!   answer was lost is tried again without undoing somebody else's;
//! * a read that began goes on reading the bytes that it began with, though the blob is replaced, and is resumed without danger.
//!
//! The price: a second, small request for each get and put, and one for each blob of a listing; and the bytes of replaced and deleted
//! blobs stay until [`CloudBlobStore::sweep_abandoned`] removes them.

mod calls;
mod config;
mod connect;
mod failures;
mod finishing;
mod names;
mod probe;
mod read;
mod sweep;
#[cfg(test)]
mod tests;
mod upload;
mod uploads;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_blob::{
    BlobInfo, BlobKey, BlobPage, BlobRead, BlobStore, ByteStream, PutOptions, Verifier, validate_page_limit,
};
use flames_clock::{Clock, IdSource, Random, UuidSource};
use flames_error::{Error, ErrorKind, Result};
use futures::StreamExt;
use object_store::{PutMode, UpdateVersion};

use calls::Calls;
#[cfg(feature = "azure")]
pub use config::AzureConfig;
#[cfg(feature = "gcs")]
pub use config::GcsConfig;
#[cfg(feature = "s3")]
pub use config::S3Config;
pub use config::{CloudLimits, Secret};
use connect::Connected;
use failures::Failure;
use finishing::Finishing;
use names::Names;
use read::Reading;
pub use sweep::Swept;
use uploads::Uploads;

/// How many records a listing reads at a time.
const RECORDS_AT_A_TIME: usize = 16;
/// How often a put gives way to others that replace the same blob meanwhile.
const MAX_CONFLICTS: u32 = 64;
/// How often a get looks again when the data of the record that it read was swept away.
const MAX_LOOKS: usize = 3;

/// What a server turned out to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloudCapabilities {
    /// Whether it refuses a put whose condition does not hold. Without that, a put that was reported as
    /// [`ErrorKind::OutcomeUnknown`] may still replace what another process put later.
    pub conditional_put: bool,
}

/// Blobs in a bucket of S3, GCS or Azure.
///
/// * Durable as the cloud is. A whole blob that is damaged ends its read with `Corrupt` before the last bytes are handed out.
/// * A put holds up to `parts_in_flight + 2` parts in memory ([`CloudLimits`]: 32 MiB), a read one chunk of the network's.
/// * A read whose connection is lost goes on where it was; after [`CloudLimits::attempts`] losses within a MiB it ends with
///   `Unavailable`. One that lasts longer than a sweep's `older_than` may end with `Conflict` when its blob was replaced or deleted.
/// * `OutcomeUnknown` when the answer to the last step of a put, or to a delete, was lost and looking did not tell.
/// * The credentials must be allowed to read, write, list and delete. Without list, the absent looks forbidden.
///
/// Needs a tokio runtime.
#[derive(Debug)]
pub struct CloudBlobStore {
    calls: Arc<Calls>,
    finishing: Arc<Finishing>,
    uploads: Uploads,
    ids: UuidSource,
    capabilities: CloudCapabilities,
}

impl CloudBlobStore {
    /// Opens the store in a bucket of S3.
    ///
    /// Errors, each in one line that names the setting, having changed nothing: `InvalidInput` (a setting is no good),
    /// `PermissionDenied` (wrong keys), `Unavailable` (no such bucket, or the server cannot be reached).
    #[cfg(feature = "s3")]
    pub async fn open_s3(
        config: S3Config,
        limits: CloudLimits,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Self> {
        limits.validate()?;
        Self::open(connect::s3(config, &limits)?, limits, clock, random).await
    }

    /// Opens the store in a bucket of Google Cloud Storage. Not tested here. Errors: as for S3.
    #[cfg(feature = "gcs")]
    pub async fn open_gcs(
        config: GcsConfig,
        limits: CloudLimits,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Self> {
        limits.validate()?;
        Self::open(connect::gcs(config, &limits)?, limits, clock, random).await
    }

    /// Opens the store in a container of Azure Blob Storage. Not tested here. Errors: as for S3.
    #[cfg(feature = "azure")]
    pub async fn open_azure(
        config: AzureConfig,
        limits: CloudLimits,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Self> {
        limits.validate()?;
        Self::open(connect::azure(config, &limits)?, limits, clock, random).await
    }

    async fn open(
        connected: Connected,
        limits: CloudLimits,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Self> {
        let Connected { objects, place, root, uploads } = connected;
        let ids = UuidSource::new(Arc::clone(&clock), Arc::clone(&random));
        let calls = Arc::new(Calls { objects, place, names: Names::new(root), limits, clock, random });
        let conditional_put = probe::probe(&calls, &ids.next_id().simple().to_string()).await?;
        if !conditional_put {
            tracing::warn!(
                provider = calls.place.provider,
                endpoint = calls.place.endpoint,
                "the server ignores conditions of puts: a put whose answer was lost may undo a later one"
            );
        }
        let capabilities = CloudCapabilities { conditional_put };
        Ok(Self { calls, finishing: Arc::default(), uploads, ids, capabilities })
    }

    /// What the server turned out to do when the store was opened.
    pub fn capabilities(&self) -> CloudCapabilities {
        self.capabilities
    }

    /// Removes what no blob needs and what is older than `older_than`: multipart uploads that were never completed, and the bytes of
    /// puts that never became visible and of blobs that were replaced or deleted. To be called now and then by one process.
    ///
    /// Never removes what a put under way needs: `InvalidInput` when `older_than` is less than twice [`CloudLimits::put`], which
    /// leaves as much again for clocks that differ. A read that began before its blob was replaced may be cut (`Conflict`).
    pub async fn sweep_abandoned(&self, older_than: Duration) -> Result<Swept> {
        sweep::sweep(&self.calls, &self.uploads, older_than).await
    }
}

/// What stands where a blob is to be put.
struct Standing {
    /// Where its data is, when its record can be read, and that of the one that it replaced.
    data: Option<String>,
    replaced: Option<String>,
    version: UpdateVersion,
}

/// Also of a record that is damaged: a put must be able to replace it.
async fn standing(calls: &Calls, operation: &'static str, key: &BlobKey) -> Result<Option<Standing>> {
    match calls.record(operation, key).await {
        Ok(None) => Ok(None),
        Ok(Some((described, version))) => {
            Ok(Some(Standing { data: described.data, replaced: described.replaced, version }))
        }
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            let found = calls.head(operation, &calls.names.record(key)).await?;
            Ok(found.map(|meta| Standing {
                data: None,
                replaced: None,
                version: UpdateVersion { e_tag: meta.e_tag, version: meta.version },
            }))
        }
        Err(error) => Err(error),
    }
}

/// Makes the blob visible, or removes its data when that certainly failed.
async fn publish_or_discard(
    calls: Arc<Calls>,
    is_conditional: bool,
    info: BlobInfo,
    data: String,
) -> Result<BlobInfo> {
    let path = calls.names.data(&data);
    let outcome = publish(&calls, is_conditional, info, data).await;
    if outcome.as_ref().is_err_and(|error| error.kind() != ErrorKind::OutcomeUnknown) {
        discard(&calls, &path).await;
    }
    outcome
}

/// Removes data that nothing names. What cannot be removed now is swept later.
async fn discard(calls: &Calls, path: &object_store::path::Path) {
    if let Err(failure) = calls.delete("blob.put", path).await {
        tracing::debug!(?failure, %path, "the data of a failed put is left to be swept");
    }
}

/// Makes the blob visible whose data is there.
async fn publish(calls: &Calls, is_conditional: bool, info: BlobInfo, data: String) -> Result<BlobInfo> {
    const OPERATION: &str = "blob.put";
    let path = calls.names.record(&info.key);
    let is_ours = |found: &Option<String>| found.as_deref() == Some(data.as_str());
    let (mut is_in_doubt, mut failures, mut conflicts) = (false, 0, 0);
    let mut current = if is_conditional { standing(calls, OPERATION, &info.key).await? } else { None };
    loop {
        let (replaced, mode) = match &current {
            _ if !is_conditional => (None, PutMode::Overwrite),
            None => (None, PutMode::Create),
            Some(standing) => (standing.data.clone(), PutMode::Update(standing.version.clone())),
        };
        let json = Bytes::from(crate::record::write(OPERATION, &info, Some(&data), replaced.as_deref())?);
        let failure = match calls.put_once(OPERATION, &path, json, mode).await {
            Ok(_) => return Ok(info),
            Err(failure) => failure,
        };
        match failure {
            Failure::Refused if conflicts < MAX_CONFLICTS => {
                conflicts += 1;
                current = standing(calls, OPERATION, &info.key).await.map_err(|error| {
                    if is_in_doubt { error.with_kind(ErrorKind::OutcomeUnknown) } else { error }
                })?;
                if let Some(found) = &current
                    && (is_ours(&found.data) || is_ours(&found.replaced))
                {
                    // The answer to an earlier try was lost.
                    return Ok(info);
                }
                if is_in_doubt {
                    return Err(Error::new(
                        ErrorKind::OutcomeUnknown,
                        OPERATION,
                        "the answer was lost, and others put or deleted the blob meanwhile",
                    )
                    .with_resource("blob", info.key.as_str()));
                }
            }
            Failure::Passing { may_be_done, error } => {
                is_in_doubt |= may_be_done;
                failures += 1;
                if failures < calls.limits.attempts {
                    calls.pause(failures).await;
                    continue;
                }
                if !is_in_doubt {
                    return Err(error);
                }
                return match standing(calls, OPERATION, &info.key).await {
                    Ok(Some(found)) if is_ours(&found.data) => Ok(info),
                    _ => Err(error.with_kind(ErrorKind::OutcomeUnknown)),
                };
            }
            failure if is_in_doubt => {
                return Err(failure.into_error(OPERATION).with_kind(ErrorKind::OutcomeUnknown));
            }
            Failure::Refused => {
                return Err(Error::unavailable(OPERATION, "too many others put the same blob")
                    .with_resource("blob", info.key.as_str()));
            }
            failure => return Err(failure.into_error(OPERATION)),
        }
    }
}

#[async_trait]
impl BlobStore for CloudBlobStore {
    fn name(&self) -> &'static str {
        self.calls.place.provider
    }

    async fn put(&self, key: &BlobKey, stream: ByteStream, options: PutOptions) -> Result<BlobInfo> {
        const OPERATION: &str = "blob.put";
        options.validate()?;
        let began = self.calls.clock.monotonic();
        let data = Names::new_data(key, &self.ids.next_id().simple().to_string());
        let path = self.calls.names.data(&data);
        let verifier = Verifier::new(&options);
        let measured =
            upload::upload(&self.calls, &self.finishing, &path, stream, verifier, options.expected_size)
                .await
                .map_err(|error| about(error, key))?;
        let took = self.calls.clock.monotonic().saturating_since(began);
        if took > self.calls.limits.put {
            // A sweep may take it for abandoned.
            discard(&self.calls, &path).await;
            return Err(about(
                Error::unavailable(OPERATION, "the put took too long")
                    .with_context("seconds", took.as_secs()),
                key,
            ));
        }
        let info = BlobInfo::of_put(key.clone(), options, measured, self.calls.clock.now());
        let calls = Arc::clone(&self.calls);
        let step = publish_or_discard(calls, self.capabilities.conditional_put, info, data);
        self.finishing.run(OPERATION, key, step).await.map_err(|error| about(error, key))
    }

    async fn get(&self, key: &BlobKey, range: Option<Range<u64>>) -> Result<BlobRead> {
        const OPERATION: &str = "blob.get";
        for _ in 0..MAX_LOOKS {
            let Some((described, _)) = self.calls.record(OPERATION, key).await? else {
                return Err(Error::not_found(OPERATION, "blob", key.as_str()));
            };
            let range = described.info.readable(range.clone())?;
            let path = self.calls.names.data(&described.data.unwrap_or_default());
            if let Some(reading) = Reading::begin(&self.calls, &described.info, path, range.clone()).await? {
                return Ok(BlobRead { info: described.info, range, stream: reading.into_stream() });
            }
            // The blob was replaced or deleted, and what it was swept away, since its record was read. Or the data is lost.
        }
        Err(about(Error::new(ErrorKind::Corrupt, OPERATION, "the blob's data is not there"), key))
    }

    async fn head(&self, key: &BlobKey) -> Result<BlobInfo> {
        const OPERATION: &str = "blob.head";
        match self.calls.record(OPERATION, key).await? {
            Some((described, _)) => Ok(described.info),
            None => Err(Error::not_found(OPERATION, "blob", key.as_str())),
        }
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        const OPERATION: &str = "blob.delete";
        let (calls, path) = (Arc::clone(&self.calls), self.calls.names.record(key));
        let step = async move {
            calls.delete(OPERATION, &path).await.map_err(|failure| failure.into_error_of_change(OPERATION))
        };
        self.finishing.run(OPERATION, key, step).await.map_err(|error| about(error, key))
    }

    async fn list(&self, prefix: &str, after: Option<&BlobKey>, limit: usize) -> Result<BlobPage> {
        const OPERATION: &str = "blob.list";
        validate_page_limit(limit)?;
        let mut keys = self.keys(prefix, after, limit + 1).await?;
        let has_more = keys.len() > limit;
        keys.truncate(limit);
        let next = keys.last().filter(|_| has_more).cloned();
        let mut records = futures::stream::iter(keys.into_iter().map(|key| {
            let calls = Arc::clone(&self.calls);
            async move { calls.record(OPERATION, &key).await }
        }))
        .buffered(RECORDS_AT_A_TIME);
        let mut blobs = Vec::new();
        while let Some(record) = records.next().await {
            // None: deleted since it was listed.
            blobs.extend(record?.map(|(described, _)| described.info));
        }
        Ok(BlobPage { blobs, next })
    }
}

impl CloudBlobStore {
    /// The first keys that begin with `prefix`, after `after`.
    async fn keys(&self, prefix: &str, after: Option<&BlobKey>, count: usize) -> Result<Vec<BlobKey>> {
        let is_spelled = |letter: u8| letter.is_ascii_alphanumeric() || b"._-:/=".contains(&letter);
        if !prefix.bytes().all(is_spelled) {
            // No key has such letters.
            return Ok(Vec::new());
        }
        let names = &self.calls.names;
        let under = names.records_under(prefix);
        let offset = after.map(|key| names.record(key).to_string());
        let (mut keys, mut token) = (Vec::new(), None);
        loop {
            // One more than is missing: some servers give the offset itself, too.
            let limit = (count - keys.len() + 1).min(flames_blob::MAX_PAGE);
            let page = self
                .calls
                .page("blob.list", &under, offset.as_deref(), token.as_deref(), Some(limit))
                .await?;
            let found =
                page.objects.iter().filter_map(|object| names.key_of_record(object.location.as_ref()));
            keys.extend(found.filter(|key| after.is_none_or(|after| key > after)));
            if keys.len() >= count || page.token.is_none() {
                keys.truncate(count);
                return Ok(keys);
            }
            token = page.token;
        }
    }
}

fn about(error: Error, key: &BlobKey) -> Error {
    if error.resource().is_some() { error } else { error.with_resource("blob", key.as_str()) }
}
