//! Saved guests on this host, and their way to the BlobStore and back.
//!
//! ```text
//! <folder>/
//! ├─ staging/<snapshot>/disk       the guest's disk at the moment it was saved, until it is stored
//! ├─ staging/<snapshot>/memory     of a guest that was saved as a difference: the pieces of its memory that have changed, whole
//! └─ cache/<snapshot>/             what guests are loaded from
//!    ├─ state, memory, disk
//!    └─ manifest                   written last: the others are whole
//! ```
//!
//! Files are cut into chunks of one size. A chunk of zeros is a hole; every other one is a blob, compressed, named by the digest of its own
//! bytes, and stored once however many snapshots have it.

pub mod chunk;
mod difference;
mod files;
mod store;

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use flames_error::Result;

pub use files::DiskFiles;
pub use store::SnapshotStore;
pub(crate) use store::{Described, Loaded, SavedFiles, Stored};

/// What a [`SnapshotStore`] needs of files. [`DiskFiles`] are real ones; a simulation has others.
///
/// Errors everywhere: `Exhausted` when the disk is full; `Unavailable` when it cannot be read or written.
#[async_trait]
pub trait SnapshotFiles: Debug + Send + Sync + 'static {
    /// A file's length in bytes.
    async fn length(&self, path: &Path) -> Result<u64>;
    /// Where data begins at or behind `from`; none: zeros to the end.
    async fn next_data(&self, path: &Path, from: u64) -> Result<Option<u64>>;
    /// [`chunk::digest`] of a part of a file.
    async fn digest(&self, path: &Path, offset: u64, length: usize) -> Result<Option<String>>;
    /// [`chunk::pack`] of a part of a file.
    async fn packed(&self, path: &Path, offset: u64, length: usize) -> Result<Bytes>;
    /// Makes a file of this length that is all hole, in place of the one that is there, with the folders above it.
    async fn create(&self, path: &Path, length: u64) -> Result<()>;
    /// Writes what [`chunk::unpack`] gives into a file. Errors: also `Corrupt`.
    async fn unpack(
        &self,
        path: &Path,
        offset: u64,
        length: usize,
        digest: &str,
        packed: Bytes,
    ) -> Result<()>;
    /// Copies what is data in a part of a file to the same place of another; what is hole in it stays as it is there.
    async fn lay_over(&self, from: &Path, onto: &Path, offset: u64, length: usize) -> Result<()>;
    /// Makes what was written durable, to be read from then on. Monitors of several users load guests from it, so any user may read it who
    /// reaches it; its folder lets nobody but its owner in.
    async fn seal(&self, path: &Path) -> Result<()>;
    /// Copies a file with its holes, in place of the one that is there, durably.
    async fn copy(&self, from: &Path, to: &Path) -> Result<()>;
    /// Gives a file or folder another name, durably.
    async fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Whether something is there.
    async fn exists(&self, path: &Path) -> Result<bool>;
    /// Removes a file or a folder with all in it. No error when there is none.
    async fn remove(&self, path: &Path) -> Result<()>;
    /// What is in a folder; nothing when it is not there.
    async fn list(&self, folder: &Path) -> Result<Vec<PathBuf>>;
}
