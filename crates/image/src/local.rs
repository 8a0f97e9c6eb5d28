//! Artefacts on a host: fetched once, checked while they are written, and whole or not there.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{ErrorKind as IoErrorKind, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use flames_blob::{BlobKey, BlobStore, Digest};
use flames_error::{Error, ErrorKind, Result};
use futures::StreamExt;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use crate::spool::BLOCK;
use crate::store::{Artefact, ArtefactKind, Encoding};

const OPERATION: &str = "image.fetch";
/// The prefix of files that are being written.
const UNFINISHED: &str = ".fetch-";
/// A read that brings nothing for this long has failed.
const STALL: Duration = Duration::from_secs(60);
/// Chunks (of at most 1 MiB, `flames_blob::MAX_CHUNK`) between the reader and the writer.
const CHUNKS_AHEAD: usize = 4;

/// A folder with artefacts under their digests. One process uses it.
#[derive(Debug)]
pub struct LocalImages {
    blobs: Arc<dyn BlobStore>,
    folder: PathBuf,
    flights: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl LocalImages {
    /// Uses `folder`, makes it if need be, and removes what an interrupted fetch left there.
    pub fn open(blobs: Arc<dyn BlobStore>, folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        let failed = |error: std::io::Error| {
            Error::unavailable("image.open", "the folder for images cannot be used")
                .with_context("folder", folder.display())
                .with_source(error)
        };
        fs::create_dir_all(&folder).map_err(failed)?;
        for item in fs::read_dir(&folder).map_err(failed)? {
            let item = item.map_err(failed)?;
            if item.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                fs::remove_file(item.path()).map_err(failed)?;
            }
        }
        Ok(Self { blobs, folder, flights: Mutex::default() })
    }

    /// Where the artefact lies, or will.
    pub fn path(&self, artefact: &Artefact) -> PathBuf {
        self.folder.join(format!("{}-{}", artefact.kind.as_str(), artefact.digest.hex()))
    }

    /// Makes the artefact local and answers its path. The file is decoded, has the size and digest of the artefact, was fsynced, and is
    /// read-only. Calls for one digest at the same time share one fetch; a failed or abandoned one leaves nothing.
    ///
    /// Errors: `NotFound` when the BlobStore has it not; `Corrupt` when its bytes are others; `Exhausted` when the disk is full;
    /// `Unavailable`, also when nothing came for a minute.
    pub async fn fetch(&self, artefact: &Artefact) -> Result<PathBuf> {
        let path = self.path(artefact);
        let _turn = self.turn(artefact.digest).await;
        if is_whole(&path, artefact.size)? {
            // A sweep, which takes the same turn, leaves alone what was just asked for.
            touch(&path)?;
            return Ok(path);
        }
        self.fetch_now(artefact, &path).await?;
        Ok(path)
    }

    /// Removes what is not needed here any more, and answers how many bytes that were: what is not among `needed`, was not asked for
    /// within `grace`, and either was swept from the BlobStore too or was not asked for within `kept`.
    ///
    /// Stops at the first file that cannot be removed or asked about; what was removed stays so. Errors: `Unavailable`.
    pub async fn sweep(&self, needed: &[Artefact], grace: Duration, kept: Duration) -> Result<u64> {
        let needed: HashSet<PathBuf> = needed.iter().map(|artefact| self.path(artefact)).collect();
        let mut removed = 0;
        for (path, key, digest) in self.listed().await? {
            if needed.contains(&path) || age(&path)?.is_none_or(|age| age < grace) {
                continue;
            }
            let is_gone = match tokio::time::timeout(STALL, self.blobs.exists(&key)).await {
                Ok(exists) => !exists?,
                Err(_) => return Err(Error::unavailable("image.sweep", "the BlobStore did not answer")),
            };
            let _turn = self.turn(digest).await;
            // Looked at again: it may have been asked for meanwhile.
            let Some(age) = age(&path)? else { continue };
            if age >= kept || (is_gone && age >= grace) {
                let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
                match tokio::fs::remove_file(&path).await {
                    Err(error) if error.kind() != IoErrorKind::NotFound => {
                        return Err(
                            Error::unavailable("image.sweep", "a file cannot be removed").with_source(error)
                        );
                    }
                    _ => removed += size,
                }
            }
        }
        Ok(removed)
    }

