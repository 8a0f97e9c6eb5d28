//! The folder of one incarnation, and the records in it.
//!
//! ```text
//! <folder>/<incarnation>/        0700
//!   spec.json                    what was prepared; written before the folder appears under its name
//!   guest-config                 the configuration disk (0600)
//!   process.json                 which process runs it; written without a pid before the process is started, and again with
//!                                it before the guest's first instruction
//!   exit.json                    how it ended
//!   stop-requested               `stop` or `destroy` was called
//!   monitor.pid                  QEMU's own pid file, locked by it: a second QEMU for the same folder gives up
//!   monitor.errors               what QEMU says (a kernel pipe: bounded)
//!   monitor.sock, console.sock, agent.sock
//!   console.<offset>             the console's log from that offset on
//!   snapshots/<name>/state
//! <folder>/.new-… .old-… .try-…  half made, half removed, tried: removed by the next `adopt`
//! ```

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use flames_error::{Error, ErrorKind, Result};
use flames_vmm::{Exit, IncarnationName, MachineSpec, Prepared};
use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::config::Channel;
use crate::kernel::MachineKind;
use crate::process::{Identity, Marker};

/// The records' format. A reader refuses a newer one.
pub(crate) const SCHEMA: u32 = 1;
/// The most bytes of one record.
const MAX_RECORD: u64 = 1024 * 1024;

/// What runs the guest's processors, settled for one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accelerator {
    Kvm,
    Tcg,
}

/// Everything that the machine's definition is derived from, so that it is the same whenever it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SpecRecord {
    pub(crate) schema: u32,
    /// As given, but without the guest's configuration, which is in its own file.
    pub(crate) spec: MachineSpec,
    pub(crate) guest_config_length: u64,
    pub(crate) machine: MachineKind,
    pub(crate) accelerator: Accelerator,
    pub(crate) cpu_model: String,
    pub(crate) channel: Channel,
    pub(crate) prepared: Prepared,
}

/// Which process runs the incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessRecord {
    pub(crate) schema: u32,
    pub(crate) boot_id: String,
    /// The guest shall not run when it is loaded.
    pub(crate) leave_paused: bool,
    /// `None` until QEMU was started. Its guest runs nothing before this is written, since QEMU starts stopped (`-S`).
    pub(crate) monitor: Option<Identity>,
    /// The vsock helper, where there is one.
    pub(crate) helper: Option<Identity>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExitRecord {
    pub(crate) schema: u32,
    pub(crate) exit: Exit,
}

