//! What only this driver promises, with a real Firecracker and real guests: a host that is left as it was found, recovery at each point
//! where a driver may be killed, what bad input gets, the machine as the guest sees it.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod bad_input;
mod machine;
mod policies;
mod recovery;
mod rounds;
mod saving;
mod spares;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use flames_conformance_runner::{Row, Suite, Time, cases, table};
use support::{Host, base};

fn main() -> ExitCode {
    if let Some(what) = std::env::var_os(rounds::ALONE) {
        return rounds::alone_as(what.to_str().unwrap());
    }
    if let Some(what) = std::env::var_os(spares::VICTIM) {
        spares::victim(&what);
    }
    if let Some(what) = std::env::var_os(recovery::VICTIM) {
        recovery::victim(&what);
    }
    let unavailable = support::unavailable();
    // Not in a case, whose time is limited; and nothing is started to list them.
    if unavailable.is_none() && !std::env::args().any(|argument| argument == "--list") {
        base::make_plain();
        rounds::make_networked();
    }
    let rows: Vec<Row<Box<Host>>> = table![
        rounds:
            rounds_of_making_and_destroying_leave_the_host_exactly_as_found,
            drivers_dropped_at_random_points_leave_a_host_that_the_next_clears,
            controllers_killed_at_random_points_leave_a_host_that_the_next_clears;
        recovery:
            a_guest_outlives_a_driver_that_is_killed,
            a_driver_killed_at_any_point_of_a_start_leaves_what_the_next_can_start,
            a_loaded_guest_that_was_not_let_go_is_started_anew,
            a_monitor_with_damaged_records_is_unknown_and_is_destroyed,
            what_is_half_made_is_cleared_away;
        bad_input:
            a_damaged_snapshot_is_corrupt_and_the_incarnation_still_prepared,
            a_snapshot_of_another_machine_is_refused_with_the_reason,
            a_kernel_that_only_looks_like_one_fails_the_start_and_not_the_host,
            a_firecracker_that_dies_at_once_is_told_with_its_words,
            a_firecracker_that_is_too_old_is_told_with_what_to_install,
            jails_on_another_file_system_work,
            an_image_larger_than_its_disk_is_refused_with_both_sizes,
            a_host_without_a_free_slot_says_so_and_takes_the_next_when_one_is_free;
        machine:
            a_guest_is_told_its_configuration_which_only_its_user_reads,
            a_monitor_is_confined,
            disks_are_shared_or_sparse_and_bounded_and_none_is_copied,
            a_guest_calls_its_host,
            a_flood_on_the_console_stays_in_its_bounds,
            a_paused_guest_runs_on_after_its_resume,
            a_balloon_leaves_enough,
            a_monitor_that_does_not_answer_is_killed_with_the_reason;
        policies:
            a_policy_is_replaced_while_its_guest_runs_and_outlives_the_driver,
            a_policy_that_cannot_be_changes_nothing;
        saving:
            a_chain_of_diffs_is_restored,
            a_snapshot_is_roots_and_is_taken_once_under_its_name;
        spares:
            a_machine_takes_a_monitor_that_waits_and_is_confined_as_any_other,
            a_prepared_machine_keeps_its_monitor_over_the_death_of_its_driver,
            what_waits_is_removed_with_its_driver,
            a_machine_that_no_spare_fits_gets_the_slot_of_one,
            a_spares_name_is_no_incarnations
    ];
    flames_conformance_runner::run(Suite {
        name: "vmm-real-guests",
        provider: "firecracker",
        unavailable,
        time: Time::Real,
        cases: cases(rows, |_| None, || async { Box::new(Host::new()) }),
    })
}
