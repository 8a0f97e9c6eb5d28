//! What a VM writes: its workload's output and its serial console.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flames_clock::ClockExt;
use flames_error::{Error, Result};
use flames_service::{LinkStream, codes};
use flames_wire::stream::StreamFrame;
use flames_wire::{ConsoleQuery, LogChunk, LogQuery, LogStream};
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{HeaderMap, header};
use tokio::sync::OwnedSemaphorePermit;

use super::NDJSON;
use super::guest::Guest;
use crate::access::By;
use crate::api::Api;
use crate::failure::{Answer, invalid};
use crate::input::{QueryOf, VmPath, accepts};

/// How long the answer waits for the first piece, so that an error at the start gets its own status.
const FIRST_WITHIN: Duration = Duration::from_millis(250);

/// The most lines that can be asked for: far more than a host keeps.
const MAX_TAIL: u64 = 1_000_000_000;

type Frames = BoxStream<'static, Result<StreamFrame>>;

fn piece(frame: StreamFrame) -> Option<Bytes> {
    match frame {
        StreamFrame::Stdout { data, .. } | StreamFrame::Stderr { data, .. } | StreamFrame::Data(data) => {
            Some(data)
        }
        _ => None,
    }
}

fn chunk(frame: StreamFrame) -> Option<Result<Bytes>> {
    let text = |data: &Bytes| String::from_utf8_lossy(data).into_owned();
    let chunk = match frame {
        StreamFrame::Stdout { offset, data } => {
            LogChunk { stream: LogStream::Stdout, offset: Some(offset), text: text(&data) }
        }
        StreamFrame::Stderr { offset, data } => {
            LogChunk { stream: LogStream::Stderr, offset: Some(offset), text: text(&data) }
        }
        StreamFrame::Data(data) => LogChunk { stream: LogStream::Console, offset: None, text: text(&data) },
        StreamFrame::Truncated { before } => {
            LogChunk { stream: LogStream::Truncated, offset: Some(before), text: String::new() }
        }
        _ => return None,
    };
    let line = serde_json::to_vec(&chunk).map(|mut line| {
        line.push(b'\n');
        Bytes::from(line)
    });
    Some(line.map_err(|error| Error::internal("http.output", "output cannot be encoded").with_source(error)))
}

async fn answer(
    api: &Api,
    headers: &HeaderMap,
    mut frames: Frames,
    place: OwnedSemaphorePermit,
) -> Answer<Response> {
    let first = match api.service.clock().timeout(FIRST_WITHIN, frames.next()).await {
        Ok(Some(first)) => Some(Ok(first?)),
        Ok(None) | Err(_) => None,
    };
    let frames = futures::stream::iter(first).chain(frames);
    let as_lines = accepts(headers, NDJSON);
    let content = frames.filter_map(move |frame| {
        let _place = &place;
        let item = match frame {
            Err(error) => Some(Err(error)),
            Ok(frame) if as_lines => chunk(frame),
            Ok(frame) => piece(frame).map(Ok),
        };
        futures::future::ready(item)
    });
    let media_type = if as_lines { NDJSON } else { "text/plain" };
    Ok(([(header::CONTENT_TYPE, media_type)], Body::from_stream(content)).into_response())
}

/// Read the workload's output
///
/// As it was written: the very bytes, standard output and standard error mixed in their order. With `Accept: application/x-ndjson`, one
/// JSON object in each line, which says which stream it is of. The output of a VM that has ended is kept with it.
#[utoipa::path(get, path = "/v1/vms/{vm}/logs", tag = "vms", params(LogQuery), responses(
    (status = 200, description = "The output.", content((String = "text/plain"), (LogChunk = "application/x-ndjson"))),
))]
pub(crate) async fn read_logs(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    QueryOf(query): QueryOf<LogQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    if query.tail.is_some_and(|tail| tail > MAX_TAIL) {
        return Err(invalid("tail", "0 to 1000000000 lines can be asked for."));
    }
    let place = api.stream_permit()?;
    let stream = LinkStream::Logs { follow: query.follow, since: query.since, tail: query.tail };
    let guest = Guest::open(&api, &caller, &vm, stream, codes::HOST_UNREACHABLE).await?;
    answer(&api, &headers, guest.frames(), place).await
}

/// Read the machine's serial console
///
/// What the kernel and the agent write. Written by the guest: do not trust it.
#[utoipa::path(get, path = "/v1/vms/{vm}/console", tag = "vms", params(ConsoleQuery), responses(
    (status = 200, description = "The console.", content((String = "text/plain"), (LogChunk = "application/x-ndjson"))),
))]
pub(crate) async fn read_console(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    QueryOf(query): QueryOf<ConsoleQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    let place = api.stream_permit()?;
    let stream = LinkStream::Console { follow: query.follow };
    let guest = Guest::open(&api, &caller, &vm, stream, codes::HOST_UNREACHABLE).await?;
    answer(&api, &headers, guest.frames(), place).await
}
