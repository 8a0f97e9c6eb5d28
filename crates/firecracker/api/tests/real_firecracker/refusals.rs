//! What Firecracker refuses, and what becomes of the client when Firecracker is gone.

use std::sync::Arc;

use flames_clock::SystemClock;
use flames_error::{Error, ErrorKind};
use flames_firecracker_api::*;
use serde_json::json;

use crate::lab::Lab;

pub(crate) async fn what_is_out_of_order_is_a_conflict(lab: &Lab) {
    let client = &lab.spawn().await.client;
    let conflict = |what: &str, outcome: Result<(), Error>| {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{what}: {error:?}");
    };
    conflict("pause", client.pause().await);
    conflict("resume", client.resume().await);
    conflict("ctrl-alt-del", client.send_ctrl_alt_del().await);
    conflict("flush", client.flush_metrics().await);
    conflict("balloon", client.patch_balloon(&BalloonPatch { amount_mib: 1 }).await);
    let interval = BalloonStatisticsPatch { stats_polling_interval_s: 1 };
    conflict("statistics", client.patch_balloon_statistics(&interval).await);
    conflict("statistics", client.balloon_statistics().await.map(drop));
    conflict("hinting", client.start_balloon_hinting(&BalloonHintingStart::default()).await);
    conflict("hinting", client.balloon_hinting().await.map(drop));
    conflict("hinting", client.stop_balloon_hinting().await);
    conflict("memory", client.memory_hotplug().await.map(drop));
    conflict("memory", client.patch_memory_hotplug(&MemoryHotplugPatch { requested_size_mib: 1 }).await);
    let drive = DrivePatch { drive_id: "a".into(), path_on_host: None, rate_limiter: None };
    conflict("drive", client.patch_drive(&drive).await);
    let interface =
        NetworkInterfacePatch { iface_id: "a".into(), rx_rate_limiter: None, tx_rate_limiter: None };
    conflict("interface", client.patch_network_interface(&interface).await);
    let create = SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: "state".into(),
        mem_file_path: "memory".into(),
    };
    conflict("snapshot", client.create_snapshot(&create).await);
    client.put_machine_config(&MachineConfig::new(1, 128)).await.unwrap();
    conflict("load", client.load_snapshot(&SnapshotLoad::from_files("state", "memory")).await);
}

pub(crate) async fn what_is_wrong_in_itself_is_invalid_and_named(lab: &Lab) {
    let client = &lab.spawn().await.client;
    let invalid = |words: &str, outcome: Result<(), Error>| {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
        assert!(error.message().contains(words), "{error:?}");
    };
    invalid("vCPUs must be greater than 0", client.put_machine_config(&MachineConfig::new(0, 128)).await);
    invalid("memory size", client.put_machine_config(&MachineConfig::new(1, 0)).await);
    let empty = MachineConfigPatch::default();
    invalid("Empty PATCH request", client.patch_machine_config(&empty).await);
    let template = MachineConfigPatch { cpu_template: Some("T9".into()), ..MachineConfigPatch::default() };
    invalid("unknown variant `T9`", client.patch_machine_config(&template).await);
    let kernel = BootSource { kernel_image_path: lab.path("no_kernel"), ..BootSource::default() };
    invalid("No such file or directory", client.put_boot_source(&kernel).await);
    invalid(
        "No such file or directory",
        client.put_drive(&Drive::from_file("a", lab.path("no_disk"), true)).await,
    );
    invalid("link local", client.put_mmds_config(&elsewhere()).await);
    invalid("multiple of slot size", client.put_memory_hotplug(&MemoryHotplug::new(200)).await);
    invalid("", client.put_cpu_config(&json!({ "cpuid_modifiers": 7 })).await);
    // Nothing to boot.
    invalid("Start microvm error", client.start().await);
    assert_eq!(client.machine_config().await.unwrap(), MachineConfig::new(1, 128), "nothing was changed");
}

/// A metadata service where there may be none.
fn elsewhere() -> MmdsConfig {
    MmdsConfig { ipv4_address: Some([10, 0, 0, 1].into()), ..MmdsConfig::on_interface("eth0") }
}

pub(crate) async fn what_is_not_there_is_not_found(lab: &Lab) {
    let client = &lab.spawn().await.client;
    assert_eq!(client.balloon().await.unwrap_err().kind(), ErrorKind::NotFound);
}

pub(crate) async fn metadata_that_does_not_fit_is_invalid(lab: &Lab) {
    let client = &lab.spawn().await.client;
    client.put_mmds(&json!({ "a": "x".repeat(40_000) })).await.unwrap();
    let refused = client.patch_mmds(&json!({ "b": "x".repeat(40_000) })).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    assert!(refused.message().contains("doesn't fit"), "{refused:?}");
    let kept = client.mmds().await.unwrap();
    assert!(kept.get("b").is_none() && kept["a"].as_str().unwrap().len() == 40_000);
}

pub(crate) async fn a_request_beyond_the_servers_limit_is_invalid_and_the_next_is_answered(lab: &Lab) {
    let firecracker = lab.spawn().await;
    let options = Options { request_limit: 1 << 20, ..Options::default() };
    let client = Client::new(firecracker.client.path(), Arc::new(SystemClock::new()), options);
    // To be read as a request of its own, by a server that goes on after the part that it refuses.
    let smuggled = "\r\n\r\nPATCH /machine-config HTTP/1.1\r\nContent-Length: 16\r\n\r\n{\"vcpu_count\":7}";
    let body = json!({ "a": "x".repeat(60_000), "b": smuggled });
    let error = client.put_mmds(&body).await.unwrap_err();
    // The answer can be lost in the server's hanging up on what it will not read.
    assert!(matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::OutcomeUnknown), "{error:?}");
    assert_eq!(client.machine_config().await.unwrap().vcpu_count, 1);
    assert_eq!(client.mmds().await.unwrap(), json!({}));
    firecracker.client.put_mmds(&json!({ "a": 1 })).await.unwrap();
}

pub(crate) async fn an_eleventh_connection_is_unavailable_until_another_is_closed(lab: &Lab) {
    let firecracker = lab.spawn().await;
    let mut others = Vec::new();
    for _ in 0..9 {
        let other = Client::connect(firecracker.client.path(), Arc::new(SystemClock::new())).await.unwrap();
        other.instance_info().await.unwrap();
        others.push(other);
    }
    let eleventh = Client::connect(firecracker.client.path(), Arc::new(SystemClock::new())).await.unwrap();
    let refused = eleventh.instance_info().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused:?}");
    firecracker.client.instance_info().await.unwrap();
    others.pop();
    eleventh.wait_until_serving(crate::lab::PATIENCE).await.unwrap();
}

pub(crate) async fn a_snapshot_that_is_none_is_refused_and_ends_firecracker(lab: &Lab) {
    let mut firecracker = lab.spawn().await;
    let load = SnapshotLoad::from_files(lab.file("state", 4096), lab.file("memory", 1 << 20));
    let refused = firecracker.client.load_snapshot(&load).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused:?}");
    assert!(refused.message().contains("Load snapshot error"), "{refused:?}");
    firecracker.ends();
    assert_eq!(firecracker.client.instance_info().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

pub(crate) async fn one_that_was_killed_is_unavailable(lab: &Lab) {
    let mut firecracker = lab.spawn().await;
    firecracker.client.instance_info().await.unwrap();
    firecracker.kill();
    let error = firecracker.client.instance_info().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let error = firecracker.client.put_machine_config(&MachineConfig::new(1, 128)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "the socket's file is still there");
}
