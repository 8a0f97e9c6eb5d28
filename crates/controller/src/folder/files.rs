//! A host folder on a disk.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind as IoErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use flames_model::{Assignment, ControllerId, DiskKind, IncarnationId, VmId};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::{CONSOLE_KEPT, HostFolder, Kept, OutputEntry, OutputPage, segments};
use crate::record::{IncarnationRecord, RECORD_SCHEMA};

const OPERATION: &str = "controller.folder";
/// The longest record that is read: an assignment holds at most 256 KiB (the store's limit), and the rest is small.
const LONGEST_RECORD: u64 = 4 * 1024 * 1024;

/// `controller.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    schema: u32,
    controller: ControllerId,
}

/// A host folder on a disk, locked against a second controller for as long as this lives.
///
/// ```text
/// <data folder>/
/// ├─ lock                        held by the one controller that works here
/// ├─ controller.json             its identity, made once
/// ├─ incarnations/<incarnation>/
/// │  ├─ record.json              what was told and what became of it; 0600, since it holds the agent's key and secret environment
/// │  └─ disk.ext4                the writable layer, when it is ephemeral
/// ├─ disks/<vm>.ext4             the writable layer, when it is persistent
/// └─ logs/<incarnation>/
///    ├─ <position>.log           the workload's output, in segments; the oldest is dropped
///    └─ console                  the end of the console's log, once the machine is gone
/// ```
#[derive(Debug)]
pub struct FileFolder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    output_kept: u64,
    /// Where each log ends. One writer per log at a time: its worker.
    tails: Mutex<BTreeMap<IncarnationId, segments::Tail>>,
    _lock: File,
}

impl FileFolder {
    /// Opens the folder, makes it if need be, and locks it. `output_kept` bytes of each incarnation's output are kept.
    ///
    /// Errors: `Conflict` when another controller works there; `Unavailable` when it cannot be used.
    pub async fn open(root: impl Into<PathBuf>, output_kept: u64) -> Result<Self> {
        let root = root.into();
        let inner = blocking(move || {
            for folder in [&root, &root.join("incarnations"), &root.join("disks"), &root.join("logs")] {
                make_folder(folder)?;
            }
            let lock = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(root.join("lock"))
                .map_err(failed)?;
            rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
                Error::new(ErrorKind::Conflict, OPERATION, "another controller holds the folder's lock")
                    .with_context("folder", root.display())
                    .with_user_message(
                        "Another controller already works in this data folder. Stop it first, or name another folder.",
                    )
                    .with_source(std::io::Error::from(error))
            })?;
            remove_unfinished(&root.join("disks"))?;
            Ok(Inner { root, output_kept, tails: Mutex::default(), _lock: lock })
        })
        .await?;
        Ok(Self { inner: Arc::new(inner) })
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        blocking(move || work(&inner)).await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(OPERATION, "work on the disk was interrupted").with_source(error))?
}

fn failed(error: std::io::Error) -> Error {
    match error.kind() {
        IoErrorKind::StorageFull | IoErrorKind::QuotaExceeded => {
            Error::new(ErrorKind::Exhausted, OPERATION, "the disk is full")
                .with_user_message("The host's disk is full.")
                .with_source(error)
        }
        _ => Error::unavailable(OPERATION, "the data folder cannot be read or written").with_source(error),
    }
}

fn make_folder(folder: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => sync_folder(folder.parent().unwrap_or(Path::new("/"))),
        Err(error) if error.kind() == IoErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// Writes a file beside, fsyncs it, gives it its name and fsyncs the folder.
fn write_whole(target: &Path, bytes: &[u8]) -> Result<()> {
    let beside = target.with_extension("new");
    let write = || {
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, target)
    };
    write().map_err(|error| {
        // What is left of it would take room that a full disk has not.
        let _ = fs::remove_file(&beside);
        failed(error)
    })?;
    sync_folder(target.parent().unwrap_or(Path::new("/")))
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != IoErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != IoErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Removes disks whose making was interrupted: hidden, beside the finished ones.
fn remove_unfinished(disks: &Path) -> Result<()> {
    for entry in fs::read_dir(disks).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".disk-") {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > LONGEST_RECORD => return Ok(None),
        _ => {}
    }
    let text = fs::read(path).map_err(failed)?;
    Ok(serde_json::from_slice(&text).ok())
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value)
        .map_err(|error| Error::internal(OPERATION, "a record cannot be written").with_source(error))
}

impl Inner {
    fn incarnation(&self, id: IncarnationId) -> PathBuf {
        self.root.join("incarnations").join(id.to_string())
    }

    fn logs(&self, id: IncarnationId) -> PathBuf {
        self.root.join("logs").join(id.to_string())
    }

    fn persistent_disk(&self, vm: VmId) -> PathBuf {
        self.root.join("disks").join(format!("{vm}.ext4"))
    }

