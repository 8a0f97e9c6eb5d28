//! Disks, persistent memory, entropy, and the token buckets that bound them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::is_false;

/// A budget that refills at a constant rate: `TokenBucket` of the description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenBucket {
    /// What the bucket holds at most: bytes, or operations.
    pub size: u64,
    /// What may be used once, before the bucket is touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// How long an empty bucket takes to fill, in milliseconds. Where this or the size is 0, there is no limit: in a PATCH, that
    /// removes one.
    pub refill_time: u64,
}

impl TokenBucket {
    /// Allows `amount` each second, with bursts of as much.
    pub fn per_second(amount: u64) -> Self {
        Self { size: amount, one_time_burst: None, refill_time: 1000 }
    }
}

/// Limits on bytes and on operations: `RateLimiter` of the description. In a PATCH, a bucket left out stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// What a flush of the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum CacheType {
    /// Nothing: the guest is not even offered it. Data that the guest thinks durable may be lost with the host.
    #[default]
    Unsafe,
    /// `fsync` of the backing file.
    Writeback,
}

/// How the backing file is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum IoEngine {
    /// By blocking calls.
    #[default]
    Sync,
    /// By io_uring (host kernels from 5.10.51; a developer preview).
    Async,
}

/// A disk: `Drive` of the description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// Its id: ASCII letters, digits and `_`.
    pub drive_id: String,
    /// The partition that is the root, for a root device with a partition table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// Whether it is `/dev/vda` and Firecracker appends `root=` for it to the boot arguments. At most one device is.
    pub is_root_device: bool,
    /// What a flush does. Default: [`CacheType::Unsafe`].
    #[serde(default)]
    pub cache_type: CacheType,
    /// Whether the guest may not write. Needed with `path_on_host`, to be left out with `socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_read_only: Option<bool>,
    /// The backing file or block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Its limits; not with `socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// How the file is accessed; not with `socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngine>,
    /// The socket of a vhost-user-blk back-end, which serves the disk instead of Firecracker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

impl Drive {
    /// A disk over a file, that is not the root device.
    pub fn from_file(id: impl Into<String>, path: impl Into<PathBuf>, read_only: bool) -> Self {
        Self { is_read_only: Some(read_only), path_on_host: Some(path.into()), ..Self::without_backing(id) }
    }

    /// A disk that a vhost-user-blk back-end serves, that is not the root device.
    pub fn from_vhost_user(id: impl Into<String>, socket: impl Into<PathBuf>) -> Self {
        Self { socket: Some(socket.into()), ..Self::without_backing(id) }
    }

    fn without_backing(id: impl Into<String>) -> Self {
        Self {
            drive_id: id.into(),
            partuuid: None,
            is_root_device: false,
            cache_type: CacheType::default(),
            is_read_only: None,
            path_on_host: None,
            rate_limiter: None,
            io_engine: None,
            socket: None,
        }
    }
}

/// A change of a disk, after the start: `PartialDrive` of the description. What is left out stays.
///
/// With neither path nor limits, a vhost-user disk reads its configuration (its size) again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrivePatch {
    /// Which.
    pub drive_id: String,
    /// The new backing file; the same path is opened again, which tells the guest a new size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// New limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// A file as persistent memory (virtio-pmem): `Pmem` of the description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pmem {
    /// Its id: ASCII letters, digits and `_`.
    pub id: String,
    /// The backing file; its size is rounded up to 2 MiB in the guest.
    pub path_on_host: PathBuf,
    /// Whether it is the root device.
    #[serde(default, skip_serializing_if = "is_false")]
    pub root_device: bool,
    /// Whether the guest may not write.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// Limits of the guest's flushes ([`crate::Feature::PmemRateLimiter`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// New limits of a pmem device, after the start: `PartialPmem` of the description ([`crate::Feature::PmemRateLimiter`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemPatch {
    /// Which.
    pub id: String,
    /// The new limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// A source of random numbers (virtio-rng): `EntropyDevice` of the description.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Entropy {
    /// Its limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}
