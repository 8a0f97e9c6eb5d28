//! How a guest is saved, whole or as a difference and from what, and who still needs a snapshot.

use flames_error::{Error, ErrorKind, Result};
use flames_model::{
    DesiredState, IncarnationId, ProjectName, Snapshot, SnapshotBase, SnapshotName, SnapshotState, Vm, VmId,
    restores_from,
};
use flames_records::Versioned;

use crate::snapshots::Savable;
use crate::{Caller, Service, SnapshotRef, codes};

/// What a new snapshot is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewSnapshot {
    /// Its name; none: one is made up.
    pub name: Option<SnapshotName>,
    /// How the guest is saved.
    pub kind: NewSnapshotKind,
}

/// How a guest is saved. The snapshot is whole either way, and loaded alike.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NewSnapshotKind {
    /// All of its memory.
    #[default]
    Full,
    /// What its memory has become since its newest ready snapshot of this run.
    Diff {
        /// That snapshot, for a caller who means to know which it is.
        base: Option<SnapshotRef>,
    },
}

/// What an assignment names of a base; none: it is not ready.
pub(crate) fn as_base(snapshot: &Snapshot) -> Option<SnapshotBase> {
    let manifest = snapshot.manifest.clone()?;
    Some(SnapshotBase { snapshot: snapshot.id, manifest })
}

/// What still needs a snapshot.
pub(crate) enum SnapshotUser {
    /// A VM that is still to be loaded from it.
    Loading(VmId),
    /// A snapshot that is being saved as a difference from it. Once that is ready, it names all that it consists of itself.
    Saving(Box<Snapshot>),
}

impl SnapshotUser {
    /// Why the snapshot cannot be removed.
    pub(crate) fn refusal(&self, snapshot: &Snapshot) -> Error {
        let refused = |why: &'static str, sentence: String| {
            Error::new(ErrorKind::Conflict, "service.delete_snapshot", why)
                .with_resource("snapshot", snapshot.id.to_string())
                .with_code(codes::SNAPSHOT_IN_USE)
                .with_user_message(sentence)
        };
        let name = &snapshot.name;
        match self {
            Self::Loading(vm) => refused(
                "a VM is still to be loaded from the snapshot",
                format!(
                    "The VM {vm} is still to be loaded from the snapshot `{name}`. Wait until it runs, or delete it first."
                ),
            )
            .with_context("vm", vm),
            Self::Saving(other) => refused(
                "another snapshot is being saved as a difference from it",
                format!(
                    "The snapshot `{}` is being saved as a difference from `{name}`. Wait until it is ready; then it does not need this one.",
                    other.name
                ),
            )
            .with_context("saving", other.id),
        }
    }
}

impl Service {
    /// The snapshot that a difference of this guest can be saved from: its newest ready one of this run.
    ///
    /// Errors: `NotSupported` when its host saves none; `Conflict` ([`codes::SNAPSHOT_BASE_UNUSABLE`]) when there is none, or another one is
    /// asked for; `NotFound` ([`codes::SNAPSHOT_NOT_FOUND`]).
    pub(crate) async fn base_of(
        &self,
        caller: &Caller,
        vm: &Vm,
        savable: &Savable<'_>,
        asked: Option<&SnapshotRef>,
    ) -> Result<Versioned<Snapshot>> {
        const OPERATION: &str = "service.create_snapshot";
        let driver = &savable.controller.driver;
        if !driver.diff_snapshot {
            return Err(Error::new(ErrorKind::NotSupported, OPERATION, "the driver saves no differences")
                .with_code(codes::NOT_SUPPORTED)
                .with_field("kind")
                .with_user_message(format!(
                    "The host of the VM `{}` saves no differences: its driver {} saves guests whole only.",
                    vm.name, driver.name
                )));
        }
        let asked = match asked {
            Some(asked) => {
                Some(self.find_snapshot(caller, asked).await.map_err(|error| error.with_field("base"))?)
            }
            None => None,
        };
        let newest = self.newest_ready(&vm.project, savable.incarnation.id).await?;
        let unusable = |why: &'static str, sentence: String| {
            Error::new(ErrorKind::Conflict, OPERATION, why)
                .with_resource("vm", vm.id.to_string())
                .with_code(codes::SNAPSHOT_BASE_UNUSABLE)
                .with_field("base")
                .with_user_message(sentence)
        };
        let Some(newest) = newest else {
            let sentence = format!(
                "There is no ready snapshot of the present run of the VM `{}` to save the difference from. Take a full one first.",
                vm.name
            );
            return Err(unusable("no snapshot of this run is ready", sentence));
        };
        match asked {
            Some(asked) if asked.id != newest.id => {
                let sentence = format!(
                    "A difference can be saved only from the newest ready snapshot of the VM's present run, which is `{}`, not from `{}`.",
                    newest.name, asked.name
                );
                Err(unusable("the base is not the newest snapshot of the run", sentence))
            }
            _ => Ok(newest),
        }
    }

    /// Something that still needs the snapshot, if anything does.
    pub(crate) async fn snapshot_user(&self, snapshot: &Snapshot) -> Result<Option<SnapshotUser>> {
        if let Some(other) = self.saved_from(snapshot).await? {
            return Ok(Some(SnapshotUser::Saving(Box::new(other))));
        }
        let mut after = None;
        loop {
            let users = self.records().snapshot_users(&snapshot.project, snapshot.id, after, 100).await?;
            let Some(last) = users.last().copied() else { return Ok(None) };
            for user in users {
                let Some(entry) = self.records().vm(&snapshot.project, user).await? else { continue };
                let last = entry.incarnation.as_deref();
                if entry.vm.desired != DesiredState::Deleted && restores_from(&entry.vm, last).is_some() {
                    return Ok(Some(SnapshotUser::Loading(user)));
                }
            }
            after = Some(last);
        }
    }

    async fn newest_ready(
        &self,
        project: &ProjectName,
        incarnation: IncarnationId,
    ) -> Result<Option<Versioned<Snapshot>>> {
        let (mut newest, mut after): (Option<Versioned<Snapshot>>, _) = (None, None);
        loop {
            let page = self.records().snapshots(project, after, flames_records::MAX_PAGE).await?;
            for snapshot in page.items {
                let is_candidate =
                    snapshot.incarnation == incarnation && snapshot.state == SnapshotState::Ready;
                if is_candidate
                    && newest.as_ref().is_none_or(|newest| newest.created_at <= snapshot.created_at)
                {
                    newest = Some(snapshot);
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(newest),
            }
        }
    }

    /// A snapshot that is being saved as a difference from this one, if any is.
    async fn saved_from(&self, base: &Snapshot) -> Result<Option<Snapshot>> {
        // Only while its guest lives is anything saved from it.
        let told = self.records().assignment(base.controller, base.incarnation).await?;
        let order = told
            .as_ref()
            .filter(|told| told.snapshot_base.as_ref().is_some_and(|named| named.snapshot == base.id));
        let Some(other) = order.and_then(|told| told.snapshot) else { return Ok(None) };
        let other = self.records().snapshot(&base.project, other).await?;
        Ok(other.filter(|other| other.state.is_under_way()).map(Versioned::into_record))
    }
}
