//! What every host folder promises, and what the one on a disk promises beyond that.

// Helpers of tests, which Clippy does not take for tests.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Bytes;
use flames_controller::{
    FileFolder, HostFolder, IncarnationRecord, MAX_ENTRY, MemoryFolder, OutputEntry, RECORD_SCHEMA,
    RecordPhase,
};
use flames_error::ErrorKind;
use flames_guest_protocol::AgentKey;
use flames_model::{Assignment, ControllerId, DiskKind, IncarnationId};
use uuid::Uuid;

const KEPT: u64 = 64 * 1024;

fn controller(number: u128) -> ControllerId {
    ControllerId::from_uuid(Uuid::from_u128(number))
}

fn incarnation(number: u128) -> IncarnationId {
    IncarnationId::from_uuid(Uuid::from_u128(number))
}

fn record(number: u128, disk: DiskKind) -> IncarnationRecord {
    let id = Uuid::from_u128(number).simple();
    let assignment = serde_json::json!({
        "incarnation": format!("inc_{id}"), "vm": format!("vm_{id}"), "project": "default", "name": "vm",
        "controller": controller(1), "token": 1, "wanted": "running", "source": "boot", "kernel": null,
        "spec": {
            "image": "debian", "kernel": null, "vcpus": 1, "memory_mib": 64, "root_disk_mib": 64,
            "disk": if disk == DiskKind::Persistent { "persistent" } else { "ephemeral" },
            "command": null, "args": [], "env": {}, "secret_env": {"TOKEN": "hush"}, "working_directory": null,
            "user": null, "tty": false, "ports": [],
            "restart": {"rule": "never", "backoff_initial_ms": 1, "backoff_max_ms": 1, "max_restarts": null},
            "timeout_ms": null, "auto_delete_after_ms": null, "stop_grace_ms": 1, "on_host_loss": "wait", "placement": {}
        },
        "image": {
            "kind": "rootfs", "blob": "b", "digest": "d", "size_bytes": 1,
            "defaults": {"entrypoint": [], "cmd": [], "env": {}, "working_directory": null, "user": null}
        }
    });
    let assignment: Assignment = serde_json::from_value(assignment).unwrap();
    IncarnationRecord {
        schema: RECORD_SCHEMA,
        assignment: assignment.into(),
        key: AgentKey::from_bytes([5; 32]),
        epoch_ms: 1,
        phase: RecordPhase::Accepted,
        sequence_reserved: 1_000,
        network_revision: 0,
        endpoints: Vec::new(),
        timeline: Default::default(),
        ending: None,
        saving: None,
        restored: None,
    }
}

fn entry(offset: u64, data: &'static str) -> OutputEntry {
    OutputEntry { stream: 2, offset, at_ms: 9, data: Bytes::from_static(data.as_bytes()) }
}

async fn keeps_its_promises(folder: &dyn HostFolder) {
    assert_eq!(folder.identity(controller(1)).await.unwrap(), controller(1));
    assert_eq!(folder.identity(controller(2)).await.unwrap(), controller(1), "made once");

    let (mut first, second) = (record(1, DiskKind::Ephemeral), record(2, DiskKind::Persistent));
    folder.put_record(&second).await.unwrap();
    folder.put_record(&first).await.unwrap();
    first.phase = RecordPhase::Running;
    folder.put_record(&first).await.unwrap();
    let kept = folder.incarnations().await.unwrap();
    assert_eq!(
        kept.iter().map(|kept| kept.incarnation).collect::<Vec<_>>(),
        [incarnation(1), incarnation(2)]
    );
    let read = kept[0].record.as_ref().unwrap();
    assert_eq!((read.phase, &read.assignment), (RecordPhase::Running, &first.assignment));
    assert_eq!(read.key.to_hex(), first.key.to_hex());
    assert_ne!(folder.disk_path(&first.assignment), folder.disk_path(&second.assignment));

    let id = incarnation(1);
    assert_eq!(folder.output_end(id).await.unwrap(), 0);
    assert!(folder.read_output(id, 0, 100).await.unwrap().entries.is_empty());
    folder.append_output(id, vec![entry(0, "one"), entry(3, "two")]).await.unwrap();
    let page = folder.read_output(id, 0, 1).await.unwrap();
    assert_eq!(page.entries, [entry(0, "one")], "a page is bounded");
    let rest = folder.read_output(id, page.next, 100).await.unwrap();
    assert_eq!(rest.entries, [entry(3, "two")]);
    let end = folder.read_output(id, rest.next, 100).await.unwrap();
    assert!(end.entries.is_empty() && end.next == rest.next);
    folder.append_output(id, vec![entry(6, "three")]).await.unwrap();
    assert_eq!(folder.read_output(id, rest.next, 100).await.unwrap().entries, [entry(6, "three")]);
    assert_eq!(folder.output_end(id).await.unwrap(), 11);
    for number in 0..10 {
        let data = Bytes::from(vec![b'x'; MAX_ENTRY / 4]);
        let offset = 11 + number * (MAX_ENTRY as u64 / 4);
        folder.append_output(id, vec![OutputEntry { stream: 1, offset, at_ms: 0, data }]).await.unwrap();
    }
    let late = folder.read_output(id, rest.next, usize::MAX).await.unwrap();
    assert!(late.entries[0].offset > 6, "the oldest was dropped, and a reader goes on behind it");
    let bytes: usize = late.entries.iter().map(|entry| entry.data.len()).sum();
    assert!(bytes as u64 <= KEPT + MAX_ENTRY as u64 / 4, "{bytes}");

    assert_eq!(folder.console(id).await.unwrap(), None);
    folder.put_console(id, Bytes::from_static(b"console")).await.unwrap();
    assert_eq!(folder.console(id).await.unwrap().unwrap(), "console");
    for _ in 0..2 {
        folder.remove_logs(id).await.unwrap();
        folder.remove_ephemeral_disk(id).await.unwrap();
        folder.remove_incarnation(id).await.unwrap();
        folder.remove_persistent_disk(second.assignment.vm).await.unwrap();
    }
    assert_eq!(folder.console(id).await.unwrap(), None);
    assert_eq!(folder.output_end(id).await.unwrap(), 0);
    assert_eq!(folder.incarnations().await.unwrap().len(), 1);
    assert_eq!(folder.persistent_disks().await.unwrap(), Vec::new());
}

