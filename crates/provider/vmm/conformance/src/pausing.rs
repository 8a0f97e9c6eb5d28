//! Pausing and resuming.

use flames_error::ErrorKind;
use flames_vmm::{ExitCause, Phase};
use tokio::time::timeout;

use crate::Fixture;
use crate::lab::{Lab, refused, same};

pub(crate) async fn a_paused_vm_is_observed_paused_and_resumes(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let pid = lab.observe(&name).await.pid;
    for _ in 0..3 {
        lab.pause(&name).await;
        lab.is(&name, Phase::Paused).await;
        lab.resume(&name).await;
        lab.is(&name, Phase::Running).await;
    }
    assert_eq!(lab.observe(&name).await.pid, pid);
}

pub(crate) async fn pausing_twice_changes_nothing(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    lab.pause(&name).await;
    let before = lab.observe(&name).await;
    lab.pause(&name).await;
    same(&before, &lab.observe(&name).await);
    assert_eq!(before.phase, Phase::Paused);
    lab.resume(&name).await;
    lab.is(&name, Phase::Running).await;
}

pub(crate) async fn resuming_twice_changes_nothing(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    lab.resume(&name).await;
    lab.is(&name, Phase::Running).await;
    lab.pause(&name).await;
    lab.resume(&name).await;
    lab.resume(&name).await;
    lab.is(&name, Phase::Running).await;
    lab.pause(&name).await;
    lab.is(&name, Phase::Paused).await;
}

pub(crate) async fn pausing_what_does_not_run_is_a_conflict(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    for (name, phase) in [(lab.prepared().await, Phase::Prepared), (lab.exited().await, Phase::Exited)] {
        refused(lab.call("pause", lab.driver().pause(&name)).await, ErrorKind::Conflict);
        refused(lab.call("resume", lab.driver().resume(&name)).await, ErrorKind::Conflict);
        lab.is(&name, phase).await;
    }
}

pub(crate) async fn a_paused_guest_does_not_answer(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let mut stream = lab.talk(&name).await;
    lab.pause(&name).await;
    let answered = timeout(lab.limits.quiet, fixture.converse(&mut stream)).await;
    assert!(!matches!(answered, Ok(Ok(()))), "a guest whose processors are stopped cannot answer");
    lab.resume(&name).await;
    drop(stream);
    lab.talk(&name).await;
}

pub(crate) async fn a_paused_vm_can_be_killed(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let killed = lab.running().await;
    lab.pause(&killed).await;
    lab.kill(&killed).await;
    assert_eq!(lab.exit_of(&killed).await.cause, ExitCause::Stopped);
    let destroyed = lab.running().await;
    lab.pause(&destroyed).await;
    lab.destroy(&destroyed).await;
    lab.is_not_there(&destroyed).await;
    lab.monitors_are(0).await;
}

pub(crate) async fn without_the_capability_pausing_is_not_supported(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    refused(lab.call("pause", lab.driver().pause(&name)).await, ErrorKind::NotSupported);
    lab.is(&name, Phase::Running).await;
}
