//! Removes the blobs of images and snapshots that nothing names any more.
//!
//! What is needed: the blobs that an image's record names; those that a snapshot names (its manifest, the chunks in that, and the image
//! and kernel of the guest); and those that an assignment names, which stands as long as its incarnation lives. Nothing but these
//! kinds of records leads to a blob. A new assignment is committed only while the image or the snapshot that it is made from is still as
//! it was read; a snapshot begins to name its image, and later its manifest, only while nothing is condemned.
//!
//! 1. A blob that neither names, and that is old enough (it is stored before it is named), is condemned: a record says so.
//! 2. From that commit on nothing can begin to name it ([`flames_records::Change::keep_blob`]); so if neither names it now, none ever
//!    will. Then it is removed.
//! 3. The record goes. A sweeper that ended before leaves it, and another takes over once it was seen for long enough.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_blob::{BlobInfo, BlobKey};
use flames_clock::{ClockExt, Monotonic, RandomExt};
use flames_error::{Error, ErrorKind, Result};
use flames_model::{ProjectName, SnapshotManifest};
use flames_records::{Change, Condemned, MAX_PAGE, Versioned};

use crate::Service;

/// What the keys of blobs of images and snapshots begin with. Nothing else is ever looked at.
const PREFIXES: [&str; 2] = ["images/", SnapshotManifest::BLOB_PREFIX];
/// Blobs that are looked at together, and condemned before any of them is removed.
const TOGETHER: usize = 64;

/// How long the sweep waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepConfig {
    /// How old a blob must be, by the BlobStore's clock: longer than what an import takes between storing and naming it.
    pub grace: Duration,
    /// How long a blob that another sweeper condemned is left to it. Within half of this a sweeper removes what it condemned, or
    /// leaves it to a later sweep.
    pub takeover: Duration,
}

impl Default for SweepConfig {
    fn default() -> Self {
        Self { grace: Duration::from_secs(15 * 60), takeover: Duration::from_secs(10 * 60) }
    }
}

/// What one sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Blobs that were removed.
    pub removed: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Sweeps the blobs of images and snapshots. One sweep at a time; several sweepers do each other no harm.
#[derive(Debug)]
pub struct ImageSweeper {
    service: Service,
    config: SweepConfig,
    /// Tells this sweeper from all others.
    me: u64,
    /// Blobs that others condemned: by whom, and since when this was seen.
    others: BTreeMap<String, (u64, Monotonic)>,
    /// What each manifest that snapshots name lists. A manifest never changes.
    manifests: Mutex<BTreeMap<String, Arc<Vec<String>>>>,
}

impl ImageSweeper {
    /// A sweeper for the images and snapshots of `service`.
    pub fn new(service: Service, config: SweepConfig) -> Self {
        let me = service.parts.random.next_u64();
        Self { service, config, me, others: BTreeMap::new(), manifests: Mutex::default() }
    }

    /// Looks at all blobs of images and snapshots once, and removes those that are not needed. May be dropped at any await; the next sweep goes on.
    ///
    /// Errors: `Unavailable` when a store does not answer; what was begun is finished by a later sweep.
    pub async fn sweep(&mut self) -> Result<Swept> {
        let mut swept = Swept::default();
        self.finish_what_was_begun(&mut swept).await?;
        self.service.finish_deletions(&ProjectName::new("default")?).await?;
        for prefix in PREFIXES {
            self.sweep_prefix(prefix, &mut swept).await?;
        }
        if swept.removed > 0 {
            tracing::info!(swept.removed, swept.bytes, "blobs that nothing names were removed");
        }
        Ok(swept)
    }

