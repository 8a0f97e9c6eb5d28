//! BlobStore over what keeps objects. One cargo feature for each kind of place:
//!
//! * `fs` (default): files of this host, [`FsBlobStore`].

#[cfg(feature = "fs")]
mod fs;

#[cfg(feature = "fs")]
pub use fs::FsBlobStore;
