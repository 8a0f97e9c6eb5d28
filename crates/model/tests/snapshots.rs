//! What must hold of every snapshot, whatever is reported on it, in whatever order.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeMap;

use flames_model::*;
use proptest::prelude::*;
use uuid::Uuid;

fn spec() -> VmSpec {
    VmSpec {
        image: ImageName::new("debian").unwrap(),
        kernel: None,
        vcpus: 1,
        memory_mib: 64,
        root_disk_mib: 64,
        disk: DiskKind::Ephemeral,
        command: None,
        args: Vec::new(),
        env: BTreeMap::new(),
        secret_env: BTreeMap::new(),
        working_directory: None,
        user: None,
        tty: false,
        stdin: false,
        ports: Vec::new(),
        network: Default::default(),
        restart: RestartPolicy::default(),
        wake_on_request: false,
        timeout_ms: None,
        auto_delete_after_ms: None,
        stop_grace_ms: 1_000,
        on_host_loss: OnHostLoss::Wait,
        placement: Labels::default(),
    }
}

fn driver(name: &str) -> DriverInfo {
    DriverInfo {
        name: name.to_owned(),
        version: Some("1".to_owned()),
        acceleration: "none".to_owned(),
        pause: true,
        snapshot: true,
        diff_snapshot: false,
        cpu: CpuFacts { vendor: "v".to_owned(), model: "m".to_owned(), features: "f".to_owned() },
        default_kernel: Some("k".to_owned()),
        network: Default::default(),
        live_network: false,
    }
}

fn snapshot() -> Snapshot {
    let image = ImageManifest {
        kind: ImageKind::Rootfs,
        blob: "images/rootfs/1".to_owned(),
        digest: "1".to_owned(),
        size_bytes: 1,
        defaults: ImageDefaults::default(),
    };
    Snapshot {
        id: SnapshotId::from_uuid(Uuid::from_u128(1)),
        project: ProjectName::new("default").unwrap(),
        name: SnapshotName::new("s").unwrap(),
        vm: VmId::from_uuid(Uuid::from_u128(1)),
        vm_name: VmName::new("x").unwrap(),
        incarnation: IncarnationId::from_uuid(Uuid::from_u128(1)),
        controller: ControllerId::from_uuid(Uuid::from_u128(1)),
        token: FencingToken(3),
        parent: None,
        base: Some(SnapshotId::from_uuid(Uuid::from_u128(2))),
        labels: Labels::default(),
        spec: spec().into(),
        image,
        kernel: None,
        platform: SnapshotPlatform::of(&driver("simulated"), None),
        state: SnapshotState::Pending,
        reason: None,
        sequence: 0,
        manifest: None,
        sizes: SnapshotSizes::default(),
        created_at: Timestamp::UNIX_EPOCH,
        finished_at: None,
    }
}

fn progress() -> impl Strategy<Value = SnapshotProgress> {
    let sizes = SnapshotSizes { logical_bytes: 2, stored_bytes: 1, chunks: 1, own_bytes: 1 };
    let manifest = prop::sample::select(vec!["a".to_owned(), "b".to_owned()]);
    prop_oneof![
        2 => Just(SnapshotProgress::Taking),
        3 => manifest.clone().prop_map(move |manifest| SnapshotProgress::Named { manifest, sizes, base: None }),
        3 => manifest.prop_map(move |manifest| SnapshotProgress::Ready { manifest, sizes }),
        1 => Just(SnapshotProgress::Failed { reason: Reason::new(ReasonCode::SnapshotFailed, "no") }),
    ]
}

