//! The inside of a chroot, reached from outside without ever following a link that its VMM has put there.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use flames_error::{Error, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use serde::{Deserialize, Serialize};

/// The most bytes of an [`Inside`]: Firecracker binds sockets under it, whose paths have at most 107 bytes (unix(7)), and puts `_<port>` behind.
const LONGEST: usize = 90;

/// Where something is in a chroot: a path from its root, without a leading `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Inside(String);

impl Inside {
    /// At most 90 bytes: parts of letters, digits, `.`, `_` and `-`, joined by `/`, none of them `.` or `..`. Errors: `InvalidInput`.
    pub fn new(path: impl Into<String>) -> Result<Self> {
        let path = path.into();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let is_part =
            |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(allowed);
        if path.len() <= LONGEST && path.split('/').all(is_part) {
            return Ok(Self(path));
        }
        let sentence =
            "A path in a jail is 1 to 90 letters, digits, `.`, `_` and `-`, in parts joined by `/`.";
        Err(Error::invalid("jail.path", "inside", sentence))
    }

    /// The path without a leading `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path as Firecracker names it: with a leading `/`.
    pub fn for_firecracker(&self) -> String {
        format!("/{}", self.0)
    }

    /// (the folder that it is in, its name there)
    fn split(&self) -> (Option<&str>, &str) {
        self.0.rsplit_once('/').map_or((None, &*self.0), |(folder, name)| (Some(folder), name))
    }

