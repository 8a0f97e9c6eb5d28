//! The operations, one method each.

use flames_error::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::operation::*;
use crate::types::*;
use crate::{Client, Version};

#[derive(Serialize)]
struct Action {
    action_type: &'static str,
}

#[derive(Serialize)]
struct VmState {
    state: &'static str,
}

#[derive(Deserialize)]
struct FirecrackerVersion {
    firecracker_version: String,
}

/// What can be asked at any time.
impl Client {
    /// What Firecracker is and what its machine does.
    pub async fn instance_info(&self) -> Result<InstanceInfo> {
        self.read(&GET_INSTANCE).await
    }

    /// Firecracker's version. See [`Version::check`].
    ///
    /// Errors: also `NotSupported` when what it answers is no version.
    pub async fn version(&self) -> Result<Version> {
        let answer: FirecrackerVersion = self.read(&GET_VERSION).await?;
        answer.firecracker_version.parse()
    }

    /// All that is configured.
    pub async fn config(&self) -> Result<FullConfig> {
        self.read(&GET_CONFIG).await
    }

    /// Processors and memory.
    pub async fn machine_config(&self) -> Result<MachineConfig> {
        self.read(&GET_MACHINE_CONFIG).await
    }

    /// The metadata; an empty object when none was put.
    ///
    /// Errors: from 1.16, `NotFound` once the machine runs and neither metadata nor its service were put before.
    pub async fn mmds(&self) -> Result<Value> {
        self.read(&GET_MMDS).await
    }

    /// Replaces the metadata: an object. It is gone after a load, and must then be put again.
    pub async fn put_mmds(&self, metadata: &Value) -> Result<()> {
        self.send(&PUT_MMDS, PUT_MMDS.path, metadata).await
    }

    /// Changes the metadata as a JSON merge patch (RFC 7396) does.
    pub async fn patch_mmds(&self, patch: &Value) -> Result<()> {
        self.send(&PATCH_MMDS, PATCH_MMDS.path, patch).await
    }

    /// The balloon.
    ///
    /// Errors: `NotFound` when there is none.
    pub async fn balloon(&self) -> Result<Balloon> {
        self.read(&GET_BALLOON).await
    }
}

/// What is configured before the start. Each may be repeated until then; afterwards it is a `Conflict`. All but log, metrics,
/// serial console, CPU template and metadata also rule out a load.
impl Client {
    /// Sets processors and memory.
    pub async fn put_machine_config(&self, config: &MachineConfig) -> Result<()> {
        self.send(&PUT_MACHINE_CONFIG, PUT_MACHINE_CONFIG.path, config).await
    }

    /// Changes some of processors and memory.
    pub async fn patch_machine_config(&self, patch: &MachineConfigPatch) -> Result<()> {
        self.send(&PATCH_MACHINE_CONFIG, PATCH_MACHINE_CONFIG.path, patch).await
    }

    /// Sets a custom CPU template (`docs/cpu_templates/cpu-templates.md` of Firecracker), which takes the place of a named one.
    pub async fn put_cpu_config(&self, template: &Value) -> Result<()> {
        self.send(&PUT_CPU_CONFIG, PUT_CPU_CONFIG.path, template).await
    }

    /// Sets what is booted.
    pub async fn put_boot_source(&self, source: &BootSource) -> Result<()> {
        self.send(&PUT_BOOT_SOURCE, PUT_BOOT_SOURCE.path, source).await
    }

    /// Sets the vsock.
    pub async fn put_vsock(&self, vsock: &Vsock) -> Result<()> {
        self.send(&PUT_VSOCK, PUT_VSOCK.path, vsock).await
    }

    /// Adds a source of random numbers.
    pub async fn put_entropy(&self, entropy: &Entropy) -> Result<()> {
        self.send(&PUT_ENTROPY, PUT_ENTROPY.path, entropy).await
    }

    /// Sets where the guest's serial console goes.
    pub async fn put_serial(&self, serial: &Serial) -> Result<()> {
        self.send(&PUT_SERIAL, PUT_SERIAL.path, serial).await
    }

