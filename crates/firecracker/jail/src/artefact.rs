//! How files get into a chroot.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flames_error::{Error, ErrorKind, Result};
use flames_host::files::failed;
use flames_host::process::BindMount;
use rustix::fs::Mode;
use serde::{Deserialize, Serialize};

use crate::chroot::{Chroot, Inside};

const OPERATION: &str = "jail.artefact";

/// A file that a microVM needs in its chroot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Artefact {
    /// A file that others use too (a kernel, an initramfs, a root image, a snapshot's files). It is only ever read, and neither its owner
    /// nor its mode is changed. In this order, by what the host can do:
    ///
    /// 1. a hard link, where it is on the jails' file system, and its mode lets everybody read it and nobody else write it: free;
    /// 2. a reflink of the user's own, where the file system can (XFS, btrfs): also for a file that only root reads;
    /// 3. a read-only mount of the process's own, where its mode lets everybody read it: also from another file system;
    /// 4. a copy of the user's own, up to [`crate::JailConfig::largest_copy`].
    ///
    /// So an image store's files are best mode 0444.
    Shared {
        /// The file on the host.
        source: PathBuf,
        /// Where the microVM finds it.
        inside: Inside,
    },
    /// A file of this microVM alone (its disk), which it may write. Its owner becomes the jail's user and its mode 0600 for as long as
    /// the jail is there; then it is root's again. Linked, or mounted from another file system.
    Owned {
        /// The file on the host.
        source: PathBuf,
        /// Where the microVM finds it.
        inside: Inside,
    },
    /// A new file of this size, sparse, that goes with the jail.
    Empty {
        /// Where the microVM finds it.
        inside: Inside,
        /// Its size.
        bytes: u64,
    },
}

impl Artefact {
    /// Where the microVM finds it.
    pub fn inside(&self) -> &Inside {
        match self {
            Self::Shared { inside, .. } | Self::Owned { inside, .. } | Self::Empty { inside, .. } => inside,
        }
    }
}

/// How an artefact got into its chroot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// One more name of the same file.
    Linked,
    /// A file of its own that shares its blocks.
    Reflinked,
    /// A file of its own.
    Copied,
    /// Seen by the VMM's process alone; on the host there is an empty file in its place.
    Mounted,
    /// Made new.
    Created,
}

/// What was done for one artefact, as far as the start and the removal must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Placed {
    pub(crate) inside: Inside,
    pub(crate) way: Way,
    /// Of what is mounted, and of what belongs to the microVM.
    pub(crate) source: Option<PathBuf>,
    pub(crate) is_writable: bool,
    /// (device, inode) of a file that is given back in the end.
    pub(crate) given: Option<(u64, u64)>,
}

impl Placed {
    /// The mount that the start has to make. Errors: `NotFound` when what shall be mounted is gone.
    pub(crate) fn mount(&self, chroot: &Path) -> Result<Option<BindMount>> {
        let (Way::Mounted, Some(source)) = (self.way, &self.source) else { return Ok(None) };
        if !source.is_file() {
            return Err(Error::not_found(OPERATION, "file", source.display().to_string()));
        }
        BindMount::new(source, &chroot.join(self.inside.as_str()), !self.is_writable)
            .map(Some)
            .map_err(|error| failed("a path cannot be mounted", error))
    }

    /// What [`place`] is about to do with a file that will belong to the microVM; none for the others. Errors: those of [`place`].
    pub(crate) fn to_be_given(artefact: &Artefact) -> Result<Option<Self>> {
        let Artefact::Owned { source, inside } = artefact else { return Ok(None) };
        let metadata = open_source(source)?.1;
        Ok(Some(Self {
            inside: inside.clone(),
            way: Way::Linked,
            source: Some(source.clone()),
            is_writable: true,
            given: Some((metadata.dev(), metadata.ino())),
        }))
    }

    /// Makes a file that was the microVM's root's again, under whichever of its two names it still is. Nothing else is touched: the VMM
    /// may have put another file in its place.
    pub(crate) fn give_back(&self, chroot: Option<&Chroot>) -> io::Result<()> {
        let Some(given) = self.given else { return Ok(()) };
        let linked = chroot.and_then(|chroot| chroot.open_file(&self.inside).ok());
        let named = self.source.as_deref().and_then(|source| open_here(source).ok());
        for file in [linked, named].into_iter().flatten() {
            let metadata = file.metadata()?;
            if (metadata.dev(), metadata.ino()) == given {
                let (user, group) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
                return Ok(rustix::fs::fchown(&file, Some(user), Some(group))?);
            }
        }
        Ok(())
    }
}

