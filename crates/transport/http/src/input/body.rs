//! Bodies.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use flames_service::codes;
use futures::stream::{BoxStream, StreamExt};
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::objects::Objects;
use super::words::refused;
use crate::api::Api;
use crate::failure::{Failure, too_large, unreadable};

/// The longest piece that is handed on at once.
const MAX_PIECE: usize = 1024 * 1024;

/// A body of JSON, with the bytes that it was read from.
#[derive(Debug)]
pub(crate) struct Json<T> {
    pub(crate) value: T,
    pub(crate) bytes: Bytes,
}

/// No body: what changes by its path alone.
#[derive(Debug)]
pub(crate) struct NoBody;

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The media type without its parameters, in lower case.
fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn unsupported(expected: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, "http.input", "another media type")
        .with_code(codes::UNSUPPORTED_MEDIA_TYPE)
        .with_field("Content-Type")
        .with_user_message(format!("The body's media type must be {expected}."))
}

async fn read_whole(request: Request, limit: usize) -> std::result::Result<Bytes, Failure> {
    let limit_bytes = u64::try_from(limit).unwrap_or(u64::MAX);
    if declared_length(request.headers()).is_some_and(|length| length > limit_bytes) {
        return Err(too_large(limit_bytes).into());
    }
    // What comes in one piece, as most does, is not copied.
    match Limited::new(request.into_body(), limit).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large(limit_bytes).into()),
        Err(_) => Err(unreadable("The body broke off.")),
    }
}

impl<T: DeserializeOwned> FromRequest<Api> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, api: &Api) -> std::result::Result<Self, Failure> {
        let media_type = media_type(request.headers());
        let is_json = media_type == "application/json"
            || (media_type.starts_with("application/") && media_type.ends_with("+json"));
        if !is_json {
            return Err(unsupported("application/json").into());
        }
        let bytes = read_whole(request, api.config.max_json_bytes).await?;
        let value = match read(&bytes) {
            Ok(value) => value,
            Err(_) => read_naming_fields(&bytes)?,
        };
        Ok(Self { value, bytes })
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = T::deserialize(Objects(&mut deserializer))?;
    deserializer.end()?;
    Ok(value)
}

/// Reads JSON again that could not be read, and names the field that is wrong: to know the way to each field costs as much as reading it.
fn read_naming_fields<T: DeserializeOwned>(bytes: &[u8]) -> std::result::Result<T, Failure> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(Objects(&mut deserializer)).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        if cause.is_data() {
            return refused(&path, "body", &cause.to_string());
        }
        unreadable(format!("The body is no JSON: {cause}."))
    })?;
    deserializer.end().map_err(|_| unreadable("The body has more behind its JSON."))?;
    Ok(value)
}

impl FromRequest<Api> for NoBody {
    type Rejection = Failure;

    async fn from_request(request: Request, _api: &Api) -> std::result::Result<Self, Failure> {
        let bytes = read_whole(request, 64).await?;
        let blank = bytes.iter().all(u8::is_ascii_whitespace);
        if blank || &*bytes == b"{}" { Ok(Self) } else { Err(unreadable("This path takes no body.")) }
    }
}

/// A body that is handed on as it comes: at most `limit` bytes, and never silent for longer than the configured time.
pub(crate) fn transfer(
    api: &Api,
    headers: &HeaderMap,
    body: Body,
    limit: Option<u64>,
) -> Result<BoxStream<'static, Result<Bytes>>> {
    let media_type = media_type(headers);
    let binary = [
        "",
        "application/octet-stream",
        "application/x-tar",
        "application/gzip",
        "application/x-gzip",
        "application/zstd",
        "application/vnd.oci.image.layer.v1.tar",
    ];
    if !binary.contains(&media_type.as_str()) {
        return Err(unsupported(
            "application/octet-stream (or application/x-tar, application/gzip, application/zstd)",
        ));
    }
    if let (Some(limit), Some(length)) = (limit, declared_length(headers))
        && length > limit
    {
        return Err(too_large(limit));
    }
    let (clock, idle) = (api.service.clock().clone(), api.config.idle_timeout);
    let state = (body.into_data_stream(), Bytes::new(), 0_u64);
    let stream = futures::stream::try_unfold(state, move |(mut chunks, mut rest, mut taken)| {
        let clock = clock.clone();
        async move {
            while rest.is_empty() {
                let next = clock.timeout(idle, chunks.next()).await.map_err(|_| {
                    Error::new(ErrorKind::InvalidInput, "http.input", "the body stopped coming")
                        .with_code(codes::INVALID_REQUEST)
                        .with_user_message("The body stopped coming.")
                })?;
                let Some(chunk) = next else { return Ok(None) };
                rest = chunk.map_err(|_| {
                    Error::new(ErrorKind::InvalidInput, "http.input", "the body broke off")
                        .with_code(codes::INVALID_REQUEST)
                        .with_user_message("The body broke off.")
                })?;
                taken = taken.saturating_add(u64::try_from(rest.len()).unwrap_or(u64::MAX));
                if let Some(limit) = limit.filter(|limit| taken > *limit) {
                    return Err(too_large(limit));
                }
            }
            let piece = rest.split_to(rest.len().min(MAX_PIECE));
            Ok(Some((piece, (chunks, rest, taken))))
        }
    });
    Ok(stream.boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a body that comes in these pieces, of which at most 4 bytes are taken.
    async fn read(pieces: &[Option<&'static str>]) -> std::result::Result<Bytes, String> {
        let pieces: Vec<_> =
            pieces.iter().map(|piece| piece.ok_or_else(|| std::io::Error::other("cut"))).collect();
        let body = Body::from_stream(futures::stream::iter(pieces));
        let refusal = |Failure(error)| error.user_message().unwrap_or_default().to_owned();
        read_whole(Request::new(body), 4).await.map_err(refusal)
    }

    #[tokio::test]
    async fn a_body_is_whole_in_however_many_pieces_it_comes_and_no_longer_than_allowed() {
        assert_eq!(read(&[]).await.unwrap(), "");
        for pieces in
            [&[Some("abcd")] as &[_], &[Some("ab"), Some("cd")], &[Some("a"), Some("bc"), Some("d")]]
        {
            assert_eq!(read(pieces).await.unwrap(), "abcd");
        }
        for pieces in [&[Some("abcde")] as &[_], &[Some("abc"), Some("de")]] {
            assert!(read(pieces).await.unwrap_err().contains("at most 4 bytes"));
        }
        assert_eq!(read(&[Some("ab"), None]).await.unwrap_err(), "The body broke off.");
    }
}
