use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flames_clock::Clock;
use flames_controller::{Controller, ShutdownMode};
use flames_error::ErrorKind;
use flames_model::{
    DiskKind, ExitCause, FencingToken, ImageManifest, IncarnationId, IncarnationState, PortSpec, ReasonCode,
    SecretString, Wanted,
};
use flames_vmm::{Phase, SnapshotKind, VmDriver};
use flames_vmm_simulated::{Applied, Death, Misbehaviour, Operation, Rule, SimulatedDriver};
use uuid::Uuid;

use crate::steps::SteppedDriver;
use crate::world::{World, name};

#[tokio::test(start_paused = true)]
async fn a_vm_runs_and_its_timeline_tells_each_phase() {
    let world = World::new();
    let mut assignment = world.assignment(1, &["forever"]).await;
    Arc::make_mut(&mut assignment.spec).ports = vec![PortSpec { guest_port: 80, host_port: None }];
    let id = assignment.incarnation;
    world.api.assign(assignment);
    let controller = world.start().await;
    let running = world.until_state(id, IncarnationState::Running).await;
    let (preparing, starting) = (IncarnationState::Preparing, IncarnationState::Starting);
    let phases: Vec<_> = running.timeline.keys().copied().collect();
    assert_eq!(phases, [preparing, starting, IncarnationState::Running]);
    assert!(running.timeline[&preparing] < running.timeline[&starting]);
    assert!(running.timeline[&starting] < running.timeline[&IncarnationState::Running]);
    assert_eq!(running.endpoints.len(), 1);
    assert_eq!(running.endpoints[0].guest_port, 80);
    assert!(running.endpoints[0].address.ip().is_loopback());
    assert!(running.exit.is_none() && running.reason.is_none());
    assert_eq!(world.host.running(), [name(id)]);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_is_told_what_the_spec_and_the_image_say() {
    let world = World::new();
    let mut assignment = world.assignment(1, &[]).await;
    let text = str::to_owned;
    assignment.image.defaults.entrypoint = vec![text("forever")];
    assignment.image.defaults.cmd = vec![text("image-argument")];
    assignment.image.defaults.env = BTreeMap::from([(text("A"), text("image")), (text("B"), text("image"))]);
    assignment.image.defaults.user = Some(text("daemon"));
    assignment.image.defaults.working_directory = Some(text("/srv"));
    Arc::make_mut(&mut assignment.spec).args = vec![text("argument")];
    Arc::make_mut(&mut assignment.spec).env = BTreeMap::from([(text("B"), text("spec"))]);
    Arc::make_mut(&mut assignment.spec).secret_env =
        BTreeMap::from([(text("TOKEN"), SecretString::new("hush"))]);
    Arc::make_mut(&mut assignment.spec).working_directory = Some(text("/work"));
    let id = assignment.incarnation;
    world.api.assign(assignment);
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    let inside = world.inside(id);
    let workload = inside.config.workload.as_ref().unwrap();
    assert_eq!(workload.argv, ["forever", "argument"]);
    assert_eq!(workload.env, [(text("A"), text("image")), (text("B"), text("spec"))]);
    assert_eq!(workload.secret_env[0].1.expose(), "hush");
    assert_eq!(workload.working_directory.as_deref(), Some("/work"));
    assert_eq!(workload.user.as_deref(), Some("daemon"));
    assert_eq!(inside.config.hostname, "vm-1");
    let machine = world.host.machine(&name(id)).unwrap().spec.unwrap();
    assert!(machine.drives[0].read_only && !machine.drives[1].read_only);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_without_a_workload_stays_up() {
    let world = World::new();
    let id = world.assign(1, &[]).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    world.clock.advance(Duration::from_secs(3_600)).await;
    assert_eq!(world.api.incarnation(id).state, IncarnationState::Running);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_ends_is_reported_with_its_code_and_acknowledged_after_it_was_written_down() {
    let world = World::new();
    let id = world.assign(1, &["exit", "3", "500", "bye"]).await;
    let controller = world.start().await;
    let released = world.until_released(id).await;
    assert_eq!(released.state, IncarnationState::Stopped);
    let exit = released.exit.unwrap();
    assert_eq!((exit.code, exit.signal, exit.cause), (Some(3), None, ExitCause::Workload));
    assert_eq!(released.reason.unwrap().code, ReasonCode::WorkloadExited);
    let inside = world.inside(id).state();
    assert!(inside.acknowledged && inside.asked_to_end, "the guest was shut down and not killed");
    assert_eq!(world.host.life(&name(id)).last_exit, Some(flames_vmm::ExitCause::Guest));
    // Told again that it should run, it does not: the servers decide on another run.
    world.api.tell_again(id);
    world.clock.advance(Duration::from_secs(60)).await;
    assert_eq!(world.host.life(&name(id)).starts, 1);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_is_not_in_the_image_failed_and_says_so() {
    let world = World::new();
    let id = world.assign(1, &["missing"]).await;
    let controller = world.start().await;
    let released = world.until_released(id).await;
    assert_eq!(released.state, IncarnationState::Failed);
    assert_eq!(released.exit.unwrap().code, Some(127));
    let reason = released.reason.unwrap();
    assert_eq!(reason.code, ReasonCode::WorkloadNotStarted);
    assert!(reason.message.contains("no such file"), "{}", reason.message);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_asks_the_workload_first_and_keeps_disk_and_logs() {
    let world = World::new();
    let id = world.assign(1, &["forever"]).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    world.api.want(id, Wanted::Stopped);
    let released = world.until_released(id).await;
    assert_eq!(released.state, IncarnationState::Stopped);
    let exit = released.exit.unwrap();
    assert_eq!((exit.signal, exit.cause), (Some(15), ExitCause::Stopped));
    assert!(released.timeline.contains_key(&IncarnationState::Stopping));
    assert!(world.inside(id).state().asked_to_end);
    assert!(world.folder.residue().iter().any(|left| left.starts_with("disk")));
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_end_when_asked_is_killed_after_its_grace() {
    let world = World::new();
    let id = world.assign(1, &["stubborn"]).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    world.api.want(id, Wanted::Stopped);
    let from = world.clock.now();
    let released = world.until_released(id).await;
    assert_eq!(released.state, IncarnationState::Stopped);
    assert!(released.reason.unwrap().message.contains("was killed"));
    let took = world.clock.now().duration_since(from).as_millis();
    assert!((1_000..20_000).contains(&took), "{took} ms");
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_before_the_start_starts_nothing() {
    let world = World::new();
    let mut assignment = world.assignment(1, &["forever"]).await;
    assignment.wanted = Wanted::Stopped;
    let id = assignment.incarnation;
    world.api.assign(assignment);
    let controller = world.start().await;
    let released = world.until_released(id).await;
    assert_eq!(released.exit.unwrap().cause, ExitCause::Stopped);
    assert_eq!(world.host.life(&name(id)).starts, 0);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_is_paused_and_resumed_and_its_clock_set() {
    let world = World::new();
    let id = world.assign(1, &["forever"]).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    world.api.want(id, Wanted::Paused);
    let paused = world.until_state(id, IncarnationState::Paused).await;
    assert!(paused.timeline.contains_key(&IncarnationState::Pausing));
    assert_eq!(world.host.phases()[&name(id)], Phase::Paused);
    world.clock.advance(Duration::from_secs(600)).await;
    assert_eq!(world.api.incarnation(id).state, IncarnationState::Paused);
    world.api.want(id, Wanted::Running);
    world.until_state(id, IncarnationState::Running).await;
    let now = u64::try_from(world.clock.now().as_millisecond()).unwrap();
    assert!(now - world.inside(id).state().epoch_ms.unwrap() < 1_000);
    // A paused one can be stopped, and is asked first.
    world.api.want(id, Wanted::Paused);
    world.until_state(id, IncarnationState::Paused).await;
    world.api.want(id, Wanted::Stopped);
    assert_eq!(world.until_released(id).await.exit.unwrap().signal, Some(15));
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_a_crashed_snapshot_left_is_ended() {
    let world = World::new();
    let id = world.assign(1, &["forever"]).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    let driver = SimulatedDriver::new(world.host.clone());
    let incarnation = name(id);
    let mut saving = Box::pin(driver.snapshot(&incarnation, "one", SnapshotKind::Full));
    tokio::select! {
        _ = &mut saving => panic!("it takes longer"),
        () = world.clock.advance(Duration::from_millis(10)) => {}
    }
    drop(saving);
    assert_eq!(world.host.phases()[&name(id)], Phase::Paused);
    world.clock.advance(Duration::from_secs(60)).await;
    assert_eq!(world.host.phases()[&name(id)], Phase::Running);
    world.purge_all(controller, &[id]).await;
}

async fn fails(world: &World, change: impl FnOnce(&mut flames_model::Assignment)) -> flames_model::Reason {
    let mut assignment = world.assignment(1, &["forever"]).await;
    Arc::make_mut(&mut assignment.spec).disk = DiskKind::Ephemeral;
    change(&mut assignment);
    let id = assignment.incarnation;
    world.api.assign(assignment);
    let controller = world.start().await;
    let released = world.until_released(id).await;
    assert_eq!(released.state, IncarnationState::Failed);
    assert_eq!(released.exit.unwrap().cause, ExitCause::Machine);
    assert_eq!(world.host.residue(), Vec::<String>::new());
    world.purge_all(controller, &[id]).await;
    released.reason.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_gone_a_full_disk_and_a_kernel_that_is_none_are_told_apart() {
    let missing = fails(&World::new(), |assignment| assignment.image.digest = "missing".to_owned()).await;
    assert_eq!(missing.code, ReasonCode::ImageMissing);
    let full = fails(&World::new(), |assignment| assignment.image.digest = "full".to_owned()).await;
    assert_eq!(full.code, ReasonCode::NotPrepared);
    assert!(full.message.contains("disk is full"));
    let world = World::new();
    let kernel = fails(&world, |assignment| {
        assignment.kernel = Some(ImageManifest { digest: "k".to_owned(), ..assignment.image.clone() });
    });
    let kernel = kernel.await;
    assert!(kernel.message.contains("a kernel is an ELF file"), "{}", kernel.message);
    let world = World::new();
    let snapshot = fails(&world, |assignment| {
        assignment.source = flames_model::Source::Snapshot("one".to_owned());
    });
    assert_eq!(snapshot.await.code, ReasonCode::SnapshotUnusable);
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_dies_at_the_start_is_a_failure_with_its_words() {
    let world = World::new();
    world.host.script().add(Rule::once(
        Operation::Start,
        Misbehaviour::DieStarting { message: "no memory for the guest".to_owned() },
    ));
    let reason = fails(&world, |_| {}).await;
    assert_eq!(reason.code, ReasonCode::MachineFailed);
    assert!(reason.message.contains("no memory for the guest"));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stays_silent_fails_the_vm_with_the_consoles_last_line() {
    let world = World::new();
    let reason = fails(&world, |assignment| {
        Arc::make_mut(&mut assignment.spec).command = Some(vec!["silent".to_owned()])
    })
    .await;
    assert_eq!(reason.code, ReasonCode::AgentSilent);
    assert!(reason.message.contains("no agent here"), "{}", reason.message);
    assert!(!reason.message.contains('\u{1b}'));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_powers_off_and_a_monitor_that_crashes_are_failures_that_tell_apart() {
    let world = World::new();
    assert_eq!(
        fails(&world, |assignment| {
            Arc::make_mut(&mut assignment.spec).command = Some(vec!["halt".to_owned(), "5000".to_owned()]);
        })
        .await
        .code,
        ReasonCode::GuestStopped
    );
    let world = World::new();
    let how = Misbehaviour::Die { after: Duration::from_secs(5), how: Death::Crash };
    world.host.script().add(Rule::once(Operation::Start, how));
    // Also when the hint of it is lost.
    world.host.script().add(Rule::always(Operation::Exits, Misbehaviour::LoseHint));
    assert_eq!(fails(&world, |_| {}).await.code, ReasonCode::MachineFailed);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_fails_hangs_and_loses_answers_is_asked_again() {
    let world = World::with(|_, config| config.timings.driver_call = Duration::from_secs(5));
    let script = world.host.script();
    for operation in [
        Operation::Adopt,
        Operation::Prepare,
        Operation::Start,
        Operation::Connect,
        Operation::Observe,
        Operation::Pause,
        Operation::Resume,
        Operation::Stop,
        Operation::Destroy,
    ] {
        for applied in [Applied::No, Applied::Yes] {
            script
                .add(Rule::once(operation, Misbehaviour::Fail { kind: ErrorKind::OutcomeUnknown, applied }));
            script.add(Rule::once(operation, Misbehaviour::Hang { applied }));
        }
    }
    let id = world.assign(1, &["forever"]).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    world.api.want(id, Wanted::Paused);
    world.until_state(id, IncarnationState::Paused).await;
    world.api.want(id, Wanted::Running);
    world.until_state(id, IncarnationState::Running).await;
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_doubled_and_a_late_assignment_change_nothing() {
    let world = World::new();
    let id = world.assign(1, &["forever"]).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    for _ in 0..3 {
        world.api.tell_again(id);
        world.clock.advance(Duration::from_secs(1)).await;
    }
    let mut late = world.assignment(1, &["forever"]).await;
    late.token = FencingToken(0);
    late.wanted = Wanted::Running;
    world.api.assign(late);
    world.clock.advance(Duration::from_secs(1)).await;
    assert_eq!(world.host.life(&name(id)).starts, 1);
    let assignment = world.assignment(1, &["forever"]).await;
    world.api.assign(assignment);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn two_incarnations_of_one_vm_never_have_machines_at_once() {
    let world = World::new();
    let old = world.assign(1, &["forever"]).await;
    let controller = world.start().await;
    world.until_state(old, IncarnationState::Running).await;
    // An operator said that this host is dead, and the VM is placed on it again.
    let mut assignment = world.assignment(2, &["forever"]).await;
    assignment.vm = world.assignment(1, &[]).await.vm;
    let new = assignment.incarnation;
    world.api.assign(assignment);
    world.clock.advance(Duration::from_secs(30)).await;
    assert_eq!(world.host.running(), [name(old)]);
    world.api.unassign(old, false);
    world.until_state(new, IncarnationState::Running).await;
    assert_eq!(world.host.running(), [name(new)]);
    assert_eq!(world.host.peak_use().vcpus, 1, "never two at once");
    world.purge_all(controller, &[new]).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_assigned_any_more_is_destroyed_also_when_only_the_full_listing_tells() {
    let world = World::new();
    let (told, silent, unknown) = (
        world.assign(1, &["forever"]).await,
        world.assign(2, &["forever"]).await,
        world.assign(3, &["exit", "0", "60000"]).await,
    );
    let controller = world.start().await;
    for id in [told, silent, unknown] {
        world.until_state(id, IncarnationState::Running).await;
    }
    world.api.unassign(told, false);
    world.api.unassign(silent, true);
    world.clock.advance(Duration::from_secs(2)).await;
    assert_eq!(world.host.running(), [name(silent), name(unknown)]);
    world.clock.advance(world.config.timings.resync + Duration::from_secs(5)).await;
    assert_eq!(world.host.running(), Vec::new());
    // The third ended meanwhile. Forgotten by the control plane, it is forgotten here when a report finds out.
    let fourth = world.assign(4, &["exit", "0", "10000"]).await;
    world.until_state(fourth, IncarnationState::Running).await;
    world.api.forget(fourth);
    world.clock.advance(Duration::from_secs(30)).await;
    let left = world.folder.residue();
    assert!(
        !left.iter().any(|left| left.contains(&fourth.to_string()) && left.starts_with("record")),
        "{left:?}"
    );
    controller.shutdown(ShutdownMode::LeaveRunning).await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_nobody_knows_is_removed_after_a_while_and_a_foreign_one_never() {
    let world = World::new();
    let driver = SimulatedDriver::new(world.host.clone());
    let stray = IncarnationId::from_uuid(Uuid::from_u128(99));
    let foreign = flames_vmm::IncarnationName::new("something_else").unwrap();
    let spec = flames_vmm::MachineSpec {
        vcpus: 1,
        memory_mib: 64,
        boot: flames_vmm::BootSource { kernel: "/k".into(), initramfs: None, extra_arguments: Vec::new() },
        drives: Vec::new(),
        guest_config: flames_vmm::SecretBytes(Vec::new()),
        network: flames_vmm::NetworkSpec::None,
    };
    driver.prepare(&name(stray), &spec).await.unwrap();
    driver.prepare(&foreign, &spec).await.unwrap();
    let controller = world.start().await;
    world.clock.advance(Duration::from_secs(20)).await;
    assert!(world.host.phases().contains_key(&name(stray)), "there is a grace");
    world.clock.advance(Duration::from_secs(200)).await;
    assert!(!world.host.phases().contains_key(&name(stray)));
    assert!(world.host.phases().contains_key(&foreign));
    controller.shutdown(ShutdownMode::LeaveRunning).await;
}

#[tokio::test(start_paused = true)]
async fn stopping_everything_ends_each_vm_as_asked_and_leaving_them_ends_none() {
    let world = World::new();
    let ids = [world.assign(1, &["forever"]).await, world.assign(2, &["forever"]).await];
    let controller = world.start().await;
    for id in ids {
        world.until_state(id, IncarnationState::Running).await;
    }
    controller.shutdown(ShutdownMode::LeaveRunning).await;
    assert_eq!(world.host.running().len(), 2);
    let controller = world.start().await;
    world.clock.advance(Duration::from_secs(1)).await;
    controller.shutdown(ShutdownMode::StopAll).await;
    assert_eq!(world.host.running(), Vec::new());
    for id in ids {
        let now = world.api.incarnation(id);
        assert!(now.released_at.is_some(), "{now:?}");
        assert_eq!(now.exit.unwrap().cause, ExitCause::Stopped);
    }
    assert_eq!(world.host.residue(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_output_stays_within_its_bound_and_holds_nobody_up() {
    let world = World::new();
    let flood = world.assign(1, &["flood", "6000000"]).await;
    let other = world.assign(2, &["exit", "0", "100"]).await;
    let controller = world.start().await;
    world.until_released(other).await;
    let ended = world.until_released(flood).await;
    assert_eq!(ended.exit.unwrap().code, Some(0));
    use flames_controller::HostFolder;
    assert_eq!(world.folder.output_end(flood).await.unwrap(), 6_000_000);
    let (mut kept, mut from) = (0, 0);
    loop {
        let page = world.folder.read_output(flood, from, 1 << 16).await.unwrap();
        if page.entries.is_empty() {
            break;
        }
        from = page.next;
        kept += page.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
    }
    assert!(kept <= 1 << 20, "{kept}");
    world.purge_all(controller, &[flood, other]).await;
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_does_not_work_here_is_refused_with_its_sentence() {
    let world = World::new();
    let mut parts = world.parts();
    let mut driver = SteppedDriver::new(Arc::new(SimulatedDriver::new(world.host.clone())), Arc::default());
    driver.unusable = Some("Install the monitor first.");
    parts.driver = Arc::new(driver);
    let error = Controller::start(parts, world.config.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert_eq!(error.user_message(), Some("Install the monitor first."));
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_shut_down_closes_its_driver_and_leaves_its_machines() {
    let world = World::new();
    let id = world.assign(1, &["forever"]).await;
    let mut parts = world.parts();
    let driver = SteppedDriver::new(Arc::new(SimulatedDriver::new(world.host.clone())), Arc::default());
    let closed = Arc::clone(&driver.closed);
    parts.driver = Arc::new(driver);
    let controller = Controller::start(parts, world.config.clone()).await.unwrap();
    world.until_state(id, IncarnationState::Running).await;
    assert_eq!(closed.load(Ordering::Relaxed), 0);
    controller.shutdown(ShutdownMode::LeaveRunning).await;
    assert_eq!(closed.load(Ordering::Relaxed), 1);
    let controller = world.start().await;
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_vm_that_lives_needs_is_never_swept_and_what_nobody_needs_is() {
    let world = World::new();
    let id = world.assign(1, &["forever"]).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    world.clock.advance(Duration::from_secs(11 * 60)).await;
    let swept = || std::mem::take(&mut *world.artefacts.swept.lock().unwrap());
    assert_eq!(swept(), [["1"]], "on a timer");
    world.purge_all(controller, &[id]).await;
    let controller = world.start().await;
    world.clock.advance(Duration::from_secs(11 * 60)).await;
    assert_eq!(swept().last(), Some(&Vec::new()), "and another process goes on");
    controller.shutdown(ShutdownMode::LeaveRunning).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_vm_has_its_host_swept_soon() {
    let world = World::new();
    let id = world.assign(1, &["exit", "0", "10"]).await;
    let controller = world.start().await;
    world.until_released(id).await;
    world.api.want(id, Wanted::Purged);
    world.until_purged(id).await;
    world.api.unassign(id, false);
    world.clock.advance(Duration::from_secs(20)).await;
    assert_eq!(*world.artefacts.swept.lock().unwrap(), [Vec::<String>::new()]);
    controller.shutdown(ShutdownMode::LeaveRunning).await;
}