/// The folder of one incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn of(root: &Path, incarnation: &IncarnationName) -> Self {
        Self::new(root.join(incarnation.as_str()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether there is anything under the incarnation's name.
    pub(crate) fn exists(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// `Corrupt` when it cannot be read, and when it is not there.
    pub(crate) fn spec(&self) -> Result<SpecRecord> {
        let record: SpecRecord = self.record("spec.json")?.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "vmm.record", "the record is not there")
                .with_context("file", "spec.json")
        })?;
        check_schema(record.schema, "spec.json")?;
        Ok(record)
    }

    /// `Corrupt` when it cannot be read.
    pub(crate) fn process(&self) -> Result<Option<ProcessRecord>> {
        let record: Option<ProcessRecord> = self.record("process.json")?;
        if let Some(record) = &record {
            check_schema(record.schema, "process.json")?;
        }
        Ok(record)
    }

    /// `Corrupt` when it cannot be read.
    pub(crate) fn exit(&self) -> Result<Option<Exit>> {
        let record: Option<ExitRecord> = self.record("exit.json")?;
        if let Some(record) = &record {
            check_schema(record.schema, "exit.json")?;
        }
        Ok(record.map(|record| record.exit))
    }

    pub(crate) fn write_process(&self, record: &ProcessRecord) -> Result<()> {
        self.write("process.json", record)
    }

    /// Back to prepared: for a monitor whose guest ran nothing.
    pub(crate) fn forget_process(&self) -> Result<()> {
        remove_if_there(&self.join("process.json"))
            .and_then(|()| remove_if_there(&self.join("stop-requested")))
            .map_err(|error| failed("a record cannot be removed", error))
    }

    pub(crate) fn write_exit(&self, exit: &Exit) -> Result<()> {
        self.write("exit.json", &ExitRecord { schema: SCHEMA, exit: exit.clone() })
    }

    pub(crate) fn is_stop_requested(&self) -> bool {
        self.join("stop-requested").exists()
    }

    pub(crate) fn request_stop(&self) -> Result<()> {
        create_private(&self.join("stop-requested"))
            .map(|_| ())
            .map_err(|error| failed("the stop cannot be noted", error))
    }

    /// What only this incarnation's QEMU has on its command line.
    pub(crate) fn monitor_marker(&self) -> Marker {
        Marker::new(["-pidfile".into(), self.join("monitor.pid").into()])
    }

    /// What only this incarnation's vsock helper has on its command line.
    pub(crate) fn helper_marker(&self) -> Marker {
        Marker::new(["--vm".into(), crate::vsock::helper_argument(self)])
    }

    /// Listens on a socket of the folder, whatever was there before.
    pub(crate) fn listen(&self, name: &str) -> io::Result<OwnedFd> {
        remove_if_there(&self.join(name))?;
        let folder = self.open()?;
        Ok(UnixListener::bind(short_path(&folder, name))?.into())
    }

    /// Takes the folder's lock. `None` when another has it.
    pub(crate) fn try_lock(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&self.path, flags, Mode::empty())?;
        match rustix::fs::flock(&folder, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(folder)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Connects to a socket of the folder.
    pub(crate) async fn connect(&self, name: &str) -> io::Result<UnixStream> {
        let folder = self.open()?;
        UnixStream::connect(short_path(&folder, name)).await
    }

    fn open(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(&self.path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn record<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>> {
        let corrupt =
            |message: &str| Error::new(ErrorKind::Corrupt, "vmm.record", message).with_context("file", name);
        let mut bytes = Vec::new();
        match File::open(self.join(name)) {
            Ok(file) => match file.take(MAX_RECORD + 1).read_to_end(&mut bytes) {
                Ok(_) => {}
                Err(error) => return Err(corrupt("the record cannot be read").with_source(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(corrupt("the record cannot be opened").with_source(error)),
        }
        if bytes.len() as u64 > MAX_RECORD {
            return Err(corrupt("the record is too long"));
        }
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| corrupt("the record is not one of ours").with_source(error))
    }

    pub(crate) fn write<T: Serialize>(&self, name: &str, record: &T) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(record).map_err(|error| {
            Error::invalid("vmm.record", "path", "A path of a machine must be valid UTF-8.")
                .with_source(error)
        })?;
        write_durably(&self.path, name, &bytes).map_err(|error| failed("a record cannot be written", error))
    }
}

fn check_schema(schema: u32, name: &'static str) -> Result<()> {
    if schema == SCHEMA {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, "vmm.record", "the record has another version's format")
        .with_context("file", name)
        .with_context("schema", schema))
}

/// An error of the host's file system.
pub(crate) fn failed(message: &'static str, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, "vmm.folder", message).with_source(error)
}

/// A unix socket's path has at most 107 bytes (unix(7)); a data folder's may be longer, so it goes by the open folder.
fn short_path(folder: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

/// A folder that only its owner enters.
pub(crate) fn create_private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// A file that only its owner reads, emptied when it is there.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// The file has either its old or its new content whenever the host dies, and the new one once this returns.
pub(crate) fn write_durably(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let half_made = folder.join(format!("{name}.new"));
    let mut file = create_private(&half_made)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(half_made, folder.join(name))?;
    sync_folder(folder)
}

/// Makes renames and removals in the folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes whatever is under the path.
pub(crate) fn remove_all(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => remove_if_there(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_garbage_too_long_or_newer_is_corrupt() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path().to_owned());
        assert_eq!(folder.spec().unwrap_err().kind(), ErrorKind::Corrupt, "not there");
        assert_eq!(folder.process().unwrap(), None);
        for garbage in [&b"\xff\xfe"[..], b"{}", b"[1,2", &[b' '; 2 * 1024 * 1024]] {
            for name in ["spec.json", "process.json", "exit.json"] {
                std::fs::write(folder.join(name), garbage).unwrap();
            }
            assert_eq!(folder.spec().unwrap_err().kind(), ErrorKind::Corrupt);
            assert_eq!(folder.process().unwrap_err().kind(), ErrorKind::Corrupt);
            assert_eq!(folder.exit().unwrap_err().kind(), ErrorKind::Corrupt);
        }
        let newer = ProcessRecord {
            schema: SCHEMA + 1,
            boot_id: "b".into(),
            leave_paused: false,
            monitor: None,
            helper: None,
        };
        folder.write_process(&newer).unwrap();
        assert_eq!(folder.process().unwrap_err().kind(), ErrorKind::Corrupt);
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
