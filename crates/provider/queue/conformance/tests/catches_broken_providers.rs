//! The suite's own test: queues that are wrong in one way each, and the cases that catch each.

#![allow(clippy::unwrap_used)]

mod broken;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use broken::fragile::{Fragile, Fragility};
use broken::network::{Fault, Networked};
use broken::{BrokenQueue, Flaw};
use flames_clock::{Clock, SimulatedClock};
use flames_conformance_runner::{Caught, WrongProviders, caught};
use flames_queue::WorkQueue;
use flames_queue_conformance::{Faults, Fixture, Harness, Held, Hook, Hooks, Time, async_trait, suite};

const FLAWS: &Caught<Flaw> = caught![Flaw:
    NoFence => a_stale_worker_cannot_ack_anothers_job, a_job_comes_back_when_its_lease_expires;
    LostLeaseExtends => an_expired_lease_cannot_extend;
    LostLeaseAcks => an_expired_lease_cannot_ack, a_lease_settles_once, a_lease_that_was_never_given_settles_nothing;
    LostLeaseNacks => an_expired_lease_cannot_nack;
    LostLeaseParks => an_expired_lease_cannot_park;
    LeaseNeverExpires => a_job_comes_back_when_its_lease_expires;
    LeaseNotKept => a_leased_job_is_not_delivered_twice;
    ExtendDoesNothing => an_extended_lease_lives_longer;
    AckDoesNothing => an_acknowledged_job_is_gone;
    BatchesOverlap => many_workers_share_without_overlap;
    BatchTooLarge => a_batch_takes_no_more_than_asked;
    NoJobInvented => an_empty_topic_gives_an_empty_batch, dequeue_one_answers_no_jobs;
    AttemptsNotCounted => attempts_are_counted;
    DelayIgnored => a_delayed_job_waits_for_its_time;
    PastNeverComes => a_job_for_a_time_in_the_past_is_ready_now;
    PriorityIgnored => higher_priority_goes_first;
    NewestFirst => equal_priority_goes_in_order_of_readiness;
    RetryTimeIgnored => a_job_given_back_waits_for_its_retry_time;
    NackIntoThePastLoses => a_job_given_back_into_the_past_is_ready_now;
    DedupeIgnored => a_known_dedupe_key_coalesces;
    FirstEnqueueWins => a_known_dedupe_key_coalesces, coalescing_keeps_the_earliest_time_and_the_highest_priority,
        a_signal_does_not_wait_for_the_back_off_of_a_retry;
    SignalLostWhileLeased => a_signal_while_leased_is_delivered_after_the_ack, a_signal_while_leased_outlives_a_nack,
        a_signal_while_leased_outlives_the_lease, a_signal_while_leased_outlives_a_park;
    KeyKnownForever => a_dedupe_key_is_free_again_after_the_ack;
    SignalLostWhileParked => a_parked_job_is_requeued_by_its_dedupe_key;
    TopicsAreOne => topics_are_apart, a_dedupe_key_is_known_to_its_topic_only;
    ParkRedelivers => a_parked_job_is_not_delivered;
    ReasonLost => parked_jobs_are_listed_with_their_reason;
    PagesRepeat => pages_of_parked_jobs_meet;
    PagesSkip => pages_of_parked_jobs_meet;
    RequeueDoesNothing => a_requeued_job_is_delivered_again, only_a_parked_job_can_be_requeued;
    StatisticsForgetTheDelayed => the_statistics_count_each_state;
    NoHints => an_enqueue_wakes_a_waiting_worker;
    PayloadCut => a_payload_that_passes_the_limit_is_refused, an_empty_payload_and_the_largest_are_kept_whole;
    OptionsLost => a_job_is_delivered_as_it_was_enqueued, a_dedupe_key_that_passes_the_limit_is_refused;
    RangesBent => a_batch_size_out_of_range_is_refused, a_lease_out_of_range_is_refused,
        a_page_limit_out_of_range_is_refused;
];

const FRAGILITIES: &Caught<Fragility> = caught![Fragility:
    DedupeRaces => many_enqueues_of_one_key_make_one_job;
    IdsMixedUp => each_of_many_enqueues_is_told_its_own_job;
    AckForgetsRacingSignal => a_signal_that_races_with_the_ack_is_never_lost;
    SeveralAcksSucceed => of_many_acks_of_one_lease_one_succeeds;
    AckChecksThenActs => an_ack_at_the_end_of_its_lease_is_all_or_nothing;
    FencedByWorkersName => two_workers_of_one_name_are_told_apart;
    Prefetches => higher_priority_goes_first_under_load;
    HintsBlock => a_subscriber_that_never_reads_holds_up_nobody;
    OneSubscriberOnly => every_subscriber_is_woken;
    ExtendOnlyLengthens => an_extension_may_shorten_a_lease, random_operations_agree_with_a_reference_model;
    KeyForgottenByRequeue => a_requeued_job_still_has_its_dedupe_key;
    BatchCapped => the_largest_batch_is_taken_whole;
    LeaseLimitsExclusive => the_shortest_and_the_longest_lease_are_given;
    NamesCut => the_longest_names_are_kept_apart;
    TextCutAtNul => keys_and_reasons_of_any_text_are_kept;
    LongReasonsRefused => a_long_reason_is_cut_between_letters;
    LastDayIsPast => the_ends_of_time_are_times;
    SignalKeepsOldPriority => random_operations_agree_with_a_reference_model;
    LeasesByWallClock => a_clock_set_forward_ends_no_lease, a_clock_set_back_puts_off_no_end_of_a_lease;
    ReadyByWallClock => a_clock_set_back_hides_no_job_that_was_ready;
    JobsLostAtReopen => every_job_outlives_a_reopen_as_it_was;
    DelayLostAtReopen => a_delay_outlives_a_reopen;
    LeasesLostAtReopen => a_lease_outlives_a_reopen;
    SignalLostAtReopen => a_signal_while_leased_outlives_a_reopen;
];

