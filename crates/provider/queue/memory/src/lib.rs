//! WorkQueue in memory: the reference answer.
//!
//! Everything is gone when the queue is dropped; what is due stands in the StateStore, so that costs time only.
//!
//! * Each operation is O(log n) in the topic's jobs, plus one step for each job whose time has come since the last operation.
//! * Leases are judged by the monotonic clock, `not_before` and `retry_at` by the wall clock: a wall clock that jumps never
//!   gives one job to two workers.
//! * Hints ([`WorkQueue::wakeups`]) are given when a job becomes ready by a call (enqueue, nack, requeue, or the settlement of a
//!   job that was signalled meanwhile), and when the time of a delayed job or the end of a lease comes that was known when the wait
//!   began. A lease that another worker takes during the wait is not hinted when it expires: poll as well. Hints that are not read
//!   at once become one.

mod topic;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_clock::{Clock, ClockExt, Timestamp};
use flames_error::{Error, ErrorKind, Result};
use flames_queue::{
    EnqueueOptions, Enqueued, Job, JobId, Lease, LeaseToken, MAX_BATCH, MAX_LEASE, MAX_REASON_BYTES,
    MIN_LEASE, ParkedPage, Topic, TopicStats, WakeupStream, WakingTopics, WorkQueue, WorkerId,
};
use tokio::sync::broadcast;

use topic::{Delivery, Now, TopicQueue};

/// The most jobs of a queue made by [`MemoryQueue::new`], all topics and states together.
///
/// A bound against a leak, not a plan: a job of the house carries a key and takes some 500 bytes, so this many take half a GiB.
pub const DEFAULT_MAX_JOBS: usize = 1_000_000;

/// A WorkQueue that lives in this process. Clones share one queue.
#[derive(Clone)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    max_jobs: usize,
    /// Tells this queue's tokens from those of one that stood here before it.
    epoch: i64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    topics: HashMap<String, TopicQueue>,
    jobs: usize,
    last_sequence: u64,
}

impl MemoryQueue {
    /// An empty queue of at most [`DEFAULT_MAX_JOBS`], judging by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::with_max_jobs(clock, DEFAULT_MAX_JOBS)
    }

    /// An empty queue of at most `max_jobs`, parked ones among them. An enqueue that would make one more is `Exhausted`; one that
    /// coalesces is not.
    pub fn with_max_jobs(clock: Arc<dyn Clock>, max_jobs: usize) -> Self {
        let epoch = clock.now().as_millisecond();
        let state = Mutex::new(State::default());
        Self { shared: Arc::new(Shared { clock, max_jobs, epoch, state }) }
    }

    /// Loses every job and lease, as a queue that crashed does: for tests of what stands on it. Leases given before are lost, and
    /// subscriptions end.
    pub fn forget_everything(&self) {
        let mut state = self.shared.lock();
        state.topics.clear();
        state.jobs = 0;
    }

    /// Runs `change` on the delivery that `token` names, if its lease holds.
    fn settle<R>(
        &self,
        token: &LeaseToken,
        operation: &'static str,
        change: impl FnOnce(&mut TopicQueue, Delivery, Now) -> Option<R>,
    ) -> Result<R> {
        let lost = || {
            Error::new(ErrorKind::LeaseLost, operation, "the lease is expired, superseded or settled")
                .with_resource("lease", token.as_raw())
        };
        let (delivery, topic) = self.shared.read_token(token).ok_or_else(lost)?;
        self.shared.with_topic(topic, |queue, now| change(queue, delivery, now)).flatten().ok_or_else(lost)
    }
}

impl Debug for MemoryQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryQueue").field("jobs", &self.shared.lock().jobs).finish_non_exhaustive()
    }
}

impl WakingTopics for Shared {
    fn subscribe(&self, topic: &Topic) -> broadcast::Receiver<()> {
        self.lock().topics.entry(topic.as_str().to_owned()).or_default().subscribe()
    }

    fn next_due(&self, topic: &Topic) -> Option<Duration> {
        self.with_topic(topic.as_str(), |topic, now| topic.next_due(now)).flatten()
    }

    fn unsubscribed(&self, topic: &Topic) {
        self.with_topic(topic.as_str(), |_, _| ());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        Now { wall: self.clock.now(), monotonic: self.clock.monotonic() }
    }

    /// Runs `work` on a topic after what is due there became ready. None when the topic has nothing.
    fn with_topic<R>(&self, topic: &str, work: impl FnOnce(&mut TopicQueue, Now) -> R) -> Option<R> {
        let mut state = self.lock();
        let now = self.now();
        let queue = state.topics.get_mut(topic)?;
        let before = queue.len();
        queue.promote(now);
        let result = work(queue, now);
        let (after, idle) = (queue.len(), queue.is_idle());
        state.jobs = state.jobs + after - before;
        if idle {
            state.topics.remove(topic);
        }
        Some(result)
    }

    fn write_token(&self, topic: &Topic, delivery: Delivery) -> LeaseToken {
        let Delivery { sequence, number } = delivery;
        LeaseToken::from_raw(format!("{:x}.{sequence:x}.{number:x}.{topic}", self.epoch))
    }

