//! The trailer of a blob's file.
//!
//! A file is: the blob's bytes; a JSON object ([`crate::record`]); its length as four bytes, big-endian; [`MAGIC`].

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flames_blob::BlobInfo;
use flames_error::Result;

use super::errors::{corrupt, failed};
use crate::record::{self, MAX_JSON};

/// The last bytes of each file, with the version of this layout.
const MAGIC: &[u8; 8] = b"FLMBLOB1";
/// What follows the JSON.
const FOOTER: usize = 4 + MAGIC.len();

/// Writes the trailer behind the bytes.
pub(super) fn append(
    operation: &'static str,
    file: &mut impl Write,
    path: &Path,
    info: &BlobInfo,
) -> Result<()> {
    let mut trailer = record::write(operation, info, None, None)?;
    let length = u32::try_from(trailer.len()).unwrap_or(u32::MAX);
    trailer.extend_from_slice(&length.to_be_bytes());
    trailer.extend_from_slice(MAGIC);
    file.write_all(&trailer)
        .map_err(|error| failed(operation, "the blob's record cannot be written", path, error))
}

/// Reads the trailer. `Corrupt` when it is damaged, does not fit the file, or is newer than this program.
pub(super) fn read(operation: &'static str, file: &File, path: &Path) -> Result<BlobInfo> {
    let broken = |what| corrupt(operation, what, path);
    let unreadable = |error| match error {
        error if io::Error::kind(&error) == io::ErrorKind::UnexpectedEof => broken("the blob's file was cut"),
        error => failed(operation, "the blob's record cannot be read", path, error),
    };
    let length = file.metadata().map_err(unreadable)?.len();
    let mut footer = [0; FOOTER];
    let footer_at =
        length.checked_sub(FOOTER as u64).ok_or_else(|| broken("the blob's file has no record"))?;
    file.read_exact_at(&mut footer, footer_at).map_err(unreadable)?;
    let (json_length, magic) = footer.split_at(FOOTER - MAGIC.len());
    let (Ok(json_length), true) = (json_length.try_into(), magic == MAGIC) else {
        return Err(broken("the blob's file does not end in a record of a version that this program reads"));
    };
    let json_length = u32::from_be_bytes(json_length) as usize;
    let size = footer_at.checked_sub(json_length as u64).filter(|_| json_length <= MAX_JSON);
    let size = size.ok_or_else(|| broken("the blob's record has an impossible length"))?;
    let mut json = vec![0; json_length];
    file.read_exact_at(&mut json, size).map_err(unreadable)?;
    let info =
        record::read(operation, &json).map_err(|error| error.with_context("path", path.display()))?.info;
    if info.size != size {
        return Err(broken("the blob's file does not have the length that its record tells")
            .with_context("told", info.size)
            .with_context("found", size));
    }
    Ok(info)
}
