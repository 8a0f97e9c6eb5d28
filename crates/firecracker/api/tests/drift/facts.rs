//! What the API is, as a table: operations and properties, with the version that brought each. Compared with the descriptions of
//! 1.14.4, 1.15.1 and 1.16.1.

use std::collections::{BTreeMap, BTreeSet};

use flames_firecracker_api::{OLDEST, Version};

/// Operations, `method path body-definition`, with `@version` where not all accepted versions have it.
pub(crate) const OPERATIONS: &[&str] = &[
    "get /",
    "put /actions InstanceActionInfo",
    "get /balloon",
    "put /balloon Balloon",
    "patch /balloon BalloonUpdate",
    "get /balloon/statistics",
    "patch /balloon/statistics BalloonStatsUpdate",
    "patch /balloon/hinting/start BalloonStartCmd",
    "get /balloon/hinting/status",
    "patch /balloon/hinting/stop",
    "put /boot-source BootSource",
    "put /cpu-config CpuConfig",
    "put /drives/{id} Drive",
    "patch /drives/{id} PartialDrive",
    "delete /drives/{id} @1.16.0",
    "put /entropy EntropyDevice",
    "get /hotplug/memory",
    "put /hotplug/memory MemoryHotplugConfig",
    "patch /hotplug/memory MemoryHotplugSizeUpdate",
    "put /logger Logger",
    "get /machine-config",
    "put /machine-config MachineConfiguration",
    "patch /machine-config MachineConfiguration",
    "put /metrics Metrics",
    "get /mmds",
    "put /mmds MmdsContentsObject",
    "patch /mmds MmdsContentsObject",
    "put /mmds/config MmdsConfig",
    "put /network-interfaces/{id} NetworkInterface",
    "patch /network-interfaces/{id} PartialNetworkInterface",
    "delete /network-interfaces/{id} @1.16.0",
    "put /pmem/{id} Pmem",
    "patch /pmem/{id} PartialPmem @1.16.0",
    "delete /pmem/{id} @1.16.0",
    "put /serial SerialDevice",
    "put /snapshot/create SnapshotCreateParams",
    "put /snapshot/load SnapshotLoadParams",
    "get /version",
    "patch /vm Vm",
    "get /vm/config",
    "put /vsock Vsock",
];

/// What the server does and the description does not tell: `parse_unplug_device` in
/// `src/firecracker/src/api_server/parsed_request.rs`.
pub(crate) const GAPS_OF_THE_DESCRIPTION: &[&str] =
    &["delete /drives/{id}", "delete /network-interfaces/{id}", "delete /pmem/{id}"];

/// Definitions and their properties: `!` marks one that must be sent or is always answered, `@version` one that not all accepted
/// versions have.
pub(crate) const DEFINITIONS: &[(&str, &str)] = &[
    ("Balloon", "amount_mib! deflate_on_oom! stats_polling_interval_s free_page_hinting free_page_reporting"),
    ("BalloonHintingStatus", "host_cmd! guest_cmd"),
    ("BalloonStartCmd", "acknowledge_on_stop"),
    (
        "BalloonStats",
        "target_pages! actual_pages! target_mib! actual_mib! swap_in swap_out major_faults minor_faults free_memory \
         total_memory available_memory disk_caches hugetlb_allocations hugetlb_failures oom_kill alloc_stall async_scan \
         direct_scan async_reclaim direct_reclaim",
    ),
    ("BalloonStatsUpdate", "stats_polling_interval_s!"),
    ("BalloonUpdate", "amount_mib!"),
    ("BootSource", "kernel_image_path! initrd_path boot_args"),
    (
        "Drive",
        "drive_id! is_root_device! partuuid cache_type is_read_only path_on_host rate_limiter io_engine socket",
    ),
    ("EntropyDevice", "rate_limiter"),
    ("Error", "fault_message"),
    ("FirecrackerVersion", "firecracker_version!"),
    (
        "FullVmConfiguration",
        "balloon drives boot-source cpu-config logger machine-config metrics memory-hotplug mmds-config \
         network-interfaces pmem vsock entropy",
    ),
    ("InstanceActionInfo", "action_type!"),
    ("InstanceInfo", "app_name! id! state! vmm_version!"),
    ("Logger", "log_path level show_level show_log_origin module"),
    ("MachineConfiguration", "vcpu_count! mem_size_mib! smt cpu_template track_dirty_pages huge_pages"),
    ("MemoryBackend", "backend_type! backend_path!"),
    ("MemoryHotplugConfig", "total_size_mib slot_size_mib block_size_mib"),
    ("MemoryHotplugSizeUpdate", "requested_size_mib"),
    (
        "MemoryHotplugStatus",
        "total_size_mib slot_size_mib block_size_mib plugged_size_mib requested_size_mib",
    ),
    ("Metrics", "metrics_path!"),
    ("MmdsConfig", "network_interfaces! version ipv4_address imds_compat"),
    ("NetworkInterface", "iface_id! host_dev_name! guest_mac mtu@1.16.0 rx_rate_limiter tx_rate_limiter"),
    ("NetworkOverride", "iface_id! host_dev_name!"),
    ("PartialDrive", "drive_id! path_on_host rate_limiter"),
    ("PartialNetworkInterface", "iface_id! rx_rate_limiter tx_rate_limiter"),
    ("PartialPmem", "id!@1.16.0 rate_limiter@1.16.0"),
    ("Pmem", "id! path_on_host! root_device read_only rate_limiter@1.16.0"),
    ("RateLimiter", "bandwidth ops"),
    ("SerialDevice", "serial_out_path rate_limiter@1.16.0"),
    ("SnapshotCreateParams", "snapshot_path! mem_file_path! snapshot_type"),
    (
        "SnapshotLoadParams",
        "snapshot_path! mem_backend mem_file_path enable_diff_snapshots track_dirty_pages resume_vm network_overrides \
         vsock_override@1.16.0 clock_realtime",
    ),
    ("TokenBucket", "size! refill_time! one_time_burst"),
    ("Vm", "state!"),
    ("Vsock", "guest_cid! uds_path! vsock_id"),
    ("VsockOverride", "uds_path!@1.16.0"),
];

