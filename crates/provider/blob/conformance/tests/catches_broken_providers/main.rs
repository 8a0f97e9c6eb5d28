//! The suite itself, put to the test: wrong stores, and the cases that catch each.

// The store under test is a test's helper: it may panic.
#![allow(clippy::unwrap_used)]

mod broken;
mod network;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_blob::BlobStore;
use flames_blob_conformance::{Faults, Fixture, Harness, Hook, Hooks, Time, async_trait, suite};
use flames_conformance_runner::{Caught, SimulatedNetwork, WrongProviders, caught};

use broken::{BrokenStore, Flaw};

const CAUGHT: &Caught<Flaw> = caught![Flaw:
    LosesTheLastByte => a_blob_reads_back_as_it_was_put;
    KeepsWhatCameBeforeAFailure => a_put_whose_stream_fails_leaves_nothing, a_put_whose_stream_fails_keeps_the_old_blob,
        what_was_deleted_or_refused_stays_away_after_a_restart;
    RemovesTheOldBlobFirst => a_put_whose_stream_fails_keeps_the_old_blob, a_put_is_invisible_until_it_is_whole,
        an_abandoned_put_leaves_nothing;
    RenamesTheStreamsError => a_put_whose_stream_fails_leaves_nothing;
    ShowsBlobsBeforeTheyAreWhole => a_put_is_invisible_until_it_is_whole, an_abandoned_put_leaves_nothing,
        a_put_dropped_at_any_point_has_its_whole_effect_or_none;
    GoesOnWhenAbandoned => an_abandoned_put_leaves_nothing, an_abandoned_put_does_not_undo_a_later_one;
    IgnoresTheDigest => a_wrong_digest_is_refused;
    IgnoresTheSize => a_wrong_size_is_refused;
    ChecksTheSizeAtTheEnd => a_stream_longer_than_declared_is_refused_before_it_ends;
    StoresWhatItRefuses => a_wrong_digest_is_refused, a_wrong_size_is_refused;
    IgnoresTheLimitsOfOptions => options_past_a_limit_are_refused;
    ChecksOptionsAtTheEnd => options_past_a_limit_are_refused;
    RefusesEmptyBlobs => an_empty_blob_is_a_blob;
    StoresInTwoSteps => two_puts_racing_leave_one_of_them_whole,
        a_put_dropped_at_any_point_has_its_whole_effect_or_none;
    KeepsTheOldMetadata => a_put_replaces_the_blob_whole;
    GivesAllInOneChunk => a_long_blob_streams_in_short_chunks;
    ReadsWhatIsThereNow => a_read_that_began_sees_one_blob_though_it_is_replaced;
    TakesRangesAsInclusive => a_range_reads_just_those_bytes;
    IgnoresRanges => a_range_reads_just_those_bytes;
    RefusesRangesPastTheEnd => a_range_past_the_end_is_cut;
    TellsRangesUncut => a_range_past_the_end_is_cut;
    TakesStartsPastTheEnd => a_range_that_starts_past_the_end_is_refused;
    TakesReversedRanges => a_reversed_range_is_refused;
    CallsTheAbsentUnavailable => what_is_not_there_is_not_found, a_deleted_blob_is_gone;
    ForgetsMetadata => head_tells_size_digest_type_and_metadata;
    MakesUpTheType => head_tells_size_digest_type_and_metadata;
    MakesUpTheSize => head_tells_size_digest_type_and_metadata;
    FoldsTheCaseOfKeys => keys_that_look_alike_are_apart;
    DeletesByPrefix => keys_that_look_alike_are_apart;
    DeletesNothing => a_deleted_blob_is_gone, exists_tells_the_truth;
    WantsABlobToDelete => deleting_what_is_not_there_is_no_error;
    SaysThatAllExists => exists_tells_the_truth;
    ListsBackwards => a_listing_is_ordered_and_pages_meet;
    StartsPagesWithTheLastBlob => a_listing_is_ordered_and_pages_meet;
    KnowsOnlyOnePage => a_listing_is_ordered_and_pages_meet;
    LosesItsPlace => a_listing_is_ordered_and_pages_meet;
    IgnoresThePrefix => a_prefix_lists_only_its_own;
    TakesPrefixesAsFolders => a_prefix_lists_only_its_own;
    CountsInsteadOfComparing => a_blob_that_stays_is_listed_once_while_others_come_and_go,
        a_listing_while_others_put_and_delete_tells_no_blob_twice;
    ListsWithoutMetadata => a_page_tells_what_head_tells;
    TakesAnyLimit => a_page_limit_out_of_range_is_refused;
    ForgetsAtARestart => a_blob_outlives_its_store;
    UndoesDeletesAtARestart => what_was_deleted_or_refused_stays_away_after_a_restart;
    RefusesTheLongestKeys => every_limit_is_met_exactly_and_passed_by_one;
    PromisesAPageMore => a_page_that_ends_on_the_last_blob_says_so;
    ListsTheFirstThousand => more_blobs_than_a_page_holds_are_listed_once_each;
    DescribesWhatIsThereLater => readers_see_whole_blobs_while_they_are_replaced;
    DeletesLate => thirty_two_puts_and_deletes_of_one_key_leave_it_whole_or_absent, a_deleted_blob_is_gone;
    RemembersTheMetadataOfTheDeleted => random_operations_agree_with_a_reference_model;
    CallsLostAnswersUnavailable => a_put_cut_at_any_byte_is_told_truthfully,
        no_put_reports_success_for_what_is_not_there, a_put_whose_answer_never_comes_is_told_truthfully;
    CallsLostRequestsDone => a_put_cut_at_any_byte_is_told_truthfully, no_put_reports_success_for_what_is_not_there;
    CallsLostDeletesDone => a_delete_cut_at_any_byte_is_told_truthfully;
    EndsCutReads => a_read_cut_at_any_byte_is_right_or_told;
    StitchesReplacedBlobs => a_read_that_goes_on_after_a_replacement_is_never_stitched;
    EndsCutListings => a_listing_cut_at_any_byte_is_right_or_told;
    WaitsForEver => a_stalled_network_ends_every_call_within_its_deadline;
    StaysStalled => a_stalled_network_ends_every_call_within_its_deadline;
    ForgetsWhenTheServerIsKilled => what_was_put_is_there_after_the_server_was_killed_under_load;
];

struct Broken(Flaw);

struct Fresh {
    store: Mutex<Arc<BrokenStore>>,
    network: SimulatedNetwork,
}

#[async_trait]
impl Harness<dyn Fixture> for Broken {
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
        &[Hook::Faults, Hook::Restart]
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let store = BrokenStore::new(self.0);
        let network = store.network().clone();
        Box::new(Fresh { store: Mutex::new(Arc::new(store)), network })
    }
}

impl Fixture for Fresh {
    fn store(&self) -> Arc<dyn BlobStore> {
        self.store.lock().unwrap().clone()
    }
}

#[async_trait]
impl Hooks for Fresh {
    async fn reopen(&self) {
        let mut store = self.store.lock().unwrap();
        *store = Arc::new(store.reopened());
    }
    fn operation_deadline(&self) -> Duration {
        network::DEADLINE
    }
    fn faults(&self) -> &dyn Faults {
        &self.network
    }
    async fn restart_server(&self) {
        self.store.lock().unwrap().kill_the_server();
    }
}

fn main() -> ExitCode {
    WrongProviders::new().add("store", |flaw| suite(Broken(flaw)), &[Flaw::None], CAUGHT).run()
}
