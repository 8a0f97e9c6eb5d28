//! Blobs for controllers, which reach no store themselves. See [`flames_wire::host`] for what is said.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use flames_clock::{Clock, ClockExt};
use flames_error::{Error, ErrorKind, Result};
use flames_model::SnapshotManifest;
use flames_service::blob::{BlobInfo, BlobKey, BlobStore, BlobStoreExt, ByteStream, PutOptions};
use flames_service::codes;
use flames_wire::host::{
    BLOB_DIGEST_HEADER, BLOB_FROM_HEADER, BLOB_METADATA_HEADER, BLOB_PROBLEM_HEADER, BLOB_SIZE_HEADER,
    BLOB_STORED_AT_HEADER, BLOB_TO_HEADER,
};
use futures::StreamExt;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::answer::Failure;
use crate::grants::{BlobAccess, BlobGate, Piece};
use crate::input::Parameters;

/// How long a read may take in all, however slow its reader is.
const READ_WITHIN: Duration = Duration::from_secs(3_600);
/// How long a body may stand still.
const SILENCE: Duration = Duration::from_secs(30);
/// Pieces that are held in memory and checked at the same time.
const CHECKED: usize = 16;
/// The longest packed piece: what cannot be compressed grows a little (zstd's `ZSTD_compressBound`).
const LONGEST_PIECE: u64 = SnapshotManifest::CHUNK_BYTES + SnapshotManifest::CHUNK_BYTES / 128 + 1024;

#[derive(Debug, Clone)]
struct Blobs {
    store: Arc<dyn BlobStore>,
    gate: Arc<dyn BlobGate>,
    clock: Arc<dyn Clock>,
    timeout: Duration,
    checked: Arc<Semaphore>,
}

/// The routes of blobs, over a store and behind a gate. A call that moves no bytes takes `timeout` at most.
pub fn blob_router(
    store: Arc<dyn BlobStore>,
    gate: Arc<dyn BlobGate>,
    clock: Arc<dyn Clock>,
    timeout: Duration,
) -> Router {
    let blobs = Blobs { store, gate, clock, timeout, checked: Arc::new(Semaphore::new(CHECKED)) };
    Router::new()
        .route("/host/v1/blobs/{*key}", get(read).head(describe).put(store_blob))
        .method_not_allowed_fallback(crate::answer::no_such_method)
        .with_state(blobs)
}

/// What is answered: a refusal says its kind in a header too, since an answer to HEAD has nothing else.
fn answered(outcome: Result<Response>) -> Response {
    outcome.unwrap_or_else(|error| {
        let error = match (error.kind(), error.code()) {
            (ErrorKind::NotFound, None) => error.with_code(codes::BLOB_NOT_FOUND),
            _ => error,
        };
        let kind = HeaderValue::from_static(error.kind().as_str());
        let mut response = Failure(error).into_response();
        response.headers_mut().insert(HeaderName::from_static(BLOB_PROBLEM_HEADER), kind);
        response
    })
}

impl Blobs {
    async fn in_time<T>(&self, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        self.clock.timeout(self.timeout, call).await.unwrap_or_else(|_| {
            Err(Error::unavailable("host.blob", "the call took too long").with_code(codes::REQUEST_TIMEOUT))
        })
    }

    async fn admit(&self, headers: &HeaderMap, key: String, access: BlobAccess) -> Result<BlobKey> {
        let key = BlobKey::new(key).map_err(|error| error.with_code(codes::INVALID_FIELD))?;
        self.in_time(self.gate.admit(headers, &key, access)).await?;
        Ok(key)
    }
}

fn described(info: &BlobInfo) -> Result<HeaderMap> {
    let value = |text: String| {
        HeaderValue::try_from(text).map_err(|error| {
            Error::internal("host.blob", "what is known of a blob is no header value").with_source(error)
        })
    };
    let metadata = serde_json::to_string(&info.metadata)
        .map_err(|error| Error::internal("host.blob", "metadata is no JSON").with_source(error))?;
    let mut headers = HeaderMap::new();
    for (name, text) in [
        (BLOB_SIZE_HEADER, info.size.to_string()),
        (BLOB_DIGEST_HEADER, info.digest.to_string()),
        (BLOB_STORED_AT_HEADER, info.stored_at.to_string()),
        (BLOB_METADATA_HEADER, metadata),
    ] {
        headers.insert(HeaderName::from_static(name), value(text)?);
    }
    headers.insert(CONTENT_TYPE, value(info.content_type.clone())?);
    Ok(headers)
}

