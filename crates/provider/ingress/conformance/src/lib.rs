//! The suite that every IngressProvider must pass.
//!
//! An adapter implements [`Harness`] and [`Fixture`] in its `tests/conformance.rs` and calls [`run`] from `main`. The suite is
//! about the table of routes; whether traffic flows is each adapter's own test.

// Cases are tests: a panic is how they fail.
#![allow(clippy::unwrap_used)]

mod hosts;
mod incarnations;
mod listing;
mod model;
mod routes;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

pub use flames_conformance_runner::{Harness, Time, Unavailable, async_trait, failures};
use flames_conformance_runner::{Interface, Row, Suite, table};
use flames_error::{ErrorKind, Result};
use flames_ingress::{
    IngressCapabilities, IngressProvider, Registration, Route, RouteKey, RouteOwner, Target,
};

/// One fresh ingress, without routes.
pub trait Fixture: Send + Sync {
    /// The ingress.
    fn ingress(&self) -> Arc<dyn IngressProvider>;
}

fn interface() -> Interface<dyn Fixture> {
    let rows: Vec<Row<Box<dyn Fixture>>> = table![
        routes:
            a_registered_route_is_listed,
            a_registered_route_has_the_url_that_is_told_of_it,
            registering_again_replaces_the_target,
            registering_again_replaces_the_host_names,
            registering_the_same_twice_changes_nothing,
            an_unregistered_vm_has_no_routes,
            unregistering_twice_is_no_error,
            removing_one_port_leaves_the_others,
            a_vms_routes_are_its_own,
            a_route_that_is_none_is_refused,
            names_and_numbers_at_the_limit_are_taken,
            a_guest_target_is_served_or_refused_as_declared;
        incarnations:
            what_an_older_incarnation_takes_away_is_only_its_own,
            a_route_is_taken_away_with_the_target_it_has,
            a_new_incarnation_keeps_its_route_however_the_old_one_ends,
            of_two_incarnations_registering_at_once_one_stands_whole;
        hosts:
            a_host_name_belongs_to_one_vm,
            a_refused_route_changes_nothing,
            one_of_many_who_want_a_host_name_gets_it,
            a_host_name_may_serve_several_ports_of_its_vm,
            a_freed_host_name_can_be_taken_by_another_vm,
            a_host_name_that_was_given_up_can_be_taken_by_another_vm;
        listing:
            an_empty_table_lists_nothing,
            a_listing_is_ordered_and_pages_meet,
            a_page_that_ends_with_the_table_is_the_last,
            a_table_of_many_routes_is_listed_whole,
            a_route_that_stays_is_listed_once_while_others_come_and_go,
            a_page_limit_out_of_range_is_refused,
            a_reconciler_repairs_the_table_by_what_is_listed;
        model:
            any_order_of_calls_gives_the_table_of_the_model,
    ];
    Interface { name: "ingress", noun: "ingress", rows }
}

/// The suite for one adapter, whose ingress can do what `told` says, as it tells it itself.
pub fn suite(harness: impl Harness<dyn Fixture>, told: IngressCapabilities) -> Suite {
    interface().suite_with(
        harness,
        |_| None,
        async move |fixture| {
            assert_eq!(fixture.ingress().capabilities(), told, "the harness tells the truth");
        },
    )
}

/// The whole of an adapter's `tests/conformance.rs` (`harness = false`): `fn main() -> ExitCode { run(Adapter, …) }`.
pub fn run(harness: impl Harness<dyn Fixture>, told: IngressCapabilities) -> ExitCode {
    flames_conformance_runner::run(suite(harness, told))
}

fn owner(vm: &str) -> RouteOwner {
    RouteOwner::new(vm).unwrap()
}

fn key(vm: &str, port: u16) -> RouteKey {
    RouteKey { vm: owner(vm), port }
}

fn route(vm: &str, port: u16, hosts: &[&str]) -> Route {
    Route { key: key(vm, port), hosts: hosts.iter().map(|host| (*host).to_owned()).collect() }
}

/// An address that every adapter can be told of; nothing needs to listen there.
fn address(port: u16) -> Target {
    Target::Address(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// The target of one of a VM's incarnations: its guest's port, or its address where the ingress cannot dial guests.
fn incarnation(ingress: &dyn IngressProvider, number: u16) -> Target {
    if ingress.capabilities().guest_targets {
        Target::Guest { incarnation: format!("inc_{number}"), port: 8080 }
    } else {
        address(9000 + number)
    }
}

async fn ports_of(ingress: &dyn IngressProvider, vm: &str) -> Vec<u16> {
    ingress.get(&owner(vm)).await.unwrap().iter().map(|registration| registration.route.key.port).collect()
}

/// Everything listed, page after page. Panics when the pages do not end.
async fn list_all(ingress: &dyn IngressProvider, limit: usize) -> Vec<Registration> {
    let (mut listed, mut after) = (Vec::new(), None);
    for _ in 0..1_000 {
        let page = ingress.list(after.as_ref(), limit).await.unwrap();
        assert!(page.registrations.len() <= limit, "a page has at most {limit}");
        listed.extend(page.registrations);
        after = page.next;
        if after.is_none() {
            return listed;
        }
    }
    panic!("the pages do not end");
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T>, kind: ErrorKind) {
    assert_eq!(answer.unwrap_err().kind(), kind);
}

#[cfg(test)]
mod tests {
    use flames_conformance_runner::assert_table_is_complete;

    #[test]
    fn the_table_holds_every_case_written_and_every_case_promised() {
        let names: Vec<&str> = super::interface().rows.iter().map(|row| row.name).collect();
        assert_table_is_complete(
            &names,
            &[
                include_str!("hosts.rs"),
                include_str!("incarnations.rs"),
                include_str!("listing.rs"),
                include_str!("model.rs"),
                include_str!("routes.rs"),
            ],
            &[include_str!("../../src/lib.rs")],
        );
    }
}
