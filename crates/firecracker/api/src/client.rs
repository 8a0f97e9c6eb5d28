//! The client: one connection, deadlines, and what a lost answer means.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flames_clock::{Clock, ClockExt};
use flames_error::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use crate::connection::{Connection, Lost, Peer, request};
use crate::fault::refused;
use crate::operation::{GET_INSTANCE, Operation, Pace};
use crate::types::InstanceInfo;

/// The most bytes of a request's body that Firecracker takes, unless it was started with another limit
/// (`--http-api-max-payload-size`).
pub const DEFAULT_REQUEST_LIMIT: usize = 51_200;

/// How often a socket is looked for that is not there yet: from 1 ms (a jailed Firecracker answers after about 6) up to this.
const LONGEST_LOOK: Duration = Duration::from_millis(20);

/// How long a call may take, from asking for its turn to the end of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// A call that reads or sets a value: fractions of a millisecond, on a host that is not overwhelmed.
    pub quick: Duration,
    /// A start (kernel and ramdisk are read, memory is reserved), a pause or a resume (each virtual processor is waited for), a
    /// change of plugged memory.
    pub machine: Duration,
    /// Creating or loading a snapshot: the memory is written and synced, at the disk's speed.
    pub snapshot: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            quick: Duration::from_secs(5),
            machine: Duration::from_secs(30),
            snapshot: Duration::from_secs(300),
        }
    }
}

impl Deadlines {
    fn of(&self, pace: Pace) -> Duration {
        match pace {
            Pace::Quick => self.quick,
            Pace::Machine => self.machine,
            Pace::Snapshot => self.snapshot,
        }
    }
}

/// How a client behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How long calls may take.
    pub deadlines: Deadlines,
    /// The most bytes of a request's body.
    pub request_limit: usize,
    /// The user that must be the one that listens on the socket. Set it to the jail's: then no other process can pose as this VM's.
    pub expected_uid: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self { deadlines: Deadlines::default(), request_limit: DEFAULT_REQUEST_LIMIT, expected_uid: None }
    }
}

/// A client of one Firecracker.
///
/// It holds one connection (Firecracker's server allows ten), which is opened when it is first needed and anew when it broke. Calls
/// take turns, as they would in Firecracker itself.
///
/// Errors, in every call:
/// * `InvalidInput`: it was refused, and nothing says otherwise; or it is not even sent, being too long or having a path that is not
///   UTF-8.
/// * `Conflict`: it was refused because of the machine's state (not started, started already, not paused).
/// * `NotSupported`: it was refused because the version does not know the operation or a property.
/// * `NotFound`, `AlreadyExists`, `Exhausted`: it was refused, and the words say so.
/// * `Unavailable`: nobody answers, and nothing was changed. `PermissionDenied`: the socket is another's.
/// * `OutcomeUnknown`: the answer to something that changes the machine was lost, or did not come in time.
/// * `Corrupt`: the answer is not what this version reads. `Internal`: what answers is no Firecracker.
///
/// Firecracker's own words are in the error's message, for logs: they may hold paths of the host.
///
/// Cancel-safe: a call that is dropped closes the connection that it used, so no answer is ever taken for another's. What was sent
/// may still be done.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    options: Options,
    /// Taken by the call under way, which puts it back once it has read the whole answer.
    connection: Mutex<Option<Connection>>,
}

impl Client {
    /// A client for the socket, which need not be there yet.
    pub fn new(path: impl Into<PathBuf>, clock: Arc<dyn Clock>, options: Options) -> Self {
        Self { path: path.into(), clock, options, connection: Mutex::new(None) }
    }

