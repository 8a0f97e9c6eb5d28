//! Snapshots.

use std::time::Duration;

use flames_error::Result;
use flames_wire::{
    CreateSnapshot, RestoreSnapshot, Snapshot, SnapshotList, SnapshotListQuery, SnapshotWaitQuery,
    SnapshotWaitResult, Vm,
};
use http::Method;

use crate::Mutation;
use crate::client::{Client, segment};

fn snapshot_path(snapshot: &str, rest: &str) -> String {
    format!("/v1/snapshots/{}{rest}", segment(snapshot))
}

impl Client {
    /// Asks for a snapshot of a running or paused VM.
    ///
    /// Errors: `NotFound`; `Conflict` when it neither runs nor is paused, or another snapshot of it is under way; `AlreadyExists` for its name;
    /// `NotSupported`; `Unavailable`; `OutcomeUnknown`.
    pub async fn create_snapshot(
        &self,
        vm: &str,
        create: &CreateSnapshot,
        mutation: &Mutation,
    ) -> Result<Snapshot> {
        let path = format!("/v1/vms/{}/snapshots", segment(vm));
        let call = self.call("client.create_snapshot", Method::POST, path);
        call.headers(mutation.headers()?).json(create)?.read().await
    }

    /// A snapshot, by id or name. Errors: `NotFound`.
    pub async fn get_snapshot(&self, snapshot: &str) -> Result<Snapshot> {
        self.call("client.get_snapshot", Method::GET, snapshot_path(snapshot, "")).read().await
    }

    /// A page of snapshots.
    pub async fn list_snapshots(&self, query: &SnapshotListQuery) -> Result<SnapshotList> {
        self.call("client.list_snapshots", Method::GET, "/v1/snapshots".to_owned()).query(query)?.read().await
    }

    /// All snapshots that the query takes, page by page.
    pub async fn list_all_snapshots(&self, query: &SnapshotListQuery) -> Result<Vec<Snapshot>> {
        let mut query = query.clone();
        let mut snapshots = Vec::new();
        loop {
            let page = self.list_snapshots(&query).await?;
            snapshots.extend(page.items);
            match page.next_cursor {
                Some(cursor) => query.cursor = Some(cursor),
                None => return Ok(snapshots),
            }
        }
    }

    /// Waits until a snapshot is ready. Not reaching it is no error. The server may cut the time; ask again.
    ///
    /// Errors: `NotFound`; `Unavailable`.
    pub async fn wait_snapshot(&self, snapshot: &str, timeout: Duration) -> Result<SnapshotWaitResult> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).min(3_600_000);
        let call = self.call("client.wait_snapshot", Method::GET, snapshot_path(snapshot, "/wait"));
        call.query(&SnapshotWaitQuery { timeout_ms: Some(timeout_ms) })?.waits(timeout).read().await
    }

    /// Removes a snapshot. Errors: `NotFound`; `Conflict` while a VM is still to be loaded from it; `Unavailable`; `OutcomeUnknown`.
    pub async fn delete_snapshot(&self, snapshot: &str, mutation: &Mutation) -> Result<()> {
        let call = self.call("client.delete_snapshot", Method::DELETE, snapshot_path(snapshot, ""));
        call.headers(mutation.headers()?).finish().await
    }

    /// Makes a VM of a snapshot.
    ///
    /// Errors: `NotFound`; `Conflict` when the snapshot is not ready; `AlreadyExists` for the VM's name; `InvalidInput`; `Unavailable`;
    /// `OutcomeUnknown`.
    pub async fn restore_snapshot(
        &self,
        snapshot: &str,
        restore: &RestoreSnapshot,
        mutation: &Mutation,
    ) -> Result<Vm> {
        let call = self.call("client.restore_snapshot", Method::POST, snapshot_path(snapshot, "/restore"));
        call.headers(mutation.headers()?).json(restore)?.read().await
    }
}
