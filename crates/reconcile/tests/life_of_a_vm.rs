//! The lives of VMs, from the API's call to the host's report and back.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub, reason = "tests")]
#![allow(dead_code, reason = "the world is shared with other tests")]

mod world;

use std::time::Duration;

use flames_clock::Clock;
use flames_error::ErrorKind;
use flames_model::*;
use flames_records::Position;
use flames_service::*;
use world::{World, caller, spec};

fn reference(name: &str) -> VmRef {
    VmRef::parse(name).unwrap()
}

fn with_key(key: &str, body: &str) -> Mutation {
    let request = RequestKey { key: key.into(), route: "POST /v1/vms".into(), body_digest: body.into() };
    Mutation { request: Some(request), if_generation: None }
}

#[tokio::test(start_paused = true)]
async fn a_vm_is_placed_runs_stops_starts_anew_and_is_deleted_without_a_trace() {
    let world = World::looking_seldom().await;
    let mut host = world.add_host(1, 4).await;
    let with_secret = |spec: &mut VmSpec| {
        spec.secret_env.insert("TOKEN".to_owned(), SecretString::new("hunter2"));
    };
    assert_eq!(world.create("a", with_secret).await.state, VmState::Pending);
    world.settle().await;
    assert_eq!(world.state("a").await, VmState::Scheduled);
    host.obey(&world).await;
    assert_eq!(world.state("a").await, VmState::Running);
    let first = world.view("a").await.vm.incarnation.unwrap();

    world.service.stop_vm(&caller(), &reference("a"), &Mutation::default()).await.unwrap();
    world.settle().await;
    host.obey(&world).await;
    assert_eq!(world.state("a").await, VmState::Stopped);
    let allocation = world.service.get_controller(host.session.controller).await.unwrap().allocation;
    assert_eq!(allocation.reserved, Resources::default(), "a stopped VM holds nothing");

    world.service.start_vm(&caller(), &reference("a"), &Mutation::default()).await.unwrap();
    world.settle().await;
    host.obey(&world).await;
    let view = world.view("a").await;
    assert_eq!((view.state, view.vm.run), (VmState::Running, 2));
    assert_ne!(view.vm.incarnation, Some(first), "a run is a new incarnation");

    let id = view.vm.id;
    world.service.delete_vm(&caller(), &reference("a"), &Mutation::default()).await.unwrap();
    let gone = world.service.get_vm(&caller(), &reference("a")).await.unwrap_err();
    assert_eq!(gone.code(), Some(codes::VM_NOT_FOUND), "its name is free at once");
    world.settle().await;
    host.obey(&world).await;
    world.settle().await;
    let buried = world.service.get_vm(&caller(), &id.into()).await.unwrap();
    assert_eq!(buried.state, VmState::Deleted);
    let kept: Vec<_> =
        buried.vm.spec.secret_env.iter().map(|(name, value)| (&**name, value.expose())).collect();
    assert_eq!(kept, [("TOKEN", "")], "its secrets are gone with it");
    assert!(world.records.assignments(host.session.controller, None, 10).await.unwrap().items.is_empty());
    let page = world.service.list_vms(&caller(), &VmFilter::default(), None, 10).await.unwrap();
    assert!(page.items.is_empty());
    world.clock.advance(Duration::from_secs(4 * 24 * 3_600)).await;
    let purged = world.service.get_vm(&caller(), &id.into()).await.unwrap_err();
    assert_eq!(purged.kind(), ErrorKind::NotFound, "the tombstone is kept some days");
}