    fn read_token<'t>(&self, token: &'t LeaseToken) -> Option<(Delivery, &'t str)> {
        let mut parts = token.as_raw().splitn(4, '.');
        let epoch = i64::from_str_radix(parts.next()?, 16).ok()?;
        let sequence = u64::from_str_radix(parts.next()?, 16).ok()?;
        let number = u64::from_str_radix(parts.next()?, 16).ok()?;
        (epoch == self.epoch).then_some((Delivery { sequence, number }, parts.next()?))
    }
}

fn check_lease(operation: &'static str, lease: Duration) -> Result<()> {
    if (MIN_LEASE..=MAX_LEASE).contains(&lease) {
        return Ok(());
    }
    Err(Error::invalid(operation, "lease", "A lease is 100 ms to 24 hours."))
}

fn check_count(operation: &'static str, field: &'static str, count: usize) -> Result<()> {
    if (1..=MAX_BATCH).contains(&count) {
        return Ok(());
    }
    Err(Error::invalid(operation, field, "A batch or page has 1 to 256 jobs."))
}

#[async_trait]
impl WorkQueue for MemoryQueue {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn enqueue(&self, topic: &Topic, payload: Bytes, options: EnqueueOptions) -> Result<Enqueued> {
        options.validate(&payload)?;
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        let now = self.shared.now();
        let is_full = state.jobs >= self.shared.max_jobs;
        let full = || {
            Error::new(ErrorKind::Exhausted, "queue.enqueue", "the queue is full")
                .with_resource("topic", topic.as_str())
                .with_context("max_jobs", self.shared.max_jobs)
        };
        if !state.topics.contains_key(topic.as_str()) {
            if is_full {
                return Err(full());
            }
            state.topics.insert(topic.as_str().to_owned(), TopicQueue::default());
        }
        let queue = state.topics.get_mut(topic.as_str()).ok_or_else(full)?;
        queue.promote(now);
        if let Some(job) = queue.coalesce(&payload, &options, now) {
            queue.hint();
            return Ok(Enqueued { job, coalesced: true });
        }
        if is_full {
            return Err(full());
        }
        let sequence = state.last_sequence + 1;
        // Sixteen digits, so that ids sort as their numbers do.
        let job = JobId::new(format!("{sequence:016x}"))?;
        queue.add(sequence, job.clone(), payload, options, now);
        queue.hint();
        state.last_sequence = sequence;
        state.jobs += 1;
        Ok(Enqueued { job, coalesced: false })
    }

    async fn dequeue(
        &self,
        topic: &Topic,
        _worker: &WorkerId,
        max: usize,
        lease: Duration,
    ) -> Result<Vec<Job>> {
        check_count("queue.dequeue", "max", max)?;
        check_lease("queue.dequeue", lease)?;
        let shared = &*self.shared;
        let batch = shared.with_topic(topic.as_str(), |queue, now| {
            let expires_at = shared.clock.now_plus(lease);
            queue
                .lease_ready(max, now.monotonic.saturating_add(lease), expires_at)
                .map(|(delivery, entry)| Job {
                    id: entry.id.clone(),
                    topic: topic.clone(),
                    payload: entry.payload.clone(),
                    dedupe_key: entry.dedupe_key.as_deref().map(str::to_owned),
                    priority: entry.priority,
                    attempt: entry.attempts,
                    lease: Lease { token: shared.write_token(topic, delivery), expires_at },
                })
                .collect()
        });
        Ok(batch.unwrap_or_default())
    }

    async fn extend(&self, lease: &LeaseToken, lease_for: Duration) -> Result<Lease> {
        check_lease("queue.extend", lease_for)?;
        let expires_at = self.shared.clock.now_plus(lease_for);
        self.settle(lease, "queue.extend", |queue, delivery, now| {
            queue.extend(delivery, now.monotonic.saturating_add(lease_for), expires_at)
        })?;
        Ok(Lease { token: lease.clone(), expires_at })
    }

    async fn ack(&self, lease: &LeaseToken) -> Result<()> {
        self.settle(lease, "queue.ack", |queue, delivery, now| queue.acknowledge(delivery, now))
    }

    async fn nack(&self, lease: &LeaseToken, retry_at: Timestamp) -> Result<()> {
        self.settle(lease, "queue.nack", |queue, delivery, now| queue.give_back(delivery, retry_at, now))
    }

    async fn park(&self, lease: &LeaseToken, reason: &str) -> Result<()> {
        let reason = &reason[..reason.floor_char_boundary(MAX_REASON_BYTES)];
        self.settle(lease, "queue.park", |queue, delivery, now| queue.park(delivery, reason, now))
    }

    async fn parked(&self, topic: &Topic, after: Option<&JobId>, limit: usize) -> Result<ParkedPage> {
        check_count("queue.parked", "limit", limit)?;
        let page = self.shared.with_topic(topic.as_str(), |queue, _| queue.parked(after, limit));
        Ok(page.unwrap_or_default())
    }