    /// Sets up the log.
    pub async fn put_logger(&self, logger: &Logger) -> Result<()> {
        self.send(&PUT_LOGGER, PUT_LOGGER.path, logger).await
    }

    /// Sets where metrics go. Only once.
    pub async fn put_metrics(&self, metrics: &Metrics) -> Result<()> {
        self.send(&PUT_METRICS, PUT_METRICS.path, metrics).await
    }

    /// Sets up the metadata service, on interfaces that were set before.
    pub async fn put_mmds_config(&self, config: &MmdsConfig) -> Result<()> {
        self.send(&PUT_MMDS_CONFIG, PUT_MMDS_CONFIG.path, config).await
    }

    /// Sets the balloon.
    pub async fn put_balloon(&self, balloon: &Balloon) -> Result<()> {
        self.send(&PUT_BALLOON, PUT_BALLOON.path, balloon).await
    }

    /// Sets the region for hot-plugged memory.
    pub async fn put_memory_hotplug(&self, region: &MemoryHotplug) -> Result<()> {
        self.send(&PUT_MEMORY_HOTPLUG, PUT_MEMORY_HOTPLUG.path, region).await
    }

    /// Loads a snapshot, in a Firecracker with nothing configured but log, metrics, serial console and CPU template.
    ///
    /// When it fails otherwise than by `Conflict` or before it was read, Firecracker ends itself: spawn another.
    pub async fn load_snapshot(&self, load: &SnapshotLoad) -> Result<()> {
        self.send(&LOAD_SNAPSHOT, LOAD_SNAPSHOT.path, load).await
    }

    /// Starts the machine. Answered once it runs.
    pub async fn start(&self) -> Result<()> {
        self.send(&START, START.path, &Action { action_type: "InstanceStart" }).await
    }
}

/// Devices that can also come and go while the machine runs ([`crate::Feature::DeviceHotplug`]); the guest must rescan its PCI bus.
impl Client {
    /// Sets a disk. After the start: plugs it in.
    pub async fn put_drive(&self, drive: &Drive) -> Result<()> {
        self.send(&PUT_DRIVE, &PUT_DRIVE.path_of(&drive.drive_id)?, drive).await
    }

    /// Changes a disk of a machine that was started.
    pub async fn patch_drive(&self, patch: &DrivePatch) -> Result<()> {
        self.send(&PATCH_DRIVE, &PATCH_DRIVE.path_of(&patch.drive_id)?, patch).await
    }

    /// Unplugs a disk from a machine that was started.
    pub async fn delete_drive(&self, id: &str) -> Result<()> {
        self.command(&DELETE_DRIVE, &DELETE_DRIVE.path_of(id)?).await
    }

    /// Sets a pmem device. After the start: plugs it in.
    pub async fn put_pmem(&self, pmem: &Pmem) -> Result<()> {
        self.send(&PUT_PMEM, &PUT_PMEM.path_of(&pmem.id)?, pmem).await
    }

    /// Changes a pmem device of a machine that was started.
    pub async fn patch_pmem(&self, patch: &PmemPatch) -> Result<()> {
        self.send(&PATCH_PMEM, &PATCH_PMEM.path_of(&patch.id)?, patch).await
    }

    /// Unplugs a pmem device from a machine that was started.
    pub async fn delete_pmem(&self, id: &str) -> Result<()> {
        self.command(&DELETE_PMEM, &DELETE_PMEM.path_of(id)?).await
    }

    /// Sets a network interface, whose tap device Firecracker opens at once. After the start: plugs it in.
    pub async fn put_network_interface(&self, interface: &NetworkInterface) -> Result<()> {
        let path = PUT_NETWORK_INTERFACE.path_of(&interface.iface_id)?;
        self.send(&PUT_NETWORK_INTERFACE, &path, interface).await
    }

