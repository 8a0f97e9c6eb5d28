//! A right queue, made wrong in one way that shows only when many use it, at the limits, at a jump of the clock, or when it is opened again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flames_clock::{Clock, ClockExt, SimulatedClock, Timestamp};
use flames_error::{Error, ErrorKind, Result};
use flames_queue::{
    EnqueueOptions, Enqueued, Job, JobId, Lease, LeaseToken, MAX_LEASE, MAX_REASON_BYTES, MIN_LEASE,
    ParkedPage, Priority, Topic, TopicStats, WakeupStream, WorkQueue, WorkerId,
};
use flames_queue_conformance::async_trait;
use flames_queue_memory::MemoryQueue;
use futures::StreamExt;
use tokio::sync::mpsc;

/// The one way in which a [`Fragile`] queue is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragility {
    None,
    /// A dedupe key is looked up first and written down later.
    DedupeRaces,
    /// Of enqueues that go together, each is told the last one's job.
    IdsMixedUp,
    /// An ack sees that there is no signal, and deletes later.
    AckForgetsRacingSignal,
    /// Acks that overlap all see that the lease holds.
    SeveralAcksSucceed,
    /// An ack sees that the lease holds, and settles the job later, whoever has it then.
    AckChecksThenActs,
    /// A lease is told apart by its worker's name.
    FencedByWorkersName,
    /// A dequeue takes more than was asked, and hands the rest out later.
    Prefetches,
    /// An enqueue waits until a subscriber has room for its hint.
    HintsBlock,
    OneSubscriberOnly,
    ExtendOnlyLengthens,
    KeyForgottenByRequeue,
    BatchCapped,
    LeaseLimitsExclusive,
    NamesCut,
    TextCutAtNul,
    LongReasonsRefused,
    LastDayIsPast,
    /// What is delivered after a signal keeps the urgency of what was settled before.
    SignalKeepsOldPriority,
    LeasesByWallClock,
    /// A job is ready when the wall clock shows a time after its enqueue.
    ReadyByWallClock,
    JobsLostAtReopen,
    DelayLostAtReopen,
    LeasesLostAtReopen,
    SignalLostAtReopen,
}

#[derive(Debug, Default)]
struct Notes {
    known_keys: HashMap<String, JobId>,
    last_enqueued: Option<JobId>,
    /// By dedupe key: how many enqueues there were.
    signals: HashMap<String, usize>,
    /// Of each lease: its job, its end, its priority and its key.
    leases: HashMap<LeaseToken, (JobId, Timestamp, Priority, Option<String>)>,
    newest: HashMap<JobId, LeaseToken>,
    prefetched: VecDeque<Job>,
    blocking: Option<mpsc::Sender<()>>,
    subscribers: usize,
    requeued: HashSet<JobId>,
    forgotten_keys: HashSet<String>,
    enqueued_at: HashMap<JobId, Timestamp>,
    put_off: Vec<Bytes>,
    lost_signals: HashSet<String>,
}

#[derive(Debug)]
pub(crate) struct Fragile {
    flaw: Fragility,
    clock: Arc<SimulatedClock>,
    right: MemoryQueue,
    notes: Mutex<Notes>,
}

impl Fragile {
    pub(crate) fn new(flaw: Fragility, clock: Arc<SimulatedClock>) -> Self {
        let right = MemoryQueue::new(Arc::<SimulatedClock>::clone(&clock));
        Self { flaw, clock, right, notes: Mutex::default() }
    }

    fn is(&self, flaw: Fragility) -> bool {
        self.flaw == flaw
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap()
    }

    fn topic(&self, topic: &Topic) -> Topic {
        let cut = &topic.as_str()[..topic.as_str().len().min(64)];
        if self.is(Fragility::NamesCut) { Topic::new(cut).unwrap() } else { topic.clone() }
    }

