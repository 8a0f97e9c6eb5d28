//! The suite's own test: queues that are wrong in one way each, and the case that catches each.

#![allow(clippy::unwrap_used)]

mod broken;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use broken::{BrokenQueue, Flaw};
use flames_clock::{Clock, SimulatedClock};
use flames_queue::WorkQueue;
use flames_queue_conformance::{Fixture, Harness, Time, async_trait, failures, suite};

struct Broken(Flaw);

struct Fresh {
    clock: Arc<SimulatedClock>,
    queue: Arc<BrokenQueue>,
}

#[async_trait]
impl Harness for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let queue = Arc::new(BrokenQueue::new(self.0, Arc::<SimulatedClock>::clone(&clock)));
        Box::new(Fresh { clock, queue })
    }
}

#[async_trait]
impl Fixture for Fresh {
    fn queue(&self) -> Arc<dyn WorkQueue> {
        self.queue.clone()
    }
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
    fn unit(&self) -> Duration {
        Duration::from_secs(10)
    }
}

/// What `case` says of a queue with `flaw`; none when it passes.
fn verdict(flaw: Flaw, case: &'static str) -> Option<String> {
    let mut cases = suite(Broken(flaw)).cases;
    cases.retain(|listed| listed.name == case);
    assert_eq!(cases.len(), 1, "there is no case {case}");
    failures(cases, Time::Paused).remove(case)
}

#[test]
fn a_queue_without_a_flaw_passes() {
    assert_eq!(failures(suite(Broken(Flaw::None)).cases, Time::Paused), BTreeMap::new());
}

#[test]
fn each_flaw_is_caught_by_the_case_that_names_it() {
    let catches = [
        (Flaw::NoFence, "a_stale_worker_cannot_ack_anothers_job"),
        (Flaw::NoFence, "a_job_comes_back_when_its_lease_expires"),
        (Flaw::LostLeaseExtends, "an_expired_lease_cannot_extend"),
        (Flaw::LostLeaseAcks, "an_expired_lease_cannot_ack"),
        (Flaw::LostLeaseAcks, "a_lease_settles_once"),
        (Flaw::LostLeaseAcks, "a_lease_that_was_never_given_settles_nothing"),
        (Flaw::LostLeaseNacks, "an_expired_lease_cannot_nack"),
        (Flaw::LostLeaseParks, "an_expired_lease_cannot_park"),
        (Flaw::LeaseNeverExpires, "a_job_comes_back_when_its_lease_expires"),
        (Flaw::LeaseNotKept, "a_leased_job_is_not_delivered_twice"),
        (Flaw::ExtendDoesNothing, "an_extended_lease_lives_longer"),
        (Flaw::AckDoesNothing, "an_acknowledged_job_is_gone"),
        (Flaw::BatchesOverlap, "many_workers_share_without_overlap"),
        (Flaw::BatchTooLarge, "a_batch_takes_no_more_than_asked"),
        (Flaw::NoJobInvented, "an_empty_topic_gives_an_empty_batch"),
        (Flaw::NoJobInvented, "dequeue_one_answers_no_jobs"),
        (Flaw::AttemptsNotCounted, "attempts_are_counted"),
        (Flaw::DelayIgnored, "a_delayed_job_waits_for_its_time"),
        (Flaw::PastNeverComes, "a_job_for_a_time_in_the_past_is_ready_now"),
        (Flaw::PriorityIgnored, "higher_priority_goes_first"),
        (Flaw::NewestFirst, "equal_priority_goes_in_order_of_readiness"),
        (Flaw::RetryTimeIgnored, "a_job_given_back_waits_for_its_retry_time"),
        (Flaw::NackIntoThePastLoses, "a_job_given_back_into_the_past_is_ready_now"),
        (Flaw::DedupeIgnored, "a_known_dedupe_key_coalesces"),
        (Flaw::FirstEnqueueWins, "a_known_dedupe_key_coalesces"),
        (Flaw::FirstEnqueueWins, "coalescing_keeps_the_earliest_time_and_the_highest_priority"),
        (Flaw::FirstEnqueueWins, "a_signal_does_not_wait_for_the_back_off_of_a_retry"),
        (Flaw::SignalLostWhileLeased, "a_signal_while_leased_is_delivered_after_the_ack"),
        (Flaw::SignalLostWhileLeased, "a_signal_while_leased_outlives_a_nack"),
        (Flaw::SignalLostWhileLeased, "a_signal_while_leased_outlives_the_lease"),
        (Flaw::SignalLostWhileLeased, "a_signal_while_leased_outlives_a_park"),
        (Flaw::KeyKnownForever, "a_dedupe_key_is_free_again_after_the_ack"),
        (Flaw::SignalLostWhileParked, "a_parked_job_is_requeued_by_its_dedupe_key"),
        (Flaw::TopicsAreOne, "topics_are_apart"),
        (Flaw::TopicsAreOne, "a_dedupe_key_is_known_to_its_topic_only"),
        (Flaw::ParkRedelivers, "a_parked_job_is_not_delivered"),
        (Flaw::ReasonLost, "parked_jobs_are_listed_with_their_reason"),
        (Flaw::PagesRepeat, "pages_of_parked_jobs_meet"),
        (Flaw::PagesSkip, "pages_of_parked_jobs_meet"),
        (Flaw::RequeueDoesNothing, "a_requeued_job_is_delivered_again"),
        (Flaw::RequeueDoesNothing, "only_a_parked_job_can_be_requeued"),
        (Flaw::StatisticsForgetTheDelayed, "the_statistics_count_each_state"),
        (Flaw::NoHints, "an_enqueue_wakes_a_waiting_worker"),
        (Flaw::PayloadCut, "a_payload_that_passes_the_limit_is_refused"),
        (Flaw::PayloadCut, "an_empty_payload_and_the_largest_are_kept_whole"),
        (Flaw::OptionsLost, "a_job_is_delivered_as_it_was_enqueued"),
        (Flaw::OptionsLost, "a_dedupe_key_that_passes_the_limit_is_refused"),
        (Flaw::RangesBent, "a_batch_size_out_of_range_is_refused"),
        (Flaw::RangesBent, "a_lease_out_of_range_is_refused"),
        (Flaw::RangesBent, "a_page_limit_out_of_range_is_refused"),
    ];
    let missed: Vec<_> = catches.iter().filter(|(flaw, case)| verdict(*flaw, case).is_none()).collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
