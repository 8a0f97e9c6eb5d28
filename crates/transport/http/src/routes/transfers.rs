//! Files of a guest: their content, streamed.

use axum::Json as JsonAnswer;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use flames_error::{Error, Result};
use flames_wire::stream::{FileAnswer, FileRequest, StreamFrame};
use flames_wire::{FileInfo, FilePath, FileWrite};
use futures::StreamExt;
use http::{HeaderMap, header};

use super::files::{absolute, permissions, unexpected};
use super::guest::Guest;
use crate::access::By;
use crate::api::{Api, stopping};
use crate::failure::Answer;
use crate::input::{Change, QueryOf, VmPath, transfer};

/// The most content of one frame towards a guest.
const PIECE: usize = 64 * 1024;

/// Read a file of the guest
#[utoipa::path(get, path = "/v1/vms/{vm}/files", tag = "files", params(FilePath), responses(
    (status = 200, description = "Its content. A connection that ends before its end means that the rest could not be read.",
        body = String, content_type = "application/octet-stream"),
))]
pub(crate) async fn read_file(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    QueryOf(query): QueryOf<FilePath>,
) -> Answer<Response> {
    let path = absolute(query.path, "path")?;
    let place = api.stream_permit()?;
    let mut guest = Guest::files(&api, &caller, &vm, FileRequest::Read { path }).await?;
    let FileAnswer::Info(_) = guest.file_answer().await? else { return Err(unexpected().into()) };
    let content = futures::stream::unfold(Some((guest, place)), |state| async move {
        let (mut guest, place) = state?;
        match guest.next().await {
            Ok(StreamFrame::Data(data)) => Some((Ok(data), Some((guest, place)))),
            Ok(StreamFrame::End) => None,
            Ok(_) => Some((Err(unexpected()), None)),
            Err(error) => Some((Err(error), None)),
        }
    });
    let content = content.take_until(api.stop.clone().cancelled_owned());
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(content)).into_response())
}

/// Write a file of the guest
///
/// The body is its content, streamed. It stands under its name only when it is whole.
#[utoipa::path(put, path = "/v1/vms/{vm}/files", tag = "files", params(FileWrite),
    request_body(content = Option<String>, content_type = "application/octet-stream", description = "The content; none: an empty file."),
    responses((status = 200, description = "What the file now is.", body = FileInfo),
))]
pub(crate) async fn write_file(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    QueryOf(query): QueryOf<FileWrite>,
    change: Change,
    headers: HeaderMap,
    body: Body,
) -> Answer<JsonAnswer<FileInfo>> {
    change.refuse_key()?;
    let request = FileRequest::Write {
        path: absolute(query.path, "path")?,
        mode: permissions(query.mode)?,
        overwrite: !query.keep_existing,
    };
    let _place = api.stream_permit()?;
    let mut content = transfer(&api, &headers, body, None)?;
    let writing = async {
        let mut guest = Guest::files(&api, &caller, &vm, request).await?;
        let FileAnswer::Ready = guest.file_answer().await? else { return Err(unexpected()) };
        while let Some(chunk) = content.next().await {
            let mut chunk = chunk?;
            while !chunk.is_empty() {
                let piece = chunk.split_to(chunk.len().min(PIECE));
                guest.send(StreamFrame::Data(piece)).await?;
            }
        }
        guest.send(StreamFrame::End).await?;
        match guest.file_answer().await? {
            FileAnswer::Info(info) => Ok::<_, Error>(info),
            _ => Err(unexpected()),
        }
    };
    let written: Result<FileInfo> = tokio::select! {
        biased;
        written = writing => written,
        () = api.stop.cancelled() => Err(stopping()),
    };
    Ok(JsonAnswer(written?))
}
