//! A client's calls, each over a connection of its own.

use std::time::Duration;

use flames_conformance_runner::{SimulatedConnection, SimulatedNetwork};
use flames_error::{Error, ErrorKind, Result};
use tokio::time::timeout;

/// The deadline of each call.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);
/// What a request or an answer takes beside a blob's bytes.
const ENVELOPE: u64 = 200;

/// Where a call broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// On the way there: nothing happened.
    Request,
    /// On the way back: it happened, and nobody told.
    Answer,
}

/// A connection, on which a call goes there and back.
#[derive(Debug)]
pub(crate) struct Connection {
    connection: SimulatedConnection,
    patience: Duration,
}

impl Connection {
    pub(crate) fn over(network: &SimulatedNetwork, waits_for_ever: bool) -> Self {
        let patience = if waits_for_ever { Duration::MAX } else { DEADLINE };
        Self { connection: network.connect(), patience }
    }

    pub(crate) async fn request(&mut self, body: usize) -> Result<(), Lost> {
        let sending = self.connection.send(ENVELOPE + body as u64);
        let sent = timeout(self.patience, sending).await;
        sent.is_ok_and(|sent| sent.is_ok()).then_some(()).ok_or(Lost::Request)
    }

    /// How many bytes of the answer's body arrive.
    pub(crate) async fn answer(&mut self, body: usize) -> Result<usize, Lost> {
        let receiving = self.connection.receive(ENVELOPE + body as u64);
        let arrived = match timeout(self.patience, receiving).await {
            Ok(Ok(())) => return Ok(body),
            Ok(Err(cut)) => cut.arrived.checked_sub(ENVELOPE),
            Err(_) => None,
        };
        arrived.and_then(|arrived| usize::try_from(arrived).ok()).ok_or(Lost::Answer)
    }
}

/// What a caller is told of a change that broke.
pub(crate) fn told(operation: &'static str, lost: Lost) -> Error {
    match lost {
        Lost::Request => Error::unavailable(operation, "the connection was lost"),
        Lost::Answer => Error::new(ErrorKind::OutcomeUnknown, operation, "the answer was lost"),
    }
}

/// What a reader is told.
pub(crate) fn reached<T>(operation: &'static str, outcome: std::result::Result<T, Lost>) -> Result<T> {
    outcome.map_err(|_| told(operation, Lost::Request))
}
