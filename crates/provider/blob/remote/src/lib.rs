//! BlobStore on a host: what a controller reads and stores goes through its servers, which hold the real store. No host has its credentials.
//!
//! The servers let a controller read the blobs that its assignments name, and store pieces of a snapshot that it is to take; everything
//! else is `PermissionDenied`. Nothing is removed or listed through this: [`BlobStore::delete`] and [`BlobStore::list`] are `NotSupported`.
//!
//! Spoken is HTTP, over any tower service that adds who is calling: `GET`, `HEAD` and `PUT` of `/host/v1/blobs/<key>`. A blob is told of in
//! the headers `x-flames-blob-size`, `-digest`, `-stored-at`, `-metadata` (a JSON object), `-from` and `-to` (which bytes an answer holds) and
//! `Content-Type`; a part is asked for as `?from=&to=`. Errors are problem details (RFC 9457) with `kind`, `code` and `detail`; the kind
//! stands in `x-flames-blob-problem` too.
//!
//! What comes is held to its digest ([`flames_blob::ReadVerifier`]), and what is sent to what its put declares, at both ends.

mod answer;
mod body;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_blob::{
    BlobInfo, BlobKey, BlobPage, BlobRead, BlobStore, ByteStream, PutOptions, validate_page_limit,
};
use flames_clock::{Clock, ClockExt};
use flames_error::{Error, ErrorKind, Result};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceExt};

/// A body, either way.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

const DIGEST: &str = "x-flames-blob-digest";
const SIZE: &str = "x-flames-blob-size";
const STORED_AT: &str = "x-flames-blob-stored-at";
const METADATA: &str = "x-flames-blob-metadata";
const PROBLEM: &str = "x-flames-blob-problem";
const FROM: &str = "x-flames-blob-from";
const TO: &str = "x-flames-blob-to";

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Until an answer has begun.
    pub call: Duration,
    /// How long bytes may stand still on their way, in either direction.
    pub silence: Duration,
    /// Storing a blob in all.
    pub put: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(30),
            silence: Duration::from_secs(30),
            put: Duration::from_secs(600),
        }
    }
}

/// The blobs of a host. Clones share what is under them.
#[derive(Clone)]
pub struct RemoteBlobStore {
    http: BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>,
    clock: Arc<dyn Clock>,
    limits: Limits,
}

impl fmt::Debug for RemoteBlobStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteBlobStore").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl RemoteBlobStore {
    /// Over a service that sends requests to a server and says who sends them.
    pub fn over<S, B>(service: S, clock: Arc<dyn Clock>, limits: Limits) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let http = service
            .map_response(|response: Response<B>| {
                response.map(|body| body.map_err(Into::into).boxed_unsync())
            })
            .map_err(Into::into);
        Self { http: BoxCloneSyncService::new(http), clock, limits }
    }

    fn request(
        operation: &'static str,
        method: Method,
        key: &BlobKey,
        query: &str,
        body: Body,
    ) -> Result<Request<Body>> {
        // Every byte that a key may hold stands for itself in a path (RFC 3986, section 3.3).
        Request::builder()
            .method(method)
            .uri(format!("/host/v1/blobs/{key}{query}"))
            .body(body)
            .map_err(|error| Error::internal(operation, "a key cannot stand in a path").with_source(error))
    }

    /// Sends a request; answers what came when it is a success. `lost` is the kind when no answer came.
    async fn send(
        &self,
        operation: &'static str,
        key: &BlobKey,
        request: Request<Body>,
        limit: Duration,
        lost: ErrorKind,
    ) -> Result<Response<Body>> {
        let failed =
            |message: &'static str| Error::new(lost, operation, message).with_resource("blob", key.as_str());
        let sent = self.clock.timeout(limit, self.http.clone().oneshot(request)).await;
        let response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(failed("no answer came").with_source(error)),
            Err(late) => return Err(failed("no answer came in time").with_source(late)),
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let reading = self.clock.timeout(self.limits.silence, answer::problem(operation, response));
        let error =
            reading.await.unwrap_or_else(|late| failed("the answer stopped coming").with_source(late));
        Err(error.with_resource("blob", key.as_str()))
    }
}

#[async_trait]
impl BlobStore for RemoteBlobStore {
    fn name(&self) -> &'static str {
        "remote"
    }

    async fn put(&self, key: &BlobKey, stream: ByteStream, options: PutOptions) -> Result<BlobInfo> {
        const OPERATION: &str = "blob.put";
        options.validate()?;
        let refused = Arc::new(Mutex::new(None));
        let body = body::sent(stream, &options, Arc::clone(&refused));
        let mut request = Self::request(OPERATION, Method::PUT, key, "", body)?;
        describe(OPERATION, &options, request.headers_mut())?;
        let sent = self.send(OPERATION, key, request, self.limits.put, ErrorKind::OutcomeUnknown).await;
        // What ended the body explains everything that came of it. A body that did not end stores nothing.
        if let Some(error) = refused.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        answer::info(OPERATION, key, sent?.headers())
    }

    async fn get(&self, key: &BlobKey, range: Option<Range<u64>>) -> Result<BlobRead> {
        const OPERATION: &str = "blob.get";
        let query = range.map(|range| format!("?from={}&to={}", range.start, range.end)).unwrap_or_default();
        let request = Self::request(OPERATION, Method::GET, key, &query, body::empty())?;
        let response = self.send(OPERATION, key, request, self.limits.call, ErrorKind::Unavailable).await?;
        let info = answer::info(OPERATION, key, response.headers())?;
        let range = answer::range(OPERATION, &info, response.headers())?;
        let stream =
            body::received(response.into_body(), &info, &range, self.clock.clone(), self.limits.silence);
        Ok(BlobRead { info, range, stream })
    }

    async fn head(&self, key: &BlobKey) -> Result<BlobInfo> {
        const OPERATION: &str = "blob.head";
        let request = Self::request(OPERATION, Method::HEAD, key, "", body::empty())?;
        let response = self.send(OPERATION, key, request, self.limits.call, ErrorKind::Unavailable).await?;
        answer::info(OPERATION, key, response.headers())
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        Err(Error::new(ErrorKind::NotSupported, "blob.delete", "a host removes no blobs")
            .with_resource("blob", key.as_str()))
    }

    async fn list(&self, _prefix: &str, _after: Option<&BlobKey>, limit: usize) -> Result<BlobPage> {
        validate_page_limit(limit)?;
        Err(Error::new(ErrorKind::NotSupported, "blob.list", "a host lists no blobs"))
    }
}

/// What a put declares, as headers.
fn describe(operation: &'static str, options: &PutOptions, headers: &mut HeaderMap) -> Result<()> {
    let metadata = serde_json::to_string(&options.metadata)
        .map_err(|error| Error::internal(operation, "metadata is no JSON").with_source(error))?;
    let said = [
        (HeaderName::from_static(METADATA), Some(metadata)),
        (HeaderName::from_static(SIZE), options.expected_size.map(|size| size.to_string())),
        (HeaderName::from_static(DIGEST), options.expected_digest.map(|digest| digest.to_string())),
        (CONTENT_TYPE, options.content_type.clone()),
    ];
    for (name, text) in said {
        if let Some(text) = text {
            let value = HeaderValue::try_from(text).map_err(|error| {
                Error::internal(operation, "what a put declares is no header value").with_source(error)
            })?;
            headers.insert(name, value);
        }
    }
    Ok(())
}
