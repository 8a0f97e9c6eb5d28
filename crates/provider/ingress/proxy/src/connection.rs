//! An HTTP/1.1 connection to a target: one request out, one response in, by whoever polls it.
//!
//! It is our own, and not hyper's client, because a request that is passed on needs no maps and no channels: its head is written straight
//! from the client's into a buffer that the connection keeps, which a repetition can be sent from, and the response is read by the
//! task that wants it.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures::task::noop_waker_ref;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Version};
use http_body::{Body, Frame};
use tokio::io::AsyncWrite as _;
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use crate::body::{BodyFailure, RequestBody};
use crate::codec::{Framing, Piece};
use crate::headers::is_trailer_allowed;
use crate::stream::Stream;
use crate::timer::LazyTimer;
use crate::upstream::Cut;

/// How much is read at once when more must come than fits what is there.
const READ: usize = 8 * 1_024;
const READ_LARGE: usize = 64 * 1_024;

/// Interim responses (1xx) that a target may send before its answer.
const MAX_INTERIM: usize = 16;

/// Data of at most this size is copied behind its chunk's size, so that both go in one piece.
const COPIED: usize = 4 * 1_024;

/// A request to be sent.
pub(crate) struct Outgoing {
    /// The head, as it is sent.
    pub(crate) head: Vec<u8>,
    pub(crate) method: Method,
    pub(crate) body: RequestBody,
    pub(crate) is_chunked: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The connection ended before a byte of an answer.
    Closed,
    /// What came is no answer.
    Malformed,
    /// The client's body broke off.
    Upload,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    More,
    End,
    Broke,
}

#[derive(Debug)]
enum Upload {
    Done,
    Body {
        body: RequestBody,
        is_chunked: bool,
    },
    /// The target takes no more. It may have answered all the same.
    Refused,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    head: Vec<u8>,
    /// How much of `head` is written.
    written: usize,
    /// Behind the head: framing and small data, then large data, then what ends it.
    small: BytesMut,
    large: Bytes,
    after: &'static [u8],
    upload: Upload,
    has_body: bool,
    was_closed: bool,
    needs_flush: bool,
    method: Method,
    input: BytesMut,
    interim: usize,
    framing: Framing,
    is_kept: bool,
    limits: (usize, usize),
    pub(crate) cut: Arc<Cut>,
    pub(crate) timer: LazyTimer,
    pub(crate) idle_since: Instant,
    pub(crate) worker: usize,
    /// Whether it has carried a request before: then the target may have closed it meanwhile.
    pub(crate) reused: bool,
}

impl Connection {
    /// `limits`: of a head, bytes and lines.
    pub(crate) fn new(stream: Stream, cut: Arc<Cut>, worker: usize, limits: (usize, usize)) -> Self {
        Self {
            stream,
            head: Vec::new(),
            written: 0,
            small: BytesMut::new(),
            large: Bytes::new(),
            after: b"",
            upload: Upload::Done,
            has_body: false,
            was_closed: false,
            needs_flush: false,
            method: Method::GET,
            input: BytesMut::new(),
            interim: 0,
            framing: Framing::Length(0),
            is_kept: true,
            limits,
            cut,
            timer: LazyTimer::default(),
            idle_since: Instant::now(),
            worker,
            reused: false,
        }
    }

    /// Begins an exchange.
    pub(crate) fn begin(&mut self, request: Outgoing) {
        let Outgoing { head, method, body, is_chunked } = request;
        self.head = head;
        self.written = 0;
        self.has_body = !body.is_end_stream();
        self.upload = if self.has_body { Upload::Body { body, is_chunked } } else { Upload::Done };
        self.method = method;
        self.interim = 0;
        self.was_closed = false;
    }

    /// Whether it ended before a byte of the answer.
    pub(crate) fn was_closed(&self) -> bool {
        self.was_closed
    }

    /// The request, to be sent again over another connection: when nothing of it went out, or when it has no body and may be
    /// sent twice (RFC 9110, section 9.2.2).
    pub(crate) fn take_back(&mut self) -> Option<Outgoing> {
        let is_idempotent = matches!(
            self.method,
            Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
        );
        let is_unsent = self.written == 0;
        let (body, is_chunked) = match std::mem::replace(&mut self.upload, Upload::Done) {
            Upload::Done if !self.has_body && (is_unsent || is_idempotent) => (RequestBody::default(), false),
            Upload::Body { body, is_chunked } if is_unsent => (body, is_chunked),
            _ => return None,
        };
        Some(Outgoing { head: std::mem::take(&mut self.head), method: self.method.clone(), body, is_chunked })
    }

