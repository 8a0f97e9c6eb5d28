//! WorkQueue: at-least-once delivery under leases, as an interface.
//!
//! The queue is an accelerator. What is due stands in the StateStore; a queue that loses everything costs time only. Within
//! that, each guarantee here is proven by cases of `flames-queue-conformance` (named behind each method):
//!
//! * A job is delivered until it is acknowledged or parked: a duplicate may be delivered, a signal is never lost.
//! * A [`Lease`] is a fencing token. An expired or superseded one gets `LeaseLost`, so a stale worker can never settle a job
//!   that another one holds. The provider's own clock judges leases.
//! * Jobs of one topic are handed out by priority (higher first), then by the time at which they became ready.
//! * A job carries keys, never commands: whoever handles it reads the truth first.

mod types;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_clock::Timestamp;
use flames_error::{Error, ErrorKind, Result};
use futures::stream::BoxStream;

pub use types::{
    EnqueueOptions, Enqueued, Job, JobId, Lease, LeaseToken, ParkedJob, ParkedPage, Priority, Topic,
    TopicStats, WorkerId,
};

/// The longest payload, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024;
/// The longest dedupe key, in bytes.
pub const MAX_DEDUPE_KEY_BYTES: usize = 256;
/// The longest reason given to [`WorkQueue::park`], in bytes; what is longer is cut.
pub const MAX_REASON_BYTES: usize = 4 * 1024;
/// The most jobs of one [`WorkQueue::dequeue`] and the most entries of one page.
pub const MAX_BATCH: usize = 256;
/// The shortest lease.
pub const MIN_LEASE: Duration = Duration::from_millis(100);
/// The longest lease.
pub const MAX_LEASE: Duration = Duration::from_secs(24 * 3600);

/// Hints that a topic may have a job ready, until dropped. The stream may end when the backend goes away: subscribe again.
pub type WakeupStream = BoxStream<'static, ()>;

/// At-least-once delivery under leases. See the crate's docs for the guarantees.
///
/// A dropped call may or may not have been applied; that is safe for every method: enqueue with a dedupe key again, and let
/// leases expire.
#[async_trait]
pub trait WorkQueue: Debug + Send + Sync + 'static {
    /// The adapter's name (`memory`, `sqlite`, `nats`).
    fn name(&self) -> &'static str;

    /// Adds a job to `topic`. With a dedupe key that the topic knows, no second job is made:
    ///
    /// * known and ready or delayed: coalesced into it (the newer payload, the earlier time, the higher priority);
    /// * known and leased: it is delivered once more after its settlement (`ack`, `nack`, `park` or expiry), with the newer payload, and
    ///   no later than the new signal asks: it does not wait for the back-off of a `nack`;
    /// * known and parked: it is ready again, with its attempts counted anew.
    ///
    /// A dedupe key is known from enqueue to ack, and per topic.
    ///
    /// Errors: `InvalidInput` when payload or dedupe key pass a limit; `Exhausted` when the queue is full; `Unavailable`;
    /// `OutcomeUnknown`.
    ///
    /// Cases: `a_job_is_delivered_as_it_was_enqueued`, `a_known_dedupe_key_coalesces`,
    /// `coalescing_keeps_the_earliest_time_and_the_highest_priority`, `a_signal_while_leased_is_delivered_after_the_ack`,
    /// `a_signal_while_leased_outlives_a_nack`, `a_signal_while_leased_outlives_a_park`, `a_signal_while_leased_outlives_the_lease`,
    /// `a_signal_does_not_wait_for_the_back_off_of_a_retry`,
    /// `a_dedupe_key_is_free_again_after_the_ack`, `a_parked_job_is_requeued_by_its_dedupe_key`, `topics_are_apart`,
    /// `a_payload_that_passes_the_limit_is_refused`.
    async fn enqueue(&self, topic: &Topic, payload: Bytes, options: EnqueueOptions) -> Result<Enqueued>;

    /// Takes up to `max` (1 to [`MAX_BATCH`]) jobs that are ready, leasing each to `worker` for `lease`. Never waits: an empty batch
    /// means that there is no job.
    ///
    /// A job whose lease expired is ready again; its `attempt` has grown by one at each delivery.
    ///
    /// Errors: `InvalidInput` when `max` or `lease` ([`MIN_LEASE`] to [`MAX_LEASE`]) is out of range; `Unavailable`.
    ///
    /// Cases: `an_empty_topic_gives_an_empty_batch`, `a_leased_job_is_not_delivered_twice`,
    /// `a_job_comes_back_when_its_lease_expires`, `a_delayed_job_waits_for_its_time`, `higher_priority_goes_first`,
    /// `equal_priority_goes_in_order_of_readiness`, `a_batch_takes_no_more_than_asked`, `many_workers_share_without_overlap`,
    /// `attempts_are_counted`.
    async fn dequeue(
        &self,
        topic: &Topic,
        worker: &WorkerId,
        max: usize,
        lease: Duration,
    ) -> Result<Vec<Job>>;

    /// Renews a lease: it now ends `lease` from now. The token stays the same.
    ///
    /// Errors: `LeaseLost` when it is expired, superseded or settled; `InvalidInput`; `Unavailable`; `OutcomeUnknown`.
    ///
    /// Cases: `an_extended_lease_lives_longer`, `an_expired_lease_cannot_extend`.
    async fn extend(&self, lease: &LeaseToken, lease_for: Duration) -> Result<Lease>;

    /// Settles a job as done.
    ///
    /// Errors: `LeaseLost` when the lease is expired, superseded or settled; `Unavailable`; `OutcomeUnknown`.
    ///
    /// Cases: `an_acknowledged_job_is_gone`, `an_expired_lease_cannot_ack`, `a_stale_worker_cannot_ack_anothers_job`,
    /// `a_lease_settles_once`, `a_lease_that_was_never_given_settles_nothing`.
    async fn ack(&self, lease: &LeaseToken) -> Result<()>;

    /// Gives a job back, to be delivered at `retry_at` (a time in the past means now).
    ///
    /// Errors: as [`WorkQueue::ack`].
    ///
    /// Cases: `a_job_given_back_waits_for_its_retry_time`, `a_job_given_back_into_the_past_is_ready_now`,
    /// `an_expired_lease_cannot_nack`.
    async fn nack(&self, lease: &LeaseToken, retry_at: Timestamp) -> Result<()>;

    /// Sets a job aside as one that cannot be done (dead letter), with the reason. It is not delivered until requeued.
    ///
    /// Errors: as [`WorkQueue::ack`].
    ///
    /// Cases: `a_parked_job_is_not_delivered`, `parked_jobs_are_listed_with_their_reason`, `an_expired_lease_cannot_park`.
    async fn park(&self, lease: &LeaseToken, reason: &str) -> Result<()>;

    /// The parked jobs of `topic`, by id, behind `after`, at most `limit` (1 to [`MAX_BATCH`]).
    ///
    /// Errors: `InvalidInput` when `limit` is out of range; `Unavailable`.
    ///
    /// Cases: `parked_jobs_are_listed_with_their_reason`.
    async fn parked(&self, topic: &Topic, after: Option<&JobId>, limit: usize) -> Result<ParkedPage>;

    /// Makes a parked job ready again, with its attempts counted anew. Errors: `NotFound` when it is not parked.
    ///
    /// Cases: `a_requeued_job_is_delivered_again`, `only_a_parked_job_can_be_requeued`.
    async fn requeue(&self, topic: &Topic, job: &JobId) -> Result<()>;

    /// How many jobs `topic` has, by state.
    ///
    /// Cases: `the_statistics_count_each_state`.
    async fn stats(&self, topic: &Topic) -> Result<TopicStats>;

    /// Hints that `topic` may have a job ready, from now on. Lossy: it only spares polling.
    ///
    /// Cases: `an_enqueue_wakes_a_waiting_worker`.
    async fn wakeups(&self, topic: &Topic) -> Result<WakeupStream>;
}