    /// Whatever a time says, unless it is the last one.
    fn time(&self, time: Timestamp) -> Timestamp {
        let wraps = self.is(Fragility::LastDayIsPast) && time == Timestamp::MAX;
        if wraps { Timestamp::MIN } else { time }
    }

    fn token(&self, token: &LeaseToken) -> LeaseToken {
        if !self.is(Fragility::FencedByWorkersName) {
            return token.clone();
        }
        let job = token.as_raw().split('@').next().and_then(|id| JobId::new(id).ok());
        job.and_then(|job| self.notes().newest.get(&job).cloned()).unwrap_or_else(|| token.clone())
    }

    /// Takes and acknowledges what is ready: a signal that is lost.
    async fn lose_signal(&self) {
        let (topic, worker) = (Topic::new("vms").unwrap(), WorkerId::new("thief").unwrap());
        for job in self.right.dequeue(&topic, &worker, 1, MAX_LEASE).await.unwrap() {
            self.right.ack(&job.lease.token).await.unwrap();
        }
    }

    /// What a queue that is not durable in this one way does when it is opened again.
    pub(crate) async fn reopen(&self) {
        match self.flaw {
            Fragility::JobsLostAtReopen => self.right.forget_everything(),
            Fragility::DelayLostAtReopen => {
                let put_off = std::mem::take(&mut self.notes().put_off);
                for payload in put_off {
                    let topic = Topic::new("vms").unwrap();
                    self.right.enqueue(&topic, payload, EnqueueOptions::default()).await.unwrap();
                }
            }
            Fragility::LeasesLostAtReopen => {
                let leases: Vec<LeaseToken> = self.notes().leases.keys().cloned().collect();
                for lease in leases {
                    let _ = self.right.nack(&lease, Timestamp::UNIX_EPOCH).await;
                }
            }
            Fragility::SignalLostAtReopen => {
                let mut notes = self.notes();
                let leased: HashSet<String> =
                    notes.leases.values().filter_map(|(.., key)| key.clone()).collect();
                notes.lost_signals = leased;
            }
            _ => {}
        }
    }
}

