//! A jail that was made before anybody asked for it, and how it becomes an incarnation's.
//!
//! It holds what takes the most time of a start and depends on no machine: a slot, a chroot without files, and a Firecracker that waits at its
//! socket. It has a name of its own, so that it is found and removed as any other jail, whatever becomes of us. Its control groups keep that
//! name, which the jail's record tells: a process that is moved from one group to another waits some milliseconds for each thread and hierarchy,
//! and holds up all that are moved at the same time.
//!
//! Every point at which the controller may be killed while it is given away:
//!
//! * until the record names the incarnation: a spare, perhaps with some of its files and its limits. It is removed.
//! * until the folder has the incarnation's name: a jail with another's record, which can only be removed.
//! * after that: the incarnation's jail, prepared, whose next [`Jail::start`] finds its process waiting.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::failed;
use flames_host::process::Process;
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Resource, Rlimit, Uid};

use crate::artefact::{Placed, place};
use crate::chroot::Chroot;
use crate::jail::{Jail, JailSpec, State, situation};
use crate::jails::check_places;
use crate::launch::{Launch, Vmm};
use crate::limits::{Limits, disk_of};
use crate::may_die_here;
use crate::name::JailName;
use crate::record::JailRecord;

const OPERATION: &str = "jail.give";
/// What the name of a spare begins with, and that of no incarnation may.
pub(crate) const PREFIX: &str = "flames_spare_";

impl JailName {
    /// The name of a spare: of a number that was never used before.
    pub fn of_spare(number: u64) -> Self {
        Self::known(format!("{PREFIX}{number:016x}"))
    }

    /// Whether it is a spare's. Such a name is no incarnation's.
    pub fn is_spare(&self) -> bool {
        self.as_str().starts_with(PREFIX)
    }
}

impl JailSpec {
    /// What a spare is made with: no files, and a limit of each kind that [`Limits::for_guest`] has, none of them less than a guest's.
    pub fn of_spare(open_files: u64) -> Self {
        // Larger than any, so that what it is given is always less: version 1 takes no limit of memory above that of memory and swap.
        let limits = Limits { memory_bytes: Some(1 << 46), ..Limits::for_guest(1, 0) };
        Self { limits, open_files, ..Self::default() }
    }
}

impl Jail {
    /// As [`Jail::start`], of a Firecracker that is to wait for whom it will be given to: see [`Jail::give`].
    ///
    /// Errors: those of [`Jail::start`].
    pub async fn start_waiting(&self, launch: Launch) -> Result<Vmm> {
        self.launch(launch, true).await
    }

    /// Makes a jail whose Firecracker waits ([`Jail::start_waiting`]), and which was made for nobody, the incarnation's: with its files, its
    /// limits, of the kinds that it was made with ([`JailSpec::of_spare`]), and its name. Nothing of the spare's name is left.
    ///
    /// Errors: `NotSupported` for files that would have to be mounted, and as [`crate::Jails::create`]; `AlreadyExists` when the incarnation
    /// has a jail; `Unavailable` when the process has ended; those of [`crate::Jails::create`]. After an error the spare, and what there may be
    /// of the incarnation's, can only be removed ([`crate::Jails::remove`]).
    ///
    /// A dropped call goes on by itself.
    pub async fn give(&self, name: &JailName, spec: JailSpec) -> Result<Self> {
        let (spare, name) = (self.clone(), name.clone());
        blocking(move || spare.give_now(&name, spec)).await
    }

    pub(crate) fn give_now(&self, name: &JailName, spec: JailSpec) -> Result<Self> {
        let shared = &self.shared;
        let folder = shared.folder(name);
        if folder.exists() {
            return Err(Error::new(ErrorKind::AlreadyExists, OPERATION, "the incarnation has a jail")
                .with_resource("incarnation", name.as_str()));
        }
        check_places(&spec, &self.record.firecracker)?;
        let process = match situation(&self.folder, &self.record, &shared.boot_id)? {
            State::Waiting(process) if process.is_alive() => process,
            _ => return Err(Error::unavailable(OPERATION, "the spare's process has ended")),
        };
        self.note_disks(&spec)?;
        let placed = self.place_all(&spec)?;
        self.confine(&spec, &process)?;
        let record = JailRecord {
            incarnation: name.clone(),
            started_as: Some(self.record.started_name().clone()),
            spec,
            placed,
            ..(*self.record).clone()
        };
        may_die_here!("before a spare's record names its owner");
        self.folder.note_jail(&record)?;
        may_die_here!("before a spare's slot is its owner's");
        shared.slots.hand_over(self.record.slot.index, self.name(), name)?;
        let io = |error| failed("a spare cannot be given away", error);
        may_die_here!("before a spare has its owner's name");
        std::fs::rename(self.folder.path(), folder.path()).map_err(io)?;
        may_die_here!("before a spare's new name is durable");
        // In any order: the slot was the spare's before, durably, and was free at no moment.
        flush_all(&[
            &folder.jail_file(),
            folder.path(),
            &shared.config.slots_folder(),
            &shared.config.cluster_folder(),
        ])
        .map_err(io)?;
        Ok(Self { shared: Arc::clone(shared), folder, record: Arc::new(record) })
    }

