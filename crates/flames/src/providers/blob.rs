//! The blob store that is chosen.

use std::path::PathBuf;
use std::sync::Arc;

use flames_blob::BlobStore;
use flames_blob_memory::MemoryBlobStore;
use flames_clock::Clock;

#[cfg(feature = "azure")]
use flames_blob_object_store::AzureConfig;
#[cfg(feature = "fs")]
use flames_blob_object_store::FsBlobStore;
#[cfg(feature = "gcs")]
use flames_blob_object_store::GcsConfig;
#[cfg(feature = "s3")]
use flames_blob_object_store::S3Config;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
use flames_blob_object_store::{CloudBlobStore, CloudLimits};

use crate::config::{Problem, Section, Settings};

const SECTION: Section = Section::Blob;

/// How often a bucket is swept.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
const SWEEP_EVERY: std::time::Duration = std::time::Duration::from_secs(6 * 3_600);

/// A store, and the task that sweeps it, when it needs that.
pub(super) type Opened = (Arc<dyn BlobStore>, Option<tokio::task::JoinHandle<()>>);

/// What is to be opened.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "fs"), allow(dead_code, reason = "a folder is for one backend"))]
pub(crate) enum BlobPlan {
    /// So many bytes at most.
    Memory(u64),
    /// The folder.
    Fs(PathBuf),
    #[cfg(feature = "s3")]
    S3(Box<S3Config>, CloudLimits),
    #[cfg(feature = "gcs")]
    Gcs(Box<GcsConfig>, CloudLimits),
    #[cfg(feature = "azure")]
    Azure(Box<AzureConfig>, CloudLimits),
}

impl BlobPlan {
    pub(super) fn of(settings: &Settings) -> Result<Self, Problem> {
        match settings.backend(SECTION) {
            #[cfg(feature = "fs")]
            "fs" => settings.required(SECTION, "blob.path").map(|path| Self::Fs(path.into())),
            #[cfg(not(feature = "fs"))]
            "fs" => Err(super::lacks(SECTION, settings, "fs")),
            "s3" => s3(settings),
            "gcs" => gcs(settings),
            "azure" => azure(settings),
            _ => Ok(Self::Memory(settings.bytes("blob.max_size").unwrap_or(u64::MAX))),
        }
    }

    /// The store, and what sweeps it from time to time, when it needs that.
    pub(super) async fn open(self, clock: &Arc<dyn Clock>) -> Result<Opened, Problem> {
        match self {
            Self::Memory(most) => {
                Ok((Arc::new(MemoryBlobStore::with_capacity(Arc::clone(clock), most)), None))
            }
            #[cfg(feature = "fs")]
            Self::Fs(folder) => {
                let store = FsBlobStore::open(folder, Arc::clone(clock)).await;
                let store = store.map_err(|error| Problem::of_error(SECTION, "fs", "path", &error))?;
                Ok((Arc::new(store), None))
            }
            #[cfg(not(feature = "fs"))]
            Self::Fs(_) => Ok((Arc::new(MemoryBlobStore::new(Arc::clone(clock))), None)),
            #[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
            cloud => {
                let store = Arc::new(cloud.open_cloud(clock).await?);
                let sweeping = tokio::spawn(sweep(Arc::clone(&store), Arc::clone(clock)));
                Ok((store, Some(sweeping)))
            }
        }
    }

    /// A store in a bucket, and whether it keeps conditions.
    #[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
    pub(super) async fn open_cloud(self, clock: &Arc<dyn Clock>) -> Result<CloudBlobStore, Problem> {
        let clock = Arc::clone(clock);
        let random = Arc::new(flames_clock::SystemRandom);
        let (backend, place, secret, opened) = match self {
            #[cfg(feature = "s3")]
            Self::S3(config, limits) => {
                ("s3", "bucket", "secret_key", CloudBlobStore::open_s3(*config, limits, clock, random).await)
            }
            #[cfg(feature = "gcs")]
            Self::Gcs(config, limits) => (
                "gcs",
                "bucket",
                "service_account_key",
                CloudBlobStore::open_gcs(*config, limits, clock, random).await,
            ),
            #[cfg(feature = "azure")]
            Self::Azure(config, limits) => (
                "azure",
                "container",
                "account_key",
                CloudBlobStore::open_azure(*config, limits, clock, random).await,
            ),
            Self::Memory(_) | Self::Fs(_) => {
                return Err(Problem::new(SECTION, "blob.backend", "this is no bucket."));
            }
        };
        opened.map_err(|error| {
            let is_denied = error.kind() == flames_error::ErrorKind::PermissionDenied;
            Problem::of_error(SECTION, backend, if is_denied { secret } else { place }, &error)
        })
    }
}

