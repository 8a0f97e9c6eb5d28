//! Files of snapshots on a disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind as IoErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};

use super::{SnapshotFiles, chunk};

const OPERATION: &str = "controller.snapshot";
/// How much is copied at once where the file system cannot share blocks.
const COPIED_AT_ONCE: u64 = 1024 * 1024;

/// Files on a disk. All work is done on threads for blocking work.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskFiles;

fn failed(what: &'static str, error: io::Error) -> Error {
    let (kind, sentence) = match error.kind() {
        IoErrorKind::StorageFull | IoErrorKind::QuotaExceeded => {
            (ErrorKind::Exhausted, "The host's disk is full.")
        }
        _ => (ErrorKind::Unavailable, "The host's disk cannot be read or written."),
    };
    Error::new(kind, OPERATION, what).with_user_message(sentence).with_source(error)
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(OPERATION, "work on the disk was interrupted").with_source(error))?
        .map_err(|error| failed(what, error))
}

fn make_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn create(path: &Path, length: u64) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    // One that was sealed cannot be opened for writing.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_len(length)?;
    Ok(file)
}

fn read(path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    File::open(path)?.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Where data begins at or behind `from` (lseek(2), SEEK_DATA).
fn data_behind(file: &File, from: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)) {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // A file system that cannot tell has no holes.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(from)),
        Err(error) => Err(error.into()),
    }
}

/// Where a hole begins at or behind `from` (lseek(2), SEEK_HOLE).
fn hole_behind(file: &File, from: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(from)) {
        Ok(at) => Ok(at),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Err(io::Error::new(
            IoErrorKind::Unsupported,
            "the file system cannot tell what of a file is data, which a difference needs",
        )),
        Err(error) => Err(error.into()),
    }
}

fn lay_over(from: &Path, onto: &Path, offset: u64, length: usize) -> io::Result<()> {
    let (source, target) = (File::open(from)?, OpenOptions::new().write(true).open(onto)?);
    let end = offset.saturating_add(length as u64);
    let mut at = offset;
    while let Some(begin) = data_behind(&source, at)?.filter(|begin| *begin < end) {
        at = hole_behind(&source, begin)?.min(end);
        let mut bytes = vec![0; usize::try_from(at - begin).unwrap_or(0)];
        source.read_exact_at(&mut bytes, begin)?;
        target.write_all_at(&bytes, begin)?;
    }
    Ok(())
}

/// A copy that shares its blocks where the file system can, and has the same holes where it cannot.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let length = source.metadata()?.len();
    let target = create(to, length)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return target.sync_all();
    }
    let mut at = 0;
    let mut piece = vec![0; usize::try_from(COPIED_AT_ONCE).unwrap_or(0)];
    while let Some(data) = data_behind(&source, at)?.filter(|data| *data < length) {
        // Whole blocks, so that holes stay holes.
        let begin = data / 4096 * 4096;
        let take = usize::try_from(COPIED_AT_ONCE.min(length - begin)).unwrap_or(0);
        let bytes = &mut piece[..take];
        source.read_exact_at(bytes, begin)?;
        if bytes.iter().any(|byte| *byte != 0) {
            target.write_all_at(bytes, begin)?;
        }
        at = begin + take as u64;
    }
    source.seek(SeekFrom::Start(0))?;
    target.sync_all()
}

#[async_trait]
impl SnapshotFiles for DiskFiles {
    async fn length(&self, path: &Path) -> Result<u64> {
        let path = path.to_owned();
        blocking("a file cannot be looked at", move || fs::metadata(path).map(|metadata| metadata.len()))
            .await
    }

    async fn next_data(&self, path: &Path, from: u64) -> Result<Option<u64>> {
        let path = path.to_owned();
        blocking("a file cannot be looked through", move || data_behind(&File::open(path)?, from)).await
    }

    async fn digest(&self, path: &Path, offset: u64, length: usize) -> Result<Option<String>> {
        let path = path.to_owned();
        blocking("a file cannot be read", move || {
            read(&path, offset, length).map(|bytes| chunk::digest(&bytes))
        })
        .await
    }

