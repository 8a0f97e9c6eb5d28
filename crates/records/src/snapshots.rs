//! Snapshots: reads, and the steps of changes that concern them.

use flames_error::Result;
use flames_model::{
    Assignment, Event, EventKind, ProjectName, Reason, Snapshot, SnapshotId, SnapshotName, SnapshotState,
    VmId, failed_snapshot,
};
use flames_state::{Check, KeyRange, PageRequest};

use crate::codec::Versioned;
use crate::reads::last_segment;
use crate::stored::Condemnations;
use crate::{Change, ListPage, Records, keys};

impl Change {
    /// Adds a snapshot. `Conflict` when its id or its name is taken.
    pub fn insert_snapshot(&mut self, new: &Snapshot) -> &mut Self {
        self.insert(keys::snapshot(&new.project, new.id), new).step(|commit| {
            let name = keys::snapshot_name(&new.project, &new.name)?;
            commit.check(Check::Absent(name.clone())).put(name, new.id.to_string());
            Ok(())
        })
    }

    /// Replaces a snapshot of the same name.
    pub fn update_snapshot(&mut self, old: &Versioned<Snapshot>, new: &Snapshot) -> &mut Self {
        self.replace(keys::snapshot(&old.project, old.id), old, new)
    }

    /// Removes a snapshot and frees its name.
    pub fn remove_snapshot(&mut self, old: &Versioned<Snapshot>) -> &mut Self {
        self.remove(keys::snapshot(&old.project, old.id), old).step(|commit| {
            commit.delete(keys::snapshot_name(&old.project, &old.name)?);
            Ok(())
        })
    }

    /// Proves that a snapshot is as it was read.
    pub fn require_snapshot(&mut self, read: &Versioned<Snapshot>) -> &mut Self {
        self.require(keys::snapshot(&read.project, read.id), read)
    }

    /// As [`Change::keep_blob`] for several at once. Those that are too many to be checked one by one are for the caller to look up among
    /// [`Records::all_condemned`], after `since` was read.
    pub fn keep_blobs(&mut self, blobs: &[&str], since: Condemnations) -> &mut Self {
        self.step(|commit| {
            for blob in blobs {
                commit.check(Check::Absent(keys::condemned_blob(blob)?));
            }
            let key = keys::condemnations()?;
            commit.check(match since.0 {
                Some(version) => Check::At(key, version),
                None => Check::Absent(key),
            });
            Ok(())
        })
    }

    /// Says that a VM begins from a snapshot; it stands as long as the VM's record does. Part of adding the VM.
    pub(crate) fn snapshot_use(
        project: &ProjectName,
        snapshot: SnapshotId,
        vm: VmId,
    ) -> Result<flames_state::Key> {
        keys::snapshot_use(project, snapshot, vm)
    }

    /// Fails the snapshot that an assignment orders, if it is under way: for whoever removes the assignment.
    pub(crate) fn fail_snapshot(
        &mut self,
        snapshot: &Versioned<Snapshot>,
        reason: Reason,
        event: Event,
    ) -> &mut Self {
        let failed = failed_snapshot(snapshot, reason, event.at);
        self.update_snapshot(snapshot, &failed).event(Some(&snapshot.project), &event)
    }
}

impl Records {
    /// A snapshot.
    pub async fn snapshot(
        &self,
        project: &ProjectName,
        id: SnapshotId,
    ) -> Result<Option<Versioned<Snapshot>>> {
        self.read(keys::snapshot(project, id)?).await
    }

    /// The id of the snapshot that has this name.
    pub async fn snapshot_named(
        &self,
        project: &ProjectName,
        name: &SnapshotName,
    ) -> Result<Option<SnapshotId>> {
        self.read_id(keys::snapshot_name(project, name)?).await
    }

    /// A page of snapshots, by id.
    pub async fn snapshots(
        &self,
        project: &ProjectName,
        after: Option<SnapshotId>,
        limit: usize,
    ) -> Result<ListPage<Versioned<Snapshot>, SnapshotId>> {
        let after = after.map(|id| keys::snapshot(project, id)).transpose()?;
        let page = self.read_page::<Snapshot>(keys::snapshots(project)?, after, limit).await?;
        let next = page.next.and(page.items.last().map(|snapshot| snapshot.id));
        Ok(ListPage { items: page.items, next })
    }

    /// VMs that were made from a snapshot and are not gone, behind `after`: at most `limit`. Whether they still need it, they tell themselves.
    pub async fn snapshot_users(
        &self,
        project: &ProjectName,
        snapshot: SnapshotId,
        after: Option<VmId>,
        limit: usize,
    ) -> Result<Vec<VmId>> {
        let range = KeyRange::prefix(&keys::snapshot_use_prefix(project, snapshot)?);
        let after = after.map(|vm| keys::snapshot_use(project, snapshot, vm)).transpose()?;
        let page =
            self.store().scan(&range, PageRequest { after, limit: limit.clamp(1, crate::MAX_PAGE) }).await?;
        page.entries.iter().map(|entry| last_segment(&entry.key, '\0')).collect()
    }

    /// Adds to a change that removes `assignment` that the snapshot which it orders has failed, if it is still under way.
    pub async fn abandon_snapshot(
        &self,
        change: &mut Change,
        assignment: &Assignment,
        reason: Reason,
        event: impl FnOnce(EventKind, Reason) -> Event + Send,
    ) -> Result<()> {
        let Some(id) = assignment.snapshot else { return Ok(()) };
        if let Some(snapshot) = self.snapshot(&assignment.project, id).await?
            && snapshot.state.is_under_way()
        {
            let kind = EventKind::SnapshotState { snapshot: id, state: SnapshotState::Failed };
            change.fail_snapshot(&snapshot, reason.clone(), event(kind, reason));
        }
        Ok(())
    }

    /// The prefix of a project's snapshots, for waiting on hints.
    pub fn snapshots_prefix(project: &ProjectName) -> Result<flames_state::Key> {
        keys::snapshots(project)
    }

    /// The prefix under which one snapshot changes, for waiting on hints.
    pub fn snapshot_prefix(project: &ProjectName, id: SnapshotId) -> Result<flames_state::Key> {
        keys::snapshot(project, id)
    }
}
