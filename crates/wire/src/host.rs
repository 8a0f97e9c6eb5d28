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
//! | `GET /host/v1/blobs/<key>?from=&to=` | nothing | its bytes from `from` until before `to`, with the headers `x-flames-blob-…` |
//! | `HEAD /host/v1/blobs/<key>` | nothing | those headers |
//! | `PUT /host/v1/blobs/<key>` | its bytes, with headers | 201, those headers |
//! | `GET /host/v1/link`, `Upgrade: flames-link` | nothing | 101, and the connection is a link |
//!
//! All but the first name the session in the headers [`CONTROLLER_HEADER`] and [`SESSION_HEADER`]. Over a network the first bears the
//! controller's own secret in [`SECRET_HEADER`], and, from a controller that is not known yet, a join token as bearer token.
//!
//! A link carries yamux streams (<https://github.com/hashicorp/yamux/blob/master/spec.md>), which the server opens. A stream carries messages:
//! their length in four bytes, big-endian, then that many bytes. The first is a [`LinkOpen`] as JSON, of at most [`MAX_LINK_OPEN`] bytes; the
//! controller answers it with a [`LinkAnswer`] as JSON. What follows in both directions are frames of [`crate::stream`], of at most
//! [`MAX_LINK_FRAME`] bytes. An empty message ends a direction: one that ends without it was cut off.

use std::sync::Arc;

pub use flames_model::{
    AddressBlock, Assignment, ControllerId, DriverInfo, IncarnationId, Labels, Report, Resources,
    SessionToken, SnapshotReport, VmName,
};
use serde::{Deserialize, Serialize};

use crate::Problem;
use crate::stream::StreamRequest;

/// The header that names the controller.
pub const CONTROLLER_HEADER: &str = "x-flames-controller";
/// The header that names its registration.
pub const SESSION_HEADER: &str = "x-flames-session";
/// The header in which a controller that registers over a network proves itself: 64 hex digits that it drew itself. The control plane keeps a
/// digest of it.
pub const SECRET_HEADER: &str = "x-flames-controller-secret";
/// The header with a blob's whole length in bytes; of a put the length that it must have.
pub const BLOB_SIZE_HEADER: &str = "x-flames-blob-size";
/// The header with a blob's digest, `sha256:` and 64 hex digits; of a put the digest that it must have.
pub const BLOB_DIGEST_HEADER: &str = "x-flames-blob-digest";
/// The header that says when a blob was stored (RFC 3339).
pub const BLOB_STORED_AT_HEADER: &str = "x-flames-blob-stored-at";
/// The header with the pairs that are kept with a blob, as a JSON object of texts.
pub const BLOB_METADATA_HEADER: &str = "x-flames-blob-metadata";
/// The header of a refusal that says of which kind it is (`flames_error::ErrorKind`): an answer to `HEAD` has nothing else.
pub const BLOB_PROBLEM_HEADER: &str = "x-flames-blob-problem";
/// The header that says at which byte of the blob an answer begins.
pub const BLOB_FROM_HEADER: &str = "x-flames-blob-from";
/// The header that says before which byte of the blob an answer ends.
pub const BLOB_TO_HEADER: &str = "x-flames-blob-to";
/// What a connection is upgraded to that becomes a link.
pub const LINK_PROTOCOL: &str = "flames-link";
/// The longest [`LinkOpen`], in bytes.
pub const MAX_LINK_OPEN: usize = 1024 * 1024;
/// The longest frame of a link's stream, in bytes.
pub const MAX_LINK_FRAME: usize = 128 * 1024;
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

/// The first message of a stream over a link: whose guest is meant, and what for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkOpen {
    /// Which incarnation.
    pub incarnation: IncarnationId,
    /// What for.
    pub request: StreamRequest,
}

/// What a controller answers to a [`LinkOpen`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkAnswer {
    /// It serves the stream.
    Accepted,
    /// It does not, and nothing follows.
    Refused(Box<Problem>),
}
