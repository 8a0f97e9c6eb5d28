//! The suite's own test: wrong stores, and the cases that catch each.

mod broken;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use broken::{BrokenStore, Fault, Networked};
use flames_conformance_runner::failures;
use flames_state::StateStore;
use flames_state_conformance::{Faults, Fixture, Harness, Held, Hook, Time, suite};

/// Each fault, with cases that must catch it (others may as well).
const CAUGHT_BY: &[(Fault, &[&str])] = &[
    (Fault::NoName, &["a_store_names_its_adapter"]),
    (
        Fault::ReadsAreOneCommitLate,
        &["what_was_committed_is_read", "a_reader_sees_what_was_committed_before_it_began"],
    ),
    (Fault::ReadsAreLateAfterTheFirst, &["a_reader_sees_what_was_committed_before_it_began"]),
    (Fault::AbsentReadsAsEmpty, &["an_absent_key_reads_as_none"]),
    (Fault::EmptyValuesVanish, &["an_empty_value_is_a_value"]),
    (Fault::KeysAreText, &["keys_of_every_byte_are_keys"]),
    (Fault::LongValuesAreCut, &["the_largest_value_is_kept_whole"]),
    (Fault::ScanPassesItsEnd, &["a_scan_is_ordered_and_bounded_by_its_range"]),
    (Fault::ScanIsDescending, &["a_scan_is_ordered_and_bounded_by_its_range"]),
    (Fault::PageRepeatsItsFirst, &["pages_meet_without_skip_or_repeat"]),
    (Fault::PageSkipsItsFirst, &["pages_meet_without_skip_or_repeat"]),
    (Fault::FullPageClaimsMore, &["a_page_that_ends_on_the_last_key_says_so"]),
    (Fault::PagesByOffset, &["a_scan_while_writing_neither_skips_nor_repeats"]),
    (Fault::CursorMustExist, &["a_scan_while_writing_neither_skips_nor_repeats"]),
    (Fault::PageInTwoReads, &["one_page_is_one_consistent_cut"]),
    (Fault::AnyPageLimit, &["a_page_limit_out_of_range_is_refused"]),
    (Fault::WritesBeforeChecks, &["a_failed_check_changes_nothing"]),
    (Fault::OnlyTheFirstCheckCounts, &["a_failed_check_changes_nothing"]),
    (
        Fault::AtMeansPresent,
        &["absent_present_and_at_mean_what_they_say", "concurrent_increments_are_all_counted"],
    ),
    (Fault::PresentMeansAnything, &["absent_present_and_at_mean_what_they_say"]),
    (Fault::VersionsCountPerKey, &["a_version_is_never_given_twice_for_a_key"]),
    (Fault::VersionIsTheValue, &["a_version_is_never_given_twice_for_a_key"]),
    (Fault::EachWriteHasItsVersion, &["every_key_of_a_commit_gets_its_version"]),
    (Fault::PutKeepsWhatIsThere, &["an_unconditional_write_overwrites"]),
    (Fault::NoLimits, &["a_commit_that_passes_a_limit_is_refused"]),
    (Fault::LimitsAreOneTooTight, &["a_commit_at_its_limits_is_taken"]),
    (Fault::LastOfTwoWritesWins, &["a_key_written_twice_is_refused"]),
    (Fault::EmptyCommitsAreTaken, &["an_empty_commit_is_refused"]),
    (Fault::DeleteWantsAKey, &["deleting_what_is_absent_is_no_error"]),
    (Fault::DeleteTakesTheNextKeyToo, &["a_long_random_history_agrees_with_a_plain_map"]),
    (Fault::WritesOneByOne, &["a_commit_is_all_or_nothing", "one_page_is_one_consistent_cut"]),
    (
        Fault::ChecksThenWrites,
        &[
            "concurrent_increments_are_all_counted",
            "of_two_who_create_a_key_one_succeeds",
            "write_skew_is_refused",
        ],
    ),
    (Fault::ChecksOnlyWhatItWrites, &["write_skew_is_refused"]),
    (Fault::LogIsNewestFirst, &["a_log_reads_back_in_order"]),
    (Fault::AppendsInAnyOrder, &["a_log_reads_back_in_order"]),
    (
        Fault::AppendsDespiteFailedChecks,
        &["appends_commit_with_their_writes_or_not_at_all", "a_failed_check_changes_nothing"],
    ),
    (Fault::OneLogForAll, &["logs_are_apart"]),
    (Fault::LogsByPrefix, &["logs_are_apart"]),
    (Fault::PositionsAreTakenEarly, &["nothing_appears_behind_a_position_already_seen"]),
    (Fault::AnyLogLimit, &["a_log_page_limit_out_of_range_is_refused"]),
    (Fault::TrimKeepsItsPosition, &["a_trimmed_log_keeps_what_lies_behind"]),
    (Fault::TrimTakesAll, &["a_trimmed_log_keeps_what_lies_behind"]),
    (Fault::PositionsFromTheLogsEnd, &["a_trimmed_log_never_gives_a_position_again"]),
    (Fault::NoHints, &["a_change_is_hinted"]),
    (Fault::AppendsAreNotHinted, &["a_change_is_hinted"]),
    (Fault::HintsForEveryone, &["hints_are_only_for_the_prefix"]),
    (Fault::ForgetsAtReopen, &["what_was_committed_survives_a_reopen"]),
    (Fault::DeletedKeysComeBackAtReopen, &["what_was_committed_survives_a_reopen"]),
    (Fault::VersionsStartAnewAtReopen, &["a_version_is_not_given_again_after_a_reopen"]),
    (Fault::PositionsStartAnewAtReopen, &["a_log_goes_on_behind_its_end_after_a_reopen"]),
    (Fault::AtLooksAtAnyKey, &["random_operations_agree_with_a_reference_model"]),
    (Fault::OnePageIsAllThereIs, &["ten_thousand_keys_under_one_prefix_are_read_once_each"]),
    (Fault::LongKeysTakeTooMuchRoom, &["a_commit_that_meets_every_limit_at_once_is_taken"]),
    (Fault::LargeCommitsAppendLate, &["a_slow_commit_never_appends_behind_what_was_read"]),
    (Fault::LogIsReadInWindows, &["a_log_is_read_across_a_long_gap"]),
    (Fault::HintsWaitForTheirReader, &["a_subscriber_that_never_reads_holds_up_nobody"]),
    (Fault::ReadsAreLateUnderLoad, &["concurrent_histories_are_linearizable"]),
    (Fault::HalfDoneWhenDropped, &["a_dropped_commit_is_applied_whole_or_not_at_all"]),
    (Fault::DroppedReadsAreAnsweredNext, &["a_dropped_read_does_not_mix_up_the_next_answer"]),
    (Fault::LosesAnUpdateInACrowd, &["no_update_of_32_writers_is_lost"]),
    (Fault::PositionsFromTheClock, &["a_clock_turned_back_changes_nothing"]),
    (Fault::KilledWithItsBuffer, &["what_was_answered_survives_a_kill_under_load"]),
    (Fault::PositionsGoBackWhenKilled, &["a_log_goes_on_in_order_across_a_kill"]),
    (
        Fault::CutAnswersAreUnavailable,
        &[
            "a_commit_cut_at_any_byte_is_told_truthfully",
            "an_error_that_is_definite_changed_nothing",
            "histories_under_faults_are_linearizable",
        ],
    ),
    (
        Fault::CutRequestsAreSuccesses,
        &["a_commit_cut_at_any_byte_is_told_truthfully", "no_commit_reports_success_for_what_is_not_there"],
    ),
    (Fault::LateAnswersAreUnavailable, &["an_answer_that_never_comes_is_an_unknown_outcome"]),
    (
        Fault::RetriesWithoutTelling,
        &["an_error_that_is_definite_changed_nothing", "no_commit_reports_success_for_what_is_not_there"],
    ),
    (Fault::SubmittedAgainIsAppliedAgain, &["the_same_commit_again_tells_what_became_of_it"]),
    (Fault::CutPagesAreWhole, &["a_read_through_faults_is_whole_or_refused"]),
    (Fault::WaitsForever, &["a_server_that_does_not_answer_is_told_within_the_deadline"]),
    (Fault::NeverConnectsAgain, &["a_store_works_again_once_its_network_does"]),
    (Fault::HintsDieInSilence, &["hints_that_were_cut_off_are_made_up_for"]),
    (Fault::WaitsForeverForItsPool, &["a_pool_that_is_used_up_is_told_within_the_deadline"]),
    (Fault::PoolIsUnavailable, &["a_pool_that_is_used_up_is_told_within_the_deadline"]),
];

