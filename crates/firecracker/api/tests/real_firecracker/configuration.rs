//! What is configured before a start.

use std::process::Command;

use flames_error::ErrorKind;
use flames_firecracker_api::*;
use serde_json::json;

use crate::lab::{Lab, program};

pub(crate) async fn the_version_is_accepted_and_the_one_that_the_program_prints(lab: &Lab) {
    let firecracker = lab.spawn().await;
    let version = firecracker.client.version().await.unwrap();
    version.check().unwrap();
    let info = firecracker.client.instance_info().await.unwrap();
    assert_eq!(info.vmm_version.parse::<Version>().unwrap(), version);
    assert_eq!((info.id.as_str(), info.state), ("lab", InstanceState::NotStarted));
    let printed = Command::new(program().unwrap()).arg("--version").output().unwrap().stdout;
    assert_eq!(Version::from_program_output(&String::from_utf8(printed).unwrap()).unwrap(), version);
}

pub(crate) async fn a_machine_config_comes_back_as_it_was_put_and_patched(lab: &Lab) {
    let client = &lab.spawn().await.client;
    assert_eq!(client.machine_config().await.unwrap(), MachineConfig::new(1, 128), "the default");
    let mut config = MachineConfig {
        vcpu_count: 2,
        mem_size_mib: 256,
        smt: true,
        cpu_template: None,
        track_dirty_pages: true,
        huge_pages: HugePages::TwoMebibytes,
    };
    client.put_machine_config(&config).await.unwrap();
    assert_eq!(client.machine_config().await.unwrap(), config);
    let patch = MachineConfigPatch {
        mem_size_mib: Some(130),
        smt: Some(false),
        huge_pages: Some(HugePages::None),
        ..MachineConfigPatch::default()
    };
    client.patch_machine_config(&patch).await.unwrap();
    (config.mem_size_mib, config.smt, config.huge_pages) = (130, false, HugePages::None);
    assert_eq!(client.machine_config().await.unwrap(), config);
    assert_eq!(client.config().await.unwrap().machine_config, Some(config));

    client.put_cpu_config(&json!({ "kvm_capabilities": [], "cpuid_modifiers": [] })).await.unwrap();
    assert_eq!(client.machine_config().await.unwrap().cpu_template, None);
}

pub(crate) async fn every_device_is_taken_before_a_start_and_comes_back(lab: &Lab) {
    let client = &lab.spawn().await.client;
    let bucket = TokenBucket { size: 1 << 20, one_time_burst: Some(4096), refill_time: 100 };
    let limiter = RateLimiter { bandwidth: Some(bucket), ops: Some(TokenBucket::per_second(500)) };
    let mut root = Drive::from_file("root", lab.file("root", 1 << 20), true);
    root.is_root_device = true;
    root.partuuid = Some("0eaa91a0-01".into());
    root.io_engine = Some(IoEngine::Sync);
    let mut data = Drive::from_file("data_1", lab.file("data", 1 << 20), false);
    data.cache_type = CacheType::Writeback;
    data.rate_limiter = Some(limiter);
    data.io_engine = Some(IoEngine::Sync);
    client.put_drive(&data).await.unwrap();
    client.put_drive(&root).await.unwrap();
    let mut pmem = Pmem {
        id: "pmem".into(),
        path_on_host: lab.file("pmem", 2 << 20),
        root_device: false,
        read_only: true,
        rate_limiter: None,
    };
    client.put_pmem(&pmem).await.unwrap();
    pmem.read_only = false;
    client.put_pmem(&pmem).await.unwrap();
    let vsock = Vsock { guest_cid: 7, uds_path: lab.path("vsock") };
    client.put_vsock(&vsock).await.unwrap();
    let entropy = Entropy { rate_limiter: Some(limiter) };
    client.put_entropy(&entropy).await.unwrap();
    let balloon = Balloon {
        amount_mib: 8,
        deflate_on_oom: true,
        stats_polling_interval_s: 1,
        free_page_hinting: true,
        free_page_reporting: true,
    };
    client.put_balloon(&balloon).await.unwrap();
    assert_eq!(client.balloon().await.unwrap(), balloon);
    let region = MemoryHotplug::new(1024);
    client.put_memory_hotplug(&region).await.unwrap();
    let boot = BootSource {
        kernel_image_path: lab.file("kernel", 64),
        initrd_path: Some(lab.file("initrd", 64)),
        boot_args: Some("console=ttyS0".into()),
    };
    client.put_boot_source(&boot).await.unwrap();

    let config = client.config().await.unwrap();
    assert_eq!(config.drives, [root, data], "the root device is first");
    assert_eq!(config.pmem, [pmem]);
    assert_eq!(config.vsock, Some(vsock));
    assert_eq!(config.entropy, Some(entropy));
    assert_eq!(config.balloon, Some(balloon));
    assert_eq!(config.memory_hotplug, Some(region));
    assert_eq!(config.boot_source, Some(boot));
}

