use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use flames_controller::{ShutdownMode, Superseded};
use flames_model::{ExitCause, IncarnationState, Wanted};

use crate::api::LEASE_MS;
use crate::world::{World, name};

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_at_a_third_of_it() {
    let world = World::new();
    let controller = world.start().await;
    world.clock.advance(Duration::from_millis(LEASE_MS * 10)).await;
    let renewals = world.api.renewals();
    assert!((25..=31).contains(&renewals), "{renewals}");
    let registrations = world.api.registrations();
    assert_eq!(registrations.len(), 1);
    assert_eq!(registrations[0].capacity, world.config.capacity);
    assert_eq!(registrations[0].driver.name, "simulated");
    controller.shutdown(ShutdownMode::LeaveRunning).await;
}

#[tokio::test(start_paused = true)]
async fn a_controller_keeps_its_identity_over_restarts() {
    let world = World::new();
    for _ in 0..2 {
        let controller = world.start().await;
        world.clock.advance(Duration::from_secs(1)).await;
        assert_eq!(world.api.controller(), Some(controller.id()));
        controller.shutdown(ShutdownMode::LeaveRunning).await;
    }
    let registrations = world.api.registrations();
    assert_eq!(registrations.len(), 2);
    assert_eq!(registrations[0].id, registrations[1].id);
}

