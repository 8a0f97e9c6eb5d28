//! Mutations: typed steps that become one commit.

use std::sync::Arc;

use bytes::Bytes;
use flames_clock::Timestamp;
use flames_error::Result;
use flames_model::{
    Assignment, Controller, ControllerAllocation, ControllerLease, DesiredState, Disk, Event, Image,
    Incarnation, ProjectName, Vm,
};
use flames_state::{Check, Commit, Key};

use crate::codec::{IntoShared, Record, Versioned, encode};
use crate::decoded::Written;
use crate::due::{DueEntry, DueKey};
use crate::keys;
use crate::stored::{
    Condemnations, Condemned, ControllerCredential, Expiry, Idempotency, IdempotencyKey, JoinToken, Tombstone,
};

/// Typed steps that are applied together or not at all. See [`crate::Records::apply`].
#[derive(Debug, Default)]
pub struct Change {
    pub(crate) commit: Commit,
    pub(crate) written: Vec<Written>,
    pub(crate) operation_key: Option<Key>,
    pub(crate) failed: Option<flames_error::Error>,
}

impl Change {
    /// An empty change, to be filled.
    pub fn new() -> Self {
        Self::default()
    }

    /// The key that no other commit ever writes, when the change has one.
    pub(crate) fn operation_key(&self) -> Option<&Key> {
        self.operation_key.as_ref()
    }

    pub(crate) fn into_commit(self) -> Result<(Commit, Vec<Written>)> {
        match self.failed {
            Some(error) => Err(error),
            None => Ok((self.commit, self.written)),
        }
    }

    /// Whether nothing would be written.
    pub fn is_empty(&self) -> bool {
        self.failed.is_none() && self.commit.writes.is_empty() && self.commit.appends.is_empty()
    }

    /// Keeps the first failure of a step until the change is applied, so that steps can be chained.
    pub(crate) fn step(&mut self, step: impl FnOnce(&mut Commit) -> Result<()>) -> &mut Self {
        self.try_step(|change| step(&mut change.commit))
    }

    fn try_step(&mut self, step: impl FnOnce(&mut Self) -> Result<()>) -> &mut Self {
        if self.failed.is_none() {
            self.failed = step(self).err();
        }
        self
    }

    pub(crate) fn insert<T: Record>(&mut self, key: Result<Key>, record: impl IntoShared<T>) -> &mut Self {
        self.step(|commit| {
            let key = key?;
            commit.check(Check::Absent(key.clone())).put(key, encode(&*record.into_shared())?);
            Ok(())
        })
    }

    /// As [`Change::insert`], for what is read again at once.
    fn insert_kept<T: Record>(&mut self, key: Result<Key>, record: impl IntoShared<T>) -> &mut Self {
        self.try_step(|change| {
            let (key, record) = (key?, record.into_shared());
            change.commit.check(Check::Absent(key.clone())).put(key.clone(), encode(&*record)?);
            change.written.push(Written::new(key, record));
            Ok(())
        })
    }

    pub(crate) fn replace<T: Record>(
        &mut self,
        key: Result<Key>,
        old: &Versioned<T>,
        new: impl IntoShared<T>,
    ) -> &mut Self {
        self.try_step(|change| {
            old.ensure_rewritable()?;
            let (key, new) = (key?, new.into_shared());
            change.commit.check(Check::At(key.clone(), old.version)).put(key.clone(), encode(&*new)?);
            change.written.push(Written::new(key, new));
            Ok(())
        })
    }

    pub(crate) fn remove<T: Record>(&mut self, key: Result<Key>, old: &Versioned<T>) -> &mut Self {
        self.step(|commit| {
            old.ensure_rewritable()?;
            let key = key?;
            commit.check(Check::At(key.clone(), old.version)).delete(key);
            Ok(())
        })
    }

    pub(crate) fn require<T: Record>(&mut self, key: Result<Key>, read: &Versioned<T>) -> &mut Self {
        self.step(|commit| {
            commit.check(Check::At(key?, read.version));
            Ok(())
        })
    }

    fn vm_indexes(vm: &Vm) -> Result<Vec<Key>> {
        let labels =
            vm.labels.pairs().iter().map(|(label, value)| keys::label(&vm.project, label, value, vm.id));
        let images = std::iter::once(&vm.spec.image)
            .chain(vm.spec.kernel.as_ref().filter(|kernel| **kernel != vm.spec.image))
            .map(|image| keys::image_use(&vm.project, image, vm.id));
        let snapshot = vm.restored_from.map(|from| Self::snapshot_use(&vm.project, from, vm.id));
        labels.chain(images).chain(snapshot).collect()
    }

