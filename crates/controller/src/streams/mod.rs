//! Streams to guests: the frames of `flames_client::wire::stream` on one side, the guest's agent and the host's logs on the other.
//!
//! A stream is refused when this controller does not have the incarnation. Its frames are bounded, and so is how many wait; it ends when
//! either side does.

mod files;
mod host;
mod process;
mod tcp;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flames_client::wire::stream::{StreamFrame, StreamRequest};
use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use flames_model::{Exit, IncarnationId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::guest::Guest;
use crate::shared::{Live, Shared};

/// How often a log or a guest that boots is looked at when nobody says that it changed: a hint that was missed costs this and no more.
const LOOK: Duration = Duration::from_secs(1);
/// How often a console is looked at for more. Its machine's monitor writes it, and tells nobody.
const CONSOLE_LOOK: Duration = Duration::from_millis(50);
/// How long a side that must send something may take.
const STALL: Duration = Duration::from_secs(60);

/// Serves streams to a controller's guests. Clones are the same.
#[derive(Debug, Clone)]
pub struct GuestStreams {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    closed: Arc<AtomicBool>,
}

/// A stream that was taken on.
#[derive(Debug)]
#[must_use = "a stream is served by `run`"]
pub struct AcceptedStream {
    shared: Arc<Shared>,
    id: IncarnationId,
    request: StreamRequest,
    _place: OwnedSemaphorePermit,
}

impl GuestStreams {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let places = Arc::new(Semaphore::new(shared.config.bounds.streams));
        Self { shared, places, closed: Arc::default() }
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Takes a stream on, or refuses it.
    ///
    /// Errors: `NotFound` when this controller does not have the incarnation; `Exhausted` when too many streams are open; `Unavailable`
    /// when the controller is being shut down.
    pub fn open(&self, incarnation: IncarnationId, request: StreamRequest) -> Result<AcceptedStream> {
        const OPERATION: &str = "controller.stream";
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::unavailable(OPERATION, "the controller is being shut down"));
        }
        if !self.shared.live().contains_key(&incarnation) {
            return Err(Error::not_found(OPERATION, "incarnation", incarnation.to_string())
                .with_user_message("The VM is not on this host (any more). Ask again."));
        }
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Error::new(ErrorKind::Exhausted, OPERATION, "too many streams are open").with_user_message(
                "Too many streams to guests of this host are open. Close some, and try again.",
            )
        })?;
        Ok(AcceptedStream { shared: Arc::clone(&self.shared), id: incarnation, request, _place: place })
    }
}

/// The side of a stream that leads to the client is gone: there is nobody to tell anything.
#[derive(Debug)]
pub(crate) struct ClientGone;

/// Why a stream ended before its end.
#[derive(Debug)]
pub(crate) enum Broken {
    ClientGone,
    Failed(Error),
}

