//! The files of saved guests on a simulated host.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use flames_controller::{SnapshotFiles, chunk};
use flames_error::{Error, Result};
use flames_vmm_simulated::SimulatedHost;

use crate::OPERATION;

/// Files of saved guests, which a simulated host keeps below one folder. Everything else on it, guests' disks among it, is imagined: it has a
/// content when it is read, and takes what is written without keeping it.
#[derive(Debug, Clone)]
pub struct SimulatedDisk {
    host: Arc<SimulatedHost>,
    folder: PathBuf,
}

impl SimulatedDisk {
    /// The files below `folder` on `host`.
    pub fn new(host: Arc<SimulatedHost>, folder: impl Into<PathBuf>) -> Self {
        Self { host, folder: folder.into() }
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        match self.host.read_file(path) {
            Some(content) => Ok(content),
            None if path.starts_with(&self.folder) => {
                Err(Error::not_found(OPERATION, "file", path.display().to_string()))
            }
            None => Ok(b"what is on every simulated disk\n".repeat(32)),
        }
    }

    fn part(&self, path: &Path, offset: u64, length: usize) -> Result<Vec<u8>> {
        let content = self.read(path)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = content.get(from..from.saturating_add(length));
        part.map(<[u8]>::to_vec).ok_or_else(|| Error::unavailable(OPERATION, "the file ends earlier"))
    }

    fn write(&self, path: &Path, content: Vec<u8>) {
        if path.starts_with(&self.folder) {
            self.host.write_file(path, content);
        }
    }
}

#[async_trait]
impl SnapshotFiles for SimulatedDisk {
    async fn length(&self, path: &Path) -> Result<u64> {
        Ok(self.read(path)?.len() as u64)
    }

    async fn next_data(&self, path: &Path, from: u64) -> Result<Option<u64>> {
        let content = self.read(path)?;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let data = content.iter().skip(from).position(|byte| *byte != 0);
        Ok(data.map(|at| (from + at) as u64))
    }

    async fn digest(&self, path: &Path, offset: u64, length: usize) -> Result<Option<String>> {
        Ok(chunk::digest(&self.part(path, offset, length)?))
    }

    async fn packed(&self, path: &Path, offset: u64, length: usize) -> Result<Bytes> {
        chunk::pack(&self.part(path, offset, length)?).map(Bytes::from)
    }

    async fn create(&self, path: &Path, length: u64) -> Result<()> {
        self.write(path, vec![0; usize::try_from(length).unwrap_or(0)]);
        Ok(())
    }

    async fn unpack(
        &self,
        path: &Path,
        offset: u64,
        length: usize,
        digest: &str,
        packed: Bytes,
    ) -> Result<()> {
        let bytes = chunk::unpack(&packed, digest, length)?;
        let mut content = self.read(path)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let place = content.get_mut(from..from.saturating_add(bytes.len()));
        let place = place.ok_or_else(|| Error::unavailable(OPERATION, "the file ends earlier"))?;
        place.copy_from_slice(&bytes);
        self.write(path, content);
        Ok(())
    }

    async fn lay_over(&self, from: &Path, onto: &Path, offset: u64, length: usize) -> Result<()> {
        let (data, mut content) = (self.part(from, offset, length)?, self.read(onto)?);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let place = content.get_mut(from..from.saturating_add(length));
        let place = place.ok_or_else(|| Error::unavailable(OPERATION, "the file ends earlier"))?;
        // A simulated hole is zeros.
        for (byte, new) in place.iter_mut().zip(data).filter(|(_, new)| *new != 0) {
            *byte = new;
        }
        self.write(onto, content);
        Ok(())
    }

    async fn seal(&self, _path: &Path) -> Result<()> {
        Ok(())
    }

    async fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        self.write(to, self.read(from)?);
        Ok(())
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let content = self.read(from)?;
        self.host.remove_files(from);
        self.write(to, content);
        Ok(())
    }

    async fn exists(&self, path: &Path) -> Result<bool> {
        Ok(self.host.files().iter().any(|file| file.starts_with(path)))
    }

    async fn remove(&self, path: &Path) -> Result<()> {
        self.host.remove_files(path);
        Ok(())
    }

    async fn list(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let child = |file: PathBuf| {
            let first = file.strip_prefix(folder).ok()?.components().next()?;
            Some(folder.join(first))
        };
        let children: BTreeSet<PathBuf> = self.host.files().into_iter().filter_map(child).collect();
        Ok(children.into_iter().collect())
    }
}
