//! The server's end of links.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use flames_clock::{Clock, ClockExt};
use flames_error::{Error, ErrorKind, Result};
use flames_model::ControllerId;
use flames_service::{HostLinks, LinkChannel, LinkStream, LinkTarget, codes};
use flames_wire::host::{LinkAnswer, LinkOpen, MAX_LINK_OPEN};
use flames_wire::stream::StreamFrame;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use yamux::Mode;

use super::mux::{self, Heard, Mux, MuxStream};
use super::pump::{Inward, Messages};
use super::{MAX_STREAMS, OPEN_WITHIN, PING_EVERY};
use crate::request::stream_request;

const OPERATION: &str = "links.open";
/// How long a stream waits for a controller that has no link: one whose server was just started comes back within a moment.
const LINK_WITHIN: Duration = Duration::from_secs(3);
/// How long a client that does not read is waited for, to tell it that its stream was cut.
const FAREWELL_WITHIN: Duration = Duration::from_secs(5);

type Opening = oneshot::Sender<Result<MuxStream>>;

/// A controller's link, as those who open streams know it.
#[derive(Debug, Clone)]
struct Link {
    number: u64,
    openings: mpsc::Sender<Opening>,
    places: Arc<Semaphore>,
    end: CancellationToken,
}

#[derive(Debug, Default)]
struct Links {
    by_controller: BTreeMap<ControllerId, Link>,
    made: u64,
}

#[derive(Debug)]
struct Inner {
    links: Mutex<Links>,
    /// Moves with each link that is made.
    news: watch::Sender<u64>,
    tasks: TaskTracker,
    end: CancellationToken,
    clock: Arc<dyn Clock>,
}

/// Links to controllers that dialled this server. Clones share their links.
///
/// A controller has one link to a server: a newer one takes the place of the older. Each stream and each link is a task, which ends with
/// [`NetworkLinks::shutdown`].
#[derive(Debug, Clone)]
pub struct NetworkLinks {
    inner: Arc<Inner>,
}

