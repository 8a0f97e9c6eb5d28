//! VmDriver over Firecracker behind its jailer: what production runs. Needs root, /dev/kvm, and a static Firecracker with its jailer.
//!
//! * **One process per VM**, behind the jailer: a user, a chroot, control groups and a network namespace of its own
//!   (`flames-firecracker-jail`). It outlives the driver and is found again by (boot id, pid, start time, jail, incarnation). `folder` lists
//!   the records of this driver, `launch` every point at which one may be killed.
//! * **The machine** follows from the prepared record alone, and every file has the same place in every jail, so a saved guest is loaded
//!   into the same machine without a word about where its files are now. A load is checked before the guest runs: what Firecracker has
//!   loaded must be the machine of the record.
//! * **The agent** is reached by vsock, many connections, in both directions. The guest's configuration is the last disk, read-only,
//!   filled up with zeros to a whole sector.
//! * **The network** is a tap in the incarnation's own namespace, under a policy (`flames-firecracker-network`); a machine without one is put
//!   into an empty namespace. A restored guest has the MAC address that it was saved with until its agent sets the one of its record, and
//!   the network takes packets of that one only.
//! * **Spares**: [`FirecrackerConfig::spare_monitors`] of jailed Firecrackers wait for their machines (`spares`), so that a start has neither
//!   to wait for the jailer nor for Firecracker.
//! * **Snapshots**, full and diff, hold memory and devices, and not the disks' content. A diff stands on the snapshot taken before it, and is
//!   put together with it at a start; so both must be there, in the folder where they were taken.
//! * **Pause**: a guest's vsock connections end with a snapshot of it, and with a resume on Firecracker 1.16; its processes go on.
//! * **Stop**: the power button is Ctrl, Alt and Delete. After the grace Firecracker is killed; its disks are the kernel's by then, so nothing
//!   that the guest has flushed is lost.
//! * **The console** is on disk at most [`FirecrackerConfig::console_log_limit`] bytes per VM, taken at most at
//!   [`FirecrackerConfig::console_bytes_per_second`]. What a guest writes beyond that, or while no driver runs and 64 KiB wait already, is
//!   dropped: nothing grows and no guest is held up.
//! * **How an exit is told**: [`flames_vmm::ExitCause::Guest`] when Firecracker exited with 0, which it does by itself only when its guest
//!   reboots or halts. The code is its status when this process has started it, else what its log says. `Unknown` when neither tells.
//! * **A start that leaves paused** pauses a guest that is booted after its first instructions, since Firecracker boots running; one that is
//!   loaded runs nothing.

mod attached;
mod config;
mod context;
mod driver;
mod ending;
mod folder;
mod kernel;
mod launch;
mod machine;
mod network;
mod pipe;
mod prepare;
mod saved;
mod snapshot;
mod spares;
mod updating;
mod vm;
mod vsock;

pub use config::{AtMilestone, Deadlines, FirecrackerConfig, Milestone, Milestones};
pub use driver::FirecrackerDriver;
pub use flames_firecracker_jail::{JailConfig, SlotRange, Watchdog};
pub use flames_firecracker_network::{Blocks, ClusterName, NetworkConfig};
