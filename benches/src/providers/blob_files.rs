//! BlobStore in local files, beside files written by hand: written, hashed, synced, renamed, and the folder synced.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use flames_blob::{BlobKey, BlobStore, BlobStoreExt, PutOptions};
use flames_blob_object_store::FsBlobStore;
use flames_clock::SystemClock;
use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::compare::{Operation, compare, operation};
use super::{Findings, ProvidersArguments};

/// The sizes of blobs, and by how many clients each is put and got.
pub(crate) const SIZES: [(&str, usize, usize); 2] = [("64 KiB", 64 * 1024, 8), ("8 MiB", 8 * 1024 * 1024, 2)];

/// Any BlobStore with the bytes of one size.
pub(crate) struct Ours {
    store: Arc<dyn BlobStore>,
    bytes: Bytes,
}

pub(crate) fn content(size: usize) -> Bytes {
    // Not to be compressed by any layer below.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes = (0..size).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    bytes.collect()
}

impl Ours {
    pub(crate) fn new(store: Arc<dyn BlobStore>, size: usize) -> Arc<Self> {
        Arc::new(Self { store, bytes: content(size) })
    }

    pub(crate) fn puts(self: &Arc<Self>) -> Operation {
        operation(self, async |ours, client| {
            let key = BlobKey::new(format!("bench-{client}"))?;
            ours.store.put_bytes(&key, ours.bytes.clone(), PutOptions::default()).await?;
            Ok(1)
        })
    }

    pub(crate) fn gets(self: &Arc<Self>) -> Operation {
        operation(self, async |ours, client| {
            let read = ours.store.get(&BlobKey::new(format!("bench-{client}"))?, None).await?;
            let size = read.stream.try_fold(0, async |sum, chunk| Ok(sum + chunk.len())).await?;
            anyhow::ensure!(size == ours.bytes.len(), "{size} bytes came back");
            Ok(1)
        })
    }
}

struct Bare {
    folder: PathBuf,
    bytes: Bytes,
}

impl Bare {
    fn path(&self, client: usize) -> PathBuf {
        self.folder.join(format!("bench-{client}"))
    }

    async fn put(&self, client: usize) -> Result<()> {
        let (path, part) = (self.path(client), self.folder.join(format!("part-{client}")));
        let mut file = tokio::fs::File::create(&part).await?;
        let mut hash = Sha256::new();
        for chunk in self.bytes.chunks(64 * 1024) {
            hash.update(chunk);
            file.write_all(chunk).await?;
        }
        std::hint::black_box(hash.finalize());
        file.flush().await?;
        file.sync_all().await?;
        tokio::fs::rename(&part, &path).await?;
        sync_folder(&self.folder).await
    }

    async fn get(&self, client: usize) -> Result<()> {
        let mut file = tokio::fs::File::open(self.path(client)).await?;
        let mut hash = Sha256::new();
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let read = file.read(&mut chunk).await?;
            let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
            hash.update(bytes);
        }
        std::hint::black_box(hash.finalize());
        Ok(())
    }
}

async fn sync_folder(folder: &Path) -> Result<()> {
    tokio::fs::File::open(folder).await?.sync_all().await?;
    Ok(())
}

pub(crate) async fn measure(arguments: &ProvidersArguments, findings: &mut Findings) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = FsBlobStore::open(folder.path().join("ours"), Arc::new(SystemClock::new())).await?;
    let store: Arc<dyn BlobStore> = Arc::new(store);
    let mut rows = Vec::new();
    for (name, size, clients) in SIZES {
        let ours = Ours::new(Arc::clone(&store), size);
        let bare =
            Arc::new(Bare { folder: folder.path().join(format!("bare-{size}")), bytes: content(size) });
        tokio::fs::create_dir(&bare.folder).await?;
        let puts = operation(&bare, async |bare, client| bare.put(client).await.map(|()| 1));
        let gets = operation(&bare, async |bare, client| bare.get(client).await.map(|()| 1));
        let compared = compare(arguments.effort(), clients, &ours.puts(), &puts).await?;
        rows.push(compared.row(format!("put {name}, {clients} clients")));
        let compared = compare(arguments.effort(), clients, &ours.gets(), &gets).await?;
        rows.push(compared.row(format!("get {name}, {clients} clients")));
    }
    findings.section(
        "blob/fs beside files written and read by hand with SHA-256, fsync and rename",
        "work",
        rows,
    );
    Ok(())
}
