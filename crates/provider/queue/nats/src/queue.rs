//! The queue.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_clock::{Clock, IdSource, Random, RandomExt, Timestamp, UuidSource};
use flames_error::{Error, ErrorKind, Result};
use flames_queue::{
    EnqueueOptions, Enqueued, Job, JobId, Lease, LeaseToken, MAX_BATCH, MAX_LEASE, MAX_REASON_BYTES,
    MIN_LEASE, ParkedJob, ParkedPage, Topic, TopicStats, WakeupStream, WorkQueue, WorkerId,
};
use tokio::task::JoinHandle;

use crate::backend::Backend;
use crate::changes::{known_sequence, millis, timestamp};
use crate::config::NatsConfig;
use crate::connect;
use crate::feed::Feed;
use crate::record::{Phase, Record};
use crate::view::View;
use crate::wire;

/// How often a dequeue that lost jobs to other processes looks again.
const DEQUEUE_ROUNDS: u32 = 8;

/// A WorkQueue on NATS JetStream. See the crate's docs.
pub struct NatsQueue {
    pub(crate) backend: Arc<Backend>,
    pub(crate) view: Arc<View>,
    ids: UuidSource,
    random: Arc<dyn Random>,
    max_jobs: usize,
    pub(crate) operation_deadline: Duration,
    /// When the stream was made, in microseconds since the Unix epoch.
    pub(crate) epoch: i64,
    feed: Mutex<Option<JoinHandle<()>>>,
}

