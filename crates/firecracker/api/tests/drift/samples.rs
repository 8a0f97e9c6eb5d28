//! One value of each type with everything set, and one with nothing that can be left out. Without `..`: a property that is added
//! to a type is missed here by the compiler.

use flames_firecracker_api::*;
use serde::Serialize;
use serde_json::{Value, json};

/// A definition's name, a value of its type with everything set, and one with the least.
pub(crate) struct Sample {
    pub(crate) definition: &'static str,
    pub(crate) full: Value,
    pub(crate) least: Value,
}

fn sample<T: Serialize>(definition: &'static str, full: &T, least: &T) -> Sample {
    let value = |sample: &T| serde_json::to_value(sample).unwrap();
    Sample { definition, full: value(full), least: value(least) }
}

fn bucket() -> TokenBucket {
    TokenBucket { size: 1, one_time_burst: Some(2), refill_time: 3 }
}

fn limiter() -> Option<RateLimiter> {
    Some(RateLimiter { bandwidth: Some(bucket()), ops: Some(bucket()) })
}

/// Definitions whose types are the client's own: what they say is checked where requests are (`tests/scripted`).
pub(crate) const PRIVATE: &[&str] = &["Error", "FirecrackerVersion", "InstanceActionInfo", "Vm"];

pub(crate) fn samples() -> Vec<Sample> {
    let mut samples = devices();
    samples.extend(memory());
    samples.extend(machine());
    samples.extend(snapshots());
    samples
}

fn devices() -> Vec<Sample> {
    let drive = Drive {
        drive_id: "a".into(),
        partuuid: Some("b".into()),
        is_root_device: true,
        cache_type: CacheType::Writeback,
        is_read_only: Some(true),
        path_on_host: Some("/c".into()),
        rate_limiter: limiter(),
        io_engine: Some(IoEngine::Async),
        socket: Some("/d".into()),
    };
    let mut least_drive = Drive::from_file("a", "/c", true);
    (least_drive.is_read_only, least_drive.path_on_host) = (None, None);
    let drive_patch =
        DrivePatch { drive_id: "a".into(), path_on_host: Some("/c".into()), rate_limiter: limiter() };
    let pmem = Pmem {
        id: "a".into(),
        path_on_host: "/b".into(),
        root_device: true,
        read_only: true,
        rate_limiter: limiter(),
    };
    let interface = NetworkInterface {
        iface_id: "a".into(),
        host_dev_name: "b".into(),
        guest_mac: Some("c".into()),
        mtu: Some(1500),
        rx_rate_limiter: limiter(),
        tx_rate_limiter: limiter(),
    };
    let interface_patch = NetworkInterfacePatch {
        iface_id: "a".into(),
        rx_rate_limiter: limiter(),
        tx_rate_limiter: limiter(),
    };
    let mmds = MmdsConfig {
        version: MmdsVersion::V2,
        network_interfaces: vec!["a".into()],
        ipv4_address: Some([169, 254, 1, 1].into()),
        imds_compat: true,
    };
    let vsock = Vsock { guest_cid: 3, uds_path: "/a".into() };
    vec![
        sample("Drive", &drive, &least_drive),
        sample(
            "PartialDrive",
            &drive_patch,
            &DrivePatch { path_on_host: None, rate_limiter: None, ..drive_patch.clone() },
        ),
        sample(
            "Pmem",
            &pmem,
            &Pmem { root_device: false, read_only: false, rate_limiter: None, ..pmem.clone() },
        ),
        sample(
            "PartialPmem",
            &PmemPatch { id: "a".into(), rate_limiter: limiter() },
            &PmemPatch { id: "a".into(), rate_limiter: None },
        ),
        sample(
            "NetworkInterface",
            &interface,
            &NetworkInterface {
                guest_mac: None,
                mtu: None,
                rx_rate_limiter: None,
                tx_rate_limiter: None,
                ..interface.clone()
            },
        ),
        sample(
            "PartialNetworkInterface",
            &interface_patch,
            &NetworkInterfacePatch {
                rx_rate_limiter: None,
                tx_rate_limiter: None,
                ..interface_patch.clone()
            },
        ),
        sample("MmdsConfig", &mmds, &MmdsConfig { ipv4_address: None, imds_compat: false, ..mmds.clone() }),
        sample("Vsock", &vsock, &vsock),
        sample("EntropyDevice", &Entropy { rate_limiter: limiter() }, &Entropy::default()),
        sample("RateLimiter", &limiter().unwrap(), &RateLimiter::default()),
        sample("TokenBucket", &bucket(), &TokenBucket::per_second(1)),
    ]
}

