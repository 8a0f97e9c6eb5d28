//! The routes of an ingress: each port of a VM that runs leads to its current incarnation, and nothing else is routed.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub, reason = "tests")]
#![allow(dead_code, reason = "the world is shared with other tests")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use flames_clock::Clock;
use flames_ingress::{IngressProvider, Registration, Route, RouteKey, RouteOwner, Target};
use flames_ingress_noop::NoopIngress;
use flames_model::*;
use flames_reconcile::{RestingVms, RouteConfig};
use flames_service::*;
use world::{Host, World, caller};

const EVERY: Duration = Duration::from_secs(5);

async fn world() -> (World, Arc<NoopIngress>, Host) {
    let (world, ingress, _, host) = world_with_resting().await;
    (world, ingress, host)
}

async fn world_with_resting() -> (World, Arc<NoopIngress>, Arc<RestingVms>, Host) {
    let mut world = World::new().await;
    let ingress = Arc::new(NoopIngress::new());
    let resting = keep_routes(&mut world, &ingress);
    let host = world.add_host(1, 8).await;
    (world, ingress, resting, host)
}

fn keep_routes(world: &mut World, ingress: &Arc<NoopIngress>) -> Arc<RestingVms> {
    let resting = Arc::new(RestingVms::default());
    let (records, clock) = (world.records.clone(), world.clock.clone());
    let reconciler = world.reconciler.as_mut().unwrap();
    let config = RouteConfig { every: EVERY };
    let ingress = Arc::<NoopIngress>::clone(ingress);
    reconciler.keep_routes(records, ingress, resting.clone(), clock, config).unwrap();
    resting
}

async fn request_of(world: &World, name: &str, request: Request) {
    let (caller, vm, mutation) = (caller(), vm(name), Mutation::default());
    let service = &world.service;
    match request {
        Request::Start => service.start_vm(&caller, &vm, &mutation).await,
        Request::Stop => service.stop_vm(&caller, &vm, &mutation).await,
        Request::Restart => service.restart_vm(&caller, &vm, &mutation).await,
        Request::Pause => service.pause_vm(&caller, &vm, &mutation).await,
        Request::Resume => service.resume_vm(&caller, &vm, &mutation).await,
        Request::Delete => service.delete_vm(&caller, &vm, &mutation).await,
    }
    .unwrap();
}

async fn run_vm(world: &World, host: &mut Host, name: &str, ports: &[u16]) {
    let ports = ports.iter().map(|port| PortSpec { guest_port: *port, host_port: None }).collect();
    world.create(name, |spec| spec.ports = ports).await;
    world.settle().await;
    host.obey(world).await;
    world.settle().await;
    assert_eq!(world.state(name).await, VmState::Running);
}

async fn routes(ingress: &NoopIngress) -> Vec<Registration> {
    ingress.list(None, 100).await.unwrap().registrations
}

/// Which port of which incarnation each route leads to.
async fn led_to(ingress: &NoopIngress) -> Vec<(u16, IncarnationId)> {
    let led_to = |registration: Registration| {
        let Target::Guest { incarnation, port } = registration.target else { panic!("no guest") };
        assert_eq!(port, registration.route.key.port);
        (port, incarnation.parse::<LinkTarget>().unwrap().incarnation)
    };
    routes(ingress).await.into_iter().map(led_to).collect()
}

