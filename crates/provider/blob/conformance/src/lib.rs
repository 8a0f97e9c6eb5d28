//! The suite that every BlobStore must pass.
//!
//! An adapter's `tests/conformance.rs` (`harness = false`) implements [`Harness`] and [`Fixture`] and calls [`run`]. Each case is a
//! `pub async fn` whose name is the promise that it tests.

// A case tells that a promise is broken by panicking.
#![allow(clippy::expect_used)]

mod cases {
    pub(crate) mod atomicity;
    pub(crate) mod faults;
    pub(crate) mod listings;
    pub(crate) mod model;
    pub(crate) mod puts;
    pub(crate) mod races;
    pub(crate) mod reads;
    pub(crate) mod restarts;
}
mod support;

use std::process::ExitCode;
use std::sync::Arc;

use flames_blob::BlobStore;
use flames_conformance_runner::{Interface, Row, Suite, table};

pub use flames_conformance_runner::{Faults, Harness, Hook, Hooks, Time, Unavailable, async_trait, failures};

use crate::cases::{atomicity, faults, listings, model, puts, races, reads, restarts};

/// A store of a case's own.
pub trait Fixture: Hooks {
    /// The store, as it was opened last: empty at first. Cases drop their own handles before they have it opened anew.
    fn store(&self) -> Arc<dyn BlobStore>;
}

fn interface() -> Interface<dyn Fixture> {
    let rows: Vec<Row<Box<dyn Fixture>>> = table![
        puts:
            a_blob_reads_back_as_it_was_put,
            an_empty_blob_is_a_blob,
            a_long_blob_streams_in_short_chunks,
            a_put_replaces_the_blob_whole,
            a_wrong_digest_is_refused,
            a_wrong_size_is_refused,
            a_stream_longer_than_declared_is_refused_before_it_ends,
            options_past_a_limit_are_refused,
            head_tells_size_digest_type_and_metadata,
            keys_that_look_alike_are_apart,
            every_limit_is_met_exactly_and_passed_by_one,
            a_deleted_blob_is_gone,
            deleting_what_is_not_there_is_no_error,
            exists_tells_the_truth;
        atomicity:
            a_put_is_invisible_until_it_is_whole,
            a_put_whose_stream_fails_leaves_nothing,
            a_put_whose_stream_fails_keeps_the_old_blob,
            an_abandoned_put_leaves_nothing,
            a_put_dropped_at_any_point_has_its_whole_effect_or_none,
            an_abandoned_put_does_not_undo_a_later_one,
            two_puts_racing_leave_one_of_them_whole,
            a_read_that_began_sees_one_blob_though_it_is_replaced;
        races:
            readers_see_whole_blobs_while_they_are_replaced,
            thirty_two_puts_and_deletes_of_one_key_leave_it_whole_or_absent,
            a_listing_while_others_put_and_delete_tells_no_blob_twice;
        model:
            random_operations_agree_with_a_reference_model;
        reads:
            a_range_reads_just_those_bytes,
            a_range_past_the_end_is_cut,
            a_range_that_starts_past_the_end_is_refused,
            a_reversed_range_is_refused,
            what_is_not_there_is_not_found;
        listings:
            a_listing_is_ordered_and_pages_meet,
            a_prefix_lists_only_its_own,
            a_page_tells_what_head_tells,
            a_page_limit_out_of_range_is_refused,
            a_page_that_ends_on_the_last_blob_says_so,
            more_blobs_than_a_page_holds_are_listed_once_each,
            a_blob_that_stays_is_listed_once_while_others_come_and_go;
        restarts:
            a_blob_outlives_its_store if durable,
            what_was_deleted_or_refused_stays_away_after_a_restart if durable,
            what_was_put_is_there_after_the_server_was_killed_under_load if restart;
        faults:
            a_put_cut_at_any_byte_is_told_truthfully if faults,
            no_put_reports_success_for_what_is_not_there if faults,
            a_put_whose_answer_never_comes_is_told_truthfully if faults,
            a_delete_cut_at_any_byte_is_told_truthfully if faults,
            a_read_cut_at_any_byte_is_right_or_told if faults,
            a_read_that_goes_on_after_a_replacement_is_never_stitched if faults,
            a_listing_cut_at_any_byte_is_right_or_told if faults,
            a_stalled_network_ends_every_call_within_its_deadline if faults,
    ];
    Interface { name: "blob", noun: "store", rows }
}

/// The suite, for one provider.
pub fn suite(harness: impl Harness<dyn Fixture>) -> Suite {
    interface().suite(harness)
}

/// Runs the suite as the test binary that it is in.
pub fn run(harness: impl Harness<dyn Fixture>) -> ExitCode {
    flames_conformance_runner::run(suite(harness))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_case_is_in_the_table_and_every_promised_case_is_written() {
        let names: Vec<_> = super::interface().rows.iter().map(|row| row.name).collect();
        flames_conformance_runner::assert_table_is_complete(
            &names,
            &[
                include_str!("cases/atomicity.rs"),
                include_str!("cases/faults.rs"),
                include_str!("cases/listings.rs"),
                include_str!("cases/model.rs"),
                include_str!("cases/puts.rs"),
                include_str!("cases/races.rs"),
                include_str!("cases/reads.rs"),
                include_str!("cases/restarts.rs"),
            ],
            &[include_str!("../../src/lib.rs")],
        );
    }
}
