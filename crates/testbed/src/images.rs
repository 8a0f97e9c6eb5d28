//! Images come and go while VMs run: one name gets other contents, another name is added and removed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flames_blob::{BlobKey, BlobStore, BlobStoreExt, MAX_PAGE, PutOptions};
use flames_clock::{Clock, Random, RandomExt};
use flames_error::{ErrorKind, Result};
use flames_model::{
    ImageDefaults, ImageKind, ImageManifest, ImageName, ProjectName, SnapshotManifest, SnapshotState,
};
use flames_records::Records;
use flames_service::{Mutation, Service};

use crate::clients::caller;

/// How many contents there are: few, so that one that was swept is soon imported again.
const CONTENTS: u64 = 3;

/// Somebody who imports and removes images.
pub(crate) struct ImageKeeper {
    pub(crate) service: Service,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
}

impl ImageKeeper {
    /// Until dropped.
    pub(crate) async fn run(self) {
        loop {
            self.clock.sleep(Duration::from_millis(200 + self.random.below(5_000))).await;
            let content = self.random.below(CONTENTS);
            // What fails is not tried again: the next turn is another try.
            let _ = match self.random.below(4) {
                0 => import(&self.service, "extra", content).await,
                1 => remove(&self.service, "extra").await,
                _ => import(&self.service, "debian", content).await,
            };
        }
    }
}

/// Stores a content, when it is not stored already, and gives it a name: as a real import does.
pub(crate) async fn import(service: &Service, name: &str, content: u64) -> Result<()> {
    let bytes = format!("the content number {content}");
    let digest = blake3::hash(bytes.as_bytes()).to_hex();
    let key = BlobKey::new(format!("images/rootfs/{digest}"))?;
    if !service.blobs().exists(&key).await? {
        service.blobs().put_bytes(&key, bytes.clone().into(), PutOptions::default()).await?;
    }
    let manifest = ImageManifest {
        kind: ImageKind::Rootfs,
        blob: key.as_str().to_owned(),
        digest: format!("sha256:{digest}"),
        size_bytes: u64::try_from(bytes.len()).unwrap_or(0),
        defaults: ImageDefaults::default(),
    };
    service.name_image(&caller()?, &ImageName::new(name)?, manifest, &Mutation::default()).await.map(drop)
}

async fn remove(service: &Service, name: &str) -> Result<()> {
    service.remove_image(&caller()?, &ImageName::new(name)?, &Mutation::default()).await
}

/// The blobs that must be there, each with who needs it.
pub(crate) async fn needed(records: &Records, blobs: &dyn BlobStore) -> Result<Vec<(String, String)>> {
    let project = ProjectName::new("default")?;
    let images = records.images(&project, None, MAX_PAGE).await?.items;
    let images =
        images.into_iter().map(|image| (image.manifest.blob.clone(), format!("the image {}", image.name)));
    let mut needed: Vec<_> = images.collect();
    let mut after = None;
    loop {
        let page = records.all_assignments(after, MAX_PAGE).await?;
        needed.extend(
            page.items
                .into_iter()
                .map(|assignment| (assignment.image.blob.clone(), assignment.incarnation.to_string())),
        );
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    for snapshot in records.snapshots(&project, None, MAX_PAGE).await?.items {
        let snapshot = snapshot.record;
        let by = format!("the snapshot {}", snapshot.name);
        needed.push((snapshot.image.blob.clone(), by.clone()));
        if snapshot.state != SnapshotState::Ready {
            continue;
        }
        let Some(manifest) = snapshot.manifest.clone() else { continue };
        if let Ok(text) = blobs.get_bytes(&BlobKey::new(manifest.clone())?, SnapshotManifest::MAX_BYTES).await
            && let Ok(listed) = serde_json::from_slice::<SnapshotManifest>(&text)
        {
            let pieces = listed.digests().into_iter().map(SnapshotManifest::chunk_blob);
            needed.extend(pieces.map(|piece| (piece, by.clone())));
        }
        needed.push((manifest, by));
    }
    Ok(needed)
}

/// Blobs that are needed and gone, as sentences.
pub(crate) async fn lost(records: &Records, blobs: &dyn BlobStore) -> Result<Vec<String>> {
    let mut lost = Vec::new();
    for (blob, by) in needed(records, blobs).await? {
        match blobs.head(&BlobKey::new(blob.clone())?).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                lost.push(format!("{blob} was swept, and {by} needs it"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(lost)
}

/// What nobody needs and is there all the same, as sentences.
pub(crate) async fn left_over(records: &Records, blobs: &dyn BlobStore) -> Result<Vec<String>> {
    let needed: BTreeSet<_> = needed(records, blobs).await?.into_iter().map(|(blob, _)| blob).collect();
    let mut there = blobs.list("images/", None, MAX_PAGE).await?.blobs;
    there.extend(blobs.list(SnapshotManifest::BLOB_PREFIX, None, MAX_PAGE).await?.blobs);
    let unneeded = there.into_iter().filter(|blob| !needed.contains(blob.key.as_str()));
    let mut found: Vec<_> =
        unneeded.map(|blob| format!("{} was not swept, and nobody needs it", blob.key)).collect();
    let condemned = records.all_condemned(None, MAX_PAGE).await?.items;
    found.extend(condemned.iter().map(|condemned| format!("{} is condemned for ever", condemned.blob)));
    Ok(found)
}
