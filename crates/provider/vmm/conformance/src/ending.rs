//! Exits, stopping and destroying.

use flames_error::ErrorKind;
use flames_vmm::{AGENT_PORT, ExitCause, Phase, SnapshotKind, StopHow, Update};
use futures::StreamExt;

use crate::Fixture;
use crate::lab::{Lab, fresh_name, refused, same};

pub(crate) async fn a_stopped_vm_has_exited_with_its_cause(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    lab.kill(&name).await;
    // `stop` returns once the monitor has exited: no waiting here.
    lab.is(&name, Phase::Exited).await;
    let observed = lab.observe(&name).await;
    assert_eq!(observed.pid, None);
    let exit = observed.exit.unwrap();
    assert_eq!(exit.cause, ExitCause::Stopped);
    assert!(exit.message.is_none_or(|message| message.len() <= 1024));
    lab.monitors_are(0).await;
}

pub(crate) async fn a_vm_that_ignores_its_power_button_is_killed_after_the_grace(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let mut ended = vec![lab.running().await];
    if lab.driver().capabilities().await.unwrap().pause {
        // A guest whose processors are stopped hears no button.
        let deaf = lab.running().await;
        lab.pause(&deaf).await;
        ended.push(deaf);
    }
    for name in &ended {
        lab.stop(name, StopHow::PowerOff { grace: lab.limits.grace }).await;
        lab.is(name, Phase::Exited).await;
        assert_eq!(lab.exit_of(name).await.cause, ExitCause::Stopped);
    }
    lab.monitors_are(0).await;
}

pub(crate) async fn stopping_twice_changes_nothing(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.exited().await;
    let before = lab.observe(&name).await;
    for how in [StopHow::Kill, StopHow::PowerOff { grace: lab.limits.grace }] {
        lab.stop(&name, how).await;
        same(&before, &lab.observe(&name).await);
    }
    let crashed = lab.running().await;
    fixture.crash(&crashed).await;
    let exit = lab.exit_of(&crashed).await;
    lab.kill(&crashed).await;
    same(&exit, &lab.exit_of(&crashed).await);
}

pub(crate) async fn stopping_what_was_only_prepared_changes_nothing(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.prepared().await;
    for how in [StopHow::Kill, StopHow::PowerOff { grace: lab.limits.grace }] {
        lab.stop(&name, how).await;
        lab.is(&name, Phase::Prepared).await;
    }
    lab.start(&name).await;
    lab.is(&name, Phase::Running).await;
}

pub(crate) async fn stopping_one_vm_leaves_another_running(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let (one, other) = (lab.running().await, lab.running().await);
    let before = lab.observe(&other).await;
    lab.kill(&one).await;
    fixture.settle(lab.limits.quiet).await;
    same(&before, &lab.observe(&other).await);
    assert_eq!(fixture.monitors().await, 1);
}

pub(crate) async fn observing_what_is_not_there_is_not_found(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    lab.is_not_there(&fresh_name()).await;
    lab.nothing_is_left().await;
}

pub(crate) async fn nothing_can_be_done_to_what_is_not_there(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let (driver, name) = (lab.driver(), fresh_name());
    let can = driver.capabilities().await.unwrap();
    let or = |has: bool| if has { ErrorKind::NotFound } else { ErrorKind::NotSupported };
    refused(driver.stop(&name, StopHow::Kill).await, ErrorKind::NotFound);
    refused(driver.stats(&name).await, ErrorKind::NotFound);
    refused(driver.connect(&name, AGENT_PORT).await, ErrorKind::NotFound);
    refused(driver.pause(&name).await, or(can.pause));
    refused(driver.resume(&name).await, or(can.pause));
    refused(driver.snapshot(&name, "some", SnapshotKind::Full).await, or(can.snapshot));
    let kind = driver.update(&name, &Update::BalloonMib(1)).await.unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::NotFound | ErrorKind::NotSupported), "{kind}");
    lab.nothing_is_left().await;
}

pub(crate) async fn an_exit_is_observed(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    fixture.crash(&name).await;
    assert_eq!(lab.exit_of(&name).await.cause, ExitCause::Crashed);
    assert_eq!(lab.observe(&name).await.pid, None);
    assert_eq!(lab.adopt().await[&name].phase, Phase::Exited);
}

pub(crate) async fn an_exit_is_hinted(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let mut hints = lab.driver().exits().await.unwrap();
    let (ends, runs) = (lab.running().await, lab.running().await);
    fixture.crash(&ends).await;
    let hint = lab.call("the hint of an exit", hints.next()).await;
    assert_eq!(hint.as_ref(), Some(&ends), "{runs} still runs");
    lab.exit_of(&ends).await;
}

pub(crate) async fn a_guest_that_powers_itself_off_has_exited_by_itself(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    fixture.power_off_guest(&name).await;
    let exit = || async {
        let observed = lab.driver().observe(&name).await.unwrap();
        observed.exit.filter(|_| observed.phase == Phase::Exited)
    };
    let exit = lab.until(lab.limits.boot, "the guest is gone", exit).await;
    assert_eq!(exit.cause, ExitCause::Guest);
    refused(lab.try_start(&name).await, ErrorKind::Conflict);
}

pub(crate) async fn a_destroyed_incarnation_is_gone(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    for name in [lab.prepared().await, lab.exited().await] {
        lab.destroy(&name).await;
        lab.is_not_there(&name).await;
        assert!(!lab.adopt().await.contains_key(&name));
        refused(lab.try_start(&name).await, ErrorKind::NotFound);
    }
    lab.nothing_is_left().await;
    fixture.reopen().await;
    assert!(lab.adopt().await.is_empty());
}

pub(crate) async fn destroying_twice_is_no_error(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    lab.destroy(&name).await;
    lab.destroy(&name).await;
    lab.destroy(&fresh_name()).await;
    lab.nothing_is_left().await;
}

pub(crate) async fn destroying_a_running_vm_kills_it(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    assert_eq!(fixture.monitors().await, 1);
    lab.destroy(&name).await;
    lab.is_not_there(&name).await;
    lab.nothing_is_left().await;
}

pub(crate) async fn destroying_one_incarnation_leaves_another(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let (gone, prepared, running) = (lab.running().await, lab.prepared().await, lab.running().await);
    let before = (lab.observe(&prepared).await, lab.observe(&running).await);
    lab.destroy(&gone).await;
    same(&before, &(lab.observe(&prepared).await, lab.observe(&running).await));
    assert_eq!(lab.adopt().await.len(), 2);
    lab.start(&prepared).await;
    assert_eq!(fixture.monitors().await, 2);
}
