//! What is kept beside a blob's bytes, as JSON that an operator can read.

use std::collections::BTreeMap;

use flames_blob::{BlobInfo, BlobKey, Digest};
use flames_error::{Error, ErrorKind, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The longest JSON: the limits of keys, content types and metadata, each byte escaped, stay well below.
pub(crate) const MAX_JSON: usize = 16 * 1024;
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
    /// Where the bytes are, when they are not beside the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    /// Where the bytes are that this blob replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaced: Option<String>,
}

/// The version alone, so that a newer record is told from a broken one.
#[derive(Debug, Deserialize)]
struct Version {
    schema: u32,
}

/// A record as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Described {
    pub(crate) info: BlobInfo,
    #[cfg_attr(not(feature = "cloud"), expect(dead_code))]
    pub(crate) data: Option<String>,
    #[cfg_attr(not(feature = "cloud"), expect(dead_code))]
    pub(crate) replaced: Option<String>,
}

/// The JSON of a blob's description.
pub(crate) fn write(
    operation: &'static str,
    info: &BlobInfo,
    data: Option<&str>,
    replaced: Option<&str>,
) -> Result<Vec<u8>> {
    let record = Record {
        schema: SCHEMA,
        key: info.key.as_str().to_owned(),
        size: info.size,
        digest: info.digest.to_string(),
        content_type: info.content_type.clone(),
        metadata: info.metadata.clone(),
        stored_at: info.stored_at,
        data: data.map(str::to_owned),
        replaced: replaced.map(str::to_owned),
    };
    let json = serde_json::to_vec(&record).map_err(|error| {
        Error::internal(operation, "the blob's record has no JSON form").with_source(error)
    })?;
    if json.len() > MAX_JSON {
        return Err(
            Error::internal(operation, "the blob's record is too long").with_context("length", json.len())
        );
    }
    Ok(json)
}

/// Reads a description. `Corrupt` when it is damaged or newer than this program.
pub(crate) fn read(operation: &'static str, json: &[u8]) -> Result<Described> {
    let broken = |what| Error::new(ErrorKind::Corrupt, operation, what);
    let version: Version = serde_json::from_slice(json)
        .map_err(|error| broken("the blob's record is no JSON").with_source(error))?;
    if version.schema != SCHEMA {
        return Err(broken("the blob's record has a version that this program does not read")
            .with_context("schema", version.schema));
    }
    let record: Record = serde_json::from_slice(json)
        .map_err(|error| broken("the blob's record is damaged").with_source(error))?;
    let damaged = |error: Error| broken("the blob's record is damaged").with_source(error);
    let info = BlobInfo {
        key: BlobKey::new(record.key).map_err(damaged)?,
        size: record.size,
        digest: record.digest.parse::<Digest>().map_err(damaged)?,
        content_type: record.content_type,
        metadata: record.metadata,
        stored_at: record.stored_at,
    };
    Ok(Described { info, data: record.data, replaced: record.replaced })
}
