//! How guests are connected: what their machines are given, what they themselves are told, and what is refused.

use std::sync::Arc;

use flames_model::{
    AddressBlock, Assignment, Bandwidth, DomainPattern, DriverNetwork, Egress, IncarnationId,
    IncarnationState, NetworkSpec, PortRange, PortSpec, PrivateNetworkName, ReasonCode, SPECIAL_RANGES,
    Wanted,
};
use flames_vmm::{NetworkPolicy, NetworkSpec as MachineNetwork, Phase};

use crate::crashes::killed_everywhere;
use crate::world::{World, name};

fn block() -> AddressBlock {
    AddressBlock { ipv4: "10.77.0.0/24".parse().unwrap(), ipv6: Some("fd77::/64".parse().unwrap()) }
}

/// A VM with this network and the address of place 3, or none, on a host with a block.
async fn assigned(world: &World, has_address: bool, network: NetworkSpec) -> IncarnationId {
    let mut assignment = world.assignment(1, &["forever"]).await;
    Arc::make_mut(&mut assignment.spec).network = network;
    Arc::make_mut(&mut assignment.spec).ports = vec![PortSpec { guest_port: 80, host_port: None }];
    assignment.address = has_address.then(|| block().address(3).unwrap());
    let id = assignment.incarnation;
    world.api.assign(assignment);
    id
}

fn with_block() -> World {
    World::with(|_, config| config.address_block = Some(block()))
}

fn machine_network(world: &World, id: IncarnationId) -> MachineNetwork {
    world.host.machine(&name(id)).unwrap().spec.unwrap().network.clone()
}