/// The last part of the path is not followed when it is a link.
fn open_here(path: &Path) -> io::Result<File> {
    use rustix::fs::OFlags;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Puts the artefact into a chroot whose VMM does not run yet. `can_mount` is false for one that runs: mounts are made at its start.
///
/// Errors: `NotFound`; `InvalidInput` for what is no file, or cannot be read by the user and is too large to be copied; `Exhausted` when
/// the disk is full; `AlreadyExists`; `NotSupported` when only a mount would do, and cannot be made.
pub(crate) fn place(
    chroot: &Chroot,
    artefact: &Artefact,
    user: u32,
    largest_copy: u64,
    can_mount: bool,
) -> Result<Placed> {
    let inside = artefact.inside();
    let io = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            Error::new(ErrorKind::AlreadyExists, OPERATION, "a jail has two files of one name")
                .with_resource("file", inside.as_str())
        }
        _ => failed("a file cannot be put into the jail", error),
    };
    chroot.make_way(inside).map_err(io)?;
    let placed = |way, source: Option<&PathBuf>, is_writable, given| Placed {
        inside: inside.clone(),
        way,
        source: source.cloned(),
        is_writable,
        given,
    };
    match artefact {
        Artefact::Empty { bytes, .. } => {
            chroot.create(inside, 0o600).and_then(|file| file.set_len(*bytes)).map_err(io)?;
            Ok(placed(Way::Created, None, true, None))
        }
        Artefact::Owned { source, .. } => {
            let (file, metadata) = open_source(source)?;
            let way = if metadata.dev() == chroot.device().map_err(io)? {
                link(chroot, &file, inside).map_err(io)?
            } else {
                None
            };
            let way = match way {
                Some(way) => way,
                None if can_mount => {
                    chroot.create(inside, 0o600).map_err(io)?;
                    Way::Mounted
                }
                None => return Err(needs_mount(source)),
            };
            rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR).map_err(|error| io(error.into()))?;
            chroot.give(&file).map_err(io)?;
            Ok(placed(way, Some(source), true, Some((metadata.dev(), metadata.ino()))))
        }
        Artefact::Shared { source, .. } => {
            let (file, metadata) = open_source(source)?;
            let (reads, writes) = rights(metadata.uid(), metadata.gid(), metadata.mode(), user);
            let same_device = metadata.dev() == chroot.device().map_err(io)?;
            if same_device
                && reads
                && !writes
                && let Some(way) = link(chroot, &file, inside).map_err(io)?
            {
                return Ok(placed(way, None, false, None));
            }
            if same_device && reflink(chroot, &file, inside).map_err(io)? {
                return Ok(placed(Way::Reflinked, None, false, None));
            }
            if reads && can_mount {
                chroot.create(inside, 0o400).map_err(io)?;
                return Ok(placed(Way::Mounted, Some(source), false, None));
            }
            if metadata.len() <= largest_copy {
                let mut copy = chroot.create(inside, 0o400).map_err(io)?;
                io::copy(&mut &file, &mut copy).and_then(|_| copy.sync_all()).map_err(io)?;
                return Ok(placed(Way::Copied, None, false, None));
            }
            if reads { Err(needs_mount(source)) } else { Err(unreadable(source)) }
        }
    }
}

