//! What only this driver promises, with real guests: recovery at each point where it may be killed, bounds on what a guest
//! can cost, the machine as the guest sees it.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod acceleration;
mod limits;
mod machine;
mod recovery;
mod saving;
#[path = "../support/mod.rs"]
mod support;
mod vsock;

use std::process::ExitCode;

use flames_conformance_runner::{Row, Suite, Time, cases, table};
use support::{Host, find};

fn main() -> ExitCode {
    if let Some(folder) = std::env::var_os(recovery::CHILD) {
        recovery::child(folder);
    }
    let rows: Vec<Row<Box<Host>>> = table![
        recovery:
            a_guest_outlives_a_driver_that_is_killed,
            a_driver_killed_at_any_point_of_a_start_leaves_what_the_next_can_start,
            a_monitor_is_in_a_session_of_its_own_without_a_terminal,
            what_was_noted_but_not_started_is_prepared,
            a_monitor_that_was_never_noted_is_ended_and_its_guest_started_once,
            a_monitor_that_was_never_noted_is_destroyed,
            a_loaded_guest_that_was_not_let_go_is_let_go_by_the_next_start,
            a_pid_that_another_process_has_now_is_never_killed,
            nothing_runs_after_the_hosts_reboot,
            garbage_is_found_as_unknown_and_is_destroyed,
            a_monitor_with_damaged_records_is_unknown_and_is_destroyed,
            what_is_half_made_is_cleared_away;
        limits:
            a_flood_on_the_console_stays_in_its_bounds_with_a_driver_and_without,
            the_monitors_last_words_are_told_and_bounded,
            a_port_that_is_taken_fails_the_start_and_not_the_incarnation;
        machine:
            a_guest_sees_its_disks_in_order_with_their_names,
            a_guest_is_told_its_configuration_which_only_its_owner_reads,
            a_forwarded_port_leads_into_the_guest,
            a_balloon_takes_memory_and_leaves_enough,
            two_machines_may_not_write_one_disk,
            a_distribution_kernel_boots_on_a_machine_with_acpi if distribution_kernel;
        saving:
            a_restored_guest_goes_on_where_it_was,
            a_paused_guest_can_be_saved_twice,
            a_damaged_snapshot_is_corrupt_and_the_incarnation_still_prepared,
            a_snapshot_of_another_machine_is_refused_with_the_reason;
        acceleration:
            a_kernel_is_tried_under_kvm_once_and_the_outcome_kept if kvm_device,
            a_try_is_told_of_holds_nobody_up_and_takes_its_machine_along_when_given_up if kvm_device,
            without_a_listener_for_the_agent_there_is_no_kvm,
            without_qemu_the_driver_says_what_to_install;
        vsock:
            a_guest_is_reached_over_vsock_by_many_connections if vsock
    ];
    let lacks = |capability: &str| match capability {
        "kvm_device" => {
            (!std::path::Path::new("/dev/kvm").exists()).then(|| "there is no /dev/kvm".to_owned())
        }
        "vsock" => {
            let missing = ["vhost-device-vsock", "cc"].into_iter().find(|program| find(program).is_none())?;
            Some(format!("`{missing}` is not on PATH"))
        }
        "distribution_kernel" => std::env::var_os(machine::DISTRIBUTION_KERNEL)
            .is_none()
            .then(|| format!("{} does not name a distribution's bzImage", machine::DISTRIBUTION_KERNEL)),
        unknown => panic!("no such capability: {unknown}"),
    };
    flames_conformance_runner::run(Suite {
        name: "vmm-real-guests",
        provider: "qemu",
        unavailable: support::unavailable(),
        time: Time::Real,
        cases: cases(rows, lacks, || async { Box::new(Host::new()) }),
    })
}
