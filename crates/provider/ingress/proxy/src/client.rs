//! One connection of a client: which HTTP it speaks, and how long it may do so.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::activity::{Activity, Verdict};
use crate::config::Limits;
use crate::forward::handle;
use crate::headers::Origin;
use crate::shared::{Shared, TaskExecutor};
use crate::timer::LazyTimer;

/// What a client sends first when it knows that HTTP/2 is spoken (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client, as its requests see it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) origin: Origin,
    pub(crate) activity: Arc<Activity>,
}

/// The client's stream: what was read to tell the protocol comes first, and a client that does not read is given up.
struct ClientStream<S> {
    stream: S,
    prefix: [u8; PREFACE.len()],
    prefix_read: usize,
    prefix_end: usize,
    activity: Arc<Activity>,
    write_limit: Duration,
    write_timer: LazyTimer,
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.prefix_read < this.prefix_end {
            let size = buffer.remaining().min(this.prefix_end - this.prefix_read);
            buffer.put_slice(&this.prefix[this.prefix_read..this.prefix_read + size]);
            this.prefix_read += size;
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let outcome = ready!(Pin::new(&mut this.stream).poll_read(cx, buffer));
        if buffer.filled().len() > before {
            this.activity.bytes_came();
        }
        Poll::Ready(outcome)
    }
}

impl<S: AsyncWrite + Unpin> ClientStream<S> {
    fn watched<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match write(Pin::new(&mut self.stream), cx) {
            Poll::Ready(outcome) => {
                self.write_timer.set(None);
                Poll::Ready(outcome)
            }
            Poll::Pending => {
                if !self.write_timer.is_set() {
                    self.write_timer.set(Some(Instant::now() + self.write_limit));
                }
                ready!(self.write_timer.poll(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().watched(cx, |stream, cx| stream.poll_write(cx, bytes))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().watched(cx, |stream, cx| stream.poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().watched(cx, |stream, cx| stream.poll_shutdown(cx))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().watched(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Reads until it is clear whether the client begins with [`PREFACE`]. None when it left.
async fn first_bytes<S: AsyncRead + Unpin>(stream: &mut S) -> Option<([u8; PREFACE.len()], usize)> {
    let (mut prefix, mut end) = ([0; PREFACE.len()], 0);
    while end < PREFACE.len() && prefix[..end] == PREFACE[..end] {
        match stream.read(&mut prefix[end..]).await {
            Ok(0) | Err(_) => return None,
            Ok(size) => end += size,
        }
    }
    Some((prefix, end))
}

/// Serves a client until it, or its time, ends. `is_http2`: when the handshake said so already.
pub(crate) async fn serve<S>(shared: Arc<Shared>, mut stream: S, origin: Origin, is_http2: bool)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let limits = &shared.limits;
    let draining = shared.spawner.draining.clone();
    let first = timeout(shared.timeouts.header_read, first_bytes(&mut stream));
    let Some(Ok(Some((prefix, prefix_end)))) = draining.run_until_cancelled(first).await else { return };
    let is_http2 = is_http2 || prefix == *PREFACE;

    let activity = Arc::new(Activity::new());
    activity.bytes_came();
    let io = TokioIo::new(ClientStream {
        stream,
        prefix,
        prefix_read: 0,
        prefix_end,
        activity: Arc::clone(&activity),
        write_limit: shared.timeouts.body_idle,
        write_timer: LazyTimer::default(),
    });
    let client = Arc::new(Client { origin, activity: Arc::clone(&activity) });
    let service_shared = Arc::clone(&shared);
    let service =
        service_fn(move |request| handle(Arc::clone(&service_shared), Arc::clone(&client), request));

    if is_http2 {
        /// How long a client may leave a ping unanswered.
        const PING_TIMEOUT: Duration = Duration::from_secs(20);
        let connection = http2::Builder::new(TaskExecutor(shared.spawner.clone()))
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams_per_connection)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .max_send_buf_size(256 * 1024)
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(io, service);
        let mut connection = Box::pin(connection);
        supervise(&shared, &activity, None, connection.as_mut(), |connection| connection.graceful_shutdown())
            .await;
    } else {
        let mut builder = http1::Builder::new();
        builder.max_header_size(limits.header_bytes).max_buf_size(limits.header_bytes.max(64 * 1024));
        // hyper keeps room for its own default (the same number) on the stack, and for any other on the heap.
        if limits.headers != Limits::default().headers {
            builder.max_headers(limits.headers);
        }
        let connection = builder.serve_connection(io, service).with_upgrades();
        let mut connection = Box::pin(connection);
        let head = Some(shared.timeouts.header_read);
        supervise(&shared, &activity, head, connection.as_mut(), |connection| connection.graceful_shutdown())
            .await;
    }
}

/// Runs a connection to its end: the client's, or when it is idle or stalls, or when the proxy ends.
async fn supervise<C: Future<Output = hyper::Result<()>>>(
    shared: &Shared,
    activity: &Activity,
    head: Option<Duration>,
    mut connection: Pin<&mut C>,
    mut end_in_order: impl FnMut(Pin<&mut C>),
) {
    let times = &shared.timeouts;
    let soonest = head.unwrap_or(times.client_idle).min(times.client_idle);
    let mut tick = interval((soonest / 4).clamp(Duration::from_millis(10), Duration::from_secs(5)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Each step of a request has a limit of its own, and then it moves: what takes longer than all of them waits for the client.
    let stall = times.wake + times.connect + times.response + times.body_idle;
    let spawner = &shared.spawner;
    let mut drained = pin!(spawner.draining.cancelled());
    let (mut is_told_of_draining, mut is_ending) = (false, false);
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(outcome) = connection.as_mut().poll(cx) {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "a client's connection ended");
                }
                return Poll::Ready(());
            }
            // Asked once: it wakes this task, whose waker stays the same, and then the flag is up.
            if !is_ending && (!is_told_of_draining || spawner.is_draining()) {
                is_told_of_draining = true;
                if drained.as_mut().poll(cx).is_ready() {
                    is_ending = true;
                    end_in_order(connection.as_mut());
                    continue;
                }
            }
            ready!(tick.poll_tick(cx));
            match activity.verdict(head, times.client_idle, stall) {
                Verdict::Fine => {}
                Verdict::Idle if !is_ending => {
                    is_ending = true;
                    end_in_order(connection.as_mut());
                }
                // One that was asked to end and is idle still has had a whole span for it.
                Verdict::Idle if activity.verdict(head, times.client_idle * 2, stall) == Verdict::Fine => {}
                Verdict::Idle | Verdict::Stalled => return Poll::Ready(()),
            }
        }
    })
    .await;
}
