//! A machine that runs: a guest of four bytes, which halts for ever, is enough for all that the API does with it.

use std::os::unix::fs::MetadataExt;

use flames_error::{Error, ErrorKind};
use flames_firecracker_api::*;

use crate::lab::{Lab, PATIENCE};

async fn state(client: &Client) -> InstanceState {
    client.instance_info().await.unwrap().state
}

pub(crate) async fn a_machine_is_started_paused_and_resumed(lab: &Lab) {
    let client = &lab.spawn_configured().await.client;
    client.start().await.unwrap();
    assert_eq!(state(client).await, InstanceState::Running);
    for _ in 0..2 {
        client.pause().await.unwrap();
        assert_eq!(state(client).await, InstanceState::Paused);
    }
    for _ in 0..2 {
        client.resume().await.unwrap();
        assert_eq!(state(client).await, InstanceState::Running);
    }
    client.send_ctrl_alt_del().await.unwrap();
    assert_eq!(client.start().await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(state(client).await, InstanceState::Running);
}

fn create(lab: &Lab, snapshot_type: SnapshotType, name: &str) -> SnapshotCreate {
    SnapshotCreate {
        snapshot_type,
        snapshot_path: lab.path(&format!("{name}.state")),
        mem_file_path: lab.path(&format!("{name}.memory")),
    }
}

/// A paused machine with a vsock, saved as `full` and gone.
async fn saved(lab: &Lab) -> SnapshotCreate {
    let firecracker = lab.spawn_configured().await;
    let client = &firecracker.client;
    client.put_vsock(&Vsock { guest_cid: 3, uds_path: lab.path("vsock") }).await.unwrap();
    client.start().await.unwrap();
    client.pause().await.unwrap();
    let create = create(lab, SnapshotType::Full, "full");
    client.create_snapshot(&create).await.unwrap();
    assert_eq!(state(client).await, InstanceState::Paused, "it stays paused");
    drop(firecracker);
    std::fs::remove_file(lab.path("vsock")).unwrap();
    create
}

pub(crate) async fn a_saved_machine_is_loaded_and_runs_on(lab: &Lab) {
    let saved = saved(lab).await;
    assert_eq!(saved.mem_file_path.metadata().unwrap().len(), 32 << 20);
    let client = &lab.spawn().await.client;
    let mut load = SnapshotLoad::from_files(&saved.snapshot_path, &saved.mem_file_path);
    load.track_dirty_pages = true;
    client.load_snapshot(&load).await.unwrap();
    assert_eq!(state(client).await, InstanceState::Paused);
    client.resume().await.unwrap();
    assert_eq!(state(client).await, InstanceState::Running);
    let machine = client.machine_config().await.unwrap();
    assert_eq!((machine.mem_size_mib, machine.track_dirty_pages), (32, true));

    let client = &lab.spawn().await.client;
    load.resume_vm = true;
    let moved = lab.path("moved_vsock");
    if client.version().await.unwrap().has(Feature::VsockOverride) {
        load.vsock_override = Some(VsockOverride { uds_path: moved.clone() });
    } else {
        std::fs::remove_file(lab.path("vsock")).unwrap();
    }
    client.load_snapshot(&load).await.unwrap();
    assert_eq!(state(client).await, InstanceState::Running);
    assert_eq!(moved.exists(), load.vsock_override.is_some());

    let mut firecracker = lab.spawn().await;
    let stranger = NetworkOverride { iface_id: "eth9".into(), host_dev_name: "tap9".into() };
    load.network_overrides = vec![stranger];
    let refused = firecracker.client.load_snapshot(&load).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused:?}");
    firecracker.ends();
}

pub(crate) async fn a_machine_goes_on_at_the_hosts_time_where_its_state_allows(lab: &Lab) {
    let saved = saved(lab).await;
    let client = &lab.spawn().await.client;
    let mut load = SnapshotLoad::from_files(&saved.snapshot_path, &saved.mem_file_path);
    load.clock_realtime = true;
    match client.load_snapshot(&load).await {
        Ok(()) => assert_eq!(state(client).await, InstanceState::Paused),
        // It was understood.
        Err(error) => {
            assert!(error.message().contains("clock_realtime requested but not present"), "{error:?}")
        }
    }
}

