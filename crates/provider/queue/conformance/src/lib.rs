//! The suite that every WorkQueue must pass.
//!
//! An adapter implements [`Harness`] and [`Fixture`] in its `tests/conformance.rs` and calls [`run`] from `main`. Cases measure
//! time in [`Fixture::unit`]s: any length under simulated time, as short as the backend's timers allow under real time.

// Cases are tests: a panic is how they fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod clocks;
mod crowds;
mod dedupe;
mod delivery;
mod faults;
mod leases;
mod ledger;
mod limits;
mod model;
mod order;
mod parking;
mod reopening;
mod servers;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_clock::{Clock, ClockExt, Timestamp};
pub use flames_conformance_runner::{
    Faults, Harness, Held, Hook, Hooks, SettableClock, Time, Unavailable, async_trait, failures,
};
use flames_conformance_runner::{Interface, Row, Suite, table};
use flames_error::{ErrorKind, Result};
use flames_queue::{EnqueueOptions, Enqueued, Job, LeaseToken, Priority, Topic, WorkQueue, WorkerId};

/// One fresh queue and its time.
#[async_trait]
pub trait Fixture: Hooks {
    /// The queue, as it was opened last.
    fn queue(&self) -> Arc<dyn WorkQueue>;

    /// The clock by which the queue judges, or one that agrees with it to within a tenth of a unit.
    fn clock(&self) -> &dyn Clock;

    /// The measure of the cases' times; at least 100 ms, the shortest lease.
    fn unit(&self) -> Duration;

    /// Lets `duration` pass for the queue.
    async fn advance(&self, duration: Duration) {
        self.clock().sleep(duration).await;
    }
}

fn interface() -> Interface<dyn Fixture> {
    let rows: Vec<Row<Box<dyn Fixture>>> = table![
        delivery:
            a_job_is_delivered_as_it_was_enqueued,
            an_empty_payload_and_the_largest_are_kept_whole,
            an_empty_topic_gives_an_empty_batch,
            dequeue_one_answers_no_jobs,
            a_leased_job_is_not_delivered_twice,
            a_batch_takes_no_more_than_asked,
            many_workers_share_without_overlap,
            topics_are_apart,
            attempts_are_counted,
            an_acknowledged_job_is_gone,
            an_enqueue_wakes_a_waiting_worker;
        crowds:
            many_enqueues_of_one_key_make_one_job,
            each_of_many_enqueues_is_told_its_own_job,
            a_signal_that_races_with_the_ack_is_never_lost,
            of_many_acks_of_one_lease_one_succeeds,
            two_workers_of_one_name_are_told_apart,
            an_ack_at_the_end_of_its_lease_is_all_or_nothing,
            higher_priority_goes_first_under_load,
            a_subscriber_that_never_reads_holds_up_nobody,
            every_subscriber_is_woken;
        order:
            a_delayed_job_waits_for_its_time,
            a_job_for_a_time_in_the_past_is_ready_now,
            higher_priority_goes_first,
            equal_priority_goes_in_order_of_readiness;
        leases:
            a_job_comes_back_when_its_lease_expires,
            an_extended_lease_lives_longer,
            an_extension_may_shorten_a_lease,
            an_expired_lease_cannot_extend,
            an_expired_lease_cannot_ack,
            an_expired_lease_cannot_nack,
            an_expired_lease_cannot_park,
            a_stale_worker_cannot_ack_anothers_job,
            a_lease_settles_once,
            a_lease_that_was_never_given_settles_nothing,
            a_job_given_back_waits_for_its_retry_time,
            a_job_given_back_into_the_past_is_ready_now;
        dedupe:
            a_known_dedupe_key_coalesces,
            coalescing_keeps_the_earliest_time_and_the_highest_priority,
            a_signal_while_leased_is_delivered_after_the_ack,
            a_signal_while_leased_outlives_a_nack,
            a_signal_while_leased_outlives_the_lease,
            a_signal_while_leased_outlives_a_park,
            a_signal_does_not_wait_for_the_back_off_of_a_retry,
            a_dedupe_key_is_free_again_after_the_ack,
            a_dedupe_key_is_known_to_its_topic_only,
            a_parked_job_is_requeued_by_its_dedupe_key;
        parking:
            a_parked_job_is_not_delivered,
            parked_jobs_are_listed_with_their_reason,
            pages_of_parked_jobs_meet,
            a_long_reason_is_cut_between_letters,
            a_requeued_job_is_delivered_again,
            only_a_parked_job_can_be_requeued,
            a_requeued_job_still_has_its_dedupe_key,
            the_statistics_count_each_state;
        limits:
            a_payload_that_passes_the_limit_is_refused,
            a_dedupe_key_that_passes_the_limit_is_refused,
            a_batch_size_out_of_range_is_refused,
            a_lease_out_of_range_is_refused,
            a_page_limit_out_of_range_is_refused,
            the_largest_batch_is_taken_whole,
            the_shortest_and_the_longest_lease_are_given,
            the_longest_names_are_kept_apart,
            keys_and_reasons_of_any_text_are_kept,
            the_ends_of_time_are_times;
        model:
            random_operations_agree_with_a_reference_model;
        reopening:
            every_job_outlives_a_reopen_as_it_was if durable,
            a_delay_outlives_a_reopen if durable,
            a_lease_outlives_a_reopen if durable,
            a_signal_while_leased_outlives_a_reopen if durable;
        clocks:
            a_clock_set_forward_ends_no_lease if clock,
            a_clock_set_back_puts_off_no_end_of_a_lease if clock,
            a_clock_set_back_hides_no_job_that_was_ready if clock;
        faults:
            an_enqueue_cut_at_any_byte_is_told_truthfully if faults,
            an_ack_cut_at_any_byte_is_told_truthfully if faults,
            an_answer_that_never_comes_is_no_refusal if faults,
            a_dequeue_whose_answer_is_lost_loses_no_job if faults,
            through_random_faults_no_job_is_lost_or_stolen if faults,
            a_server_that_does_not_answer_is_told_within_the_deadline if faults,
            a_queue_works_again_once_its_network_does if faults;
        servers:
            a_server_killed_under_load_loses_no_job if restart,
            leases_delays_and_signals_outlive_a_killed_server if restart,
            a_pool_that_is_used_up_is_told_as_exhausted if exhaustion,
    ];
    Interface { name: "queue", noun: "queue", rows }
}

