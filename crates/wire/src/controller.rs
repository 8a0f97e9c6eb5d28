//! Controllers as they are shown.

use std::collections::BTreeMap;

use flames_model::{ControllerId, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Amounts of what a host gives to VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    /// Virtual processors.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disk in MiB.
    pub disk_mib: u64,
    /// Machines.
    pub vms: u64,
}

impl From<flames_model::Resources> for Resources {
    fn from(resources: flames_model::Resources) -> Self {
        Self {
            vcpus: resources.vcpus,
            memory_mib: resources.memory_mib,
            disk_mib: resources.disk_mib,
            vms: resources.vms,
        }
    }
}

/// What a host runs VMs with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Driver {
    /// Its name.
    #[schema(example = "qemu")]
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
    /// Whether the network of a VM can be changed while it runs.
    #[serde(default)]
    pub live_network: bool,
}

/// A host's block of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddressBlock {
    /// IPv4.
    #[schema(example = "10.201.16.0/20")]
    pub ipv4: String,
    /// IPv6, when there is a block of it.
    pub ipv6: Option<String>,
    /// How many VMs it has addresses for.
    pub vms: u32,
    /// How many of these are taken.
    pub taken: u32,
}

/// A host's daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Controller {
    /// Its identity.
    #[schema(value_type = String, example = "ctl_01890a5dac96774bbcceb302099a8057")]
    pub id: ControllerId,
    /// Its name.
    pub name: String,
    /// What it offers in all.
    pub capacity: Resources,
    /// What is reserved of it.
    pub reserved: Resources,
    /// What it is chosen by.
    pub labels: BTreeMap<String, String>,
    /// What it runs VMs with.
    pub driver: Driver,
    /// Where its guests have their addresses from; null: they have none of their own.
    #[serde(default)]
    pub address_block: Option<AddressBlock>,
    /// Whether nothing new is placed on it.
    pub cordoned: bool,
    /// How often it has renewed its lease: it is alive while this grows.
    pub renewals: u64,
    /// When it registered first.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it registered last.
    #[schema(value_type = String, format = DateTime)]
    pub registered_at: Timestamp,
}

impl Controller {
    /// What is shown of a controller.
    pub fn new(
        controller: &flames_model::Controller,
        allocation: &flames_model::ControllerAllocation,
        renewals: u64,
    ) -> Self {
        let block = |block: &flames_model::AddressBlock| AddressBlock {
            ipv4: block.ipv4.to_string(),
            ipv6: block.ipv6.map(|block| block.to_string()),
            vms: block.slots(),
            taken: allocation.addresses.count(),
        };
        let driver = &controller.driver;
        Self {
            id: controller.id,
            name: controller.name.to_string(),
            capacity: controller.capacity.into(),
            reserved: allocation.reserved.into(),
            labels: controller.labels.pairs().clone(),
            driver: Driver {
                name: driver.name.clone(),
                version: driver.version.clone(),
                acceleration: driver.acceleration.clone(),
                pause: driver.pause,
                snapshot: driver.snapshot,
                diff_snapshot: driver.diff_snapshot,
                live_network: driver.live_network,
            },
            address_block: controller.address_block.as_ref().map(block),
            cordoned: controller.cordoned,
            renewals,
            created_at: controller.created_at,
            registered_at: controller.registered_at,
        }
    }
}

/// A page of controllers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ControllerList {
    /// The controllers, by id.
    pub items: Vec<Controller>,
    /// Where the next page begins; null: this was the last.
    pub next_cursor: Option<String>,
}
