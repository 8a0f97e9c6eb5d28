//! A blob on its way in.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flames_blob::{BlobInfo, Digest, Verifier};
use flames_error::Result;

use super::errors::failed;
use super::folder::Folder;
use super::record;

const OPERATION: &str = "blob.put";
/// Gathers small chunks into one write.
const WRITE_BUFFER: usize = 64 * 1024;

/// A file that is removed at drop unless it was renamed to where it belongs. Dropping it is one `unlink`.
#[derive(Debug)]
pub(super) struct TemporaryFile {
    path: PathBuf,
    is_published: bool,
}

impl TemporaryFile {
    fn create(path: PathBuf) -> Result<(Self, File)> {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => Ok((Self { path, is_published: false }, file)),
            Err(error) => Err(failed(OPERATION, "no file can be made for the blob", &path, error)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn published(mut self) {
        self.is_published = true;
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.is_published {
            // What cannot be removed now is removed when the folder is opened again.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The bytes that came so far.
#[derive(Debug)]
pub(super) struct Upload {
    temporary: TemporaryFile,
    writer: BufWriter<File>,
    verifier: Verifier,
}

impl Upload {
    pub(super) fn begin(folder: &Folder, verifier: Verifier) -> Result<Self> {
        let (temporary, file) = TemporaryFile::create(folder.temporary_path())?;
        let writer = BufWriter::with_capacity(WRITE_BUFFER, file);
        Ok(Self { temporary, writer, verifier })
    }

    /// Refuses chunks that make the blob longer than it was declared, before they take room.
    pub(super) fn admit(&self, chunks: &[Bytes]) -> Result<()> {
        self.verifier.admit(chunks.iter().map(|chunk| chunk.len() as u64).sum())
    }

    pub(super) fn write(mut self, chunks: &[Bytes]) -> Result<Self> {
        for chunk in chunks {
            self.verifier.update(chunk);
            self.writer.write_all(chunk).map_err(|error| {
                failed(OPERATION, "the blob cannot be written", self.temporary.path(), error)
            })?;
        }
        Ok(self)
    }

    /// Size and digest of what came. `InvalidInput` when other ones were declared.
    pub(super) fn measured(&self) -> Result<(u64, Digest)> {
        self.verifier.clone().finish()
    }

    /// Writes the record and makes the file durable; it is not yet in its place.
    pub(super) fn seal(self, info: &BlobInfo) -> Result<TemporaryFile> {
        let Self { temporary, mut writer, .. } = self;
        record::append(OPERATION, &mut writer, temporary.path(), info)?;
        let synced = match writer.into_inner() {
            Ok(file) => file.sync_all(),
            Err(unwritten) => Err(unwritten.into_error()),
        };
        match synced {
            Ok(()) => Ok(temporary),
            Err(error) => Err(failed(OPERATION, "the blob cannot be made durable", temporary.path(), error)),
        }
    }
}