fn report() -> impl Strategy<Value = SnapshotReport> {
    (progress(), 0..12_u64, prop::sample::select(vec![3_u64, 3, 3, 2])).prop_map(
        |(progress, sequence, token)| {
            let of = snapshot();
            SnapshotReport {
                snapshot: of.id,
                project: of.project,
                incarnation: of.incarnation,
                token: FencingToken(token),
                sequence,
                progress,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_finished_stays_so_and_ready_is_what_was_named(reports in prop::collection::vec(report(), 1..40)) {
        let mut now = snapshot();
        for report in &reports {
            let before = now.clone();
            match apply_snapshot_report(&before, report, Timestamp::UNIX_EPOCH) {
                Ok(after) => {
                    prop_assert!(before.state.is_under_way(), "{before:?} was changed by {report:?}");
                    prop_assert!(report.sequence > before.sequence && report.token == before.token);
                    if after.state == SnapshotState::Ready {
                        prop_assert_eq!(&after.manifest, &before.manifest);
                        prop_assert!(after.manifest.is_some());
                    }
                    if after.state == SnapshotState::Failed {
                        prop_assert!(after.manifest.is_none() && after.reason.is_some());
                    }
                    prop_assert_eq!(after.finished_at.is_some(), !after.state.is_under_way());
                    now = after;
                }
                Err(refusal) => {
                    prop_assert_eq!(refusal == SnapshotRefusal::StaleToken, report.token != before.token);
                }
            }
            // Said twice is said once.
            if let Ok(again) = apply_snapshot_report(&now, report, Timestamp::UNIX_EPOCH) {
                prop_assert!(false, "taken twice: {again:?}");
            }
        }
    }

    #[test]
    fn a_manifest_is_sound_only_with_its_chunks_in_order_aligned_and_inside(
        length in 0..40_u64 * 1024 * 1024,
        offsets in prop::collection::vec(0..12_u64, 0..6),
        off in 0..2_u64,
    ) {
        let chunk = |at: &u64| SnapshotChunk { offset: at * SnapshotManifest::CHUNK_BYTES + off, digest: "0".repeat(64) };
        let file = SnapshotFile { role: SnapshotFileRole::State, length, chunks: offsets.iter().map(chunk).collect() };
        let manifest = SnapshotManifest {
            schema: SnapshotManifest::SCHEMA,
            snapshot: snapshot().id,
            files: vec![file],
            agent: snapshot().incarnation,
            agent_key: SecretString::new("00"),
        };
        let ordered = offsets.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = offsets.iter().all(|at| at * SnapshotManifest::CHUNK_BYTES < length);
        let aligned = off == 0 || offsets.is_empty();
        prop_assert_eq!(manifest.is_sound(), ordered && inside && aligned);
        let twice = SnapshotManifest { files: [manifest.files.clone(), manifest.files.clone()].concat(), ..manifest.clone() };
        prop_assert!(!twice.is_sound(), "one role twice");
        let newer = SnapshotManifest { schema: SnapshotManifest::SCHEMA + 1, ..manifest };
        prop_assert!(!newer.is_sound(), "a newer form");
    }
}

#[test]
fn a_snapshot_fits_hosts_that_are_the_same_in_all_that_counts() {
    let host = driver("qemu");
    let platform = SnapshotPlatform::of(&host, None);
    assert_eq!(platform.misfit(&host), None);
    // How it is accelerated, and whether it can pause, is of no account.
    assert_eq!(
        platform.misfit(&DriverInfo { acceleration: "kvm".to_owned(), pause: false, ..host.clone() }),
        None
    );
    let others = [
        DriverInfo { name: "firecracker".to_owned(), ..host.clone() },
        DriverInfo { version: Some("2".to_owned()), ..host.clone() },
        DriverInfo { version: None, ..host.clone() },
        DriverInfo { snapshot: false, ..host.clone() },
        DriverInfo { default_kernel: None, ..host.clone() },
        DriverInfo { default_kernel: Some("other".to_owned()), ..host.clone() },
        DriverInfo { cpu: CpuFacts { features: "g".to_owned(), ..host.cpu.clone() }, ..host.clone() },
        DriverInfo { network: DriverNetwork::Tap, ..host.clone() },
    ];
    for other in others {
        assert!(platform.misfit(&other).is_some(), "{other:?}");
    }
    // A guest that names its kernel does not depend on the host's.
    let kernel = snapshot().image;
    let own = SnapshotPlatform::of(&host, Some(&kernel));
    assert_eq!(own.misfit(&DriverInfo { default_kernel: None, ..host }), None);
}

#[test]
fn a_host_of_an_older_version_loads_nothing() {
    let text = r#"{"name":"qemu","version":null,"acceleration":"kvm","pause":true}"#;
    let old: DriverInfo = serde_json::from_str(text).unwrap();
    assert!(!old.snapshot);
    assert!(snapshot().platform.misfit(&old).is_some());
}

#[test]
fn what_is_stored_reads_back() {
    let stored = serde_json::to_string(&snapshot()).unwrap();
    assert_eq!(serde_json::from_str::<Snapshot>(&stored).unwrap(), snapshot());
}
