//! Images.

use std::sync::Arc;
use std::time::Duration;

use axum::Json as JsonAnswer;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flames_clock::{Clock, ClockExt};
use flames_error::{Error, ErrorKind, Result};
use flames_model::{Image as StoredImage, ImageName};
use flames_service::{NewImage, codes};
use flames_wire::codes::IMAGE_DIGEST_MISMATCH;
use flames_wire::{DeviceNodes, Image, ImageImport, ImageList, ImportUpdate, PageQuery, Problem};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, mpsc};

use super::NDJSON;
use crate::access::By;
use crate::api::{Api, stopping};
use crate::failure::{Answer, Failure, invalid};
use crate::input::{Change, NoBody, PathOf, QueryOf, accepts, limit, transfer};

/// How many sentences of progress wait for a slow reader.
const PROGRESS_DEPTH: usize = 64;
/// How long the rest of a body is taken in that nobody wants any more, so that its sender reads the answer.
const LINGER: Duration = Duration::from_secs(30);

fn image_name(name: &str, field: &str) -> Answer<ImageName> {
    let name = ImageName::new(name);
    name.map_err(|error| Failure(error.with_field(field).with_code(codes::INVALID_FIELD)))
}

/// Passes a body on and, at its end, refuses it when its digest is not the one declared.
fn verified(
    archive: BoxStream<'static, Result<Bytes>>,
    declared: Option<String>,
) -> BoxStream<'static, Result<Bytes>> {
    let Some(declared) = declared else { return archive };
    let state = Some((archive, Sha256::new(), declared));
    futures::stream::unfold(state, |state| async move {
        let (mut archive, mut hasher, declared) = state?;
        match archive.next().await {
            Some(Ok(chunk)) => {
                hasher.update(&chunk);
                Some((Ok(chunk), Some((archive, hasher, declared))))
            }
            Some(Err(error)) => Some((Err(error), None)),
            None => {
                let digest: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                let differs = declared.strip_prefix("sha256:") != Some(&*digest);
                differs.then(|| {
                    let sentence = format!("The body's digest is sha256:{digest}, not the one declared.");
                    let error = Error::invalid("http.import", "digest", sentence);
                    (Err(error.with_code(IMAGE_DIGEST_MISMATCH)), None)
                })
            }
        }
    })
    .boxed()
}

/// A body that can be read to its end after whoever it was handed to has given up.
///
/// A server that answers before a body has come closes the connection under the client, which is still sending: then the client sees a
/// connection that broke, and never reads why.
#[derive(Clone)]
struct Lingering(Arc<Mutex<BoxStream<'static, Result<Bytes>>>>);

impl Lingering {
    fn new(body: BoxStream<'static, Result<Bytes>>) -> Self {
        Self(Arc::new(Mutex::new(body)))
    }

    /// The body, for whoever uses it.
    fn stream(&self) -> BoxStream<'static, Result<Bytes>> {
        let body = Arc::clone(&self.0);
        futures::stream::unfold(body, |body| async move {
            let next = body.lock().await.next().await?;
            Some((next, body))
        })
        .boxed()
    }

    /// Takes in what is still to come, and drops it: until its end, or as long as an answer is worth waiting for.
    async fn drain(&self, clock: &dyn Clock) {
        let draining = async {
            let mut body = self.0.lock().await;
            // An error is the body's end.
            while let Some(Ok(_)) = body.next().await {}
        };
        let _ = clock.timeout(LINGER, draining).await;
    }
}

