//! A client of a store that is a server, and the network between, which can be broken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use flames_conformance_runner::{SimulatedConnection, SimulatedNetwork};
use flames_error::{Error, ErrorKind, Result};
use flames_state::{
    Commit, Committed, Entry, HintStream, Key, KeyRange, LogEntry, Page, PageRequest, Position, StateStore,
    Version,
};
use flames_state_conformance::async_trait;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{BrokenStore, Fault};

const DEADLINE: Duration = Duration::from_secs(1);
const CONNECTIONS: u32 = 4;
/// What a connection costs before its first request, and the frame around each message.
const GREETING: u64 = 60;
const FRAME: u64 = 30;

/// How a call was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    NoConnection,
    NotSent,
    NoAnswer,
    NotSentInTime,
    NoAnswerInTime,
}

impl Lost {
    fn may_be_applied(self) -> bool {
        matches!(self, Self::NoAnswer | Self::NoAnswerInTime)
    }
}

/// The client: right unless it is told to be wrong in one way.
#[derive(Debug)]
pub(crate) struct Networked {
    fault: Fault,
    pub(crate) server: Arc<BrokenStore>,
    pub(crate) network: SimulatedNetwork,
    connections: Arc<Semaphore>,
    idle: Mutex<Vec<SimulatedConnection>>,
    dead: AtomicBool,
    /// Commits whose outcome was unknown.
    in_doubt: Mutex<Vec<Commit>>,
}

impl Networked {
    pub(crate) const DEADLINE: Duration = DEADLINE;

    pub(crate) fn new(fault: Fault) -> Self {
        Self {
            fault,
            server: Arc::new(BrokenStore::new(fault)),
            network: SimulatedNetwork::with_latency(Duration::from_millis(1)),
            connections: Arc::new(Semaphore::new(CONNECTIONS as usize)),
            idle: Mutex::default(),
            dead: AtomicBool::new(false),
            in_doubt: Mutex::default(),
        }
    }

    /// Every connection of the pool, for as long as it is held.
    pub(crate) async fn every_connection(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.connections).acquire_many_owned(CONNECTIONS).await.unwrap()
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn idle(&self) -> MutexGuard<'_, Vec<SimulatedConnection>> {
        self.idle.lock().unwrap()
    }

    /// Sends a request of so many bytes, has it served, and brings the answer back.
    async fn call<T>(
        &self,
        request: u64,
        serve: impl Future<Output = Result<T>>,
        answer: impl Fn(&T) -> u64,
    ) -> Result<Result<T>, Lost> {
        let forever = Duration::from_secs(100_000);
        let patience = if self.is(Fault::WaitsForeverForItsPool) { forever } else { DEADLINE };
        let Ok(permit) = tokio::time::timeout(patience, self.connections.acquire()).await else {
            return Err(Lost::NoConnection);
        };
        let _permit = permit.unwrap();
        let sent = AtomicBool::new(false);
        let work = async {
            let unsent = |_| Lost::NotSent;
            if self.dead.load(Ordering::SeqCst) {
                return Err(Lost::NotSent);
            }
            let kept = self.idle().pop();
            let mut connection = match kept {
                Some(connection) => connection,
                None => {
                    let mut connection = self.network.connect();
                    connection.send(GREETING).await.map_err(unsent)?;
                    connection.receive(GREETING).await.map_err(unsent)?;
                    connection
                }
            };
            connection.send(FRAME + request).await.map_err(unsent)?;
            sent.store(true, Ordering::SeqCst);
            let outcome = serve.await;
            let bytes = FRAME + outcome.as_ref().map_or(0, &answer);
            connection.receive(bytes).await.map_err(|_| Lost::NoAnswer)?;
            self.idle().push(connection);
            Ok(outcome)
        };
        let patience = if self.is(Fault::WaitsForever) { forever } else { DEADLINE };
        let answered = tokio::time::timeout(patience, work).await.unwrap_or_else(|_| {
            Err(if sent.load(Ordering::SeqCst) { Lost::NoAnswerInTime } else { Lost::NotSentInTime })
        });
        if answered.is_err() && self.is(Fault::NeverConnectsAgain) {
            self.dead.store(true, Ordering::SeqCst);
        }
        answered
    }

    fn unavailable(&self, lost: Lost) -> Error {
        match lost {
            Lost::NoConnection if !self.is(Fault::PoolIsUnavailable) => {
                Error::new(ErrorKind::Exhausted, "state", "every connection is in use")
            }
            _ => Error::unavailable("state", format!("{lost:?}")),
        }
    }

    async fn submit(&self, commit: &Commit) -> Result<Result<Committed>, Lost> {
        let mut submitted = commit.clone();
        if self.is(Fault::SubmittedAgainIsAppliedAgain) && self.in_doubt.lock().unwrap().contains(commit) {
            submitted.checks.clear();
        }
        let bytes = u64::try_from(commit.bytes()).unwrap();
        self.call(bytes, self.server.commit(&submitted), |_| 8).await
    }
}

