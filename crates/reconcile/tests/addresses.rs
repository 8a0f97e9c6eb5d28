//! Addresses from a host's block: taken with the place, given back with it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub, reason = "tests")]
#![allow(dead_code, reason = "the world is shared with other tests")]

mod world;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use flames_model::*;
use flames_service::*;
use world::{Host, World, caller};

fn reference(name: &str) -> VmRef {
    VmRef::parse(name).unwrap()
}

async fn taken(world: &World, host: &Host) -> u32 {
    let view = world.service.get_controller(host.session.controller).await.unwrap();
    view.allocation.addresses.count()
}

async fn address(world: &World, name: &str) -> Option<Ipv4Addr> {
    world.view(name).await.incarnation.unwrap().address.map(|address| address.ipv4)
}

async fn stop(world: &World, host: &mut Host, name: &str) {
    world.service.stop_vm(&caller(), &reference(name), &Mutation::default()).await.unwrap();
    world.settle().await;
    host.obey(world).await;
}

#[tokio::test(start_paused = true)]
async fn vms_that_are_placed_together_have_an_address_each_and_the_host_is_told_it() {
    let mut world = World::new().await;
    let host = world.add_host_with(1, 16, Some("10.77.0.0/27")).await;
    world.stop_reconciler();
    for number in 0..6 {
        world.create(&format!("vm-{number}"), |_| {}).await;
    }
    world.start_reconciler();
    world.settle().await;
    let mut seen = BTreeSet::new();
    for number in 0..6 {
        let name = format!("vm-{number}");
        let told = host.assignment(&world, &name).await.address.unwrap();
        assert_eq!(address(&world, &name).await, Some(told.ipv4));
        assert!(seen.insert(told.ipv4), "{seen:?}");
    }
    assert_eq!(seen.first().unwrap().to_string(), "10.77.0.2");
    assert_eq!(taken(&world, &host).await, 6);
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_used_up_is_a_reason_and_the_next_released_address_is_used() {
    let world = World::new().await;
    let mut host = world.add_host_with(1, 16, Some("10.77.0.0/29")).await;
    for name in ["a", "b", "c"] {
        world.create(name, |_| {}).await;
        world.settle().await;
    }
    host.obey(&world).await;
    let waiting = world.view("c").await;
    assert_eq!(waiting.state, VmState::Pending);
    let reason = waiting.vm.unplaced.clone().unwrap();
    assert_eq!(reason.code, ReasonCode::NoCapacity);
    assert!(reason.message.contains("No address is left"), "{reason:?}");
    let first = address(&world, "a").await;
    stop(&world, &mut host, "a").await;
    assert_eq!(taken(&world, &host).await, 1, "a stopped VM holds no address");
    world.clock.advance(Duration::from_secs(5)).await;
    world.settle().await;
    host.obey(&world).await;
    assert_eq!(world.state("c").await, VmState::Running);
    assert_eq!(address(&world, "c").await, first);
    world.service.delete_vm(&caller(), &reference("b"), &Mutation::default()).await.unwrap();
    world.service.delete_vm(&caller(), &reference("c"), &Mutation::default()).await.unwrap();
    world.settle().await;
    host.obey(&world).await;
    assert_eq!(taken(&world, &host).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_release_that_is_reported_twice_frees_one_address() {
    let world = World::new().await;
    let mut host = world.add_host_with(1, 16, Some("10.77.0.0/28")).await;
    world.create("a", |_| {}).await;
    world.settle().await;
    host.obey(&world).await;
    let told = host.assignment(&world, "a").await;
    world.service.stop_vm(&caller(), &reference("a"), &Mutation::default()).await.unwrap();
    world.settle().await;
    host.obey(&world).await;
    // Another has the address by now.
    world.create("b", |_| {}).await;
    world.settle().await;
    assert_eq!(address(&world, "b").await, told.address.map(|address| address.ipv4));
    host.end(&world, &told, ExitCause::Stopped, None, false).await;
    assert_eq!(taken(&world, &host).await, 1, "the address of `b` is not given away");
}

#[tokio::test(start_paused = true)]
async fn vms_of_a_host_without_a_block_have_no_address() {
    let world = World::new().await;
    let host = world.add_host(1, 4).await;
    world.create("a", |_| {}).await;
    world.settle().await;
    assert_eq!(address(&world, "a").await, None);
    assert_eq!(taken(&world, &host).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_no_host_keeps_is_a_reason_and_is_never_left_out() {
    let world = World::new().await;
    world.add_host(1, 4).await;
    let allow = Egress::Allow { named: Vec::new() };
    world.create("a", |spec| spec.network.egress = allow.clone()).await;
    world.settle().await;
    let waiting = world.view("a").await;
    assert_eq!(waiting.state, VmState::Pending);
    let reason = waiting.vm.unplaced.clone().unwrap();
    assert_eq!(reason.code, ReasonCode::Incompatible);
    assert!(reason.message.contains("`allow`") && reason.message.contains("unrestricted"), "{reason:?}");
    // A host that keeps it comes.
    let mut able = world.add_host_with(2, 4, Some("10.77.0.0/28")).await;
    world.clock.advance(Duration::from_secs(5)).await;
    world.settle().await;
    able.obey(&world).await;
    assert_eq!(world.state("a").await, VmState::Running);
}

#[tokio::test(start_paused = true)]
async fn a_block_is_exchanged_only_while_none_of_its_addresses_is_taken() {
    let world = World::new().await;
    let mut host = world.add_host_with(1, 4, Some("10.77.0.0/28")).await;
    world.create("a", |_| {}).await;
    world.settle().await;
    host.obey(&world).await;
    let register = |block: &str| Register {
        address_block: Some(AddressBlock { ipv4: block.parse().unwrap(), ipv6: None }),
        ..host.register.clone()
    };
    let refused = world.service.register_controller(register("10.77.0.8/29")).await.unwrap_err();
    assert_eq!(refused.code(), Some(codes::ADDRESS_BLOCK_IN_USE));
    assert!(refused.user_message().unwrap().contains("10.77.0.0/28"), "{refused:?}");
    let again = world.service.register_controller(register("10.77.0.0/28")).await.unwrap();
    host.session = again.session;
    stop(&world, &mut host, "a").await;
    let other = Register {
        address_block: Some(AddressBlock { ipv4: "10.77.0.8/29".parse().unwrap(), ipv6: None }),
        ..host.register.clone()
    };
    host.session = world.service.register_controller(other).await.unwrap().session;
    world.service.start_vm(&caller(), &reference("a"), &Mutation::default()).await.unwrap();
    world.clock.advance(Duration::from_secs(5)).await;
    world.settle().await;
    assert_eq!(address(&world, "a").await.unwrap().to_string(), "10.77.0.10");
    let wrong = Register {
        address_block: Some(AddressBlock { ipv4: "10.77.0.0/31".parse().unwrap(), ipv6: None }),
        ..host.register.clone()
    };
    let refused = world.service.register_controller(wrong).await.unwrap_err();
    assert_eq!((refused.code(), refused.field()), (Some(codes::INVALID_FIELD), Some("address_block.ipv4")));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_confirmed_dead_gives_its_addresses_back_with_itself() {
    let world = World::new().await;
    let mut host = world.add_host_with(1, 4, Some("10.77.0.0/28")).await;
    world.create("a", |_| {}).await;
    world.settle().await;
    host.obey(&world).await;
    let id = host.session.controller;
    let removed = world.service.remove_controller(&caller(), id, true, &Mutation::default()).await;
    removed.unwrap();
    assert!(world.records.allocation(id).await.unwrap().is_none());
}
