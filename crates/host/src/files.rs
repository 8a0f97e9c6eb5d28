//! Files and folders that are in a known state whenever the host dies, and records that are read with a bound.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flames_error::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most bytes of one record.
pub const MAX_RECORD: u64 = 1024 * 1024;

/// The record in the file of a folder; none when there is no such file.
///
/// Errors: `Corrupt` when it cannot be read, is longer than [`MAX_RECORD`], or is not one of `T`.
pub fn read_record<T: DeserializeOwned>(folder: &Path, name: &'static str) -> Result<Option<T>> {
    let corrupt =
        |message: &str| Error::new(ErrorKind::Corrupt, "host.record", message).with_context("file", name);
    let mut bytes = Vec::new();
    match File::open(folder.join(name)) {
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

/// Writes the record as [`write_durably`] does.
///
/// Errors: `InvalidInput` for a path in it that is not UTF-8; `Exhausted` when the disk is full; `Internal`.
pub fn write_record<T: Serialize>(folder: &Path, name: &str, record: &T) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(record).map_err(|error| {
        Error::invalid("host.record", "path", "A path of a machine must be valid UTF-8.").with_source(error)
    })?;
    write_durably(folder, name, &bytes).map_err(|error| failed("a record cannot be written", error))
}

/// As [`write_record`], for a record that no one needs after the host's death: it is old or new whenever *we* die, and costs no flush.
pub fn write_record_for_this_boot<T: Serialize>(folder: &Path, name: &str, record: &T) -> Result<()> {
    let failed = |error| failed("a record cannot be written", error);
    let bytes = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
    let half_made = folder.join(format!("{name}.new"));
    let write = || {
        create_private(&half_made)?.write_all(&bytes)?;
        std::fs::rename(&half_made, folder.join(name))
    };
    write().map_err(failed)
}

/// `Corrupt` unless the record has the schema that this program reads.
pub fn check_schema(read: u32, ours: u32, name: &'static str) -> Result<()> {
    if read == ours {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Corrupt, "host.record", "the record has another version's format")
        .with_context("file", name)
        .with_context("schema", read))
}

/// An error of the host's file system.
pub fn failed(message: &'static str, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, "host.files", message).with_source(error)
}

/// A unix socket's path has at most 107 bytes (unix(7)); a data folder's may be longer, so it goes by the open folder.
pub fn short_path(folder: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

/// A folder that only its owner enters.
pub fn create_private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// A file that only its owner reads, emptied when it is there.
pub fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// The file has either its old or its new content whenever the host dies, and the new one once this returns.
pub fn write_durably(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let half_made = folder.join(format!("{name}.new"));
    let mut file = create_private(&half_made)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(half_made, folder.join(name))?;
    sync_folder(folder)
}

/// Makes renames and removals in the folder durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// No error when nothing is there. Errors: those of the file system.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes whatever is under the path.
pub fn remove_all(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => remove_if_there(path),
    }
}
