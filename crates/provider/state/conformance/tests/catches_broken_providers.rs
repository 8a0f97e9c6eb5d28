//! The suite's own test: wrong stores, and the cases that catch each.

mod broken;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use broken::{BrokenStore, Fault, Networked};
use flames_conformance_runner::{Caught, WrongProviders, caught};
use flames_state::StateStore;
use flames_state_conformance::{Faults, Fixture, Harness, Held, Hook, Hooks, Time, async_trait, suite};

const CAUGHT: &Caught<Fault> = caught![Fault:
    NoName => a_store_names_its_adapter;
    ReadsAreOneCommitLate => what_was_committed_is_read, a_reader_sees_what_was_committed_before_it_began;
    ReadsAreLateAfterTheFirst => a_reader_sees_what_was_committed_before_it_began;
    AbsentReadsAsEmpty => an_absent_key_reads_as_none;
    EmptyValuesVanish => an_empty_value_is_a_value;
    KeysAreText => keys_of_every_byte_are_keys;
    LongValuesAreCut => the_largest_value_is_kept_whole;
    ScanPassesItsEnd => a_scan_is_ordered_and_bounded_by_its_range;
    ScanIsDescending => a_scan_is_ordered_and_bounded_by_its_range;
    PageRepeatsItsFirst => pages_meet_without_skip_or_repeat;
    PageSkipsItsFirst => pages_meet_without_skip_or_repeat;
    FullPageClaimsMore => a_page_that_ends_on_the_last_key_says_so;
    PagesByOffset => a_scan_while_writing_neither_skips_nor_repeats;
    CursorMustExist => a_scan_while_writing_neither_skips_nor_repeats;
    PageInTwoReads => one_page_is_one_consistent_cut;
    AnyPageLimit => a_page_limit_out_of_range_is_refused;
    WritesBeforeChecks => a_failed_check_changes_nothing;
    OnlyTheFirstCheckCounts => a_failed_check_changes_nothing;
    AtMeansPresent => absent_present_and_at_mean_what_they_say, concurrent_increments_are_all_counted;
    PresentMeansAnything => absent_present_and_at_mean_what_they_say;
    VersionsCountPerKey => a_version_is_never_given_twice_for_a_key;
    VersionIsTheValue => a_version_is_never_given_twice_for_a_key;
    EachWriteHasItsVersion => every_key_of_a_commit_gets_its_version;
    PutKeepsWhatIsThere => an_unconditional_write_overwrites;
    NoLimits => a_commit_that_passes_a_limit_is_refused;
    LimitsAreOneTooTight => a_commit_at_its_limits_is_taken;
    LastOfTwoWritesWins => a_key_written_twice_is_refused;
    EmptyCommitsAreTaken => an_empty_commit_is_refused;
    DeleteWantsAKey => deleting_what_is_absent_is_no_error;
    DeleteTakesTheNextKeyToo => a_long_random_history_agrees_with_a_plain_map;
    WritesOneByOne => a_commit_is_all_or_nothing, one_page_is_one_consistent_cut;
    ChecksThenWrites => concurrent_increments_are_all_counted, of_two_who_create_a_key_one_succeeds,
        write_skew_is_refused;
    ChecksOnlyWhatItWrites => write_skew_is_refused;
    LogIsNewestFirst => a_log_reads_back_in_order;
    AppendsInAnyOrder => a_log_reads_back_in_order;
    AppendsDespiteFailedChecks => appends_commit_with_their_writes_or_not_at_all, a_failed_check_changes_nothing;
    OneLogForAll => logs_are_apart;
    LogsByPrefix => logs_are_apart;
    PositionsAreTakenEarly => nothing_appears_behind_a_position_already_seen;
    AnyLogLimit => a_log_page_limit_out_of_range_is_refused;
    TrimKeepsItsPosition => a_trimmed_log_keeps_what_lies_behind;
    TrimTakesAll => a_trimmed_log_keeps_what_lies_behind;
    PositionsFromTheLogsEnd => a_trimmed_log_never_gives_a_position_again;
    NoHints => a_change_is_hinted;
    AppendsAreNotHinted => a_change_is_hinted;
    HintsForEveryone => hints_are_only_for_the_prefix;
    ForgetsAtReopen => what_was_committed_survives_a_reopen;
    DeletedKeysComeBackAtReopen => what_was_committed_survives_a_reopen;
    VersionsStartAnewAtReopen => a_version_is_not_given_again_after_a_reopen;
    PositionsStartAnewAtReopen => a_log_goes_on_behind_its_end_after_a_reopen;
    AtLooksAtAnyKey => random_operations_agree_with_a_reference_model;
    OnePageIsAllThereIs => ten_thousand_keys_under_one_prefix_are_read_once_each;
    LongKeysTakeTooMuchRoom => a_commit_that_meets_every_limit_at_once_is_taken;
    LargeCommitsAppendLate => a_slow_commit_never_appends_behind_what_was_read;
    LogIsReadInWindows => a_log_is_read_across_a_long_gap;
    HintsWaitForTheirReader => a_subscriber_that_never_reads_holds_up_nobody;
    ReadsAreLateUnderLoad => concurrent_histories_are_linearizable;
    HalfDoneWhenDropped => a_dropped_commit_is_applied_whole_or_not_at_all;
    DroppedReadsAreAnsweredNext => a_dropped_read_does_not_mix_up_the_next_answer;
    LosesAnUpdateInACrowd => no_update_of_32_writers_is_lost;
    PositionsFromTheClock => a_clock_turned_back_changes_nothing;
    KilledWithItsBuffer => what_was_answered_survives_a_kill_under_load;
    PositionsGoBackWhenKilled => a_log_goes_on_in_order_across_a_kill;
    CutAnswersAreUnavailable => a_commit_cut_at_any_byte_is_told_truthfully, an_error_that_is_definite_changed_nothing,
        histories_under_faults_are_linearizable;
    CutRequestsAreSuccesses => a_commit_cut_at_any_byte_is_told_truthfully,
        no_commit_reports_success_for_what_is_not_there;
    LateAnswersAreUnavailable => an_answer_that_never_comes_is_an_unknown_outcome;
    RetriesWithoutTelling => an_error_that_is_definite_changed_nothing, no_commit_reports_success_for_what_is_not_there;
    SubmittedAgainIsAppliedAgain => the_same_commit_again_tells_what_became_of_it;
    CutPagesAreWhole => a_read_through_faults_is_whole_or_refused;
    WaitsForever => a_server_that_does_not_answer_is_told_within_the_deadline;
    NeverConnectsAgain => a_store_works_again_once_its_network_does;
    HintsDieInSilence => hints_that_were_cut_off_are_made_up_for;
    WaitsForeverForItsPool => a_pool_that_is_used_up_is_told_within_the_deadline;
    PoolIsUnavailable => a_pool_that_is_used_up_is_told_within_the_deadline;
];