    /// Adds a VM with its indexes. `Conflict` when its id or its name is taken.
    pub fn insert_vm(&mut self, vm: impl IntoShared<Vm>) -> &mut Self {
        let vm = vm.into_shared();
        let key = keys::vm(&vm.project, vm.id);
        self.operation_key = key.as_ref().ok().cloned();
        self.insert(key, Arc::clone(&vm)).step(|commit| {
            let name = keys::vm_name(&vm.project, &vm.name)?;
            commit.check(Check::Absent(name.clone())).put(name, vm.id.to_string());
            for index in Self::vm_indexes(&vm)? {
                commit.put(index, Bytes::new());
            }
            Ok(())
        })
    }

    /// Replaces a VM, with its label indexes; frees its name when it becomes wanted deleted.
    pub fn update_vm(&mut self, old: &Versioned<Vm>, new: impl IntoShared<Vm>) -> &mut Self {
        let new = new.into_shared();
        self.replace(keys::vm(&old.project, old.id), old, Arc::clone(&new)).step(|commit| {
            let (was, is) = (&old.spec, &new.spec);
            if old.labels != new.labels || was.image != is.image || was.kernel != is.kernel {
                let (before, after) = (Self::vm_indexes(old)?, Self::vm_indexes(&new)?);
                for gone in before.iter().filter(|index| !after.contains(index)) {
                    commit.delete(gone.clone());
                }
                for added in after.iter().filter(|index| !before.contains(index)) {
                    commit.put(added.clone(), Bytes::new());
                }
            }
            if old.desired != DesiredState::Deleted && new.desired == DesiredState::Deleted {
                commit.delete(keys::vm_name(&old.project, &old.name)?);
            }
            Ok(())
        })
    }

    /// Proves that a VM is as it was read.
    pub fn require_vm(&mut self, vm: &Versioned<Vm>) -> &mut Self {
        self.require(keys::vm(&vm.project, vm.id), vm)
    }

    /// Replaces a VM that is wanted deleted, and its indexes, by a tombstone.
    pub fn bury_vm(&mut self, vm: &Versioned<Vm>, tombstone: &Tombstone) -> &mut Self {
        self.remove(keys::vm(&vm.project, vm.id), vm)
            .step(|commit| {
                for index in Self::vm_indexes(vm)? {
                    commit.delete(index);
                }
                Ok(())
            })
            .insert(keys::tombstone(&vm.project, vm.id), tombstone)
    }

    /// Removes a tombstone.
    pub fn remove_tombstone(&mut self, tombstone: &Versioned<Tombstone>) -> &mut Self {
        self.remove(keys::tombstone(&tombstone.vm.project, tombstone.vm.id), tombstone)
    }

    /// Adds an incarnation.
    pub fn insert_incarnation(&mut self, new: impl IntoShared<Incarnation>) -> &mut Self {
        let new = new.into_shared();
        let key = keys::incarnation(&new.project, new.vm, new.id);
        self.insert_kept(key, new)
    }

    /// Replaces an incarnation.
    pub fn update_incarnation(
        &mut self,
        old: &Versioned<Incarnation>,
        new: impl IntoShared<Incarnation>,
    ) -> &mut Self {
        self.replace(keys::incarnation(&old.project, old.vm, old.id), old, new)
    }

    /// Removes an incarnation.
    pub fn remove_incarnation(&mut self, old: &Versioned<Incarnation>) -> &mut Self {
        self.remove(keys::incarnation(&old.project, old.vm, old.id), old)
    }

    /// Proves that an incarnation is as it was read.
    pub fn require_incarnation(&mut self, read: &Versioned<Incarnation>) -> &mut Self {
        self.require(keys::incarnation(&read.project, read.vm, read.id), read)
    }

    fn tell_controller(&mut self, assignment: &Assignment) -> &mut Self {
        self.step(|commit| {
            commit.append(keys::assigned_log(assignment.controller)?, assignment.incarnation.to_string());
            Ok(())
        })
    }

    /// Adds an assignment and tells its controller.
    pub fn insert_assignment(&mut self, new: impl IntoShared<Assignment>) -> &mut Self {
        let new = new.into_shared();
        self.insert_kept(keys::assignment(new.controller, new.incarnation), Arc::clone(&new))
            .tell_controller(&new)
    }