fn memory() -> Vec<Sample> {
    let balloon = Balloon {
        amount_mib: 1,
        deflate_on_oom: true,
        stats_polling_interval_s: 1,
        free_page_hinting: true,
        free_page_reporting: true,
    };
    let some = Some(1);
    let statistics = BalloonStatistics {
        target_pages: 1,
        actual_pages: 1,
        target_mib: 1,
        actual_mib: 1,
        swap_in: some,
        swap_out: some,
        major_faults: some,
        minor_faults: some,
        free_memory: some,
        total_memory: some,
        available_memory: some,
        disk_caches: some,
        hugetlb_allocations: some,
        hugetlb_failures: some,
        oom_kill: some,
        alloc_stall: some,
        async_scan: some,
        direct_scan: some,
        async_reclaim: some,
        direct_reclaim: some,
    };
    let region = MemoryHotplug { total_size_mib: 256, slot_size_mib: 128, block_size_mib: 2 };
    let region_patch = MemoryHotplugPatch { requested_size_mib: 128 };
    let region_status = MemoryHotplugStatus {
        total_size_mib: 256,
        slot_size_mib: 128,
        block_size_mib: 2,
        plugged_size_mib: 0,
        requested_size_mib: 128,
    };
    let balloon_patch = BalloonPatch { amount_mib: 1 };
    let statistics_patch = BalloonStatisticsPatch { stats_polling_interval_s: 1 };
    let hinting = BalloonHintingStart { acknowledge_on_stop: false };
    vec![
        sample("Balloon", &balloon, &Balloon::default()),
        sample("BalloonUpdate", &balloon_patch, &balloon_patch),
        sample("BalloonStats", &statistics, &BalloonStatistics::default()),
        sample("BalloonStatsUpdate", &statistics_patch, &statistics_patch),
        sample("BalloonStartCmd", &hinting, &hinting),
        sample(
            "BalloonHintingStatus",
            &BalloonHintingStatus { host_cmd: 1, guest_cmd: Some(1) },
            &BalloonHintingStatus { host_cmd: 1, guest_cmd: None },
        ),
        sample("MemoryHotplugConfig", &region, &region),
        sample("MemoryHotplugSizeUpdate", &region_patch, &region_patch),
        sample("MemoryHotplugStatus", &region_status, &region_status),
    ]
}

fn machine() -> Vec<Sample> {
    let machine = MachineConfig {
        vcpu_count: 1,
        mem_size_mib: 128,
        smt: true,
        cpu_template: Some("T2".into()),
        track_dirty_pages: true,
        huge_pages: HugePages::TwoMebibytes,
    };
    let boot = BootSource {
        kernel_image_path: "/a".into(),
        initrd_path: Some("/b".into()),
        boot_args: Some("c".into()),
    };
    let logger = Logger {
        log_path: Some("/a".into()),
        level: Some(LogLevel::Info),
        show_level: true,
        show_log_origin: true,
        module: Some("b".into()),
    };
    let metrics = Metrics { metrics_path: "/a".into() };
    let serial = Serial { serial_out_path: Some("/a".into()), rate_limiter: Some(bucket()) };
    let info = InstanceInfo {
        id: "a".into(),
        state: InstanceState::Paused,
        vmm_version: "1.16.1".into(),
        app_name: "Firecracker".into(),
    };
    let config = FullConfig {
        balloon: Some(Balloon::default()),
        drives: vec![Drive::from_file("a", "/c", true)],
        boot_source: Some(boot.clone()),
        cpu_config: Some(json!({})),
        logger: Some(logger.clone()),
        machine_config: Some(machine.clone()),
        metrics: Some(metrics.clone()),
        memory_hotplug: Some(MemoryHotplug::new(128)),
        mmds_config: Some(MmdsConfig::on_interface("a")),
        network_interfaces: vec![],
        pmem: vec![],
        vsock: Some(Vsock { guest_cid: 3, uds_path: "/a".into() }),
        entropy: Some(Entropy::default()),
    };
    vec![
        sample("MachineConfiguration", &machine, &MachineConfig::new(1, 128)),
        sample("BootSource", &boot, &BootSource::default()),
        sample("Logger", &logger, &Logger::default()),
        sample("Metrics", &metrics, &metrics),
        sample("SerialDevice", &serial, &Serial::default()),
        sample("InstanceInfo", &info, &info),
        sample("FullVmConfiguration", &config, &FullConfig::default()),
    ]
}

fn snapshots() -> Vec<Sample> {
    let create = SnapshotCreate {
        snapshot_type: SnapshotType::Diff,
        snapshot_path: "/a".into(),
        mem_file_path: "/b".into(),
    };
    let backend = MemoryBackend { backend_type: MemoryBackendType::Uffd, backend_path: "/a".into() };
    let network = NetworkOverride { iface_id: "a".into(), host_dev_name: "b".into() };
    let vsock = VsockOverride { uds_path: "/a".into() };
    let load = SnapshotLoad {
        snapshot_path: "/a".into(),
        mem_backend: backend.clone(),
        track_dirty_pages: true,
        resume_vm: true,
        network_overrides: vec![network.clone()],
        vsock_override: Some(vsock.clone()),
        clock_realtime: true,
    };
    vec![
        sample("SnapshotCreateParams", &create, &create),
        sample("SnapshotLoadParams", &load, &SnapshotLoad::from_files("/a", "/b")),
        sample("MemoryBackend", &backend, &backend),
        sample("NetworkOverride", &network, &network),
        sample("VsockOverride", &vsock, &vsock),
    ]
}
