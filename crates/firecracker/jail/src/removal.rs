//! The end of a jail: nothing of it is left on the host.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::ClockExt;
use flames_error::{Error, Result};
use flames_host::blocking;
use flames_host::files::{failed, remove_all, sync_folder};
use flames_host::process::{self, Process};

use crate::chroot::Chroot;
use crate::config::JailConfig;
use crate::jail::{State, processes_of, situation};
use crate::jails::{Jails, OLD, Shared};
use crate::may_die_here;
use crate::mounts::unmount_below;
use crate::name::JailName;
use crate::record::{JailFolder, JailRecord};

const OPERATION: &str = "jail.remove";

impl Jails {
    /// Kills what runs in the jail and removes everything of it: processes, control groups, mounts, files, and at last the slot. Also what
    /// is left of one whose records cannot be read. No error when there is nothing. A call that is cut short at any point is completed by
    /// the next, or by [`Jails::open`].
    ///
    /// Disks that were the microVM's ([`crate::Artefact::Owned`]) stay, and are root's again.
    ///
    /// Errors: `Unavailable` when a process or its group does not go within [`JailConfig::kill_deadline`]; `Internal`.
    pub async fn remove(&self, name: &JailName) -> Result<()> {
        let shared = &self.shared;
        let folder = shared.folder(name);
        if name.is_spare() && !folder.exists() {
            // Its groups are those of the incarnation that it was given to.
            let (jails, spare) = (self.clone(), name.clone());
            if blocking(move || jails.started_names()).await?.contains(&spare) {
                return Ok(());
            }
        }
        let record = {
            let folder = folder.clone();
            blocking(move || Ok(folder.jail().ok())).await?
        };
        shared.end_all(name, folder.exists().then_some(&folder), record.as_ref()).await?;
        let (shared, name) = (Arc::clone(shared), name.clone());
        blocking(move || shared.remove_files(&name, &folder, record.as_ref())).await
    }
}

impl Shared {
    /// Kills every process of the jail, waits until it is gone, and removes its control groups.
    pub(crate) async fn end_all(
        self: &Arc<Self>,
        name: &JailName,
        folder: Option<&JailFolder>,
        record: Option<&JailRecord>,
    ) -> Result<()> {
        let ends = async {
            let mut pause = Duration::from_micros(500);
            loop {
                let look = {
                    let (shared, name) = (Arc::clone(self), name.clone());
                    let (folder, record) = (folder.cloned(), record.cloned());
                    blocking(move || shared.processes(&name, folder.as_ref(), record.as_ref())).await?
                };
                for process in &look.found {
                    process.kill().map_err(|error| failed("a process cannot be killed", error))?;
                    let _ = process.ended().await;
                    process.reap();
                }
                if look.found.is_empty() && !look.is_starting {
                    let shared = Arc::clone(self);
                    let group = record.map_or(name, JailRecord::started_name).clone();
                    if blocking(move || shared.groups.try_remove(&group)).await? {
                        return Ok(());
                    }
                }
                self.clock.sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        };
        self.clock.timeout(self.config.kill_deadline, ends).await.unwrap_or_else(|_| {
            Err(Error::unavailable(OPERATION, "a process of the jail, or its control group, does not go")
                .with_resource("incarnation", name.as_str()))
        })
    }

    /// Whatever runs in the jail, by every trace of it.
    fn processes(
        &self,
        name: &JailName,
        folder: Option<&JailFolder>,
        record: Option<&JailRecord>,
    ) -> Result<Look> {
        let io = |error| failed("the processes cannot be read", error);
        let mut look = Look::default();
        let started_as = record.map_or(name, JailRecord::started_name);
        let (has_group, members) = self.groups.members(started_as);
        for pid in members {
            // Gone since it was listed, or a process that has the number of one that is gone: the group is looked at again.
            if let Some(process) = Process::of_pid(pid).map_err(io)?
                && self.groups.members(started_as).1.contains(&pid)
            {
                look.found.push(process);
            }
        }
        let Some(folder) = folder else { return Ok(look) };
        let state = record.map(|record| situation(folder, record, &self.boot_id));
        let mut is_damaged = false;
        match state {
            Some(Ok(State::Started(process) | State::Waiting(process))) => {
                if process.is_alive() {
                    look.found.push(process);
                } else {
                    process.reap();
                }
            }
            Some(Ok(State::Unfinished(processes))) => {
                look.is_starting = true;
                look.found.extend(processes);
            }
            Some(Ok(State::Prepared | State::Gone)) => {}
            Some(Ok(State::Damaged(_)) | Err(_)) | None => is_damaged = true,
        }
        // A process cannot leave its groups nor its user, so an empty group says that all are gone; without one, all are looked at.
        if !has_group || is_damaged {
            let slot = self.slots.of(name)?;
            let user = record.map(|record| record.slot.user).or(slot.map(|slot| slot.user));
            if is_damaged || !matches!(folder.process(), Ok(None)) {
                look.found.extend(processes_of(folder, started_as, user).map_err(io)?);
                for user in user.into_iter().filter(|user| self.is_of_a_microvm(*user)) {
                    look.found.extend(process::processes_of(user).map_err(io)?);
                }
            }
        }
        Ok(look)
    }

    /// Whoever is killed by its user alone must be one whose user nobody else has; never we.
    fn is_of_a_microvm(&self, user: u32) -> bool {
        let range = self.config.users;
        let is_ours = user == rustix::process::getuid().as_raw();
        !is_ours && user.checked_sub(range.first_user).is_some_and(|index| index < range.count)
    }

    pub(crate) fn remove_files(
        &self,
        name: &JailName,
        folder: &JailFolder,
        record: Option<&JailRecord>,
    ) -> Result<()> {
        let io = |error| failed("the jail cannot be removed", error);
        let above = self.config.cluster_folder();
        let old = above.join(format!("{OLD}{name}"));
        unmount_below(&old).map_err(io)?;
        remove_all(&old).map_err(io)?;
        if folder.exists() {
            if let Some(record) = record {
                let root = JailConfig::chroot(folder.path(), &record.firecracker, record.started_name());
                let chroot = Chroot::open(&root, record.slot.user).ok();
                may_die_here!("before disks are given back");
                record.placed.iter().try_for_each(|placed| placed.give_back(chroot.as_ref())).map_err(io)?;
            }
            unmount_below(folder.path()).map_err(io)?;
            may_die_here!("before a jail loses its name");
            // So that a half removed folder is never taken for a jail.
            match std::fs::rename(folder.path(), &old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
                _ => {}
            }
            may_die_here!("before a jail's end is durable");
            sync_folder(&above).map_err(io)?;
            may_die_here!("before a jail's files are removed");
            remove_all(&old).map_err(io)?;
        }
        // Half made ones of an earlier try.
        remove_all(&above.join(format!("{}{name}", crate::jails::NEW))).map_err(io)?;
        // At last: who gets the slot next shares nothing with who had it.
        may_die_here!("before a jail's slot is freed");
        self.slots.free(name)
    }
}

#[derive(Debug, Default)]
struct Look {
    found: Vec<Process>,
    /// A process is between fork and exec, and cannot be told from ours; it will be.
    is_starting: bool,
}