struct Broken(Fault);

struct Opened(Arc<BrokenStore>);

impl Fixture for Opened {
    fn store(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.0) as Arc<dyn StateStore>
    }
}

#[async_trait]
impl Hooks for Opened {
    async fn reopen(&self) {
        self.0.reopen();
    }
    fn jump_clock(&self, by_ms: i64) {
        self.0.jump_clock(by_ms);
    }
}

struct Remote(Arc<Networked>);

impl Fixture for Remote {
    fn store(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.0) as Arc<dyn StateStore>
    }
}

#[async_trait]
impl Hooks for Remote {
    fn operation_deadline(&self) -> Duration {
        Networked::DEADLINE
    }
    fn faults(&self) -> &dyn Faults {
        &self.0.network
    }
    async fn restart_server(&self) {
        self.0.server.killed();
        self.0.network.cut_connections().await;
    }
    async fn exhaust(&self) -> Held {
        Box::new(self.0.every_connection().await)
    }
}

#[async_trait]
impl Harness<dyn Fixture> for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }
    /// One thread: a fault that needs an interleaving yields by itself, so that it shows in every run.
    fn time(&self) -> Time {
        Time::Paused
    }
    fn is_durable(&self) -> bool {
        true
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        Box::new(Opened(Arc::new(BrokenStore::new(self.0))))
    }
    fn hooks(&self) -> &'static [Hook] {
        &Hook::ALL
    }
    async fn fresh_for(&self, hook: Hook) -> Box<dyn Fixture> {
        match hook {
            Hook::Faults | Hook::Restart | Hook::Exhaustion => {
                Box::new(Remote(Arc::new(Networked::new(self.0))))
            }
            Hook::Clock => self.fresh().await,
        }
    }
}

fn main() -> ExitCode {
    let broken = |fault| suite(Broken(fault));
    WrongProviders::new().add("store", broken, &[Fault::None], CAUGHT).run()
}
