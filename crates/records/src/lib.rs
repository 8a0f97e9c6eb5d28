//! Typed repositories over a StateStore: the one place that knows keys, codecs, indexes and logs.
//!
//! Reads are methods of [`Records`]. A mutation is a [`Change`]: typed steps that become one atomic commit, so that record,
//! indexes, event, idempotency record and due entry are written together or not at all.
//!
//! # What is stored where
//!
//! | Key | Value | Written by |
//! |---|---|---|
//! | `<project>/vm/<vm>` | [`Vm`](flames_model::Vm) | API, reconciliation |
//! | `<project>/vm/<vm>/inc/<incarnation>` | [`Incarnation`](flames_model::Incarnation) | placement, reports, release |
//! | `<project>/vmname/<name>` | the VM's id | create; removed when wanted deleted |
//! | `<project>/label/<key>\0<value>\0<vm>` | empty | with the VM |
//! | `<project>/imageuse/<image>\0<vm>` | empty | with the VM |
//! | `<project>/gone/<vm>` | [`Tombstone`] | the end of a deletion; kept some days |
//! | `<project>/image/<name>` | [`Image`](flames_model::Image) | API |
//! | `<project>/snapshot/<snapshot>` | [`Snapshot`](flames_model::Snapshot) | API, reports on it |
//! | `<project>/snapshotname/<name>` | the snapshot's id | create; removed with it |
//! | `<project>/snapshotuse/<snapshot>\0<vm>` | empty | with the VM that was made from it |
//! | `<project>/disk/<vm>` | [`Disk`](flames_model::Disk) | first placement; purge |
//! | `<project>/idem/<digest>` | [`Idempotency`] | each mutation of the API |
//! | `<project>/events` (log) | [`Event`](flames_model::Event) | each mutation |
//! | `system/controller/<id>` | [`Controller`](flames_model::Controller) | registration, operators |
//! | `system/controllername/<name>` | the controller's id | registration |
//! | `system/allocation/<id>` | [`ControllerAllocation`](flames_model::ControllerAllocation) | placement, release |
//! | `system/lease/<id>` | [`ControllerLease`](flames_model::ControllerLease) | heartbeats |
//! | `system/credential/<id>` | [`ControllerCredential`] | the first registration over a network |
//! | `system/jointoken/<digest>` | [`JoinToken`] | operators |
//! | `system/assignment/<controller>/<incarnation>` | [`Assignment`](flames_model::Assignment) | reconciliation; the order to take a snapshot: API, reports on it |
//! | `system/assigned/<controller>` (log) | which assignments changed | with the assignment |
//! | `system/due/<shard>/<time>/<project>/<vm>` | empty | whatever makes a VM need attention |
//! | `system/expiry/<time>/<project>/<digest>` | empty | with the idempotency record |
//! | `system/condemned/<blob>` | [`Condemned`] | the sweep of images' blobs |
//! | `system/condemnations` | empty; its version tells that a blob was condemned | with each condemned blob |
//! | `system/events` (log) | [`Event`](flames_model::Event) | what concerns no project |
//!
//! Each value is JSON with a schema number, `{"schema":1,"record":{…}}`. A reader ignores fields that it does not know; a writer
//! refuses to rewrite a record of a newer schema, which would drop them.

mod change;
mod codec;
mod decoded;
mod due;
mod join;
mod keys;
mod reads;
mod snapshots;
mod stored;
mod views;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::{Clock, Monotonic};
use flames_error::Result;
use flames_state::{Committed, StateStore, StateStoreExt};

pub use change::Change;
pub use codec::{IntoShared, Record, Versioned};
use decoded::Decoded;
pub use due::{DUE_SHARDS, DueEntry, DueKey};
pub use flames_state::{Hint, HintStream, Key, Position, Waited};
pub use reads::{AssignmentChange, EventEntry, ListPage, VmEntry, VmFilter};
pub use stored::{
    Condemnations, Condemned, ControllerCredential, Expiry, Idempotency, IdempotencyKey, JoinToken, Outcome,
    Tombstone,
};
pub use views::{ViewColumn, ViewColumnKind, ViewDefinition, views};

/// The most entries that one page of a list reads, filtered or not.
pub const MAX_PAGE: usize = 1_000;

/// Typed access to the store.
#[derive(Debug, Clone)]
pub struct Records {
    store: Arc<dyn StateStore>,
    decoded: Arc<Decoded>,
}

