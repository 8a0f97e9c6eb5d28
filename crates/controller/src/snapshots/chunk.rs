//! Pieces of files on their way to and from the BlobStore. Pure.

use std::io::Read;

use flames_error::{Error, ErrorKind, Result};

const OPERATION: &str = "controller.chunk";
/// zstd's fastest ordinary level: saving must keep up with the disk.
const LEVEL: i32 = 1;

/// The digest of a piece; none when it is all zeros, which is kept as a hole.
pub fn digest(bytes: &[u8]) -> Option<String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    Some(blake3_hex(bytes))
}

fn blake3_hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The piece as it is stored.
pub fn pack(bytes: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(bytes, LEVEL)
        .map_err(|error| Error::internal(OPERATION, "a piece cannot be compressed").with_source(error))
}

/// The piece of `length` bytes with this digest, from what is stored. Never takes more memory than `length`, whatever is stored.
///
/// Errors: `Corrupt` when it is another one, or none.
pub fn unpack(stored: &[u8], digest: &str, length: usize) -> Result<Vec<u8>> {
    let corrupt = |why: &'static str| {
        Error::new(ErrorKind::Corrupt, OPERATION, why)
            .with_context("digest", digest)
            .with_user_message("A piece of the snapshot is damaged in the store. Take the snapshot again.")
    };
    let decoder = zstd::stream::read::Decoder::new(stored)
        .map_err(|error| corrupt("a piece cannot be read").with_source(error))?;
    let mut bytes = Vec::with_capacity(length);
    decoder
        .take(length as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| corrupt("a piece is cut short or damaged").with_source(error))?;
    if bytes.len() != length || blake3_hex(&bytes) != digest {
        return Err(corrupt("a piece has another content than its digest says"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_comes_back_as_it_was_and_a_damaged_one_does_not() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8).collect();
        let name = digest(&bytes).unwrap();
        let stored = pack(&bytes).unwrap();
        assert!(stored.len() < bytes.len());
        assert_eq!(unpack(&stored, &name, bytes.len()).unwrap(), bytes);
        assert_eq!(digest(&[0; 4096]), None);
        let other = digest(b"other").unwrap();
        let bomb = pack(&vec![7; 10_000_000]).unwrap();
        for (stored, name, length) in [
            (&stored[..stored.len() / 2], name.as_str(), bytes.len()),
            (&stored[..], name.as_str(), bytes.len() - 1),
            (&stored[..], other.as_str(), bytes.len()),
            (&b"nonsense"[..], name.as_str(), bytes.len()),
            (&b""[..], name.as_str(), bytes.len()),
            (&bomb[..], name.as_str(), bytes.len()),
        ] {
            assert_eq!(unpack(stored, name, length).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }
}
