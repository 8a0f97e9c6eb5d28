//! The suite that every StateStore must pass.
//!
//! Each case is a sentence that the contract (`flames-state`) promises; the docs there name the cases that prove each guarantee. An
//! adapter's `tests/conformance.rs` (`harness = false`) implements [`Harness`] and calls [`run`]:
//!
//! ```
//! # use std::sync::Arc;
//! # use flames_state_conformance::{Fixture, Harness, Volatile, async_trait};
//! # use flames_state::StateStore;
//! /// With how the adapter is opened.
//! struct Memory(fn() -> Arc<dyn StateStore>);
//!
//! #[async_trait]
//! impl Harness<dyn Fixture> for Memory {
//!     fn name(&self) -> &'static str {
//!         "memory"
//!     }
//!     async fn fresh(&self) -> Box<dyn Fixture> {
//!         Box::new(Volatile((self.0)()))
//!     }
//! }
//!
//! fn suite(open: fn() -> Arc<dyn StateStore>) -> std::process::ExitCode {
//!     flames_state_conformance::run(Memory(open))
//! }
//! ```
//!
//! Beyond the calls of the trait, cases break the network, kill the server, use up the pool and turn the clock back, where the fixture
//! can do so: see [`Hooks`]. Random cases print their seeds, and the environment variable `FLAMES_SEED` gives them another.
//! [`linearizability`] judges histories of concurrent clients, from here or from elsewhere.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod commits;
mod concurrency;
mod faults;
mod hints;
mod histories;
mod history;
pub mod linearizability;

mod logs;
mod model;
mod reads;
mod restarts;
mod scans;
mod support;
mod truth;

use std::process::ExitCode;
use std::sync::Arc;

use flames_conformance_runner::{Interface, Row, Suite, table};
use flames_state::StateStore;

pub use flames_conformance_runner::{
    Faults, Harness, Held, Hook, Hooks, SettableClock, Time, Unavailable, async_trait,
};

/// One store under test, with whatever must live as long as it does.
pub trait Fixture: Hooks {
    /// The store, as it was opened last.
    fn store(&self) -> Arc<dyn StateStore>;
}

/// The fixture of a store that needs nothing beside it and remembers nothing.
#[derive(Debug)]
pub struct Volatile(pub Arc<dyn StateStore>);

impl Hooks for Volatile {}

impl Fixture for Volatile {
    fn store(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.0)
    }
}

/// Runs the suite as the test binary that it is in.
pub fn run(harness: impl Harness<dyn Fixture>) -> ExitCode {
    flames_conformance_runner::run(suite(harness))
}

/// The suite for one adapter.
pub fn suite(harness: impl Harness<dyn Fixture>) -> Suite {
    interface().suite(harness)
}

fn interface() -> Interface<dyn Fixture> {
    let rows: Vec<Row<Box<dyn Fixture>>> = table![
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
            a_page_limit_out_of_range_is_refused,
            ten_thousand_keys_under_one_prefix_are_read_once_each;
        commits:
            a_failed_check_changes_nothing,
            absent_present_and_at_mean_what_they_say,
            a_version_is_never_given_twice_for_a_key,
            every_key_of_a_commit_gets_its_version,
            an_unconditional_write_overwrites,
            a_commit_that_passes_a_limit_is_refused,
            a_commit_at_its_limits_is_taken,
            a_commit_that_meets_every_limit_at_once_is_taken,
            a_key_written_twice_is_refused,
            an_empty_commit_is_refused,
            deleting_what_is_absent_is_no_error;
        concurrency:
            a_commit_is_all_or_nothing,
            concurrent_increments_are_all_counted,
            no_update_of_32_writers_is_lost,
            of_two_who_create_a_key_one_succeeds,
            write_skew_is_refused,
            a_dropped_commit_is_applied_whole_or_not_at_all,
            a_dropped_read_does_not_mix_up_the_next_answer;
        logs:
            a_log_reads_back_in_order,
            appends_commit_with_their_writes_or_not_at_all,
            logs_are_apart,
            nothing_appears_behind_a_position_already_seen,
            a_slow_commit_never_appends_behind_what_was_read,
            a_log_is_read_across_a_long_gap,
            a_log_page_limit_out_of_range_is_refused,
            a_trimmed_log_keeps_what_lies_behind,
            a_trimmed_log_never_gives_a_position_again;
        hints:
            a_change_is_hinted,
            hints_are_only_for_the_prefix,
            a_subscriber_that_never_reads_holds_up_nobody;
        history:
            a_long_random_history_agrees_with_a_plain_map;
        model:
            random_operations_agree_with_a_reference_model;
        histories:
            concurrent_histories_are_linearizable,
            histories_under_faults_are_linearizable if faults;
        faults:
            a_commit_cut_at_any_byte_is_told_truthfully if faults,
            an_answer_that_never_comes_is_an_unknown_outcome if faults,
            the_same_commit_again_tells_what_became_of_it if faults,
            no_commit_reports_success_for_what_is_not_there if faults,
            an_error_that_is_definite_changed_nothing if faults,
            a_read_through_faults_is_whole_or_refused if faults,
            a_server_that_does_not_answer_is_told_within_the_deadline if faults,
            a_store_works_again_once_its_network_does if faults,
            hints_that_were_cut_off_are_made_up_for if faults;
        restarts:
            what_was_committed_survives_a_reopen if durable,
            a_version_is_not_given_again_after_a_reopen if durable,
            a_log_goes_on_behind_its_end_after_a_reopen if durable,
            what_was_answered_survives_a_kill_under_load if restart,
            a_log_goes_on_in_order_across_a_kill if restart,
            a_clock_turned_back_changes_nothing if clock,
            a_pool_that_is_used_up_is_told_within_the_deadline if exhaustion,
    ];
    Interface { name: "state", noun: "store", rows }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_is_complete() {
        flames_conformance_runner::assert_table_is_complete(
            &super::interface().rows.iter().map(|row| row.name).collect::<Vec<_>>(),
            &[
                include_str!("commits.rs"),
                include_str!("concurrency.rs"),
                include_str!("faults.rs"),
                include_str!("hints.rs"),
                include_str!("histories.rs"),
                include_str!("history.rs"),
                include_str!("logs.rs"),
                include_str!("model.rs"),
                include_str!("reads.rs"),
                include_str!("restarts.rs"),
                include_str!("scans.rs"),
            ],
            &[include_str!("../../src/lib.rs"), include_str!("../../src/ext.rs")],
        );
    }
}
