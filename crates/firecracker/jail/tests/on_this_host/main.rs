//! Jails with the real jailer and the real Firecracker, as root. No guest runs in them.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod adoption;
mod confinement;
mod doctor;
mod files;
mod removal;
mod support;
mod timing;

use std::process::ExitCode;

use flames_conformance_runner::{Row, Suite, Time, cases, table};
use support::Host;

fn main() -> ExitCode {
    if let Some(settings) = std::env::var_os(support::CHILD) {
        adoption::child(settings);
    }
    let rows: Vec<Row<Box<Host>>> = table![
        confinement:
            a_jailed_firecracker_answers_and_is_confined,
            the_limits_stand_in_the_groups_and_the_process_is_in_them,
            a_vmm_joins_its_network_namespace,
            a_vmm_is_in_a_session_of_its_own_and_its_pid_is_that_of_the_jailer,
            two_live_incarnations_share_no_user,
            a_firecracker_that_dies_at_once_is_told_with_its_words,
            a_vmm_that_stops_answering_is_killed;
        files:
            a_shared_file_is_linked_and_stays_as_it_was,
            a_folder_whose_making_was_killed_midway_is_the_vmms_when_it_is_asked_for_again,
            a_shared_file_of_another_file_system_is_seen_by_the_vmm_alone_and_cannot_be_written,
            a_disk_is_the_microvms_for_a_while_and_then_roots_again,
            a_file_that_takes_a_disks_place_is_not_given_away,
            a_file_for_a_running_vmm_is_added_and_a_mount_is_refused,
            sockets_of_both_sides_are_reached,
            output_is_bounded_and_kept_while_nobody_reads;
        adoption:
            a_vmm_is_found_by_the_next_controller,
            a_controller_killed_at_any_point_of_a_start_leaves_what_the_next_can_start,
            a_process_that_was_never_noted_is_ended_by_the_next_start,
            a_pid_that_another_process_has_now_is_never_killed,
            a_jailer_of_another_jail_of_the_same_name_is_never_killed,
            nothing_runs_after_the_hosts_reboot,
            a_jail_with_damaged_records_is_only_removed_with_its_process,
            a_jail_is_never_made_over_another,
            one_controller_at_a_time_works_with_a_clusters_jails;
        removal:
            rounds_of_jails_leave_the_host_as_it_was,
            a_removal_twice_or_of_nothing_is_no_error,
            what_somebody_mounted_in_a_jail_is_unmounted_and_not_removed,
            a_group_without_a_folder_is_found_and_removed,
            a_reset_jail_can_be_started_again;
        doctor:
            the_doctor_finds_what_this_host_has;
        timing:
            a_jail_costs_little,
            twenty_jails_at_once
    ];
    flames_conformance_runner::run(Suite {
        name: "jail",
        provider: "firecracker",
        unavailable: support::unavailable(),
        time: Time::Real,
        cases: cases(
            rows,
            |capability| panic!("no such capability: {capability}"),
            || async { Box::new(Host::new()) },
        ),
    })
}
