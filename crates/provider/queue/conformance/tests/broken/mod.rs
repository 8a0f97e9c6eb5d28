//! A right queue, made wrong in one way.

pub(crate) mod fragile;
pub(crate) mod network;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flames_clock::{Clock, ClockExt, Timestamp};
use flames_error::{ErrorKind, Result};
use flames_queue::{
    EnqueueOptions, Enqueued, Job, JobId, Lease, LeaseToken, MAX_LEASE, MAX_PAYLOAD_BYTES, MIN_LEASE,
    ParkedPage, Topic, TopicStats, WakeupStream, WorkQueue, WorkerId,
};
use flames_queue_conformance::async_trait;
use flames_queue_memory::MemoryQueue;
use futures::StreamExt;

/// The one way in which a [`BrokenQueue`] is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    /// A lease is named by its job alone.
    NoFence,
    LostLeaseExtends,
    LostLeaseAcks,
    LostLeaseNacks,
    LostLeaseParks,
    LeaseNeverExpires,
    /// A job is read, and never marked as taken.
    LeaseNotKept,
    ExtendDoesNothing,
    AckDoesNothing,
    /// Two workers that ask at the same time get the same batch.
    BatchesOverlap,
    BatchTooLarge,
    /// An empty topic gives a job all the same.
    NoJobInvented,
    AttemptsNotCounted,
    DelayIgnored,
    /// A job for a time in the past is put off.
    PastNeverComes,
    PriorityIgnored,
    NewestFirst,
    RetryTimeIgnored,
    NackIntoThePastLoses,
    DedupeIgnored,
    /// An enqueue with a known key changes nothing.
    FirstEnqueueWins,
    SignalLostWhileLeased,
    KeyKnownForever,
    SignalLostWhileParked,
    TopicsAreOne,
    ParkRedelivers,
    ReasonLost,
    PagesRepeat,
    PagesSkip,
    RequeueDoesNothing,
    StatisticsForgetTheDelayed,
    NoHints,
    PayloadCut,
    OptionsLost,
    /// What is out of range is bent into it.
    RangesBent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Life {
    Waiting,
    Leased,
    Parked,
    Gone,
}

#[derive(Debug)]
pub(crate) struct BrokenQueue {
    flaw: Flaw,
    clock: Arc<dyn Clock>,
    right: MemoryQueue,
    /// What became of the job of each dedupe key: its id and where it is.
    keys: Mutex<HashMap<String, (JobId, Life)>>,
    /// The newest token of each job, by the job's id.
    newest: Mutex<HashMap<String, LeaseToken>>,
    /// The dedupe key behind each token.
    key_of: Mutex<HashMap<LeaseToken, String>>,
    in_flight: Mutex<Option<Vec<Job>>>,
}

impl BrokenQueue {
    pub(crate) fn new(flaw: Flaw, clock: Arc<dyn Clock>) -> Self {
        Self {
            flaw,
            right: MemoryQueue::new(Arc::clone(&clock)),
            clock,
            keys: Mutex::default(),
            newest: Mutex::default(),
            key_of: Mutex::default(),
            in_flight: Mutex::default(),
        }
    }

    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn topic(&self, topic: &Topic) -> Topic {
        if self.is(Flaw::TopicsAreOne) { Topic::new("all").unwrap() } else { topic.clone() }
    }

    fn token(&self, token: &LeaseToken) -> LeaseToken {
        if !self.is(Flaw::NoFence) {
            return token.clone();
        }
        self.newest.lock().unwrap().get(token.as_raw()).cloned().unwrap_or_else(|| token.clone())
    }

    /// Notes where the job behind a settled token now is.
    fn settled(&self, token: &LeaseToken, life: Life) {
        if let Some(key) = self.key_of.lock().unwrap().get(token)
            && let Some((_, now)) = self.keys.lock().unwrap().get_mut(key)
        {
            *now = life;
        }
    }