    /// The artefacts that are here: files that this cache made, and no others.
    async fn listed(&self) -> Result<Vec<(PathBuf, BlobKey, Digest)>> {
        let failed = |error: std::io::Error| {
            Error::unavailable("image.sweep", "the folder for images cannot be listed").with_source(error)
        };
        let mut found = Vec::new();
        for item in fs::read_dir(&self.folder).map_err(failed)? {
            let item = item.map_err(failed)?;
            let name = item.file_name();
            let Some((kind, hex)) = name.to_str().and_then(|name| name.split_once('-')) else { continue };
            let known = [ArtefactKind::Rootfs, ArtefactKind::Kernel, ArtefactKind::Initramfs]
                .iter()
                .any(|known| known.as_str() == kind);
            let Ok(digest) = format!("sha256:{hex}").parse::<Digest>() else { continue };
            if known && item.file_type().map_err(failed)?.is_file() {
                found.push((item.path(), BlobKey::new(format!("images/{kind}/{hex}"))?, digest));
            }
        }
        Ok(found)
    }

    /// The one at work on an artefact.
    async fn turn(&self, digest: Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            flights.retain(|_, flight| Arc::strong_count(flight) > 1);
            Arc::clone(flights.entry(digest).or_default())
        };
        flight.lock_owned().await
    }

    async fn fetch_now(&self, artefact: &Artefact, path: &Path) -> Result<()> {
        let key = artefact.key()?;
        let stalled = |_| {
            Error::unavailable(OPERATION, "nothing came from the BlobStore for a minute")
                .with_resource("blob", key.as_str())
        };
        let mut read = tokio::time::timeout(STALL, self.blobs.get(&key, None)).await.map_err(stalled)??;
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let (folder, target, wanted) = (self.folder.clone(), path.to_owned(), artefact.clone());
        let writer = tokio::task::spawn_blocking(move || write(receiver, &folder, &target, &wanted));
        let mut sent = Ok(());
        while let Some(chunk) = tokio::time::timeout(STALL, read.stream.next()).await.map_err(stalled)? {
            match chunk {
                // A writer that gave up says why below.
                Ok(chunk) => {
                    if sender.send(Some(chunk)).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    sent = Err(error);
                    break;
                }
            }
        }
        if sent.is_ok() {
            // Tells an ended stream from an abandoned one; a writer that gave up says why below.
            let _ = sender.send(None).await;
        }
        drop(sender);
        let written = writer
            .await
            .map_err(|error| Error::internal(OPERATION, "writing was interrupted").with_source(error))?;
        sent.and(written)
    }

    /// Removes the artefact from this host. No error when it is not here. A VM that has it open keeps it.
    pub async fn remove(&self, artefact: &Artefact) -> Result<()> {
        match tokio::fs::remove_file(self.path(artefact)).await {
            Err(error) if error.kind() != IoErrorKind::NotFound => {
                Err(Error::unavailable("image.remove", "a file cannot be removed").with_source(error))
            }
            _ => Ok(()),
        }
    }
}

/// Notes that the file was asked for.
fn touch(path: &Path) -> Result<()> {
    // Its owner may set the times of a file that is open for reading only.
    File::open(path)
        .and_then(|file| file.set_modified(SystemTime::now()))
        .map_err(|error| Error::unavailable(OPERATION, "a file's time cannot be set").with_source(error))
}

/// How long ago the file was asked for last; none when it is not there. A time in the future is now.
fn age(path: &Path) -> Result<Option<Duration>> {
    match fs::symlink_metadata(path).and_then(|metadata| metadata.modified()) {
        Ok(at) => Ok(Some(SystemTime::now().duration_since(at).unwrap_or_default())),
        Err(error) if error.kind() == IoErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::unavailable("image.sweep", "a file cannot be looked at").with_source(error)),
    }
}

