//! Bodies on their way through: never held whole, counted, and cut when they stop moving.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::access::Entry;
use crate::activity::{Activity, UnderWay};
use crate::codec::Framing;
use crate::connection::Connection;
use crate::problem::Problem;
use crate::timer::LazyTimer;
use crate::upstream::{Cut, InFlight};

/// Why a body ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyFailure {
    TooLarge,
    Stalled,
    TargetGone,
    TargetBroke,
    UploadBroke,
    Deadline,
}

impl BodyFailure {
    fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "body_too_large",
            Self::Stalled => "body_stalled",
            Self::TargetGone => "target_removed",
            Self::TargetBroke => "target_broke",
            Self::UploadBroke => "upload_broke",
            Self::Deadline => "request_deadline",
        }
    }
}

impl std::fmt::Display for BodyFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl StdError for BodyFailure {}

pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// How an upload goes, for the exchange: a target's time to answer runs from the last byte that it was sent, and a client whose
/// upload fails is told the truth.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    failure: AtomicU8,
    frames: AtomicU64,
}

impl Progress {
    pub(crate) fn problem(&self) -> Option<Problem> {
        match self.failure.load(Ordering::Acquire) {
            1 => Some(Problem::BodyTooLarge),
            2 => Some(Problem::RequestTimeout),
            _ => None,
        }
    }

