//! VmDriver over QEMU's microvm machine: real guests on every Linux host, with KVM or without.
//!
//! * **One process per VM**, in a session and a folder of its own, which outlives the driver and is found again by (boot id, pid, start
//!   time, command line). `folder` lists the records, `launch` every point at which a driver may be killed.
//! * **The machine** follows from the prepared record alone, so a saved guest is loaded into the same machine. There are two kinds
//!   (`kernel`): with ACPI for distribution kernels, without for kernels that have none. The driver looks into the
//!   kernel; the word [`MACHINE_ARGUMENT`]`acpi` or `mmio` in [`flames_vmm::BootSource::extra_arguments`] overrides it. A machine without
//!   ACPI has 8 device slots: at most 5 disks with a network, the configuration's among them.
//! * **The agent** is reached by the virtio-serial port named `flames.agent`, or by vsock. The guest's configuration is the last
//!   disk, read-only, with the serial `flames-config`, filled up with zeros to a whole sector.
//! * **Stop**: a machine with ACPI has a power button, which the guest may heed or not. One without has none, so the grace of
//!   [`flames_vmm::StopHow::PowerOff`] is for a guest that its agent was asked to shut down. After the grace QEMU is told to quit, then killed.
//!   A guest that is paused cannot answer and is not waited for.
//! * **The console** (`console`): on disk at most [`QemuConfig::console_log_limit`] bytes per VM, taken at most at
//!   [`QemuConfig::console_bytes_per_second`]. While no driver runs the output is dropped by QEMU, and marked as missing in the log.
//! * **Acceleration** (`acceleration`): KVM for kernels that were seen to reach their agent under it, software emulation for others.
//! * **Pause, resume, full snapshots** work; a snapshot holds the guest's memory and devices, and not its disks' content. Diffs and
//!   tap networking do not.
//! * **How an exit is told**: [`flames_vmm::ExitCause::Guest`] when QEMU announced it while a driver listened; code and signal only when the
//!   driver's own process started the monitor; `Unknown` when it happened while no driver ran.

mod acceleration;
mod attached;
mod channel;
mod command_line;
mod config;
mod context;
mod driver;
mod ending;
mod folder;
mod kernel;
mod launch;
mod network;
mod prepare;
mod qmp;
mod snapshot;
mod vm;
mod vsock;

pub use acceleration::Accelerated;
pub use config::{Acceleration, AgentProbe, Channel, Deadlines, QemuConfig};
pub use driver::QemuDriver;
pub use kernel::MACHINE_ARGUMENT;
