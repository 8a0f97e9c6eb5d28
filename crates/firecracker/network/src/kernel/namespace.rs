//! Named network namespaces: files below `/run/netns` that a namespace is mounted on, as `ip netns` and the jailer's `--netns`
//! know them.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use flames_error::{Error, Result};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::refused;

/// Where namespaces have their names (ip-netns(8)).
pub(crate) const FOLDER: &str = "/run/netns";

/// The calling thread's own namespace (namespaces(7)).
const OWN: &str = "/proc/thread-self/ns/net";

const OPERATION: &str = "network.namespace";

/// A network namespace, held open: it lives at least as long as this does.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    /// The namespace of the calling thread.
    pub(crate) fn current() -> Result<Self> {
        File::open(OWN).map(Self).map_err(|error| refused(OPERATION, "opening the thread's namespace", error))
    }

    /// The namespace that is mounted on the file; none when there is no such file, or nothing is mounted on it (which a crash
    /// leaves between the two).
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(
                    refused(OPERATION, "opening a namespace", error).with_context("path", path.display())
                );
            }
        };
        let found =
            rustix::fs::fstatfs(&file).map_err(|error| refused(OPERATION, "fstatfs", error.into()))?;
        Ok((found.f_type == NSFS_MAGIC).then_some(Self(file)))
    }

    /// Moves the calling thread into it. Only for threads that end with this work.
    pub(crate) fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| refused(OPERATION, "entering a namespace", error.into()))
    }

    pub(crate) fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.0)
    }

    pub(crate) fn try_clone(&self) -> Result<Self> {
        self.0.try_clone().map(Self).map_err(|error| refused(OPERATION, "holding a namespace", error))
    }
}

/// What `fstatfs` says of a namespace's file (`NSFS_MAGIC`, linux/magic.h).
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// Where the namespace of this name is.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// The file of a name that no namespace has, for one to be mounted on. What a crash left there without a namespace is used.
///
/// Errors: `AlreadyExists`; else those of the kernel.
fn take(path: &Path) -> Result<()> {
    if Namespace::open(path)?.is_some() {
        return Err(Error::new(
            flames_error::ErrorKind::AlreadyExists,
            OPERATION,
            "there is a namespace of this name",
        )
        .with_context("path", path.display()));
    }
    File::create(path).map_err(|error| refused(OPERATION, "naming a namespace", error))?;
    Ok(())
}

/// Makes a fresh namespace of this name and moves the calling thread into it.
///
/// Errors: `AlreadyExists` when there is one; else those of the kernel.
pub(crate) fn create(name: &str) -> Result<Namespace> {
    let path = path(name);
    std::fs::create_dir_all(FOLDER).map_err(|error| refused(OPERATION, "making /run/netns", error))?;
    take(&path)?;
    unshare_network().map_err(|error| refused(OPERATION, "making a namespace", error.into()))?;
    mount_bind(OWN, &path).map_err(|error| refused(OPERATION, "mounting a namespace", error.into()))?;
    Namespace::current()
}

/// Gives a namespace another name and moves the calling thread into it. Cut off in between it has both.
///
/// Errors: `NotFound` when there is none; `AlreadyExists` when there is one of the new name; else those of the kernel.
pub(crate) fn rename(from: &str, to: &str) -> Result<Namespace> {
    let (old, new) = (path(from), path(to));
    let namespace = Namespace::open(&old)?
        .ok_or_else(|| Error::not_found(OPERATION, "namespace", old.display().to_string()))?;
    take(&new)?;
    mount_bind(&old, &new).map_err(|error| refused(OPERATION, "mounting a namespace", error.into()))?;
    remove(from)?;
    namespace.enter()?;
    Ok(namespace)
}

#[allow(unsafe_code)]
fn unshare_network() -> rustix::io::Result<()> {
    // SAFETY: of all flags only CLONE_FILES can break what other code relies on (the shared table of descriptors). This one
    // gives the calling thread a network namespace of its own.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
}

/// Takes the name away. The namespace ends when no process, socket or descriptor holds it any more. Nothing there: no error.
pub(crate) fn remove(name: &str) -> Result<()> {
    let path = path(name);
    // Whoever mounted twice leaves two layers; each goes.
    for _ in 0..16 {
        match unmount(&path, UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(refused(OPERATION, "unmounting a namespace", error.into())),
        }
    }
    flames_host::files::remove_if_there(&path)
        .map_err(|error| refused(OPERATION, "removing a namespace's name", error))
}

/// The names of all namespaces, ours and others'.
pub(crate) fn names() -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(FOLDER) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(refused(OPERATION, "reading /run/netns", error)),
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(|error| refused(OPERATION, "reading /run/netns", error))
}