/// Of a client.
const FAULTS: &Caught<Fault> = caught![Fault:
    CutEnqueuesAreSuccesses => an_enqueue_cut_at_any_byte_is_told_truthfully,
        through_random_faults_no_job_is_lost_or_stolen;
    CutAcksAreSuccesses => an_ack_cut_at_any_byte_is_told_truthfully, through_random_faults_no_job_is_lost_or_stolen;
    LostAnswersAreUnavailable => an_enqueue_cut_at_any_byte_is_told_truthfully,
        an_ack_cut_at_any_byte_is_told_truthfully, an_answer_that_never_comes_is_no_refusal;
    TakenIsGone => a_dequeue_whose_answer_is_lost_loses_no_job, through_random_faults_no_job_is_lost_or_stolen;
    LeasesEndWithTheConnection => through_random_faults_no_job_is_lost_or_stolen;
    WaitsForever => a_server_that_does_not_answer_is_told_within_the_deadline;
    NeverConnectsAgain => a_queue_works_again_once_its_network_does;
    HintsDieInSilence => a_queue_works_again_once_its_network_does;
    PoolIsUnavailable => a_pool_that_is_used_up_is_told_as_exhausted;
    WaitsForeverForItsPool => a_pool_that_is_used_up_is_told_as_exhausted;
    JobsLostAtRestart => a_server_killed_under_load_loses_no_job, leases_delays_and_signals_outlive_a_killed_server;
    LeasesLostAtRestart => a_server_killed_under_load_loses_no_job, leases_delays_and_signals_outlive_a_killed_server;
];

struct Fresh<Queue> {
    clock: Arc<SimulatedClock>,
    queue: Arc<Queue>,
    unit: Duration,
}

impl<Queue> Fresh<Queue> {
    fn new(unit: Duration, queue: impl FnOnce(Arc<SimulatedClock>) -> Queue) -> Self {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        Self { queue: Arc::new(queue(Arc::clone(&clock))), clock, unit }
    }
}

impl<Queue: WorkQueue + 'static> Fixture for Fresh<Queue>
where
    Self: Hooks,
{
    fn queue(&self) -> Arc<dyn WorkQueue> {
        self.queue.clone()
    }
    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
    fn unit(&self) -> Duration {
        self.unit
    }
}

struct Broken(Flaw);

#[async_trait]
impl Harness<dyn Fixture> for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        Box::new(Fresh::new(Duration::from_secs(10), |clock| BrokenQueue::new(self.0, clock)))
    }
}

impl Hooks for Fresh<BrokenQueue> {}

struct BrokenFragile(Fragility);

#[async_trait]
impl Harness<dyn Fixture> for BrokenFragile {
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
        Box::new(Fresh::new(Duration::from_secs(10), |clock| Fragile::new(self.0, clock)))
    }
}

#[async_trait]
impl Hooks for Fresh<Fragile> {
    async fn reopen(&self) {
        self.queue.reopen().await;
    }
    fn jump_clock(&self, by_ms: i64) {
        self.clock.jump_wall(by_ms);
    }
}

struct BrokenNetwork(Fault);

#[async_trait]
impl Harness<dyn Fixture> for BrokenNetwork {
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
        Box::new(Fresh::new(Duration::from_millis(500), |clock| Networked::new(self.0, clock)))
    }
}

#[async_trait]
impl Hooks for Fresh<Networked> {
    fn operation_deadline(&self) -> Duration {
        Networked::DEADLINE
    }
    fn faults(&self) -> &dyn Faults {
        &self.queue.network
    }
    async fn restart_server(&self) {
        self.queue.restart_server().await;
    }
    async fn exhaust(&self) -> Held {
        Box::new(self.queue.every_connection().await)
    }
}

fn main() -> ExitCode {
    WrongProviders::new()
        .add("queue", |flaw| suite(Broken(flaw)), &[Flaw::None], FLAWS)
        .add("state", |flaw| suite(BrokenFragile(flaw)), &[Fragility::None], FRAGILITIES)
        .add("client", |fault| suite(BrokenNetwork(fault)), &[Fault::None], FAULTS)
        .run()
}
