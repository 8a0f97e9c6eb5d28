//! How messages become bytes.

use std::cell::RefCell;

use bytes::Bytes;
use serde::Serialize;

/// A scratch buffer beyond this is given back rather than kept by its thread. A full page of assignments or reports is smaller.
const SCRATCH_KEPT: usize = 512 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A message as JSON, in a buffer of its exact length.
///
/// A page of assignments or reports is a hundred kilobytes and more. A buffer that grows to that by doubling is moved again and again, to
/// memory that the kernel first has to clear; here it grows once for each thread.
///
/// # Errors
/// When the value cannot be JSON: a map's key that is no text, or what a `Serialize` of one's own refuses.
pub fn to_json<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Bytes> {
    // Taken, not borrowed: a `Serialize` that comes here again finds an empty one.
    let mut scratch = SCRATCH.take();
    scratch.clear();
    let written = serde_json::to_writer(&mut scratch, value);
    let bytes = Bytes::copy_from_slice(&scratch);
    if scratch.capacity() <= SCRATCH_KEPT {
        SCRATCH.set(scratch);
    }
    written.map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nested;

    impl Serialize for Nested {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let inner = to_json(&["inner"]).map_err(serde::ser::Error::custom)?;
            serializer.serialize_str(&String::from_utf8_lossy(&inner))
        }
    }

    #[test]
    fn each_message_is_whole_whatever_was_written_before_it() {
        let long = vec!["a".repeat(1_000); 1_000];
        for _ in 0..2 {
            assert_eq!(to_json(&long).unwrap(), serde_json::to_vec(&long).unwrap());
            assert_eq!(to_json(&["short"]).unwrap(), r#"["short"]"#);
            let broken = std::collections::BTreeMap::from([((1, 2), 3)]);
            assert!(to_json(&broken).is_err());
            assert_eq!(to_json("next").unwrap(), r#""next""#);
        }
    }

    #[test]
    fn a_message_may_be_made_of_another() {
        assert_eq!(to_json(&("outer", Nested)).unwrap(), r#"["outer","[\"inner\"]"]"#);
    }
}
