//! How a VM is connected: what it may reach, where its addresses come from, and which host can do what is asked.

mod address;
mod range;
mod slots;
mod spec;

pub use address::{AddressBlock, GuestAddress};
pub use range::{IpRange, METADATA_RANGES, SPECIAL_RANGES};
pub use slots::AddressSlots;
pub use spec::{Bandwidth, DomainPattern, DriverNetwork, Egress, NetworkSpec, PortRange};