async fn describe(State(blobs): State<Blobs>, Path(key): Path<String>, headers: HeaderMap) -> Response {
    answered(try_describe(&blobs, key, &headers).await)
}

async fn try_describe(blobs: &Blobs, key: String, headers: &HeaderMap) -> Result<Response> {
    let key = blobs.admit(headers, key, BlobAccess::Describe).await?;
    let info = blobs.in_time(blobs.store.head(&key)).await?;
    Ok((StatusCode::OK, described(&info)?).into_response())
}

/// Which bytes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    from: Option<u64>,
    to: Option<u64>,
}

async fn read(
    State(blobs): State<Blobs>,
    Path(key): Path<String>,
    Parameters(part): Parameters<Part>,
    headers: HeaderMap,
) -> Response {
    answered(try_read(&blobs, key, &part, &headers).await)
}

async fn try_read(blobs: &Blobs, key: String, part: &Part, headers: &HeaderMap) -> Result<Response> {
    let key = blobs.admit(headers, key, BlobAccess::Read).await?;
    let range = match (part.from, part.to) {
        (None, None) => None,
        (from, to) => Some(from.unwrap_or(0)..to.unwrap_or(u64::MAX)),
    };
    let found = blobs.in_time(blobs.store.get(&key, range)).await?;
    let mut headers = described(&found.info)?;
    for (name, number) in [(BLOB_FROM_HEADER, found.range.start), (BLOB_TO_HEADER, found.range.end)] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from(number));
    }
    let late = blobs.clock.clone();
    let late = async move {
        late.sleep(READ_WITHIN).await;
        Err(Error::unavailable("host.blob", "the reader took too long"))
    };
    let bytes = futures::stream::select(
        found.stream.map(Some).chain(futures::stream::once(async { None })),
        futures::stream::once(late).map(Some),
    );
    let bytes = bytes.take_while(|piece| std::future::ready(piece.is_some())).filter_map(std::future::ready);
    Ok((StatusCode::OK, headers, Body::from_stream(bytes)).into_response())
}

fn options(headers: &HeaderMap) -> Result<PutOptions> {
    let refuse = |name: &'static str| {
        Error::invalid("host.blob", name, "It cannot be read.").with_code(codes::INVALID_FIELD)
    };
    let text = |name: &'static str| {
        headers.get(name).map(|value| value.to_str().map_err(|_| refuse(name))).transpose()
    };
    Ok(PutOptions {
        content_type: headers
            .get(CONTENT_TYPE)
            .map(|value| value.to_str().map(str::to_owned).map_err(|_| refuse("content-type")))
            .transpose()?,
        expected_size: text(BLOB_SIZE_HEADER)?
            .map(|text| text.parse().map_err(|_| refuse(BLOB_SIZE_HEADER)))
            .transpose()?,
        expected_digest: text(BLOB_DIGEST_HEADER)?
            .map(|text| text.parse().map_err(|_| refuse(BLOB_DIGEST_HEADER)))
            .transpose()?,
        metadata: text(BLOB_METADATA_HEADER)?
            .map(|text| serde_json::from_str(text).map_err(|_| refuse(BLOB_METADATA_HEADER)))
            .transpose()?
            .unwrap_or_default(),
    })
}

/// What comes, never silent for long.
fn coming(body: Body, clock: Arc<dyn Clock>) -> ByteStream {
    let broken = |what: &'static str| {
        Error::new(ErrorKind::InvalidInput, "host.blob", what).with_code(codes::INVALID_REQUEST)
    };
    futures::stream::try_unfold(body.into_data_stream(), move |mut body| {
        let clock = Arc::clone(&clock);
        async move {
            match clock.timeout(SILENCE, body.next()).await {
                Err(_) => Err(broken("the body stopped coming")),
                Ok(None) => Ok(None),
                Ok(Some(Ok(piece))) => Ok(Some((piece, body))),
                Ok(Some(Err(_))) => Err(broken("the body broke off")),
            }
        }
    })
    .boxed()
}

async fn store_blob(
    State(blobs): State<Blobs>,
    Path(key): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    answered(try_store(&blobs, key, &headers, body).await)
}

