//! How guests are connected: what their machines are given, what they themselves are told, and what is refused.

use flames_model::{
    AddressBlock, Bandwidth, DomainPattern, DriverNetwork, Egress, IncarnationId, IncarnationState,
    NetworkSpec, PortRange, PortSpec, PrivateNetworkName, SPECIAL_RANGES,
};
use flames_vmm::NetworkSpec as MachineNetwork;

use crate::world::{World, name};

fn block() -> AddressBlock {
    AddressBlock { ipv4: "10.77.0.0/24".parse().unwrap(), ipv6: Some("fd77::/64".parse().unwrap()) }
}

/// A VM with this network and the address of place 3, or none, on a host with a block.
async fn assigned(world: &World, has_address: bool, network: NetworkSpec) -> IncarnationId {
    let mut assignment = world.assignment(1, &["forever"]).await;
    assignment.spec.network = network;
    assignment.spec.ports = vec![PortSpec { guest_port: 80, host_port: None }];
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
