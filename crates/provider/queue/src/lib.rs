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
//!
//! What holds for all methods together:
//!
//! Random operations in any order do what the reference does (the memory adapter is the same in the large).
//!
//! Cases: `random_operations_agree_with_a_reference_model`.
//!
//! An adapter that is durable keeps jobs, delays, leases and signals when it is closed and opened again.
//!
//! Cases: `every_job_outlives_a_reopen_as_it_was`, `a_delay_outlives_a_reopen`, `a_lease_outlives_a_reopen`,
//! `a_signal_while_leased_outlives_a_reopen`.
//!
//! A server that is killed and comes back has lost no job that an enqueue was answered for, and gives none out that is leased.
//!
//! Cases: `a_server_killed_under_load_loses_no_job`, `leases_delays_and_signals_outlive_a_killed_server`.
//!
//! Every call ends within the adapter's deadline, whatever the network does. Success means done. `Unavailable` and `Exhausted` mean that nothing
//! was changed; what was perhaps changed is `OutcomeUnknown`. When the network works again, so does the queue, by itself.
//!
//! Cases: `an_enqueue_cut_at_any_byte_is_told_truthfully`, `an_ack_cut_at_any_byte_is_told_truthfully`,
//! `an_answer_that_never_comes_is_no_refusal`, `a_dequeue_whose_answer_is_lost_loses_no_job`,
//! `through_random_faults_no_job_is_lost_or_stolen`, `a_server_that_does_not_answer_is_told_within_the_deadline`,
//! `a_queue_works_again_once_its_network_does`, `a_pool_that_is_used_up_is_told_as_exhausted`.
//!
//! A wall clock that jumps neither ends a lease nor puts its end off, and hides no job that was ready. (Where the clock is a server's, that is the
//! server's to see to.)
//!
//! Cases: `a_clock_set_forward_ends_no_lease`, `a_clock_set_back_puts_off_no_end_of_a_lease`,
//! `a_clock_set_back_hides_no_job_that_was_ready`.

