//! The folder of one incarnation, and the records that every driver keeps in it.
//!
//! ```text
//! <root>/<incarnation>/          0700; appears under its name when all that was prepared is in it
//!   guest-config                 the configuration disk
//!   exit.json                    how it ended
//!   stop-requested               `stop` or `destroy` was called
//! <root>/.new-… .old-…           half made, half removed
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::{
    check_schema, create_private, create_private_folder, failed, read_record, remove_all, remove_if_there,
    short_path, sync_folder, write_record,
};
use flames_vmm::{Exit, IncarnationName, MachineSpec, SecretBytes};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::check::SECTOR;

const STOP_REQUESTED: &str = "stop-requested";
/// So that no two attempts write into one folder.
static ATTEMPTS: AtomicU64 = AtomicU64::new(0);

/// A record of an incarnation's folder, with the number of its format.
pub trait Record: Serialize + DeserializeOwned {
    /// Its file.
    const FILE: &'static str;
    /// The format that this program reads and writes. A reader refuses every other.
    const SCHEMA: u32;

    /// The format of this one.
    fn schema(&self) -> u32;
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExitRecord {
    schema: u32,
    exit: Exit,
}

impl Record for ExitRecord {
    const FILE: &'static str = "exit.json";
    const SCHEMA: u32 = 1;

    fn schema(&self) -> u32 {
        self.schema
    }
}

/// Makes the folder of a driver's incarnations when it is absent, and gives its path, which is the same from wherever a driver is started:
/// monitors' command lines may name it.
///
/// Errors: `Internal`, `Exhausted` when it cannot be made or entered.
pub fn open_root(path: &Path) -> Result<PathBuf> {
    let make = || {
        if let Some(above) = path.parent() {
            std::fs::create_dir_all(above)?;
        }
        match create_private_folder(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        path.canonicalize()
    };
    make().map_err(|error| failed("the driver's folder cannot be made", error))
}

/// The folder of one incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The guest's configuration, as a disk.
    pub const GUEST_CONFIG: &'static str = "guest-config";

    /// The folder at this path, whether it is there or not.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// That of an incarnation, below the folder of all.
    pub fn of(root: &Path, incarnation: &IncarnationName) -> Self {
        Self::new(root.join(incarnation.as_str()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where something in it is.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether there is anything under the incarnation's name.
    pub fn exists(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// Makes the folder of an incarnation: under its name it is there whole or not at all, until the host dies. Whoever wants more flushes
    /// in `fill` what is in it, and the folder above afterwards. What `fill` gives lives until the folder has its name.
    ///
    /// Errors: those of `fill`; `Internal`, `Exhausted` of the file system; nothing is left then.
    pub fn make<T>(
        root: &Path,
        incarnation: &IncarnationName,
        fill: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<()> {
        let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
        let half_made = Self::new(root.join(format!(".new-{incarnation}-{attempt}")));
        let io = |error| failed("the incarnation's folder cannot be made", error);
        let make = || {
            remove_all(&half_made.path).map_err(io)?;
            create_private_folder(&half_made.path).map_err(io)?;
            let _kept = fill(&half_made)?;
            std::fs::rename(&half_made.path, Self::of(root, incarnation).path).map_err(io)
        };
        let made = make();
        if made.is_err() {
            let _ = remove_all(&half_made.path);
        }
        made
    }

    /// Takes the folder's name away, so that nobody takes what is half removed for an incarnation. Returns what is left to remove, which
    /// may be nothing.
    ///
    /// Errors: `Internal`, `Exhausted` of the file system.
    pub fn set_aside(&self, root: &Path, incarnation: &IncarnationName) -> Result<PathBuf> {
        let old = root.join(format!(".old-{incarnation}"));
        let rename = || {
            if !self.exists() {
                return Ok(());
            }
            remove_all(&old)?;
            match std::fs::rename(&self.path, &old) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                renamed => renamed?,
            }
            sync_folder(root)
        };
        rename().map_err(|error| failed("the incarnation's folder cannot be removed", error))?;
        Ok(old)
    }

    /// Removes what was set aside. Errors: as [`Folder::set_aside`].
    pub fn remove_old(old: &Path) -> Result<()> {
        remove_all(old).map_err(|error| failed("the incarnation's folder cannot be removed", error))
    }

    /// What stands below the folder of all incarnations under a name that begins with one of these: half made, half removed.
    ///
    /// Errors: `Internal` when it cannot be listed.
    pub fn left_over(root: &Path, prefixes: &[&str]) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(root).map_err(|error| failed("leftovers cannot be listed", error))?;
        let is_left = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            prefixes.iter().any(|prefix| name.starts_with(prefix))
        };
        Ok(entries.flatten().map(|entry| entry.path()).filter(is_left).collect())
    }

    /// A record; none when there is none. `Corrupt` when it cannot be read.
    pub fn read<T: Record>(&self) -> Result<Option<T>> {
        let record: Option<T> = read_record(&self.path, T::FILE)?;
        if let Some(record) = &record {
            check_schema(record.schema(), T::SCHEMA, T::FILE)?;
        }
        Ok(record)
    }

    /// A record that must be there. `Corrupt` when it is not, or cannot be read.
    pub fn demand<T: Record>(&self) -> Result<T> {
        self.read()?.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "vmm.record", "the record is not there")
                .with_context("file", T::FILE)
        })
    }

