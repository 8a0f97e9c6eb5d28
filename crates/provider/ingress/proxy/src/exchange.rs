//! One request to a target, and the head of its response.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::body::{Progress, RequestBody};
use crate::connection::{Connection, Outgoing};
use crate::problem::Problem;
use crate::timer::LazyTimer;
use crate::upstream::{Cut, Upstream};

/// How long the target has.
pub(crate) struct Patience {
    /// From the last of the request that was sent to the response's head.
    response: Duration,
    /// For the whole request.
    pub(crate) deadline: Option<Instant>,
    upload: Option<Arc<Progress>>,
    frames_seen: u64,
}

impl Patience {
    pub(crate) fn new(response: Duration, deadline: Option<Instant>, upload: Option<Arc<Progress>>) -> Self {
        Self { response, deadline, upload, frames_seen: 0 }
    }

    fn start(&self, timer: &mut LazyTimer) {
        let response = Instant::now() + self.response;
        timer.set(Some(self.deadline.map_or(response, |deadline| deadline.min(response))));
    }

    /// Ready when the target had its time.
    fn poll(&mut self, cx: &mut Context<'_>, timer: &mut LazyTimer) -> Poll<()> {
        loop {
            ready!(timer.poll(cx));
            let frames = self.upload.as_ref().map_or(0, |upload| upload.frames());
            let is_over = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
            if frames == self.frames_seen || is_over {
                return Poll::Ready(());
            }
            self.frames_seen = frames;
            self.start(timer);
        }
    }

    /// The client's fault, when the upload failed; the target's otherwise.
    fn blame(&self, problem: Problem) -> Problem {
        self.upload.as_ref().and_then(|upload| upload.problem()).unwrap_or(problem)
    }
}

/// Sends over HTTP/1.1. A kept connection that turns out to be closed is replaced by a fresh one, once, when that is safe.
pub(crate) async fn over_http1(
    upstream: &Arc<Upstream>,
    request: Outgoing,
    patience: &mut Patience,
) -> Result<(Response<()>, Box<Connection>), Problem> {
    let mut connection = match upstream.take_idle() {
        Some(connection) => connection,
        None => upstream.connect().await?,
    };
    connection.begin(request);
    let mut received = receive(&mut connection, patience).await;
    if received.is_err()
        && connection.reused
        && connection.was_closed()
        && let Some(again) = connection.take_back()
    {
        connection = upstream.connect().await?;
        connection.begin(again);
        received = receive(&mut connection, patience).await;
    }
    match received {
        Ok(response) => Ok((response, connection)),
        Err(problem) => Err(patience.blame(problem)),
    }
}

async fn receive(connection: &mut Connection, patience: &mut Patience) -> Result<Response<()>, Problem> {
    patience.start(&mut connection.timer);
    poll_fn(|cx| {
        if connection.cut.poll(cx) {
            return Poll::Ready(Err(Problem::TargetRemoved));
        }
        if let Poll::Ready(head) = connection.poll_head(cx) {
            return Poll::Ready(head.map_err(|failure| {
                tracing::debug!(?failure, "a target did not answer");
                Problem::TargetBroke
            }));
        }
        ready!(patience.poll(cx, &mut connection.timer));
        Poll::Ready(Err(Problem::ResponseTimeout))
    })
    .await
}

/// Sends over the target's shared HTTP/2 connection.
pub(crate) async fn over_http2(
    upstream: &Arc<Upstream>,
    request: Request<RequestBody>,
    patience: &mut Patience,
) -> Result<(Response<Incoming>, Arc<Cut>, LazyTimer), Problem> {
    let mut sender = upstream.http2().await?;
    let cut = upstream.new_cut();
    let mut timer = LazyTimer::default();
    patience.start(&mut timer);
    let mut answer = pin!(async {
        sender.ready().await?;
        sender.send_request(request).await
    });
    let response = poll_fn(|cx| {
        if cut.poll(cx) {
            return Poll::Ready(Err(Problem::TargetRemoved));
        }
        if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
            return Poll::Ready(answer.map_err(|error| {
                tracing::debug!(%error, "a target did not answer over HTTP/2");
                Problem::TargetBroke
            }));
        }
        ready!(patience.poll(cx, &mut timer));
        Poll::Ready(Err(Problem::ResponseTimeout))
    })
    .await
    .map_err(|problem| patience.blame(problem))?;
    Ok((response, cut, timer))
}
