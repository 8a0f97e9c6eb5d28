//! The agent inside a VM: PID 1 or a service, one static binary.
//!
//! - [`Agent`] knows the processes of the guest and serves the operations of `flames-guest-protocol` over any byte
//!   stream. It owns no thread and starts nothing that does not end with it.
//! - `channel` finds the byte stream: the virtio-serial port `flames.agent`, or vsock.
//! - `boot` is what PID 1 does before and after: mounts, network, root switch, reaping, power-off.
//!
//! As PID 1 it is `/init` of an initramfs; see the crate's `README.md` for the layout and a QEMU command line.

mod agent;
pub mod boot;
pub mod channel;
mod clock;
pub mod console;
mod operation;
mod process;
mod reaper;
mod restored;
mod user;
mod watched;

pub use agent::{Agent, AgentOptions, ShutdownSignal};