#[async_trait]
impl WorkQueue for Fragile {
    fn name(&self) -> &'static str {
        "fragile"
    }

    async fn enqueue(&self, topic: &Topic, payload: Bytes, mut options: EnqueueOptions) -> Result<Enqueued> {
        options.validate(&payload)?;
        options.not_before = options.not_before.map(|time| self.time(time));
        let key = options.dedupe_key.clone();
        if let Some(key) = &key {
            *self.notes().signals.entry(key.clone()).or_default() += 1;
            match self.flaw {
                Fragility::DedupeRaces => {
                    let known = self.notes().known_keys.get(key).cloned();
                    tokio::task::yield_now().await;
                    if let Some(job) = known {
                        return Ok(Enqueued { job, coalesced: true });
                    }
                    options.dedupe_key = None;
                }
                Fragility::TextCutAtNul => {
                    options.dedupe_key = Some(format!("{}.", key.split('\0').next().unwrap()));
                }
                Fragility::KeyForgottenByRequeue if self.notes().forgotten_keys.contains(key) => {
                    options.dedupe_key = None;
                }
                Fragility::SignalKeepsOldPriority => {
                    let notes = self.notes();
                    let leased = notes.newest.values().filter_map(|token| notes.leases.get(token));
                    let before =
                        leased.filter(|lease| lease.3.as_ref() == Some(key)).map(|lease| lease.2).max();
                    options.priority = before.map_or(options.priority, |before| before.max(options.priority));
                }
                _ => {}
            }
        }
        if options.not_before.is_some_and(|time| time > self.clock.now()) {
            self.notes().put_off.push(payload.clone());
        }
        let blocking = self.notes().blocking.clone();
        if let Some(hints) = blocking {
            let _ = hints.send(()).await;
        }
        let mut enqueued = self.right.enqueue(&self.topic(topic), payload, options).await?;
        {
            let mut notes = self.notes();
            notes.enqueued_at.insert(enqueued.job.clone(), self.clock.now());
            notes.last_enqueued = Some(enqueued.job.clone());
            if let Some(key) = key {
                notes.known_keys.insert(key, enqueued.job.clone());
            }
        }
        if self.is(Fragility::IdsMixedUp) {
            tokio::task::yield_now().await;
            enqueued.job = self.notes().last_enqueued.clone().unwrap();
        }
        Ok(enqueued)
    }

    async fn dequeue(
        &self,
        topic: &Topic,
        worker: &WorkerId,
        max: usize,
        lease: Duration,
    ) -> Result<Vec<Job>> {
        let topic = self.topic(topic);
        let (mut asked, mut length) = (max, lease);
        match self.flaw {
            Fragility::BatchCapped => asked = max.min(100),
            Fragility::LeaseLimitsExclusive if lease == MIN_LEASE || lease == MAX_LEASE => {
                return Err(Error::invalid("queue.dequeue", "lease", "A lease is between its limits."));
            }
            Fragility::Prefetches => {
                asked = max.saturating_mul(7).min(256);
                let mut notes = self.notes();
                if !notes.prefetched.is_empty() {
                    let count = max.min(notes.prefetched.len());
                    return Ok(notes.prefetched.drain(..count).collect());
                }
            }
            Fragility::LeasesByWallClock => {
                length = MAX_LEASE;
                let now = self.clock.now();
                let over: Vec<LeaseToken> = self
                    .notes()
                    .leases
                    .iter()
                    .filter(|(_, lease)| lease.1 <= now)
                    .map(|(token, _)| token.clone())
                    .collect();
                for token in over {
                    let _ = self.right.nack(&token, Timestamp::UNIX_EPOCH).await;
                }
            }
            _ => {}
        }
        let mut jobs = self.right.dequeue(&topic, worker, asked, length).await?;
        if self.is(Fragility::ReadyByWallClock) {
            let now = self.clock.now();
            let (hidden, seen): (Vec<Job>, Vec<Job>) = jobs
                .into_iter()
                .partition(|job| self.notes().enqueued_at.get(&job.id).is_some_and(|time| *time > now));
            for job in hidden {
                let since = self.notes().enqueued_at[&job.id];
                self.right.nack(&job.lease.token, since).await?;
            }
            jobs = seen;
        }
        let mut notes = self.notes();
        for job in &mut jobs {
            let ends = self.clock.now_plus(lease);
            let lease = (job.id.clone(), ends, job.priority, job.dedupe_key.clone());
            notes.leases.insert(job.lease.token.clone(), lease);
            notes.newest.insert(job.id.clone(), job.lease.token.clone());
            if self.is(Fragility::FencedByWorkersName) {
                job.lease.token = LeaseToken::from_raw(format!("{}@{worker}", job.id));
            }
            if self.is(Fragility::TextCutAtNul) {
                job.dedupe_key = job.dedupe_key.take().map(|key| key.trim_end_matches('.').to_owned());
            }
        }
        if self.is(Fragility::Prefetches) && jobs.len() > max {
            notes.prefetched.extend(jobs.split_off(max));
        }
        Ok(jobs)
    }

    async fn extend(&self, lease: &LeaseToken, lease_for: Duration) -> Result<Lease> {
        let ends = self.clock.now_plus(lease_for);
        let until = self.notes().leases.get(lease).map(|lease| lease.1);
        if self.is(Fragility::ExtendOnlyLengthens) && until.is_some_and(|until| until > ends) {
            return Ok(Lease { token: lease.clone(), expires_at: ends });
        }
        let extended = self.right.extend(&self.token(lease), lease_for).await?;
        if let Some(known) = self.notes().leases.get_mut(lease) {
            known.1 = ends;
        }
        Ok(Lease { token: lease.clone(), ..extended })
    }

    async fn ack(&self, lease: &LeaseToken) -> Result<()> {
        let known = self.notes().leases.get(lease).cloned();
        let key = known.as_ref().and_then(|lease| lease.3.clone());
        let signals = |key: &Option<String>| key.as_ref().map_or(0, |key| self.notes().signals[key]);
        match self.flaw {
            Fragility::AckForgetsRacingSignal if key.is_some() => {
                let before = signals(&key);
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                self.right.ack(lease).await?;
                if signals(&key) > before {
                    self.lose_signal().await;
                }
                Ok(())
            }
            Fragility::SeveralAcksSucceed => {
                let holds = known.is_some();
                tokio::task::yield_now().await;
                self.notes().leases.remove(lease);
                match self.right.ack(lease).await {
                    Err(error) if holds && error.kind() == ErrorKind::LeaseLost => Ok(()),
                    answer => answer,
                }
            }
            Fragility::AckChecksThenActs => {
                let Some((job, ends, ..)) = known.filter(|lease| lease.1 > self.clock.now()) else {
                    return self.right.ack(lease).await;
                };
                let left = ends.duration_since(self.clock.now()).unsigned_abs();
                if left < Duration::from_secs(2) {
                    tokio::time::sleep(Duration::from_secs(4)).await;
                }
                let newest = self.notes().newest[&job].clone();
                self.right.ack(&newest).await
            }
            _ => {
                self.right.ack(&self.token(lease)).await?;
                if key.is_some_and(|key| self.notes().lost_signals.remove(&key)) {
                    self.lose_signal().await;
                }
                Ok(())
            }
        }
    }

    async fn nack(&self, lease: &LeaseToken, retry_at: Timestamp) -> Result<()> {
        if retry_at > self.clock.now() {
            self.notes().put_off.push(Bytes::from_static(b"put off"));
        }
        self.right.nack(&self.token(lease), self.time(retry_at)).await
    }

    async fn park(&self, lease: &LeaseToken, reason: &str) -> Result<()> {
        if self.is(Fragility::LongReasonsRefused) && reason.len() > MAX_REASON_BYTES {
            return Err(Error::invalid("queue.park", "reason", "A reason is at most 4 KiB."));
        }
        self.right.park(&self.token(lease), reason).await
    }

    async fn parked(&self, topic: &Topic, after: Option<&JobId>, limit: usize) -> Result<ParkedPage> {
        let mut page = self.right.parked(&self.topic(topic), after, limit).await?;
        if self.is(Fragility::TextCutAtNul) {
            for job in &mut page.jobs {
                job.dedupe_key = job.dedupe_key.take().map(|key| key.trim_end_matches('.').to_owned());
            }
        }
        Ok(page)
    }

    async fn requeue(&self, topic: &Topic, job: &JobId) -> Result<()> {
        self.right.requeue(&self.topic(topic), job).await?;
        let mut notes = self.notes();
        let keys: Vec<String> =
            notes.known_keys.iter().filter(|(_, known)| *known == job).map(|(key, _)| key.clone()).collect();
        notes.forgotten_keys.extend(keys);
        notes.requeued.insert(job.clone());
        Ok(())
    }

    async fn stats(&self, topic: &Topic) -> Result<TopicStats> {
        self.right.stats(&self.topic(topic)).await
    }

    async fn wakeups(&self, topic: &Topic) -> Result<WakeupStream> {
        let subscribers = {
            let mut notes = self.notes();
            notes.subscribers += 1;
            notes.subscribers
        };
        match self.flaw {
            Fragility::OneSubscriberOnly if subscribers > 1 => Ok(futures::stream::pending().boxed()),
            Fragility::HintsBlock => {
                let (sender, receiver) = mpsc::channel(8);
                self.notes().blocking = Some(sender);
                let hints = futures::stream::unfold(receiver, |mut receiver| async move {
                    receiver.recv().await.map(|()| ((), receiver))
                });
                Ok(hints.boxed())
            }
            _ => self.right.wakeups(&self.topic(topic)).await,
        }
    }
}
