//! One HTTP connection to Firecracker's socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use flames_error::{Error, ErrorKind};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// The most bytes of an answer's head. Firecracker's has about 150.
const HEAD_LIMIT: usize = 16 * 1024;

/// Who listens on the socket, as the kernel tells it: the process that called `listen` (`SO_PEERCRED`, unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its process id in our namespace; none when it has none there.
    pub pid: Option<i32>,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Why there was no answer.
#[derive(Debug)]
pub(crate) enum Lost {
    /// Nothing of the request was sent: the connection had been closed.
    BeforeSending(hyper::Error),
    /// The request may have been read.
    AfterSending(hyper::Error),
    /// The answer is longer than allowed.
    TooLong,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// A connection with no request under way. Dropping it closes the socket.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    /// The socket itself, to see what the driver has not been told of yet.
    socket: OwnedFd,
    peer: Peer,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects to the very socket that the path names: what a jailed process puts in its place, a link to some other socket of the
    /// host, is not followed. The path may have any length.
    ///
    /// Errors: `Unavailable` when there is none or nobody listens; `PermissionDenied` when we may not connect, or when the listener
    /// is not the user that was asked for; `InvalidInput` when it is no socket.
    pub(crate) async fn open(
        path: &Path,
        expected_uid: Option<u32>,
        operation: &'static str,
    ) -> Result<Self, Error> {
        let failed = |error: io::Error| {
            let kind = match error.kind() {
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::Unavailable,
            };
            Error::new(kind, operation, "Firecracker's API cannot be reached").with_source(error)
        };
        let socket = open_socket(path).map_err(|error| failed(error.into()))?;
        let is_socket = rustix::fs::fstat(&socket)
            .map(|status| FileType::from_raw_mode(status.st_mode) == FileType::Socket)
            .map_err(|error| failed(error.into()))?;
        if !is_socket {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                operation,
                "what should be Firecracker's API socket is no socket",
            ));
        }
        // A handle of procfs leads to the inode, whatever has the name by now; and is short enough for any socket address.
        let handle = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let stream = UnixStream::connect(handle).await.map_err(failed)?;
        let credentials = stream.peer_cred().map_err(failed)?;
        let watched = stream.as_fd().try_clone_to_owned().map_err(failed)?;
        let peer = Peer { pid: credentials.pid(), uid: credentials.uid(), gid: credentials.gid() };
        if expected_uid.is_some_and(|expected| expected != peer.uid) {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                operation,
                "another user than this machine's listens on its API socket",
            )
            .with_context("uid", peer.uid));
        }
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(HEAD_LIMIT)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(io::Error::other(error)))?;
        let driver = tokio::spawn(async move {
            // How it ended reaches whoever waits for an answer.
            let _ = driver.await;
        });
        Ok(Self { sender, driver, socket: watched, peer })
    }

    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    /// Whether a request can be sent: the other side has neither hung up nor said anything that nobody asked for.
    pub(crate) fn is_usable(&self) -> bool {
        let mut watched =
            [PollFd::new(&self.socket, PollFlags::IN | PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        !self.sender.is_closed() && matches!(poll(&mut watched, Some(&at_once)), Ok(0))
    }

    /// Sends the request and reads the answer to its end. `sent` is set before a byte can have left.
    ///
    /// A call that is dropped, or fails, leaves the connection unusable: drop it.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
        answer_limit: usize,
        sent: &AtomicBool,
    ) -> Result<Answer, Lost> {
        self.sender.ready().await.map_err(Lost::BeforeSending)?;
        sent.store(true, Ordering::Relaxed);
        let response = match self.sender.try_send_request(request).await {
            Ok(response) => response,
            Err(mut failed) => {
                // A request that comes back whole was never handed to the socket.
                let was_sent = failed.take_message().is_none();
                sent.store(was_sent, Ordering::Relaxed);
                let error = failed.into_error();
                return Err(if was_sent { Lost::AfterSending(error) } else { Lost::BeforeSending(error) });
            }
        };
        let status = response.status();
        let mut body = response.into_body();
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(Lost::AfterSending)?.into_data() else { continue };
            if read.len() + data.len() > answer_limit {
                return Err(Lost::TooLong);
            }
            read.extend_from_slice(&data);
        }
        Ok(Answer { status, body: read.freeze() })
    }
}

/// A request as Firecracker's server takes it: a body is told by its length, never in chunks; a GET or DELETE has none.
pub(crate) fn request(
    method: http::Method,
    path: &str,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, http::Error> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
}

fn open_socket(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}
