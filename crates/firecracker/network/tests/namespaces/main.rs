//! The networks of machines, tried from inside of guests: every forbidden way, beside the allowed one that shows that it would
//! have worked. The host, the world and the guests are network namespaces of the tests' own.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod egress;
mod forging;
mod lab;
mod life;
mod machines;
mod names;
mod resolver;

use std::process::{Command, ExitCode};

use flames_conformance_runner::{Row, Suite, Time, Unavailable, cases, table};
use lab::Lab;

fn main() -> ExitCode {
    let rows: Vec<Row<Box<Lab>>> = table![
        egress:
            allow_reaches_the_public_internet_and_nothing_special,
            what_is_special_is_reachable_when_it_is_named,
            deny_reaches_nothing,
            an_allow_list_reaches_its_ranges_at_its_ports_only,
            a_policy_that_changes_cuts_what_it_no_longer_admits,
            the_host_is_unreachable_but_for_its_listed_ports,
            the_host_reaches_a_machine_and_the_world_does_not,
            without_a_block_of_ipv6_there_is_none,
            a_machine_holds_no_more_connections_than_it_may;
        forging:
            a_forged_mac_address_is_dropped,
            a_forged_address_is_dropped,
            a_forged_ipv6_address_is_dropped,
            a_router_that_a_guest_plays_is_not_believed,
            what_breaks_out_into_the_namespace_reaches_nothing;
        machines:
            machines_reach_each_other_in_a_private_network_only,
            a_machine_that_leaves_a_private_network_is_out_of_it,
            two_clusters_on_one_host_leave_each_other_alone;
        names:
            a_listed_name_resolves_and_becomes_reachable,
            a_name_that_is_not_listed_is_refused_and_nobody_is_asked,
            a_name_that_leads_to_a_special_address_leads_nowhere,
            aliases_are_followed_inside_of_an_answer_only,
            an_address_is_reachable_for_as_long_as_its_answer_lives,
            names_resolve_over_tcp_and_from_a_truncated_answer,
            another_resolver_is_not_reachable,
            a_forwarder_withstands_garbage_and_floods,
            resolved_addresses_outlive_a_restart,
            a_name_that_is_no_longer_listed_leads_nowhere,
            without_a_resolver_a_name_fails_in_time;
        life:
            creating_and_removing_may_be_repeated,
            a_network_that_is_removed_leaves_nothing,
            a_creation_that_was_cut_off_anywhere_is_finished_by_the_next,
            a_creation_that_was_cut_off_anywhere_is_removed_whole,
            a_removal_that_was_cut_off_anywhere_is_finished_by_the_next,
            a_slots_interface_that_is_anothers_is_a_conflict,
            a_host_that_does_not_forward_is_refused_or_made_to,
            a_scan_tells_what_stands_and_whether_it_is_whole,
            adoption_refuses_what_is_not_there,
            the_rules_are_those_that_nft_reads_in_them,
            twenty_networks_are_made_at_once
    ];
    flames_conformance_runner::run(Suite {
        name: "firecracker-network",
        provider: "namespaces",
        unavailable: unavailable(),
        time: Time::Real,
        cases: cases(rows, |_| None, || async { Box::new(Lab::new()) }),
    })
}

/// Why no network can be made here.
fn unavailable() -> Option<Unavailable> {
    let lacks = |reason: &str| Some(Unavailable { service: "network".to_owned(), reason: reason.to_owned() });
    if !rustix::process::geteuid().is_root() {
        return lacks("only root makes network namespaces");
    }
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        let found = Command::new(program).arg("-V").output().is_ok_and(|output| output.status.success());
        if !found {
            return lacks(&format!("`{program}` is not on PATH (apt install {package})"));
        }
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return lacks("there is no /dev/net/tun");
    }
    let tried = Command::new("unshare").args(["--net", "true"]).output();
    if !tried.is_ok_and(|output| output.status.success()) {
        return lacks("network namespaces cannot be made here");
    }
    None
}
