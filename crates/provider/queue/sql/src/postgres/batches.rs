//! Operations that come while others are under way share a statement.
//!
//! A few lanes lead to the server. While one is free, an operation takes it at once and goes alone, in its caller's own task. When none is,
//! it waits with the others, and the lane that gets free carries them all. So an idle queue waits for nobody, and a busy one pays one round
//! trip and one fsync for many operations.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use flames_clock::{Clock, ClockExt, Monotonic};
use futures::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::error::Failure;

/// How many operations may wait for a lane; further callers wait to hand theirs in.
const WAITING: usize = 1_024;
/// How many operations share a statement at most.
const BATCH: usize = 256;
/// How long after its deadline an operation under way still waits for what its carrier has to say of it.
const LAST_WORD: Duration = Duration::from_millis(100);

/// Carries operations to the server.
pub(crate) trait Carrier<I, O>: Send + Sync + 'static {
    /// One operation, before `until`.
    fn one(&self, item: I, until: Monotonic) -> BoxFuture<'_, Result<O, Failure>>;

    /// Many; answers in their order.
    fn many(&self, items: Vec<I>, until: Monotonic) -> BoxFuture<'_, Vec<Result<O, Failure>>>;

    /// Two operations of which this is the same may not go in one statement.
    fn clash(&self, item: &I) -> Option<u64>;
}

const WAITS: u8 = 0;
const TAKEN: u8 = 1;
const GIVEN_UP: u8 = 2;

struct Waiting<I, O> {
    item: I,
    until: Monotonic,
    /// [`WAITS`], then either [`TAKEN`] by a lane or [`GIVEN_UP`] by its caller, who then knows that it was not applied.
    fate: Arc<AtomicU8>,
    answer: oneshot::Sender<Result<O, Failure>>,
}

impl<I, O> Waiting<I, O> {
    fn take(&self) -> bool {
        !self.answer.is_closed() && decide(&self.fate, TAKEN)
    }
}

fn decide(fate: &AtomicU8, decision: u8) -> bool {
    fate.compare_exchange(WAITS, decision, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

/// Takes operations of one kind to their carrier.
pub(crate) struct Batches<I, O, C> {
    carrier: Arc<C>,
    clock: Arc<dyn Clock>,
    lanes: Arc<Semaphore>,
    waiting: mpsc::Sender<Waiting<I, O>>,
    dispatcher: JoinHandle<()>,
}

impl<I: Send + 'static, O: Send + 'static, C: Carrier<I, O>> Batches<I, O, C> {
    /// With so many lanes. Must be called within a tokio runtime.
    pub(crate) fn new(carrier: Arc<C>, clock: Arc<dyn Clock>, lanes: usize) -> Self {
        let lanes = Arc::new(Semaphore::new(lanes));
        let (waiting, receiver) = mpsc::channel(WAITING);
        let dispatcher = tokio::spawn(dispatch(Arc::clone(&carrier), Arc::clone(&lanes), receiver));
        Self { carrier, clock, lanes, waiting, dispatcher }
    }

    pub(crate) async fn run(&self, item: I, until: Monotonic) -> Result<O, Failure> {
        if let Ok(_lane) = self.lanes.try_acquire() {
            return self.carrier.one(item, until).await;
        }
        let left = || until.saturating_since(self.clock.monotonic());
        let (answer, outcome) = oneshot::channel();
        let fate = Arc::new(AtomicU8::new(WAITS));
        let waiting = Waiting { item, until, fate: Arc::clone(&fate), answer };
        match self.clock.timeout(left(), self.waiting.send(waiting)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Failure::Closed),
            Err(_) => return Err(Failure::Exhausted),
        }
        let mut outcome = outcome;
        match self.clock.timeout(left(), &mut outcome).await {
            Ok(Ok(outcome)) => return outcome,
            // The dispatcher was dropped with what it had.
            Ok(Err(_)) => return Err(Failure::Unknown(None)),
            Err(_) if decide(&fate, GIVEN_UP) => return Err(Failure::Exhausted),
            Err(_) => {}
        }
        match self.clock.timeout(LAST_WORD, outcome).await {
            Ok(Ok(outcome)) => outcome,
            _ => Err(Failure::Unknown(None)),
        }
    }
}

impl<I, O, C> Drop for Batches<I, O, C> {
    fn drop(&mut self) {
        self.dispatcher.abort();
    }
}

async fn dispatch<I: Send + 'static, O: Send + 'static, C: Carrier<I, O>>(
    carrier: Arc<C>,
    lanes: Arc<Semaphore>,
    mut waiting: mpsc::Receiver<Waiting<I, O>>,
) {
    // Dropped with this task, and its flights with it.
    let mut flights = JoinSet::new();
    // What clashed with the batch before.
    let mut left_over: Vec<Waiting<I, O>> = Vec::new();
    loop {
        let first = match left_over.pop() {
            Some(first) => first,
            None => match waiting.recv().await {
                Some(first) => first,
                None => break,
            },
        };
        let Ok(lane) = Arc::clone(&lanes).acquire_owned().await else { break };
        while flights.try_join_next().is_some() {}
        let (mut batch, mut carried) = (Vec::new(), HashSet::new());
        let mut candidates = std::mem::take(&mut left_over).into_iter();
        let mut next = Some(first);
        while let Some(candidate) = next {
            let clash = carrier.clash(&candidate.item);
            if clash.is_some_and(|clash| carried.contains(&clash)) {
                left_over.push(candidate);
            } else if candidate.take() {
                carried.extend(clash);
                batch.push(candidate);
            }
            if batch.len() >= BATCH || left_over.len() >= BATCH {
                break;
            }
            next = candidates.next().or_else(|| waiting.try_recv().ok());
        }
        left_over.extend(candidates);
        // The last is taken first.
        left_over.reverse();
        if !batch.is_empty() {
            let carrier = Arc::clone(&carrier);
            flights.spawn(async move {
                carry(&*carrier, batch).await;
                drop(lane);
            });
        }
    }
}

async fn carry<I, O, C: Carrier<I, O>>(carrier: &C, batch: Vec<Waiting<I, O>>) {
    let Some(until) = batch.iter().map(|waiting| waiting.until).min() else { return };
    let (items, answers): (Vec<I>, Vec<_>) =
        batch.into_iter().map(|waiting| (waiting.item, waiting.answer)).unzip();
    let outcomes = carrier.many(items, until).await;
    for (answer, outcome) in answers.into_iter().zip(outcomes) {
        // Nobody may be waiting any more.
        let _ = answer.send(outcome);
    }
}
