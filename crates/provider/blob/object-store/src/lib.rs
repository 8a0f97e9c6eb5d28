//! BlobStore over what keeps objects. One cargo feature for each kind of place, so that nobody compiles a cloud that he does not use:
//!
//! * `fs` (default): files of this host, [`FsBlobStore`].
//! * `s3`: Amazon S3 and servers that speak its protocol, `CloudBlobStore::open_s3`. Tested against SeaweedFS.
//! * `gcs`: Google Cloud Storage, `CloudBlobStore::open_gcs`. **Compiled, but not tested here**: there is no server to test it with.
//! * `azure`: Azure Blob Storage, `CloudBlobStore::open_azure`. **Compiled, but not tested here**, for the same reason.

#[cfg(feature = "cloud")]
mod cloud;
#[cfg(feature = "fs")]
mod fs;
#[cfg(any(feature = "fs", feature = "cloud"))]
mod record;

#[cfg(feature = "azure")]
pub use cloud::AzureConfig;
#[cfg(feature = "gcs")]
pub use cloud::GcsConfig;
#[cfg(feature = "s3")]
pub use cloud::S3Config;
#[cfg(feature = "cloud")]
pub use cloud::{CloudBlobStore, CloudCapabilities, CloudLimits, Secret, Swept};
#[cfg(feature = "fs")]
pub use fs::FsBlobStore;