impl NatsQueue {
    /// Connects, makes the stream where there is none, and follows it from then on. Must be called within a tokio runtime, on which the
    /// task that follows then runs.
    ///
    /// Errors, each with one line for the user that names the setting: `InvalidInput` for a wrong configuration or a stream of that name
    /// that is not this queue's, `Unavailable` when no server can be reached, `PermissionDenied` for credentials that are not accepted,
    /// `NotSupported` for a server without JetStream or older than 2.11.
    pub async fn open(config: NatsConfig, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Result<Self> {
        const OPERATION: &str = "queue.open";
        let backend = Arc::new(connect::connect(&config, &clock).await?);
        let view = Arc::new(View::new(Arc::clone(&clock)));
        let asked = clock.monotonic();
        let stream = backend.stream_now(OPERATION, config.operation_deadline).await?;
        view.time.learn(stream.time, asked);
        let feed = Feed {
            backend: Arc::clone(&backend),
            view: Arc::clone(&view),
            operation_deadline: config.operation_deadline,
        };
        Ok(Self {
            ids: UuidSource::new(clock, Arc::clone(&random)),
            random,
            max_jobs: config.max_jobs,
            operation_deadline: config.operation_deadline,
            epoch: stream.created.as_microsecond(),
            feed: Mutex::new(Some(tokio::spawn(feed.run()))),
            backend,
            view,
        })
    }

    /// Ends the connection. Leases that are held are left to expire. A second call does nothing.
    pub async fn close(&self) {
        let feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(feed) = feed {
            feed.abort();
            // It was aborted: there is nothing that it could tell.
            let _ = feed.await;
            self.backend.close().await;
        }
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

impl Drop for NatsQueue {
    fn drop(&mut self) {
        if let Some(feed) = self.feed.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            feed.abort();
        }
    }
}

impl fmt::Debug for NatsQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsQueue")
            .field("stream", &self.backend.stream_name)
            .field("is_connected", &self.backend.is_connected())
            .field("jobs", &self.view.jobs())
            .field("publications", &self.backend.publications())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl WorkQueue for NatsQueue {
    fn name(&self) -> &'static str {
        "nats"
    }

    async fn enqueue(&self, topic: &Topic, payload: Bytes, options: EnqueueOptions) -> Result<Enqueued> {
        const OPERATION: &str = "queue.enqueue";
        options.validate(&payload)?;
        let deadline = self.deadline(OPERATION);
        let id = match &options.dedupe_key {
            Some(key) => wire::keyed_id(key),
            None => format!("u{}", self.ids.next_id().simple()),
        };
        let claim = self.claim(deadline, topic.as_str(), &id).await?;
        loop {
            let is_full = self.view.jobs() >= self.max_jobs;
            let (record, expected) = self.view.with_topic(topic.as_str(), |jobs, now| match jobs.get(&id) {
                Some(entry) => {
                    let mut record = entry.record.enqueued_again(payload.clone(), &options, now);
                    record.created = Some(entry.created());
                    (record, entry.sequence)
                }
                None => (Record::new(payload.clone(), &options, now), known_sequence(jobs, &id)),
            });
            let coalesced = record.created.is_some();
            if !coalesced && is_full {
                return Err(Error::new(ErrorKind::Exhausted, OPERATION, "the queue is full")
                    .with_resource("topic", topic.as_str())
                    .with_context("max_jobs", self.max_jobs));
            }
            if self.write(deadline, topic.as_str(), claim.id(), Some(record), expected).await?.is_some() {
                return Ok(Enqueued { job: JobId::new(id)?, coalesced });
            }
        }
    }

    async fn dequeue(
        &self,
        topic: &Topic,
        worker: &WorkerId,
        max: usize,
        lease: Duration,
    ) -> Result<Vec<Job>> {
        const OPERATION: &str = "queue.dequeue";
        check_count(OPERATION, "max", max)?;
        check_lease(OPERATION, lease)?;
        let deadline = self.deadline(OPERATION);
        let worker = Arc::<str>::from(worker.as_str());
        let mut is_caught_up = false;
        for round in 0..DEQUEUE_ROUNDS {
            // Behind a round that was lost to other processes, not at the same jobs as they.
            let reach = u64::try_from(max).unwrap_or(u64::MAX).saturating_mul(u64::from(round) * 2);
            let skip = usize::try_from(self.random.below(reach.saturating_add(1))).unwrap_or(0);
            let mut claimed = self.view.claim_ready(topic.as_str(), max, skip);
            if claimed.is_empty() && skip > 0 {
                claimed = self.view.claim_ready(topic.as_str(), max, 0);
            }
            if claimed.is_empty() {
                if is_caught_up {
                    break;
                }
                self.catch_up(deadline).await?;
                is_caught_up = true;
                continue;
            }
            let (jobs, failure) = self.lease_all(deadline, topic, &worker, lease, &claimed).await;
            if !jobs.is_empty() {
                return Ok(jobs);
            }
            if let Some(error) = failure {
                // What was leased all the same comes back when that lease ends.
                let kind = if error.kind() == ErrorKind::OutcomeUnknown {
                    ErrorKind::Unavailable
                } else {
                    error.kind()
                };
                return Err(error.with_kind(kind));
            }
        }
        Ok(Vec::new())
    }

    async fn extend(&self, lease: &LeaseToken, lease_for: Duration) -> Result<Lease> {
        const OPERATION: &str = "queue.extend";
        check_lease(OPERATION, lease_for)?;
        let until = self.view.time.now().saturating_add(millis(lease_for));
        self.settle(OPERATION, lease, |record, _| Some(record.extended(until))).await?;
        Ok(Lease { token: lease.clone(), expires_at: timestamp(until) })
    }

    async fn ack(&self, lease: &LeaseToken) -> Result<()> {
        self.settle("queue.ack", lease, |record, now| record.acknowledged(now)).await
    }

    async fn nack(&self, lease: &LeaseToken, retry_at: Timestamp) -> Result<()> {
        let retry_at = retry_at.as_millisecond();
        self.settle("queue.nack", lease, |record, now| Some(record.given_back(retry_at, now))).await
    }

    async fn park(&self, lease: &LeaseToken, reason: &str) -> Result<()> {
        let reason = &reason[..reason.floor_char_boundary(MAX_REASON_BYTES)];
        self.settle("queue.park", lease, |record, now| Some(record.parked(reason, now))).await
    }

    async fn parked(&self, topic: &Topic, after: Option<&JobId>, limit: usize) -> Result<ParkedPage> {
        const OPERATION: &str = "queue.parked";
        check_count(OPERATION, "limit", limit)?;
        self.catch_up(self.deadline(OPERATION)).await?;
        self.view.with_topic(topic.as_str(), |jobs, _| {
            let (entries, more) = jobs.parked(after.map(JobId::as_str), limit);
            let mut page = Vec::with_capacity(entries.len());
            for (id, entry) in entries {
                let Phase::Parked { at, reason } = &entry.record.phase else { continue };
                page.push(ParkedJob {
                    id: JobId::new(id.as_ref())?,
                    payload: entry.record.payload.clone(),
                    dedupe_key: entry.record.dedupe_key.as_deref().map(str::to_owned),
                    attempts: entry.record.attempts,
                    reason: reason.as_ref().to_owned(),
                    parked_at: timestamp(*at),
                });
            }
            let next = page.last().filter(|_| more).map(|job| job.id.clone());
            Ok(ParkedPage { jobs: page, next })
        })
    }

    async fn requeue(&self, topic: &Topic, job: &JobId) -> Result<()> {
        const OPERATION: &str = "queue.requeue";
        let absent = || Error::not_found(OPERATION, "parked_job", job.as_str());
        // Ids of this queue have no dots; one that has would be another part of a subject.
        if job.as_str().contains('.') {
            return Err(absent());
        }
        let deadline = self.deadline(OPERATION);
        let claim = self.claim(deadline, topic.as_str(), job.as_str()).await?;
        let mut is_fresh = false;
        loop {
            let next = self.view.with_topic(topic.as_str(), |jobs, now| {
                let entry = jobs.get(claim.id())?;
                let is_parked = matches!(entry.record.phase, Phase::Parked { .. });
                is_parked.then(|| (entry.record.renewed(now), entry.sequence))
            });
            match next {
                Some((record, expected)) => {
                    if self
                        .write(deadline, topic.as_str(), claim.id(), Some(record), expected)
                        .await?
                        .is_some()
                    {
                        return Ok(());
                    }
                    is_fresh = true;
                }
                None if is_fresh => return Err(absent()),
                None => {
                    self.refresh(deadline, topic.as_str(), claim.id()).await?;
                    is_fresh = true;
                }
            }
        }
    }

    async fn stats(&self, topic: &Topic) -> Result<TopicStats> {
        self.catch_up(self.deadline("queue.stats")).await?;
        Ok(self.view.with_topic(topic.as_str(), |jobs, _| jobs.stats()))
    }

    async fn wakeups(&self, topic: &Topic) -> Result<WakeupStream> {
        Ok(flames_queue::wakeups(&self.view, Arc::clone(&self.view.clock), topic))
    }
}
