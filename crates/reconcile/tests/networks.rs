//! The network of a VM, changed: from the request to the host and back.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub, reason = "tests")]
#![allow(dead_code, reason = "the world is shared with other tests")]

mod world;

use std::time::Duration;

use flames_clock::Clock;
use flames_error::{ErrorKind, Result};
use flames_model::*;
use flames_service::*;
use world::{Host, World, caller};

fn reference(name: &str) -> VmRef {
    VmRef::parse(name).unwrap()
}

fn allow() -> NetworkSpec {
    NetworkSpec { egress: Egress::Allow { named: Vec::new() }, ..NetworkSpec::default() }
}

async fn set(world: &World, name: &str, network: NetworkSpec) -> Result<VmView> {
    world.service.set_network(&caller(), &reference(name), network, &Mutation::default()).await
}

async fn is_in_force(world: &World, name: &str) -> bool {
    let view = world.view(name).await;
    view.vm.is_network_in_force(view.incarnation.as_deref())
}

/// A VM `web` that runs on a host that changes networks.
async fn running() -> (World, Host) {
    let world = World::new().await;
    let mut host = world.add_host_with(1, 16, Some("10.77.0.0/27")).await;
    world.create("web", |_| {}).await;
    world.settle().await;
    host.obey(&world).await;
    assert_eq!(world.state("web").await, VmState::Running);
    (world, host)
}

#[tokio::test(start_paused = true)]
async fn the_host_is_told_once_for_each_change_and_what_it_says_is_what_is_in_force() {
    let (world, mut host) = running().await;
    assert!(is_in_force(&world, "web").await);
    let asked = set(&world, "web", allow()).await.unwrap();
    assert_eq!((asked.vm.network_revision, asked.vm.generation), (1, 2));
    assert!(!is_in_force(&world, "web").await);
    world.settle().await;
    let told = host.changes(&world).await;
    assert_eq!(told.len(), 1);
    let told = told[0].assignment.clone().unwrap();
    assert_eq!((told.network_revision, &told.spec.network, told.wanted), (1, &allow(), Wanted::Running));
    host.report(&world, &told, IncarnationState::Running, |_| {}).await;
    assert!(is_in_force(&world, "web").await);
    // The same again is no change.
    assert_eq!(set(&world, "web", allow()).await.unwrap().vm.generation, 2);
    world.settle().await;
    assert!(host.changes(&world).await.is_empty());
    let kinds: Vec<_> = world
        .service
        .events(&caller(), Position::START, 100)
        .await
        .unwrap()
        .into_iter()
        .map(|entry| entry.event.kind)
        .filter(|kind| matches!(kind, EventKind::VmNetwork { .. } | EventKind::VmNetworkApplied { .. }))
        .collect();
    assert_eq!(kinds, [EventKind::VmNetwork { revision: 1 }, EventKind::VmNetworkApplied { revision: 1 }]);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_the_network_ends_when_it_is_in_force_and_when_the_host_says_why_not() {
    let (world, mut host) = running().await;
    set(&world, "web", allow()).await.unwrap();
    world.settle().await;
    let told = host.assignment(&world, "web").await;
    let wait = async || {
        let long = Duration::from_secs(60);
        world.service.wait_vm(&caller(), &reference("web"), WaitFor::Network, long).await.unwrap()
    };
    let refuse = async {
        world.clock.sleep(Duration::from_millis(1)).await;
        let reason = Reason::new(ReasonCode::NetworkNotApplied, "It cannot.");
        let trouble = Some(NetworkTrouble { revision: 1, reason });
        let network = AppliedNetwork { revision: 0, trouble };
        host.report(&world, &told, IncarnationState::Running, |report| report.network = network).await;
    };
    let (waited, ()) = futures::join!(wait(), refuse);
    assert!(!waited.reached);
    assert_eq!(waited.view.incarnation.unwrap().network.trouble_with(1).unwrap().message, "It cannot.");
    // Another change is hoped for again, whatever the host said of the one before.
    set(&world, "web", NetworkSpec::default()).await.unwrap();
    world.settle().await;
    let told = host.assignment(&world, "web").await;
    let (waited, ()) = futures::join!(wait(), async {
        world.clock.sleep(Duration::from_millis(1)).await;
        host.report(&world, &told, IncarnationState::Running, |_| {}).await;
    });
    assert!(waited.reached);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_cannot_change_what_runs_is_a_refusal_until_the_vm_is_stopped() {
    let world = World::new().await;
    let mut host = world.add_host(1, 4).await;
    world.create("web", |_| {}).await;
    world.settle().await;
    host.obey(&world).await;
    let unrestricted = NetworkSpec { egress: Egress::Unrestricted, ..NetworkSpec::default() };
    let error = set(&world, "web", unrestricted.clone()).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.code(), error.field()),
        (ErrorKind::NotSupported, Some(codes::NETWORK_NOT_CHANGEABLE), Some("spec.network"))
    );
    assert!(error.user_message().unwrap().contains("flames stop web"), "{error:?}");
    assert_eq!(world.view("web").await.vm.generation, 1);
    world.service.stop_vm(&caller(), &reference("web"), &Mutation::default()).await.unwrap();
    world.settle().await;
    host.obey(&world).await;
    set(&world, "web", unrestricted.clone()).await.unwrap();
    world.service.start_vm(&caller(), &reference("web"), &Mutation::default()).await.unwrap();
    world.settle().await;
    let told = host.assignment(&world, "web").await;
    assert_eq!((told.network_revision, &told.spec.network), (1, &unrestricted));
    host.obey(&world).await;
    assert!(is_in_force(&world, "web").await);
    // Where its next run may be is judged when it is placed.
    world.service.stop_vm(&caller(), &reference("web"), &Mutation::default()).await.unwrap();
    world.settle().await;
    host.obey(&world).await;
    set(&world, "web", allow()).await.unwrap();
    world.service.start_vm(&caller(), &reference("web"), &Mutation::default()).await.unwrap();
    world.settle().await;
    assert_eq!(world.view("web").await.vm.unplaced.clone().unwrap().code, ReasonCode::Incompatible);
}

