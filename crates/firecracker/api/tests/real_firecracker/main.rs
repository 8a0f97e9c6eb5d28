//! The client against a real Firecracker: `FLAMES_FIRECRACKER`, else the one on `PATH`.
#![allow(clippy::unwrap_used)]

mod configuration;
mod lab;
mod machine;
mod refusals;

use std::process::ExitCode;

use flames_conformance_runner::{Row, Suite, Time, cases, table};
use lab::Lab;

fn main() -> ExitCode {
    let rows: Vec<Row<Box<Lab>>> = table![
        configuration:
            the_version_is_accepted_and_the_one_that_the_program_prints,
            a_machine_config_comes_back_as_it_was_put_and_patched,
            every_device_is_taken_before_a_start_and_comes_back,
            what_is_new_is_taken_or_not_supported,
            an_interface_and_the_metadata_service_are_taken if network,
            metadata_comes_back_as_it_was_put_and_patched,
            the_log_the_metrics_and_the_console_are_set_up;
        refusals:
            what_is_out_of_order_is_a_conflict,
            what_is_wrong_in_itself_is_invalid_and_named,
            what_is_not_there_is_not_found,
            metadata_that_does_not_fit_is_invalid,
            a_request_beyond_the_servers_limit_is_invalid_and_the_next_is_answered,
            an_eleventh_connection_is_unavailable_until_another_is_closed,
            a_snapshot_that_is_none_is_refused_and_ends_firecracker,
            one_that_was_killed_is_unavailable;
        machine:
            a_machine_is_started_paused_and_resumed if kvm,
            a_saved_machine_is_loaded_and_runs_on if kvm,
            a_machine_goes_on_at_the_hosts_time_where_its_state_allows if kvm,
            a_diff_holds_less_than_the_whole if kvm,
            devices_are_changed_while_the_machine_runs if kvm,
            devices_come_and_go_on_a_pci_bus_from_1_16_on if kvm,
            a_machine_that_runs_cannot_be_configured_or_saved if kvm,
            memory_is_asked_from_the_page_server_of_a_load if kvm
    ];
    let lacks = |capability: &str| match capability {
        "kvm" => lab::without_kvm(),
        "network" => lab::without_network(),
        unknown => panic!("no such capability: {unknown}"),
    };
    flames_conformance_runner::run(Suite {
        name: "firecracker-api",
        provider: "firecracker",
        unavailable: lab::unavailable(),
        time: Time::Real,
        cases: cases(rows, lacks, || async { Box::new(Lab::new()) }),
    })
}