#[tokio::test(start_paused = true)]
async fn pausing_and_resuming_are_told_to_the_host() {
    let world = World::new().await;
    let mut host = world.add_host(1, 4).await;
    world.create("a", |_| {}).await;
    world.settle().await;
    host.obey(&world).await;
    world.service.pause_vm(&caller(), &reference("a"), &Mutation::default()).await.unwrap();
    world.settle().await;
    host.obey(&world).await;
    assert_eq!(world.state("a").await, VmState::Paused);
    world.service.resume_vm(&caller(), &reference("a"), &Mutation::default()).await.unwrap();
    world.settle().await;
    host.obey(&world).await;
    assert_eq!(world.state("a").await, VmState::Running);
    assert_eq!(world.view("a").await.vm.placements, 1);
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_fails_is_started_again_with_growing_pauses_until_the_policy_is_used_up() {
    let world = World::new().await;
    let mut host = world.add_host(1, 4).await;
    world
        .create("a", |spec| {
            spec.restart =
                RestartPolicy { rule: RestartRule::OnFailure, max_restarts: Some(2), ..Default::default() };
        })
        .await;
    let mut waits = Vec::new();
    for _ in 0..3 {
        world.settle().await;
        host.obey(&world).await;
        assert_eq!(world.state("a").await, VmState::Running);
        let assignment = host.assignment(&world, "a").await;
        host.end(&world, &assignment, ExitCause::Workload, Some(3), false).await;
        let ended = world.clock.monotonic();
        if world.state("a").await == VmState::Restarting {
            let again = WaitFor::State(VmState::Scheduled);
            assert!(
                world
                    .service
                    .wait_vm(&caller(), &reference("a"), again, Duration::from_secs(60))
                    .await
                    .unwrap()
                    .reached
            );
            waits.push(world.clock.monotonic().saturating_since(ended));
        }
    }
    let view = world.view("a").await;
    assert_eq!((view.state, view.vm.placements), (VmState::Stopped, 3));
    assert_eq!(view.incarnation.unwrap().exit.unwrap().code, Some(3));
    assert!(waits[0] >= Duration::from_secs(1) && waits[0] < Duration::from_secs(2), "{waits:?}");
    assert!(waits[1] >= Duration::from_secs(2) && waits[1] < Duration::from_secs(3), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_time_is_up_is_stopped_and_says_why_and_a_vm_removes_itself_when_asked_to() {
    let world = World::new().await;
    let mut host = world.add_host(1, 4).await;
    let id = world
        .create("a", |spec| {
            spec.timeout_ms = Some(10_000);
            spec.auto_delete_after_ms = Some(5_000);
        })
        .await
        .vm
        .id;
    world.settle().await;
    host.obey(&world).await;
    assert_eq!(world.state("a").await, VmState::Running);
    world.clock.advance(Duration::from_secs(11)).await;
    host.obey(&world).await;
    let view = world.view("a").await;
    assert_eq!(view.state, VmState::Stopped);
    assert_eq!(view.vm.desired_reason.as_ref().unwrap().code, ReasonCode::TimedOut);
    world.clock.advance(Duration::from_secs(6)).await;
    host.obey(&world).await;
    world.settle().await;
    let view = world.service.get_vm(&caller(), &id.into()).await.unwrap();
    assert_eq!(view.state, VmState::Deleted);
    assert_eq!(view.vm.desired_reason.as_ref().unwrap().code, ReasonCode::AutoDeleted);
}

#[tokio::test(start_paused = true)]
async fn a_host_is_never_overcommitted_and_who_waits_for_room_says_so_and_gets_it() {
    let world = World::new().await;
    let mut host = world.add_host(1, 2).await;
    for name in ["a", "b", "c"] {
        world.create(name, |_| {}).await;
    }
    world.settle().await;
    let mut states = Vec::new();
    for name in ["a", "b", "c"] {
        states.push(world.state(name).await);
    }
    assert_eq!(states.iter().filter(|state| **state == VmState::Scheduled).count(), 2, "{states:?}");
    let waiting = ["a", "b", "c"][states.iter().position(|state| *state == VmState::Pending).unwrap()];
    let unplaced = world.view(waiting).await.vm.unplaced.clone().unwrap();
    assert_eq!(unplaced.code, ReasonCode::NoCapacity);
    assert!(unplaced.message.contains("1 vCPUs"), "{unplaced:?}");
    let placed = ["a", "b", "c"].into_iter().find(|name| *name != waiting).unwrap();
    world.service.delete_vm(&caller(), &reference(placed), &Mutation::default()).await.unwrap();
    world.settle().await;
    host.obey(&world).await;
    world.clock.advance(Duration::from_secs(3)).await;
    assert_eq!(world.state(waiting).await, VmState::Scheduled);
}

#[tokio::test(start_paused = true)]
async fn two_concurrent_requests_with_one_key_make_one_vm_and_another_body_is_refused() {
    let world = World::looking_seldom().await;
    world.add_host(1, 4).await;
    let create = || CreateVm { name: None, labels: Labels::default(), spec: spec(|_| {}) };
    let mutation = with_key("k", "body");
    let one = caller();
    let both =
        futures::future::join_all((0..8).map(|_| world.service.create_vm(&one, create(), &mutation))).await;
    let ids: std::collections::BTreeSet<_> = both.into_iter().map(|view| view.unwrap().vm.id).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(
        world.service.list_vms(&caller(), &VmFilter::default(), None, 10).await.unwrap().items.len(),
        1
    );
    let error = world.service.create_vm(&caller(), create(), &with_key("k", "other")).await.unwrap_err();
    assert_eq!(error.code(), Some(codes::IDEMPOTENCY_KEY_REUSED));
    world.clock.advance(Duration::from_secs(25 * 3_600)).await;
    let later = world.service.create_vm(&caller(), create(), &with_key("k", "other")).await.unwrap();
    assert!(!ids.contains(&later.vm.id), "a key is forgotten after a day");
}

#[tokio::test(start_paused = true)]
async fn a_name_belongs_to_one_vm_and_a_generation_that_is_old_is_refused() {
    let world = World::new().await;
    let first = world.create("a", |_| {}).await;
    let create =
        CreateVm { name: Some(VmName::new("a").unwrap()), labels: Labels::default(), spec: spec(|_| {}) };
    let error = world.service.create_vm(&caller(), create, &Mutation::default()).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::AlreadyExists, Some(codes::VM_NAME_TAKEN)));
    let old = Mutation { request: None, if_generation: Some(first.vm.generation) };
    world.service.stop_vm(&caller(), &reference("a"), &old).await.unwrap();
    let error = world.service.start_vm(&caller(), &reference("a"), &old).await.unwrap_err();
    assert_eq!(error.code(), Some(codes::GENERATION_MISMATCH));
}

#[tokio::test(start_paused = true)]
async fn an_image_in_use_is_not_removed_and_one_that_is_not_there_is_not_used() {
    let world = World::new().await;
    let name = ImageName::new("debian").unwrap();
    let vm = world.create("a", |_| {}).await;
    let error = world.service.remove_image(&caller(), &name, &Mutation::default()).await.unwrap_err();
    assert_eq!(error.code(), Some(codes::IMAGE_IN_USE));
    world.service.delete_vm(&caller(), &vm.vm.id.into(), &Mutation::default()).await.unwrap();
    world.settle().await;
    world.service.remove_image(&caller(), &name, &Mutation::default()).await.unwrap();
    let create = CreateVm { name: None, labels: Labels::default(), spec: spec(|_| {}) };
    let error = world.service.create_vm(&caller(), create, &Mutation::default()).await.unwrap_err();
    assert_eq!((error.code(), error.field()), (Some(codes::IMAGE_NOT_FOUND), Some("spec.image")));
}

#[tokio::test(start_paused = true)]
async fn a_silent_host_makes_its_vms_lost_and_its_next_report_heals_them() {
    let world = World::new().await;
    let mut host = world.add_host(1, 4).await;
    world.create("a", |_| {}).await;
    world.settle().await;
    host.obey(&world).await;
    world.clock.advance(Duration::from_secs(40)).await;
    let view = world.view("a").await;
    assert_eq!(view.state, VmState::Lost);
    assert_eq!(view.incarnation.unwrap().reason.as_ref().unwrap().code, ReasonCode::HostLost);
    world.service.renew_lease(&host.session).await.unwrap();
    host.obey(&world).await;
    assert_eq!(world.state("a").await, VmState::Running);
}

#[tokio::test(start_paused = true)]
async fn a_controller_registers_again_without_a_conflict_and_its_older_self_is_refused() {
    let world = World::new().await;
    let old = world.add_host(1, 4).await;
    let new = world.add_host(1, 8).await;
    let error = world.service.renew_lease(&old.session).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::LeaseLost, Some(codes::CONTROLLER_SUPERSEDED)));
    assert!(world.service.host_assignments(&old.session, None, 10).await.is_err());
    world.service.renew_lease(&new.session).await.unwrap();
    assert_eq!(
        world.service.get_controller(new.session.controller).await.unwrap().controller.capacity.vcpus,
        8
    );
    let twin = Register { id: ControllerId::from_uuid(uuid::Uuid::from_u128(2)), ..new.register.clone() };
    let error = world.service.register_controller(twin).await.unwrap_err();
    assert_eq!(error.code(), Some(codes::CONTROLLER_NAME_TAKEN));
}

