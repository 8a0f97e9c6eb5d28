//! From files to blobs and back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flames_blob::{BlobKey, BlobStore, BlobStoreExt, PutOptions};
use flames_error::{Error, ErrorKind, Result};
use flames_model::{
    IncarnationId, RestoreOrder, SecretString, SnapshotBase, SnapshotChunk, SnapshotFile, SnapshotFileRole,
    SnapshotId, SnapshotManifest, SnapshotSizes,
};
use flames_vmm::SnapshotArtefacts;
use futures::{StreamExt, TryStreamExt};

use super::SnapshotFiles;

pub(super) const OPERATION: &str = "controller.snapshot";
/// Chunks that are on their way at once: each is in memory, raw and packed.
pub(super) const AT_ONCE: usize = 4;
/// The longest a packed chunk may be: what cannot be compressed grows a little (zstd's `ZSTD_compressBound`).
const LONGEST_PACKED: u64 = SnapshotManifest::CHUNK_BYTES + SnapshotManifest::CHUNK_BYTES / 128 + 1024;
pub(super) const CHUNK: u64 = SnapshotManifest::CHUNK_BYTES;

/// What was saved of a guest on this host.
#[derive(Debug, Clone)]
pub(crate) struct SavedFiles {
    pub(crate) snapshot: SnapshotId,
    pub(crate) artefacts: SnapshotArtefacts,
    /// What its memory is a difference from; none: it is whole.
    pub(crate) base: Option<SnapshotBase>,
    /// Which agent is in it, and what it holds.
    pub(crate) agent: IncarnationId,
    pub(crate) agent_key: SecretString,
}

/// What saved files consist of.
#[derive(Debug, Clone)]
pub(crate) struct Described {
    pub(crate) manifest: SnapshotManifest,
    /// The manifest's blob.
    pub(crate) blob: String,
    /// Its content.
    pub(crate) text: Bytes,
    pub(crate) sizes: SnapshotSizes,
    /// The digests of the chunks of the snapshot that it is a difference from: they are there.
    pub(crate) of_base: BTreeSet<String>,
}

/// How many bytes the chunks of a snapshot take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stored {
    pub(crate) all: u64,
    /// Those that its base does not have.
    pub(crate) own: u64,
}

/// What a guest is loaded from.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) artefacts: SnapshotArtefacts,
    /// Who the agent in it takes itself for.
    pub(crate) agent: IncarnationId,
    pub(crate) agent_key: SecretString,
}

/// Saved guests on this host, and their way to the BlobStore and back. See the module's documentation.
#[derive(Debug)]
pub struct SnapshotStore {
    blobs: Arc<dyn BlobStore>,
    pub(super) files: Arc<dyn SnapshotFiles>,
    folder: PathBuf,
    /// One load of a snapshot at a time; the next one finds it in the cache.
    loading: Mutex<BTreeMap<SnapshotId, Arc<tokio::sync::Mutex<()>>>>,
    /// What was loaded since the present sweep began to look at what is needed.
    recent: Mutex<BTreeSet<SnapshotId>>,
}

impl SnapshotStore {
    /// A store over `blobs` that keeps its files in `folder`.
    pub fn new(blobs: Arc<dyn BlobStore>, files: Arc<dyn SnapshotFiles>, folder: impl Into<PathBuf>) -> Self {
        Self { blobs, files, folder: folder.into(), loading: Mutex::default(), recent: Mutex::default() }
    }

    pub(super) fn staging(&self, snapshot: SnapshotId) -> PathBuf {
        self.folder.join("staging").join(snapshot.to_string())
    }

    fn cached(&self, snapshot: SnapshotId) -> PathBuf {
        self.folder.join("cache").join(snapshot.to_string())
    }

    /// Keeps a guest's disk as it is now. The guest stands still meanwhile.
    pub(crate) async fn stage_disk(&self, snapshot: SnapshotId, disk: &Path) -> Result<()> {
        self.files.copy(disk, &self.staging(snapshot).join("disk")).await
    }

    /// Removes what was kept for a snapshot. No error when there is nothing.
    pub(crate) async fn discard(&self, snapshot: SnapshotId) -> Result<()> {
        self.files.remove(&self.staging(snapshot)).await
    }

    fn sources(&self, saved: &SavedFiles) -> Vec<(SnapshotFileRole, PathBuf)> {
        let mut sources = vec![(SnapshotFileRole::State, saved.artefacts.state.clone())];
        let memory = match saved.base {
            Some(_) => saved.artefacts.memory.is_some().then(|| self.put_together(saved.snapshot)),
            None => saved.artefacts.memory.clone(),
        };
        sources.extend(memory.map(|path| (SnapshotFileRole::Memory, path)));
        sources.push((SnapshotFileRole::Disk, self.staging(saved.snapshot).join("disk")));
        sources
    }