    /// Durable when this returns: the record is old or new whenever the host dies. Errors: those of [`write_record`].
    pub fn write<T: Record>(&self, record: &T) -> Result<()> {
        write_record(&self.path, T::FILE, record)
    }

    /// How it ended, when it has. `Corrupt` when it cannot be read.
    pub fn exit(&self) -> Result<Option<Exit>> {
        Ok(self.read::<ExitRecord>()?.map(|record| record.exit))
    }

    /// Writes down how it ended; durable when this returns, also when the caller is dropped.
    pub async fn note_exit(&self, exit: Exit) -> Result<Exit> {
        let (folder, record) = (self.clone(), ExitRecord { schema: ExitRecord::SCHEMA, exit: exit.clone() });
        blocking(move || folder.write(&record)).await?;
        Ok(exit)
    }

    /// Whether somebody wanted it to end.
    pub fn is_stop_requested(&self) -> bool {
        self.join(STOP_REQUESTED).symlink_metadata().is_ok()
    }

    /// Notes that it is to end, so that its end is told as one that was wanted.
    pub fn request_stop(&self) -> Result<()> {
        create_private(&self.join(STOP_REQUESTED))
            .map(drop)
            .map_err(|error| failed("the stop cannot be noted", error))
    }

    /// A stop that was asked of a monitor whose guest ran nothing is no stop of the incarnation's. Not durable by itself.
    pub fn forget_stop(&self) -> io::Result<()> {
        remove_if_there(&self.join(STOP_REQUESTED))
    }

    /// Writes the guest's configuration, filled up with zeros to whole sectors, for its owner alone; none when there is none. Not durable
    /// before the file that is given back is flushed.
    pub fn write_guest_config(&self, config: &SecretBytes) -> io::Result<Option<File>> {
        if config.0.is_empty() {
            return Ok(None);
        }
        let mut file = create_private(&self.join(Self::GUEST_CONFIG))?;
        file.write_all(&config.0)?;
        file.set_len((config.0.len() as u64).next_multiple_of(SECTOR))?;
        Ok(Some(file))
    }

    /// Whether the incarnation was prepared with this specification, by what is on record of it: all but the guest's configuration, and the
    /// length of that. `Corrupt` when the configuration cannot be read.
    pub fn has_spec(
        &self,
        recorded: &MachineSpec,
        guest_config_length: u64,
        spec: &MachineSpec,
    ) -> Result<bool> {
        let mut comparable = spec.clone();
        let config = std::mem::replace(&mut comparable.guest_config, SecretBytes(Vec::new()));
        if *recorded != comparable || guest_config_length != config.0.len() as u64 {
            return Ok(false);
        }
        if config.0.is_empty() {
            return Ok(true);
        }
        let kept = std::fs::read(self.join(Self::GUEST_CONFIG)).map_err(|error| {
            failed("the guest's configuration cannot be read", error).with_kind(ErrorKind::Corrupt)
        })?;
        Ok(kept.get(..config.0.len()) == Some(&config.0[..]))
    }

    /// Takes the folder's lock. `None` when another has it.
    pub fn try_lock(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&self.path, flags, Mode::empty())?;
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(folder)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Listens on a socket of the folder, whatever was there before, and however long the folder's path is.
    pub fn listen(&self, name: &str) -> io::Result<OwnedFd> {
        remove_if_there(&self.join(name))?;
        let folder = self.open()?;
        Ok(UnixListener::bind(short_path(&folder, name))?.into())
    }

    /// Connects to a socket of the folder. No deadline of its own.
    pub async fn connect(&self, name: &str) -> io::Result<UnixStream> {
        let folder = self.open()?;
        UnixStream::connect(short_path(&folder, name)).await
    }

