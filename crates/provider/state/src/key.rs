//! Keys and ranges of keys.

use std::borrow::Borrow;
use std::fmt::{Debug, Display};
use std::sync::Arc;

use flames_error::{Error, Result};

use crate::MAX_KEY_BYTES;

/// A key, or a log's name: 1 to [`MAX_KEY_BYTES`] bytes of any value, ordered as bytes. A clone copies none of them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// Checks and copies a key. `InvalidInput` when it is empty or too long.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self> {
        let bytes = bytes.as_ref();
        if (1..=MAX_KEY_BYTES).contains(&bytes.len()) {
            Ok(Self(bytes.into()))
        } else {
            Err(Error::invalid("state.key", "key", "A state key is 1 to 512 bytes.")
                .with_context("length", bytes.len()))
        }
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether the key begins with `prefix`.
    pub fn starts_with(&self, prefix: &Key) -> bool {
        self.0.starts_with(&prefix.0)
    }
}

/// A key is equal, ordered and hashed as its bytes are.
impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Display for Key {
    /// For people: what is not printable ASCII is escaped.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({self})")
    }
}

/// The keys from `start` (inclusive) to `end` (exclusive; none: no end).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    start: Arc<[u8]>,
    end: Option<Arc<[u8]>>,
}

impl KeyRange {
    /// The keys from `start` up to, not including, `end`. Empty when `end` is not behind `start`.
    pub fn between(start: &Key, end: &Key) -> Self {
        Self { start: start.0.clone(), end: Some(end.0.clone()) }
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: &Key) -> Self {
        let mut end = prefix.0.to_vec();
        // The smallest key behind all that begin with the prefix: drop trailing 0xff bytes, then add one to the last.
        while end.last() == Some(&0xff) {
            end.pop();
        }
        let end = end.split_last().map(|(last, rest)| [rest, &[last + 1]].concat().into());
        Self { start: prefix.0.clone(), end }
    }

    /// Every key.
    pub fn all() -> Self {
        Self { start: Arc::default(), end: None }
    }

    /// The first key's bound, inclusive (may be empty).
    pub fn start(&self) -> &[u8] {
        &self.start
    }

    /// The last key's bound, exclusive; none: no bound.
    pub fn end(&self) -> Option<&[u8]> {
        self.end.as_deref()
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &Key) -> bool {
        key.0 >= self.start && self.end.as_ref().is_none_or(|end| key.0 < *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bytes: &[u8]) -> Key {
        Key::new(bytes).unwrap()
    }

    #[test]
    fn a_prefix_range_holds_just_the_keys_that_begin_so() {
        for prefix in [&b"a"[..], b"a\xff", b"a\xff\xff", b"\xff", b"\xff\xff"] {
            let range = KeyRange::prefix(&key(prefix));
            assert!(range.contains(&key(prefix)));
            assert!(range.contains(&key(&[prefix, &[0xff, 0xff]].concat())));
            let mut shorter = prefix.to_vec();
            *shorter.last_mut().unwrap() -= 1;
            assert!(!range.contains(&key(&shorter)));
        }
        assert!(!KeyRange::prefix(&key(b"a\xff")).contains(&key(b"b")));
    }

    #[test]
    fn a_key_is_1_to_512_bytes() {
        assert!(Key::new(vec![]).is_err());
        assert!(Key::new(vec![0; 512]).is_ok());
        assert!(Key::new(vec![0; 513]).is_err());
    }
}