mod types;
mod wakeups;

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
pub use wakeups::{WakingTopics, wakeups};

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
    ///   no later than the new signal asks: it does not wait for the back-off of a `nack`. After `ack` and `park` it is as a new job, with
    ///   the signal's own priority and its attempts counted anew; after `nack` and expiry with the higher priority and its attempts going on;
    /// * known and parked: it is ready again, with its attempts counted anew.
    ///
    /// A dedupe key is known from enqueue to ack (or until an adapter that forgets old parked jobs forgets the job), and per topic. It may be
    /// any text, as may a reason to park.
    ///
    /// Errors: `InvalidInput` when payload or dedupe key pass a limit; `Exhausted` when the queue is full; `Unavailable`;
    /// `OutcomeUnknown`.
    ///
    /// Cases: `a_job_is_delivered_as_it_was_enqueued`, `a_known_dedupe_key_coalesces`,
    /// `coalescing_keeps_the_earliest_time_and_the_highest_priority`, `a_signal_while_leased_is_delivered_after_the_ack`,
    /// `a_signal_while_leased_outlives_a_nack`, `a_signal_while_leased_outlives_a_park`, `a_signal_while_leased_outlives_the_lease`,
    /// `a_signal_does_not_wait_for_the_back_off_of_a_retry`,
    /// `a_dedupe_key_is_free_again_after_the_ack`, `a_parked_job_is_requeued_by_its_dedupe_key`, `topics_are_apart`,
    /// `a_dedupe_key_is_known_to_its_topic_only`, `many_enqueues_of_one_key_make_one_job`, `each_of_many_enqueues_is_told_its_own_job`,
    /// `a_signal_that_races_with_the_ack_is_never_lost`, `an_empty_payload_and_the_largest_are_kept_whole`,
    /// `a_payload_that_passes_the_limit_is_refused`, `a_dedupe_key_that_passes_the_limit_is_refused`,
    /// `keys_and_reasons_of_any_text_are_kept`, `the_longest_names_are_kept_apart`, `the_ends_of_time_are_times`.
    async fn enqueue(&self, topic: &Topic, payload: Bytes, options: EnqueueOptions) -> Result<Enqueued>;

    /// Takes up to `max` (1 to [`MAX_BATCH`]) jobs that are ready, leasing each to `worker` for `lease`. Never waits: an empty batch
    /// means that there is no job.
    ///
    /// A job whose lease expired is ready again; its `attempt` has grown by one at each delivery.
    ///
    /// A worker that asks gets the most urgent of what is ready at that moment: no adapter takes more than was asked and keeps it back. Two
    /// workers of one name are two workers.
    ///
    /// Errors: `InvalidInput` when `max` or `lease` ([`MIN_LEASE`] to [`MAX_LEASE`]) is out of range; `Exhausted`; `Unavailable`;
    /// `OutcomeUnknown` (jobs may be leased whose answer was lost: they come back when their leases end).
    ///
    /// Cases: `an_empty_topic_gives_an_empty_batch`, `a_leased_job_is_not_delivered_twice`,
    /// `a_job_comes_back_when_its_lease_expires`, `a_delayed_job_waits_for_its_time`, `higher_priority_goes_first`,
    /// `equal_priority_goes_in_order_of_readiness`, `a_batch_takes_no_more_than_asked`, `many_workers_share_without_overlap`,
    /// `attempts_are_counted`, `a_job_for_a_time_in_the_past_is_ready_now`, `two_workers_of_one_name_are_told_apart`,
    /// `higher_priority_goes_first_under_load`, `the_largest_batch_is_taken_whole`, `the_shortest_and_the_longest_lease_are_given`,
    /// `a_batch_size_out_of_range_is_refused`, `a_lease_out_of_range_is_refused`.
    async fn dequeue(
        &self,
        topic: &Topic,
        worker: &WorkerId,
        max: usize,
        lease: Duration,
    ) -> Result<Vec<Job>>;

    /// Renews a lease: it now ends `lease` from now, be that later or earlier than before. The token stays the same.
    ///
    /// Errors: `LeaseLost` when it is expired, superseded or settled; `InvalidInput`; `Unavailable`; `OutcomeUnknown`.
    ///
    /// Cases: `an_extended_lease_lives_longer`, `an_extension_may_shorten_a_lease`, `an_expired_lease_cannot_extend`.
    async fn extend(&self, lease: &LeaseToken, lease_for: Duration) -> Result<Lease>;

    /// Settles a job as done.
    ///
    /// An ack that comes as the lease ends is either done, and the job is not delivered again, or `LeaseLost`.
    ///
    /// Errors: `LeaseLost` when the lease is expired, superseded or settled; `Exhausted`; `Unavailable`; `OutcomeUnknown` (the same again then
    /// answers `LeaseLost` when it was done).
    ///
    /// Cases: `an_acknowledged_job_is_gone`, `an_expired_lease_cannot_ack`, `a_stale_worker_cannot_ack_anothers_job`,
    /// `a_lease_settles_once`, `a_lease_that_was_never_given_settles_nothing`, `of_many_acks_of_one_lease_one_succeeds`,
    /// `an_ack_at_the_end_of_its_lease_is_all_or_nothing`.
    async fn ack(&self, lease: &LeaseToken) -> Result<()>;

    /// Gives a job back, to be delivered at `retry_at` (a time in the past means now).
    ///
    /// Errors: as [`WorkQueue::ack`].
    ///
    /// Cases: `a_job_given_back_waits_for_its_retry_time`, `a_job_given_back_into_the_past_is_ready_now`,
    /// `an_expired_lease_cannot_nack`.
    async fn nack(&self, lease: &LeaseToken, retry_at: Timestamp) -> Result<()>;

    /// Sets a job aside as one that cannot be done (dead letter), with the reason. It is not delivered until requeued. An adapter may forget
    /// it after a retention of days, which its configuration says.
    ///
    /// Errors: as [`WorkQueue::ack`].
    ///
    /// Cases: `a_parked_job_is_not_delivered`, `parked_jobs_are_listed_with_their_reason`, `an_expired_lease_cannot_park`,
    /// `a_long_reason_is_cut_between_letters`.
    async fn park(&self, lease: &LeaseToken, reason: &str) -> Result<()>;

    /// The parked jobs of `topic`, by id, behind `after`, at most `limit` (1 to [`MAX_BATCH`]).
    ///
    /// Errors: `InvalidInput` when `limit` is out of range, or `after` is no id that this queue gave; `Exhausted`; `Unavailable`.
    ///
    /// Cases: `parked_jobs_are_listed_with_their_reason`, `pages_of_parked_jobs_meet`, `a_page_limit_out_of_range_is_refused`.
    async fn parked(&self, topic: &Topic, after: Option<&JobId>, limit: usize) -> Result<ParkedPage>;

    /// Makes a parked job ready again, with its attempts counted anew. Errors: `NotFound` when it is not parked.
    ///
    /// Cases: `a_requeued_job_is_delivered_again`, `only_a_parked_job_can_be_requeued`, `a_requeued_job_still_has_its_dedupe_key`.
    async fn requeue(&self, topic: &Topic, job: &JobId) -> Result<()>;

    /// How many jobs `topic` has, by state.
    ///
    /// Cases: `the_statistics_count_each_state`.
    async fn stats(&self, topic: &Topic) -> Result<TopicStats>;

    /// Hints that `topic` may have a job ready, from now on. Lossy: it only spares polling, and nothing depends on it. Who does not read its
    /// hints holds up nobody.
    ///
    /// Cases: `an_enqueue_wakes_a_waiting_worker`, `every_subscriber_is_woken`, `a_subscriber_that_never_reads_holds_up_nobody`.
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
