//! The suite's own test: queues that are wrong in one way each, and the case that catches each.

#![allow(clippy::unwrap_used)]

mod broken;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use broken::fragile::{Fragile, Fragility};
use broken::network::{Fault, Networked};
use broken::{BrokenQueue, Flaw};
use flames_clock::{Clock, SimulatedClock};
use flames_queue::WorkQueue;
use flames_queue_conformance::{Faults, Fixture, Harness, Held, Hook, Time, async_trait, failures, suite};

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

struct BrokenFragile(Fragility);

struct FreshFragile {
    clock: Arc<SimulatedClock>,
    queue: Arc<Fragile>,
}

#[async_trait]
impl Harness for BrokenFragile {
    fn name(&self) -> &'static str {
        "fragile"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    fn is_durable(&self) -> bool {
        true
    }
    fn hooks(&self) -> &'static [Hook] {
        &[Hook::Clock]
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        Box::new(FreshFragile { queue: Arc::new(Fragile::new(self.0, Arc::clone(&clock))), clock })
    }
}

#[async_trait]
impl Fixture for FreshFragile {
    fn queue(&self) -> Arc<dyn WorkQueue> {
        self.queue.clone()
    }
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
    fn unit(&self) -> Duration {
        Duration::from_secs(10)
    }
    async fn reopen(&self) {
        self.queue.reopen().await;
    }
    fn jump_clock(&self, by_ms: i64) {
        self.clock.jump_wall(by_ms);
    }
}

struct BrokenNetwork(Fault);

struct FreshNetworked {
    clock: Arc<SimulatedClock>,
    queue: Arc<Networked>,
}

#[async_trait]
impl Harness for BrokenNetwork {
    fn name(&self) -> &'static str {
        "networked"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    fn hooks(&self) -> &'static [Hook] {
        &[Hook::Faults, Hook::Restart, Hook::Exhaustion]
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        Box::new(FreshNetworked { queue: Arc::new(Networked::new(self.0, Arc::clone(&clock))), clock })
    }
}

#[async_trait]
impl Fixture for FreshNetworked {
    fn queue(&self) -> Arc<dyn WorkQueue> {
        self.queue.clone()
    }
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
    fn unit(&self) -> Duration {
        Duration::from_millis(500)
    }
    fn operation_deadline(&self) -> Duration {
        Networked::DEADLINE
    }
    fn faults(&self) -> &dyn Faults {
        &*self.queue.network
    }
    async fn restart_server(&self) {
        self.queue.restart_server().await;
    }
    async fn exhaust(&self) -> Held {
        Box::new(self.queue.every_connection().await)
    }
}

/// What `case` says of the queue of a harness; none when it passes.
fn verdict(harness: impl Harness, case: &'static str) -> Option<String> {
    let mut cases = suite(harness).cases;
    cases.retain(|listed| listed.name == case);
    assert_eq!(cases.len(), 1, "there is no case {case}");
    assert!(cases[0].ignored.is_none(), "{case} is skipped");
    failures(cases, Time::Paused).remove(case)
}