impl Records {
    /// Repositories over `store`.
    pub fn new(store: Arc<dyn StateStore>) -> Self {
        Self { store, decoded: Arc::default() }
    }

    pub(crate) fn store(&self) -> &Arc<dyn StateStore> {
        &self.store
    }

    /// Waits until `read` answers something, or `deadline` passes: subscribes to what changes under `prefix`, reads, waits for a hint
    /// or `poll`, and reads again. See [`StateStoreExt::wait_until`].
    pub fn wait_until<T, F, R>(
        &self,
        clock: &dyn Clock,
        prefix: &Key,
        poll: Duration,
        deadline: Monotonic,
        read: R,
    ) -> impl Future<Output = Result<Waited<T>>> + Send
    where
        T: Send,
        F: Future<Output = Result<Option<T>>> + Send,
        R: FnMut() -> F + Send,
    {
        self.store.wait_until(clock, prefix, poll, deadline, read)
    }

    /// Hints about what changes under `prefix`. Lossy: see [`StateStore::changes`].
    pub async fn changes(&self, prefix: &Key) -> Result<HintStream> {
        self.store.changes(prefix).await
    }

    /// Applies a change whole or not at all.
    ///
    /// Errors: as [`StateStore::commit`]. After `Conflict` or `OutcomeUnknown`: read again and decide anew, which is right for every
    /// change that follows from what is stored.
    pub async fn apply(&self, change: Change) -> Result<Committed> {
        let (commit, written) = change.into_commit()?;
        let committed = self.store.commit(&commit).await?;
        self.decoded.keep_written(committed.version, written);
        Ok(committed)
    }

    /// As [`Records::apply`] for a change that a caller asked for: an unknown outcome is resolved by submitting the same commit
    /// again and reading the key that is unique to it, so that nothing is done twice.
    pub async fn apply_knowing(&self, change: Change) -> Result<()> {
        let Some(operation_key) = change.operation_key().cloned() else {
            return self.apply(change).await.map(|_| ());
        };
        let (commit, written) = change.into_commit()?;
        if let Some(committed) = self.store.commit_knowing(&commit, &operation_key, 4).await? {
            self.decoded.keep_written(committed.version, written);
        }
        Ok(())
    }

    /// The prefix under which everything of one VM changes, for waiting on hints.
    pub fn vm_prefix(project: &flames_model::ProjectName, vm: flames_model::VmId) -> Result<Key> {
        keys::vm(project, vm)
    }

    /// The name of a project's log of events (none: the system's), for waiting on hints.
    pub fn events_log(project: Option<&flames_model::ProjectName>) -> Result<Key> {
        keys::events(project)
    }

    /// The prefix of a project's images, for waiting on hints.
    pub fn images_prefix(project: &flames_model::ProjectName) -> Result<Key> {
        keys::images(project)
    }

    /// The prefix under which the VMs of a project change, for waiting on hints.
    pub fn vms_prefix(project: &flames_model::ProjectName) -> Result<Key> {
        keys::vms(project)
    }

    /// The VM that a key of [`Records::vms_prefix`] belongs to; its current incarnation's key is one too.
    pub fn vm_of_key(project: &flames_model::ProjectName, key: &Key) -> Option<flames_model::VmId> {
        let prefix = keys::vms(project).ok()?;
        let rest = key.as_bytes().strip_prefix(prefix.as_bytes())?;
        std::str::from_utf8(rest).ok()?.split('/').next()?.parse().ok()
    }

    /// The name of the log of a controller's assignments, for waiting on hints.
    pub fn assigned_log(controller: flames_model::ControllerId) -> Result<Key> {
        keys::assigned_log(controller)
    }

    /// The prefix of all due entries of all shards, for waiting on hints.
    pub fn due_prefix() -> Result<Key> {
        keys::due_prefix()
    }

    /// Removes the entries of a project's log of events (none: the system's) up to and including `through`.
    pub async fn trim_events(
        &self,
        project: Option<&flames_model::ProjectName>,
        through: Position,
    ) -> Result<()> {
        self.store.trim_log(&keys::events(project)?, through).await
    }

    /// Removes what a controller was told of already, up to and including `through`.
    pub async fn trim_assigned(
        &self,
        controller: flames_model::ControllerId,
        through: Position,
    ) -> Result<()> {
        self.store.trim_log(&keys::assigned_log(controller)?, through).await
    }
}
