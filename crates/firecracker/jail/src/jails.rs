//! The jails of one cluster on this host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::Clock;
use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::{create_private, create_private_folder, failed, remove_all, sync_folder};
use flames_host::process;
use rustix::fs::FlockOperation;

use crate::artefact::place;
use crate::chroot::Chroot;
use crate::config::JailConfig;
use crate::group::Groups;
use crate::hierarchy::Hierarchies;
use crate::jail::{Found, Jail, JailSpec, State, situation};
use crate::limits::disk_of;
use crate::may_die_here;
use crate::mounts::unmount_below;
use crate::name::JailName;
use crate::record::{JailFolder, JailRecord, SCHEMA, lock_within};
use crate::slots::{Slot, Slots};

/// How long the opener before may take to let go.
const LOCK_DEADLINE: Duration = Duration::from_secs(5);
const OPERATION: &str = "jail.open";
pub(crate) const NEW: &str = ".new-";
pub(crate) const OLD: &str = ".old-";

/// What all handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: JailConfig,
    pub(crate) slots: Slots,
    pub(crate) groups: Groups,
    pub(crate) boot_id: String,
    pub(crate) clock: Arc<dyn Clock>,
    /// Held for as long as anybody works with the cluster's jails.
    _lock: File,
}

impl Shared {
    pub(crate) fn folder(&self, name: &JailName) -> JailFolder {
        JailFolder::new(self.config.jail_folder(name))
    }
}

/// The jails of one cluster on this host. Clones share everything.
#[derive(Debug, Clone)]
pub struct Jails {
    pub(crate) shared: Arc<Shared>,
}

impl Jails {
    /// Opens the cluster's jails, makes the folders when they are not there, clears away what is half made or half removed, and makes the
    /// slots what the records say. Changes no microVM.
    ///
    /// Errors: `Conflict` when another process works with them; `InvalidInput` for a configuration that cannot be; `PermissionDenied`
    /// without root; `Corrupt` when two jails have one slot; `Internal`.
    pub async fn open(config: JailConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        config.validate()?;
        if !rustix::process::geteuid().is_root() {
            let sentence =
                "Firecracker's jailer needs root: run the controller as root, or choose another driver.";
            return Err(
                Error::new(ErrorKind::PermissionDenied, OPERATION, "not root").with_user_message(sentence)
            );
        }
        blocking(move || Self::open_now(config, clock)).await
    }

