//! Records that only the control plane sees.

use flames_clock::Timestamp;
use flames_model::{Actor, ControllerId, ImageName, Incarnation, ProjectName, SnapshotId, Vm, VmId};
use serde::{Deserialize, Serialize};

/// What is kept of a deleted VM for some days.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The VM at its end.
    pub vm: Vm,
    /// Its last incarnation.
    pub incarnation: Option<Incarnation>,
}

/// That a blob is about to be removed, since nothing names it.
///
/// From this record's commit on nothing may begin to name the blob, until the record is gone again: see
/// [`Change::keep_blob`](crate::Change::keep_blob). So what is found to name it after that commit is all that ever will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    /// The blob's key.
    pub blob: String,
    /// Who removes it: a number that each sweeper draws for itself. Only that one may remove the blob.
    pub by: u64,
    /// When it was condemned, for people.
    pub at: Timestamp,
}

/// What a controller proves itself with when it registers over a network. The secret is the controller's own, and never stored here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerCredential {
    /// Whose.
    pub controller: ControllerId,
    /// The BLAKE3 digest of its secret, as 64 hex digits.
    pub digest: String,
    /// When it joined.
    pub since: Timestamp,
}

/// A token with which controllers join that are not known yet. The token itself is told once, to who asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The BLAKE3 digest of the token, as 64 hex digits.
    pub digest: String,
    /// Who asked for it.
    pub by: Actor,
    /// When.
    pub created_at: Timestamp,
    /// Until when it holds.
    pub expires_at: Timestamp,
}

impl JoinToken {
    /// What it is called by: the first digits of its digest, from which nobody can tell the token.
    pub fn id(&self) -> &str {
        self.digest.get(..12).unwrap_or(&self.digest)
    }
}

/// How often blobs were condemned, as an opaque value. See [`Change::keep_blob`](crate::Change::keep_blob).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condemnations(pub(crate) Option<flames_state::Version>);

/// What identifies one request that may be sent again: a digest over caller, route and the client's key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey {
    /// Whose.
    pub project: ProjectName,
    /// 64 hex digits.
    pub digest: String,
}

/// What came of a request, as domain ids: never a response's bytes, never an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// This VM was created or changed.
    Vm(VmId),
    /// This image was added or replaced.
    Image(ImageName),
    /// This image was removed.
    ImageRemoved(ImageName),
    /// This snapshot was asked for.
    Snapshot(SnapshotId),
    /// This snapshot was removed.
    SnapshotRemoved(SnapshotId),
    /// This controller was changed.
    Controller(ControllerId),
    /// This controller was removed.
    ControllerRemoved(ControllerId),
}

/// That a request was carried out, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// A digest of the request's body: the same key with another body is a mistake of the client's.
    pub body_digest: String,
    /// What came of it.
    pub outcome: Outcome,
    /// Until when it is kept.
    pub expires_at: Timestamp,
}

/// An idempotency record whose time is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// When it expired.
    pub at: Timestamp,
    /// Which record.
    pub key: IdempotencyKey,
}