/// Removes what puts left behind, until it is aborted. Of several servers over one bucket each does so: what one has removed is no
/// failure of another's.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
async fn sweep(store: Arc<CloudBlobStore>, clock: Arc<dyn Clock>) {
    // Far more than any put takes, and so more than the least that the store asks for.
    let abandoned = SWEEP_EVERY.max(CloudLimits::default().put * 3);
    loop {
        clock.sleep(SWEEP_EVERY).await;
        match store.sweep_abandoned(abandoned).await {
            Ok(swept) => tracing::info!(?swept, "the bucket was swept"),
            Err(error) => tracing::warn!(%error, "the bucket was not swept whole; it is tried again"),
        }
    }
}

#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
fn limits(settings: &Settings) -> CloudLimits {
    CloudLimits {
        connect: settings.duration("blob.connect_deadline"),
        call: settings.duration("blob.call_deadline"),
        ..CloudLimits::default()
    }
}

#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
fn text(settings: &Settings, path: &str) -> Option<String> {
    settings.text(path).filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(feature = "s3")]
fn s3(settings: &Settings) -> Result<BlobPlan, Problem> {
    let config = S3Config {
        prefix: text(settings, "blob.prefix").unwrap_or_default(),
        endpoint: text(settings, "blob.endpoint"),
        region: settings.required(SECTION, "blob.region")?.to_owned(),
        access_key: text(settings, "blob.access_key"),
        secret_key: text(settings, "blob.secret_key").map(Into::into),
        session_token: text(settings, "blob.session_token").map(Into::into),
        virtual_hosted: settings.switch("blob.virtual_hosted").unwrap_or(false),
        ..S3Config::new(settings.required(SECTION, "blob.bucket")?)
    };
    Ok(BlobPlan::S3(Box::new(config), limits(settings)))
}

#[cfg(not(feature = "s3"))]
fn s3(settings: &Settings) -> Result<BlobPlan, Problem> {
    Err(super::lacks(SECTION, settings, "s3"))
}

#[cfg(feature = "gcs")]
fn gcs(settings: &Settings) -> Result<BlobPlan, Problem> {
    let config = GcsConfig {
        bucket: settings.required(SECTION, "blob.bucket")?.to_owned(),
        prefix: text(settings, "blob.prefix").unwrap_or_default(),
        service_account_key: text(settings, "blob.service_account_key").map(Into::into),
        endpoint: text(settings, "blob.endpoint"),
    };
    Ok(BlobPlan::Gcs(Box::new(config), limits(settings)))
}

#[cfg(not(feature = "gcs"))]
fn gcs(settings: &Settings) -> Result<BlobPlan, Problem> {
    Err(super::lacks(SECTION, settings, "gcs"))
}

#[cfg(feature = "azure")]
fn azure(settings: &Settings) -> Result<BlobPlan, Problem> {
    let config = AzureConfig {
        account: settings.required(SECTION, "blob.account")?.to_owned(),
        container: settings.required(SECTION, "blob.container")?.to_owned(),
        prefix: text(settings, "blob.prefix").unwrap_or_default(),
        access_key: text(settings, "blob.account_key").map(Into::into),
        endpoint: text(settings, "blob.endpoint"),
    };
    Ok(BlobPlan::Azure(Box::new(config), limits(settings)))
}

#[cfg(not(feature = "azure"))]
fn azure(settings: &Settings) -> Result<BlobPlan, Problem> {
    Err(super::lacks(SECTION, settings, "azure"))
}