    /// Finds out what the saved files consist of. The same files give the same list.
    ///
    /// Errors: those of the files; `InvalidInput` when the guest is too large for a list; `Corrupt` when what it is a difference from is
    /// damaged, not there, or of another guest.
    pub(crate) async fn describe(&self, saved: &SavedFiles) -> Result<Described> {
        let base = match &saved.base {
            Some(base) => Some(self.manifest(base.snapshot, &base.manifest).await?),
            None => None,
        };
        let mut files = Vec::new();
        for (role, path) in self.sources(saved) {
            files.push(match (role, &base, &saved.artefacts.memory) {
                (SnapshotFileRole::Memory, Some(base), Some(difference)) => {
                    self.describe_difference(base, difference, &path).await?
                }
                _ => self.describe_file(role, &path).await?,
            });
        }
        let of_base = base.iter().flat_map(SnapshotManifest::digests).map(str::to_owned).collect();
        let manifest = SnapshotManifest {
            schema: SnapshotManifest::SCHEMA,
            snapshot: saved.snapshot,
            files,
            agent: saved.agent,
            agent_key: saved.agent_key.clone(),
        };
        let text = serde_json::to_vec(&manifest)
            .map_err(|error| Error::internal(OPERATION, "the list cannot be written").with_source(error))?;
        if text.len() as u64 > SnapshotManifest::MAX_BYTES {
            return Err(Error::invalid(OPERATION, "snapshot", "The guest is too large to be saved."));
        }
        let blob = SnapshotManifest::blob(blake3::hash(&text).to_hex().as_str());
        let sizes = SnapshotSizes {
            logical_bytes: manifest.files.iter().map(|file| file.length).sum(),
            stored_bytes: 0,
            chunks: manifest.digests().len() as u64,
            own_bytes: 0,
        };
        Ok(Described { manifest, blob, sizes, text: text.into(), of_base })
    }

    /// Stores the list.
    pub(crate) async fn store_list(&self, described: &Described) -> Result<()> {
        let key = BlobKey::new(described.blob.clone())?;
        self.blobs.put_bytes(&key, described.text.clone(), PutOptions::default()).await.map(drop)
    }

    pub(super) async fn describe_file(&self, role: SnapshotFileRole, path: &Path) -> Result<SnapshotFile> {
        let length = self.files.length(path).await?;
        let (mut chunks, mut offset) = (Vec::new(), 0);
        while offset < length {
            let Some(data) = self.files.next_data(path, offset).await?.filter(|data| *data < length) else {
                break;
            };
            offset = data / CHUNK * CHUNK;
            if let Some(digest) = self.files.digest(path, offset, size(length, offset)).await? {
                chunks.push(SnapshotChunk { offset, digest });
            }
            offset = offset.saturating_add(CHUNK);
        }
        Ok(SnapshotFile { role, length, chunks })
    }

