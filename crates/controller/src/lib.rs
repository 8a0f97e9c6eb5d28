//! The host daemon: pulls what this host should run, drives a [`VmDriver`](flames_vmm::VmDriver), and reports what is.
//!
//! A [`Controller`] is a library: the binary gives it its [`ControllerParts`], and the testbed gives it simulated ones. Inside:
//!
//! * `follow` registers, renews the lease, reads all assignments and follows their changes.
//! * `supervisor` keeps the books: it takes up what an earlier process left, and gives each incarnation that has something to do a
//!   `worker`, which brings its machine to what is wanted.
//! * `snapshots` keeps saved guests until they are stored, and what guests are loaded from.
//! * `report` carries what the workers say to the control plane, and keeps the newest of it while that cannot be reached.
//! * `sweep` has what was made local removed when no VM here needs it.
//! * [`GuestStreams`] serves exec, attach, files, logs, consoles and TCP connections.
//!
//! It can be stopped at any await and started again over the same [`HostFolder`]: VMs run on. Only the control plane's word ends a VM,
//! never its silence.

mod artefacts;
mod backoff;
mod capacity;
mod config;
mod controller;
mod folder;
mod follow;
mod guest;
mod machine;
mod network;
mod record;
mod report;
mod session;
mod shared;
mod snapshots;
mod streams;
mod supervisor;
mod sweep;
mod worker;

pub use artefacts::{Artefacts, LocalArtefacts};
pub use capacity::{Offer, detect_capacity};
pub use config::{Bounds, ControllerConfig, Refused, Superseded, Timings};
pub use controller::{Controller, ControllerParts, ShutdownMode};
pub use folder::{
    CONSOLE_KEPT, DEFAULT_OUTPUT_KEPT, FileFolder, HostFolder, Kept, MAX_ENTRY, MemoryFolder, OutputEntry,
    OutputPage,
};
pub use guest::{
    AgentConnector, Guest, GuestConnector, GuestFileWriter, GuestInput, GuestOutput, GuestProcess,
};
pub use record::{Ending, IncarnationRecord, RECORD_SCHEMA, RecordPhase, RestoredAgent, Saving, SavingStage};
pub use session::Sessions;
pub use snapshots::{DiskFiles, SnapshotFiles, SnapshotStore, chunk};
pub use streams::{AcceptedStream, GuestStreams};