fn is_whole(path: &Path, size: u64) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_file() && metadata.len() == size),
        Err(error) if error.kind() == IoErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::unavailable(OPERATION, "a file cannot be looked at").with_source(error)),
    }
}

/// Writes what the channel brings to a file beside, and gives it its name when it is whole.
fn write(
    mut chunks: mpsc::Receiver<Option<Bytes>>,
    folder: &Path,
    target: &Path,
    wanted: &Artefact,
) -> Result<()> {
    let failed = |error: std::io::Error| match error.kind() {
        IoErrorKind::StorageFull | IoErrorKind::QuotaExceeded => {
            Error::new(ErrorKind::Exhausted, OPERATION, "the disk is full").with_source(error)
        }
        IoErrorKind::InvalidData => corrupt(wanted, "the artefact is longer than its size"),
        // The decoder's complaints carry no number of the system.
        _ if error.raw_os_error().is_none() => {
            corrupt(wanted, "the artefact cannot be decoded").with_source(error)
        }
        _ => Error::unavailable(OPERATION, "a file cannot be written").with_source(error),
    };
    let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder).map_err(failed)?;
    let sparse = SparseWriter::new(&file, wanted.size);
    let mut written = match wanted.encoding {
        Encoding::Plain => {
            let mut sparse = sparse;
            drain(&mut chunks, &mut sparse).map_err(failed)?;
            sparse
        }
        Encoding::Zstd => {
            let mut decoder = zstd::stream::write::Decoder::new(sparse).map_err(failed)?;
            drain(&mut chunks, &mut decoder).map_err(failed)?;
            decoder.flush().map_err(failed)?;
            decoder.into_inner()
        }
    };
    let (size, digest) = written.finish().map_err(failed)?;
    if size != wanted.size || digest != wanted.digest {
        return Err(corrupt(wanted, "the artefact does not have its size and digest"));
    }
    file.as_file().set_permissions(fs::Permissions::from_mode(0o444)).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(target).map_err(|error| failed(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn corrupt(wanted: &Artefact, why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, OPERATION, why)
        .with_resource(wanted.kind.as_str(), wanted.digest.to_string())
}

fn drain(chunks: &mut mpsc::Receiver<Option<Bytes>>, to: &mut dyn Write) -> std::io::Result<()> {
    while let Some(chunk) = chunks.blocking_recv() {
        match chunk {
            Some(chunk) => to.write_all(&chunk)?,
            None => return Ok(()),
        }
    }
    Err(std::io::Error::from_raw_os_error(rustix::io::Errno::CANCELED.raw_os_error()))
}

/// Writes a file without its blocks of zeros, bounded by the size that is expected.
struct SparseWriter<'a> {
    file: &'a NamedTempFile,
    most: u64,
    /// Bytes that came, those that wait in `block` among them.
    size: u64,
    block: Vec<u8>,
    hash: Sha256,
}

impl<'a> SparseWriter<'a> {
    fn new(file: &'a NamedTempFile, most: u64) -> Self {
        Self { file, most, size: 0, block: Vec::with_capacity(BLOCK), hash: Sha256::new() }
    }

    fn put(&self, bytes: &[u8], at: u64) -> std::io::Result<()> {
        if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { self.file.as_file().write_all_at(bytes, at) }
    }

    fn finish(&mut self) -> std::io::Result<(u64, Digest)> {
        self.put(&self.block, self.size - self.block.len() as u64)?;
        self.file.as_file().set_len(self.size)?;
        Ok((self.size, Digest::from_bytes(self.hash.clone().finalize().into())))
    }
}

impl Write for SparseWriter<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        if self.size + buffer.len() as u64 > self.most {
            return Err(IoErrorKind::InvalidData.into());
        }
        self.hash.update(buffer);
        let mut rest = buffer;
        while !rest.is_empty() {
            let part = rest.len().min(BLOCK - self.block.len());
            self.block.extend_from_slice(&rest[..part]);
            self.size += part as u64;
            rest = &rest[part..];
            if self.block.len() == BLOCK {
                self.put(&self.block, self.size - BLOCK as u64)?;
                self.block.clear();
            }
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
