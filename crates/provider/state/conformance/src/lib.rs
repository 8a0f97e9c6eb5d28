//! The suite that every StateStore must pass.
//!
//! Each case is a sentence that the contract (`flames-state`) promises; the docs there name the cases that prove each guarantee. An
//! adapter's `tests/conformance.rs` (`harness = false`) implements [`Harness`] and calls [`run`]:
//!
//! ```
//! # use std::sync::Arc;
//! # use flames_state_conformance::{Fixture, Harness, Volatile};
//! # fn open() -> Arc<dyn flames_state::StateStore> { unimplemented!() }
//! struct Memory;
//!
//! #[async_trait::async_trait]
//! impl Harness for Memory {
//!     fn name(&self) -> &'static str {
//!         "memory"
//!     }
//!     async fn fresh(&self) -> Box<dyn Fixture> {
//!         Box::new(Volatile(open()))
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     # if true { return std::process::ExitCode::SUCCESS }
//!     flames_state_conformance::run(Memory)
//! }
//! ```

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod commits;
mod concurrency;
mod hints;
mod history;
mod logs;
mod reads;
mod restarts;
mod scans;
mod support;

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use flames_conformance_runner::{Case, Row, Suite, cases, table};
use flames_state::StateStore;

pub use flames_conformance_runner::{Time, Unavailable};

/// What an adapter brings to be tested.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// The adapter's name; [`StateStore::name`] must answer the same.
    fn name(&self) -> &'static str;

    /// Why the adapter cannot be tested on this machine, told without connecting anywhere.
    fn unavailable(&self) -> Option<Unavailable> {
        None
    }

    /// Whether what was committed is still there when the store is opened anew. If so, its fixtures implement
    /// [`Fixture::reopen`].
    fn is_durable(&self) -> bool {
        false
    }

    /// The time and the threads that the cases run in.
    fn time(&self) -> Time {
        Time::Real
    }

    /// An empty store, apart from all others.
    async fn fresh(&self) -> Box<dyn Fixture>;
}

/// One store under test, with whatever must live as long as it does.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The store.
    fn store(&self) -> Arc<dyn StateStore>;

    /// Closes the store in order and opens it again. Afterwards [`Fixture::store`] answers the one opened last.
    async fn reopen(&self) {
        panic!("the harness says that the store is durable, but its fixture has no `reopen`");
    }
}

/// The fixture of a store that needs nothing beside it and remembers nothing.
#[derive(Debug)]
pub struct Volatile(pub Arc<dyn StateStore>);

#[async_trait]
impl Fixture for Volatile {
    fn store(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.0)
    }
}

/// Runs the suite as the test binary that it is in.
pub fn run(harness: impl Harness) -> ExitCode {
    flames_conformance_runner::run(suite(harness))
}

/// The suite for one adapter.
pub fn suite(harness: impl Harness) -> Suite {
    let harness = Arc::new(harness);
    Suite {
        name: "state",
        provider: harness.name(),
        unavailable: harness.unavailable(),
        time: harness.time(),
        cases: cases_for(harness),
    }
}

fn cases_for(harness: Arc<impl Harness>) -> Vec<Case> {
    let is_durable = harness.is_durable();
    cases(
        rows(),
        |capability| match capability {
            "durable" if is_durable => None,
            other => Some(format!("the store is not {other}")),
        },
        move || {
            let harness = Arc::clone(&harness);
            async move { harness.fresh().await }
        },
    )
}

fn rows() -> Vec<Row<Box<dyn Fixture>>> {
    table![
        reads:
            a_store_names_its_adapter,
            what_was_committed_is_read,
            an_absent_key_reads_as_none,
            an_empty_value_is_a_value,
            keys_of_every_byte_are_keys,
            the_largest_value_is_kept_whole,
            a_reader_sees_what_was_committed_before_it_began;
        scans:
            a_scan_is_ordered_and_bounded_by_its_range,
            pages_meet_without_skip_or_repeat,
            a_page_that_ends_on_the_last_key_says_so,
            a_scan_while_writing_neither_skips_nor_repeats,
            one_page_is_one_consistent_cut,
            a_page_limit_out_of_range_is_refused;
        commits:
            a_failed_check_changes_nothing,
            absent_present_and_at_mean_what_they_say,
            a_version_is_never_given_twice_for_a_key,
            every_key_of_a_commit_gets_its_version,
            an_unconditional_write_overwrites,
            a_commit_that_passes_a_limit_is_refused,
            a_commit_at_its_limits_is_taken,
            a_key_written_twice_is_refused,
            an_empty_commit_is_refused,
            deleting_what_is_absent_is_no_error;
        concurrency:
            a_commit_is_all_or_nothing,
            concurrent_increments_are_all_counted,
            of_two_who_create_a_key_one_succeeds,
            write_skew_is_refused;
        logs:
            a_log_reads_back_in_order,
            appends_commit_with_their_writes_or_not_at_all,
            logs_are_apart,
            nothing_appears_behind_a_position_already_seen,
            a_log_page_limit_out_of_range_is_refused,
            a_trimmed_log_keeps_what_lies_behind,
            a_trimmed_log_never_gives_a_position_again;
        hints:
            a_change_is_hinted,
            hints_are_only_for_the_prefix;
        history:
            a_long_random_history_agrees_with_a_plain_map;
        restarts:
            what_was_committed_survives_a_reopen if durable,
            a_version_is_not_given_again_after_a_reopen if durable,
            a_log_goes_on_behind_its_end_after_a_reopen if durable,
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_is_complete() {
        flames_conformance_runner::assert_table_is_complete(
            &super::rows().iter().map(|row| row.name).collect::<Vec<_>>(),
            &[
                include_str!("commits.rs"),
                include_str!("concurrency.rs"),
                include_str!("hints.rs"),
                include_str!("history.rs"),
                include_str!("logs.rs"),
                include_str!("reads.rs"),
                include_str!("restarts.rs"),
                include_str!("scans.rs"),
            ],
            &[include_str!("../../src/lib.rs")],
        );
    }
}
