//! What servers answer.

use std::ops::Range;
use std::str::FromStr;

use flames_blob::{BlobInfo, BlobKey, DEFAULT_CONTENT_TYPE};
use flames_error::{Error, ErrorKind, Result};
use futures::StreamExt;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use serde::Deserialize;

use crate::{Body, DIGEST, FROM, METADATA, PROBLEM, SIZE, STORED_AT, TO};

/// The longest problem that is read.
const LONGEST_PROBLEM: usize = 64 * 1024;

fn unreadable(operation: &'static str, what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, operation, "a server's answer cannot be understood")
        .with_context("header", what)
}

fn header<T: FromStr>(operation: &'static str, headers: &HeaderMap, name: &'static str) -> Result<T> {
    let text = headers.get(name).and_then(|value| value.to_str().ok());
    text.and_then(|text| text.parse().ok()).ok_or_else(|| unreadable(operation, name))
}

pub(crate) fn info(operation: &'static str, key: &BlobKey, headers: &HeaderMap) -> Result<BlobInfo> {
    let metadata = headers.get(METADATA).and_then(|value| value.to_str().ok()).unwrap_or("{}");
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    Ok(BlobInfo {
        key: key.clone(),
        size: header(operation, headers, SIZE)?,
        digest: header(operation, headers, DIGEST)?,
        content_type: content_type.unwrap_or(DEFAULT_CONTENT_TYPE).to_owned(),
        metadata: serde_json::from_str(metadata).map_err(|_| unreadable(operation, METADATA))?,
        stored_at: header(operation, headers, STORED_AT)?,
    })
}

/// Which bytes of a blob an answer holds.
pub(crate) fn range(operation: &'static str, info: &BlobInfo, headers: &HeaderMap) -> Result<Range<u64>> {
    let range = header(operation, headers, FROM)?..header(operation, headers, TO)?;
    let is_within = range.start <= range.end && range.end <= info.size;
    if is_within { Ok(range) } else { Err(unreadable(operation, TO)) }
}

/// The part of problem details that is of use here.
#[derive(Deserialize)]
struct Problem {
    kind: String,
    code: String,
    detail: String,
    #[serde(default)]
    field: Option<String>,
}

/// The error that a server told of.
pub(crate) async fn problem(operation: &'static str, response: Response<Body>) -> Error {
    let status = response.status();
    let named = response.headers().get(PROBLEM).and_then(|value| value.to_str().ok());
    let named = named.and_then(ErrorKind::from_name);
    // An answer to HEAD has no body: then a header says of which kind the refusal is.
    let (mut body, mut text) = (response.into_body().into_data_stream(), Vec::new());
    while let Some(Ok(piece)) = body.next().await {
        if text.len() + piece.len() > LONGEST_PROBLEM {
            break;
        }
        text.extend_from_slice(&piece);
    }
    let told = serde_json::from_slice::<Problem>(&text).ok();
    let by_status = named.unwrap_or(match status {
        StatusCode::NOT_FOUND => ErrorKind::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::PermissionDenied,
        StatusCode::CONFLICT => ErrorKind::Conflict,
        status if status.is_client_error() => ErrorKind::InvalidInput,
        _ => ErrorKind::Unavailable,
    });
    match told {
        Some(Problem { kind, code, detail, field }) => {
            let error = Error::new(
                ErrorKind::from_name(&kind).unwrap_or(by_status),
                operation,
                format!("{code}: {detail}"),
            );
            match field {
                Some(field) => error.with_field(field),
                None => error,
            }
        }
        None => Error::new(by_status, operation, "an answer without problem details"),
    }
    .with_context("status", status)
}