    /// Has the disks that are about to be the user's on the spare's record, so that whoever removes it makes them root's again. Not flushed: what
    /// is for nobody when a host dies is for the next machine that it is given to.
    fn note_disks(&self, spec: &JailSpec) -> Result<()> {
        let mut placed = Vec::new();
        for artefact in &spec.artefacts {
            placed.extend(Placed::to_be_given(artefact)?);
        }
        if placed.is_empty() {
            return Ok(());
        }
        may_die_here!("before a spare's disks are on its record");
        self.folder.note_jail(&JailRecord { placed, ..(*self.record).clone() })
    }

    /// Puts the files into the chroot; what was given to the user is root's again after an error.
    fn place_all(&self, spec: &JailSpec) -> Result<Vec<Placed>> {
        let chroot = self.chroot()?;
        let (user, largest) = (self.record.slot.user, self.shared.config.largest_copy);
        let mut placed: Vec<Placed> = Vec::with_capacity(spec.artefacts.len());
        for artefact in &spec.artefacts {
            may_die_here!("before a file is put into a spare");
            match place(&chroot, artefact, user, largest, false) {
                Ok(one) => placed.push(one),
                Err(error) => {
                    give_back(&placed, &chroot);
                    return Err(error);
                }
            }
        }
        Ok(placed)
    }

    /// The limits of a machine for a process that is in groups of the same kinds.
    fn confine(&self, spec: &JailSpec, process: &Process) -> Result<()> {
        let shared = &self.shared;
        let io = |error| failed("a spare cannot be limited", error);
        let disk = disk_of(self.chroot()?.device().map_err(io)?, Path::new("/sys"));
        let allow_without = shared.config.allow_without_limits;
        let settings = spec.limits.plan(shared.groups.hierarchies(), disk, allow_without)?;
        shared.groups.limit(self.record.started_name(), &settings)?;
        match spec.largest_file {
            Some(bytes) => limit_files(process.identity().pid, self.record.slot.user, bytes).map_err(io),
            None => Ok(()),
        }
    }
}

/// What stands in the files and folders outlives the host from now on. At the same time, since each waits for the disk.
fn flush_all(paths: &[&Path]) -> io::Result<()> {
    std::thread::scope(|scope| {
        let flushes: Vec<_> =
            paths.iter().map(|path| scope.spawn(move || File::open(path)?.sync_all())).collect();
        flushes.into_iter().try_for_each(|flush| {
            flush.join().unwrap_or_else(|_| Err(io::Error::other("a flush has panicked")))
        })
    })
}

/// The largest file that the user's process may write from now on: less than before.
fn limit_files(pid: u32, user: u32, bytes: u64) -> io::Result<()> {
    // None would be ourselves.
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let limit = move || {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        rustix::process::prlimit(Some(pid), Resource::Fsize, limit).map(drop)
    };
    match limit() {
        // Root without CAP_SYS_RESOURCE, as in containers: the user itself may lower its limits (prlimit(2)). By a thread that ends with it.
        Err(Errno::PERM) => {
            let as_user = move || {
                let (user, group) = (Uid::from_raw(user), Gid::from_raw(user));
                rustix::thread::set_thread_res_gid(group, group, group)?;
                rustix::thread::set_thread_res_uid(user, user, user)?;
                limit()
            };
            let ended = std::thread::spawn(as_user).join();
            Ok(ended.unwrap_or(Err(Errno::CANCELED))?)
        }
        done => Ok(done?),
    }
}

/// The error that is told is the one before; a disk that stays the user's is given to the next user that it is for.
fn give_back(placed: &[Placed], chroot: &Chroot) {
    for one in placed {
        let _ = one.give_back(Some(chroot));
    }
}