/// Conveniences over any [`WorkQueue`].
#[async_trait]
pub trait WorkQueueExt: WorkQueue {
    /// Takes one job. `NoJobs` when there is none.
    ///
    /// Cases: `dequeue_one_answers_no_jobs`.
    async fn dequeue_one(&self, topic: &Topic, worker: &WorkerId, lease: Duration) -> Result<Job> {
        self.dequeue(topic, worker, 1, lease).await?.pop().ok_or_else(|| {
            Error::new(ErrorKind::NoJobs, "queue.dequeue_one", "no job is ready")
                .with_resource("topic", topic.as_str())
        })
    }
}

impl<Q: WorkQueue + ?Sized> WorkQueueExt for Q {}

#[async_trait]
impl<Q: WorkQueue + ?Sized> WorkQueue for Arc<Q> {
    fn name(&self) -> &'static str {
        (**self).name()
    }
    async fn enqueue(&self, topic: &Topic, payload: Bytes, options: EnqueueOptions) -> Result<Enqueued> {
        (**self).enqueue(topic, payload, options).await
    }
    async fn dequeue(
        &self,
        topic: &Topic,
        worker: &WorkerId,
        max: usize,
        lease: Duration,
    ) -> Result<Vec<Job>> {
        (**self).dequeue(topic, worker, max, lease).await
    }
    async fn extend(&self, lease: &LeaseToken, lease_for: Duration) -> Result<Lease> {
        (**self).extend(lease, lease_for).await
    }
    async fn ack(&self, lease: &LeaseToken) -> Result<()> {
        (**self).ack(lease).await
    }
    async fn nack(&self, lease: &LeaseToken, retry_at: Timestamp) -> Result<()> {
        (**self).nack(lease, retry_at).await
    }
    async fn park(&self, lease: &LeaseToken, reason: &str) -> Result<()> {
        (**self).park(lease, reason).await
    }
    async fn parked(&self, topic: &Topic, after: Option<&JobId>, limit: usize) -> Result<ParkedPage> {
        (**self).parked(topic, after, limit).await
    }
    async fn requeue(&self, topic: &Topic, job: &JobId) -> Result<()> {
        (**self).requeue(topic, job).await
    }
    async fn stats(&self, topic: &Topic) -> Result<TopicStats> {
        (**self).stats(topic).await
    }
    async fn wakeups(&self, topic: &Topic) -> Result<WakeupStream> {
        (**self).wakeups(topic).await
    }
}