#[tokio::test(start_paused = true)]
async fn while_the_api_is_down_vms_run_on_and_only_the_newest_state_is_reported_with_all_its_times() {
    let world = World::new();
    let (stays, ends) = (world.assign(1, &["forever"]).await, world.assign(2, &["exit", "5", "60000"]).await);
    let controller = world.start().await;
    world.until_state(stays, IncarnationState::Running).await;
    world.until_state(ends, IncarnationState::Running).await;
    world.api.set_down(true);
    let before = world.api.reports().len();
    world.clock.advance(Duration::from_secs(600)).await;
    assert_eq!(world.host.running(), [name(stays)], "silence ends no VM");
    world.api.set_down(false);
    let released = world.until_released(ends).await;
    assert_eq!(released.exit.unwrap().code, Some(5));
    let told: Vec<_> = world.api.reports().split_off(before);
    assert_eq!(told.iter().filter(|report| report.incarnation == ends).count(), 1, "{told:#?}");
    let stopped_at = released.timeline[&IncarnationState::Stopped];
    assert!(released.released_at.unwrap().duration_since(stopped_at).as_secs() > 400, "by the host's clock");
    assert!(released.timeline.contains_key(&IncarnationState::Stopping));
    world.purge_all(controller, &[stays, ends]).await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_with_the_api_down_takes_up_what_runs_and_hears_how_it_ends() {
    let world = World::new();
    let ids = [world.assign(1, &["exit", "9", "30000"]).await, world.assign(2, &["forever"]).await];
    let controller = world.start().await;
    for id in ids {
        world.until_state(id, IncarnationState::Running).await;
    }
    world.api.set_down(true);
    drop(controller);
    world.clock.advance(Duration::from_secs(1)).await;
    let controller = world.start().await;
    world.clock.advance(Duration::from_secs(60)).await;
    assert_eq!(world.host.running(), [name(ids[1])]);
    assert!(world.inside(ids[0]).state().acknowledged);
    world.api.set_down(false);
    assert_eq!(world.until_released(ids[0]).await.exit.unwrap().code, Some(9));
    assert_eq!(world.api.incarnation(ids[1]).state, IncarnationState::Running);
    world.purge_all(controller, &ids).await;
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_ends_while_no_controller_runs_has_its_exit_code() {
    let world = World::new();
    let id = world.assign(1, &["exit", "4", "10000", "last words"]).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    drop(controller);
    world.clock.advance(Duration::from_secs(60)).await;
    let controller = world.start().await;
    let released = world.until_released(id).await;
    let exit = released.exit.unwrap();
    assert_eq!((exit.code, exit.cause), (Some(4), ExitCause::Workload));
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_ended_while_no_controller_ran_failed_unless_it_was_to_end() {
    let world = World::new();
    let (crashed, asked) = (world.assign(1, &["forever"]).await, world.assign(2, &["stubborn"]).await);
    let controller = world.start().await;
    world.until_state(crashed, IncarnationState::Running).await;
    world.until_state(asked, IncarnationState::Running).await;
    world.api.want(asked, Wanted::Stopped);
    world.until_state(asked, IncarnationState::Stopping).await;
    drop(controller);
    world.clock.advance(Duration::from_secs(1)).await;
    world.host.reboot();
    let controller = world.start().await;
    let failed = world.until_released(crashed).await;
    assert_eq!(failed.state, IncarnationState::Failed);
    let stopped = world.until_released(asked).await;
    assert_eq!((stopped.state, stopped.exit.unwrap().cause), (IncarnationState::Stopped, ExitCause::Stopped));
    assert_eq!(world.host.started_twice(), Vec::new());
    world.purge_all(controller, &[crashed, asked]).await;
}

#[tokio::test(start_paused = true)]
async fn an_incarnation_marked_lost_is_healed_by_the_next_registration() {
    let world = World::new();
    let id = world.assign(1, &["forever"]).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    world.api.mark_lost(id);
    world.api.supersede();
    world.until_state(id, IncarnationState::Running).await;
    assert_eq!(world.api.registrations().len(), 2);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn numbers_of_reports_grow_over_restarts() {
    let world = World::new();
    let id = world.assign(1, &["forever"]).await;
    for _ in 0..4 {
        let controller = world.start().await;
        world.clock.advance(Duration::from_secs(30)).await;
        assert_eq!(world.api.incarnation(id).state, IncarnationState::Running);
        drop(controller);
        world.clock.advance(Duration::from_millis(1)).await;
        world.api.mark_lost(id);
    }
    let sequences: Vec<_> = world.api.reports().iter().map(|report| report.sequence).collect();
    assert!(sequences.is_sorted(), "{sequences:?}");
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn reports_whose_answers_are_lost_are_sent_again_and_change_nothing() {
    let world = World::new();
    world.api.lose_answers(5);
    let id = world.assign(1, &["exit", "0", "100"]).await;
    let controller = world.start().await;
    assert_eq!(world.until_released(id).await.exit.unwrap().code, Some(0));
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn many_reports_go_in_batches() {
    let world = World::with(|_, config| config.bounds.preparations = 64);
    let mut ids = Vec::new();
    for number in 1..=200 {
        ids.push(world.assign(number, &["exit", "0", "10"]).await);
    }
    let controller = world.start().await;
    for id in &ids {
        world.until_released(*id).await;
    }
    let largest = world.api.largest_batch();
    assert!(largest > 8 && largest <= 64, "{largest}");
    world.purge_all(controller, &ids).await;
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_superseded_again_and_again_stops_loudly_and_its_vms_run_on() {
    let world = World::new();
    let id = world.assign(1, &["forever"]).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    let superseding = async {
        loop {
            world.api.supersede();
            world.clock.advance(Duration::from_secs(5)).await;
        }
    };
    let sentence = tokio::select! {
        sentence = world.clock.timeout(Duration::from_secs(300), controller.given_up()) => sentence.unwrap(),
        () = superseding => unreachable!(),
    };
    assert!(sentence.contains("Another process registers"), "{sentence}");
    assert_eq!(world.host.running(), [name(id)]);
    controller.shutdown(ShutdownMode::LeaveRunning).await;
    assert_eq!(world.host.running(), [name(id)]);
}

#[tokio::test(start_paused = true)]
async fn in_one_process_with_the_api_it_registers_again_for_ever() {
    let world = World::with(|_, config| config.superseded = Superseded::RegisterAgain);
    let id = world.assign(1, &["forever"]).await;
    let controller = world.start().await;
    for _ in 0..10 {
        world.until_state(id, IncarnationState::Running).await;
        world.api.supersede();
        world.api.mark_lost(id);
        world.clock.advance(Duration::from_secs(5)).await;
    }
    world.until_state(id, IncarnationState::Running).await;
    assert!(world.api.registrations().len() > 10);
    world.purge_all(controller, &[id]).await;
}

#[tokio::test(start_paused = true)]
async fn a_jump_of_the_wall_clock_ends_nothing_and_renews_on() {
    let world = World::new();
    let id = world.assign(1, &["forever"]).await;
    let controller = world.start().await;
    world.until_state(id, IncarnationState::Running).await;
    world.clock.jump_wall(-7_200_000);
    let renewals = world.api.renewals();
    world.clock.advance(Duration::from_secs(30)).await;
    assert!(world.api.renewals() >= renewals + 8);
    assert_eq!(world.api.incarnation(id).state, IncarnationState::Running);
    assert!(world.clock.now() < world.api.incarnation(id).created_at);
    world.purge_all(controller, &[id]).await;
}