#[tokio::test(start_paused = true)]
async fn a_dead_host_is_removed_only_when_confirmed_and_its_vms_are_then_over() {
    let world = World::new().await;
    let mut host = world.add_host(1, 4).await;
    world.create("a", |spec| spec.restart.rule = RestartRule::OnFailure).await;
    world.create("b", |spec| spec.disk = DiskKind::Persistent).await;
    world.settle().await;
    host.obey(&world).await;
    let id = host.session.controller;
    let error =
        world.service.remove_controller(&caller(), id, false, &Mutation::default()).await.unwrap_err();
    assert_eq!(error.code(), Some(codes::CONTROLLER_IN_USE));
    let mut other = world.add_host(2, 4).await;
    world.service.remove_controller(&caller(), id, true, &Mutation::default()).await.unwrap();
    world.clock.advance(Duration::from_secs(5)).await;
    other.obey(&world).await;
    assert_eq!(world.state("a").await, VmState::Running, "the policy starts it elsewhere");
    let b = world.view("b").await;
    assert_eq!(b.state, VmState::Failed);
    assert_eq!(b.incarnation.unwrap().reason.as_ref().unwrap().code, ReasonCode::HostConfirmedDead);
}

#[tokio::test(start_paused = true)]
async fn a_follower_of_events_that_resumes_loses_none() {
    use futures::StreamExt;
    let world = World::new().await;
    let mut host = world.add_host(1, 9).await;
    let mut seen = Vec::new();
    let mut from = Position::START;
    for round in 0..6 {
        let mut events = world.service.follow_events(&caller(), from);
        world.create(&format!("vm-{round}"), |_| {}).await;
        world.settle().await;
        host.obey(&world).await;
        // The follower drops its stream in the middle of what it could read.
        for _ in 0..2 {
            let entry = events.next().await.unwrap().unwrap();
            from = entry.position;
            seen.push(entry);
        }
    }
    loop {
        let rest = world.service.events(&caller(), from, 5).await.unwrap();
        let Some(last) = rest.last() else { break };
        from = last.position;
        seen.extend(rest);
    }
    let all = world.service.events(&caller(), Position::START, 1_000).await.unwrap();
    assert_eq!(seen, all);
    assert_eq!(world.service.newest_event(&caller()).await.unwrap(), all.last().unwrap().position);
    assert!(all.iter().filter(|entry| entry.event.kind == EventKind::VmCreated).count() == 6);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_forgotten_when_reconciliation_dies_and_starts_anew() {
    let mut world = World::new().await;
    let mut host = world.add_host(1, 50).await;
    for number in 0..20 {
        world.create(&format!("vm-{number}"), |_| {}).await;
        world.crash_reconciler();
        tokio::task::yield_now().await;
    }
    world.clock.advance(Duration::from_secs(60)).await;
    world.service.renew_lease(&host.session).await.unwrap();
    host.obey(&world).await;
    for number in 0..20 {
        let view = world.view(&format!("vm-{number}")).await;
        assert_eq!((view.state, view.vm.placements), (VmState::Running, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn lists_filter_by_label_and_state_and_pages_meet() {
    let world = World::new().await;
    let mut host = world.add_host(1, 5).await;
    for number in 0..12 {
        let labels = [("parity".to_owned(), if number % 2 == 0 { "even" } else { "odd" }.to_owned())].into();
        let create = CreateVm {
            name: Some(VmName::new(format!("vm-{number}")).unwrap()),
            labels: Labels::new(labels, "labels").unwrap(),
            spec: spec(|_| {}),
        };
        world.service.create_vm(&caller(), create, &Mutation::default()).await.unwrap();
    }
    world.settle().await;
    host.obey(&world).await;
    let count = |filter: VmFilter| {
        let world = &world;
        async move {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let page = world.service.list_vms(&caller(), &filter, after, 5).await.unwrap();
                assert!(page.items.len() <= 5);
                found.extend(page.items.into_iter().map(|view| view.vm.id));
                match page.next {
                    Some(next) => after = Some(next),
                    None => break,
                }
            }
            let unique: std::collections::BTreeSet<_> = found.iter().collect();
            assert_eq!(unique.len(), found.len());
            found.len()
        }
    };
    let even = Labels::new([("parity".to_owned(), "even".to_owned())].into(), "labels").unwrap();
    assert_eq!(count(VmFilter::default()).await, 12);
    assert_eq!(count(VmFilter { labels: even, ..Default::default() }).await, 6);
    assert_eq!(count(VmFilter { state: Some(VmState::Running), ..Default::default() }).await, 5);
    assert_eq!(count(VmFilter { state: Some(VmState::Pending), ..Default::default() }).await, 7);
    assert_eq!(count(VmFilter { controller: Some(host.session.controller), ..Default::default() }).await, 5);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_changed_nothing_does_not_act_later() {
    let world = World::new().await;
    world.create("a", |_| {}).await;
    let stop = with_key("stop-once", "");
    world.service.stop_vm(&caller(), &reference("a"), &Mutation::default()).await.unwrap();
    world.service.stop_vm(&caller(), &reference("a"), &stop).await.unwrap();
    world.service.start_vm(&caller(), &reference("a"), &Mutation::default()).await.unwrap();
    let replayed = world.service.stop_vm(&caller(), &reference("a"), &stop).await.unwrap();
    assert_eq!(replayed.vm.desired, DesiredState::Running, "the repetition is answered, not carried out");
}