    fn incarnations(&self) -> Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(self.root.join("incarnations")).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(incarnation) = name.to_str().and_then(|name| name.parse::<IncarnationId>().ok()) else {
                tracing::warn!(?name, "a folder among the incarnations is not ours; it is left alone");
                continue;
            };
            let path = self.incarnation(incarnation).join("record.json");
            let record = match path.exists() {
                true => read_json::<IncarnationRecord>(&path)?,
                false => None,
            };
            let record = record.filter(|record| {
                record.schema <= RECORD_SCHEMA && record.assignment.incarnation == incarnation
            });
            kept.push(Kept { incarnation, record });
        }
        kept.sort_by_key(|kept| kept.incarnation);
        Ok(kept)
    }

    /// Runs `work` with the end of a log. What a failed write did to it is found out anew.
    fn with_tail<T>(
        &self,
        id: IncarnationId,
        work: impl FnOnce(&Path, &mut segments::Tail) -> std::io::Result<T>,
    ) -> Result<T> {
        let folder = self.logs(id);
        let known = self.tails.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let mut tail = match known {
            Some(tail) => tail,
            None => segments::open(&folder).map_err(failed)?,
        };
        let done = work(&folder, &mut tail).map_err(failed)?;
        self.tails.lock().unwrap_or_else(PoisonError::into_inner).insert(id, tail);
        Ok(done)
    }
}

#[async_trait]
impl HostFolder for FileFolder {
    async fn identity(&self, fresh: ControllerId) -> Result<ControllerId> {
        self.with(move |inner| {
            let path = inner.root.join("controller.json");
            if path.exists() {
                let corrupt = || {
                    Error::new(ErrorKind::Corrupt, OPERATION, "controller.json cannot be read")
                        .with_context("path", path.display())
                        .with_user_message(
                            "The controller's identity (`controller.json` in its data folder) is damaged. Restore it, or remove the file to \
                             join as a new controller.",
                        )
                };
                let identity = read_json::<Identity>(&path)?.filter(|identity| identity.schema == 1);
                return identity.map(|identity| identity.controller).ok_or_else(corrupt);
            }
            write_whole(&path, &json(&Identity { schema: 1, controller: fresh })?)?;
            Ok(fresh)
        })
        .await
    }

    async fn incarnations(&self) -> Result<Vec<Kept>> {
        self.with(Inner::incarnations).await
    }

    async fn put_record(&self, record: &IncarnationRecord) -> Result<()> {
        let text = json(record)?;
        let incarnation = record.assignment.incarnation;
        self.with(move |inner| {
            let folder = inner.incarnation(incarnation);
            make_folder(&folder)?;
            write_whole(&folder.join("record.json"), &text)
        })
        .await
    }

    async fn remove_incarnation(&self, incarnation: IncarnationId) -> Result<()> {
        self.with(move |inner| {
            let folder = inner.incarnation(incarnation);
            // The record goes last: what is left of the folder without it would be found as unreadable.
            remove_file(&folder.join("disk.ext4"))?;
            remove_tree(&folder)?;
            sync_folder(&inner.root.join("incarnations"))
        })
        .await
    }

    fn disk_path(&self, assignment: &Assignment) -> PathBuf {
        match assignment.spec.disk {
            DiskKind::Persistent => self.inner.persistent_disk(assignment.vm),
            DiskKind::Ephemeral => self.inner.incarnation(assignment.incarnation).join("disk.ext4"),
        }
    }

    async fn remove_ephemeral_disk(&self, incarnation: IncarnationId) -> Result<()> {
        self.with(move |inner| remove_file(&inner.incarnation(incarnation).join("disk.ext4"))).await
    }

    async fn remove_persistent_disk(&self, vm: VmId) -> Result<()> {
        self.with(move |inner| {
            remove_file(&inner.persistent_disk(vm))?;
            sync_folder(&inner.root.join("disks"))
        })
        .await
    }

    async fn persistent_disks(&self) -> Result<Vec<VmId>> {
        self.with(|inner| {
            let mut found = Vec::new();
            for entry in fs::read_dir(inner.root.join("disks")).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                let vm = name.to_str().and_then(|name| name.strip_suffix(".ext4"));
                found.extend(vm.and_then(|vm| vm.parse::<VmId>().ok()));
            }
            found.sort_unstable();
            Ok(found)
        })
        .await
    }

    async fn append_output(&self, incarnation: IncarnationId, entries: Vec<OutputEntry>) -> Result<()> {
        self.with(move |inner| {
            inner.with_tail(incarnation, |folder, tail| {
                segments::append(folder, tail, inner.output_kept, &entries)
            })
        })
        .await
    }

    async fn output_end(&self, incarnation: IncarnationId) -> Result<u64> {
        self.with(move |inner| inner.with_tail(incarnation, |_, tail| Ok(tail.offset))).await
    }

    async fn read_output(
        &self,
        incarnation: IncarnationId,
        from: u64,
        most_bytes: usize,
    ) -> Result<OutputPage> {
        self.with(move |inner| segments::read(&inner.logs(incarnation), from, most_bytes).map_err(failed))
            .await
    }

    async fn put_console(&self, incarnation: IncarnationId, data: Bytes) -> Result<()> {
        self.with(move |inner| {
            let folder = inner.logs(incarnation);
            make_folder(&folder)?;
            fs::write(folder.join("console"), &data).map_err(failed)
        })
        .await
    }

    async fn console(&self, incarnation: IncarnationId) -> Result<Option<Bytes>> {
        self.with(move |inner| {
            segments::read_end(&inner.logs(incarnation).join("console"), CONSOLE_KEPT).map_err(failed)
        })
        .await
    }

    async fn remove_logs(&self, incarnation: IncarnationId) -> Result<()> {
        self.with(move |inner| {
            inner.tails.lock().unwrap_or_else(PoisonError::into_inner).remove(&incarnation);
            remove_tree(&inner.logs(incarnation))
        })
        .await
    }
}