    /// A client that is connected, with default options.
    ///
    /// Errors: `Unavailable` when nobody listens; `PermissionDenied`, `InvalidInput` when that is no socket that we may use.
    pub async fn connect(path: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Result<Self> {
        let client = Self::new(path, clock, Options::default());
        client.peer().await?;
        Ok(client)
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who listens on the socket; connects when there is no connection.
    pub async fn peer(&self) -> Result<Peer> {
        let work = async {
            let mut slot = self.connection.lock().await;
            let connection = match slot.take().filter(Connection::is_usable) {
                Some(kept) => kept,
                None => self.open("firecracker.connect").await?,
            };
            Ok(slot.insert(connection).peer())
        };
        match self.clock.timeout(self.options.deadlines.quick, work).await {
            Ok(outcome) => outcome,
            Err(late) => Err(Error::unavailable("firecracker.connect", late.to_string())),
        }
    }

    /// Waits until Firecracker answers: for one that was just spawned. `limit` bounds the waiting, whatever the deadlines.
    ///
    /// Errors: those of the last try, `Unavailable` when the limit passed; at once what waiting does not mend.
    pub async fn wait_until_serving(&self, limit: Duration) -> Result<InstanceInfo> {
        let mut last = None;
        let work = async {
            let mut pause = Duration::from_millis(1);
            loop {
                match self.instance_info().await {
                    Err(error) if error.kind() == ErrorKind::Unavailable => last = Some(error),
                    outcome => return outcome,
                }
                self.clock.sleep(pause).await;
                pause = (pause * 2).min(LONGEST_LOOK);
            }
        };
        let outcome = self.clock.timeout(limit, work).await;
        match (outcome, last) {
            (Ok(outcome), _) => outcome,
            (Err(late), Some(last)) => Err(last.with_context("waited", format!("{:?}", late.after))),
            (Err(late), None) => Err(Error::unavailable(GET_INSTANCE.name, late.to_string())),
        }
    }

    async fn open(&self, operation: &'static str) -> Result<Connection> {
        Connection::open(&self.path, self.options.expected_uid, operation)
            .await
            .map_err(|error| error.with_context("socket", self.path.display()))
    }

    /// Sends a value and expects no answer but success.
    pub(crate) async fn send<T: Serialize>(
        &self,
        operation: &'static Operation,
        path: &str,
        value: &T,
    ) -> Result<()> {
        let body = serde_json::to_vec(value).map_err(|error| {
            Error::invalid(operation.name, "path", "A path of a machine must be valid UTF-8.")
                .with_source(error)
        })?;
        if body.len() > self.options.request_limit {
            // The server would refuse it by its length and then read it as further requests.
            return Err(Error::invalid(
                operation.name,
                "body",
                format!(
                    "This is more than Firecracker takes at once: {} of {} bytes.",
                    body.len(),
                    self.options.request_limit
                ),
            ));
        }
        self.call(operation, path, body.into()).await.map(drop)
    }

    /// Asks without sending anything, and expects no answer but success.
    pub(crate) async fn command(&self, operation: &'static Operation, path: &str) -> Result<()> {
        self.call(operation, path, Bytes::new()).await.map(drop)
    }

    /// Reads a value.
    pub(crate) async fn read<T: DeserializeOwned>(&self, operation: &'static Operation) -> Result<T> {
        let answer = self.call(operation, operation.path, Bytes::new()).await?;
        serde_json::from_slice(&answer).map_err(|error| {
            Error::new(ErrorKind::Corrupt, operation.name, "Firecracker's answer cannot be read")
                .with_source(error)
        })
    }

    /// The body of a successful answer.
    async fn call(&self, operation: &'static Operation, path: &str, body: Bytes) -> Result<Bytes> {
        let sent = AtomicBool::new(false);
        let limit = self.options.deadlines.of(operation.pace);
        let outcome = self.clock.timeout(limit, self.take_turn(operation, path, body, &sent)).await;
        match outcome {
            Ok(outcome) => outcome,
            Err(late) if sent.load(Ordering::Relaxed) => {
                Err(unanswered(operation, format!("Firecracker did not answer: {late}")))
            }
            Err(late) => {
                Err(Error::unavailable(operation.name, format!("Firecracker could not be asked: {late}")))
            }
        }
    }

    async fn take_turn(
        &self,
        operation: &'static Operation,
        path: &str,
        body: Bytes,
        sent: &AtomicBool,
    ) -> Result<Bytes> {
        let mut slot = self.connection.lock().await;
        let mut connection = match slot.take().filter(Connection::is_usable) {
            Some(kept) => kept,
            None => self.open(operation.name).await?,
        };
        let request = request(operation.method.into(), path, body).map_err(|error| {
            Error::internal(operation.name, "the request cannot be made").with_source(error)
        })?;
        let outcome = connection.exchange(request, operation.answer_limit, sent).await;
        let answer = match outcome {
            Ok(answer) => answer,
            Err(Lost::BeforeSending(error)) => {
                return Err(Error::unavailable(operation.name, "Firecracker hung up").with_source(error));
            }
            Err(Lost::AfterSending(error)) => {
                return Err(unanswered(operation, "Firecracker's answer was lost").with_source(error));
            }
            Err(Lost::TooLong) => {
                let kind = if operation.mutates() { ErrorKind::OutcomeUnknown } else { ErrorKind::Internal };
                return Err(Error::new(kind, operation.name, "the answer is longer than Firecracker's are")
                    .with_context("limit", operation.answer_limit));
            }
        };
        let (outcome, is_reusable) = if answer.status.is_success() {
            (Ok(answer.body), true)
        } else {
            let (error, is_reusable) = refused(operation, answer.status, &answer.body);
            (Err(error), is_reusable)
        };
        if is_reusable && connection.is_usable() {
            *slot = Some(connection);
        }
        outcome
    }
}

/// No answer came to what was sent.
fn unanswered(operation: &Operation, message: impl Into<String>) -> Error {
    let kind = if operation.mutates() { ErrorKind::OutcomeUnknown } else { ErrorKind::Unavailable };
    Error::new(kind, operation.name, message)
}
