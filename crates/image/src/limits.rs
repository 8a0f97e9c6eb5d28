//! What an image may cost, and what it may hold.

use serde::{Deserialize, Serialize};

/// The bounds of one conversion. An image that would pass one is refused with an error that names the entry and the bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The sum of all file sizes over all layers, in bytes; holes count. Also bounds what an archive of an image unpacks to.
    pub unpacked_bytes: u64,
    /// The entries of all layers together, directories that are only implied among them.
    pub entries: u64,
    /// The names, link targets and extended attributes of all entries together, in bytes: they are kept in memory.
    pub metadata_bytes: u64,
    /// The longest path of an entry, in bytes (Linux's PATH_MAX is 4096).
    pub path_bytes: usize,
    /// How deep directories may lie in one another.
    pub depth: usize,
    /// The most layers (Docker's own limit is 127).
    pub layers: usize,
    /// A compressed stream may unpack to this many times its own size, once it has passed `ratio_free_bytes`.
    pub ratio: u64,
    /// Unpacked bytes of one stream up to which the ratio is not looked at: small files of zeros are common.
    pub ratio_free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpacked_bytes: 16 << 30,
            entries: 1_000_000,
            metadata_bytes: 256 << 20,
            path_bytes: 4096,
            depth: 256,
            layers: 127,
            ratio: 200,
            ratio_free_bytes: 256 << 20,
        }
    }
}

/// What becomes of device nodes in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceNodes {
    /// The image is refused. A guest's `/dev` is a devtmpfs, so honest images need none.
    #[default]
    Refuse,
    /// They are left out.
    Skip,
    /// They are made. Asked for by name only.
    Keep,
}