    /// Replaces an assignment and tells its controller.
    pub fn update_assignment(
        &mut self,
        old: &Versioned<Assignment>,
        new: impl IntoShared<Assignment>,
    ) -> &mut Self {
        self.replace(keys::assignment(old.controller, old.incarnation), old, new).tell_controller(old)
    }

    /// Removes an assignment and tells its controller.
    pub fn remove_assignment(&mut self, old: &Versioned<Assignment>) -> &mut Self {
        self.remove(keys::assignment(old.controller, old.incarnation), old).tell_controller(old)
    }

    /// Adds a persistent disk's record.
    pub fn insert_disk(&mut self, new: &Disk) -> &mut Self {
        self.insert(keys::disk(&new.project, new.vm), new)
    }

    /// Removes a persistent disk's record.
    pub fn remove_disk(&mut self, old: &Versioned<Disk>) -> &mut Self {
        self.remove(keys::disk(&old.project, old.vm), old)
    }

    /// Adds a controller with an empty allocation. `Conflict` when its id or its name is taken.
    pub fn insert_controller(&mut self, new: &Controller, allocation: &ControllerAllocation) -> &mut Self {
        self.insert(keys::controller(new.id), new).insert(keys::allocation(new.id), allocation).step(
            |commit| {
                let name = keys::controller_name(&new.name)?;
                commit.check(Check::Absent(name.clone())).put(name, new.id.to_string());
                Ok(())
            },
        )
    }

    /// Replaces a controller of the same name.
    pub fn update_controller(&mut self, old: &Versioned<Controller>, new: &Controller) -> &mut Self {
        self.replace(keys::controller(old.id), old, new)
    }

    /// Proves that a controller is as it was read: the same registration, not cordoned meanwhile.
    pub fn require_controller(&mut self, read: &Versioned<Controller>) -> &mut Self {
        self.require(keys::controller(read.id), read)
    }

    /// Removes a controller, its name, its allocation, its lease and its credential.
    pub fn remove_controller(
        &mut self,
        old: &Versioned<Controller>,
        allocation: &Versioned<ControllerAllocation>,
    ) -> &mut Self {
        self.remove(keys::controller(old.id), old).remove(keys::allocation(old.id), allocation).step(
            |commit| {
                commit
                    .delete(keys::controller_name(&old.name)?)
                    .delete(keys::lease(old.id)?)
                    .delete(keys::credential(old.id)?);
                Ok(())
            },
        )
    }

    /// Replaces what is reserved on a controller.
    pub fn update_allocation(
        &mut self,
        old: &Versioned<ControllerAllocation>,
        new: impl IntoShared<ControllerAllocation>,
    ) -> &mut Self {
        self.replace(keys::allocation(old.controller), old, new)
    }

    /// Proves that what is reserved on a controller is as it was read.
    pub fn require_allocation(&mut self, read: &Versioned<ControllerAllocation>) -> &mut Self {
        self.require(keys::allocation(read.controller), read)
    }

    /// Sets a controller's lease, whatever it was: for a registration, which supersedes earlier ones.
    pub fn set_lease(&mut self, new: &ControllerLease) -> &mut Self {
        self.step(|commit| {
            commit.put(keys::lease(new.controller)?, encode(new)?);
            Ok(())
        })
    }

    /// Replaces a controller's lease.
    pub fn update_lease(&mut self, old: &Versioned<ControllerLease>, new: &ControllerLease) -> &mut Self {
        self.replace(keys::lease(old.controller), old, new)
    }

    /// Adds what a controller proves itself with. `Conflict` when it has something already.
    pub fn insert_credential(&mut self, new: &ControllerCredential) -> &mut Self {
        self.insert(keys::credential(new.controller), new)
    }

    /// Proves that what a controller proves itself with is as it was read.
    pub fn require_credential(&mut self, read: &Versioned<ControllerCredential>) -> &mut Self {
        self.require(keys::credential(read.controller), read)
    }

    /// Adds a join token.
    pub fn insert_join_token(&mut self, new: &JoinToken) -> &mut Self {
        self.insert(keys::join_token(&new.digest), new)
    }

    /// Removes a join token.
    pub fn remove_join_token(&mut self, old: &Versioned<JoinToken>) -> &mut Self {
        self.remove(keys::join_token(&old.digest), old)
    }

