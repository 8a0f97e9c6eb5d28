//! Snapshots of real guests.

use flames_error::ErrorKind;
use flames_vmm::{AGENT_PORT, Phase, SnapshotKind, StartFrom, VmDriver};

use crate::support::{Host, ask, console_with, name, phase, running, talk};

pub(crate) async fn a_restored_guest_goes_on_where_it_was(host: &Host) {
    let (origin, copy) = (name("inc_origin"), name("inc_copy"));
    let driver = host.driver();
    running(&*driver, &origin, &host.spec()).await;
    talk(&*driver, &origin).await;
    console_with(&*driver, &origin, "the guest is up").await;
    let artefacts = driver.snapshot(&origin, "first", SnapshotKind::Full).await.unwrap();
    let again = driver.snapshot(&origin, "first", SnapshotKind::Full).await.unwrap();
    assert_eq!(artefacts, again, "the same name is the same snapshot");
    talk(&*driver, &origin).await;
    // It may be moved: nothing in it knows where it was.
    let moved = host.root().with_file_name("moved");
    std::fs::rename(&artefacts.state, &moved).unwrap();
    driver.destroy(&origin).await.unwrap();

    driver.prepare(&copy, &host.spec()).await.unwrap();
    let from = StartFrom::Snapshot(flames_vmm::SnapshotArtefacts { state: moved, memory: None });
    driver.start(&copy, from, false).await.unwrap();
    let mut stream = driver.connect(&copy, AGENT_PORT).await.unwrap();
    assert_eq!(ask(&mut stream, "restored").await, "restored");
    let console = driver.console(&copy, 0).await.unwrap();
    assert!(!String::from_utf8_lossy(&console.data).contains("the guest is up"), "it did not boot again");
}

pub(crate) async fn a_paused_guest_can_be_saved_twice(host: &Host) {
    let (origin, copy) = (name("inc_origin"), name("inc_copy"));
    let driver = host.driver();
    running(&*driver, &origin, &host.spec()).await;
    talk(&*driver, &origin).await;
    driver.pause(&origin).await.unwrap();
    let first = driver.snapshot(&origin, "first", SnapshotKind::Full).await.unwrap();
    let second = driver.snapshot(&origin, "second", SnapshotKind::Full).await.unwrap();
    assert_eq!(phase(&*driver, &origin).await, Phase::Paused);
    assert_eq!(first.state.metadata().unwrap().len(), second.state.metadata().unwrap().len());
    driver.delete_snapshot(&origin, "first").await.unwrap();
    // QEMU saves a paused guest once; what was saved then is gone.
    let error = driver.snapshot(&origin, "third", SnapshotKind::Full).await;
    assert!(error.is_ok() || error.is_err_and(|error| error.kind() == ErrorKind::Conflict));
    driver.resume(&origin).await.unwrap();
    talk(&*driver, &origin).await;
    driver.pause(&origin).await.unwrap();
    driver.snapshot(&origin, "fourth", SnapshotKind::Full).await.unwrap();
    driver.prepare(&copy, &host.spec()).await.unwrap();
    driver.start(&copy, StartFrom::Snapshot(second), false).await.unwrap();
    let mut stream = driver.connect(&copy, AGENT_PORT).await.unwrap();
    assert_eq!(ask(&mut stream, "from the second").await, "from the second");
}

pub(crate) async fn a_damaged_snapshot_is_corrupt_and_the_incarnation_still_prepared(host: &Host) {
    let (origin, copy) = (name("inc_origin"), name("inc_copy"));
    let driver = host.driver();
    running(&*driver, &origin, &host.spec()).await;
    let artefacts = driver.snapshot(&origin, "some", SnapshotKind::Full).await.unwrap();
    driver.destroy(&name("inc_unrelated")).await.unwrap();
    driver.prepare(&copy, &host.spec()).await.unwrap();
    let whole = std::fs::read(&artefacts.state).unwrap();
    let mut scrambled = whole.clone();
    scrambled[4096..8192].fill(7);
    let mut other_magic = whole.clone();
    other_magic[0] = b'X';
    for damaged in [&whole[..whole.len() - 1], &whole[..5000], &whole[..100], b"", &scrambled, &other_magic] {
        std::fs::write(&artefacts.state, damaged).unwrap();
        let from = StartFrom::Snapshot(artefacts.clone());
        let error = driver.start(&copy, from, false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        assert_eq!(phase(&*driver, &copy).await, Phase::Prepared);
    }
    std::fs::write(&artefacts.state, &whole).unwrap();
    driver.start(&copy, StartFrom::Snapshot(artefacts), false).await.unwrap();
    assert_eq!(phase(&*driver, &copy).await, Phase::Running);
}

pub(crate) async fn a_snapshot_of_another_machine_is_refused_with_the_reason(host: &Host) {
    let (origin, copy) = (name("inc_origin"), name("inc_copy"));
    let driver = host.driver();
    running(&*driver, &origin, &host.spec()).await;
    let artefacts = driver.snapshot(&origin, "some", SnapshotKind::Full).await.unwrap();
    let mut spec = host.spec();
    spec.memory_mib += 16;
    driver.prepare(&copy, &spec).await.unwrap();
    let error = driver.start(&copy, StartFrom::Snapshot(artefacts), false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert!(error.message().contains("another machine"), "{error:?}");
    assert_eq!(phase(&*driver, &copy).await, Phase::Prepared);
    let diff = driver.snapshot(&origin, "diff", SnapshotKind::DiffOf("some".to_owned())).await.unwrap_err();
    assert_eq!(diff.kind(), ErrorKind::NotSupported);
    let outside = driver.snapshot(&origin, "../outside", SnapshotKind::Full).await.unwrap_err();
    assert_eq!(outside.kind(), ErrorKind::InvalidInput);
}
