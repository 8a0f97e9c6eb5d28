//! The folder and what happens in it: becoming visible, being removed, being listed.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flames_blob::{BlobInfo, BlobKey, BlobPage};
use flames_error::{Error, ErrorKind, Result};

use super::caller::Waiting;
use super::errors::{corrupt, failed};
use super::names::{self, Named};
use super::record;
use super::upload::TemporaryFile;

#[derive(Debug)]
pub(super) struct Folder {
    blobs: PathBuf,
    temporary: PathBuf,
    next_temporary: AtomicU64,
    /// Held while a name appears, goes or is replaced, and while names are listed: what `readdir` tells of names that change
    /// meanwhile differs between file systems.
    names: Mutex<()>,
    /// Locked as long as it is open.
    _lock: File,
}

impl Folder {
    /// Opens the folder; none when another store has it open.
    pub(super) fn open(root: &Path) -> Result<Option<Self>> {
        const OPERATION: &str = "blob.open";
        let cannot = |what| move |error| failed(OPERATION, what, root, error);
        let (blobs, temporary) = (root.join("blobs"), root.join("temporary"));
        make_folder(root).map_err(cannot("the folder of blobs cannot be made"))?;
        let lock =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(root.join("lock"));
        let lock = lock.map_err(cannot("the lock of the folder of blobs cannot be opened"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => {
                return Err(cannot("the folder of blobs cannot be locked")(error));
            }
        }
        make_folder(&blobs).map_err(cannot("the folder of blobs cannot be made"))?;
        make_folder(&temporary).map_err(cannot("the folder of blobs cannot be made"))?;
        sync_folder(root).map_err(cannot("the folder of blobs cannot be made durable"))?;
        if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_folder(parent).map_err(cannot("the folder of blobs cannot be made durable"))?;
        }
        for entry in fs::read_dir(&temporary).map_err(cannot("left-over files cannot be listed"))? {
            let entry = entry.map_err(cannot("left-over files cannot be listed"))?;
            fs::remove_file(entry.path()).map_err(cannot("a left-over file cannot be removed"))?;
        }
        Ok(Some(Self {
            blobs,
            temporary,
            next_temporary: AtomicU64::new(0),
            names: Mutex::new(()),
            _lock: lock,
        }))
    }

    /// A path that no other put of this store has.
    pub(super) fn temporary_path(&self) -> PathBuf {
        self.temporary.join(self.next_temporary.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Puts a durable file in the place of its key, in one step, and makes that durable.
    pub(super) fn publish(&self, file: TemporaryFile, key: &BlobKey, waiting: &Waiting) -> Result<()> {
        const OPERATION: &str = "blob.put";
        let path = self.path(key);
        {
            let _names = self.lock_names();
            if waiting.is_over() {
                return Err(nobody_waits(OPERATION));
            }
            fs::rename(file.path(), &path)
                .map_err(|error| failed(OPERATION, "the blob cannot be put in its place", &path, error))?;
            file.published();
        }
        self.make_names_durable(OPERATION)
    }

    /// Removes the blob, if it is there, and makes that durable.
    pub(super) fn remove(&self, key: &BlobKey, waiting: &Waiting) -> Result<()> {
        const OPERATION: &str = "blob.delete";
        let path = self.path(key);
        {
            let _names = self.lock_names();
            if waiting.is_over() {
                return Err(nobody_waits(OPERATION));
            }
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(OPERATION, "the blob cannot be removed", &path, error)),
            }
        }
        // Also when it was not there: an earlier delete may have been dropped before this.
        self.make_names_durable(OPERATION)
    }

    /// The blob's open file and its record.
    pub(super) fn find(&self, operation: &'static str, key: &BlobKey) -> Result<(File, BlobInfo)> {
        let path = self.path(key);
        let found = open_blob(operation, &path)?;
        let (file, info) = found.ok_or_else(|| Error::not_found(operation, "blob", key.as_str()))?;
        if info.key != *key {
            return Err(corrupt(operation, "the blob's file has the name of another key", &path)
                .with_resource("blob", key.as_str()));
        }
        Ok((file, info))
    }