    /// Adds an image.
    pub fn insert_image(&mut self, new: &Image) -> &mut Self {
        self.insert(keys::image(&new.project, &new.name), new)
    }

    /// Replaces an image.
    pub fn update_image(&mut self, old: &Versioned<Image>, new: &Image) -> &mut Self {
        self.replace(keys::image(&old.project, &old.name), old, new)
    }

    /// Removes an image.
    pub fn remove_image(&mut self, old: &Versioned<Image>) -> &mut Self {
        self.remove(keys::image(&old.project, &old.name), old)
    }

    /// Proves that an image is as it was read.
    pub fn require_image(&mut self, read: &Versioned<Image>) -> &mut Self {
        self.require(keys::image(&read.project, &read.name), read)
    }

    /// Condemns a blob; `Conflict` when it is already. See [`Condemned`].
    pub fn condemn_blob(&mut self, new: &Condemned) -> &mut Self {
        self.insert(keys::condemned_blob(&new.blob), new).step(|commit| {
            commit.put(keys::condemnations()?, Bytes::new());
            Ok(())
        })
    }

    /// Takes over from a sweeper that is gone.
    pub fn update_condemned(&mut self, old: &Versioned<Condemned>, new: &Condemned) -> &mut Self {
        self.replace(keys::condemned_blob(&old.blob), old, new)
    }

    /// Ends what [`Change::condemn_blob`] began, whether the blob was removed or not.
    pub fn pardon_blob(&mut self, old: &Versioned<Condemned>) -> &mut Self {
        self.remove(keys::condemned_blob(&old.blob), old)
    }

    /// Makes sure that a blob that this change begins to name stays: `Conflict` when it is condemned, or when any was since `since`
    /// was read. The caller looks after that read whether the blob is there.
    pub fn keep_blob(&mut self, blob: &str, since: Condemnations) -> &mut Self {
        self.step(|commit| {
            commit.check(Check::Absent(keys::condemned_blob(blob)?));
            let key = keys::condemnations()?;
            commit.check(match since.0 {
                Some(version) => Check::At(key, version),
                None => Check::Absent(key),
            });
            Ok(())
        })
    }

    /// Records that a request is carried out by this change; `Conflict` when it was already. Makes the outcome of the commit
    /// knowable.
    pub fn insert_idempotency(&mut self, key: &IdempotencyKey, record: &Idempotency) -> &mut Self {
        let store_key = keys::idempotency(key);
        self.operation_key = store_key.as_ref().ok().cloned().or(self.operation_key.take());
        // Not kept decoded: it is read only where a request is sent again.
        self.step(|commit| {
            let store_key = store_key?;
            commit.check(Check::Absent(store_key.clone())).put(store_key, encode(record)?);
            commit.put(keys::expiry(record.expires_at, key)?, Bytes::new());
            Ok(())
        })
    }

    /// Removes an idempotency record whose time is up.
    pub fn remove_idempotency(&mut self, expiry: &Expiry) -> &mut Self {
        self.step(|commit| {
            commit.delete(keys::idempotency(&expiry.key)?).delete(keys::expiry(expiry.at, &expiry.key)?);
            Ok(())
        })
    }

    /// Asks for attention to a VM, from `at` on.
    pub fn due(&mut self, project: &ProjectName, vm: flames_model::VmId, at: Timestamp) -> &mut Self {
        self.step(|commit| {
            let key = keys::due(&DueKey { at, project: project.clone(), vm })?;
            // The entry that this change settles may be asked for again by it: the put wins.
            commit.writes.retain(|write| *write.key() != key);
            commit.put(key, Bytes::new());
            Ok(())
        })
    }

    /// Removes the due entry that led to this change; `Conflict` when it was asked for anew meanwhile.
    pub fn settle(&mut self, due: &DueEntry) -> &mut Self {
        self.step(|commit| {
            let key = keys::due(&due.key)?;
            commit.check(Check::At(key.clone(), due.version));
            if !commit.writes.iter().any(|write| *write.key() == key) {
                commit.delete(key);
            }
            Ok(())
        })
    }

    /// Appends an event to a project's log (none: the system's).
    pub fn event(&mut self, project: Option<&ProjectName>, event: &Event) -> &mut Self {
        self.step(|commit| {
            commit.append(keys::events(project)?, encode(event)?);
            Ok(())
        })
    }
}