async fn try_store(blobs: &Blobs, key: String, headers: &HeaderMap, body: Body) -> Result<Response> {
    let key = blobs.admit(headers, key, BlobAccess::Store).await?;
    let options = options(headers)?;
    let coming = coming(body, blobs.clock.clone());
    let info = match Piece::of(&key) {
        Some(Piece::Chunk(digest)) => store_chunk(blobs, &key, digest, coming, options).await?,
        Some(Piece::List(digest)) => {
            blobs.store.put(&key, listed(coming, digest.to_owned()), options).await?
        }
        None => blobs.store.put(&key, coming, options).await?,
    };
    Ok((StatusCode::CREATED, described(&info)?).into_response())
}

fn not_what_it_says(key: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, "host.blob", "the content is another than the blob's name says")
        .with_resource("blob", key)
        .with_code(codes::INVALID_REQUEST)
}

/// Stores a part of a file, unless it is there: what other snapshots share must be what its name says, whoever stores it.
async fn store_chunk(
    blobs: &Blobs,
    key: &BlobKey,
    digest: &str,
    mut coming: ByteStream,
    options: PutOptions,
) -> Result<BlobInfo> {
    let _place = Arc::clone(&blobs.checked).acquire_owned().await.map_err(|error| {
        Error::internal("host.blob", "there is no place to check a piece").with_source(error)
    })?;
    let mut packed = BytesMut::new();
    while let Some(piece) = coming.next().await {
        packed.extend_from_slice(&piece?);
        if packed.len() as u64 > LONGEST_PIECE {
            return Err(Error::new(ErrorKind::InvalidInput, "host.blob", "the piece is too long")
                .with_code(codes::BODY_TOO_LARGE));
        }
    }
    let packed = packed.freeze();
    let (checked, digest) = (packed.clone(), digest.to_owned());
    let is_right = tokio::task::spawn_blocking(move || unpacks_to(&checked, &digest)).await;
    if !is_right.unwrap_or(false) {
        return Err(not_what_it_says(key.as_str()));
    }
    match blobs.in_time(blobs.store.head(key)).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        there => return there,
    }
    blobs.store.put_bytes(key, packed, options).await
}

/// Whether packed bytes are those of a chunk with this digest. Takes no more memory than a chunk, whatever is packed.
fn unpacks_to(packed: &[u8], digest: &str) -> bool {
    use std::io::Read;
    let Ok(decoder) = zstd::stream::read::Decoder::new(packed) else { return false };
    let mut hasher = blake3::Hasher::new();
    let mut limited = decoder.take(SnapshotManifest::CHUNK_BYTES + 1);
    let mut buffer = vec![0; 64 * 1024];
    let mut length = 0;
    loop {
        match limited.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                length += read as u64;
                hasher.update(&buffer[..read]);
            }
            Err(_) => return false,
        }
    }
    length <= SnapshotManifest::CHUNK_BYTES && hasher.finalize().to_hex().as_str() == digest
}

/// A list of parts on its way in: it fails at its end when it is another than its name says, and then nothing is stored.
fn listed(coming: ByteStream, digest: String) -> ByteStream {
    let state = Some((coming, blake3::Hasher::new(), 0_u64, digest));
    futures::stream::unfold(state, |state| async move {
        let (mut coming, mut hasher, mut length, digest) = state?;
        match coming.next().await {
            Some(Ok(piece)) => {
                hasher.update(&piece);
                length = length.saturating_add(piece.len() as u64);
                if length > SnapshotManifest::MAX_BYTES {
                    let error = Error::new(ErrorKind::InvalidInput, "host.blob", "the list is too long");
                    return Some((Err(error.with_code(codes::BODY_TOO_LARGE)), None));
                }
                Some((Ok(piece), Some((coming, hasher, length, digest))))
            }
            Some(Err(error)) => Some((Err(error), None)),
            None if hasher.finalize().to_hex().as_str() == digest => None,
            None => Some((Err::<Bytes, _>(not_what_it_says(&digest)), None)),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_piece_is_what_its_name_says_or_not() {
        let digest = blake3::hash(b"content").to_hex().to_string();
        let packed = zstd::bulk::compress(b"content", 1).unwrap();
        assert!(unpacks_to(&packed, &digest));
        assert!(!unpacks_to(&packed, &"0".repeat(64)));
        assert!(!unpacks_to(&packed[..packed.len() / 2], &digest));
        assert!(!unpacks_to(b"nonsense", &digest));
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        assert!(!unpacks_to(&bomb, &blake3::hash(&vec![0; 64 << 20]).to_hex()));
    }
}