#[async_trait]
impl StateStore for Networked {
    fn name(&self) -> &'static str {
        self.server.name()
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        let bytes = |found: &Option<Entry>| found.as_ref().map_or(0, |entry| entry.value.len() as u64);
        let answer = self.call(key.as_bytes().len() as u64, self.server.get(key), bytes).await;
        answer.unwrap_or_else(|lost| Err(self.unavailable(lost)))
    }

    async fn scan(&self, range: &KeyRange, page: PageRequest) -> Result<Page> {
        let bytes = |page: &Page| page.entries.iter().map(|entry| entry.value.len() as u64 + FRAME).sum();
        match self.call(FRAME, self.server.scan(range, page.clone()), bytes).await {
            Ok(answer) => answer,
            Err(Lost::NoAnswer) if self.is(Fault::CutPagesAreWhole) => {
                let mut cut = self.server.scan(range, page).await?;
                cut.entries.truncate(cut.entries.len() / 2);
                Ok(Page { next: None, ..cut })
            }
            Err(lost) => Err(self.unavailable(lost)),
        }
    }

    async fn commit(&self, commit: &Commit) -> Result<Committed> {
        let mut answer = self.submit(commit).await;
        if self.is(Fault::RetriesWithoutTelling) && matches!(answer, Err(Lost::NoAnswer)) {
            answer = self.submit(commit).await;
        }
        let lost = match answer {
            Ok(answer) => return answer,
            Err(lost) => lost,
        };
        let told_wrongly = match self.fault {
            Fault::CutAnswersAreUnavailable => lost == Lost::NoAnswer,
            Fault::LateAnswersAreUnavailable => lost == Lost::NoAnswerInTime,
            _ => false,
        };
        if self.is(Fault::CutRequestsAreSuccesses) && lost == Lost::NotSent {
            return Ok(Committed { version: Version::from_raw(424_242) });
        }
        if lost.may_be_applied() && !told_wrongly {
            self.in_doubt.lock().unwrap().push(commit.clone());
            return Err(Error::new(ErrorKind::OutcomeUnknown, "state.commit", format!("{lost:?}")));
        }
        Err(self.unavailable(lost))
    }

    async fn read_log(&self, log: &Key, after: Position, limit: usize) -> Result<Vec<LogEntry>> {
        let bytes = |read: &Vec<LogEntry>| read.iter().map(|entry| entry.payload.len() as u64 + FRAME).sum();
        let answer = self.call(FRAME, self.server.read_log(log, after, limit), bytes).await;
        answer.unwrap_or_else(|lost| Err(self.unavailable(lost)))
    }

    async fn trim_log(&self, log: &Key, through: Position) -> Result<()> {
        match self.call(FRAME, self.server.trim_log(log, through), |()| 0).await {
            Ok(answer) => answer,
            Err(lost) if lost.may_be_applied() => {
                Err(Error::new(ErrorKind::OutcomeUnknown, "state.trim_log", format!("{lost:?}")))
            }
            Err(lost) => Err(self.unavailable(lost)),
        }
    }

    async fn changes(&self, prefix: &Key) -> Result<HintStream> {
        let hints = self.server.changes(prefix).await?;
        let silent = self.is(Fault::HintsDieInSilence);
        let hints = hints.take_until(self.network.next_cut());
        Ok(if silent { hints.chain(futures::stream::pending()).boxed() } else { hints.boxed() })
    }
}
