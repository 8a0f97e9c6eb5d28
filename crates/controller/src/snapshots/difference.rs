//! The memory of a guest that was saved as a difference from an earlier snapshot of it.
//!
//! Of the pieces that have changed, the base's bytes are fetched, and what changed is laid over them; all others are the base's own. So the
//! list of pieces is that of the whole memory, and nothing needs the base once it is stored.

use std::path::{Path, PathBuf};

use flames_error::{Error, ErrorKind, Result};
use flames_model::{SnapshotChunk, SnapshotFile, SnapshotFileRole, SnapshotId, SnapshotManifest};
use futures::{StreamExt, TryStreamExt};

use super::SnapshotStore;
use super::store::{AT_ONCE, CHUNK, OPERATION, size};

impl SnapshotStore {
    /// Where the changed pieces of a memory are put together.
    pub(super) fn put_together(&self, snapshot: SnapshotId) -> PathBuf {
        self.staging(snapshot).join("memory")
    }

    /// Finds out what the memory consists of whose difference from `base` is in the file `difference`. Its changed pieces are at their places in
    /// `whole` afterwards, and nothing else.
    pub(super) async fn describe_difference(
        &self,
        base: &SnapshotManifest,
        difference: &Path,
        whole: &Path,
    ) -> Result<SnapshotFile> {
        let length = self.files.length(difference).await?;
        let Some(base) = base.file(SnapshotFileRole::Memory).filter(|base| base.length == length) else {
            return Err(Error::new(ErrorKind::Corrupt, OPERATION, "the base is of another guest")
                .with_user_message("The snapshot that the difference was saved from is of another guest."));
        };
        self.files.create(whole, length).await?;
        let mut changed = Vec::new();
        let mut offset = 0;
        while let Some(data) = self.files.next_data(difference, offset).await?.filter(|data| *data < length) {
            changed.push(data / CHUNK * CHUNK);
            offset = (data / CHUNK + 1).saturating_mul(CHUNK);
        }
        let of_base = |offset| {
            base.chunks.binary_search_by_key(&offset, |chunk| chunk.offset).ok().map(|at| &base.chunks[at])
        };
        let renewed: Vec<(u64, Option<String>)> = futures::stream::iter(changed.clone())
            .map(|offset| async move {
                let take = size(length, offset);
                if let Some(before) = of_base(offset) {
                    let packed = self.fetch_chunk(&before.digest).await?;
                    self.files.unpack(whole, offset, take, &before.digest, packed).await?;
                }
                self.files.lay_over(difference, whole, offset, take).await?;
                Ok::<_, Error>((offset, self.files.digest(whole, offset, take).await?))
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let kept = base.chunks.iter().filter(|chunk| changed.binary_search(&chunk.offset).is_err()).cloned();
        let renewed = renewed
            .into_iter()
            .filter_map(|(offset, digest)| Some(SnapshotChunk { offset, digest: digest? }));
        let mut chunks: Vec<SnapshotChunk> = kept.chain(renewed).collect();
        chunks.sort_unstable_by_key(|chunk| chunk.offset);
        Ok(SnapshotFile { role: SnapshotFileRole::Memory, length, chunks })
    }
}
