//! A network, as far as a small store needs one: how far each call comes before it breaks.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_blob_conformance::{Faults, async_trait};
use flames_error::{Error, ErrorKind, Result};

/// The deadline of each call.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);
/// What a request or an answer takes beside a blob's bytes.
const ENVELOPE: u64 = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Fine,
    CutAfter(u64),
    Stalled,
    AnswersStalled,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Network(Arc<Mutex<State>>);

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
    network: Network,
    passed: u64,
    waits_for_ever: bool,
}

impl Network {
    pub(crate) fn connect(&self, waits_for_ever: bool) -> Connection {
        Connection { network: self.clone(), passed: 0, waits_for_ever }
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.state() == State::Stalled
    }

    fn state(&self) -> State {
        *self.0.lock().unwrap()
    }

    fn set(&self, state: State) {
        *self.0.lock().unwrap() = state;
    }
}

impl Connection {
    async fn deadline(&self) {
        if self.waits_for_ever {
            std::future::pending().await
        }
        tokio::time::sleep(DEADLINE).await;
    }

    fn room(&self) -> u64 {
        match self.network.state() {
            State::CutAfter(bytes) => bytes.saturating_sub(self.passed),
            _ => u64::MAX,
        }
    }

    pub(crate) async fn request(&mut self, body: usize) -> Result<(), Lost> {
        if self.network.state() == State::Stalled {
            self.deadline().await;
            return Err(Lost::Request);
        }
        let room = self.room();
        self.passed += ENVELOPE + body as u64;
        if room < ENVELOPE + body as u64 { Err(Lost::Request) } else { Ok(()) }
    }

    /// How many bytes of the answer's body arrive.
    pub(crate) async fn answer(&mut self, body: usize) -> Result<usize, Lost> {
        if matches!(self.network.state(), State::Stalled | State::AnswersStalled) {
            self.deadline().await;
            return Err(Lost::Answer);
        }
        let Some(room) = self.room().checked_sub(ENVELOPE) else { return Err(Lost::Answer) };
        self.passed += ENVELOPE + body as u64;
        Ok(usize::try_from(room).unwrap_or(usize::MAX).min(body))
    }
}

#[async_trait]
impl Faults for Network {
    async fn cut_connections(&self) {}
    async fn cut_after(&self, bytes: u64) {
        self.set(State::CutAfter(bytes));
    }
    async fn stall(&self) {
        self.set(State::Stalled);
    }
    async fn stall_answers(&self) {
        self.set(State::AnswersStalled);
    }
    async fn heal(&self) {
        self.set(State::Fine);
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
