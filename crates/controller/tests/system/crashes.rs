//! A controller that is killed at each of its steps, and another that takes up what it left.

use std::time::Duration;

use flames_clock::ClockExt;
use flames_controller::Controller;
use flames_model::{ExitCause, Incarnation, IncarnationId, IncarnationState, Wanted};

use crate::world::{World, name};

/// Runs `story` with a controller that is killed at step `step`, one that is killed a few steps later, and another one after it. Answers
/// whether the story came so far.
async fn killed_at(
    step: i64,
    story: impl AsyncFn(&World) -> Vec<IncarnationId>,
    check: impl Fn(&World, &[Incarnation]),
) -> bool {
    let world = World::new();
    let mut killed = false;
    for steps in [step, step % 17] {
        world.steps.stop_behind(steps);
        let run = async {
            let started = Controller::start(world.parts(), world.config.clone()).await;
            story(&world).await;
            started.unwrap()
        };
        tokio::select! {
            biased;
            () = world.steps.reached() => killed |= steps == step,
            controller = run => drop(controller),
        }
        world.steps.run_free();
        // What was aborted is dropped when the runtime next looks at it.
        world.clock.advance(Duration::from_millis(1)).await;
    }
    let controller = world.start().await;
    let ids = story(&world).await;
    let ended: Vec<_> = ids.iter().map(|id| world.api.incarnation(*id)).collect();
    check(&world, &ended);
    for id in &ids {
        assert!(world.host.life(&name(*id)).starts <= 1, "step {step}: {id} ran twice");
    }
    world.purge_all(controller, &ids).await;
    killed
}

pub(crate) async fn killed_everywhere(
    story: impl AsyncFn(&World) -> Vec<IncarnationId>,
    check: impl Fn(&World, &[Incarnation]),
    least: i64,
) {
    for step in 0.. {
        if !killed_at(step, &story, &check).await {
            assert!(step > least, "only {step} steps");
            return;
        }
        assert!(step < 2_000, "it does not come to its end");
    }
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_step_a_run_that_ends_by_itself_ends_once_with_its_code() {
    let story = async |world: &World| {
        let id = IncarnationId::from_uuid(uuid::Uuid::from_u128(1));
        if !world.api.knows(id) {
            world.assign(1, &["hasty", "6", "200", "words"]).await;
        }
        world.until_released(id).await;
        vec![id]
    };
    killed_everywhere(
        story,
        |_, ended| {
            let exit = ended[0].exit.unwrap();
            assert_eq!((ended[0].state, exit.code), (IncarnationState::Stopped, Some(6)), "{:#?}", ended[0]);
            assert_eq!(exit.cause, ExitCause::Workload);
        },
        40,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_step_a_vm_that_is_paused_resumed_stopped_and_purged_leaves_nothing() {
    let story = async |world: &World| {
        let id = IncarnationId::from_uuid(uuid::Uuid::from_u128(1));
        if !world.api.knows(id) {
            world.assign(1, &["forever"]).await;
        }
        let stage = |wanted, state| async move {
            // What was reached before the kill is not asked for again.
            let now = world.api.incarnation(id);
            if !now.timeline.contains_key(&state) {
                if world.api.wanted(id) != wanted {
                    world.api.want(id, wanted);
                }
                world.until(id, |now| now.timeline.contains_key(&state)).await;
            }
        };
        stage(Wanted::Running, IncarnationState::Running).await;
        stage(Wanted::Paused, IncarnationState::Paused).await;
        stage(Wanted::Stopped, IncarnationState::Stopped).await;
        if world.api.wanted(id) != Wanted::Purged {
            world.api.want(id, Wanted::Purged);
        }
        world.until_purged(id).await;
        vec![id]
    };
    killed_everywhere(
        story,
        |world, ended| {
            assert_eq!(ended[0].state, IncarnationState::Stopped);
            assert_eq!(ended[0].exit.unwrap().cause, ExitCause::Stopped);
            assert_eq!(world.host.residue(), Vec::<String>::new());
        },
        60,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_step_a_failure_to_prepare_is_one_failure_and_nothing_is_left() {
    let story = async |world: &World| {
        let id = IncarnationId::from_uuid(uuid::Uuid::from_u128(1));
        if !world.api.knows(id) {
            let mut assignment = world.assignment(1, &["forever"]).await;
            assignment.image.digest = "full".to_owned();
            world.api.assign(assignment);
        }
        world.until_released(id).await;
        vec![id]
    };
    killed_everywhere(
        story,
        |world, ended| {
            assert_eq!(ended[0].state, IncarnationState::Failed);
            assert_eq!(world.host.life(&name(ended[0].id)).starts, 0);
        },
        20,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_moment_of_a_run_with_many_vms_each_ends_once() {
    // Between the steps too: by time, and by turns of the runtime within one moment.
    for moment in 0..60_u64 {
        let world = World::new();
        let mut ids = Vec::new();
        for number in 1..=4 {
            ids.push(world.assign(number, &["exit", "1", &(number * 20).to_string()]).await);
        }
        let controller = world.start().await;
        world.clock.advance(Duration::from_millis(moment * 4)).await;
        for _ in 0..moment % 7 {
            tokio::task::yield_now().await;
        }
        drop(controller);
        world.clock.advance(Duration::from_millis(1)).await;
        let controller = world.start().await;
        for id in &ids {
            let released =
                world.clock.timeout(Duration::from_secs(60), world.until_released(*id)).await.unwrap();
            assert_eq!(released.exit.unwrap().code, Some(1));
        }
        world.purge_all(controller, &ids).await;
    }
}