pub(crate) async fn what_is_new_is_taken_or_not_supported(lab: &Lab) {
    let client = &lab.spawn().await.client;
    let version = client.version().await.unwrap();
    let agrees = |feature: Feature, outcome: flames_error::Result<()>| match outcome {
        Ok(()) => assert!(version.has(feature), "{feature:?}"),
        Err(error) => {
            assert!(!version.has(feature), "{feature:?}: {error:?}");
            assert_eq!(error.kind(), ErrorKind::NotSupported, "{feature:?}");
        }
    };
    let limited = Serial { serial_out_path: None, rate_limiter: Some(TokenBucket::per_second(4096)) };
    agrees(Feature::SerialRateLimiter, client.put_serial(&limited).await);
    let pmem = Pmem {
        id: "pmem".into(),
        path_on_host: lab.file("pmem", 2 << 20),
        root_device: false,
        read_only: false,
        rate_limiter: Some(RateLimiter::default()),
    };
    agrees(Feature::PmemRateLimiter, client.put_pmem(&pmem).await);
    let unplugged = client.delete_drive("none").await.unwrap_err().kind();
    let expected =
        if version.has(Feature::DeviceHotplug) { ErrorKind::Conflict } else { ErrorKind::NotSupported };
    assert_eq!(unplugged, expected, "before the start");
}

pub(crate) async fn an_interface_and_the_metadata_service_are_taken(lab: &Lab) {
    let client = &lab.spawn_with_tap().await.client;
    let version = client.version().await.unwrap();
    let mut interface = NetworkInterface::new("eth0", "tap0", "06:00:ac:10:00:02");
    interface.mtu = version.has(Feature::NetworkMtu).then_some(1400);
    let bandwidth = Some(TokenBucket { size: 1 << 20, one_time_burst: None, refill_time: 100 });
    interface.rx_rate_limiter = Some(RateLimiter { bandwidth, ops: None });
    client.put_network_interface(&interface).await.unwrap();
    let mut mmds = MmdsConfig::on_interface("eth0");
    mmds.ipv4_address = Some([169, 254, 170, 2].into());
    mmds.imds_compat = true;
    client.put_mmds_config(&mmds).await.unwrap();
    let config = client.config().await.unwrap();
    assert_eq!(config.network_interfaces, [interface.clone()]);
    assert_eq!(config.mmds_config, Some(mmds));

    interface.host_dev_name = "a_name_too_long_for_a_tap".into();
    let refused = client.put_network_interface(&interface).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
}

pub(crate) async fn metadata_comes_back_as_it_was_put_and_patched(lab: &Lab) {
    let client = &lab.spawn().await.client;
    assert_eq!(client.mmds().await.unwrap(), json!({}));
    client.put_mmds(&json!({ "a": { "b": 1, "c": "2" }, "d": "é\n\"" })).await.unwrap();
    client.patch_mmds(&json!({ "a": { "b": null, "e": [1, true] } })).await.unwrap();
    assert_eq!(client.mmds().await.unwrap(), json!({ "a": { "c": "2", "e": [1, true] }, "d": "é\n\"" }));
}

pub(crate) async fn the_log_the_metrics_and_the_console_are_set_up(lab: &Lab) {
    let client = &lab.spawn().await.client;
    let logger = Logger {
        log_path: Some(lab.file("log", 0)),
        level: Some(LogLevel::Warning),
        show_level: true,
        show_log_origin: true,
        module: None,
    };
    client.put_logger(&logger).await.unwrap();
    let louder = Logger { level: Some(LogLevel::Debug), ..Logger::default() };
    client.put_logger(&louder).await.unwrap();
    client.instance_info().await.unwrap();
    let log = std::fs::read_to_string(lab.path("log")).unwrap();
    assert!(log.contains("Get request on \"/\""), "{log}");

    let metrics = Metrics { metrics_path: lab.file("metrics", 0) };
    client.put_metrics(&metrics).await.unwrap();
    let refused = client.put_metrics(&metrics).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "only once");
    let serial = Serial { serial_out_path: Some(lab.file("console", 0)), rate_limiter: None };
    client.put_serial(&serial).await.unwrap();
}