pub(crate) async fn a_diff_holds_less_than_the_whole(lab: &Lab) {
    let client = &lab.spawn_configured().await.client;
    client.start().await.unwrap();
    client.pause().await.unwrap();
    let full = create(lab, SnapshotType::Full, "full");
    client.create_snapshot(&full).await.unwrap();
    client.resume().await.unwrap();
    client.pause().await.unwrap();
    let diff = create(lab, SnapshotType::Diff, "diff");
    client.create_snapshot(&diff).await.unwrap();
    let (full, diff) = (full.mem_file_path.metadata().unwrap(), diff.mem_file_path.metadata().unwrap());
    assert_eq!(full.len(), diff.len());
    assert!(diff.blocks() * 10 < full.blocks(), "{} of {} blocks", diff.blocks(), full.blocks());

    let mut nowhere = create(lab, SnapshotType::Full, "nowhere");
    nowhere.mem_file_path = lab.path("no_folder").join("memory");
    let refused = client.create_snapshot(&nowhere).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    if std::path::Path::new("/dev/full").exists() {
        nowhere = create(lab, SnapshotType::Full, "full_disk");
        nowhere.snapshot_path = "/dev/full".into();
        let refused = client.create_snapshot(&nowhere).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Exhausted, "{refused:?}");
    }
}

pub(crate) async fn devices_are_changed_while_the_machine_runs(lab: &Lab) {
    let client = &lab.spawn_configured().await.client;
    let version = client.version().await.unwrap();
    let disk = Drive::from_file("disk", lab.file("disk", 1 << 20), false);
    client.put_drive(&disk).await.unwrap();
    let pmem = Pmem {
        id: "pmem".into(),
        path_on_host: lab.file("pmem", 2 << 20),
        root_device: false,
        read_only: false,
        rate_limiter: None,
    };
    client.put_pmem(&pmem).await.unwrap();
    client.put_memory_hotplug(&MemoryHotplug::new(256)).await.unwrap();
    let metrics = Metrics { metrics_path: lab.file("metrics", 0) };
    client.put_metrics(&metrics).await.unwrap();
    client.put_mmds(&serde_json::json!({})).await.unwrap();
    client.start().await.unwrap();

    let rate_limiter = Some(RateLimiter { bandwidth: Some(TokenBucket::per_second(1 << 20)), ops: None });
    let larger = lab.file("larger", 2 << 20);
    let patch = DrivePatch { drive_id: "disk".into(), path_on_host: Some(larger.clone()), rate_limiter };
    // The guest has no driver for it: the new limits count, the new file waits for none.
    let outcome = client.patch_drive(&patch).await;
    outcome.unwrap();
    let drive = client.config().await.unwrap().drives.remove(0);
    assert_eq!((drive.path_on_host, drive.rate_limiter), (Some(larger), rate_limiter));
    let missing = DrivePatch { drive_id: "none".into(), ..patch };
    assert_eq!(client.patch_drive(&missing).await.unwrap_err().kind(), ErrorKind::NotFound);

    let limited = client.patch_pmem(&PmemPatch { id: "pmem".into(), rate_limiter }).await;
    match version.has(Feature::PmemRateLimiter) {
        true => limited.unwrap(),
        false => assert_eq!(limited.unwrap_err().kind(), ErrorKind::NotSupported),
    }
    // Started without PCI, it can plug nothing.
    let unplugged = [
        client.delete_drive("disk").await,
        client.delete_pmem("pmem").await,
        client.delete_network_interface("eth0").await,
        client.put_drive(&Drive::from_file("new", lab.path("disk"), true)).await,
    ];
    for outcome in unplugged {
        let error = outcome.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotSupported | ErrorKind::Conflict), "{error:?}");
    }
    let status = client.memory_hotplug().await.unwrap();
    assert_eq!((status.total_size_mib, status.plugged_size_mib), (256, 0));
    assert_eq!((status.slot_size_mib, status.block_size_mib), (128, 2));
    client.flush_metrics().await.unwrap();
    let line = std::fs::read_to_string(metrics.metrics_path).unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(line.lines().next().unwrap()).unwrap().is_object());
    assert_eq!(client.balloon().await.unwrap_err().kind(), ErrorKind::NotFound);
}