    /// Turns a lost lease into success, if that is the flaw.
    fn forgive(&self, flaw: Flaw, answer: Result<()>) -> Result<()> {
        match answer {
            Err(error) if self.is(flaw) && error.kind() == ErrorKind::LeaseLost => Ok(()),
            answer => answer,
        }
    }

    fn bend(&self, lease: Duration) -> Duration {
        if self.is(Flaw::RangesBent) { lease.clamp(MIN_LEASE, MAX_LEASE) } else { lease }
    }
}

#[async_trait]
impl WorkQueue for BrokenQueue {
    fn name(&self) -> &'static str {
        "broken"
    }

    async fn enqueue(
        &self,
        topic: &Topic,
        mut payload: Bytes,
        mut options: EnqueueOptions,
    ) -> Result<Enqueued> {
        match self.flaw {
            Flaw::PayloadCut => payload.truncate(MAX_PAYLOAD_BYTES - 1),
            Flaw::DelayIgnored => options.not_before = None,
            Flaw::PriorityIgnored => options.priority = Default::default(),
            Flaw::DedupeIgnored => options.dedupe_key = None,
            Flaw::OptionsLost => options = EnqueueOptions::default(),
            Flaw::PastNeverComes if options.not_before.is_some_and(|time| time < self.clock.now()) => {
                options.not_before = Some(self.clock.now_plus(MAX_LEASE));
            }
            _ => {}
        }
        let key = options.dedupe_key.clone();
        let known = key.as_ref().and_then(|key| self.keys.lock().unwrap().get(key).cloned());
        if let Some((job, life)) = &known {
            let ignored = match self.flaw {
                Flaw::FirstEnqueueWins => *life != Life::Gone,
                Flaw::SignalLostWhileLeased => *life == Life::Leased,
                Flaw::SignalLostWhileParked => *life == Life::Parked,
                Flaw::KeyKnownForever => *life == Life::Gone,
                _ => false,
            };
            if ignored {
                return Ok(Enqueued { job: job.clone(), coalesced: true });
            }
        }
        let enqueued = self.right.enqueue(&self.topic(topic), payload, options).await?;
        if let Some(key) = key {
            self.keys.lock().unwrap().entry(key).or_insert((enqueued.job.clone(), Life::Waiting));
        }
        Ok(enqueued)
    }

    async fn dequeue(
        &self,
        topic: &Topic,
        worker: &WorkerId,
        mut max: usize,
        lease: Duration,
    ) -> Result<Vec<Job>> {
        let mut lease = self.bend(lease);
        match self.flaw {
            Flaw::BatchTooLarge => max = (max * 2).min(256),
            Flaw::RangesBent => max = max.clamp(1, 256),
            Flaw::LeaseNeverExpires => lease = MAX_LEASE,
            Flaw::BatchesOverlap => {
                if let Some(batch) = self.in_flight.lock().unwrap().clone() {
                    return Ok(batch);
                }
            }
            _ => {}
        }
        let mut jobs = self.right.dequeue(&self.topic(topic), worker, max, lease).await?;
        for job in &mut jobs {
            if let Some(key) = &job.dedupe_key {
                self.keys.lock().unwrap().insert(key.clone(), (job.id.clone(), Life::Leased));
                self.key_of.lock().unwrap().insert(job.lease.token.clone(), key.clone());
            }
            self.newest.lock().unwrap().insert(job.id.as_str().to_owned(), job.lease.token.clone());
            match self.flaw {
                Flaw::NoFence => job.lease.token = LeaseToken::from_raw(job.id.as_str()),
                Flaw::AttemptsNotCounted => job.attempt = 1,
                Flaw::LeaseNotKept => self.right.nack(&job.lease.token, Timestamp::UNIX_EPOCH).await?,
                _ => {}
            }
        }
        match self.flaw {
            Flaw::NewestFirst => jobs.reverse(),
            Flaw::NoJobInvented if jobs.is_empty() => jobs.push(Job {
                id: JobId::new("invented").unwrap(),
                topic: topic.clone(),
                payload: Bytes::new(),
                dedupe_key: None,
                priority: Default::default(),
                attempt: 1,
                lease: Lease { token: LeaseToken::from_raw("invented"), expires_at: Timestamp::MAX },
            }),
            Flaw::BatchesOverlap => {
                *self.in_flight.lock().unwrap() = Some(jobs.clone());
                tokio::task::yield_now().await;
                *self.in_flight.lock().unwrap() = None;
            }
            _ => {}
        }
        Ok(jobs)
    }

    async fn extend(&self, lease: &LeaseToken, lease_for: Duration) -> Result<Lease> {
        let lie = Lease { token: lease.clone(), expires_at: self.clock.now_plus(lease_for) };
        if self.is(Flaw::ExtendDoesNothing) {
            return Ok(lie);
        }
        match self.right.extend(&self.token(lease), self.bend(lease_for)).await {
            Err(error) if self.is(Flaw::LostLeaseExtends) && error.kind() == ErrorKind::LeaseLost => Ok(lie),
            answer => answer.map(|extended| Lease { token: lease.clone(), ..extended }),
        }
    }

    async fn ack(&self, lease: &LeaseToken) -> Result<()> {
        if self.is(Flaw::AckDoesNothing) {
            return Ok(());
        }
        self.settled(lease, Life::Gone);
        self.forgive(Flaw::LostLeaseAcks, self.right.ack(&self.token(lease)).await)
    }

    async fn nack(&self, lease: &LeaseToken, mut retry_at: Timestamp) -> Result<()> {
        if self.is(Flaw::RetryTimeIgnored) {
            retry_at = Timestamp::UNIX_EPOCH;
        }
        if self.is(Flaw::NackIntoThePastLoses) && retry_at <= self.clock.now() {
            return self.right.ack(lease).await;
        }
        self.settled(lease, Life::Waiting);
        self.forgive(Flaw::LostLeaseNacks, self.right.nack(&self.token(lease), retry_at).await)
    }

    async fn park(&self, lease: &LeaseToken, reason: &str) -> Result<()> {
        if self.is(Flaw::ParkRedelivers) {
            return self.right.nack(lease, Timestamp::UNIX_EPOCH).await;
        }
        self.settled(lease, Life::Parked);
        self.forgive(Flaw::LostLeaseParks, self.right.park(&self.token(lease), reason).await)
    }

    async fn parked(&self, topic: &Topic, after: Option<&JobId>, mut limit: usize) -> Result<ParkedPage> {
        if self.is(Flaw::RangesBent) {
            limit = limit.clamp(1, 256);
        }
        let after = if self.is(Flaw::PagesRepeat) { None } else { after };
        let mut page = self.right.parked(&self.topic(topic), after, limit).await?;
        match self.flaw {
            Flaw::ReasonLost => page.jobs.iter_mut().for_each(|job| job.reason.clear()),
            // The next page starts behind the first entry that this one left out.
            Flaw::PagesSkip if page.next.is_some() => {
                let next = self.right.parked(topic, page.next.as_ref(), 1).await?;
                page.next = next.jobs.first().map(|job| job.id.clone());
            }
            _ => {}
        }
        Ok(page)
    }

    async fn requeue(&self, topic: &Topic, job: &JobId) -> Result<()> {
        if self.is(Flaw::RequeueDoesNothing) {
            return Ok(());
        }
        self.right.requeue(&self.topic(topic), job).await
    }

    async fn stats(&self, topic: &Topic) -> Result<TopicStats> {
        let stats = self.right.stats(&self.topic(topic)).await?;
        Ok(if self.is(Flaw::StatisticsForgetTheDelayed) { TopicStats { delayed: 0, ..stats } } else { stats })
    }

    async fn wakeups(&self, topic: &Topic) -> Result<WakeupStream> {
        if self.is(Flaw::NoHints) {
            return Ok(futures::stream::pending().boxed());
        }
        self.right.wakeups(&self.topic(topic)).await
    }
}