impl NetworkLinks {
    /// Links without any controller yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let inner = Inner {
            links: Mutex::default(),
            news: watch::Sender::new(0),
            tasks: TaskTracker::new(),
            end: CancellationToken::new(),
            clock,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Takes the link of a controller that has proved itself, once its connection is there. Returns at once.
    pub fn accept<S>(
        &self,
        controller: ControllerId,
        connection: impl Future<Output = Result<S>> + Send + 'static,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        self.inner.tasks.spawn(async move {
            let end = inner.end.child_token();
            let number = inner.number();
            let linked = async {
                let late = |late| {
                    Error::unavailable("links.accept", "no connection within the deadline").with_source(late)
                };
                let io = inner.clock.timeout(OPEN_WITHIN, connection).await.map_err(late)??;
                inner.serve(controller, number, io, &end).await
            };
            let ended = tokio::select! {
                biased;
                () = end.cancelled() => "it is replaced, or the server ends".to_owned(),
                ended = linked => match ended {
                    Ok(why) => why.to_owned(),
                    Err(error) => error.to_string(),
                },
            };
            inner.forget(controller, number);
            tracing::info!(%controller, ended, "a link ended");
        });
    }

    /// Which controllers have a link now.
    pub fn connected(&self) -> Vec<ControllerId> {
        self.inner.lock().by_controller.keys().copied().collect()
    }

    /// Ends all links and streams, and returns once they have ended.
    pub async fn shutdown(&self) {
        self.inner.end.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// The link of a controller; waits a moment for one that is being made.
    async fn link(&self, controller: ControllerId) -> Result<Link> {
        let mut news = self.inner.news.subscribe();
        let found = async {
            loop {
                news.borrow_and_update();
                let link = self.inner.lock().by_controller.get(&controller).cloned();
                if let Some(link) = link.filter(|link| !link.openings.is_closed()) {
                    return link;
                }
                if news.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        self.inner.clock.timeout(LINK_WITHIN, found).await.map_err(|_| not_connected(controller))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a link that is to be made.
    fn number(&self) -> u64 {
        let mut links = self.lock();
        links.made += 1;
        links.made
    }

    async fn serve<S>(
        &self,
        controller: ControllerId,
        number: u64,
        io: S,
        end: &CancellationToken,
    ) -> Result<&'static str>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (connection, heard) = mux::over(io, Mode::Client, Arc::clone(&self.clock));
        let (openings, wanted) = mpsc::channel(MAX_STREAMS);
        let places = Arc::new(Semaphore::new(MAX_STREAMS));
        let link = Link { number, openings, places, end: end.clone() };
        let replaced = self.lock().by_controller.insert(controller, link);
        if let Some(replaced) = replaced {
            replaced.end.cancel();
        }
        self.news.send_modify(|news| *news += 1);
        tracing::info!(%controller, "a link is made");
        Ok(drive(connection, wanted, heard, self.clock.as_ref()).await)
    }

    /// Takes a link off the table, unless a newer one stands there.
    fn forget(&self, controller: ControllerId, number: u64) {
        let mut links = self.lock();
        if links.by_controller.get(&controller).is_some_and(|link| link.number == number) {
            links.by_controller.remove(&controller);
        }
    }
}

/// Drives a connection, and opens streams over it, until it ends; answers why it did.
async fn drive<S>(
    mut connection: Mux<S>,
    mut wanted: mpsc::Receiver<Opening>,
    heard: Heard,
    clock: &dyn Clock,
) -> &'static str
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let turn = poll_fn(|context| {
            loop {
                match connection.poll_next_inbound(context) {
                    // Only servers open streams. The stream is dropped, which resets it.
                    Poll::Ready(Some(Ok(_))) => continue,
                    Poll::Ready(Some(Err(error))) => {
                        tracing::debug!(%error, "a link broke");
                        return Poll::Ready("it broke");
                    }
                    Poll::Ready(None) => return Poll::Ready("the controller ended it"),
                    Poll::Pending => {}
                }
                match wanted.poll_recv(context) {
                    Poll::Ready(Some(opening)) => {
                        let opened = match connection.poll_new_outbound(context) {
                            Poll::Ready(Ok(stream)) => Ok(mux::stream(stream)),
                            Poll::Ready(Err(error)) => {
                                Err(Error::unavailable(OPERATION, "the link broke").with_source(error))
                            }
                            Poll::Pending => Err(Error::unavailable(
                                OPERATION,
                                "the controller acknowledges no more streams",
                            )),
                        };
                        // When nobody waits any more the stream is dropped here, which resets it.
                        let _ = opening.send(opened);
                    }
                    Poll::Ready(None) => return Poll::Ready("nobody wants it any more"),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        tokio::select! {
            ended = turn => return ended,
            // The connection is polled anew, which sends a ping when one is due.
            () = clock.sleep(PING_EVERY) => {
                if heard.is_silent() {
                    return "the controller fell silent";
                }
            }
        }
    }
}

fn not_connected(controller: ControllerId) -> Error {
    Error::unavailable(OPERATION, "the controller has no link")
        .with_resource("controller", controller.to_string())
        .with_code(codes::HOST_UNREACHABLE)
        .with_retry_after(Duration::from_secs(1))
        .with_user_message(format!(
            "The host {controller} is not connected to this server right now. Its VMs may well run on. Try again, and see `flames controllers`."
        ))
}

#[async_trait]
impl HostLinks for NetworkLinks {
    async fn open(&self, target: LinkTarget, stream: LinkStream) -> Result<LinkChannel> {
        let controller = target.controller;
        let link = self.link(controller).await?;
        let place = Arc::clone(&link.places).try_acquire_owned().map_err(|_| {
            Error::new(ErrorKind::Exhausted, OPERATION, "too many streams are open over one link")
                .with_user_message(
                    "Too many streams to guests of this host are open. Close some, and try again.",
                )
        })?;
        let open = LinkOpen { incarnation: target.incarnation, request: stream_request(stream) };
        let open = serde_json::to_vec(&open).map_err(|error| {
            Error::internal(OPERATION, "a request cannot be written as JSON").with_source(error)
        })?;
        if open.len() > MAX_LINK_OPEN {
            return Err(Error::new(ErrorKind::InvalidInput, OPERATION, "the request is too long")
                .with_code(codes::BODY_TOO_LARGE)
                .with_user_message("Command, environment and names are at most 1 MiB together."));
        }
        let lost = move || not_connected(controller);
        let opening = async {
            let (reply, opened) = oneshot::channel();
            link.openings.send(reply).await.map_err(|_| lost())?;
            let mut messages = Messages::new(opened.await.map_err(|_| lost())??);
            messages.send(open.into()).await.map_err(|error| lost().with_source(error))?;
            let answer = messages.next().await.map_err(|error| lost().with_source(error))?;
            match serde_json::from_slice::<LinkAnswer>(&answer) {
                Ok(LinkAnswer::Accepted) => Ok(messages),
                Ok(LinkAnswer::Refused(problem)) => Err(problem.into_error(OPERATION)),
                Err(error) => {
                    Err(Error::new(ErrorKind::Corrupt, OPERATION, "the controller's answer is none")
                        .with_source(error))
                }
            }
        };
        let messages = self.inner.clock.timeout(OPEN_WITHIN, opening).await.map_err(|_| {
            Error::unavailable(OPERATION, "the controller did not accept the stream in time")
                .with_resource("controller", controller.to_string())
        })??;
        let (ours, theirs) = LinkChannel::pair();
        let carrying = carry(messages, theirs, Arc::clone(&self.inner), controller, place);
        self.inner.tasks.spawn(carrying);
        Ok(ours)
    }
}

/// Carries a stream to its end. Whoever holds its other end is told when it is cut off.
async fn carry(
    messages: Messages<MuxStream>,
    channel: LinkChannel,
    inner: Arc<Inner>,
    controller: ControllerId,
    _place: OwnedSemaphorePermit,
) {
    let mut to = Some(channel.sender);
    let inward = tokio::select! {
        biased;
        () = inner.end.cancelled() => Inward::Cut,
        inward = messages.carry(&mut to, channel.receiver) => inward,
    };
    let (Inward::Cut, Some(to)) = (inward, to) else { return };
    let error = Error::unavailable("links.carry", "the link broke")
        .with_code(codes::HOST_UNREACHABLE)
        .with_resource("controller", controller.to_string())
        .with_user_message(
            "The connection to the VM's host broke. The VM may well run on: try again, and see `flames controllers`.",
        );
    if let Ok(frame) = StreamFrame::error(&error).encode() {
        // A client that is gone misses nothing.
        let _ = inner.clock.timeout(FAREWELL_WITHIN, to.send(frame)).await;
    }
}