pub(crate) async fn devices_come_and_go_on_a_pci_bus_from_1_16_on(lab: &Lab) {
    let client = &lab.spawn_configured_with_pci().await.client;
    client.start().await.unwrap();
    let drive = Drive::from_file("late", lab.file("late", 1 << 20), false);
    let pmem = Pmem {
        id: "late_pmem".into(),
        path_on_host: lab.file("pmem", 2 << 20),
        root_device: false,
        read_only: false,
        rate_limiter: None,
    };
    if !client.version().await.unwrap().has(Feature::DeviceHotplug) {
        assert_eq!(client.put_drive(&drive).await.unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(client.delete_drive("late").await.unwrap_err().kind(), ErrorKind::NotSupported);
        return;
    }
    client.put_drive(&drive).await.unwrap();
    assert_eq!(client.put_drive(&drive).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    client.put_pmem(&pmem).await.unwrap();
    let config = client.config().await.unwrap();
    assert_eq!((config.drives.len(), config.pmem.len()), (1, 1));
    client.delete_drive("late").await.unwrap();
    client.delete_pmem("late_pmem").await.unwrap();
    assert_eq!(client.delete_drive("late").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(client.delete_network_interface("eth0").await.unwrap_err().kind(), ErrorKind::NotFound);
    let config = client.config().await.unwrap();
    assert_eq!((config.drives.len(), config.pmem.len()), (0, 0));
}

pub(crate) async fn a_machine_that_runs_cannot_be_configured_or_saved(lab: &Lab) {
    let client = &lab.spawn_configured().await.client;
    client.start().await.unwrap();
    let conflict = |what: &str, outcome: Result<(), Error>| {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{what}: {error:?}");
    };
    conflict("machine", client.put_machine_config(&MachineConfig::new(1, 64)).await);
    conflict("vsock", client.put_vsock(&Vsock { guest_cid: 3, uds_path: lab.path("vsock") }).await);
    conflict("entropy", client.put_entropy(&Entropy::default()).await);
    conflict("serial", client.put_serial(&Serial::default()).await);
    conflict("logger", client.put_logger(&Logger::default()).await);
    conflict("balloon", client.put_balloon(&Balloon::default()).await);
    conflict("mmds", client.put_mmds_config(&MmdsConfig::on_interface("eth0")).await);
    conflict("hotplug", client.put_memory_hotplug(&MemoryHotplug::new(128)).await);
    conflict("load", client.load_snapshot(&SnapshotLoad::from_files("a", "b")).await);
    conflict("save", client.create_snapshot(&create(lab, SnapshotType::Full, "running")).await);
    match client.mmds().await {
        Ok(metadata) => assert_eq!(metadata, serde_json::json!({}), "before 1.16"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}"),
    }
    assert_eq!(state(client).await, InstanceState::Running);
}

pub(crate) async fn memory_is_asked_from_the_page_server_of_a_load(lab: &Lab) {
    let saved = saved(lab).await;
    let socket = lab.path("pages");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let client = &lab.spawn().await.client;
    let load = SnapshotLoad::with_page_server(&saved.snapshot_path, &socket);
    let mut loading = std::pin::pin!(client.load_snapshot(&load));
    let accepting = tokio::time::timeout(PATIENCE, listener.accept());
    let (mut pages, _) = tokio::select! {
        accepted = accepting => accepted.unwrap().unwrap(),
        outcome = &mut loading => panic!("nobody was asked: {outcome:?}"),
    };
    // Firecracker says which memory is where, and hands over the userfaultfd. Nobody serves the pages here, so the load never ends.
    let mut told = [0; 4096];
    let length = tokio::io::AsyncReadExt::read(&mut pages, &mut told).await.unwrap();
    let mappings: serde_json::Value = serde_json::from_slice(&told[..length]).unwrap();
    assert_eq!(mappings[0]["size"], 32 << 20, "{mappings}");
}
