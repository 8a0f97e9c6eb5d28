//! Starting, and what can be asked of what runs.

use std::path::PathBuf;
use std::time::Duration;

use flames_error::ErrorKind;
use flames_vmm::{Phase, Update};
use futures::future::join_all;

use crate::Fixture;
use crate::lab::{Lab, fresh_name, refused, same};

pub(crate) async fn a_started_vm_runs(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    lab.is(&name, Phase::Running).await;
    assert!(lab.observe(&name).await.pid.is_some(), "a running VM has a monitor");
    assert_eq!(fixture.monitors().await, 1);
    fixture.settle(lab.limits.quiet).await;
    lab.is(&name, Phase::Running).await;
}

pub(crate) async fn starting_twice_runs_one_vm(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let before = lab.observe(&name).await;
    lab.start(&name).await;
    same(&before, &lab.observe(&name).await);
    assert_eq!(fixture.monitors().await, 1);
    assert_eq!(lab.adopt().await.len(), 1);
    lab.kill(&name).await;
    lab.monitors_are(0).await;
}

pub(crate) async fn starting_at_the_same_time_runs_one_vm(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.prepared().await;
    for started in join_all((0..4).map(|_| lab.try_start(&name))).await {
        started.unwrap();
    }
    lab.is(&name, Phase::Running).await;
    assert_eq!(fixture.monitors().await, 1);
    lab.kill(&name).await;
    lab.monitors_are(0).await;
}

pub(crate) async fn starting_what_was_not_prepared_is_not_found(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = fresh_name();
    refused(lab.try_start(&name).await, ErrorKind::NotFound);
    lab.is_not_there(&name).await;
    lab.nothing_is_left().await;
}

pub(crate) async fn an_incarnation_that_exited_is_not_started_again(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let killed = lab.exited().await;
    let crashed = lab.running().await;
    fixture.crash(&crashed).await;
    lab.exit_of(&crashed).await;
    for name in [&killed, &crashed] {
        refused(lab.try_start(name).await, ErrorKind::Conflict);
        lab.is(name, Phase::Exited).await;
    }
    // Nor by the next driver, whatever it remembers.
    fixture.reopen().await;
    lab.adopt().await;
    for name in [&killed, &crashed] {
        refused(lab.try_start(name).await, ErrorKind::Conflict);
        lab.is(name, Phase::Exited).await;
    }
    lab.monitors_are(0).await;
}

pub(crate) async fn a_start_given_up_never_runs_twice(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    for millis in [0, 5, 50] {
        let name = lab.prepared().await;
        let from = fixture.start_from().await;
        let given_up = async { lab.driver().start(&name, from, false).await };
        drop(tokio::time::timeout(Duration::from_millis(millis), given_up).await);
        if millis == 5 {
            fixture.reopen().await;
            assert!(lab.adopt().await.contains_key(&name));
        }
        match lab.try_start(&name).await {
            Ok(()) => {
                lab.is(&name, Phase::Running).await;
                assert_eq!(fixture.monitors().await, 1);
            }
            // What was given up may have ended with the call.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
                lab.is(&name, Phase::Exited).await;
                lab.monitors_are(0).await;
            }
        }
        lab.destroy(&name).await;
        lab.nothing_is_left().await;
    }
}

pub(crate) async fn a_vm_started_paused_waits_until_it_is_resumed(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.prepared().await;
    let start = || async {
        let from = fixture.start_from().await;
        lab.call("start", lab.driver().start(&name, from, true)).await.unwrap();
    };
    start().await;
    lab.is(&name, Phase::Paused).await;
    start().await;
    lab.is(&name, Phase::Paused).await;
    lab.resume(&name).await;
    lab.is(&name, Phase::Running).await;
    assert_eq!(fixture.monitors().await, 1);
}

pub(crate) async fn a_running_vm_has_statistics(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let stats = || async { lab.call("stats", lab.driver().stats(&name)).await.unwrap() };
    let first = stats().await;
    assert!(first.resident_bytes > 0);
    fixture.settle(lab.limits.quiet).await;
    let later = stats().await;
    assert!(later.uptime > first.uptime, "{first:?} {later:?}");
    assert!(later.cpu_time >= first.cpu_time, "{first:?} {later:?}");
}

pub(crate) async fn what_does_not_run_has_no_statistics(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    for name in [lab.prepared().await, lab.exited().await] {
        refused(lab.call("stats", lab.driver().stats(&name)).await, ErrorKind::Conflict);
    }
}

pub(crate) async fn an_update_is_applied_or_not_supported(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let balloon = Update::BalloonMib(fixture.spec().await.memory_mib / 8);
    for _ in 0..2 {
        if let Err(error) = lab.call("update", lab.driver().update(&name, &balloon)).await {
            assert_eq!(error.kind(), ErrorKind::NotSupported, "{error:?}");
        }
    }
    let of_no_drive =
        Update::DrivePath { name: "no-such-drive".to_owned(), path: PathBuf::from("/dev/null") };
    let answer = lab.call("update", lab.driver().update(&name, &of_no_drive)).await;
    assert!(answer.is_err(), "a drive that is not there cannot be changed");
    lab.is(&name, Phase::Running).await;
}

pub(crate) async fn updating_what_does_not_run_is_a_conflict(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    for name in [lab.prepared().await, lab.exited().await] {
        let answer = lab.call("update", lab.driver().update(&name, &Update::BalloonMib(1))).await;
        let kind = answer.expect_err("nothing runs that could be changed").kind();
        assert!(matches!(kind, ErrorKind::Conflict | ErrorKind::NotSupported), "{kind}");
    }
}
