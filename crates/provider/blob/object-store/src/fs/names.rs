//! File names of keys.
//!
//! All blobs lie in one folder, so that the keys `a` and `a/b` cannot be in each other's way, and no folder is ever made or
//! removed while blobs are put. A slash becomes a comma, which no key has. A key that is too long for a file name is cut and ends
//! in `+` (which no key has either) and the SHA-256 of the whole; the file's own record tells the rest.

use flames_blob::BlobKey;
use sha2::{Digest as _, Sha256};

/// How much of a key is spelled out. With `+` and 64 hex digits it is 245 bytes; Linux file systems take 255.
const SPELLED_OUT: usize = 180;

/// What a file name tells of its key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// All of it.
    Key(BlobKey),
    /// Its beginning.
    BeginsWith(String),
}

/// The name of the file that holds the blob of this key.
pub(super) fn of(key: &BlobKey) -> String {
    let name = key.as_str().replace('/', ",");
    if name.len() <= SPELLED_OUT {
        return name;
    }
    let digest: String = Sha256::digest(key.as_str()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}+{digest}", &name[..SPELLED_OUT])
}

/// What this file name tells; none when no key has it.
pub(super) fn read(name: &str) -> Option<Named> {
    match name.split_once('+') {
        None => BlobKey::new(name.replace(',', "/")).ok().map(Named::Key),
        Some((beginning, digest)) => (beginning.len() == SPELLED_OUT && digest.len() == 64)
            .then(|| Named::BeginsWith(beginning.replace(',', "/"))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_has_a_file_name_of_its_own_and_comes_back_from_it() {
        let long = "k".repeat(SPELLED_OUT);
        let keys =
            ["a", "a/b", "a-b", "a:b", "a=b", "a.b", "A", ".a", "a/.b", "...", "sha256:00ff", "a/b/c", &long];
        let names: BTreeSet<_> = keys
            .iter()
            .map(|key| {
                let key = BlobKey::new(*key).unwrap();
                let name = of(&key);
                assert_eq!(read(&name), Some(Named::Key(key)));
                name
            })
            .collect();
        assert_eq!(names.len(), keys.len());
        assert!(names.iter().all(|name| !name.contains('/') && name != "." && name != ".."));
    }

    #[test]
    fn long_keys_that_begin_alike_have_names_of_their_own_that_fit() {
        let beginning = format!("a/{}", "k".repeat(SPELLED_OUT - 2));
        let one = of(&BlobKey::new(format!("{beginning}1")).unwrap());
        let other = of(&BlobKey::new(format!("{beginning}{}", "2".repeat(512 - SPELLED_OUT))).unwrap());
        assert_ne!(one, other);
        for name in [one, other] {
            assert!(name.len() <= 255 && !name.contains('/'));
            assert_eq!(read(&name), Some(Named::BeginsWith(beginning.clone())));
        }
    }

    #[test]
    fn a_file_that_is_no_blob_has_no_key() {
        for name in ["lost found", "a,", ",a", "..", "a+b", "ä"] {
            assert_eq!(read(name), None, "{name}");
        }
    }
}
