//! One connection under many streams, and whether its other side is alive.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flames_clock::{Clock, Monotonic};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

use super::{MAX_STREAMS, SILENCE};

/// A stream of a link.
pub(super) type MuxStream = Compat<yamux::Stream>;

/// What a stream's window begins with in yamux, and here also its end: none grows, so that their sum bounds what a link holds unread.
const WINDOW: usize = 256 * 1024;

// yamux forgets a dropped stream only when it next makes progress, and ends the connection when one too many is open.
const YAMUX_STREAMS: usize = MAX_STREAMS + 256;

/// When a byte last came from the other side.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    clock: Arc<dyn Clock>,
    began: Monotonic,
    /// Milliseconds since `began`.
    last: Arc<AtomicU64>,
}

impl Heard {
    fn new(clock: Arc<dyn Clock>) -> Self {
        let began = clock.monotonic();
        Self { clock, began, last: Arc::default() }
    }

    fn elapsed(&self) -> u64 {
        let since = self.clock.monotonic().saturating_since(self.began);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn note(&self) {
        self.last.store(self.elapsed(), Ordering::Relaxed);
    }

    /// Whether the other side said nothing for longer than a living one ever does.
    pub(super) fn is_silent(&self) -> bool {
        let silent = self.elapsed().saturating_sub(self.last.load(Ordering::Relaxed));
        Duration::from_millis(silent) > SILENCE
    }
}

/// A byte stream that notes when something came.
pub(super) struct Listened<S> {
    io: S,
    heard: Heard,
}

impl<S: AsyncRead + Unpin> AsyncRead for Listened<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.heard.note();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listened<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// A connection under its streams, before it is driven.
pub(super) type Mux<S> = Connection<Compat<Listened<S>>>;

/// Puts streams over a connection. The server is yamux's client: it opens them.
pub(super) fn over<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    mode: Mode,
    clock: Arc<dyn Clock>,
) -> (Mux<S>, Heard) {
    let mut config = Config::default();
    // In this order: yamux wants room for every stream's window at each step.
    config.set_max_connection_receive_window(None);
    config.set_max_num_streams(YAMUX_STREAMS);
    config.set_max_connection_receive_window(Some(YAMUX_STREAMS * WINDOW));
    let heard = Heard::new(clock);
    let listened = Listened { io, heard: heard.clone() };
    (Connection::new(listened.compat(), config, mode), heard)
}

pub(super) fn stream(stream: yamux::Stream) -> MuxStream {
    stream.compat()
}