/// Import an image
///
/// The body is the archive (or the kernel's file), streamed. What has the name already is replaced; VMs that use it keep it. With
/// `Accept: application/x-ndjson` the answer begins at once: lines of progress, the last of which has the image or the problem.
///
/// Under an `Idempotency-Key` the query must be the same again; the body is not compared.
#[utoipa::path(post, path = "/v1/images", tag = "images", params(ImageImport),
    request_body(content = String, content_type = "application/octet-stream", description = "The archive: tar (also compressed by gzip or zstd), OCI layout or archive; for a kernel its file."),
    responses(
    (status = 200, description = "Progress, then the image or the problem, as one JSON object in each line.", body = ImportUpdate, content_type = "application/x-ndjson"),
    (status = 201, description = "The image is there.", body = Image),
))]
pub(crate) async fn import_image(
    State(api): State<Api>,
    By(caller): By,
    change: Change,
    QueryOf(import): QueryOf<ImageImport>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    let name = image_name(&import.name, "name")?;
    if import.digest.as_ref().is_some_and(|digest| !is_digest(digest)) {
        return Err(invalid("digest", "A digest is `sha256:` and 64 lower-case hex digits."));
    }
    let place = api.stream_permit()?;
    let archive = transfer(&api, &headers, body, Some(api.config.max_image_bytes))?;
    let body = Lingering::new(archive);
    let archive = verified(body.stream(), import.digest);
    // The query has all that must be the same under one key.
    let mutation = change.with(&[]);
    let (progress, updates) = mpsc::channel(PROGRESS_DEPTH);
    let (service, stop) = (api.service.clone(), api.stop.clone());
    let device_nodes = match import.device_nodes {
        DeviceNodes::Refuse => flames_service::DeviceNodes::Refuse,
        DeviceNodes::Skip => flames_service::DeviceNodes::Skip,
        DeviceNodes::Keep => flames_service::DeviceNodes::Keep,
    };
    let new = NewImage { kind: import.kind.into(), device_nodes };
    let importing: BoxFuture<'static, Result<StoredImage>> = Box::pin(async move {
        let _place = place;
        let importing = async {
            let image = service.import_image(&caller, &name, new, archive, progress, &mutation).await;
            if image.is_err() {
                body.drain(service.clock().as_ref()).await;
            }
            image
        };
        tokio::select! {
            biased;
            image = importing => image,
            () = stop.cancelled() => Err(stopping()),
        }
    });
    if accepts(&headers, NDJSON) {
        let lines = progress_lines(importing, updates).take_until(api.stop.clone().cancelled_owned());
        return Ok(([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response());
    }
    let image = silently(importing, updates).await?;
    Ok((StatusCode::CREATED, JsonAnswer(Image::from(&image))).into_response())
}

fn is_digest(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Imports without telling of the progress.
async fn silently(
    importing: BoxFuture<'static, Result<StoredImage>>,
    mut updates: mpsc::Receiver<String>,
) -> Result<StoredImage> {
    let ignoring = async {
        while updates.recv().await.is_some() {}
        std::future::pending().await
    };
    tokio::select! {
        biased;
        image = importing => image,
        never = ignoring => never,
    }
}

struct Importing {
    work: Option<BoxFuture<'static, Result<StoredImage>>>,
    updates: mpsc::Receiver<String>,
    outcome: Option<Result<StoredImage>>,
}

fn line(update: &ImportUpdate) -> Result<Bytes> {
    let mut line = serde_json::to_vec(update)
        .map_err(|error| Error::internal("http.import", "progress cannot be encoded").with_source(error))?;
    line.push(b'\n');
    Ok(line.into())
}

fn progress_lines(
    work: BoxFuture<'static, Result<StoredImage>>,
    updates: mpsc::Receiver<String>,
) -> BoxStream<'static, Result<Bytes>> {
    let state = Importing { work: Some(work), updates, outcome: None };
    futures::stream::unfold(state, |mut state| async move {
        while let Some(work) = &mut state.work {
            tokio::select! {
                biased;
                Some(progress) = state.updates.recv() => {
                    let update = ImportUpdate { progress: Some(progress), ..ImportUpdate::default() };
                    return Some((line(&update), state));
                }
                outcome = work => {
                    state.outcome = Some(outcome);
                    state.work = None;
                }
            }
        }
        // What was said before the end comes before the end.
        if let Ok(progress) = state.updates.try_recv() {
            let update = ImportUpdate { progress: Some(progress), ..ImportUpdate::default() };
            return Some((line(&update), state));
        }
        let update = match state.outcome.take()? {
            Ok(image) => ImportUpdate { image: Some(Image::from(&image)), ..ImportUpdate::default() },
            Err(error) => {
                if matches!(error.kind(), ErrorKind::Internal | ErrorKind::Corrupt) {
                    tracing::warn!(?error, "an import failed");
                }
                ImportUpdate { problem: Some(Problem::of(&error)), ..ImportUpdate::default() }
            }
        };
        Some((line(&update), state))
    })
    .boxed()
}

/// List images
#[utoipa::path(get, path = "/v1/images", tag = "images", params(PageQuery), responses(
    (status = 200, description = "A page of images, by name.", body = ImageList),
))]
pub(crate) async fn list_images(
    State(api): State<Api>,
    By(caller): By,
    QueryOf(query): QueryOf<PageQuery>,
) -> Answer<JsonAnswer<ImageList>> {
    let after = query.cursor.map(|name| image_name(&name, "cursor")).transpose()?;
    let page = api.service.list_images(&caller, after.as_ref(), limit(query.limit, 50, 200)?).await?;
    Ok(JsonAnswer(ImageList {
        items: page.items.iter().map(Image::from).collect(),
        next_cursor: page.next.map(|name| name.to_string()),
    }))
}

/// Read an image
#[utoipa::path(get, path = "/v1/images/{name}", tag = "images", responses(
    (status = 200, description = "The image.", body = Image),
))]
pub(crate) async fn get_image(
    State(api): State<Api>,
    By(caller): By,
    PathOf(name): PathOf<String>,
) -> Answer<JsonAnswer<Image>> {
    let image = api.service.get_image(&caller, &image_name(&name, "name")?).await?;
    Ok(JsonAnswer(Image::from(&image)))
}

/// Remove an image
///
/// Refused while a VM uses it.
#[utoipa::path(delete, path = "/v1/images/{name}", tag = "images", responses(
    (status = 204, description = "The image is gone."),
))]
pub(crate) async fn remove_image(
    State(api): State<Api>,
    By(caller): By,
    PathOf(name): PathOf<String>,
    change: Change,
    NoBody: NoBody,
) -> Answer<StatusCode> {
    api.service.remove_image(&caller, &image_name(&name, "name")?, &change.with(&[])).await?;
    Ok(StatusCode::NO_CONTENT)
}
