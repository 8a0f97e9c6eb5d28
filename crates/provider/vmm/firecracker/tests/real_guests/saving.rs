//! Snapshots of real guests.

use std::os::unix::fs::MetadataExt;

use flames_error::ErrorKind;
use flames_vmm::{Phase, SnapshotKind, StopHow};

use crate::support::{Host, from, name, phase, running, spec, talk};

pub(crate) async fn a_chain_of_diffs_is_restored(host: &Host) {
    let driver = host.driver();
    let incarnation = name("inc_saved");
    running(&*driver, &incarnation).await;
    talk(&*driver, &incarnation).await;
    let full = driver.snapshot(&incarnation, "one", SnapshotKind::Full).await.unwrap();
    let mut newest = None;
    for (taken, base) in [("two", "one"), ("three", "two")] {
        talk(&*driver, &incarnation).await;
        let diff = driver.snapshot(&incarnation, taken, SnapshotKind::DiffOf(base.to_owned())).await.unwrap();
        let blocks = |path: &std::path::Path| path.metadata().unwrap().blocks() * 512;
        let (small, whole) = (blocks(diff.memory.as_ref().unwrap()), blocks(full.memory.as_ref().unwrap()));
        println!("report: a diff of {small} bytes on a whole of {whole}");
        assert!(small < whole / 2, "{small} of {whole}");
        newest = Some(diff);
    }
    let stale = driver.snapshot(&incarnation, "four", SnapshotKind::DiffOf("one".to_owned())).await;
    assert_eq!(stale.unwrap_err().kind(), ErrorKind::Conflict, "only the last can be stood on");
    driver.stop(&incarnation, StopHow::Kill).await.unwrap();

    let restored = name("inc_restored");
    driver.prepare(&restored, &spec()).await.unwrap();
    driver.start(&restored, from(newest.clone().unwrap()), false).await.unwrap();
    talk(&*driver, &restored).await;
    driver.stop(&restored, StopHow::Kill).await.unwrap();

    driver.delete_snapshot(&incarnation, "two").await.unwrap();
    let orphan = name("inc_orphan");
    driver.prepare(&orphan, &spec()).await.unwrap();
    let error = driver.start(&orphan, from(newest.unwrap()), false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    assert_eq!(phase(&*driver, &orphan).await, Phase::Prepared);
    for incarnation in [incarnation, restored, orphan] {
        driver.destroy(&incarnation).await.unwrap();
    }
    assert!(host.residue().is_empty());
}

pub(crate) async fn a_snapshot_is_roots_and_is_taken_once_under_its_name(host: &Host) {
    let driver = host.driver();
    let incarnation = name("inc_once");
    running(&*driver, &incarnation).await;
    let first = driver.snapshot(&incarnation, "mine", SnapshotKind::Full).await.unwrap();
    let identity = |path: &std::path::Path| {
        let found = path.metadata().unwrap();
        (found.ino(), found.len(), found.uid(), found.mode() & 0o777)
    };
    let before = (identity(&first.state), identity(first.memory.as_ref().unwrap()));
    assert_eq!((before.1.1, before.1.2, before.1.3), (64 << 20, 0, 0o444));
    assert_eq!((before.0.2, before.0.3), (0, 0o444));
    let again = driver.snapshot(&incarnation, "mine", SnapshotKind::Full).await.unwrap();
    assert_eq!(again, first);
    assert_eq!((identity(&again.state), identity(again.memory.as_ref().unwrap())), before);
    let other = driver.snapshot(&incarnation, "mine", SnapshotKind::DiffOf("mine".into())).await;
    assert_eq!(other.unwrap_err().kind(), ErrorKind::Conflict);
    let nothing = driver.snapshot(&incarnation, "more", SnapshotKind::DiffOf("none".into())).await;
    assert_eq!(nothing.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(phase(&*driver, &incarnation).await, Phase::Running);
    talk(&*driver, &incarnation).await;
}