    pub(crate) fn open_now(config: JailConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        let io = |error: io::Error| failed("the folder of the jails cannot be made", error);
        let folder = config.cluster_folder();
        if let Some(above) = config.base.parent() {
            std::fs::create_dir_all(above).map_err(io)?;
        }
        for path in [&config.base, &folder] {
            match create_private_folder(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
                _ => {}
            }
        }
        let lock = create_private(&folder.join(".lock")).map_err(io)?;
        if !lock_within(&lock, FlockOperation::NonBlockingLockExclusive, LOCK_DEADLINE).map_err(io)? {
            return Err(Error::new(ErrorKind::Conflict, OPERATION, "another process works with these jails")
                .with_context("folder", folder.display()));
        }
        let slots = Slots::open(&config.slots_folder(), &config.cluster, config.users)?;
        let groups = Groups::new(Hierarchies::probe()?, &config.parent_group, &config.cluster);
        let boot_id = process::boot_id().map_err(|error| failed("the boot id cannot be read", error))?;
        let shared = Shared { config, slots, groups, boot_id, clock, _lock: lock };
        clear_half_done(&folder).map_err(|error| failed("a half made jail cannot be removed", error))?;
        let (mut records, mut keep) = (BTreeMap::new(), BTreeSet::new());
        for name in names_in(&folder).map_err(io)? {
            match shared.folder(&name).jail() {
                Ok(record) => {
                    records.insert(name, record.slot.index);
                }
                Err(_) => {
                    keep.insert(name);
                }
            }
        }
        shared.slots.rebuild(&records, &keep)?;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What this was opened with.
    pub fn config(&self) -> &JailConfig {
        &self.shared.config
    }

    /// The incarnation's slot: the one that it has, or a free one. For what must be made before the jail (the network is named after the
    /// slot's number). Durable with the jail, once [`Jails::create`] has returned. [`Jails::remove`] frees it, whether a jail was made or not;
    /// so does the next [`Jails::open`] when none was.
    ///
    /// Errors: `Exhausted`, `Unavailable`, `Internal`.
    pub async fn reserve(&self, name: &JailName) -> Result<Slot> {
        let (shared, name) = (Arc::clone(&self.shared), name.clone());
        blocking(move || shared.slots.allocate(&name)).await
    }

    /// Makes the incarnation's jail; nothing runs in it. Again with the same spec: the same jail, unchanged.
    ///
    /// Errors: `AlreadyExists` when there is one with another spec; `Corrupt` when there is one that cannot be read; `NotFound` when a
    /// file is not there; `InvalidInput`; `NotSupported` when the host cannot limit the microVM, or Firecracker is not installed;
    /// `Exhausted` when no slot, or no space, is left. What was half made is removed; the slot is kept.
    ///
    /// A dropped call goes on by itself.
    pub async fn create(&self, name: &JailName, spec: JailSpec) -> Result<Jail> {
        let (jails, name) = (self.clone(), name.clone());
        blocking(move || jails.create_now(&name, spec)).await
    }

    pub(crate) fn create_now(&self, name: &JailName, spec: JailSpec) -> Result<Jail> {
        const OPERATION: &str = "jail.create";
        let shared = &self.shared;
        let folder = shared.folder(name);
        if folder.exists() {
            let record = folder.jail()?;
            if record.spec != spec {
                let message = "there is a jail of this incarnation that was made otherwise";
                return Err(Error::new(ErrorKind::AlreadyExists, OPERATION, message)
                    .with_resource("incarnation", name.as_str()));
            }
            return Ok(self.jail(folder, record));
        }
        let firecracker = shared.config.installed()?;
        check_places(&spec, &firecracker)?;
        let slot = shared.slots.allocate(name)?;
        let half_made = shared.config.cluster_folder().join(format!("{NEW}{name}"));
        may_die_here!("before a jail is begun");
        remove_all(&half_made).map_err(|error| failed("a half made jail cannot be removed", error))?;
        let made = self.make(name, spec, firecracker, slot, &half_made);
        if made.is_err() {
            // The error that is told is the first; what is left is cleared away by the next.
            let _ = remove_all(&half_made);
        }
        let record = made?;
        let io = |error| failed("the jail cannot be made", error);
        let finish = || -> Result<()> {
            may_die_here!("before a jail has its name");
            std::fs::rename(&half_made, folder.path()).map_err(io)?;
            // Before the jail: one that is found has its slot.
            shared.slots.make_durable()?;
            may_die_here!("before a jail's name is durable");
            sync_folder(&shared.config.cluster_folder()).map_err(io)
        };
        finish()?;
        Ok(self.jail(folder, record))
    }

    fn make(
        &self,
        name: &JailName,
        spec: JailSpec,
        firecracker: std::path::PathBuf,
        slot: Slot,
        path: &Path,
    ) -> Result<JailRecord> {
        let io = |error| failed("the jail cannot be made", error);
        let config = &self.shared.config;
        create_private_folder(path).map_err(io)?;
        let root = JailConfig::chroot(path, &firecracker, name);
        std::fs::create_dir_all(&root).map_err(io)?;
        let chroot = Chroot::open(&root, slot.user).map_err(io)?;
        let disk = disk_of(chroot.device().map_err(io)?, Path::new("/sys"));
        // To be refused here rather than at the start.
        spec.limits.plan(self.shared.groups.hierarchies(), disk, config.allow_without_limits)?;
        let mut record = JailRecord {
            schema: SCHEMA,
            cluster: config.cluster.clone(),
            incarnation: name.clone(),
            started_as: None,
            slot,
            firecracker,
            spec,
            placed: Vec::new(),
        };
        for artefact in &record.spec.artefacts {
            may_die_here!("before a file is put into a jail");
            let placed = place(&chroot, artefact, slot.user, config.largest_copy, true)?;
            record.placed.push(placed);
        }
        may_die_here!("before a jail is recorded");
        JailFolder::new(path.to_owned()).write_jail(&record)?;
        Ok(record)
    }

    fn jail(&self, folder: JailFolder, record: JailRecord) -> Jail {
        Jail { shared: Arc::clone(&self.shared), folder, record: Arc::new(record) }
    }

    /// The incarnation's jail, or what is left of it; none when there is nothing. Errors: `Internal`, when the host's processes cannot be
    /// read; records that cannot be are [`State::Damaged`].
    pub async fn find(&self, name: &JailName) -> Result<Option<Found>> {
        let (jails, name) = (self.clone(), name.clone());
        blocking(move || jails.find_now(&name)).await
    }

    pub(crate) fn find_now(&self, name: &JailName) -> Result<Option<Found>> {
        let shared = &self.shared;
        let folder = shared.folder(name);
        let damaged = |error| Found { name: name.clone(), jail: None, state: State::Damaged(error) };
        if !folder.exists() {
            let is_left = shared.groups.members(name).0;
            return Ok(is_left.then(|| {
                damaged(Error::new(ErrorKind::Corrupt, "jail.find", "only a control group is left"))
            }));
        }
        let record = match folder.jail() {
            Ok(record) if record.incarnation == *name && record.cluster == shared.config.cluster => record,
            Ok(_) => {
                let message = "the record is of another incarnation";
                return Ok(Some(damaged(Error::new(ErrorKind::Corrupt, "jail.find", message))));
            }
            Err(error) => return Ok(Some(damaged(error))),
        };
        let state = match situation(&folder, &record, &shared.boot_id) {
            Ok(state) => state,
            Err(error) if error.kind() == ErrorKind::Corrupt => State::Damaged(error),
            Err(error) => return Err(error),
        };
        Ok(Some(Found { name: name.clone(), jail: Some(self.jail(folder, record)), state }))
    }

    /// The spares that were given away: their names are those of others' groups.
    pub(crate) fn started_names(&self) -> Result<BTreeSet<JailName>> {
        let names = names_in(&self.shared.config.cluster_folder())
            .map_err(|error| failed("the jails cannot be listed", error))?;
        let record = |name: JailName| self.shared.folder(&name).jail().ok();
        Ok(names.into_iter().filter_map(record).filter_map(|record| record.started_as).collect())
    }

    /// Every jail of this cluster that is on this host, and every incarnation of which only a control group is left. Errors: `Internal`.
    pub async fn scan(&self) -> Result<Vec<Found>> {
        let jails = self.clone();
        blocking(move || jails.scan_now()).await
    }

    pub(crate) fn scan_now(&self) -> Result<Vec<Found>> {
        let mut names = names_in(&self.shared.config.cluster_folder())
            .map_err(|error| failed("the jails cannot be listed", error))?;
        // The groups before the records: a spare that is given away in between has a record of either name.
        let groups = self.shared.groups.names();
        let given = self.started_names()?;
        names.extend(groups.into_iter().filter(|name| !given.contains(name)));
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            found.extend(self.find_now(&name)?);
        }
        Ok(found)
    }
}

