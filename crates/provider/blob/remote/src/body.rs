//! Bytes on their way.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flames_blob::{BlobInfo, ByteStream, MAX_CHUNK, PutOptions, ReadVerifier, Verifier};
use flames_clock::{Clock, ClockExt};
use flames_error::{Error, Result};
use futures::StreamExt;
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use tower::BoxError;

use crate::Body;

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// The body of a put. When the stream fails or is not what was declared, the body breaks off, and `refused` tells why.
pub(crate) fn sent(stream: ByteStream, options: &PutOptions, refused: Arc<Mutex<Option<Error>>>) -> Body {
    let state = Some((stream, Verifier::new(options)));
    let pieces = futures::stream::unfold(state, |state| async move {
        let (mut stream, mut verifier) = state?;
        let Some(piece) = stream.next().await else {
            return verifier.finish().err().map(|error| (Err(error), None));
        };
        match piece.and_then(|piece| verifier.admit(piece.len() as u64).map(|()| piece)) {
            Ok(piece) => {
                verifier.update(&piece);
                Some((Ok(piece), Some((stream, verifier))))
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    let frames = pieces.map(move |piece: Result<Bytes>| match piece {
        Ok(piece) => Ok(Frame::data(piece)),
        Err(error) => {
            let told = BoxError::from(error.to_string());
            *refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            Err(told)
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

/// The bytes of an answer, held to what was told of them.
pub(crate) fn received(
    body: Body,
    info: &BlobInfo,
    range: &Range<u64>,
    clock: Arc<dyn Clock>,
    silence: Duration,
) -> ByteStream {
    struct Reading {
        body: http_body_util::BodyDataStream<Body>,
        rest: Bytes,
        missing: u64,
        verifier: ReadVerifier,
    }
    let reading = Reading {
        body: body.into_data_stream(),
        rest: Bytes::new(),
        missing: range.end - range.start,
        verifier: ReadVerifier::new(info, range),
    };
    futures::stream::try_unfold(reading, move |mut reading| {
        let clock = Arc::clone(&clock);
        async move {
            let lost = |what: &'static str| Error::unavailable("blob.get", what);
            while reading.rest.is_empty() {
                let next = clock.timeout(silence, reading.body.next()).await;
                match next.map_err(|late| lost("the bytes stopped coming").with_source(late))? {
                    Some(piece) => {
                        reading.rest =
                            piece.map_err(|error| lost("the connection broke").with_source(error))?;
                    }
                    None if reading.missing == 0 => return Ok(None),
                    None => return Err(lost("the connection ended before all bytes came")),
                }
            }
            let piece = reading.rest.split_to(reading.rest.len().min(MAX_CHUNK));
            reading.verifier.update(&piece)?;
            reading.missing = reading.missing.saturating_sub(piece.len() as u64);
            Ok(Some((piece, reading)))
        }
    })
    .boxed()
}