#[tokio::test]
async fn a_folder_in_memory_keeps_its_promises() {
    keeps_its_promises(&MemoryFolder::new(KEPT)).await;
}

#[tokio::test]
async fn a_folder_on_a_disk_keeps_its_promises() {
    let root = tempfile::tempdir().unwrap();
    keeps_its_promises(&FileFolder::open(root.path().join("data"), KEPT).await.unwrap()).await;
}

#[tokio::test]
async fn a_second_controller_on_a_folder_is_refused_until_the_first_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let first = FileFolder::open(root.path(), KEPT).await.unwrap();
    let error = FileFolder::open(root.path(), KEPT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.user_message().unwrap().contains("Another controller"));
    drop(first);
    FileFolder::open(root.path(), KEPT).await.unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn what_was_written_is_there_for_the_next_process_and_for_nobody_else() {
    let root = tempfile::tempdir().unwrap();
    let folder = FileFolder::open(root.path(), KEPT).await.unwrap();
    folder.identity(controller(1)).await.unwrap();
    folder.put_record(&record(1, DiskKind::Ephemeral)).await.unwrap();
    folder.append_output(incarnation(1), vec![entry(0, "kept")]).await.unwrap();
    let path = root.path().join("incarnations").join(incarnation(1).to_string()).join("record.json");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    drop(folder);
    let folder = FileFolder::open(root.path(), KEPT).await.unwrap();
    assert_eq!(folder.identity(controller(9)).await.unwrap(), controller(1));
    assert!(folder.incarnations().await.unwrap()[0].record.is_some());
    assert_eq!(folder.output_end(incarnation(1)).await.unwrap(), 4);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_told_and_what_was_left_unfinished_is_removed() {
    let root = tempfile::tempdir().unwrap();
    let folder = FileFolder::open(root.path(), KEPT).await.unwrap();
    folder.put_record(&record(1, DiskKind::Ephemeral)).await.unwrap();
    let path = root.path().join("incarnations").join(incarnation(1).to_string()).join("record.json");
    std::fs::write(&path, "{").unwrap();
    let mut newer = record(2, DiskKind::Ephemeral);
    newer.schema = RECORD_SCHEMA + 1;
    folder.put_record(&newer).await.unwrap();
    let kept = folder.incarnations().await.unwrap();
    assert_eq!(kept.len(), 2);
    assert!(kept.iter().all(|kept| kept.record.is_none()));
    drop(folder);
    std::fs::create_dir(root.path().join("disks/.disk-half")).unwrap();
    std::fs::write(root.path().join("controller.json"), "{").unwrap();
    let folder = FileFolder::open(root.path(), KEPT).await.unwrap();
    assert!(!root.path().join("disks/.disk-half").exists());
    assert_eq!(folder.identity(controller(1)).await.unwrap_err().kind(), ErrorKind::Corrupt);
}