#[test]
fn a_queue_without_a_flaw_passes() {
    assert_eq!(failures(suite(Broken(Flaw::None)).cases, Time::Paused), BTreeMap::new());
    assert_eq!(failures(suite(BrokenFragile(Fragility::None)).cases, Time::Paused), BTreeMap::new());
    assert_eq!(failures(suite(BrokenNetwork(Fault::None)).cases, Time::Paused), BTreeMap::new());
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
    let missed: Vec<_> =
        catches.iter().filter(|(flaw, case)| verdict(Broken(*flaw), case).is_none()).collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[test]
fn each_fragility_is_caught_by_the_case_that_names_it() {
    let catches = [
        (Fragility::DedupeRaces, "many_enqueues_of_one_key_make_one_job"),
        (Fragility::IdsMixedUp, "each_of_many_enqueues_is_told_its_own_job"),
        (Fragility::AckForgetsRacingSignal, "a_signal_that_races_with_the_ack_is_never_lost"),
        (Fragility::SeveralAcksSucceed, "of_many_acks_of_one_lease_one_succeeds"),
        (Fragility::AckChecksThenActs, "an_ack_at_the_end_of_its_lease_is_all_or_nothing"),
        (Fragility::FencedByWorkersName, "two_workers_of_one_name_are_told_apart"),
        (Fragility::Prefetches, "higher_priority_goes_first_under_load"),
        (Fragility::HintsBlock, "a_subscriber_that_never_reads_holds_up_nobody"),
        (Fragility::OneSubscriberOnly, "every_subscriber_is_woken"),
        (Fragility::ExtendOnlyLengthens, "an_extension_may_shorten_a_lease"),
        (Fragility::KeyForgottenByRequeue, "a_requeued_job_still_has_its_dedupe_key"),
        (Fragility::BatchCapped, "the_largest_batch_is_taken_whole"),
        (Fragility::LeaseLimitsExclusive, "the_shortest_and_the_longest_lease_are_given"),
        (Fragility::NamesCut, "the_longest_names_are_kept_apart"),
        (Fragility::TextCutAtNul, "keys_and_reasons_of_any_text_are_kept"),
        (Fragility::LongReasonsRefused, "a_long_reason_is_cut_between_letters"),
        (Fragility::LastDayIsPast, "the_ends_of_time_are_times"),
        (Fragility::SignalKeepsOldPriority, "random_operations_agree_with_a_reference_model"),
        (Fragility::ExtendOnlyLengthens, "random_operations_agree_with_a_reference_model"),
        (Fragility::LeasesByWallClock, "a_clock_set_forward_ends_no_lease"),
        (Fragility::LeasesByWallClock, "a_clock_set_back_puts_off_no_end_of_a_lease"),
        (Fragility::ReadyByWallClock, "a_clock_set_back_hides_no_job_that_was_ready"),
        (Fragility::JobsLostAtReopen, "every_job_outlives_a_reopen_as_it_was"),
        (Fragility::DelayLostAtReopen, "a_delay_outlives_a_reopen"),
        (Fragility::LeasesLostAtReopen, "a_lease_outlives_a_reopen"),
        (Fragility::SignalLostAtReopen, "a_signal_while_leased_outlives_a_reopen"),
    ];
    let missed: Vec<_> =
        catches.iter().filter(|(flaw, case)| verdict(BrokenFragile(*flaw), case).is_none()).collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[test]
fn each_fault_of_a_client_is_caught_by_the_case_that_names_it() {
    let catches = [
        (Fault::CutEnqueuesAreSuccesses, "an_enqueue_cut_at_any_byte_is_told_truthfully"),
        (Fault::CutEnqueuesAreSuccesses, "through_random_faults_no_job_is_lost_or_stolen"),
        (Fault::CutAcksAreSuccesses, "an_ack_cut_at_any_byte_is_told_truthfully"),
        (Fault::CutAcksAreSuccesses, "through_random_faults_no_job_is_lost_or_stolen"),
        (Fault::LostAnswersAreUnavailable, "an_enqueue_cut_at_any_byte_is_told_truthfully"),
        (Fault::LostAnswersAreUnavailable, "an_ack_cut_at_any_byte_is_told_truthfully"),
        (Fault::LostAnswersAreUnavailable, "an_answer_that_never_comes_is_no_refusal"),
        (Fault::TakenIsGone, "a_dequeue_whose_answer_is_lost_loses_no_job"),
        (Fault::TakenIsGone, "through_random_faults_no_job_is_lost_or_stolen"),
        (Fault::LeasesEndWithTheConnection, "through_random_faults_no_job_is_lost_or_stolen"),
        (Fault::WaitsForever, "a_server_that_does_not_answer_is_told_within_the_deadline"),
        (Fault::NeverConnectsAgain, "a_queue_works_again_once_its_network_does"),
        (Fault::HintsDieInSilence, "a_queue_works_again_once_its_network_does"),
        (Fault::PoolIsUnavailable, "a_pool_that_is_used_up_is_told_as_exhausted"),
        (Fault::WaitsForeverForItsPool, "a_pool_that_is_used_up_is_told_as_exhausted"),
        (Fault::JobsLostAtRestart, "a_server_killed_under_load_loses_no_job"),
        (Fault::LeasesLostAtRestart, "a_server_killed_under_load_loses_no_job"),
        (Fault::LeasesLostAtRestart, "leases_delays_and_signals_outlive_a_killed_server"),
        (Fault::JobsLostAtRestart, "leases_delays_and_signals_outlive_a_killed_server"),
    ];
    let missed: Vec<_> =
        catches.iter().filter(|(fault, case)| verdict(BrokenNetwork(*fault), case).is_none()).collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// Every case stands in one of the three lists, so that none is kept that catches nothing.
#[test]
fn every_case_catches_something() {
    let source = include_str!("catches_broken_providers.rs");
    let idle: Vec<_> = suite(BrokenFragile(Fragility::None))
        .cases
        .iter()
        .map(|case| case.name)
        .filter(|name| !source.contains(&format!("\"{name}\"")))
        .collect();
    assert_eq!(idle, Vec::<&str>::new());
}
