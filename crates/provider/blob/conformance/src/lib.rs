//! The suite that every BlobStore must pass.
//!
//! An adapter's `tests/conformance.rs` (`harness = false`) implements [`Harness`] and [`Fixture`] and calls [`run`]. Each case is a
//! `pub async fn` whose name is the promise that it tests.

// A case tells that a promise is broken by panicking.
#![allow(clippy::expect_used)]

mod cases {
    pub(crate) mod atomicity;
    pub(crate) mod listings;
    pub(crate) mod puts;
    pub(crate) mod reads;
    pub(crate) mod restarts;
}
mod support;

use std::process::ExitCode;
use std::sync::Arc;

use flames_blob::BlobStore;
use flames_conformance_runner::{Row, Suite, cases, table};

pub use async_trait::async_trait;
pub use flames_conformance_runner::{Time, failures};

use crate::cases::{atomicity, listings, puts, reads, restarts};

/// A store of a case's own.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The store: the same at each call, empty at the first.
    fn store(&self) -> Arc<dyn BlobStore>;

    /// Ends the store and opens what it left, as the next process would. Cases drop their own handles before. Called only when
    /// the harness is durable.
    async fn reopen(&self) -> Arc<dyn BlobStore>;
}

/// How a provider is put to the test.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// The provider's name, as [`BlobStore::name`] gives it.
    fn name(&self) -> &'static str;

    /// The time that the cases run in.
    fn time(&self) -> Time;

    /// Whether blobs outlive the store that they were put into.
    fn is_durable(&self) -> bool;

    /// A fixture with an empty store.
    async fn fresh(&self) -> Box<dyn Fixture>;
}

fn rows() -> Vec<Row<Box<dyn Fixture>>> {
    table![
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
            a_blob_that_stays_is_listed_once_while_others_come_and_go;
        restarts:
            a_blob_outlives_its_store if durable,
            what_was_deleted_or_refused_stays_away_after_a_restart if durable,
    ]
}

/// The suite, for one provider.
pub fn suite(harness: impl Harness) -> Suite {
    let harness = Arc::new(harness);
    let fresh = Arc::clone(&harness);
    Suite {
        name: "blob",
        provider: harness.name(),
        unavailable: None,
        time: harness.time(),
        cases: cases(
            rows(),
            |capability| {
                (capability == "durable" && !harness.is_durable())
                    .then(|| "blobs do not outlive the store".into())
            },
            move || {
                let harness = Arc::clone(&fresh);
                async move { harness.fresh().await }
            },
        ),
    }
}

/// Runs the suite as the test binary that it is in.
pub fn run(harness: impl Harness) -> ExitCode {
    flames_conformance_runner::run(suite(harness))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_case_is_in_the_table_and_every_promised_case_is_written() {
        let names: Vec<_> = super::rows().iter().map(|row| row.name).collect();
        flames_conformance_runner::assert_table_is_complete(
            &names,
            &[
                include_str!("cases/atomicity.rs"),
                include_str!("cases/listings.rs"),
                include_str!("cases/puts.rs"),
                include_str!("cases/reads.rs"),
                include_str!("cases/restarts.rs"),
            ],
            &[include_str!("../../src/lib.rs")],
        );
    }
}
