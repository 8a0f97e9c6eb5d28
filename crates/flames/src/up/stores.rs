//! Where records and images are kept. Concrete providers are named here.

use std::path::Path;
use std::sync::Arc;

use flames_blob::BlobStore;
use flames_clock::Clock;
use flames_state::StateStore;
use flames_state_memory::MemoryStore;

use crate::exit::Failure;

/// The stores of one `flames up`.
#[derive(Debug)]
pub(super) struct Stores {
    pub(super) state: Arc<dyn StateStore>,
    pub(super) blobs: Arc<dyn BlobStore>,
    #[cfg(feature = "sqlite")]
    sqlite: Option<Arc<flames_state_sqlite::SqliteStore>>,
}

impl Stores {
    /// The durable stores in a folder.
    #[cfg(feature = "sqlite")]
    pub(super) async fn durable(folder: &Path, clock: &Arc<dyn Clock>) -> Result<Self, Failure> {
        let config = flames_state_sqlite::SqliteConfig::at(folder.join("state.sqlite"));
        let sqlite = Arc::new(flames_state_sqlite::SqliteStore::open(config, clock.clone()).await?);
        Ok(Self { state: sqlite.clone(), blobs: blobs(folder, clock).await?, sqlite: Some(sqlite) })
    }

    /// The durable stores in a folder.
    #[cfg(not(feature = "sqlite"))]
    pub(super) async fn durable(_folder: &Path, _clock: &Arc<dyn Clock>) -> Result<Self, Failure> {
        Err(Failure::usage(
            "This build of Flames keeps no records on disk: it was made without the feature `sqlite`.",
        )
        .advise("Use --ephemeral, or another build."))
    }

    /// Records in memory; images in a folder that is removed at the end.
    pub(super) async fn ephemeral(folder: &Path, clock: &Arc<dyn Clock>) -> Result<Self, Failure> {
        Ok(Self {
            state: Arc::new(MemoryStore::new()),
            blobs: blobs(folder, clock).await?,
            #[cfg(feature = "sqlite")]
            sqlite: None,
        })
    }

    /// Closes what has to be closed. Nothing may use the stores any more.
    pub(super) async fn close(self) {
        #[cfg(feature = "sqlite")]
        if let Some(sqlite) = self.sqlite
            && let Err(error) = sqlite.close().await
        {
            tracing::warn!(?error, "the state was left as by a crash");
        }
    }
}

#[cfg(feature = "fs")]
async fn blobs(folder: &Path, clock: &Arc<dyn Clock>) -> Result<Arc<dyn BlobStore>, Failure> {
    let store = flames_blob_object_store::FsBlobStore::open(folder.join("blobs"), clock.clone()).await?;
    Ok(Arc::new(store))
}

#[cfg(not(feature = "fs"))]
async fn blobs(_folder: &Path, clock: &Arc<dyn Clock>) -> Result<Arc<dyn BlobStore>, Failure> {
    Ok(Arc::new(flames_blob_memory::MemoryBlobStore::new(clock.clone())))
}
