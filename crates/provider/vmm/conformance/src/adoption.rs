//! What an earlier driver left.

use flames_error::ErrorKind;
use flames_vmm::{ExitCause, Phase};

use crate::Fixture;
use crate::lab::{Lab, refused, same};

pub(crate) async fn an_empty_host_has_nothing_to_adopt(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    assert!(lab.adopt().await.is_empty());
    lab.nothing_is_left().await;
    let name = lab.running().await;
    lab.destroy(&name).await;
    fixture.reopen().await;
    assert!(lab.adopt().await.is_empty());
}

pub(crate) async fn a_new_driver_adopts_what_an_earlier_one_left(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let mut left = vec![
        (lab.prepared().await, Phase::Prepared),
        (lab.running().await, Phase::Running),
        (lab.exited().await, Phase::Exited),
    ];
    if lab.driver().capabilities().await.unwrap().pause {
        let paused = lab.running().await;
        lab.pause(&paused).await;
        left.push((paused, Phase::Paused));
    }
    let mut before = Vec::new();
    for (name, _) in &left {
        before.push(lab.observe(name).await);
    }
    let monitors = fixture.monitors().await;
    fixture.close().await;
    fixture.settle(lab.limits.quiet).await;
    assert_eq!(fixture.monitors().await, monitors, "guests outlive the driver");
    fixture.reopen().await;
    let found = lab.adopt().await;
    assert_eq!(found.len(), left.len(), "{found:?}");
    for ((name, phase), before) in left.iter().zip(&before) {
        let found = &found[name];
        assert_eq!(found.phase, *phase, "{name}");
        same(&before.pid, &found.pid);
        same(&before.prepared, &found.prepared);
        assert_eq!(found.exit.is_some(), *phase == Phase::Exited);
        lab.is(name, *phase).await;
    }
    assert_eq!(fixture.monitors().await, monitors, "adopting starts and ends nothing");
}

pub(crate) async fn adopting_twice_finds_the_same(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let (running, _prepared, _exited) = (lab.running().await, lab.prepared().await, lab.exited().await);
    fixture.reopen().await;
    let first = lab.adopt().await;
    assert_eq!(first.len(), 3);
    same(&first, &lab.adopt().await);
    same(&first[&running], &lab.observe(&running).await);
}

pub(crate) async fn an_adopted_vm_can_be_stopped_and_destroyed(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let (stopped, destroyed) = (lab.running().await, lab.running().await);
    fixture.reopen().await;
    assert_eq!(lab.adopt().await.len(), 2);
    lab.kill(&stopped).await;
    assert_eq!(lab.exit_of(&stopped).await.cause, ExitCause::Stopped);
    lab.destroy(&destroyed).await;
    lab.is_not_there(&destroyed).await;
    lab.destroy(&stopped).await;
    lab.nothing_is_left().await;
}

pub(crate) async fn an_adopted_incarnation_can_still_be_started(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let (prepared, running) = (lab.prepared().await, lab.running().await);
    fixture.reopen().await;
    lab.adopt().await;
    for name in [&prepared, &running] {
        lab.start(name).await;
        lab.is(name, Phase::Running).await;
    }
    assert_eq!(fixture.monitors().await, 2);
}

pub(crate) async fn an_adopted_incarnation_keeps_its_spec(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let (prepared, running) = (lab.prepared().await, lab.running().await);
    fixture.reopen().await;
    lab.adopt().await;
    let spec = fixture.spec().await;
    let mut other = spec.clone();
    other.memory_mib += 16;
    for name in [&prepared, &running] {
        let before = lab.observe(name).await;
        lab.prepare(name, &spec).await;
        refused(lab.call("prepare", lab.driver().prepare(name, &other)).await, ErrorKind::Conflict);
        same(&before, &lab.observe(name).await);
    }
}

pub(crate) async fn an_exit_while_no_driver_ran_is_found(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let (ended, other) = (lab.running().await, lab.running().await);
    fixture.close().await;
    fixture.crash(&ended).await;
    lab.monitors_are(1).await;
    fixture.reopen().await;
    let found = lab.adopt().await;
    assert_eq!(found[&ended].phase, Phase::Exited);
    let exit = found[&ended].exit.clone().expect("an exit is told of what has exited");
    assert!(matches!(exit.cause, ExitCause::Unknown | ExitCause::Crashed), "{exit:?}");
    assert_eq!(found[&other].phase, Phase::Running);
    assert_eq!(lab.exit_of(&ended).await, exit, "what was found once does not change");
}

pub(crate) async fn an_exit_of_an_adopted_vm_is_observed(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    fixture.reopen().await;
    lab.adopt().await;
    fixture.crash(&name).await;
    // Not a child of this process: a driver may be unable to tell how it ended.
    let exit = lab.exit_of(&name).await;
    assert!(matches!(exit.cause, ExitCause::Unknown | ExitCause::Crashed), "{exit:?}");
}
