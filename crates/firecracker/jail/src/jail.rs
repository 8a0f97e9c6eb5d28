//! One incarnation's jail.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flames_error::{Error, Result};
use flames_host::files::failed;
use flames_host::process::{self, Process};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;

use crate::artefact::{Artefact, Way, place};
use crate::chroot::{Chroot, Inside};
use crate::command::{folder_marker, name_marker};
use crate::config::JailConfig;
use crate::jails::Shared;
use crate::limits::Limits;
use crate::name::JailName;
use crate::record::{JailFolder, JailRecord};
use crate::slots::Slot;

const OPERATION: &str = "jail.files";

/// What a jail is made with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailSpec {
    /// The files that the microVM needs. None of them in `run` or `dev`, which are made anew at each start.
    pub artefacts: Vec<Artefact>,
    /// What its process may use.
    pub limits: Limits,
    /// One more than the largest file descriptor (`RLIMIT_NOFILE`).
    pub open_files: u64,
    /// The size beyond which its process may write no file (`RLIMIT_FSIZE`), its disks and its snapshots' memory included.
    pub largest_file: Option<u64>,
}

impl Default for JailSpec {
    /// No files, no limits but 1024 open files.
    fn default() -> Self {
        Self { artefacts: Vec::new(), limits: Limits::default(), open_files: 1024, largest_file: None }
    }
}

/// A jail that is on this host, and how its process stands.
#[derive(Debug)]
pub struct Found {
    /// Whose it is.
    pub name: JailName,
    /// None for one of which only remains are there, or whose records cannot be read: it can only be removed.
    pub jail: Option<Jail>,
    /// How its process stands.
    pub state: State,
}

/// How the process of a jail stands.
#[derive(Debug)]
pub enum State {
    /// It was not started; [`Jail::start`] may be called.
    Prepared,
    /// As prepared, with a process that waits to be told of its machine ([`Jail::start_waiting`]).
    Waiting(Process),
    /// A start was cut short before its process was on record, so its guest has run nothing. [`Jail::start`] ends what is left of it
    /// and goes on. The processes that were found; none when it is too young to be told from us.
    Unfinished(Vec<Process>),
    /// It runs, or has ended and was not reaped.
    Started(Process),
    /// It was started, and is gone: ended, killed, or lost with the host's last boot.
    Gone,
    /// The records cannot be read, or are not there, and why. Its processes, if any are alive, are killed by the removal.
    Damaged(Error),
}

/// One incarnation's jail: handles are cheap, and change nothing when they are dropped.
#[derive(Debug, Clone)]
pub struct Jail {
    pub(crate) shared: Arc<Shared>,
    pub(crate) folder: JailFolder,
    pub(crate) record: Arc<JailRecord>,
}

impl Jail {
    /// Whose it is.
    pub fn name(&self) -> &JailName {
        &self.record.incarnation
    }

    /// The host-local number that it has, and its user.
    pub fn slot(&self) -> Slot {
        self.record.slot
    }

    /// What it was made with.
    pub fn spec(&self) -> &JailSpec {
        &self.record.spec
    }

    /// Its folder, which only root enters: a place for records of the driver's own, beside the chroot. Names with a leading `driver.`
    /// are never used by the jail.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The chroot, as the host sees it. The VMM may put links into it: reach what is in it through this type only.
    pub fn root(&self) -> PathBuf {
        JailConfig::chroot(self.folder.path(), &self.record.firecracker, self.record.started_name())
    }

    /// How the artefact at this place got there; none when there is none.
    pub fn way(&self, inside: &Inside) -> Option<Way> {
        self.record.placed.iter().find(|placed| placed.inside == *inside).map(|placed| placed.way)
    }

    pub(crate) fn chroot(&self) -> Result<Chroot> {
        Chroot::open(&self.root(), self.record.slot.user)
            .map_err(|error| failed("the chroot cannot be opened", error))
    }

    /// Puts one more file into the chroot, also of a VMM that runs; not on record, so an [`Artefact::Owned`] is refused.
    ///
    /// Errors: as those of [`crate::Jails::create`]; `NotSupported` when it would have to be mounted.
    pub async fn add(&self, artefact: Artefact) -> Result<Way> {
        if let Artefact::Owned { .. } = artefact {
            let sentence = "A disk that outlives its microVM must be given when the microVM is made.";
            return Err(Error::invalid(OPERATION, "artefact", sentence));
        }
        let jail = self.clone();
        flames_host::blocking(move || {
            let (user, largest) = (jail.record.slot.user, jail.shared.config.largest_copy);
            place(&jail.chroot()?, &artefact, user, largest, false).map(|placed| placed.way)
        })
        .await
    }

    /// A file of the chroot, open for reading; never a link, a device or a pipe that the VMM put in its place.
    ///
    /// Errors: `NotFound`; `InvalidInput` when it is no file.
    pub fn open_file(&self, inside: &Inside) -> Result<File> {
        self.chroot()?.open_file(inside).map_err(|error| self.file_error(inside, error))
    }

    /// A new, empty file of the VMM's own. Errors: `AlreadyExists`.
    pub fn create_file(&self, inside: &Inside) -> Result<File> {
        let chroot = self.chroot()?;
        chroot
            .make_way(inside)
            .and_then(|()| chroot.create(inside, 0o600))
            .map_err(|error| self.file_error(inside, error))
    }