    /// Frames sent so far.
    pub(crate) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Upload {
    incoming: Incoming,
    progress: Arc<Progress>,
    left: u64,
    idle: Duration,
    timer: LazyTimer,
    activity: Arc<Activity>,
}

/// A request's body on its way to the target.
#[derive(Debug, Default)]
pub(crate) struct RequestBody(Option<Box<Upload>>);

impl RequestBody {
    /// `most`: the largest size allowed. `idle`: how long nothing may come.
    pub(crate) fn new(
        incoming: Incoming,
        most: Option<u64>,
        idle: Duration,
        activity: &Arc<Activity>,
    ) -> (Self, Option<Arc<Progress>>) {
        if incoming.is_end_stream() {
            return (Self(None), None);
        }
        let progress = Arc::<Progress>::default();
        let upload = Upload {
            incoming,
            progress: Arc::clone(&progress),
            left: most.unwrap_or(u64::MAX),
            idle,
            timer: LazyTimer::default(),
            activity: Arc::clone(activity),
        };
        (Self(Some(Box::new(upload))), Some(progress))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(upload) = self.0.as_deref_mut() else { return Poll::Ready(None) };
        match Pin::new(&mut upload.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                upload.activity.moved();
                upload.progress.frames.fetch_add(1, Ordering::Relaxed);
                upload.timer.set(None);
                let size = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                match upload.left.checked_sub(size) {
                    Some(left) => upload.left = left,
                    None => {
                        upload.progress.failure.store(1, Ordering::Release);
                        return Poll::Ready(Some(Err(BodyFailure::TooLarge.into())));
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(other) => Poll::Ready(other.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => {
                if !upload.timer.is_set() {
                    upload.timer.set(Some(Instant::now() + upload.idle));
                }
                ready!(upload.timer.poll(cx));
                upload.progress.failure.store(2, Ordering::Release);
                Poll::Ready(Some(Err(BodyFailure::Stalled.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|upload| upload.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |upload| upload.incoming.size_hint())
    }
}

/// How a target's response comes in.
pub(crate) enum Source {
    /// Over a connection of its own, which is kept afterwards.
    Http1(Box<Connection>),
    /// Over a shared connection, driven by a task of its own.
    Http2(Incoming, Arc<Cut>, LazyTimer),
    /// It is over.
    Over,
}

/// A target's response on its way to the client.
pub(crate) struct Download {
    source: Source,
    in_flight: InFlight,
    deadline: Option<Instant>,
    is_waiting: bool,
}

impl Download {
    pub(crate) fn new(source: Source, in_flight: InFlight, deadline: Option<Instant>) -> Self {
        let mut download = Self { source, in_flight, deadline, is_waiting: false };
        if download.is_end_stream() {
            download.finish();
        }
        download
    }

    /// Gives the connection back when the response is whole.
    fn finish(&mut self) {
        if let Source::Http1(connection) = std::mem::replace(&mut self.source, Source::Over) {
            self.in_flight.upstream().put_back(connection);
        }
    }

    fn fail(&mut self, failure: BodyFailure) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        self.source = Source::Over;
        Poll::Ready(Some(Err(failure)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Http1(connection) => connection.framing().is_end(),
            Source::Http2(incoming, ..) => incoming.is_end_stream(),
            Source::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Http1(connection) => match connection.framing() {
                Framing::Length(left) => SizeHint::with_exact(left),
                _ => SizeHint::default(),
            },
            Source::Http2(incoming, ..) => incoming.size_hint(),
            Source::Over => SizeHint::with_exact(0),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        let (cut, polled) = match &mut self.source {
            Source::Http1(connection) => {
                let polled = connection.poll_body(cx);
                (&connection.cut, polled)
            }
            Source::Http2(incoming, cut, _) => {
                let polled = Pin::new(incoming).poll_frame(cx);
                (&*cut, polled.map(|frame| frame.map(|frame| frame.map_err(|_| BodyFailure::TargetBroke))))
            }
            Source::Over => return Poll::Ready(None),
        };
        let is_cut = if polled.is_pending() { cut.poll(cx) } else { cut.is_cut() };
        if is_cut {
            return self.fail(BodyFailure::TargetGone);
        }
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return self.fail(BodyFailure::Deadline);
        }
        if polled.is_ready() {
            self.is_waiting = false;
            match &polled {
                Poll::Ready(Some(Err(failure))) => return self.fail(*failure),
                Poll::Ready(Some(Ok(_))) if !self.is_end_stream() => {}
                _ => self.finish(),
            }
            return polled;
        }
        let timer = match &mut self.source {
            Source::Http1(connection) => &mut connection.timer,
            Source::Http2(_, _, timer) => timer,
            Source::Over => return Poll::Ready(None),
        };
        if !self.is_waiting {
            self.is_waiting = true;
            let idle = Instant::now() + self.in_flight.upstream().connector.timeouts.body_idle;
            timer.set(Some(self.deadline.map_or(idle, |deadline| deadline.min(idle))));
        }
        ready!(timer.poll(cx));
        let past = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        self.fail(if past { BodyFailure::Deadline } else { BodyFailure::Stalled })
    }
}

/// A response's body on its way to the client.
pub(crate) struct ResponseBody {
    kind: Kind,
    under_way: UnderWay,
    log: Option<Box<Entry>>,
}

enum Kind {
    Own(Bytes),
    Download(Download),
}

impl Debug for ResponseBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

impl ResponseBody {
    pub(crate) fn own(page: Bytes, under_way: UnderWay, log: Option<Box<Entry>>) -> Self {
        Self { kind: Kind::Own(page), under_way, log }
    }

    pub(crate) fn download(download: Download, under_way: UnderWay, log: Option<Box<Entry>>) -> Self {
        Self { kind: Kind::Download(download), under_way, log }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyFailure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        let this = &mut *self;
        let polled = match &mut this.kind {
            Kind::Own(page) if page.is_empty() => None,
            Kind::Own(page) => Some(Ok(Frame::data(std::mem::take(page)))),
            Kind::Download(download) => ready!(download.poll_frame(cx)),
        };
        match &polled {
            Some(Ok(frame)) => {
                this.under_way.activity().moved();
                if let (Some(log), Some(data)) = (&mut this.log, frame.data_ref()) {
                    log.with(|record| record.bytes += data.remaining() as u64);
                }
            }
            Some(Err(failure)) => {
                if let Some(log) = &mut this.log {
                    log.with(|record| record.problem = Some(failure.name()));
                }
            }
            None => {}
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Own(page) => page.is_empty(),
            Kind::Download(download) => download.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Own(page) => SizeHint::with_exact(page.len() as u64),
            Kind::Download(download) => download.size_hint(),
        }
    }
}