    async fn sweep_prefix(&self, prefix: &str, swept: &mut Swept) -> Result<()> {
        let named = self.named().await?;
        let mut after = None;
        loop {
            let page = self.service.blobs().list(prefix, after.as_ref(), TOGETHER).await?;
            let now = self.service.clock().now();
            let is_old = |blob: &BlobInfo| {
                now.duration_since(blob.stored_at).unsigned_abs() >= self.config.grace
                    && blob.stored_at <= now
            };
            let candidates: Vec<_> = page
                .blobs
                .into_iter()
                .filter(|blob| is_old(blob) && !named.contains(blob.key.as_str()))
                .collect();
            if !candidates.is_empty() {
                let assigned = self.assigned().await?;
                let candidates = candidates.into_iter().filter(|blob| !assigned.contains(blob.key.as_str()));
                self.sweep_together(candidates.collect(), swept).await?;
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Takes care of blobs that were condemned and are so still: by this sweeper's last sweep, or by one that is gone.
    async fn finish_what_was_begun(&mut self, swept: &mut Swept) -> Result<()> {
        let (mut after, mut known) = (None, BTreeMap::new());
        let now = self.service.clock().monotonic();
        let mut left = Vec::new();
        loop {
            let page = self.service.records().all_condemned(after, MAX_PAGE).await?;
            for condemned in page.items {
                let seen = match self.others.get(&condemned.blob) {
                    Some((by, since)) if *by == condemned.by => *since,
                    _ => now,
                };
                known.insert(condemned.blob.clone(), (condemned.by, seen));
                let is_mine = condemned.by == self.me;
                if is_mine || now.saturating_since(seen) >= self.config.takeover {
                    left.push(condemned);
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        self.others = known;
        for together in left.chunks(TOGETHER) {
            let began = self.service.clock().monotonic();
            let mut mine = Vec::new();
            for condemned in together {
                let taken = Condemned { by: self.me, ..Condemned::clone(condemned) };
                // Also when it is this sweeper's own: whatever it began before is over.
                mine.extend(self.mark(Some(condemned), taken).await?);
            }
            self.remove(mine, &BTreeMap::new(), began, swept).await?;
        }
        Ok(())
    }

    async fn sweep_together(&self, blobs: Vec<BlobInfo>, swept: &mut Swept) -> Result<()> {
        let began = self.service.clock().monotonic();
        let at = self.service.clock().now();
        let mut mine = Vec::new();
        for blob in &blobs {
            let condemned = Condemned { blob: blob.key.as_str().to_owned(), by: self.me, at };
            mine.extend(self.mark(None, condemned).await?);
        }
        let sizes = blobs.iter().map(|blob| (blob.key.as_str().to_owned(), blob.size)).collect();
        self.remove(mine, &sizes, began, swept).await
    }

    /// Writes that this sweeper removes a blob. None: another one does.
    async fn mark(
        &self,
        old: Option<&Versioned<Condemned>>,
        new: Condemned,
    ) -> Result<Option<Versioned<Condemned>>> {
        let mut change = Change::new();
        match old {
            Some(old) => change.update_condemned(old, &new),
            None => change.condemn_blob(&new),
        };
        match self.service.records().apply(change).await {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::OutcomeUnknown) => {}
            Err(error) => return Err(error),
        }
        let read = self.service.records().condemned(&new.blob).await?;
        Ok(read.filter(|read| *read.record == new))
    }

    /// Removes those of the condemned blobs that are not needed, and lets go of all.
    async fn remove(
        &self,
        condemned: Vec<Versioned<Condemned>>,
        sizes: &BTreeMap<String, u64>,
        began: Monotonic,
        swept: &mut Swept,
    ) -> Result<()> {
        if condemned.is_empty() {
            return Ok(());
        }
        // In this order: an assignment is made only while its image is as it was read.
        let mut needed = self.named().await?;
        needed.extend(self.assigned().await?);
        for condemned in condemned {
            if !needed.contains(&condemned.blob) {
                let most = self.config.takeover / 2;
                let spent = self.service.clock().monotonic().saturating_since(began);
                let left = most.saturating_sub(spent);
                if left.is_zero() {
                    return Err(Error::unavailable(
                        "service.sweep_images",
                        "the time for this sweep is over",
                    ));
                }
                let key = BlobKey::new(condemned.blob.clone())?;
                let deleting = self.service.blobs().delete(&key);
                self.service.clock().timeout(left, deleting).await.map_err(|late| {
                    Error::unavailable("service.sweep_images", "no answer in time").with_source(late)
                })??;
                swept.removed += 1;
                swept.bytes += sizes.get(&condemned.blob).copied().unwrap_or(0);
            }
            let mut change = Change::new();
            change.pardon_blob(&condemned);
            match self.service.records().apply(change).await {
                // What is left of it is found by the next sweep.
                Err(error) if !matches!(error.kind(), ErrorKind::Conflict | ErrorKind::OutcomeUnknown) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The blobs that images and snapshots name.
    async fn named(&self) -> Result<BTreeSet<String>> {
        let project = ProjectName::new("default")?;
        let (mut named, mut after) = (BTreeSet::new(), None);
        loop {
            let page = self.service.records().images(&project, after.as_ref(), MAX_PAGE).await?;
            named.extend(page.items.into_iter().map(|image| image.into_record().manifest.blob));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        self.named_by_snapshots(&project, &mut named).await?;
        Ok(named)
    }

    async fn named_by_snapshots(&self, project: &ProjectName, named: &mut BTreeSet<String>) -> Result<()> {
        let (mut manifests, mut after) = (BTreeMap::new(), None);
        loop {
            let page = self.service.records().snapshots(project, after, MAX_PAGE).await?;
            for snapshot in page.items {
                let snapshot = snapshot.into_record();
                named.insert(snapshot.image.blob);
                named.extend(snapshot.kernel.map(|kernel| kernel.blob));
                if let Some(manifest) = snapshot.manifest {
                    let chunks = self.chunks_of(&manifest).await?;
                    named.extend(chunks.iter().cloned());
                    named.insert(manifest.clone());
                    manifests.insert(manifest, chunks);
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        *self.manifests.lock().unwrap_or_else(PoisonError::into_inner) = manifests;
        Ok(())
    }

    /// The chunks that a manifest lists. One that is gone or damaged lists nothing that could be of use.
    async fn chunks_of(&self, manifest: &str) -> Result<Arc<Vec<String>>> {
        let known = self.manifests.lock().unwrap_or_else(PoisonError::into_inner).get(manifest).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        match self.service.snapshot_manifest(manifest).await {
            Ok(listed) => {
                Ok(Arc::new(listed.digests().into_iter().map(SnapshotManifest::chunk_blob).collect()))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::InvalidInput
                ) =>
            {
                tracing::error!(?error, manifest, "a snapshot's manifest cannot be read");
                Ok(Arc::default())
            }
            Err(error) => Err(error),
        }
    }

    /// The blobs that incarnations which live are made from.
    async fn assigned(&self) -> Result<BTreeSet<String>> {
        let (mut assigned, mut after) = (BTreeSet::new(), None);
        loop {
            let page = self.service.records().all_assignments(after, MAX_PAGE).await?;
            for assignment in page.items {
                let assignment = assignment.into_record();
                assigned.insert(assignment.image.blob);
                assigned.extend(assignment.kernel.map(|kernel| kernel.blob));
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(assigned),
            }
        }
    }
}
