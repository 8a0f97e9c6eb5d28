//! Which blobs a controller may read and store.

use std::collections::BTreeSet;

use flames_error::{ErrorKind, Result};
use flames_model::SnapshotManifest;

use crate::{HostSession, Service};

/// Assignments that are read at once.
const PAGE: usize = 256;

/// What a controller may do with blobs, by what is assigned to it right now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostBlobs {
    /// Those that its assignments name: images, kernels, what guests are loaded from, and what differences are saved from.
    pub readable: BTreeSet<String>,
    /// Whether it is to take a snapshot, and so stores pieces and lists of pieces.
    pub stores: bool,
}

impl Service {
    /// What a controller may do with blobs. Reads all of its assignments, and the list of pieces of each snapshot that they name.
    ///
    /// Errors: as [`Service::host_assignments`].
    pub async fn host_blobs(&self, session: &HostSession) -> Result<HostBlobs> {
        self.confirm_session(session).await?;
        let mut blobs = HostBlobs::default();
        let mut manifests = BTreeSet::new();
        let mut after = None;
        loop {
            let page = self.records().assignments(session.controller, after, PAGE).await?;
            for assignment in &page.items {
                blobs.readable.insert(assignment.image.blob.clone());
                blobs.readable.extend(assignment.kernel.iter().map(|kernel| kernel.blob.clone()));
                manifests.extend(assignment.restore.iter().map(|order| order.manifest.clone()));
                manifests.extend(assignment.snapshot_base.iter().map(|base| base.manifest.clone()));
                blobs.stores |= assignment.snapshot.is_some();
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        for manifest in manifests {
            match self.snapshot_manifest(&manifest).await {
                Ok(listed) => {
                    blobs.readable.extend(listed.digests().into_iter().map(SnapshotManifest::chunk_blob));
                }
                // Who asks for it is told so.
                Err(error) if !error.is_retryable() && error.kind() != ErrorKind::Internal => {}
                Err(error) => return Err(error),
            }
            blobs.readable.insert(manifest);
        }
        Ok(blobs)
    }
}
