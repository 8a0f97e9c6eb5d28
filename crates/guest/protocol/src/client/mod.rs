//! The controller's side of the protocol: typed operations on one guest.
//!
//! Every method has a deadline until its first answer ([`ConnectOptions::operation_timeout`]). Errors that the
//! guest answers keep their kind; a connection lost before the request went out is `Unavailable`, and after it
//! `OutcomeUnknown` where the operation changes something; a guest that breaks the protocol is `Corrupt`.

mod files;
mod processes;

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

pub use files::{FileReader, FileWriter};
pub use processes::{EventStream, ProcessEvent, ProcessInput, ProcessOutput, ProcessStream};

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{Frame, FrameKind, read_frame, write_json};
use crate::handshake::{self, Identity};
use crate::limits::OPERATION_TIMEOUT;
use crate::message::{Done, Info, Operation, RestoredRequest, SetClockRequest, ShutdownRequest, TcpRequest};
use crate::mux::{HostSession, MuxStream};

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct ConnectOptions {
    /// From the first hello to an established session; a guest that still boots counts too.
    pub handshake_timeout: Duration,
    /// From a request to its answer, and from each piece of a transfer to the next.
    pub operation_timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { handshake_timeout: OPERATION_TIMEOUT, operation_timeout: OPERATION_TIMEOUT }
    }
}

/// A session with the agent of one guest. Clones share it; it ends when the last clone and the last stream of it
/// are dropped, or when the guest does.
#[derive(Debug, Clone)]
pub struct AgentClient {
    session: Arc<HostSession>,
    version: u16,
    timeout: Duration,
}

impl AgentClient {
    /// Opens a session over any byte stream, which may still carry what an earlier session left. Must be called
    /// within a tokio runtime.
    ///
    /// Errors: `Unavailable` when no agent answers in time, `PermissionDenied` when it is another incarnation's,
    /// `NotSupported` without a common version, `Corrupt` for endless noise.
    pub async fn connect<S>(mut io: S, identity: &Identity, options: ConnectOptions) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (version, rest) = handshake::initiate(&mut io, identity, options.handshake_timeout).await?;
        Ok(Self { session: HostSession::start(io, rest), version, timeout: options.operation_timeout })
    }

    /// The protocol version of this session.
    #[must_use]
    pub fn protocol_version(&self) -> u16 {
        self.version
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.session.is_closed()
    }

    /// Waits until the session has ended.
    pub async fn closed(&self) {
        self.session.closed().await;
    }

    /// What the guest is. Its answer is the sign that the guest is up.
    pub async fn info(&self) -> Result<Info> {
        self.call(&Operation::Info).await
    }

    /// Connects to a TCP port of the guest's loopback interface; the stream given back is the connection.
    ///
    /// Errors: `Unavailable` when nothing listens there.
    pub async fn tcp(&self, port: u16) -> Result<MuxStream> {
        let (Done {}, stream) = self.start(&Operation::Tcp(TcpRequest { port })).await?;
        Ok(stream)
    }

    /// Sets the guest's wall clock to this many milliseconds since 1970.
    pub async fn set_clock(&self, epoch_ms: u64) -> Result<()> {
        self.done(&Operation::SetClock(SetClockRequest { epoch_ms })).await
    }

    /// Has the guest write out what its file systems hold back.
    pub async fn flush(&self) -> Result<()> {
        self.done(&Operation::Flush).await
    }

    /// Tells a guest that was restored from a snapshot what it is from now on. The session ends after the answer; the next one is opened with
    /// the new identity.
    pub async fn restored(&self, request: RestoredRequest) -> Result<()> {
        self.done(&Operation::Restored(Box::new(request))).await
    }

    /// Has the guest end its processes (SIGTERM, then SIGKILL after `grace`) and then itself. It answers at once;
    /// the session ends with the VM. A second call may only shorten the grace.
    pub async fn shutdown(&self, grace: Duration) -> Result<()> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.done(&Operation::Shutdown(ShutdownRequest { grace_ms })).await
    }

    async fn done(&self, operation: &Operation) -> Result<()> {
        let Done {} = self.call(operation).await?;
        Ok(())
    }

    async fn call<T: DeserializeOwned>(&self, operation: &Operation) -> Result<T> {
        let (answer, _stream) = self.start(operation).await?;
        Ok(answer)
    }

    async fn start<T: DeserializeOwned>(&self, operation: &Operation) -> Result<(T, MuxStream)> {
        self.start_within(operation, Some(self.timeout)).await
    }

    async fn start_within<T: DeserializeOwned>(
        &self,
        operation: &Operation,
        limit: Option<Duration>,
    ) -> Result<(T, MuxStream)> {
        let stream = self.request(operation).await?;
        self.answer(operation, stream, limit).await
    }

    /// Opens a stream and writes the request.
    async fn request(&self, operation: &Operation) -> Result<MuxStream> {
        within(Some(self.timeout), "open a stream to the guest", async {
            let mut stream = self.session.open().await?;
            write_json(&mut stream, FrameKind::Request, operation).await?;
            Ok(stream)
        })
        .await
    }

    /// Reads the answer to a request.
    async fn answer<T: DeserializeOwned>(
        &self,
        operation: &Operation,
        mut stream: MuxStream,
        limit: Option<Duration>,
    ) -> Result<(T, MuxStream)> {
        let reading = within(limit, "wait for the guest's answer", async {
            Ok(read_frame(&mut stream).await?.ok_or_else(cut_off))
        });
        let frame = reading.await.and_then(|frame| frame).map_err(|error| match error.kind {
            ErrorKind::Unavailable if operation.changes_something() => {
                Error::new(ErrorKind::OutcomeUnknown, error.message)
            }
            _ => error,
        })?;
        Ok((response(&frame)?, stream))
    }
}

fn cut_off() -> Error {
    Error::new(ErrorKind::Unavailable, "the guest's agent ended the stream early")
}

fn response<T: DeserializeOwned>(frame: &Frame) -> Result<T> {
    match frame.kind {
        FrameKind::Response => frame.json(),
        _ => Err(failure(frame)),
    }
}

/// The error that a frame carries, or that it is itself.
fn failure(frame: &Frame) -> Error {
    match frame.kind {
        FrameKind::Failure => frame.json::<Error>().map_or_else(|error| error, Error::sanitized),
        _ => frame.unexpected(),
    }
}

async fn within<T>(limit: Option<Duration>, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(limit) = limit else { return work.await };
    match timeout_at(Instant::now() + limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{what}: nothing within {} ms", limit.as_millis()),
        )),
    }
}