/// The suite for one adapter.
pub fn suite(harness: impl Harness<dyn Fixture>) -> Suite {
    interface().suite(harness)
}

/// The whole of an adapter's `tests/conformance.rs` (`harness = false`): `fn main() -> ExitCode { run(Harness) }`.
pub fn run(harness: impl Harness<dyn Fixture>) -> ExitCode {
    flames_conformance_runner::run(suite(harness))
}

/// What cases do over and over, in the words that they are read in.
struct Bench<'f> {
    fixture: &'f dyn Fixture,
    queue: Arc<dyn WorkQueue>,
    topic: Topic,
    worker: WorkerId,
}

impl<'f> Bench<'f> {
    fn new(fixture: &'f dyn Fixture) -> Self {
        let (topic, worker) = (topic("vms"), WorkerId::new("worker-1").unwrap());
        Self { fixture, queue: fixture.queue(), topic, worker }
    }

    /// Closes and opens the queue.
    async fn reopen(&mut self) {
        self.fixture.reopen().await;
        self.queue = self.fixture.queue();
    }

    /// A lease that no case outlives by accident.
    fn long(&self) -> Duration {
        self.units(100)
    }

    fn units(&self, count: u32) -> Duration {
        self.fixture.unit() * count
    }

    fn in_units(&self, count: u32) -> Timestamp {
        self.fixture.clock().now_plus(self.units(count))
    }

    async fn pass(&self, units: u32) {
        self.fixture.advance(self.units(units)).await;
    }

    async fn enqueue(&self, payload: &str, options: EnqueueOptions) -> Enqueued {
        self.queue.enqueue(&self.topic, Bytes::copy_from_slice(payload.as_bytes()), options).await.unwrap()
    }

    async fn add(&self, payload: &str) -> Enqueued {
        self.enqueue(payload, EnqueueOptions::default()).await
    }

    /// Everything that is ready, leased for long.
    async fn take_all(&self) -> Vec<Job> {
        self.queue.dequeue(&self.topic, &self.worker, 256, self.long()).await.unwrap()
    }

    /// The one job that is ready, leased for so many units.
    async fn take_for(&self, units: u32) -> Job {
        let mut jobs = self.queue.dequeue(&self.topic, &self.worker, 256, self.units(units)).await.unwrap();
        assert_eq!(jobs.len(), 1, "one job should be ready, not {jobs:?}");
        jobs.remove(0)
    }

    /// The one job that is ready, leased for long.
    async fn take(&self) -> Job {
        self.take_for(100).await
    }

    async fn ack(&self, job: &Job) {
        self.queue.ack(&job.lease.token).await.unwrap();
    }

    async fn park(&self, job: &Job) {
        self.queue.park(&job.lease.token, "it cannot be done").await.unwrap();
    }

    async fn nothing_is_ready(&self) {
        assert_eq!(self.take_all().await, [], "nothing should be ready");
    }
}

fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap()
}

fn keyed(key: &str) -> EnqueueOptions {
    EnqueueOptions { dedupe_key: Some(key.to_owned()), ..EnqueueOptions::default() }
}

fn with_priority(priority: i8) -> EnqueueOptions {
    EnqueueOptions { priority: Priority(priority), ..EnqueueOptions::default() }
}

fn not_before(time: Timestamp) -> EnqueueOptions {
    EnqueueOptions { not_before: Some(time), ..EnqueueOptions::default() }
}

fn payloads(jobs: &[Job]) -> Vec<&str> {
    jobs.iter().map(|job| std::str::from_utf8(&job.payload).unwrap()).collect()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T>, kind: ErrorKind) {
    assert_eq!(answer.unwrap_err().kind(), kind);
}

async fn lease_is_lost(bench: &Bench<'_>, token: &LeaseToken) {
    refused(bench.queue.extend(token, bench.long()).await, ErrorKind::LeaseLost);
    refused(bench.queue.nack(token, Timestamp::UNIX_EPOCH).await, ErrorKind::LeaseLost);
    refused(bench.queue.park(token, "stale").await, ErrorKind::LeaseLost);
    refused(bench.queue.ack(token).await, ErrorKind::LeaseLost);
}

#[cfg(test)]
mod tests {
    use flames_conformance_runner::assert_table_is_complete;

    #[test]
    fn the_table_holds_every_case_written_and_every_case_promised() {
        let names: Vec<&str> = super::interface().rows.iter().map(|row| row.name).collect();
        assert_table_is_complete(
            &names,
            &[
                include_str!("clocks.rs"),
                include_str!("crowds.rs"),
                include_str!("dedupe.rs"),
                include_str!("delivery.rs"),
                include_str!("faults.rs"),
                include_str!("leases.rs"),
                include_str!("limits.rs"),
                include_str!("model/mod.rs"),
                include_str!("order.rs"),
                include_str!("parking.rs"),
                include_str!("reopening.rs"),
                include_str!("servers.rs"),
            ],
            &[include_str!("../../src/lib.rs"), include_str!("../../src/types.rs")],
        );
    }
}