    /// The first of its parts.
    pub(crate) fn top(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Inside {
    type Error = Error;
    fn try_from(path: String) -> Result<Self> {
        Self::new(path)
    }
}

impl From<Inside> for String {
    fn from(inside: Inside) -> Self {
        inside.0
    }
}

/// An open chroot, and the user whom it belongs to.
#[derive(Debug)]
pub(crate) struct Chroot {
    root: OwnedFd,
    user: u32,
}

impl Chroot {
    /// Errors: those of the file system; a link in place of the folder is one.
    pub(crate) fn open(path: &Path, user: u32) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::open(path, flags, Mode::empty())?, user })
    }

    pub(crate) fn device(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.root)?.st_dev)
    }

    /// Links in any part of the path are an error (ELOOP).
    fn reach(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        self.reach_by(path, flags, mode, ResolveFlags::empty())
    }

    fn reach_by(&self, path: &str, flags: OFlags, mode: Mode, more: ResolveFlags) -> io::Result<OwnedFd> {
        let resolve = more | ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // EAGAIN: something was renamed meanwhile, so that the kernel could not be sure (openat2(2)).
        for _ in 0..100 {
            match rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, mode, resolve) {
                Err(rustix::io::Errno::AGAIN) => {}
                reached => return Ok(reached?),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn parent(&self, inside: &Inside) -> io::Result<OwnedFd> {
        match inside.split().0 {
            Some(folder) => self.reach(folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()),
            None => Ok(rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?),
        }
    }

    /// Makes the folder and those that lead to it, where they are not there yet.
    pub(crate) fn make_folder(&self, path: &str) -> io::Result<()> {
        let mut made = String::new();
        for part in path.split('/') {
            let (above, name) = (made.clone(), part);
            if !made.is_empty() {
                made.push('/');
            }
            made.push_str(part);
            let parent = if above.is_empty() {
                rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?
            } else {
                self.reach(&above, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?
            };
            let is_new = match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                Ok(()) => true,
                Err(rustix::io::Errno::EXIST) => false,
                Err(error) => return Err(error.into()),
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let folder = match self.reach_by(&made, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
                // What somebody mounted there is not ours to give.
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices && !is_new => continue,
                reached => reached?,
            };
            // Who was killed between the making and the giving has left it to root, and then the VMM reaches nothing in it. Only root makes such
            // folders, so it is not one that the VMM put there.
            if is_new || rustix::fs::fstat(&folder)?.st_uid == Uid::ROOT.as_raw() {
                self.give(&folder)?;
            }
        }
        Ok(())
    }

    /// Makes the folders that lead to the place.
    pub(crate) fn make_way(&self, inside: &Inside) -> io::Result<()> {
        inside.split().0.map_or(Ok(()), |folder| self.make_folder(folder))
    }

    /// The open file's owner becomes the chroot's user. Only for what was just made, or is known by its number.
    pub(crate) fn give(&self, file: &impl AsFd) -> io::Result<()> {
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.user));
        Ok(rustix::fs::fchown(file, Some(user), Some(group))?)
    }

    /// A new, empty file of the user's, open for writing. Errors: `AlreadyExists`.
    pub(crate) fn create(&self, inside: &Inside, mode: u32) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = self.reach(inside.as_str(), flags, Mode::from_raw_mode(mode))?;
        self.give(&file)?;
        Ok(file.into())
    }

    /// A file that is there, for reading. Errors: `InvalidInput` for anything but a file.
    pub(crate) fn open_file(&self, inside: &Inside) -> io::Result<File> {
        // Not blocking: the VMM may have put a pipe there.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file: File = self.reach(inside.as_str(), flags, Mode::empty())?.into();
        if file.metadata()?.is_file() {
            return Ok(file);
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"))
    }

    /// Puts the open file under one more name. Errors: `CrossesDevices`, `AlreadyExists`.
    pub(crate) fn link(&self, file: &File, inside: &Inside) -> io::Result<()> {
        let parent = self.parent(inside)?;
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        let name = inside.split().1;
        Ok(rustix::fs::linkat(rustix::fs::CWD, source, &parent, name, AtFlags::SYMLINK_FOLLOW)?)
    }

    /// No error when nothing is there. A folder is an error.
    pub(crate) fn remove(&self, inside: &Inside) -> io::Result<()> {
        let parent = match self.parent(inside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            parent => parent?,
        };
        match rustix::fs::unlinkat(&parent, inside.split().1, AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The socket, as a path that leads to it and to nothing else for as long as the descriptor is open.
    pub(crate) fn socket(&self, inside: &Inside) -> io::Result<(OwnedFd, PathBuf)> {
        let socket = self.reach(inside.as_str(), OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode) != FileType::Socket {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a socket"));
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", socket.as_raw_fd()));
        Ok((socket, path))
    }

    /// A new socket, which the VMM may connect to. Whatever file had the name is removed.
    pub(crate) fn listen(&self, inside: &Inside) -> io::Result<UnixListener> {
        self.remove(inside)?;
        let parent = self.parent(inside)?;
        let name = inside.split().1;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", parent.as_fd().as_raw_fd()))?;
        // The VMM may have put something else under the name since, a shared file too: only a socket is given away.
        let (socket, _) = self.socket(inside)?;
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.user));
        rustix::fs::chownat(&socket, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
        Ok(listener)
    }

    /// A pipe of the kernel, open on our side so that its content outlives the VMM: see [`flames_host::process::open_bounded_pipe`].
    pub(crate) fn pipe(&self, inside: &Inside) -> io::Result<File> {
        let parent = self.parent(inside)?;
        let name = inside.split().1;
        match rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let pipe = self.reach(inside.as_str(), flags, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&pipe)?.st_mode) != FileType::Fifo {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a pipe"));
        }
        self.give(&pipe)?;
        Ok(pipe.into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn inside(path: &str) -> Inside {
        Inside::new(path).unwrap()
    }

    fn chroot(folder: &Path) -> Chroot {
        // Our own user, so that the tests need no root.
        Chroot::open(folder, rustix::process::getuid().as_raw()).unwrap()
    }

    #[test]
    fn a_path_that_leaves_the_jail_is_none() {
        for wrong in ["", "/", "/etc", "../x", "a/../b", "a//b", "a/.", "a b", "ä", &"x".repeat(91)] {
            assert!(Inside::new(wrong).is_err(), "{wrong}");
        }
        assert_eq!(inside("run/api.sock").for_firecracker(), "/run/api.sock");
    }

    #[test]
    fn a_link_in_a_jail_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        let _server = UnixListener::bind(outside.path().join("socket")).unwrap();
        symlink(outside.path(), folder.path().join("out")).unwrap();
        symlink(outside.path().join("secret"), folder.path().join("file")).unwrap();
        symlink(outside.path().join("socket"), folder.path().join("socket")).unwrap();
        let chroot = chroot(folder.path());
        assert!(chroot.open_file(&inside("file")).is_err());
        assert!(chroot.open_file(&inside("out/secret")).is_err());
        assert!(chroot.create(&inside("out/new"), 0o600).is_err());
        assert!(chroot.create(&inside("file"), 0o600).is_err());
        assert!(chroot.socket(&inside("socket")).is_err());
        assert!(chroot.socket(&inside("out/socket")).is_err());
        assert!(chroot.make_folder("out/folder").is_err());
        assert!(chroot.listen(&inside("out/listen")).is_err());
        assert!(chroot.pipe(&inside("file")).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_pipe_in_place_of_a_file_blocks_nobody_and_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let chroot = chroot(folder.path());
        let _pipe = chroot.pipe(&inside("pipe")).unwrap();
        assert!(chroot.open_file(&inside("pipe")).is_err());
    }

    #[test]
    fn a_socket_is_reached_and_made_however_long_the_jails_path_is() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(150));
        std::fs::create_dir(&long).unwrap();
        let chroot = chroot(&long);
        chroot.make_folder("run").unwrap();
        for _ in 0..2 {
            let listener = chroot.listen(&inside("run/vsock_1024")).unwrap();
            let (_open, path) = chroot.socket(&inside("run/vsock_1024")).unwrap();
            std::os::unix::net::UnixStream::connect(path).unwrap();
            listener.accept().unwrap();
        }
    }
}
