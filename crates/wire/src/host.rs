//! What controllers say to the control plane and hear from it (`/host/v1`). Never part of the public API: an assignment carries
//! secrets, and these types carry the model's own.
//!
//! | Call | Request | Answer |
//! |---|---|---|
//! | `POST /host/v1/register` | [`RegisterRequest`] | [`Registered`] |
//! | `POST /host/v1/renew` | nothing | [`Renewed`] |
//! | `GET /host/v1/assignments?after=&limit=` | nothing | [`AssignmentsPage`] |
//! | `GET /host/v1/changes?after=&wait_ms=` | nothing | [`Changes`], as soon as there are any |
//! | `POST /host/v1/snapshots` | [`SnapshotReport`] | [`SnapshotReported`] |
//! | `POST /host/v1/reports` | [`ReportBatch`] | [`ReportOutcomes`], in the order of the reports |
//!
//! All but the first name the session in the headers [`CONTROLLER_HEADER`] and [`SESSION_HEADER`].

use std::sync::Arc;

pub use flames_model::{
    AddressBlock, Assignment, ControllerId, DriverInfo, IncarnationId, Labels, Report, Resources,
    SessionToken, SnapshotReport, VmName,
};
use serde::{Deserialize, Serialize};

/// The header that names the controller.
pub const CONTROLLER_HEADER: &str = "x-flames-controller";
/// The header that names its registration.
pub const SESSION_HEADER: &str = "x-flames-session";
/// The most reports of one batch.
pub const MAX_REPORTS: usize = 256;
/// The most assignments of one page.
pub const MAX_ASSIGNMENTS: usize = 256;

/// A controller, as the registration that was made last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSession {
    /// Which controller.
    pub controller: ControllerId,
    /// Its registration.
    pub session: SessionToken,
}

/// What a controller says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// Its identity, kept in the host's data folder.
    pub id: ControllerId,
    /// Its name.
    pub name: VmName,
    /// What it offers.
    pub capacity: Resources,
    /// What it is chosen by.
    pub labels: Labels,
    /// What it runs VMs with.
    pub driver: DriverInfo,
    /// Where its guests have their addresses from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_block: Option<AddressBlock>,
}

/// What a registration gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// To be named in every further call.
    pub session: HostSession,
    /// How long a lease renewal is good for, in milliseconds: renew at a third of it.
    pub lease_ms: u64,
    /// From where on to follow changes; what stood before is read page by page.
    pub changes_from: String,
}

/// What a renewal tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// How long this renewal is good for, in milliseconds.
    pub lease_ms: u64,
}

/// A page of what is assigned to a controller, by incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentsPage {
    /// The assignments.
    pub items: Vec<Assignment>,
    /// Behind which incarnation the next page begins; null: this was the last.
    pub next: Option<IncarnationId>,
}

/// One assignment as a controller learns of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// Which incarnation.
    pub incarnation: IncarnationId,
    /// What to make of it; null: it is not assigned (any more), and nothing of it is to be left on the host.
    pub assignment: Option<Arc<Assignment>>,
}

/// Changes of assignments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Each changed assignment as it is now, once. Empty: nothing changed in that time.
    pub changed: Vec<Assigned>,
    /// From where on to go on.
    pub next: String,
}

/// Reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportBatch {
    /// At most [`MAX_REPORTS`].
    pub reports: Vec<Report>,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportOutcome {
    /// It was taken, or had been taken already.
    Taken,
    /// It was not taken, and never will be: it speaks of a placement or a time that is over.
    Stale,
    /// The control plane knows of no such incarnation: nothing of it is to be left on the host.
    Unknown,
    /// The incarnation is another controller's.
    Forbidden,
}

/// What became of a report on a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotReportOutcome {
    /// It was taken.
    Taken,
    /// It was not taken: the snapshot is finished, or is nobody's any more. Nothing of it is to be left on the host.
    Over,
    /// It says `ready` of what was not named before: name it first.
    NotNamed,
}

/// The answer to a report on a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReported {
    /// What became of it.
    pub outcome: SnapshotReportOutcome,
}

/// What became of the reports of a batch, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportOutcomes {
    /// One for each report.
    pub outcomes: Vec<ReportOutcome>,
}