#[tokio::test(start_paused = true)]
async fn a_vm_without_a_place_is_placed_under_the_network_that_is_wanted_last() {
    let world = World::new().await;
    world.create("web", |_| {}).await;
    world.settle().await;
    set(&world, "web", allow()).await.unwrap();
    let mut host = world.add_host_with(1, 4, Some("10.77.0.0/27")).await;
    world.clock.advance(Duration::from_secs(5)).await;
    world.settle().await;
    let told = host.assignment(&world, "web").await;
    assert_eq!((told.network_revision, &told.spec.network), (1, &allow()));
    host.obey(&world).await;
    assert!(is_in_force(&world, "web").await);
}

#[tokio::test(start_paused = true)]
async fn what_a_network_cannot_hold_names_its_field_and_a_deleted_vm_refuses_it() {
    let (world, _host) = running().await;
    let limited = NetworkSpec {
        upload: Some(Bandwidth { bytes_per_second: 1, burst_bytes: 1 }),
        ..NetworkSpec::default()
    };
    let error = set(&world, "web", limited).await.unwrap_err();
    assert_eq!(
        (error.code(), error.field()),
        (Some(codes::INVALID_FIELD), Some("spec.network.upload.bytes_per_second"))
    );
    let id = world.view("web").await.vm.id.to_string();
    world.service.delete_vm(&caller(), &reference("web"), &Mutation::default()).await.unwrap();
    assert_eq!(set(&world, &id, allow()).await.unwrap_err().code(), Some(codes::VM_DELETED));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_sent_twice_changes_the_network_once() {
    let (world, _host) = running().await;
    let request = RequestKey { key: "k".to_owned(), route: "r".to_owned(), body_digest: "d".to_owned() };
    let mutation = Mutation { request: Some(request), if_generation: None };
    for _ in 0..2 {
        let view = world.service.set_network(&caller(), &reference("web"), allow(), &mutation).await.unwrap();
        assert_eq!((view.vm.network_revision, view.vm.generation), (1, 2));
    }
    set(&world, "web", NetworkSpec::default()).await.unwrap();
    let again = world.service.set_network(&caller(), &reference("web"), allow(), &mutation).await.unwrap();
    assert_eq!((again.vm.network_revision, &again.vm.spec.network), (2, &NetworkSpec::default()));
    let stale = Mutation { if_generation: Some(1), ..Mutation::default() };
    let error = world.service.set_network(&caller(), &reference("web"), allow(), &stale).await.unwrap_err();
    assert_eq!(error.code(), Some(codes::GENERATION_MISMATCH));
}