/// Properties that are deprecated and never sent.
pub(crate) const NEVER_SENT: &[(&str, &str)] = &[
    ("Vsock", "vsock_id"),
    ("SnapshotLoadParams", "mem_file_path"),
    ("SnapshotLoadParams", "enable_diff_snapshots"),
];

/// Definitions that the client takes or gives as plain JSON, or as a name.
pub(crate) const PLAIN: &[&str] = &[
    "ArmRegisterModifier",
    "CpuConfig",
    "CpuTemplate",
    "CpuidLeafModifier",
    "CpuidRegisterModifier",
    "MmdsContentsObject",
    "MsrModifier",
    "VcpuFeatures",
];

/// The values of properties that have only some. (Those of definitions in [`PLAIN`] apart.)
pub(crate) const ENUMERATIONS: &[(&str, &str, &[&str])] = &[
    ("Drive", "cache_type", &["Unsafe", "Writeback"]),
    ("Drive", "io_engine", &["Sync", "Async"]),
    ("InstanceActionInfo", "action_type", &["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]),
    ("InstanceInfo", "state", &["Not started", "Running", "Paused"]),
    ("Logger", "level", &["Error", "Warning", "Info", "Debug", "Trace", "Off"]),
    ("MachineConfiguration", "huge_pages", &["None", "2M"]),
    ("MemoryBackend", "backend_type", &["File", "Uffd"]),
    ("MmdsConfig", "version", &["V1", "V2"]),
    ("SnapshotCreateParams", "snapshot_type", &["Full", "Diff"]),
    ("Vm", "state", &["Paused", "Resumed"]),
];

/// A property of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Property {
    pub(crate) required: bool,
    pub(crate) since: Version,
}

/// `method path` → its body's definition and since when.
pub(crate) fn operations() -> BTreeMap<String, (Option<String>, Version)> {
    OPERATIONS
        .iter()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let since = words.iter().find_map(|word| word.strip_prefix('@'));
            let body = words.get(2).filter(|word| !word.starts_with('@')).map(|word| (*word).to_owned());
            let since = since.map_or(OLDEST, |version| version.parse().unwrap());
            (format!("{} {}", words[0], words[1]), (body, since))
        })
        .collect()
}

/// Definition → property → what is known of it.
pub(crate) fn definitions() -> BTreeMap<&'static str, BTreeMap<String, Property>> {
    DEFINITIONS
        .iter()
        .map(|(name, properties)| {
            let properties = properties.split_whitespace().map(|word| {
                let (word, since) = match word.split_once('@') {
                    Some((word, version)) => (word, version.parse().unwrap()),
                    None => (word, OLDEST),
                };
                let required = word.ends_with('!');
                (word.trim_end_matches('!').to_owned(), Property { required, since })
            });
            (*name, properties.collect())
        })
        .collect()
}

/// Property → its values.
pub(crate) fn enumerations() -> BTreeMap<(String, String), BTreeSet<String>> {
    ENUMERATIONS
        .iter()
        .map(|(definition, property, values)| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            (((*definition).to_owned(), (*property).to_owned()), values)
        })
        .collect()
}