    /// One page of blobs. Memory is bounded by `limit`, time by the number of blobs.
    pub(super) fn page(&self, prefix: &str, after: Option<&BlobKey>, limit: usize) -> Result<BlobPage> {
        const OPERATION: &str = "blob.list";
        let mut keys = self.first_keys(prefix, after, limit + 1)?;
        let has_more = keys.len() > limit;
        if has_more {
            keys.pop_last();
        }
        let next = keys.last().filter(|_| has_more).cloned();
        let mut blobs = Vec::with_capacity(keys.len());
        for key in &keys {
            match self.find(OPERATION, key) {
                Ok((_, info)) => blobs.push(info),
                // Deleted since its name was read.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(BlobPage { blobs, next })
    }

    fn first_keys(&self, prefix: &str, after: Option<&BlobKey>, count: usize) -> Result<BTreeSet<BlobKey>> {
        const OPERATION: &str = "blob.list";
        let unreadable = |error| failed(OPERATION, "the folder of blobs cannot be read", &self.blobs, error);
        let mut first = BTreeSet::new();
        let _names = self.lock_names();
        for entry in fs::read_dir(&self.blobs).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            // Files that are no blobs of ours are let be.
            let key = match name.to_str().and_then(names::read) {
                None => continue,
                Some(Named::Key(key)) => key,
                Some(Named::BeginsWith(beginning)) => {
                    if !beginning.starts_with(prefix) && !prefix.starts_with(&beginning) {
                        continue;
                    }
                    match open_blob(OPERATION, &self.blobs.join(&name))? {
                        Some((_, info)) => info.key,
                        None => continue,
                    }
                }
            };
            if key.as_str().starts_with(prefix) && after.is_none_or(|after| key > *after) {
                first.insert(key);
                if first.len() > count {
                    first.pop_last();
                }
            }
        }
        Ok(first)
    }

    fn path(&self, key: &BlobKey) -> PathBuf {
        self.blobs.join(names::of(key))
    }

    fn lock_names(&self) -> MutexGuard<'_, ()> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_names_durable(&self, operation: &'static str) -> Result<()> {
        sync_folder(&self.blobs).map_err(|error| {
            failed(operation, "what was done may not be durable", &self.blobs, error)
                .with_kind(ErrorKind::OutcomeUnknown)
        })
    }
}

fn open_blob(operation: &'static str, path: &Path) -> Result<Option<(File, BlobInfo)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(operation, "the blob cannot be opened", path, error)),
    };
    let info = record::read(operation, &file, path)?;
    Ok(Some((file, info)))
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Read by nobody: the call that would get it was dropped.
fn nobody_waits(operation: &'static str) -> Error {
    Error::unavailable(operation, "the call was dropped; nothing was changed")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flames_blob::{PutOptions, Verifier};
    use jiff::Timestamp;

    use super::super::caller::Caller;
    use super::super::upload::Upload;
    use super::*;

    fn sealed(folder: &Folder, key: &BlobKey) -> TemporaryFile {
        let options = PutOptions::default();
        let upload = Upload::begin(folder, Verifier::new(&options)).unwrap();
        let upload = upload.write(&[Bytes::from_static(b"bytes")]).unwrap();
        let measured = upload.measured().unwrap();
        let info = BlobInfo::of_put(key.clone(), options, measured, Timestamp::UNIX_EPOCH);
        upload.seal(&info).unwrap()
    }

    #[test]
    fn work_that_nobody_waits_for_any_more_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap().unwrap();
        let (key, caller) = (BlobKey::new("a").unwrap(), Caller::new());
        let waiting = caller.watch();
        folder.publish(sealed(&folder, &key), &key, &waiting).unwrap();
        let before = fs::read(folder.path(&key)).unwrap();
        let late = sealed(&folder, &key);
        let late_path = late.path().to_owned();
        drop(caller);
        assert!(folder.publish(late, &key, &waiting).is_err());
        assert!(folder.remove(&key, &waiting).is_err());
        assert_eq!(fs::read(folder.path(&key)).unwrap(), before);
        assert!(!late_path.exists(), "the file of the dropped put stayed");
    }
}