    /// Changes a network interface of a machine that was started.
    pub async fn patch_network_interface(&self, patch: &NetworkInterfacePatch) -> Result<()> {
        let path = PATCH_NETWORK_INTERFACE.path_of(&patch.iface_id)?;
        self.send(&PATCH_NETWORK_INTERFACE, &path, patch).await
    }

    /// Unplugs a network interface from a machine that was started.
    pub async fn delete_network_interface(&self, id: &str) -> Result<()> {
        self.command(&DELETE_NETWORK_INTERFACE, &DELETE_NETWORK_INTERFACE.path_of(id)?).await
    }
}

/// What can be done with a machine that was started or loaded. Before, each is a `Conflict`.
impl Client {
    /// Pauses the machine; nothing happens when it is paused.
    pub async fn pause(&self) -> Result<()> {
        self.send(&PATCH_VM, PATCH_VM.path, &VmState { state: "Paused" }).await
    }

    /// Lets the machine run on; nothing happens when it runs.
    pub async fn resume(&self) -> Result<()> {
        self.send(&PATCH_VM, PATCH_VM.path, &VmState { state: "Resumed" }).await
    }

    /// Saves the machine, which must be paused and stays so. It answers nothing else meanwhile. After `OutcomeUnknown` the files may
    /// still be growing: the next call is answered once they no longer do.
    ///
    /// Errors: also `Exhausted` when the disk is full.
    pub async fn create_snapshot(&self, create: &SnapshotCreate) -> Result<()> {
        self.send(&CREATE_SNAPSHOT, CREATE_SNAPSHOT.path, create).await
    }

    /// Presses Ctrl, Alt and Delete on the guest's keyboard (x86-64): a guest with a driver for it reboots, which ends Firecracker.
    pub async fn send_ctrl_alt_del(&self) -> Result<()> {
        let action = Action { action_type: "SendCtrlAltDel" };
        self.send(&SEND_CTRL_ALT_DEL, SEND_CTRL_ALT_DEL.path, &action).await
    }

    /// Has the metrics written now.
    pub async fn flush_metrics(&self) -> Result<()> {
        self.send(&FLUSH_METRICS, FLUSH_METRICS.path, &Action { action_type: "FlushMetrics" }).await
    }

    /// Changes the balloon's size. The guest follows in its own time.
    pub async fn patch_balloon(&self, patch: &BalloonPatch) -> Result<()> {
        self.send(&PATCH_BALLOON, PATCH_BALLOON.path, patch).await
    }

    /// What balloon and guest reported last.
    pub async fn balloon_statistics(&self) -> Result<BalloonStatistics> {
        self.read(&GET_BALLOON_STATISTICS).await
    }

    /// Changes how often the guest reports.
    pub async fn patch_balloon_statistics(&self, patch: &BalloonStatisticsPatch) -> Result<()> {
        self.send(&PATCH_BALLOON_STATISTICS, PATCH_BALLOON_STATISTICS.path, patch).await
    }

    /// Starts a run of free page hinting.
    pub async fn start_balloon_hinting(&self, start: &BalloonHintingStart) -> Result<()> {
        self.send(&START_BALLOON_HINTING, START_BALLOON_HINTING.path, start).await
    }

    /// How far the run of free page hinting is.
    pub async fn balloon_hinting(&self) -> Result<BalloonHintingStatus> {
        self.read(&GET_BALLOON_HINTING).await
    }

    /// Stops the run of free page hinting.
    pub async fn stop_balloon_hinting(&self) -> Result<()> {
        self.command(&STOP_BALLOON_HINTING, STOP_BALLOON_HINTING.path).await
    }

    /// How much memory is plugged.
    pub async fn memory_hotplug(&self) -> Result<MemoryHotplugStatus> {
        self.read(&GET_MEMORY_HOTPLUG).await
    }

    /// Asks the guest to plug or unplug memory. It follows in its own time.
    pub async fn patch_memory_hotplug(&self, patch: &MemoryHotplugPatch) -> Result<()> {
        self.send(&PATCH_MEMORY_HOTPLUG, PATCH_MEMORY_HOTPLUG.path, patch).await
    }
}
