//! Snapshots: asking for them, listing and removing them.

use std::time::Duration;

use flames_clock::Timestamp;
use flames_error::{Error, ErrorKind, Result};
use flames_model::{
    Assignment, Controller, DesiredState, Event, EventKind, Incarnation, ProjectName, Snapshot, SnapshotId,
    SnapshotName, SnapshotPlatform, SnapshotSizes, SnapshotState, Vm, VmId, VmState,
};
use flames_records::{Change, ListPage, Outcome, Records, Versioned, VmEntry, Waited};

use crate::differences::as_base;
use crate::mutation::{ATTEMPTS, wrong_outcome};
use crate::{Caller, Mutation, NewSnapshot, NewSnapshotKind, Service, VmRef, codes};

/// Names a snapshot: by id, or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotRef {
    /// By id.
    Id(SnapshotId),
    /// By name.
    Name(SnapshotName),
}

impl SnapshotRef {
    /// Reads a reference: an id when it looks like one, else a name. `InvalidInput` when it is neither.
    pub fn parse(text: &str) -> Result<Self> {
        match text.parse() {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) => SnapshotName::new(text)
                .map(Self::Name)
                .map_err(|error| error.with_field("snapshot").with_code(codes::INVALID_FIELD)),
        }
    }
}

impl std::fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => write!(f, "{name}"),
        }
    }
}

/// How a wait for a snapshot ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotWait {
    /// The snapshot as last read.
    pub snapshot: Snapshot,
    /// Whether it is ready. `false`: it failed, or the time was up.
    pub reached: bool,
}

/// A VM that can be saved now.
pub(crate) struct Savable<'a> {
    pub(crate) incarnation: &'a Versioned<Incarnation>,
    assignment: Versioned<Assignment>,
    pub(crate) controller: Versioned<Controller>,
}