fn open_source(source: &Path) -> Result<(File, std::fs::Metadata)> {
    let opened = File::open(source).and_then(|file| file.metadata().map(|metadata| (file, metadata)));
    match opened {
        Ok((file, metadata)) if metadata.is_file() => Ok((file, metadata)),
        Ok(_) => Err(Error::invalid(OPERATION, "source", format!("{} is not a file.", source.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::not_found(OPERATION, "file", source.display().to_string()).with_source(error))
        }
        Err(error) => Err(failed("a file for the jail cannot be opened", error)),
    }
}

fn unreadable(source: &Path) -> Error {
    let sentence = format!(
        "{} is readable by root only, and too large to be copied for each microVM. Make it mode 0444, or keep it and the jails on a \
         file system with reflinks (XFS, btrfs).",
        source.display()
    );
    Error::invalid(OPERATION, "source", sentence)
}

fn needs_mount(source: &Path) -> Error {
    let sentence = format!(
        "{} is on another file system than the jails, so a microVM that runs cannot get it. Keep both on one file system.",
        source.display()
    );
    Error::new(ErrorKind::NotSupported, OPERATION, "a mount is made only at the start")
        .with_user_message(sentence)
}

/// Whether the user (and group of the same number) may read and write a file, by its mode alone.
fn rights(owner: u32, group: u32, mode: u32, user: u32) -> (bool, bool) {
    let bits = match (owner == user, group == user) {
        (true, _) => mode >> 6,
        (false, true) => mode >> 3,
        (false, false) => mode,
    };
    // An owner may change the mode.
    (bits & 0o4 != 0, bits & 0o2 != 0 || owner == user)
}

/// None where the file system, or its limit of links, does not allow it.
fn link(chroot: &Chroot, file: &File, inside: &Inside) -> io::Result<Option<Way>> {
    use rustix::io::Errno;
    match chroot.link(file, inside) {
        Ok(()) => Ok(Some(Way::Linked)),
        // EXDEV also within one file system, when the file was reached through another mount of it (link(2)).
        Err(error)
            if [Errno::XDEV, Errno::MLINK, Errno::PERM, Errno::OPNOTSUPP]
                .iter()
                .any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// False where the file system cannot.
fn reflink(chroot: &Chroot, file: &File, inside: &Inside) -> io::Result<bool> {
    let copy = chroot.create(inside, 0o400)?;
    match rustix::fs::ioctl_ficlone(&copy, file) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NOSPC) => Err(io::ErrorKind::StorageFull.into()),
        // EOPNOTSUPP, EXDEV, EINVAL, ENOTTY: each means that it cannot (ioctl_ficlone(2)).
        Err(_) => {
            drop(copy);
            chroot.remove(inside)?;
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn inside(path: &str) -> Inside {
        Inside::new(path).unwrap()
    }

    #[test]
    fn rights_follow_from_the_mode_and_an_owner_always_may_write() {
        assert_eq!(rights(0, 0, 0o100644, 7), (true, false));
        assert_eq!(rights(0, 0, 0o100600, 7), (false, false));
        assert_eq!(rights(0, 0, 0o100666, 7), (true, true));
        assert_eq!(rights(0, 7, 0o100640, 7), (true, false));
        assert_eq!(rights(7, 7, 0o100400, 7), (true, true));
    }

    fn in_folder(mode: u32, largest_copy: u64) -> (tempfile::TempDir, Result<Placed>) {
        let folder = tempfile::tempdir().unwrap();
        let (source, root) = (folder.path().join("kernel"), folder.path().join("root"));
        std::fs::write(&source, "kernel").unwrap();
        std::fs::set_permissions(&source, std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::create_dir(&root).unwrap();
        let chroot = Chroot::open(&root, rustix::process::getuid().as_raw()).unwrap();
        let artefact = Artefact::Shared { source, inside: inside("boot/kernel") };
        // Another user than ours, so that the mode of others counts.
        let placed = place(&chroot, &artefact, 4_000_000, largest_copy, false);
        (folder, placed)
    }

    #[test]
    fn a_shared_file_is_linked_only_when_others_may_read_and_not_write_it() {
        let (folder, placed) = in_folder(0o644, 0);
        assert_eq!(placed.unwrap().way, Way::Linked);
        let original = std::fs::metadata(folder.path().join("kernel")).unwrap();
        assert_eq!((original.nlink(), original.mode() & 0o777), (2, 0o644));
        for mode in [0o600, 0o646] {
            let (folder, placed) = in_folder(mode, 1024);
            assert!(matches!(placed.unwrap().way, Way::Copied | Way::Reflinked), "{mode:o}");
            let original = std::fs::metadata(folder.path().join("kernel")).unwrap();
            assert_eq!((original.nlink(), original.mode() & 0o777), (1, mode));
            let copy = folder.path().join("root/boot/kernel");
            assert_eq!(std::fs::read_to_string(copy).unwrap(), "kernel");
        }
    }

    #[test]
    fn a_large_file_that_only_root_reads_is_refused_with_what_to_do() {
        // Where the file system has reflinks it is no error.
        if let (_, Err(error)) = in_folder(0o600, 1) {
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.user_message().unwrap().contains("0444"), "{error:?}");
        }
    }

    #[test]
    fn what_is_no_file_or_not_there_or_there_already_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let chroot = Chroot::open(folder.path(), rustix::process::getuid().as_raw()).unwrap();
        let kind = |source: &str| {
            let artefact = Artefact::Owned { source: source.into(), inside: inside("x") };
            place(&chroot, &artefact, 1, 0, true).unwrap_err().kind()
        };
        assert_eq!(kind("/nowhere"), ErrorKind::NotFound);
        assert_eq!(kind("/proc"), ErrorKind::InvalidInput);
        let empty = Artefact::Empty { inside: inside("x"), bytes: 1 << 30 };
        place(&chroot, &empty, 1, 0, true).unwrap();
        let made = std::fs::metadata(folder.path().join("x")).unwrap();
        assert!(made.len() == 1 << 30 && made.blocks() < 100, "sparse");
        assert_eq!(place(&chroot, &empty, 1, 0, true).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }
}
