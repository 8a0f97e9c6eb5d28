//! The trailer of a blob's file.
//!
//! A file is: the blob's bytes; a JSON object; its length as four bytes, big-endian; [`MAGIC`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flames_blob::{BlobInfo, BlobKey, Digest};
use flames_error::{Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::errors::{corrupt, failed};

/// The last bytes of each file, with the version of this layout.
const MAGIC: &[u8; 8] = b"FLMBLOB1";
/// What follows the JSON.
const FOOTER: usize = 4 + MAGIC.len();
/// The longest JSON: the limits of keys, content types and metadata, each byte escaped, stay well below.
const MAX_JSON: usize = 16 * 1024;
/// The version of [`Record`]. One that is newer is not read.
const SCHEMA: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    schema: u32,
    key: String,
    size: u64,
    digest: String,
    content_type: String,
    metadata: BTreeMap<String, String>,
    stored_at: Timestamp,
}

/// The version alone, so that a newer record is told from a broken one.
#[derive(Debug, Deserialize)]
struct Version {
    schema: u32,
}

/// Writes the trailer behind the bytes.
pub(super) fn append(
    operation: &'static str,
    file: &mut impl Write,
    path: &Path,
    info: &BlobInfo,
) -> Result<()> {
    let record = Record {
        schema: SCHEMA,
        key: info.key.as_str().to_owned(),
        size: info.size,
        digest: info.digest.to_string(),
        content_type: info.content_type.clone(),
        metadata: info.metadata.clone(),
        stored_at: info.stored_at,
    };
    let mut trailer = serde_json::to_vec(&record).map_err(|error| {
        Error::internal(operation, "the blob's record has no JSON form").with_source(error)
    })?;
    let length = u32::try_from(trailer.len()).unwrap_or(u32::MAX);
    if trailer.len() > MAX_JSON {
        return Err(
            Error::internal(operation, "the blob's record is too long").with_context("length", length)
        );
    }
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
    let version: Version = serde_json::from_slice(&json)
        .map_err(|error| broken("the blob's record is no JSON").with_source(error))?;
    if version.schema != SCHEMA {
        return Err(broken("the blob's record has a version that this program does not read")
            .with_context("schema", version.schema));
    }
    let record: Record = serde_json::from_slice(&json)
        .map_err(|error| broken("the blob's record is damaged").with_source(error))?;
    if record.size != size {
        return Err(broken("the blob's file does not have the length that its record tells")
            .with_context("told", record.size)
            .with_context("found", size));
    }
    let damaged = |error: Error| broken("the blob's record is damaged").with_source(error);
    Ok(BlobInfo {
        key: BlobKey::new(record.key).map_err(damaged)?,
        size,
        digest: record.digest.parse::<Digest>().map_err(damaged)?,
        content_type: record.content_type,
        metadata: record.metadata,
        stored_at: record.stored_at,
    })
}
