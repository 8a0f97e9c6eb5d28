//! Many flow-controlled streams over the one byte stream: yamux, with the controller as the side that opens.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use futures::io::{AsyncRead as _, AsyncWrite as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use yamux::{Config, Connection, Mode};

use crate::error::{Error, ErrorKind, Result};
use crate::guard::{GuestTransport, HostTransport, Unread};
use crate::handshake::{self, Identity};
use crate::limits::{CONTENT_LENGTH, MAX_FRAME_LENGTH, MAX_STREAMS, STREAM_WINDOW};

// yamux forgets a dropped stream only when it next makes progress, and ends the connection when one too many is
// open: so it gets twice the number that the permits allow.
const YAMUX_STREAMS: usize = MAX_STREAMS * 2;

fn configuration() -> Config {
    let mut config = Config::default();
    config.set_max_num_streams(YAMUX_STREAMS);
    // No more than the windows with which streams begin: they do not grow.
    config.set_max_connection_receive_window(Some(YAMUX_STREAMS * STREAM_WINDOW));
    config.set_split_send_size((CONTENT_LENGTH + 64).min(MAX_FRAME_LENGTH));
    config
}

/// One stream of a session. A reader gets an end of file only when the peer finished writing; a stream that was
/// dropped by the peer, or with the session, is `ConnectionReset`.
#[derive(Debug)]
pub struct MuxStream {
    stream: yamux::Stream,
    write_closed: bool,
    host: Option<HostSide>,
}

// What keeps the controller's session alive and within its bounds while the stream lives.
#[derive(Debug)]
struct HostSide {
    session: Arc<HostSession>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        if let Some(host) = &self.host {
            host.session.unread.closed(self.stream.id().val());
        }
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let free = buffer.initialize_unfilled();
        if free.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut this.stream).poll_read(context, free);
        if let (Poll::Pending, Some(host)) = (&polled, &this.host) {
            host.session.unread.drained(this.stream.id().val());
        }
        let count = ready!(polled)?;
        if count == 0 && this.stream.is_closed() && !this.write_closed {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.write_closed {
            ready!(Pin::new(&mut this.stream).poll_close(context))?;
            this.write_closed = true;
        }
        Poll::Ready(Ok(()))
    }
}

type OpenReply = oneshot::Sender<Result<yamux::Stream>>;

/// The controller's side of an established session. Dropping the last handle and the last stream ends it.
#[derive(Debug)]
pub(crate) struct HostSession {
    opens: mpsc::Sender<OpenReply>,
    permits: Arc<Semaphore>,
    unread: Unread,
    driver: JoinHandle<()>,
}

impl Drop for HostSession {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl HostSession {
    pub(crate) fn start<S>(io: S, rest: BytesMut) -> Arc<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let unread = Unread::default();
        let connection =
            Connection::new(HostTransport::new(io, rest, unread.clone()), configuration(), Mode::Client);
        let (opens, requests) = mpsc::channel(MAX_STREAMS);
        let driver = tokio::spawn(drive_host(connection, requests, unread.clone()));
        Arc::new(Self { opens, permits: Arc::new(Semaphore::new(MAX_STREAMS)), unread, driver })
    }

    pub(crate) async fn open(self: &Arc<Self>) -> Result<MuxStream> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| {
            Error::new(ErrorKind::Exhausted, format!("{MAX_STREAMS} operations are open on this guest"))
        })?;
        let lost = || Error::new(ErrorKind::Unavailable, "the connection to the guest's agent is lost");
        let (reply, answer) = oneshot::channel();
        self.opens.send(reply).await.map_err(|_| lost())?;
        let stream = answer.await.map_err(|_| lost())??;
        let host = HostSide { session: self.clone(), _permit: permit };
        Ok(MuxStream { stream, write_closed: false, host: Some(host) })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.opens.is_closed()
    }

    pub(crate) async fn closed(&self) {
        self.opens.closed().await;
    }
}

async fn drive_host<S>(
    mut connection: Connection<HostTransport<S>>,
    mut requests: mpsc::Receiver<OpenReply>,
    unread: Unread,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(|context| {
        loop {
            match connection.poll_next_inbound(context) {
                // The transport refuses streams that the guest opens; should one come through, it is dropped.
                Poll::Ready(Some(Ok(_))) => continue,
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            match requests.poll_recv(context) {
                Poll::Ready(Some(reply)) => {
                    let opened = match connection.poll_new_outbound(context) {
                        Poll::Ready(Ok(stream)) => {
                            unread.opened(stream.id().val());
                            Ok(stream)
                        }
                        Poll::Ready(Err(error)) => Err(Error::new(
                            ErrorKind::Unavailable,
                            format!("the session with the guest ended: {error}"),
                        )),
                        Poll::Pending => {
                            Err(Error::new(ErrorKind::Unavailable, "the guest acknowledges no more streams"))
                        }
                    };
                    // Nobody waits any more: the stream is dropped here, which resets it.
                    if let Err(Ok(stream)) = reply.send(opened) {
                        unread.closed(stream.id().val());
                    }
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

/// Why a session ended on the agent's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEnd {
    /// The byte stream ended, or the controller said good-bye.
    Disconnected,
    /// The controller began a new session on the same byte stream.
    Superseded,
    /// The controller's bytes were no session any more; the next hello begins a new one.
    Broken(String),
}

/// The agent's side: one byte stream that carries one session after another.
#[derive(Debug)]
pub struct GuestChannel<S> {
    io: S,
    pending: BytesMut,
    identity: Identity,
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuestChannel<S> {
    /// A channel over `io` that accepts controllers which hold `identity`.
    pub fn new(io: S, identity: Identity) -> Self {
        Self { io, pending: BytesMut::new(), identity }
    }

    /// Waits, without limit, until a controller has proved itself; gives back the protocol's version. Controllers
    /// with another key are refused, noise is skipped.
    ///
    /// Errors: `Unavailable` when the byte stream ends; it may be tried again when the device has a peer anew.
    pub async fn accept(&mut self) -> Result<u16> {
        handshake::answer(&mut self.io, &mut self.pending, &self.identity).await
    }

    /// Serves an accepted session until it ends. `on_stream` gets each stream that the controller opens, and must
    /// not block.
    pub async fn serve(&mut self, mut on_stream: impl FnMut(MuxStream)) -> SessionEnd {
        let mut superseded = false;
        let transport = GuestTransport::new(&mut self.io, &mut self.pending, &self.identity, &mut superseded);
        let mut connection = Connection::new(transport, configuration(), Mode::Server);
        let end = loop {
            match poll_fn(|context| connection.poll_next_inbound(context)).await {
                Some(Ok(stream)) => on_stream(MuxStream { stream, write_closed: false, host: None }),
                Some(Err(yamux::ConnectionError::Io(error))) if is_disconnect(&error) => {
                    break SessionEnd::Disconnected;
                }
                Some(Err(error)) => break SessionEnd::Broken(error.to_string()),
                None => break SessionEnd::Disconnected,
            }
        };
        drop(connection);
        match superseded {
            true => SessionEnd::Superseded,
            false => end,
        }
    }

    /// Accepts from now on only controllers that hold this identity.
    pub fn set_identity(&mut self, identity: Identity) {
        self.identity = identity;
    }

    /// The byte stream itself, to wait for its next peer.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.io
    }
}

fn is_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}