/// What may be named by an incarnation, also when it is no folder.
fn names_in(folder: &Path) -> io::Result<BTreeSet<JailName>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        names.extend(entry?.file_name().to_str().and_then(|name| JailName::new(name).ok()));
    }
    Ok(names)
}

/// No process is in what is half made or half removed: it is renamed after the start of the first and before the end of the other.
fn clear_half_done(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(NEW) || name.starts_with(OLD)) {
            unmount_below(&entry.path())?;
            remove_all(&entry.path())?;
        }
    }
    Ok(())
}

/// Errors: `InvalidInput` for two files of one name, and for one where the jailer puts its own.
pub(crate) fn check_places(spec: &JailSpec, firecracker: &Path) -> Result<()> {
    let refuse = |sentence: String| Err(Error::invalid("jail.create", "artefacts", sentence));
    let program = firecracker.file_name().unwrap_or_default().to_string_lossy();
    let mut taken = BTreeSet::new();
    for artefact in &spec.artefacts {
        let inside = artefact.inside();
        let top = inside.top();
        if ["dev", "run", "old_root"].contains(&top) || top == program || top == format!("{program}.pid") {
            return refuse(format!("`{inside}` is where the jailer puts its own files."));
        }
        if !taken.insert(inside) {
            return refuse(format!("`{inside}` is named twice."));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artefact::Artefact;
    use crate::chroot::Inside;

    #[test]
    fn a_place_of_the_jailers_or_one_that_is_named_twice_is_refused() {
        let spec = |paths: &[&str]| JailSpec {
            artefacts: paths
                .iter()
                .map(|path| Artefact::Empty { inside: Inside::new(*path).unwrap(), bytes: 1 })
                .collect(),
            ..JailSpec::default()
        };
        let program = Path::new("/opt/firecracker-v1");
        for wrong in
            [&["dev/kvm"][..], &["run/x"], &["firecracker-v1"], &["firecracker-v1.pid"], &["a", "b", "a"]]
        {
            assert!(check_places(&spec(wrong), program).is_err(), "{wrong:?}");
        }
        check_places(&spec(&["disks/a", "disks/b", "kernel"]), program).unwrap();
    }
}