struct Broken(Option<Fault>);

struct Opened(Arc<BrokenStore>);

#[async_trait]
impl Fixture for Opened {
    fn store(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.0) as Arc<dyn StateStore>
    }
    async fn reopen(&self) {
        self.0.reopen();
    }
    fn turn_clock_back(&self, by: Duration) {
        self.0.turn_clock_back(by);
    }
}

struct Remote(Arc<Networked>);

#[async_trait]
impl Fixture for Remote {
    fn store(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.0) as Arc<dyn StateStore>
    }
    fn operation_deadline(&self) -> Duration {
        Networked::DEADLINE
    }
    fn faults(&self) -> &dyn Faults {
        &*self.0.network
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
impl Harness for Broken {
    fn name(&self) -> &'static str {
        "broken"
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

/// Which cases of those that `concerns` fail, with what they say.
fn caught(fault: Option<Fault>, concerns: impl Fn(&str) -> bool) -> BTreeMap<&'static str, String> {
    let cases = suite(Broken(fault)).cases.into_iter().filter(|case| concerns(case.name)).collect();
    // One thread: a fault that needs an interleaving yields by itself, so that it shows in every run.
    failures(cases, Time::Paused)
}

#[test]
fn a_store_without_a_fault_passes_every_case() {
    assert_eq!(caught(None, |_| true), BTreeMap::new());
}

#[test]
fn each_fault_is_caught_by_the_cases_that_are_meant_for_it() {
    let mut missed = Vec::new();
    for (fault, cases) in CAUGHT_BY {
        let caught = caught(Some(*fault), |case| cases.contains(&case));
        let blind: Vec<_> = cases.iter().filter(|case| !caught.contains_key(**case)).collect();
        if !blind.is_empty() {
            missed.push(format!("{fault:?} is not seen by {blind:?}"));
        }
    }
    assert_eq!(missed, Vec::<String>::new());
}

#[test]
fn each_case_catches_a_fault() {
    let catching: BTreeSet<&str> = CAUGHT_BY.iter().flat_map(|(_, cases)| cases.iter().copied()).collect();
    let all: BTreeSet<&str> = suite(Broken(None)).cases.iter().map(|case| case.name).collect();
    assert_eq!(catching, all);
}