    /// Whether it could carry another request: nothing came that nobody asked for, and it stands.
    pub(crate) fn is_usable(&mut self) -> bool {
        self.input.is_empty() && self.poll_read(&mut Context::from_waker(noop_waker_ref()), 1).is_pending()
    }

    /// Whether the exchange is over, on both sides, and another may follow.
    pub(crate) fn is_over(&self) -> bool {
        self.is_kept
            && self.framing.is_end()
            && self.input.is_empty()
            && matches!(self.upload, Upload::Done)
            && !self.has_pending()
    }

    pub(crate) fn framing(&self) -> Framing {
        self.framing
    }

    /// The raw stream after an upgrade, with what was read of it already.
    pub(crate) fn into_stream(self) -> (Stream, Bytes, Arc<Cut>) {
        (self.stream, self.input.freeze(), self.cut)
    }

    fn has_pending(&self) -> bool {
        self.written < self.head.len()
            || !self.small.is_empty()
            || !self.large.is_empty()
            || !self.after.is_empty()
    }

    fn advance(&mut self, mut size: usize) {
        let of_head = size.min(self.head.len() - self.written);
        self.written += of_head;
        size -= of_head;
        let of_small = size.min(self.small.len());
        self.small.advance(of_small);
        size -= of_small;
        let of_large = size.min(self.large.len());
        self.large.advance(of_large);
        size -= of_large;
        self.after = &self.after[size..];
    }