#[tokio::test(start_paused = true)]
async fn an_address_becomes_a_tap_with_the_policy_and_the_guest_is_told_it() {
    let world = with_block();
    let egress = Egress::AllowList {
        ranges: vec!["192.0.2.0/24".parse().unwrap()],
        domains: vec![DomainPattern::new("*.example.com").unwrap()],
        ports: vec![PortRange { first: 443, last: 443 }],
    };
    let network = NetworkSpec {
        egress,
        private_network: Some(PrivateNetworkName::new("team").unwrap()),
        upload: Some(Bandwidth::of(1_000_000)),
        download: None,
    };
    let id = assigned(&world, true, network).await;
    let controller = world.start().await;
    let running = world.until_state(id, IncarnationState::Running).await;
    assert_eq!(running.endpoints[0].address.to_string(), "10.77.0.14:80");
    let MachineNetwork::Tap { address, gateway, mac, policy } = machine_network(&world, id) else {
        panic!("no tap")
    };
    assert_eq!(
        (address.0.to_string(), address.1, gateway.to_string()),
        ("10.77.0.14".into(), 30, "10.77.0.13".into())
    );
    assert_eq!(mac, [0x02, 0xf1, 10, 77, 0, 14]);
    let flames_vmm::Egress::AllowList { ranges, domains, ports } = policy.egress else { panic!("no list") };
    assert_eq!(ranges, [("192.0.2.0".parse().unwrap(), 24)]);
    assert_eq!((domains, ports), (vec!["*.example.com".to_owned()], vec![(443, 443)]));
    assert_eq!(policy.private_network.unwrap().len(), 32);
    assert_eq!(policy.upload.unwrap().bytes_per_second, 1_000_000);
    assert_eq!(policy.download, None);
    let told = world.inside(id).config.network.clone().unwrap();
    assert_eq!(told.addresses.len(), 2);
    assert_eq!(told.dns, told.gateways);
    assert_eq!(told.mac.unwrap().0, mac);
    let registered = world.api.registrations()[0].clone();
    assert_eq!(registered.address_block, Some(block()));
    assert_eq!(registered.driver.network, DriverNetwork::Tap);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn unrestricted_names_every_special_range_behind_a_tap() {
    let world = with_block();
    let id =
        assigned(&world, true, NetworkSpec { egress: Egress::Unrestricted, ..NetworkSpec::default() }).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    let MachineNetwork::Tap { policy, .. } = machine_network(&world, id) else { panic!("no tap") };
    let flames_vmm::Egress::Allow { named } = policy.egress else { panic!("not allowed") };
    assert!(SPECIAL_RANGES.iter().all(|range| named.contains(range)), "{named:?}");
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_user_network_is_cut_off_unless_it_is_unrestricted() {
    for (egress, is_cut_off) in [(Egress::Deny, true), (Egress::Unrestricted, false)] {
        let world = World::new();
        let id = assigned(&world, false, NetworkSpec { egress, ..NetworkSpec::default() }).await;
        let controller = world.start().await;
        let running = world.until_state(id, IncarnationState::Running).await;
        assert!(running.endpoints[0].address.ip().is_loopback());
        let MachineNetwork::User { isolated, .. } = machine_network(&world, id) else {
            panic!("no user network")
        };
        assert_eq!(isolated, is_cut_off);
        assert_eq!(world.api.registrations()[0].driver.network, DriverNetwork::User);
        world.purge_all(controller, &[id]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_the_driver_cannot_keep_fails_the_vm_with_the_reason() {
    let network = |change: fn(&mut NetworkSpec)| {
        let mut network = NetworkSpec::default();
        change(&mut network);
        network
    };
    for network in [
        network(|network| network.egress = Egress::Allow { named: Vec::new() }),
        network(|network| network.private_network = Some(PrivateNetworkName::new("team").unwrap())),
        network(|network| network.download = Some(Bandwidth::of(1_000_000))),
    ] {
        let world = World::new();
        let id = assigned(&world, false, network).await;
        let controller = world.start().await;
        let failed = world.until_state(id, IncarnationState::Failed).await;
        let reason = failed.reason.unwrap();
        assert!(reason.message.contains("driver"), "{reason:?}");
        assert!(world.host.running().is_empty());
        world.purge_all(controller, &[id]).await;
    }
}

fn limited(bytes_per_second: u64) -> NetworkSpec {
    NetworkSpec {
        egress: Egress::Allow { named: Vec::new() },
        upload: Some(Bandwidth::of(bytes_per_second)),
        ..NetworkSpec::default()
    }
}

/// Tells the host another network of the VM, as this revision.
fn change(world: &World, id: IncarnationId, revision: u64, network: NetworkSpec) {
    let mut assignment: Assignment = world.api.assignment(id);
    Arc::make_mut(&mut assignment.spec).network = network;
    assignment.network_revision = revision;
    world.api.assign(assignment);
}

async fn until_applied(world: &World, id: IncarnationId, revision: u64) {
    world.until(id, |incarnation| incarnation.network.revision == revision).await;
}

/// The policy that the machine is under now.
fn policy_in_place(world: &World, id: IncarnationId) -> NetworkPolicy {
    world.host.machine(&name(id)).unwrap().network_policy.unwrap()
}

fn upload(policy: &NetworkPolicy) -> Option<u64> {
    policy.upload.map(|limit| limit.bytes_per_second)
}

#[tokio::test(start_paused = true)]
async fn a_network_that_is_told_is_put_in_force_while_the_guest_runs_or_stands_still_and_is_reported() {
    let world = with_block();
    let id = assigned(&world, true, NetworkSpec::default()).await;
    let controller = world.start().await;
    assert!(world.until_state(id, IncarnationState::Running).await.network.is_default());
    assert!(world.api.registrations()[0].driver.live_network);
    change(&world, id, 1, limited(1_000_000));
    until_applied(&world, id, 1).await;
    assert_eq!(upload(&policy_in_place(&world, id)), Some(1_000_000));
    world.api.want(id, Wanted::Paused);
    world.until_state(id, IncarnationState::Paused).await;
    change(&world, id, 2, NetworkSpec::default());
    until_applied(&world, id, 2).await;
    assert_eq!(policy_in_place(&world, id), NetworkPolicy::default());
    assert_eq!(world.host.machine(&name(id)).unwrap().phase, Phase::Paused);
    assert_eq!(world.host.life(&name(id)).starts, 1);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_network_that_a_driver_cannot_change_is_reported_with_the_reason_and_the_vm_runs_on() {
    let world = World::with(|simulated, config| {
        config.address_block = Some(block());
        simulated.live_network_policy = false;
    });
    let id = assigned(&world, true, NetworkSpec::default()).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    assert!(!world.api.registrations()[0].driver.live_network);
    change(&world, id, 1, limited(1_000_000));
    let told = world.until(id, |incarnation| incarnation.network.trouble.is_some()).await;
    let reason = told.network.trouble_with(1).unwrap();
    assert_eq!((told.network.revision, reason.code), (0, ReasonCode::NetworkNotApplied));
    assert_eq!(told.state, IncarnationState::Running);
    assert_eq!(policy_in_place(&world, id), NetworkPolicy::default());
    // What it had from the start is no trouble any more.
    change(&world, id, 0, NetworkSpec::default());
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_step_a_vm_is_finally_under_the_network_that_was_told_last() {
    let story = async |world: &World| {
        let id = IncarnationId::from_uuid(uuid::Uuid::from_u128(1));
        if !world.api.knows(id) {
            assigned(world, true, NetworkSpec::default()).await;
        }
        let told = |revision| world.api.assignment(id).network_revision >= revision;
        // One while it is made, one while it runs, one right behind that, one while it stands still.
        if !told(1) {
            change(world, id, 1, limited(1_000_000));
        }
        world.until(id, |now| now.timeline.contains_key(&IncarnationState::Running)).await;
        if !told(2) {
            change(world, id, 2, limited(2_000_000));
            world.clock.advance(std::time::Duration::from_millis(1)).await;
        }
        if !told(3) {
            change(world, id, 3, limited(3_000_000));
        }
        if !world.api.incarnation(id).timeline.contains_key(&IncarnationState::Paused) {
            until_applied(world, id, 3).await;
            world.api.want(id, Wanted::Paused);
            world.until_state(id, IncarnationState::Paused).await;
        }
        if !told(4) {
            change(world, id, 4, limited(4_000_000));
        }
        until_applied(world, id, 4).await;
        world.until_state(id, IncarnationState::Paused).await;
        vec![id]
    };
    let check = |world: &World, ended: &[flames_model::Incarnation]| {
        let seen = policy_in_place(world, ended[0].id);
        assert_eq!(upload(&seen), Some(4_000_000), "{seen:?}");
        assert_eq!(ended[0].network.trouble, None);
    };
    killed_everywhere(story, check, 20).await;
}