fn vm(name: &str) -> VmRef {
    VmRef::parse(name).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_ports_of_a_vm_are_routed_while_it_runs_or_is_paused_and_no_longer() {
    let (world, ingress, mut host) = world().await;
    run_vm(&world, &mut host, "web", &[80, 8080]).await;
    run_vm(&world, &mut host, "silent", &[]).await;
    let incarnation = world.view("web").await.vm.incarnation.unwrap();
    let both = vec![(80, incarnation), (8080, incarnation)];
    assert_eq!(led_to(&ingress).await, both);

    world.service.pause_vm(&caller(), &vm("web"), &Mutation::default()).await.unwrap();
    world.settle().await;
    host.obey(&world).await;
    world.settle().await;
    assert_eq!(world.state("web").await, VmState::Paused);
    assert_eq!(led_to(&ingress).await, both);

    world.service.stop_vm(&caller(), &vm("web"), &Mutation::default()).await.unwrap();
    world.settle().await;
    host.obey(&world).await;
    world.settle().await;
    assert_eq!(routes(&ingress).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_new_run_has_its_routes_at_its_own_incarnation_and_a_deleted_vm_has_none() {
    let (world, ingress, mut host) = world().await;
    run_vm(&world, &mut host, "web", &[80]).await;
    let first = led_to(&ingress).await;
    world.service.restart_vm(&caller(), &vm("web"), &Mutation::default()).await.unwrap();
    for _ in 0..4 {
        world.settle().await;
        host.obey(&world).await;
    }
    world.settle().await;
    let second = led_to(&ingress).await;
    assert_eq!(second, [(80, world.view("web").await.vm.incarnation.unwrap())]);
    assert_ne!(first, second);

    world.service.delete_vm(&caller(), &vm("web"), &Mutation::default()).await.unwrap();
    for _ in 0..3 {
        world.settle().await;
        host.obey(&world).await;
    }
    world.settle().await;
    assert_eq!(routes(&ingress).await, []);
}

#[tokio::test(start_paused = true)]
async fn what_drifted_is_set_right_by_the_timer() {
    let (world, ingress, mut host) = world().await;
    run_vm(&world, &mut host, "web", &[80]).await;
    let right = led_to(&ingress).await;

    // The route is lost, another leads astray, and two are of VMs that never were.
    let owner = RouteOwner::new(world.view("web").await.vm.id.to_string()).unwrap();
    ingress.unregister(&owner).await.unwrap();
    let stray = VmId::from_uuid(uuid::Uuid::from_u128(9)).to_string();
    for (owner, port) in [(owner.as_str(), 81), (stray.as_str(), 80), ("no-vm-at-all", 80)] {
        let key = RouteKey { vm: RouteOwner::new(owner).unwrap(), port };
        let target = Target::Address("127.0.0.1:9".parse().unwrap());
        ingress.register(Route { key, hosts: Vec::new() }, target).await.unwrap();
    }
    assert_eq!(routes(&ingress).await.len(), 3);
    world.clock.sleep(EVERY + Duration::from_secs(1)).await;
    assert_eq!(led_to(&ingress).await, right);
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_starts_late_routes_what_runs_already() {
    let mut world = World::new().await;
    let mut host = world.add_host(1, 8).await;
    run_vm(&world, &mut host, "web", &[80]).await;
    let ingress = Arc::new(NoopIngress::new());
    keep_routes(&mut world, &ingress);
    world.settle().await;
    assert_eq!(led_to(&ingress).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_may_be_woken_rests_while_it_is_stopped_or_paused_and_no_other_does() {
    let (world, _, resting, mut host) = world_with_resting().await;
    let ports = vec![PortSpec { guest_port: 80, host_port: None }];
    for (name, wakes) in [("sleeper", true), ("plain", false)] {
        let ports = ports.clone();
        world.create(name, |spec| (spec.ports, spec.wake_on_request) = (ports, wakes)).await;
    }
    let ids = [world.view("sleeper").await.vm.id, world.view("plain").await.vm.id];
    let mut seen = Vec::new();
    let requests = [Request::Start, Request::Pause, Request::Resume, Request::Stop, Request::Start];
    for request in requests {
        for name in ["sleeper", "plain"] {
            request_of(&world, name, request).await;
        }
        for _ in 0..3 {
            world.settle().await;
            host.obey(&world).await;
        }
        world.settle().await;
        seen.push((world.state("sleeper").await, ids.map(|id| resting.contains(id))));
    }
    let (awake, asleep) = ([false, false], [true, false]);
    assert_eq!(
        seen,
        [
            (VmState::Running, awake),
            (VmState::Paused, asleep),
            (VmState::Running, awake),
            (VmState::Stopped, asleep),
            (VmState::Running, awake),
        ]
    );
    request_of(&world, "sleeper", Request::Stop).await;
    request_of(&world, "sleeper", Request::Delete).await;
    for _ in 0..3 {
        world.settle().await;
        host.obey(&world).await;
    }
    world.settle().await;
    assert!(!resting.contains(ids[0]), "a deleted VM is nobody to wake");
}
