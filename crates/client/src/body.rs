//! Bodies of requests and responses.

use bytes::{Bytes, BytesMut};
use flames_error::{Error, ErrorKind, Result};
use futures::{Stream, StreamExt, TryStreamExt};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use serde::de::DeserializeOwned;
use tower::BoxError;

/// The body of a request.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
/// The body of a response.
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// The longest JSON answer that is read, in bytes: a page of 256 assignments of 256 KiB each, the largest that a server sends.
const MAX_JSON: usize = 72 * 1024 * 1024;
/// The longest problem that is read.
const MAX_PROBLEM: usize = 256 * 1024;

pub(crate) fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn streaming(stream: impl Stream<Item = Result<Bytes>> + Send + 'static) -> RequestBody {
    StreamBody::new(stream.map_ok(Frame::data).map_err(BoxError::from)).boxed_unsync()
}

async fn collect(operation: &'static str, body: ResponseBody, limit: usize) -> Result<Bytes> {
    let mut chunks = body.into_data_stream();
    // A short answer is one chunk, and is not copied.
    let (mut first, mut collected) = (Bytes::new(), BytesMut::new());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            Error::unavailable(operation, "the answer could not be read").with_source(error)
        })?;
        if first.len() + collected.len() + chunk.len() > limit {
            return Err(Error::new(ErrorKind::Corrupt, operation, "the server's answer is too long"));
        }
        if first.is_empty() && collected.is_empty() {
            first = chunk;
            continue;
        }
        collected.extend_from_slice(&std::mem::take(&mut first));
        collected.extend_from_slice(&chunk);
    }
    Ok(if collected.is_empty() { first } else { collected.freeze() })
}

pub(crate) async fn read_json<T: DeserializeOwned>(operation: &'static str, body: ResponseBody) -> Result<T> {
    let bytes = collect(operation, body, MAX_JSON).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(ErrorKind::Corrupt, operation, "the server's answer is not of the shape expected")
            .with_source(error)
            .with_user_message("The server's answer cannot be understood. Is it another version of Flames?")
    })
}

/// The error of a response whose status is not a success.
pub(crate) async fn read_problem(
    operation: &'static str,
    status: http::StatusCode,
    body: ResponseBody,
) -> Error {
    let bytes = collect(operation, body, MAX_PROBLEM).await.unwrap_or_default();
    match serde_json::from_slice::<flames_wire::Problem>(&bytes) {
        Ok(problem) => problem.into_error(operation),
        Err(_) => {
            let kind = match status.as_u16() {
                502..=504 => ErrorKind::Unavailable,
                401 | 403 => ErrorKind::PermissionDenied,
                404 => ErrorKind::NotFound,
                _ => ErrorKind::Internal,
            };
            Error::new(kind, operation, "an answer without problem details")
                .with_context("status", status)
                .with_user_message(format!(
                    "The server answered {status}. Is that the address of a Flames API?"
                ))
        }
    }
}

/// The response's bytes as they come.
pub(crate) fn bytes_of(
    operation: &'static str,
    body: ResponseBody,
) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
    body.into_data_stream()
        .map_err(move |error| Error::unavailable(operation, "the connection broke").with_source(error))
        .boxed()
}

/// Lines of at most `MAX_LINE` bytes.
pub(crate) fn lines_of(
    operation: &'static str,
    body: ResponseBody,
) -> impl Stream<Item = Result<String>> + Send + 'static {
    const MAX_LINE: usize = 1024 * 1024;
    let state = (bytes_of(operation, body).boxed(), Vec::<u8>::new(), false);
    futures::stream::try_unfold(state, move |(mut bytes, mut buffer, mut ended)| async move {
        loop {
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let rest = buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut buffer, rest);
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(Some((String::from_utf8_lossy(&line).into_owned(), (bytes, buffer, ended))));
            }
            if ended {
                return Ok(None);
            }
            if buffer.len() > MAX_LINE {
                return Err(Error::new(ErrorKind::Corrupt, operation, "a line of the answer is too long"));
            }
            match bytes.next().await {
                Some(chunk) => buffer.extend_from_slice(&chunk?),
                None => {
                    ended = true;
                    if !buffer.is_empty() {
                        buffer.push(b'\n');
                    }
                }
            }
        }
    })
}