    /// A folder of the VMM's own, and those that lead to it; no error when they are there. Errors: `Internal`.
    pub fn make_folder(&self, inside: &Inside) -> Result<()> {
        self.chroot()?.make_folder(inside.as_str()).map_err(|error| self.file_error(inside, error))
    }

    /// Removes a file, or a link, of the chroot. No error when nothing is there.
    pub fn remove_file(&self, inside: &Inside) -> Result<()> {
        self.chroot()?.remove(inside).map_err(|error| self.file_error(inside, error))
    }

    /// Connects to a socket that the VMM has made, however long the jail's path is; never to one outside of the chroot.
    ///
    /// Errors: `NotFound`, `Unavailable` when nobody listens.
    pub async fn connect(&self, inside: &Inside) -> Result<UnixStream> {
        let error = |error| self.file_error(inside, error);
        let (_open, path) = self.chroot()?.socket(inside).map_err(error)?;
        UnixStream::connect(path).await.map_err(error)
    }

    /// Listens on a socket of the chroot that the VMM may connect to; whatever had the name is removed. Must be called within a runtime.
    ///
    /// Errors: `Internal`.
    pub fn listen(&self, inside: &Inside) -> Result<tokio::net::UnixListener> {
        let chroot = self.chroot()?;
        let listen = || {
            chroot.make_way(inside)?;
            let listener: UnixListener = chroot.listen(inside)?;
            listener.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(listener)
        };
        listen().map_err(|error| self.file_error(inside, error))
    }

    /// A pipe of the chroot that the VMM may write to (its log, its serial port), and its reading end. What is written while nobody
    /// reads is kept up to 64 KiB and then refused. It never ends: both sides may be opened again. Must be called within a runtime.
    ///
    /// Errors: `Internal`.
    pub fn pipe(&self, inside: &Inside) -> Result<Receiver> {
        let chroot = self.chroot()?;
        let open = || {
            chroot.make_way(inside)?;
            Receiver::from_file_unchecked(chroot.pipe(inside)?)
        };
        open().map_err(|error| self.file_error(inside, error))
    }

    /// The reading end of what the jailer and Firecracker say on their standard output and error, of which the kernel keeps 64 KiB while
    /// nobody reads. A guest's serial port is there too unless it was sent elsewhere. It never ends. Must be called within a runtime.
    pub fn output(&self) -> Result<Receiver> {
        process::open_bounded_pipe(&self.folder.join("output"))
            .and_then(Receiver::from_file_unchecked)
            .map_err(|error| failed("the output cannot be opened", error))
    }

    fn file_error(&self, inside: &Inside, error: std::io::Error) -> Error {
        use std::io::ErrorKind as Io;
        let made = match error.kind() {
            Io::NotFound => Error::not_found(OPERATION, "file", inside.as_str()),
            Io::ConnectionRefused => Error::unavailable(OPERATION, "nobody listens on the socket"),
            Io::AlreadyExists => {
                Error::new(flames_error::ErrorKind::AlreadyExists, OPERATION, "the file is there already")
            }
            // ELOOP: a link (openat2(2)).
            _ if error.kind() == Io::InvalidInput
                || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) =>
            {
                Error::invalid(OPERATION, "inside", "The microVM has put something else in the file's place.")
            }
            _ => return failed("a file of a jail cannot be reached", error),
        };
        made.with_source(error).with_context("incarnation", self.name())
    }
}

/// How the process of a jail with readable records stands. Reads all of `/proc` only for a start that was cut short.
pub(crate) fn situation(folder: &JailFolder, record: &JailRecord, boot_id: &str) -> Result<State> {
    let io = |error| failed("the processes cannot be read", error);
    let Some(noted) = folder.process()? else { return Ok(State::Prepared) };
    let is_this_boot = noted.boot_id == boot_id;
    let (name, user) = (record.started_name(), record.slot.user);
    match noted.process {
        Some(identity) if is_this_boot => {
            let marker = name_marker(name);
            let is_meant = |pid| process::has_marker(pid, &marker) || process::user_of(pid) == Some(user);
            let found = Process::find_proven(identity, is_meant).map_err(io)?;
            Ok(match found {
                Some(process) if noted.waits => State::Waiting(process),
                Some(process) => State::Started(process),
                None if noted.waits => State::Prepared,
                None => State::Gone,
            })
        }
        Some(_) => Ok(if noted.waits { State::Prepared } else { State::Gone }),
        None if is_this_boot => {
            let found = processes_of(folder, name, Some(user)).map_err(io)?;
            // One that is between fork and exec has no name of its own yet, and the lock already.
            let is_free = found.is_empty() && folder.lock()?.is_some();
            Ok(if is_free { State::Prepared } else { State::Unfinished(found) })
        }
        None => Ok(State::Prepared),
    }
}

/// What runs in the jail that was started under this name, whatever is on record: the jailer while it is root's, known by the jail's folder, and
/// what it becomes, known by its name and its user. Another jail may have the name (one of another cluster, or of other folders), and is
/// never among them. Reads all of `/proc`.
pub(crate) fn processes_of(
    folder: &JailFolder,
    started_as: &JailName,
    user: Option<u32>,
) -> std::io::Result<Vec<Process>> {
    // A spare was started in the folder that had its own name.
    let folder = folder.path().with_file_name(started_as.as_str());
    // In this order: one that ceases to be root's between the two looks is seen by the second.
    let mut found = process::scan_of(&folder_marker(&folder), &[0])?;
    if let Some(user) = user {
        found.extend(process::scan_of(&name_marker(started_as), &[user])?);
    }
    Ok(found)
}
