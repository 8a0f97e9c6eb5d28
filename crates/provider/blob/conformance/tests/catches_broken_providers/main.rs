//! The suite itself, put to the test: wrong stores, and the cases that catch each.

// The store under test is a test's helper: it may panic.
#![allow(clippy::unwrap_used)]

mod broken;
mod network;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flames_blob::BlobStore;
use flames_blob_conformance::{Faults, Fixture, Harness, Hook, Time, async_trait, failures, suite};

use broken::{BrokenStore, Flaw};

struct Broken(Option<Flaw>);

struct Fresh(Arc<BrokenStore>);

#[async_trait]
impl Harness for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    fn is_durable(&self) -> bool {
        true
    }
    fn hooks(&self) -> &'static [Hook] {
        &Hook::ALL
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        Box::new(Fresh(Arc::new(BrokenStore::new(self.0))))
    }
}

#[async_trait]
impl Fixture for Fresh {
    fn store(&self) -> Arc<dyn BlobStore> {
        self.0.clone()
    }
    async fn reopen(&self) -> Arc<dyn BlobStore> {
        Arc::new(self.0.reopened())
    }
    fn operation_deadline(&self) -> Duration {
        network::DEADLINE
    }
    fn faults(&self) -> &dyn Faults {
        self.0.network()
    }
    async fn restart_server(&self) {
        self.0.kill_the_server();
    }
}