    /// Stores the chunks that are not there yet. What is there is not sent again, so a call that broke off is simply repeated. Answers how
    /// many bytes they take.
    ///
    /// Errors: those of the files and the BlobStore; `Corrupt` when a chunk of the base is not there.
    pub(crate) async fn upload(&self, saved: &SavedFiles, described: &Described) -> Result<Stored> {
        let sources: BTreeMap<_, _> = self.sources(saved).into_iter().collect();
        let mut wanted: BTreeMap<String, (PathBuf, u64, usize)> = BTreeMap::new();
        for file in &described.manifest.files {
            let Some(path) = sources.get(&file.role) else { continue };
            for chunk in &file.chunks {
                let piece = (path.clone(), chunk.offset, size(file.length, chunk.offset));
                wanted.entry(chunk.digest.clone()).or_insert(piece);
            }
        }
        futures::stream::iter(wanted)
            .map(|(digest, (path, offset, length))| async move {
                let key = BlobKey::new(SnapshotManifest::chunk_blob(&digest))?;
                let is_of_base = described.of_base.contains(&digest);
                match self.blobs.head(&key).await {
                    Ok(there) if is_of_base => return Ok(Stored { all: there.size, own: 0 }),
                    Ok(there) => return Ok(Stored { all: there.size, own: there.size }),
                    // Its bytes are not on this host.
                    Err(error) if error.kind() == ErrorKind::NotFound && is_of_base => {
                        return Err(missing(&key).with_source(error));
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
                let packed = self.files.packed(&path, offset, length).await?;
                let options =
                    PutOptions { expected_size: Some(packed.len() as u64), ..PutOptions::default() };
                let stored = self.blobs.put_bytes(&key, packed, options).await?;
                Ok(Stored { all: stored.size, own: stored.size })
            })
            .buffer_unordered(AT_ONCE)
            .try_fold(Stored::default(), |sum, one| async move {
                Ok(Stored { all: sum.all.saturating_add(one.all), own: sum.own.saturating_add(one.own) })
            })
            .await
    }

    /// Makes local what a guest is loaded from, each piece checked against its digest. With `disk`, its disk is put there, in place of what is
    /// there.
    ///
    /// Errors: `Corrupt` when a piece is missing or damaged, with a sentence for users; those of the files and the BlobStore.
    pub(crate) async fn load(&self, order: &RestoreOrder, disk: Option<&Path>) -> Result<Loaded> {
        let turn = {
            let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(loading.entry(order.snapshot).or_default())
        };
        let _turn = turn.lock().await;
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).insert(order.snapshot);
        let manifest = self.manifest(order.snapshot, &order.manifest).await?;
        let folder = self.cached(order.snapshot);
        if !self.files.exists(&folder.join("manifest")).await? {
            self.fetch(&manifest, &folder).await?;
        }
        if let Some(disk) = disk {
            self.files.copy(&folder.join(name(SnapshotFileRole::Disk)), disk).await?;
        }
        let memory = manifest.file(SnapshotFileRole::Memory).map(|file| folder.join(name(file.role)));
        let artefacts = SnapshotArtefacts { state: folder.join(name(SnapshotFileRole::State)), memory };
        Ok(Loaded { artefacts, agent: manifest.agent, agent_key: manifest.agent_key })
    }

    async fn manifest(&self, snapshot: SnapshotId, blob: &str) -> Result<SnapshotManifest> {
        let damaged = |why: &'static str| {
            Error::new(ErrorKind::Corrupt, OPERATION, why).with_resource("blob", blob).with_user_message(
                "The snapshot's list of pieces is missing or damaged. Take the snapshot again.",
            )
        };
        let key = BlobKey::new(blob)?;
        let text = match self.blobs.get_bytes(&key, SnapshotManifest::MAX_BYTES).await {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::Exhausted
                ) =>
            {
                return Err(damaged("the list cannot be read").with_source(error));
            }
            text => text?,
        };
        let is_named = SnapshotManifest::blob(blake3::hash(&text).to_hex().as_str()) == blob;
        let manifest: SnapshotManifest =
            serde_json::from_slice(&text).map_err(|error| damaged("the list is none").with_source(error))?;
        if is_named && manifest.is_sound() && manifest.snapshot == snapshot {
            Ok(manifest)
        } else {
            Err(damaged("the list has another content than its name says"))
        }
    }

    async fn fetch(&self, manifest: &SnapshotManifest, folder: &Path) -> Result<()> {
        for file in &manifest.files {
            let path = folder.join(name(file.role));
            self.files.create(&path, file.length).await?;
            let (path, length) = (path.as_path(), file.length);
            futures::stream::iter(file.chunks.clone())
                .map(|chunk| async move {
                    let packed = self.fetch_chunk(&chunk.digest).await?;
                    let take = size(length, chunk.offset);
                    self.files.unpack(path, chunk.offset, take, &chunk.digest, packed).await
                })
                .buffer_unordered(AT_ONCE)
                .try_collect::<Vec<()>>()
                .await?;
            self.files.seal(path).await?;
        }
        self.files.create(&folder.join("manifest.new"), 0).await?;
        self.files.rename(&folder.join("manifest.new"), &folder.join("manifest")).await
    }

    pub(super) async fn fetch_chunk(&self, digest: &str) -> Result<Bytes> {
        let key = BlobKey::new(SnapshotManifest::chunk_blob(digest))?;
        self.blobs.get_bytes(&key, LONGEST_PACKED).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::Exhausted => {
                missing(&key).with_source(error)
            }
            _ => error,
        })
    }

    /// To be called before it is looked at what is needed for [`SnapshotStore::sweep`].
    pub(crate) fn begin_sweep(&self) {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Removes what no guest is loaded from and no snapshot is stored from any more.
    pub(crate) async fn sweep(
        &self,
        saving: &BTreeSet<SnapshotId>,
        restoring: &BTreeSet<SnapshotId>,
    ) -> Result<()> {
        for (folder, needed) in [("staging", saving), ("cache", restoring)] {
            for path in self.files.list(&self.folder.join(folder)).await? {
                let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
                let Some(id) = id.filter(|id: &SnapshotId| !needed.contains(id)) else { continue };
                let turn = {
                    let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
                    Arc::clone(loading.entry(id).or_default())
                };
                // One that is being loaded right now is needed, whatever was read before.
                let Ok(_turn) = turn.try_lock() else { continue };
                if self.recent.lock().unwrap_or_else(PoisonError::into_inner).contains(&id) {
                    continue;
                }
                self.files.remove(&path).await?;
            }
        }
        let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        loading.retain(|id, turn| restoring.contains(id) || Arc::strong_count(turn) > 1);
        Ok(())
    }
}

fn missing(key: &BlobKey) -> Error {
    Error::new(ErrorKind::Corrupt, OPERATION, "a piece is not there, or damaged")
        .with_resource("blob", key.as_str())
        .with_user_message(
            "A piece of the snapshot is missing or damaged in the store. Take the snapshot again, as a full one.",
        )
}

fn name(role: SnapshotFileRole) -> &'static str {
    match role {
        SnapshotFileRole::State => "state",
        SnapshotFileRole::Memory => "memory",
        SnapshotFileRole::Disk => "disk",
    }
}

/// The length of the chunk at `offset` of a file.
pub(super) fn size(length: u64, offset: u64) -> usize {
    usize::try_from(CHUNK.min(length.saturating_sub(offset))).unwrap_or(0)
}
