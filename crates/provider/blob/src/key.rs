//! Keys of blobs.

use std::fmt::Display;

use flames_error::{Error, Result};

/// A blob's key: 1 to 512 bytes of `a-z A-Z 0-9 . _ - : / =`, without an empty, `.` or `..` segment between slashes. The key
/// space is flat: a slash groups for [`crate::BlobStore::list`] and means nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobKey(String);

impl BlobKey {
    /// The longest key, in bytes.
    pub const MAX_LENGTH: usize = 512;

    /// Checks and wraps a key. `InvalidInput` when it is none.
    pub fn new(key: impl Into<String>) -> Result<Self> {
        let key = key.into();
        let allowed =
            |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':' | b'/' | b'=');
        let segments_fit = key.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
        if (1..=Self::MAX_LENGTH).contains(&key.len()) && key.bytes().all(allowed) && segments_fit {
            Ok(Self(key))
        } else {
            Err(Error::invalid(
                "blob.key",
                "key",
                "A blob key is 1 to 512 bytes of a-z, A-Z, 0-9 and `._-:/=`, without empty, `.` or `..` segments.",
            ))
        }
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for BlobKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_could_climb_out_of_a_folder_is_refused() {
        for key in ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a b", "a\0", "ä", &"k".repeat(513)] {
            assert!(BlobKey::new(key).is_err(), "{key:?}");
        }
        for key in ["a", "sha256:00/a.b_c-d=e", &"k".repeat(512)] {
            assert!(BlobKey::new(key).is_ok(), "{key:?}");
        }
    }
}