    fn open(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(&self.path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

#[cfg(test)]
mod tests {
    use flames_vmm::{BootSource, ExitCause, NetworkSpec};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Some1 {
        schema: u32,
    }

    impl Record for Some1 {
        const FILE: &'static str = "some.json";
        const SCHEMA: u32 = 1;

        fn schema(&self) -> u32 {
            self.schema
        }
    }

    #[test]
    fn a_record_that_is_garbage_too_long_or_newer_is_corrupt() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path().to_owned());
        assert_eq!(folder.demand::<Some1>().unwrap_err().kind(), ErrorKind::Corrupt, "not there");
        assert_eq!(folder.read::<Some1>().unwrap(), None);
        assert_eq!(folder.exit().unwrap(), None);
        for garbage in [&b"\xff\xfe"[..], b"{}", b"[1,2", &[b' '; 2 * 1024 * 1024]] {
            for name in ["some.json", "exit.json"] {
                std::fs::write(folder.join(name), garbage).unwrap();
            }
            assert_eq!(folder.read::<Some1>().unwrap_err().kind(), ErrorKind::Corrupt);
            assert_eq!(folder.exit().unwrap_err().kind(), ErrorKind::Corrupt);
        }
        folder.write(&Some1 { schema: 2 }).unwrap();
        assert_eq!(folder.read::<Some1>().unwrap_err().kind(), ErrorKind::Corrupt);
        folder.write(&Some1 { schema: 1 }).unwrap();
        assert_eq!(folder.demand::<Some1>().unwrap(), Some1 { schema: 1 });
    }

    #[tokio::test]
    async fn an_exit_and_a_wanted_stop_are_on_record() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path().to_owned());
        assert!(!folder.is_stop_requested());
        folder.request_stop().unwrap();
        assert!(folder.is_stop_requested());
        folder.forget_stop().unwrap();
        folder.forget_stop().unwrap();
        assert!(!folder.is_stop_requested());
        let at = flames_clock::Timestamp::UNIX_EPOCH;
        let exit = Exit { cause: ExitCause::Guest, code: Some(0), signal: None, at, message: None };
        folder.note_exit(exit.clone()).await.unwrap();
        assert_eq!(folder.exit().unwrap(), Some(exit));
    }

    #[test]
    fn a_folder_is_there_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let name = IncarnationName::new("inc_1").unwrap();
        let entries = || std::fs::read_dir(root.path()).unwrap().count();
        let refused = Folder::make(root.path(), &name, |half_made| -> Result<()> {
            assert!(half_made.exists() && !Folder::of(root.path(), &name).exists());
            Err(Error::internal("test", "it cannot be filled"))
        });
        assert!(refused.is_err() && entries() == 0);
        Folder::make(root.path(), &name, |half_made| half_made.request_stop()).unwrap();
        let folder = Folder::of(root.path(), &name);
        assert!(folder.is_stop_requested() && entries() == 1);
        let taken = Folder::make(root.path(), &name, |half_made| half_made.request_stop());
        assert!(taken.is_err() && entries() == 1, "one that is there is never replaced");
        let old = folder.set_aside(root.path(), &name).unwrap();
        assert!(!folder.exists() && old.is_dir());
        assert_eq!(folder.set_aside(root.path(), &name).unwrap(), old, "again, when it is set aside already");
        Folder::remove_old(&old).unwrap();
        Folder::remove_old(&old).unwrap();
        assert_eq!(entries(), 0);
    }

    #[test]
    fn another_specification_or_configuration_is_not_the_one_that_was_prepared() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path().to_owned());
        let spec = |config: &[u8]| MachineSpec {
            vcpus: 1,
            memory_mib: 64,
            boot: BootSource { kernel: "/kernel".into(), initramfs: None, extra_arguments: Vec::new() },
            drives: Vec::new(),
            guest_config: SecretBytes(config.to_vec()),
            network: NetworkSpec::None,
        };
        let recorded = spec(b"");
        assert!(folder.write_guest_config(&recorded.guest_config).unwrap().is_none());
        assert!(folder.has_spec(&recorded, 0, &spec(b"")).unwrap());
        assert!(folder.has_spec(&recorded, 4, &spec(b"told")).is_err(), "its configuration is not there");
        let file = folder.write_guest_config(&SecretBytes(b"told".to_vec())).unwrap().unwrap();
        assert_eq!(file.metadata().unwrap().len(), SECTOR);
        assert!(folder.has_spec(&recorded, 4, &spec(b"told")).unwrap());
        for other in [spec(b"tell"), spec(b"tolder"), MachineSpec { vcpus: 2, ..spec(b"told") }] {
            assert!(!folder.has_spec(&recorded, 4, &other).unwrap());
        }
    }

    #[tokio::test]
    async fn a_socket_works_in_a_folder_with_a_path_longer_than_a_sockets_may_be() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path().join("x".repeat(150)));
        create_private_folder(folder.path()).unwrap();
        let _listener = folder.listen("monitor.sock").unwrap();
        folder.connect("monitor.sock").await.unwrap();
        let _again = folder.listen("monitor.sock").unwrap();
        folder.connect("monitor.sock").await.unwrap();
    }
}