/// Runs the cases named and tells those that did not fail.
fn that_miss(flaw: Flaw, named: &[&'static str]) -> BTreeSet<&'static str> {
    let mut cases = suite(Broken(Some(flaw))).cases;
    cases.retain(|case| named.contains(&case.name));
    let known: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
    let unknown: Vec<_> = named.iter().filter(|name| !known.contains(*name)).collect();
    assert!(unknown.is_empty(), "no such cases: {unknown:?}");
    let failed = failures(cases, Time::Paused);
    named.iter().copied().filter(|name| !failed.contains_key(name)).collect()
}

#[test]
fn a_store_without_a_flaw_passes_every_case() {
    let failed = failures(suite(Broken(None)).cases, Time::Paused);
    assert!(failed.is_empty(), "{failed:#?}");
}

/// One test for each flaw: every case named must fail for a store that has it.
macro_rules! caught {
    ($($test:ident: $flaw:ident => $($case:ident),+;)+) => {
        $(#[test]
        fn $test() {
            let missed = that_miss(Flaw::$flaw, &[$(stringify!($case)),+]);
            assert!(missed.is_empty(), "{:?} is not caught by {missed:?}", Flaw::$flaw);
        })+

        #[test]
        fn every_flaw_is_put_to_the_test() {
            let tested = [$(Flaw::$flaw),+];
            for flaw in Flaw::ALL {
                assert!(tested.contains(flaw), "{flaw:?} is not tested");
            }
        }
    };
}

caught! {
    bytes_that_are_lost_are_caught: LosesTheLastByte => a_blob_reads_back_as_it_was_put;
    half_a_blob_left_by_a_failed_stream_is_caught: KeepsWhatCameBeforeAFailure =>
        a_put_whose_stream_fails_leaves_nothing, a_put_whose_stream_fails_keeps_the_old_blob,
        what_was_deleted_or_refused_stays_away_after_a_restart;
    a_failed_put_that_loses_the_old_blob_is_caught: RemovesTheOldBlobFirst =>
        a_put_whose_stream_fails_keeps_the_old_blob, a_put_is_invisible_until_it_is_whole, an_abandoned_put_leaves_nothing;
    an_error_of_the_stream_that_is_renamed_is_caught: RenamesTheStreamsError => a_put_whose_stream_fails_leaves_nothing;
    a_put_that_shows_before_it_is_whole_is_caught: ShowsBlobsBeforeTheyAreWhole =>
        a_put_is_invisible_until_it_is_whole, an_abandoned_put_leaves_nothing,
        a_put_dropped_at_any_point_has_its_whole_effect_or_none;
    an_abandoned_put_that_goes_on_is_caught: GoesOnWhenAbandoned =>
        an_abandoned_put_leaves_nothing, an_abandoned_put_does_not_undo_a_later_one;
    a_digest_that_is_not_checked_is_caught: IgnoresTheDigest => a_wrong_digest_is_refused;
    a_size_that_is_not_checked_is_caught: IgnoresTheSize => a_wrong_size_is_refused;
    a_size_that_is_checked_too_late_is_caught: ChecksTheSizeAtTheEnd =>
        a_stream_longer_than_declared_is_refused_before_it_ends;
    a_refused_blob_that_is_stored_is_caught: StoresWhatItRefuses => a_wrong_digest_is_refused, a_wrong_size_is_refused;
    options_that_are_not_checked_are_caught: IgnoresTheLimitsOfOptions => options_past_a_limit_are_refused;
    options_that_are_checked_too_late_are_caught: ChecksOptionsAtTheEnd => options_past_a_limit_are_refused;
    an_empty_blob_that_is_refused_is_caught: RefusesEmptyBlobs => an_empty_blob_is_a_blob;
    racing_puts_that_mix_are_caught: StoresInTwoSteps =>
        two_puts_racing_leave_one_of_them_whole, a_put_dropped_at_any_point_has_its_whole_effect_or_none;
    metadata_that_stays_of_a_replaced_blob_is_caught: KeepsTheOldMetadata => a_put_replaces_the_blob_whole;
    chunks_that_are_too_long_are_caught: GivesAllInOneChunk => a_long_blob_streams_in_short_chunks;
    a_read_that_follows_a_replacement_is_caught: ReadsWhatIsThereNow =>
        a_read_that_began_sees_one_blob_though_it_is_replaced;
    a_range_that_is_off_by_one_is_caught: TakesRangesAsInclusive => a_range_reads_just_those_bytes;
    a_range_that_is_ignored_is_caught: IgnoresRanges => a_range_reads_just_those_bytes;
    a_range_past_the_end_that_is_refused_is_caught: RefusesRangesPastTheEnd => a_range_past_the_end_is_cut;
    a_range_past_the_end_that_is_not_cut_is_caught: TellsRangesUncut => a_range_past_the_end_is_cut;
    a_start_past_the_end_that_is_taken_is_caught: TakesStartsPastTheEnd => a_range_that_starts_past_the_end_is_refused;
    a_reversed_range_that_is_taken_is_caught: TakesReversedRanges => a_reversed_range_is_refused;
    another_error_than_not_found_is_caught: CallsTheAbsentUnavailable =>
        what_is_not_there_is_not_found, a_deleted_blob_is_gone;
    metadata_that_head_forgets_is_caught: ForgetsMetadata => head_tells_size_digest_type_and_metadata;
    a_type_that_head_makes_up_is_caught: MakesUpTheType => head_tells_size_digest_type_and_metadata;
    a_size_that_head_makes_up_is_caught: MakesUpTheSize => head_tells_size_digest_type_and_metadata;
    keys_that_collide_are_caught: FoldsTheCaseOfKeys => keys_that_look_alike_are_apart;
    a_delete_that_takes_too_much_is_caught: DeletesByPrefix => keys_that_look_alike_are_apart;
    a_delete_that_does_nothing_is_caught: DeletesNothing => a_deleted_blob_is_gone, exists_tells_the_truth;
    a_delete_that_wants_a_blob_is_caught: WantsABlobToDelete => deleting_what_is_not_there_is_no_error;
    an_exists_that_lies_is_caught: SaysThatAllExists => exists_tells_the_truth;
    a_listing_without_order_is_caught: ListsBackwards => a_listing_is_ordered_and_pages_meet;
    pages_that_overlap_are_caught: StartsPagesWithTheLastBlob => a_listing_is_ordered_and_pages_meet;
    pages_that_end_early_are_caught: KnowsOnlyOnePage => a_listing_is_ordered_and_pages_meet;
    a_page_that_needs_its_start_is_caught: LosesItsPlace => a_listing_is_ordered_and_pages_meet;
    a_prefix_that_is_ignored_is_caught: IgnoresThePrefix => a_prefix_lists_only_its_own;
    a_prefix_of_whole_segments_is_caught: TakesPrefixesAsFolders => a_prefix_lists_only_its_own;
    pages_by_number_are_caught: CountsInsteadOfComparing =>
        a_blob_that_stays_is_listed_once_while_others_come_and_go,
        a_listing_while_others_put_and_delete_tells_no_blob_twice;
    a_page_that_tells_less_than_head_is_caught: ListsWithoutMetadata => a_page_tells_what_head_tells;
    a_limit_that_is_not_checked_is_caught: TakesAnyLimit => a_page_limit_out_of_range_is_refused;
    blobs_that_do_not_outlive_the_store_are_caught: ForgetsAtARestart => a_blob_outlives_its_store;
    deletes_that_do_not_outlive_the_store_are_caught: UndoesDeletesAtARestart =>
        what_was_deleted_or_refused_stays_away_after_a_restart;
    a_limit_that_is_not_met_is_caught: RefusesTheLongestKeys => every_limit_is_met_exactly_and_passed_by_one;
    a_page_promised_in_vain_is_caught: PromisesAPageMore => a_page_that_ends_on_the_last_blob_says_so;
    a_listing_of_one_page_of_the_server_is_caught: ListsTheFirstThousand =>
        more_blobs_than_a_page_holds_are_listed_once_each;
    a_description_of_another_blob_is_caught: DescribesWhatIsThereLater =>
        readers_see_whole_blobs_while_they_are_replaced;
    a_delete_that_comes_late_is_caught: DeletesLate =>
        thirty_two_puts_and_deletes_of_one_key_leave_it_whole_or_absent, a_deleted_blob_is_gone;
    what_is_kept_of_a_deleted_blob_is_caught: RemembersTheMetadataOfTheDeleted =>
        random_operations_agree_with_a_reference_model;
    a_put_that_is_there_though_it_failed_is_caught: CallsLostAnswersUnavailable =>
        a_put_cut_at_any_byte_is_told_truthfully, no_put_reports_success_for_what_is_not_there,
        a_put_whose_answer_never_comes_is_told_truthfully;
    a_put_that_is_not_there_is_caught: CallsLostRequestsDone =>
        a_put_cut_at_any_byte_is_told_truthfully, no_put_reports_success_for_what_is_not_there;
    a_delete_that_was_lost_is_caught: CallsLostDeletesDone => a_delete_cut_at_any_byte_is_told_truthfully;
    a_read_that_ends_early_is_caught: EndsCutReads => a_read_cut_at_any_byte_is_right_or_told;
    two_blobs_in_one_read_are_caught: StitchesReplacedBlobs =>
        a_read_that_goes_on_after_a_replacement_is_never_stitched;
    a_listing_that_ends_early_is_caught: EndsCutListings => a_listing_cut_at_any_byte_is_right_or_told;
    a_call_that_waits_for_ever_is_caught: WaitsForEver => a_stalled_network_ends_every_call_within_its_deadline;
    a_store_that_a_stall_breaks_for_good_is_caught: StaysStalled =>
        a_stalled_network_ends_every_call_within_its_deadline;
    what_a_killed_server_forgets_is_caught: ForgetsWhenTheServerIsKilled =>
        what_was_put_is_there_after_the_server_was_killed_under_load;
}
