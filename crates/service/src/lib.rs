//! What the API means: business logic in domain types. No HTTP, no JSON, no SQL.
//!
//! A [`Service`] is cheap to clone and has no state of its own: every replica answers the same, since all that is true stands in
//! the StateStore. Every call takes a [`Caller`]; every mutation takes a [`Mutation`], which makes it safe to send twice.
//!
//! Errors carry a stable code ([`codes`]), documented in `docs/errors/<CODE>.md`.

mod caller;
pub mod codes;
mod controllers;
mod differences;
mod events;
mod host;
mod host_blobs;
mod images;
mod join;
mod links;
mod mutation;
mod networks;
mod report;
mod restores;
mod snapshot_reports;
mod snapshots;
mod sweep;
mod urls;
mod view;
mod vms;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use flames_blob::BlobStore;
use flames_clock::{Clock, IdSource, Random};

pub use caller::{Caller, Mutation, RequestKey};
pub use controllers::ControllerView;
pub use differences::{NewSnapshot, NewSnapshotKind};
pub use events::EventStream;
pub use flames_blob as blob;
pub use flames_records::{EventEntry, JoinToken, ListPage, Position, Records, VmFilter};
pub use host::{Assigned, AssignedChanges, HostProof, HostSession, Register, Registered, Renewed};
pub use host_blobs::HostBlobs;
pub use images::{DeviceNodes, ImageImporter, ImportProgress, Imported, NewImage};
pub use join::NewJoinToken;
pub use links::{HostLinks, LinkChannel, LinkStream, LinkTarget, NoLinks, ProcessSpec};
pub use report::ReportOutcome;
pub use restores::RestoreSnapshot;
pub use snapshot_reports::SnapshotReportOutcome;
pub use snapshots::{SnapshotRef, SnapshotWait};
pub use sweep::{ImageSweeper, SweepConfig, Swept};
pub use urls::{NoUrls, PortUrls};
pub use view::{VmRef, VmView};
pub use vms::CreateVm;
pub use wait::{WaitFor, WaitOutcome};

/// How long and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConfig {
    /// How long a request with an idempotency key is replayed.
    pub idempotency_kept: Duration,
    /// How long an event is kept.
    pub events_kept: Duration,
    /// How long a controller's lease renewal is good for.
    pub lease: Duration,
    /// How often a waiter reads again though no hint came.
    pub poll: Duration,
    /// How long one wait may last at most.
    pub longest_wait: Duration,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            idempotency_kept: Duration::from_secs(24 * 3_600),
            events_kept: Duration::from_secs(7 * 24 * 3_600),
            lease: Duration::from_secs(15),
            poll: Duration::from_secs(2),
            longest_wait: Duration::from_secs(300),
        }
    }
}

/// What a [`Service`] stands on.
#[derive(Debug, Clone)]
pub struct ServiceParts {
    /// The source of truth.
    pub records: Records,
    /// Where images lie.
    pub blobs: Arc<dyn BlobStore>,
    /// How an archive becomes an image.
    pub importer: Arc<dyn ImageImporter>,
    /// How bytes reach a guest.
    pub links: Arc<dyn HostLinks>,
    /// Under which URLs ports of VMs are reached.
    pub urls: Arc<dyn PortUrls>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Ids.
    pub ids: Arc<dyn IdSource>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// How long and how often.
    pub config: ServiceConfig,
}

/// What the API means. See the crate's docs.
#[derive(Debug, Clone)]
pub struct Service {
    parts: Arc<ServiceParts>,
}

impl Service {
    /// A service over these parts.
    pub fn new(parts: ServiceParts) -> Self {
        Self { parts: Arc::new(parts) }
    }

    /// The source of truth.
    pub fn records(&self) -> &Records {
        &self.parts.records
    }

    /// Where images lie.
    pub fn blobs(&self) -> &Arc<dyn BlobStore> {
        &self.parts.blobs
    }

    /// Time.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.parts.clock
    }

    /// How long and how often.
    pub fn config(&self) -> &ServiceConfig {
        &self.parts.config
    }
}
