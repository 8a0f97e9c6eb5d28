//! The suite's own test: wrong stores, and the cases that catch each.

mod broken;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use broken::{BrokenStore, Fault};
use flames_conformance_runner::failures;
use flames_state::StateStore;
use flames_state_conformance::{Fixture, Harness, Time, suite};

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
}

fn caught(fault: Option<Fault>) -> BTreeSet<&'static str> {
    // One thread: a fault that needs an interleaving yields by itself, so that it shows in every run.
    failures(suite(Broken(fault)).cases, Time::Paused).into_keys().collect()
}

#[test]
fn a_store_without_a_fault_passes_every_case() {
    assert_eq!(caught(None), BTreeSet::new());
}

#[test]
fn each_fault_is_caught_by_the_cases_that_are_meant_for_it() {
    let mut missed = Vec::new();
    for (fault, cases) in CAUGHT_BY {
        let caught = caught(Some(*fault));
        let blind: Vec<_> = cases.iter().filter(|case| !caught.contains(**case)).collect();
        if !blind.is_empty() {
            missed.push(format!("{fault:?} is not seen by {blind:?}, only by {caught:?}"));
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