impl From<ClientGone> for Broken {
    fn from(_: ClientGone) -> Self {
        Self::ClientGone
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The way to the client.
#[derive(Debug, Clone)]
pub(crate) struct ToClient(mpsc::Sender<Bytes>);

impl ToClient {
    /// Sends a frame, and waits while the client does not read.
    pub(crate) async fn send(&self, frame: StreamFrame) -> std::result::Result<(), Broken> {
        let frame = frame.encode()?;
        self.0.send(frame).await.map_err(|_| Broken::ClientGone)
    }
}

/// The way from the client.
#[derive(Debug)]
pub(crate) struct FromClient(mpsc::Receiver<Bytes>);

impl FromClient {
    /// The next frame. Cancel-safe.
    pub(crate) async fn next(&mut self) -> std::result::Result<StreamFrame, Broken> {
        let frame = self.0.recv().await.ok_or(ClientGone)?;
        Ok(StreamFrame::decode(frame)?)
    }

    /// Returns once the client is gone; what it says until then is not heard.
    pub(crate) async fn gone(&mut self) {
        while self.0.recv().await.is_some() {}
    }
}

impl AcceptedStream {
    /// Serves the stream until either side ends. Dropping it ends the stream; processes run on.
    pub async fn run(self, sender: mpsc::Sender<Bytes>, receiver: mpsc::Receiver<Bytes>) {
        let to_client = ToClient(sender);
        let mut from_client = FromClient(receiver);
        let served = Box::pin(self.serve(&to_client, &mut from_client)).await;
        if let Err(Broken::Failed(error)) = served {
            tracing::debug!(?error, incarnation = %self.id, "a stream ended early");
            // A client that is gone misses nothing.
            let telling = to_client.send(StreamFrame::error(&error));
            let _ = self.shared.clock.timeout(STALL, telling).await;
        }
    }

    async fn serve(&self, to: &ToClient, from: &mut FromClient) -> std::result::Result<(), Broken> {
        match &self.request {
            StreamRequest::Exec(request) => self.exec(request, to, from).await,
            StreamRequest::Attach { process, from: offset } => self.attach(process, *offset, to, from).await,
            StreamRequest::Files => self.files(to, from).await,
            StreamRequest::Processes => self.processes(to, from).await,
            StreamRequest::Tcp { port } => self.tcp(*port, to, from).await,
            StreamRequest::Logs { follow, since, tail } => {
                let logs = self.logs(*follow, *since, *tail, to);
                until_gone(logs, from).await
            }
            StreamRequest::Console { follow } => until_gone(self.console(*follow, to), from).await,
        }
    }

    fn live(&self) -> Option<Live> {
        self.shared.live().get(&self.id).cloned()
    }

    /// Hears of what changes from now on; to be had before looking, or what changes meanwhile is not heard. None: it is not here.
    fn changes(&self) -> Option<watch::Receiver<()>> {
        self.shared.live().get_mut(&self.id).map(Live::changes)
    }

    /// Returns when the incarnation or its log changed since `changes` was had, or after `most`.
    async fn changed(&self, changes: Option<watch::Receiver<()>>, most: Duration) {
        let Some(mut changes) = changes else { return };
        // Nobody to tell of changes any more is one; so is being late.
        let _ = self.shared.clock.timeout(most, changes.changed()).await;
    }

    /// How the run ended, when it has.
    fn exit(&self) -> Option<Exit> {
        self.live().and_then(|live| live.exit)
    }

    fn guest_now(&self) -> Option<Arc<dyn Guest>> {
        let live = self.live()?;
        live.guest.and_then(|view| view.borrow().guest.clone())
    }

    /// The guest's agent; waits for a session that is being made.
    async fn guest(&self) -> Result<Arc<dyn Guest>> {
        let waited = async {
            loop {
                let changes = self.changes();
                if let Some(guest) = self.guest_now() {
                    return Some(guest);
                }
                if self.live().is_none_or(|live| live.exit.is_some()) {
                    return None;
                }
                self.changed(changes, LOOK).await;
            }
        };
        let limit = self.shared.config.timings.guest_call;
        match self.shared.clock.timeout(limit, waited).await {
            Ok(Some(guest)) => Ok(guest),
            Ok(None) => Err(Error::new(ErrorKind::Conflict, "controller.stream", "the VM does not run")
                .with_code("VM_NOT_RUNNING")
                .with_user_message("The VM does not run any more.")),
            Err(late) => Err(Error::unavailable("controller.stream", "no session with the guest's agent")
                .with_code("HOST_UNREACHABLE")
                .with_user_message("The guest's agent does not answer right now. Try again.")
                .with_source(late)),
        }
    }

    /// One operation on the guest, with its deadline.
    async fn ask<T>(&self, operation: impl Future<Output = Result<T>> + Send) -> Result<T> {
        // The agent's client has a deadline of its own, of which a transfer may use more than one.
        self.shared.within("controller.guest", STALL, operation).await
    }

    /// The first frame that a client must send.
    async fn first(&self, from: &mut FromClient) -> std::result::Result<StreamFrame, Broken> {
        self.shared.clock.timeout(STALL, from.next()).await.map_err(|_| {
            Broken::Failed(Error::new(ErrorKind::InvalidInput, "controller.stream", "no request came"))
        })?
    }
}

/// A frame that does not belong into its stream.
fn unexpected() -> Error {
    Error::new(ErrorKind::InvalidInput, "controller.stream", "a frame does not belong into this stream")
        .with_user_message("The client sent a frame that does not belong into this stream.")
}

/// Serves until the client is gone.
async fn until_gone(
    serve: impl Future<Output = std::result::Result<(), Broken>>,
    from: &mut FromClient,
) -> std::result::Result<(), Broken> {
    tokio::select! {
        biased;
        served = serve => served,
        () = from.gone() => Ok(()),
    }
}
