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

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use flames_error::{Error, ErrorKind, Result};
use flames_host::files::{
    check_schema, create_private, failed, read_record, remove_if_there, short_path, write_record,
};
use flames_host::process::{Identity, Marker};
use flames_vmm::{Exit, IncarnationName, MachineSpec, Prepared};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::config::Channel;
use crate::kernel::MachineKind;

/// The records' format. A reader refuses a newer one.
pub(crate) const SCHEMA: u32 = 1;

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
        let record: SpecRecord = read_record(&self.path, "spec.json")?.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "vmm.record", "the record is not there")
                .with_context("file", "spec.json")
        })?;
        check_schema(record.schema, SCHEMA, "spec.json")?;
        Ok(record)
    }

    /// `Corrupt` when it cannot be read.
    pub(crate) fn process(&self) -> Result<Option<ProcessRecord>> {
        let record: Option<ProcessRecord> = read_record(&self.path, "process.json")?;
        if let Some(record) = &record {
            check_schema(record.schema, SCHEMA, "process.json")?;
        }
        Ok(record)
    }

    /// `Corrupt` when it cannot be read.
    pub(crate) fn exit(&self) -> Result<Option<Exit>> {
        let record: Option<ExitRecord> = read_record(&self.path, "exit.json")?;
        if let Some(record) = &record {
            check_schema(record.schema, SCHEMA, "exit.json")?;
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

    pub(crate) fn write<T: Serialize>(&self, name: &str, record: &T) -> Result<()> {
        write_record(&self.path, name, record)
    }
}

#[cfg(test)]
mod tests {
    use flames_host::files::create_private_folder;

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
