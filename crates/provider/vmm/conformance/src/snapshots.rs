//! Saving guests and starting from what was saved.

use std::path::PathBuf;

use flames_error::ErrorKind;
use flames_vmm::{IncarnationName, Phase, SnapshotArtefacts, SnapshotKind, StartFrom};

use crate::Fixture;
use crate::lab::{Lab, refused, same};

pub(crate) async fn a_driver_that_saves_guests_tells_their_processor(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let cpu = lab.driver().capabilities().await.unwrap().guest_cpu;
    assert!(
        !cpu.vendor.is_empty() && !cpu.model.is_empty(),
        "nobody could tell where a saved guest fits: {cpu:?}"
    );
    let name = lab.running().await;
    assert_eq!(lab.driver().capabilities().await.unwrap().guest_cpu, cpu);
    lab.destroy(&name).await;
}

async fn save(
    lab: &Lab<'_>,
    name: &IncarnationName,
    snapshot: &str,
    kind: SnapshotKind,
) -> SnapshotArtefacts {
    lab.call("snapshot", lab.driver().snapshot(name, snapshot, kind)).await.unwrap()
}

pub(crate) async fn a_snapshot_leaves_the_vm_as_it_was(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let before = lab.observe(&name).await;
    save(&lab, &name, "while_running", SnapshotKind::Full).await;
    same(&before, &lab.observe(&name).await);
    if lab.driver().capabilities().await.unwrap().pause {
        lab.pause(&name).await;
        save(&lab, &name, "while_paused", SnapshotKind::Full).await;
        lab.is(&name, Phase::Paused).await;
    }
    lab.destroy(&name).await;
    lab.nothing_is_left().await;
}

pub(crate) async fn a_snapshot_starts_another_incarnation(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let source = lab.running().await;
    assert_ne!(fixture.was_restored(&source).await, Some(true));
    let artefacts = save(&lab, &source, "origin", SnapshotKind::Full).await;
    // The disks have one user at a time.
    lab.kill(&source).await;
    let restored = lab.prepared().await;
    let from = StartFrom::Snapshot(artefacts);
    lab.call("start", lab.driver().start(&restored, from.clone(), false)).await.unwrap();
    lab.is(&restored, Phase::Running).await;
    assert_ne!(fixture.was_restored(&restored).await, Some(false), "it was booted anew");
    lab.call("start", lab.driver().start(&restored, from.clone(), false)).await.unwrap();
    lab.monitors_are(1).await;
    lab.is(&source, Phase::Exited).await;
    lab.kill(&restored).await;
    refused(lab.call("start", lab.driver().start(&restored, from.clone(), false)).await, ErrorKind::Conflict);
    if lab.driver().capabilities().await.unwrap().pause {
        let held = lab.prepared().await;
        lab.call("start", lab.driver().start(&held, from, true)).await.unwrap();
        lab.is(&held, Phase::Paused).await;
        lab.resume(&held).await;
        lab.is(&held, Phase::Running).await;
    }
}

pub(crate) async fn a_snapshot_that_is_not_there_starts_nothing(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.prepared().await;
    let folder = tempfile::tempdir().unwrap();
    let absent = |file: &str| -> PathBuf { folder.path().join(file) };
    let nowhere = SnapshotArtefacts { state: absent("state"), memory: Some(absent("memory")) };
    let answer = lab.call("start", lab.driver().start(&name, StartFrom::Snapshot(nowhere), false)).await;
    let kind = answer.expect_err("there is nothing to start from").kind();
    assert!(!kind.is_retryable(), "trying again does not bring the snapshot: {kind}");
    assert_ne!(lab.observe(&name).await.phase, Phase::Running);
    lab.destroy(&name).await;
    lab.nothing_is_left().await;
}

pub(crate) async fn deleting_a_snapshot_that_is_not_there_is_no_error(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let before = fixture.residue().await;
    let delete = || async { lab.call("delete", lab.driver().delete_snapshot(&name, "mine")).await.unwrap() };
    delete().await;
    save(&lab, &name, "mine", SnapshotKind::Full).await;
    assert_ne!(before, fixture.residue().await, "a snapshot is something on the host");
    delete().await;
    same(&before, &fixture.residue().await);
    delete().await;
    lab.is(&name, Phase::Running).await;
}

pub(crate) async fn a_diff_snapshot_builds_on_another(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let of_nothing = SnapshotKind::DiffOf("never_taken".to_owned());
    let answer = lab.call("snapshot", lab.driver().snapshot(&name, "of_nothing", of_nothing)).await;
    assert!(answer.is_err(), "there is nothing that it could build on");
    let base = save(&lab, &name, "base", SnapshotKind::Full).await;
    let diff = save(&lab, &name, "diff", SnapshotKind::DiffOf("base".to_owned())).await;
    assert_ne!(base, diff);
    // What was taken last is built on though its files are stored elsewhere by now.
    lab.call("delete_snapshot", lab.driver().delete_snapshot(&name, "diff")).await.expect("it is removed");
    save(&lab, &name, "second", SnapshotKind::DiffOf("diff".to_owned())).await;
    lab.is(&name, Phase::Running).await;
    lab.destroy(&name).await;
    lab.nothing_is_left().await;
}

pub(crate) async fn without_the_capability_a_snapshot_is_not_supported(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let answer = lab.call("snapshot", lab.driver().snapshot(&name, "some", SnapshotKind::Full)).await;
    refused(answer, ErrorKind::NotSupported);
    lab.is(&name, Phase::Running).await;
}
