//! The records of one jail, and its locks.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flames_error::{Error, ErrorKind, Result};
use flames_host::files::{
    check_schema, create_private, failed, read_record, remove_if_there, write_record,
    write_record_for_this_boot,
};
use flames_host::process::Identity;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::artefact::Placed;
use crate::jail::JailSpec;
use crate::name::JailName;
use crate::slots::Slot;

/// The records' format. A reader refuses a newer one.
pub(crate) const SCHEMA: u32 = 1;

const JAIL: &str = "jail.json";
const PROCESS: &str = "process.json";

/// What was prepared. Everything that the jail's start and its removal need to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JailRecord {
    pub(crate) schema: u32,
    pub(crate) cluster: String,
    pub(crate) incarnation: JailName,
    /// The spare that it was; none for one that was made for its incarnation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) started_as: Option<JailName>,
    pub(crate) slot: Slot,
    /// Firecracker, without links in its path: the jailer names a folder after its last part.
    pub(crate) firecracker: PathBuf,
    pub(crate) spec: JailSpec,
    pub(crate) placed: Vec<Placed>,
}

impl JailRecord {
    /// What the jailer was, or is to be, told that it is: what the chroot's folder and the command line bear.
    pub(crate) fn started_name(&self) -> &JailName {
        self.started_as.as_ref().unwrap_or(&self.incarnation)
    }
}

/// Which process runs the jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessRecord {
    pub(crate) schema: u32,
    pub(crate) boot_id: String,
    /// `None` until the jailer was started. Firecracker runs no guest before it is asked to over its API, which nobody does before the
    /// pid is here.
    pub(crate) process: Option<Identity>,
    /// Nobody has told it anything yet: it waits for [`crate::Jail::start`].
    #[serde(default)]
    pub(crate) waits: bool,
}

/// The folder of one jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JailFolder {
    path: PathBuf,
}

impl JailFolder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file of what was prepared.
    pub(crate) fn jail_file(&self) -> PathBuf {
        self.join(JAIL)
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether there is anything under the incarnation's name.
    pub(crate) fn exists(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// `Corrupt` when it cannot be read, and when it is not there.
    pub(crate) fn jail(&self) -> Result<JailRecord> {
        let record: JailRecord = read_record(&self.path, JAIL)?.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "jail.record", "the record is not there")
                .with_context("file", JAIL)
        })?;
        check_schema(record.schema, SCHEMA, JAIL)?;
        Ok(record)
    }

    pub(crate) fn write_jail(&self, record: &JailRecord) -> Result<()> {
        write_record(&self.path, JAIL, record)
    }

    /// As [`JailFolder::write_jail`], but not flushed: old or new whenever *we* die.
    pub(crate) fn note_jail(&self, record: &JailRecord) -> Result<()> {
        write_record_for_this_boot(&self.path, JAIL, record)
    }

    /// `Corrupt` when it cannot be read.
    pub(crate) fn process(&self) -> Result<Option<ProcessRecord>> {
        // A host that died may have kept the name and not the content; no process either.
        if self.join(PROCESS).symlink_metadata().is_ok_and(|found| found.len() == 0) {
            return Ok(None);
        }
        let record: Option<ProcessRecord> = read_record(&self.path, PROCESS)?;
        if let Some(record) = &record {
            check_schema(record.schema, SCHEMA, PROCESS)?;
        }
        Ok(record)
    }

    /// Old or new whenever we die. Not flushed: no process outlives the host, and whether its guest had run then is the driver's to know.
    pub(crate) fn write_process(&self, record: &ProcessRecord) -> Result<()> {
        write_record_for_this_boot(&self.path, PROCESS, record)
    }

    pub(crate) fn forget_process(&self) -> Result<()> {
        remove_if_there(&self.join(PROCESS)).map_err(|error| failed("a record cannot be removed", error))
    }

    /// The lock that every process of the jail holds by its standard input, from its fork to its end. It is held here, and handed on,
    /// by the file that is given. None when a process holds it.
    pub(crate) fn lock(&self) -> Result<Option<File>> {
        let io = |error| failed("the jail cannot be locked", error);
        let name = self.join("lock");
        create_private(&name).map_err(io)?;
        // Without the right to write: the process reads an empty file.
        let file = File::open(&name).map_err(io)?;
        let is_locked = lock_within(&file, FlockOperation::NonBlockingLockExclusive, Duration::ZERO);
        Ok(is_locked.map_err(io)?.then_some(file))
    }
}

/// False when another open file has the lock for longer than this. Blocks meanwhile.
pub(crate) fn lock_within(file: &File, operation: FlockOperation, most: Duration) -> io::Result<bool> {
    let begun = Instant::now();
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if begun.elapsed() >= most {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