    async fn requeue(&self, topic: &Topic, job: &JobId) -> Result<()> {
        self.shared
            .with_topic(topic.as_str(), |queue, now| queue.requeue(job, now))
            .flatten()
            .ok_or_else(|| Error::not_found("queue.requeue", "parked_job", job.as_str()))
    }

    async fn stats(&self, topic: &Topic) -> Result<TopicStats> {
        Ok(self.shared.with_topic(topic.as_str(), |queue, _| queue.stats()).unwrap_or_default())
    }

    async fn wakeups(&self, topic: &Topic) -> Result<WakeupStream> {
        Ok(flames_queue::wakeups(&self.shared, Arc::clone(&self.shared.clock), topic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flames_clock::SimulatedClock;
    use futures::StreamExt;

    fn topic() -> Topic {
        Topic::new("vms").unwrap()
    }

    fn worker() -> WorkerId {
        WorkerId::new("w").unwrap()
    }

    const LEASE: Duration = Duration::from_secs(10);

    async fn enqueue(
        queue: &MemoryQueue,
        payload: &'static str,
        options: EnqueueOptions,
    ) -> Result<Enqueued> {
        queue.enqueue(&topic(), payload.into(), options).await
    }

    fn keyed(key: &str) -> EnqueueOptions {
        EnqueueOptions { dedupe_key: Some(key.to_owned()), ..EnqueueOptions::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_new_jobs_but_takes_signals_for_known_ones() {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let queue = MemoryQueue::with_max_jobs(clock, 2);
        enqueue(&queue, "a", keyed("a")).await.unwrap();
        enqueue(&queue, "b", keyed("b")).await.unwrap();
        assert_eq!(enqueue(&queue, "c", keyed("c")).await.unwrap_err().kind(), ErrorKind::Exhausted);
        assert!(enqueue(&queue, "a2", keyed("a")).await.unwrap().coalesced);

        let job = queue.dequeue(&topic(), &worker(), 1, LEASE).await.unwrap().remove(0);
        queue.ack(&job.lease.token).await.unwrap();
        assert!(enqueue(&queue, "c", keyed("c")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_jumps_does_not_end_a_lease() {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let queue = MemoryQueue::new(Arc::<SimulatedClock>::clone(&clock));
        enqueue(&queue, "a", EnqueueOptions::default()).await.unwrap();
        let job = queue.dequeue(&topic(), &worker(), 1, LEASE).await.unwrap().remove(0);
        clock.jump_wall(3_600_000);
        assert_eq!(queue.dequeue(&topic(), &worker(), 1, LEASE).await.unwrap(), []);
        queue.ack(&job.lease.token).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_from_before_everything_was_forgotten_settles_nothing() {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let queue = MemoryQueue::new(clock);
        enqueue(&queue, "a", keyed("a")).await.unwrap();
        let old = queue.dequeue(&topic(), &worker(), 1, LEASE).await.unwrap().remove(0);
        queue.forget_everything();
        enqueue(&queue, "a", keyed("a")).await.unwrap();
        queue.dequeue(&topic(), &worker(), 1, LEASE).await.unwrap();
        assert_eq!(queue.ack(&old.lease.token).await.unwrap_err().kind(), ErrorKind::LeaseLost);
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_without_jobs_and_subscribers_takes_no_memory() {
        let queue = MemoryQueue::new(Arc::new(SimulatedClock::at_fixed_start()));
        let hints = queue.wakeups(&topic()).await.unwrap();
        enqueue(&queue, "a", EnqueueOptions::default()).await.unwrap();
        let job = queue.dequeue(&topic(), &worker(), 1, LEASE).await.unwrap().remove(0);
        queue.ack(&job.lease.token).await.unwrap();
        assert_eq!(queue.shared.lock().topics.len(), 1, "the subscriber still waits");
        drop(hints);
        assert_eq!(queue.shared.lock().topics.len(), 0);
        assert_eq!(queue.shared.lock().jobs, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_delayed_job_and_the_end_of_a_lease_are_hinted() {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let queue = MemoryQueue::new(Arc::<SimulatedClock>::clone(&clock));
        let not_before = Some(clock.now_plus(Duration::from_secs(30)));
        enqueue(&queue, "a", EnqueueOptions { not_before, ..EnqueueOptions::default() }).await.unwrap();
        let mut hints = queue.wakeups(&topic()).await.unwrap();
        let start = clock.monotonic();
        hints.next().await.unwrap();
        assert_eq!(clock.monotonic().saturating_since(start), Duration::from_secs(30));

        assert_eq!(queue.dequeue(&topic(), &worker(), 1, LEASE).await.unwrap().len(), 1);
        hints.next().await.unwrap();
        assert_eq!(clock.monotonic().saturating_since(start), Duration::from_secs(40));
        assert_eq!(queue.dequeue(&topic(), &worker(), 1, LEASE).await.unwrap()[0].attempt, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn hints_end_when_the_queue_is_gone() {
        let queue = MemoryQueue::new(Arc::new(SimulatedClock::at_fixed_start()));
        let mut hints = queue.wakeups(&topic()).await.unwrap();
        drop(queue);
        assert_eq!(hints.next().await, None);
    }
}
