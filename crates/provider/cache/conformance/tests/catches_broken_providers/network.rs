//! A network, as far as a small cache needs one: how far each call comes before it breaks.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_cache_conformance::{Faults, async_trait};

/// The deadline of each call.
pub(crate) const DEADLINE: Duration = Duration::from_secs(1);
/// What a request takes, and an answer.
const MESSAGE: u64 = 200;

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

impl Network {
    fn state(&self) -> State {
        *self.0.lock().unwrap()
    }

    fn set(&self, state: State) {
        *self.0.lock().unwrap() = state;
    }

    pub(crate) fn is_fine(&self) -> bool {
        self.state() == State::Fine
    }

    /// Whether a call comes through, and if not, where it ends, after what time.
    pub(crate) async fn pass(&self) -> Result<(), Lost> {
        let (lost, waits) = match self.state() {
            State::Fine => return Ok(()),
            State::CutAfter(bytes) if bytes < MESSAGE => (Lost::Request, false),
            State::CutAfter(bytes) if bytes < 2 * MESSAGE => (Lost::Answer, false),
            State::CutAfter(_) => return Ok(()),
            State::Stalled => (Lost::Request, true),
            State::AnswersStalled => (Lost::Answer, true),
        };
        if waits {
            tokio::time::sleep(DEADLINE).await;
        }
        Err(lost)
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
