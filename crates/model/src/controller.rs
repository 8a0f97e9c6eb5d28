//! Hosts and what they have.

use std::ops::{Add, Sub};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::cut;
use crate::{
    AddressBlock, AddressSlots, ControllerId, CpuFacts, DriverNetwork, GuestAddress, Labels, SessionToken,
    VmName,
};

/// Amounts of what a host gives to VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Virtual processors.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disk in MiB.
    pub disk_mib: u64,
    /// Machines, however small: each costs a process.
    pub vms: u64,
}

impl Resources {
    /// Whether `wanted` fits into these.
    pub fn fit(&self, wanted: &Resources) -> bool {
        wanted.vcpus <= self.vcpus
            && wanted.memory_mib <= self.memory_mib
            && wanted.disk_mib <= self.disk_mib
            && wanted.vms <= self.vms
    }
}

impl Add for Resources {
    type Output = Resources;
    /// Saturates, so that a corrupt record cannot wrap around to "plenty free".
    fn add(self, other: Resources) -> Resources {
        Resources {
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_mib: self.disk_mib.saturating_add(other.disk_mib),
            vms: self.vms.saturating_add(other.vms),
        }
    }
}

impl Sub for Resources {
    type Output = Resources;
    /// Stops at zero.
    fn sub(self, other: Resources) -> Resources {
        Resources {
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_mib: self.disk_mib.saturating_sub(other.disk_mib),
            vms: self.vms.saturating_sub(other.vms),
        }
    }
}

/// A driver that a host offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverInfo {
    /// Its name (`qemu`).
    pub name: String,
    /// The monitor's version, when there is one.
    pub version: Option<String>,
    /// What accelerates it, and why not something faster.
    pub acceleration: String,
    /// Whether pause and resume work.
    pub pause: bool,
    /// Whether guests can be saved, and started from what was saved.
    #[serde(default)]
    pub snapshot: bool,
    /// Whether what changed since a snapshot can be saved alone.
    #[serde(default)]
    pub diff_snapshot: bool,
    /// The processor that its guests see.
    #[serde(default)]
    pub cpu: CpuFacts,
    /// The digest of the kernel that guests boot which name none, when there is one.
    #[serde(default)]
    pub default_kernel: Option<String>,
    /// How it connects guests.
    #[serde(default)]
    pub network: DriverNetwork,
    /// Whether the network of a VM can be changed while it runs, for VMs with an address of their own.
    #[serde(default)]
    pub live_network: bool,
}

impl DriverInfo {
    /// The longest text, in bytes. No text has control characters.
    pub const MAX_TEXT: usize = 256;

    /// A text for readers that a driver may have: one that is too long is cut, and control characters become spaces, since part of it may be what
    /// a monitor said as it failed.
    pub fn text(text: impl AsRef<str>) -> String {
        cut(text.as_ref(), Self::MAX_TEXT)
    }

    /// Whether each of its texts is one that [`DriverInfo::text`] gives.
    pub fn is_bounded(&self) -> bool {
        let cpu = &self.cpu;
        [&self.name, &self.acceleration, &cpu.vendor, &cpu.model, &cpu.features]
            .into_iter()
            .chain(&self.version)
            .chain(&self.default_kernel)
            .all(|text| text.len() <= Self::MAX_TEXT && !text.contains(char::is_control))
    }
}

/// A host's daemon: its identity and what it offers. Written by registration and by operators only; a heartbeat does not touch it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controller {
    /// Its identity, kept in the host's data folder.
    pub id: ControllerId,
    /// Its name, unique.
    pub name: VmName,
    /// What it offers in all.
    pub capacity: Resources,
    /// What it is chosen by.
    pub labels: Labels,
    /// What it runs VMs with.
    pub driver: DriverInfo,
    /// Where its guests have their addresses from; none: they have none of their own. Not changed while any is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_block: Option<AddressBlock>,
    /// Whether nothing new is placed here.
    pub cordoned: bool,
    /// Its present registration. Calls that name another are refused.
    pub session: SessionToken,
    /// When it registered first.
    pub created_at: Timestamp,
    /// When it registered last.
    pub registered_at: Timestamp,
}

/// What is reserved on a controller. Written by placement and release only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerAllocation {
    /// The controller.
    pub controller: ControllerId,
    /// The sums of what its unreleased incarnations and its persistent disks hold.
    pub reserved: Resources,
    /// Which places of its address block they hold. Each is held by one unreleased incarnation.
    #[serde(default, skip_serializing_if = "AddressSlots::is_empty")]
    pub addresses: AddressSlots,
}

impl ControllerAllocation {
    /// Of a controller on which nothing is reserved.
    pub fn empty(controller: ControllerId) -> Self {
        Self { controller, reserved: Resources::default(), addresses: AddressSlots::default() }
    }

    /// What is left when these resources and this place are given back.
    pub fn without(&self, resources: Resources, address: Option<&GuestAddress>) -> Self {
        let mut left = Self { reserved: self.reserved - resources, ..self.clone() };
        if let Some(address) = address {
            left.addresses.remove(address.slot);
        }
        left
    }
}

/// A controller's sign of life. Written by heartbeats only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerLease {
    /// The controller.
    pub controller: ControllerId,
    /// The registration that renews it.
    pub session: SessionToken,
    /// Grows with each renewal. A reader judges the lease by its own monotonic clock since it last saw this move.
    pub renewals: u64,
    /// How long a renewal is good for, in milliseconds.
    pub duration_ms: u64,
}