    /// Writes what there is of the request. Ready when all of it went out, or the target takes no more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            while self.has_pending() {
                let slices = [
                    IoSlice::new(&self.head[self.written..]),
                    IoSlice::new(&self.small),
                    IoSlice::new(&self.large),
                    IoSlice::new(self.after),
                ];
                let first = slices.iter().position(|slice| !slice.is_empty()).unwrap_or_default();
                let is_alone = slices[first + 1..].iter().all(|slice| slice.is_empty());
                let stream = Pin::new(&mut self.stream);
                let wrote = if is_alone {
                    stream.poll_write(cx, &slices[first])
                } else {
                    stream.poll_write_vectored(cx, &slices[first..])
                };
                match ready!(wrote) {
                    Ok(size) if size > 0 => {
                        self.needs_flush = true;
                        self.advance(size);
                    }
                    _ => {
                        self.upload = match std::mem::replace(&mut self.upload, Upload::Refused) {
                            // Nothing of it is gone: it can go to another.
                            unsent if self.written == 0 => unsent,
                            _ => Upload::Refused,
                        };
                        self.is_kept = false;
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            let Upload::Body { body, is_chunked } = &mut self.upload else { break };
            let is_chunked = *is_chunked;
            match Pin::new(body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.put_data(data, is_chunked),
                    Err(frame) => {
                        if let (Ok(trailers), true) = (frame.into_trailers(), is_chunked) {
                            self.put_trailers(&trailers);
                            self.upload = Upload::Done;
                        }
                    }
                },
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Failure::Upload)),
                Poll::Ready(None) => {
                    self.upload = Upload::Done;
                    if is_chunked {
                        self.after = b"0\r\n\r\n";
                    }
                }
                Poll::Pending => {
                    if self.needs_flush && Pin::new(&mut self.stream).poll_flush(cx).is_ready() {
                        self.needs_flush = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        if self.needs_flush {
            // A failure shows when the answer is read.
            let _ = ready!(Pin::new(&mut self.stream).poll_flush(cx));
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    fn put_data(&mut self, data: Bytes, is_chunked: bool) {
        // An empty chunk would be the last.
        if data.is_empty() {
            return;
        }
        if is_chunked {
            self.small.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
            self.after = b"\r\n";
        }
        if data.len() <= COPIED {
            self.small.extend_from_slice(&data);
            self.small.extend_from_slice(std::mem::take(&mut self.after));
        } else {
            self.large = data;
        }
    }

    fn put_trailers(&mut self, trailers: &HeaderMap) {
        self.small.extend_from_slice(b"0\r\n");
        for (name, value) in trailers.iter().filter(|(name, _)| is_trailer_allowed(name)) {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                self.small.extend_from_slice(part);
            }
        }
        self.small.extend_from_slice(b"\r\n");
    }

    /// Reads more.
    fn poll_read(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<Read> {
        self.input.reserve(room);
        let read = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input));
        Poll::Ready(match read {
            Ok(0) => Read::End,
            Ok(_) => Read::More,
            Err(_) => Read::Broke,
        })
    }

    /// The answer's head, once the request is out far enough for there to be one.
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Failure>> {
        loop {
            if let Poll::Ready(Err(failure)) = self.poll_send(cx) {
                return Poll::Ready(Err(failure));
            }
            match self.parse_head() {
                Ok(Some(response)) if is_interim(response.status()) => {
                    self.interim += 1;
                    if self.interim > MAX_INTERIM {
                        return Poll::Ready(Err(Failure::Malformed));
                    }
                    continue;
                }
                Ok(Some(response)) => return Poll::Ready(Ok(response)),
                Ok(None) => {}
                Err(failure) => return Poll::Ready(Err(failure)),
            }
            if ready!(self.poll_read(cx, READ)) != Read::More {
                self.was_closed = self.input.is_empty() && self.interim == 0;
                return Poll::Ready(Err(if self.was_closed { Failure::Closed } else { Failure::Malformed }));
            }
        }
    }

    fn parse_head(&mut self) -> Result<Option<Response<()>>, Failure> {
        const USUAL: usize = 100;
        if self.input.is_empty() {
            return Ok(None);
        }
        let (most_bytes, most_lines) = self.limits;
        let mut usual = [MaybeUninit::uninit(); USUAL];
        let mut many = if most_lines > USUAL { vec![MaybeUninit::uninit(); most_lines] } else { Vec::new() };
        let lines = if most_lines > USUAL { &mut many[..] } else { &mut usual[..most_lines] };
        let mut parsed = httparse::Response::new(&mut []);
        let outcome = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut parsed,
            &self.input,
            lines,
        );
        let size = match outcome {
            Ok(httparse::Status::Complete(size)) if size <= most_bytes => size,
            Ok(httparse::Status::Partial) if self.input.len() <= most_bytes => return Ok(None),
            _ => return Err(Failure::Malformed),
        };
        let is_http_1_1 = parsed.version == Some(1);
        let status =
            parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Failure::Malformed)?;
        // A copy of its own, so that the read buffer is free again at once; the values are parts of it.
        let head = Bytes::copy_from_slice(&self.input[..size]);
        let start = self.input.as_ptr() as usize;
        let mut headers = HeaderMap::with_capacity(parsed.headers.len() + 2);
        for line in parsed.headers.iter() {
            let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Failure::Malformed)?;
            let at = line.value.as_ptr() as usize - start;
            let value = head.slice(at..at + line.value.len());
            let value = HeaderValue::from_maybe_shared(value).map_err(|_| Failure::Malformed)?;
            headers.append(name, value);
        }
        self.input.advance(size);
        if !is_interim(status) {
            let framing = Framing::of(&self.method, status, is_http_1_1, &mut headers);
            let (framing, is_kept) = framing.map_err(|_| Failure::Malformed)?;
            self.framing = framing;
            self.is_kept &= is_kept && status != StatusCode::SWITCHING_PROTOCOLS;
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.version_mut() = Version::HTTP_11;
        *response.headers_mut() = headers;
        Ok(Some(response))
    }

    /// The next piece of the answer's body.
    pub(crate) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        loop {
            if let Poll::Ready(Err(_)) = self.poll_send(cx) {
                return Poll::Ready(Some(Err(BodyFailure::UploadBroke)));
            }
            let most_header_bytes = self.limits.0;
            match self.framing.decode(&mut self.input, most_header_bytes) {
                Ok(Some(Piece::Data(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Some(Piece::Trailers(trailers))) => {
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Some(Piece::End)) => return Poll::Ready(None),
                Ok(None) => {}
                Err(_) => return Poll::Ready(Some(Err(BodyFailure::TargetBroke))),
            }
            let room = match self.framing {
                Framing::Length(left) | Framing::Chunk(left) if left < READ as u64 => READ,
                Framing::ChunkSize | Framing::ChunkEnd | Framing::Trailers => READ,
                _ => READ_LARGE,
            };
            match ready!(self.poll_read(cx, room)) {
                Read::More => {}
                Read::End if self.framing == Framing::UntilClose => {
                    self.framing = Framing::Length(0);
                    return Poll::Ready(None);
                }
                Read::End | Read::Broke => return Poll::Ready(Some(Err(BodyFailure::TargetBroke))),
            }
        }
    }
}

/// Whether the answer is still to come. 101 is the answer to an upgrade.
fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}