impl Service {
    /// Asks for a snapshot of a running or paused VM. Its controller pauses the guest, saves it with its disk, lets it go on, and stores
    /// what it saved; [`Service::wait_snapshot`] tells when that is done.
    ///
    /// A difference is saved more quickly, and stored in fewer bytes of its own; what it consists of is listed whole all the same, so that
    /// nothing stands on its base once it is ready. A host that cannot save the difference any more saves all: then its `base` is none.
    ///
    /// Errors: `NotFound` ([`codes::VM_NOT_FOUND`], [`codes::SNAPSHOT_NOT_FOUND`] for a base); `Conflict` ([`codes::VM_NOT_RUNNING`],
    /// [`codes::VM_DELETED`], [`codes::SNAPSHOT_IN_PROGRESS`], [`codes::SNAPSHOT_BASE_UNUSABLE`], [`codes::GENERATION_MISMATCH`]); `AlreadyExists` ([`codes::SNAPSHOT_NAME_TAKEN`]); `NotSupported`
    /// when the VM's host cannot; `InvalidInput` ([`codes::IDEMPOTENCY_KEY_REUSED`]); `Unavailable`; `OutcomeUnknown`.
    pub async fn create_snapshot(
        &self,
        caller: &Caller,
        vm: &VmRef,
        new: NewSnapshot,
        mutation: &Mutation,
    ) -> Result<Snapshot> {
        let NewSnapshot { name, kind } = new;
        if let Some(snapshot) = self.replayed_snapshot(caller, mutation).await? {
            return Ok(snapshot);
        }
        let id = self.resolve(caller, vm).await?;
        for _ in 0..ATTEMPTS {
            // Read first: what is condemned from here on makes the commit fail.
            let condemnations = self.records().condemnations().await?;
            let Some(entry) = self.records().vm(&caller.project, id).await? else {
                return match self.records().tombstone(&caller.project, id).await? {
                    Some(_) => Err(codes::vm_deleted(&vm.to_string())),
                    None => Err(codes::vm_not_found(&vm.to_string())),
                };
            };
            if let Some(expected) = mutation.if_generation.filter(|expected| *expected != entry.vm.generation)
            {
                return Err(codes::generation_mismatch(expected, entry.vm.generation));
            }
            let savable = self.savable(&entry).await?;
            let base = match &kind {
                NewSnapshotKind::Full => None,
                NewSnapshotKind::Diff { base } => {
                    Some(self.base_of(caller, &entry.vm, &savable, base.as_ref()).await?)
                }
            };
            let snapshot = Snapshot {
                base: base.as_ref().map(|base| base.id),
                ..self.new_snapshot(&entry.vm, &savable, name.clone())?
            };
            let ordered = Assignment {
                snapshot: Some(snapshot.id),
                snapshot_base: base.as_deref().and_then(as_base),
                ..Assignment::clone(&savable.assignment)
            };
            let blobs: Vec<&str> = std::iter::once(&snapshot.image)
                .chain(&snapshot.kernel)
                .map(|manifest| manifest.blob.as_str())
                .collect();
            let mut change = Change::new();
            change
                .insert_snapshot(&snapshot)
                .require_vm(&entry.vm)
                .require_incarnation(savable.incarnation)
                .require_controller(&savable.controller)
                .update_assignment(&savable.assignment, &ordered)
                .keep_blobs(&blobs, condemnations)
                .event(
                    Some(&caller.project),
                    &of_snapshot(
                        caller,
                        snapshot.created_at,
                        &snapshot,
                        EventKind::SnapshotCreated { snapshot: snapshot.id },
                    ),
                );
            if let Some(base) = &base {
                change.require_snapshot(base);
            }
            self.record_request(caller, mutation, &mut change, Outcome::Snapshot(snapshot.id));
            match self.records().apply_knowing(change).await {
                Ok(()) => return Ok(snapshot),
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    if let Some(snapshot) = self.replayed_snapshot(caller, mutation).await? {
                        return Ok(snapshot);
                    }
                    if let Some(name) = &name
                        && let Some(other) = self.records().snapshot_named(&caller.project, name).await?
                    {
                        return Err(name_taken(name, other));
                    }
                    // The VM, its host or an image changed meanwhile: decide anew.
                }
                Err(error) => return Err(error),
            }
        }
        Err(codes::contended("service.create_snapshot"))
    }

    /// What is needed to save the VM now, or why it cannot be saved.
    async fn savable<'a>(&self, entry: &'a VmEntry) -> Result<Savable<'a>> {
        let vm = &entry.vm;
        if vm.desired == DesiredState::Deleted {
            return Err(codes::vm_deleted(&vm.id.to_string()));
        }
        let runs = entry
            .incarnation
            .as_ref()
            .filter(|_| matches!(entry.state(), VmState::Running | VmState::Paused));
        let not_running = || {
            Error::new(ErrorKind::Conflict, "service.create_snapshot", "the VM neither runs nor is paused")
                .with_resource("vm", vm.id.to_string())
                .with_code(codes::VM_NOT_RUNNING)
                .with_user_message(format!(
                    "The VM `{}` is {}; only a running or paused one can be saved.",
                    vm.name,
                    entry.state()
                ))
        };
        let incarnation = runs.ok_or_else(not_running)?;
        let controller = self.records().controller(incarnation.controller).await?.ok_or_else(not_running)?;
        if !controller.driver.snapshot {
            return Err(Error::new(
                ErrorKind::NotSupported,
                "service.create_snapshot",
                "the driver saves no guests",
            )
            .with_resource("controller", controller.id.to_string())
            .with_code(codes::NOT_SUPPORTED)
            .with_user_message(format!(
                "The host of the VM `{}` cannot save it: its driver {} has no snapshots.",
                vm.name, controller.driver.name
            )));
        }
        let assignment = self.records().assignment(incarnation.controller, incarnation.id).await?;
        let assignment = assignment.ok_or_else(not_running)?;
        if let Some(other) = assignment.snapshot {
            return Err(Error::new(
                ErrorKind::Conflict,
                "service.create_snapshot",
                "another snapshot is under way",
            )
            .with_resource("snapshot", other.to_string())
            .with_code(codes::SNAPSHOT_IN_PROGRESS)
            .with_user_message(format!(
                "A snapshot of the VM `{}` is under way ({other}). Wait for it, or remove it.",
                vm.name
            )));
        }
        Ok(Savable { incarnation, assignment, controller })
    }

    fn new_snapshot(&self, vm: &Vm, savable: &Savable<'_>, name: Option<SnapshotName>) -> Result<Snapshot> {
        let id = SnapshotId::from_uuid(self.parts.ids.next_id());
        let Savable { incarnation, assignment, controller } = savable;
        let name = match name {
            Some(name) => name,
            None => {
                let stem: String = vm.name.as_str().chars().take(50).collect();
                let stem = stem.trim_end_matches('-');
                SnapshotName::new(format!("{stem}-{}", &id.uuid().simple().to_string()[20..]))?
            }
        };
        Ok(Snapshot {
            id,
            project: vm.project.clone(),
            name,
            vm: vm.id,
            vm_name: vm.name.clone(),
            incarnation: incarnation.id,
            controller: incarnation.controller,
            token: incarnation.token,
            parent: vm.restored_from,
            base: None,
            labels: vm.labels.clone(),
            spec: vm.spec.clone(),
            image: assignment.image.clone(),
            kernel: assignment.kernel.clone(),
            platform: SnapshotPlatform::of(&controller.driver, assignment.kernel.as_ref()),
            state: SnapshotState::Pending,
            reason: None,
            sequence: 0,
            manifest: None,
            sizes: SnapshotSizes::default(),
            created_at: self.clock().now(),
            finished_at: None,
        })
    }

    async fn replayed_snapshot(&self, caller: &Caller, mutation: &Mutation) -> Result<Option<Snapshot>> {
        match self.replay(caller, mutation).await? {
            Some(Outcome::Snapshot(id)) => self.get_snapshot(caller, &SnapshotRef::Id(id)).await.map(Some),
            Some(_) => Err(wrong_outcome()),
            None => Ok(None),
        }
    }

    pub(crate) async fn find_snapshot(
        &self,
        caller: &Caller,
        snapshot: &SnapshotRef,
    ) -> Result<Versioned<Snapshot>> {
        let id = match snapshot {
            SnapshotRef::Id(id) => Some(*id),
            SnapshotRef::Name(name) => self.records().snapshot_named(&caller.project, name).await?,
        };
        let found = match id {
            Some(id) => self.records().snapshot(&caller.project, id).await?,
            None => None,
        };
        found.ok_or_else(|| codes::snapshot_not_found(&snapshot.to_string()))
    }

    /// A snapshot. Errors: `NotFound` ([`codes::SNAPSHOT_NOT_FOUND`]).
    pub async fn get_snapshot(&self, caller: &Caller, snapshot: &SnapshotRef) -> Result<Snapshot> {
        self.find_snapshot(caller, snapshot).await.map(Versioned::into_record)
    }

    /// A page of snapshots, by id; only those of one VM, if one is named. May be short though there are more: go on behind `next`.
    ///
    /// Errors: `Unavailable`.
    pub async fn list_snapshots(
        &self,
        caller: &Caller,
        of: Option<VmId>,
        after: Option<SnapshotId>,
        limit: usize,
    ) -> Result<ListPage<Snapshot, SnapshotId>> {
        let page = self.records().snapshots(&caller.project, after, limit).await?;
        let items = page.items.into_iter().map(Versioned::into_record);
        Ok(ListPage {
            items: items.filter(|snapshot| of.is_none_or(|vm| vm == snapshot.vm)).collect(),
            next: page.next,
        })
    }

    /// Waits until a snapshot is ready, at most `timeout` (cut to the configured longest wait). Not reaching it is no error.
    ///
    /// Errors: `NotFound` ([`codes::SNAPSHOT_NOT_FOUND`], also when it is removed meanwhile); `Unavailable`.
    pub async fn wait_snapshot(
        &self,
        caller: &Caller,
        snapshot: &SnapshotRef,
        timeout: Duration,
    ) -> Result<SnapshotWait> {
        let id = self.find_snapshot(caller, snapshot).await?.id;
        let reference = SnapshotRef::Id(id);
        let prefix = Records::snapshot_prefix(&caller.project, id)?;
        let deadline = self.clock().monotonic().saturating_add(timeout.min(self.config().longest_wait));
        let read = || async {
            let snapshot = self.get_snapshot(caller, &reference).await?;
            Ok((!snapshot.state.is_under_way()).then_some(snapshot))
        };
        let waited = self
            .records()
            .wait_until(self.clock().as_ref(), &prefix, self.config().poll, deadline, read)
            .await?;
        let snapshot = match waited {
            Waited::Ready(snapshot) => snapshot,
            Waited::TimedOut => self.get_snapshot(caller, &reference).await?,
        };
        Ok(SnapshotWait { reached: snapshot.state == SnapshotState::Ready, snapshot })
    }

    /// Removes a snapshot that no VM still needs. One that is under way is given up. What it consists of is removed when nothing else names
    /// it.
    ///
    /// Errors: `NotFound` ([`codes::SNAPSHOT_NOT_FOUND`]); `Conflict` ([`codes::SNAPSHOT_IN_USE`]); `Unavailable`; `OutcomeUnknown`.
    pub async fn delete_snapshot(
        &self,
        caller: &Caller,
        snapshot: &SnapshotRef,
        mutation: &Mutation,
    ) -> Result<()> {
        match self.replay(caller, mutation).await? {
            Some(Outcome::SnapshotRemoved(_)) => return Ok(()),
            Some(_) => return Err(wrong_outcome()),
            None => {}
        }
        for _ in 0..ATTEMPTS {
            let mut found = self.find_snapshot(caller, snapshot).await?;
            if matches!(found.state, SnapshotState::Ready | SnapshotState::Deleting) {
                // Marked first, so that no VM begins to use it between the look and the removal.
                found = match self.mark(&found, SnapshotState::Deleting).await {
                    Ok(marked) => marked,
                    Err(error) if error.kind() == ErrorKind::Conflict => continue,
                    Err(error) => return Err(error),
                };
                if let Some(user) = self.snapshot_user(&found).await? {
                    // A conflict means that another removal is at work; it unmarks or removes by itself.
                    match self.mark(&found, SnapshotState::Ready).await {
                        Err(error) if error.kind() != ErrorKind::Conflict => return Err(error),
                        _ => return Err(user.refusal(&found)),
                    }
                }
            }
            let mut change = Change::new();
            change.remove_snapshot(&found).event(
                Some(&caller.project),
                &of_snapshot(
                    caller,
                    self.clock().now(),
                    &found,
                    EventKind::SnapshotDeleted { snapshot: found.id },
                ),
            );
            self.withdraw_order(&mut change, &found).await?;
            self.record_request(caller, mutation, &mut change, Outcome::SnapshotRemoved(found.id));
            match self.records().apply_knowing(change).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    if let Some(Outcome::SnapshotRemoved(_)) = self.replay(caller, mutation).await? {
                        return Ok(());
                    }
                }
                other => return other,
            }
        }
        Err(codes::contended("service.delete_snapshot"))
    }

    /// Finishes or undoes removals that broke off. For a sweep.
    pub(crate) async fn finish_deletions(&self, project: &ProjectName) -> Result<()> {
        let caller = Caller::system(project.clone(), "sweep");
        let mut after = None;
        loop {
            let page = self.records().snapshots(project, after, flames_records::MAX_PAGE).await?;
            for snapshot in page.items.iter().filter(|snapshot| snapshot.state == SnapshotState::Deleting) {
                match self.delete_snapshot(&caller, &SnapshotRef::Id(snapshot.id), &Mutation::default()).await
                {
                    Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
                    _ => {}
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn mark(
        &self,
        snapshot: &Versioned<Snapshot>,
        state: SnapshotState,
    ) -> Result<Versioned<Snapshot>> {
        if snapshot.state == state {
            return Ok(snapshot.clone());
        }
        let mut change = Change::new();
        change.update_snapshot(snapshot, &Snapshot { state, ..Snapshot::clone(snapshot) });
        self.records().apply(change).await?;
        let read = self.records().snapshot(&snapshot.project, snapshot.id).await?;
        read.filter(|read| read.state == state).ok_or_else(|| {
            Error::new(ErrorKind::Conflict, "service.delete_snapshot", "the snapshot changed meanwhile")
        })
    }

    /// Tells the controller, if it was told to take the snapshot, not to.
    pub(crate) async fn withdraw_order(&self, change: &mut Change, snapshot: &Snapshot) -> Result<()> {
        let told = self.records().assignment(snapshot.controller, snapshot.incarnation).await?;
        if let Some(told) = told.filter(|told| told.snapshot == Some(snapshot.id)) {
            change.update_assignment(
                &told,
                &Assignment { snapshot: None, snapshot_base: None, ..Assignment::clone(&told) },
            );
        }
        Ok(())
    }
}

/// An event on a snapshot, and so on the VM that it is of.
pub(crate) fn of_snapshot(caller: &Caller, at: Timestamp, snapshot: &Snapshot, kind: EventKind) -> Event {
    Event {
        vm: Some(snapshot.vm),
        vm_name: Some(snapshot.vm_name.clone()),
        incarnation: Some(snapshot.incarnation),
        reason: snapshot.reason.clone(),
        ..caller.event(at, kind)
    }
}

fn name_taken(name: &SnapshotName, other: SnapshotId) -> Error {
    Error::new(ErrorKind::AlreadyExists, "service.create_snapshot", "another snapshot has this name")
        .with_resource("snapshot", other.to_string())
        .with_field("name")
        .with_code(codes::SNAPSHOT_NAME_TAKEN)
        .with_user_message(format!(
            "The name `{name}` belongs to the snapshot {other}. Choose another, or remove that one first."
        ))
}