    async fn packed(&self, path: &Path, offset: u64, length: usize) -> Result<Bytes> {
        let path = path.to_owned();
        let packed =
            blocking("a file cannot be read", move || Ok(chunk::pack(&read(&path, offset, length)?)));
        packed.await?.map(Bytes::from)
    }

    async fn create(&self, path: &Path, length: u64) -> Result<()> {
        let path = path.to_owned();
        blocking("a file cannot be made", move || create(&path, length).map(drop)).await
    }

    async fn unpack(
        &self,
        path: &Path,
        offset: u64,
        length: usize,
        digest: &str,
        packed: Bytes,
    ) -> Result<()> {
        let (path, digest) = (path.to_owned(), digest.to_owned());
        let written =
            blocking("a file cannot be written", move || match chunk::unpack(&packed, &digest, length) {
                Ok(bytes) => {
                    OpenOptions::new().write(true).open(path)?.write_all_at(&bytes, offset)?;
                    Ok(Ok(()))
                }
                Err(error) => Ok(Err(error)),
            });
        written.await?
    }

    async fn lay_over(&self, from: &Path, onto: &Path, offset: u64, length: usize) -> Result<()> {
        let (from, onto) = (from.to_owned(), onto.to_owned());
        blocking("a difference cannot be put together", move || lay_over(&from, &onto, offset, length)).await
    }

    async fn seal(&self, path: &Path) -> Result<()> {
        let path = path.to_owned();
        let seal = move || {
            let file = File::open(path)?;
            file.set_permissions(fs::Permissions::from_mode(0o444))?;
            file.sync_all()
        };
        blocking("a file cannot be written out", seal).await
    }

    async fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        blocking("a disk cannot be copied", move || copy(&from, &to)).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        blocking("a file cannot be put in its place", move || {
            fs::rename(&from, &to)?;
            File::open(to.parent().unwrap_or(Path::new("/")))?.sync_all()
        })
        .await
    }

    async fn exists(&self, path: &Path) -> Result<bool> {
        let path = path.to_owned();
        blocking("a file cannot be looked for", move || path.try_exists()).await
    }

    async fn remove(&self, path: &Path) -> Result<()> {
        let path = path.to_owned();
        blocking("files cannot be removed", move || match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == IoErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
        })
        .await
    }

    async fn list(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let folder = folder.to_owned();
        blocking("a folder cannot be listed", move || match fs::read_dir(&folder) {
            Err(error) if error.kind() == IoErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
            Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[tokio::test]
    async fn a_copy_is_the_same_and_keeps_its_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("below/to"));
        let file = create(&from, 64 << 20).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"end", (64 << 20) - 3).unwrap();
        file.write_all_at(b"middle", (20 << 20) + 5).unwrap();
        DiskFiles.copy(&from, &to).await.unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 16 << 20, "the holes were filled");
        assert_eq!(DiskFiles.next_data(&to, 64 << 20).await.unwrap(), None);
        DiskFiles.remove(folder.path()).await.unwrap();
        DiskFiles.remove(folder.path()).await.unwrap();
    }

    #[tokio::test]
    async fn a_difference_is_laid_over_a_part_and_its_holes_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (difference, whole) = (folder.path().join("difference"), folder.path().join("whole"));
        let file = create(&difference, 3 << 20).unwrap();
        // A page that has become zeros is data all the same.
        file.write_all_at(&[0; 4096], 1 << 20).unwrap();
        file.write_all_at(&[2; 4096], (1 << 20) + 8192).unwrap();
        file.write_all_at(&[3; 4096], 2 << 20).unwrap();
        create(&whole, 3 << 20).unwrap().write_all_at(&[1; 3 << 20], 0).unwrap();
        DiskFiles.lay_over(&difference, &whole, 1 << 20, 1 << 20).await.unwrap();
        let mut expected = vec![1; 3 << 20];
        expected[1 << 20..][..4096].fill(0);
        expected[(1 << 20) + 8192..][..4096].fill(2);
        assert!(fs::read(&whole).unwrap() == expected);
    }
}
