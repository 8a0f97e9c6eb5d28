//! What controllers report on snapshots.
//!
//! The order in which a snapshot comes to be keeps the sweep of blobs away from what it consists of:
//!
//! 1. The controller stores the *manifest*, which lists all chunks, and reports it as named. That report is taken only if none of what it
//!    names is condemned, in a commit that fails when anything is condemned meanwhile. From then on the sweep finds the snapshot to
//!    name its chunks.
//! 2. The controller stores the chunks that are not there yet, and leaves those that are.
//! 3. It reports the snapshot as ready.

use std::collections::BTreeSet;

use flames_blob::{BlobKey, BlobStoreExt};
use flames_error::{Error, ErrorKind, Result};
use flames_model::{
    Actor, EventKind, Snapshot, SnapshotManifest, SnapshotProgress, SnapshotRefusal, SnapshotReport,
    SnapshotState, apply_snapshot_report,
};
use flames_records::{Change, MAX_PAGE};

use crate::host::HostSession;
use crate::mutation::ATTEMPTS;
use crate::snapshots::of_snapshot;
use crate::{Caller, Service, codes};

/// What became of a report on a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotReportOutcome {
    /// It was taken.
    Taken,
    /// It was not taken: the snapshot is finished, or is nobody's any more. Nothing of it is to be left on the host.
    Over,
    /// It says `ready` of what was not named before.
    NotNamed,
}

impl Service {
    /// Takes a report on a snapshot.
    ///
    /// Errors: `LeaseLost` ([`codes::CONTROLLER_SUPERSEDED`]); `NotFound` when the controller was removed; `PermissionDenied` when the
    /// snapshot is of another controller's guest; `InvalidInput` when the manifest is none; `Unavailable`, also while some of what the
    /// snapshot names is being swept: report again in a while.
    pub async fn report_snapshot(
        &self,
        session: &HostSession,
        report: &SnapshotReport,
    ) -> Result<SnapshotReportOutcome> {
        for _ in 0..ATTEMPTS {
            let controller = self.check_session(session).await?;
            // Read before what is condemned is looked through: what is condemned after that makes the commit fail.
            let condemnations = self.records().condemnations().await?;
            let Some(before) = self.records().snapshot(&report.project, report.snapshot).await? else {
                return Ok(SnapshotReportOutcome::Over);
            };
            if before.controller != session.controller {
                return Err(codes::forbidden_report(&report.incarnation.to_string()));
            }
            let now = self.clock().now();
            let after = match apply_snapshot_report(&before, report, now) {
                Ok(after) => after,
                Err(SnapshotRefusal::Stale) if before.state.is_under_way() => {
                    return Ok(SnapshotReportOutcome::Taken);
                }
                Err(SnapshotRefusal::Stale | SnapshotRefusal::StaleToken) => {
                    return Ok(SnapshotReportOutcome::Over);
                }
                Err(SnapshotRefusal::NotNamed) => return Ok(SnapshotReportOutcome::NotNamed),
            };
            let mut change = Change::new();
            change.update_snapshot(&before, &after).require_controller(&controller);
            if let SnapshotProgress::Named { manifest, .. } = &report.progress {
                self.check_named(&after, manifest).await?;
                change.keep_blobs(&[manifest], condemnations);
            }
            if before.state != after.state {
                let caller = Caller {
                    project: before.project.clone(),
                    actor: Actor::Controller(controller.id),
                    request_id: format!("snapshot-{}", report.sequence),
                };
                let kind = EventKind::SnapshotState { snapshot: after.id, state: after.state };
                change.event(Some(&before.project), &of_snapshot(&caller, now, &after, kind));
            }
            if matches!(after.state, SnapshotState::Ready | SnapshotState::Failed) {
                self.withdraw_order(&mut change, &after).await?;
            }
            match self.records().apply(change).await {
                Ok(_) => return Ok(SnapshotReportOutcome::Taken),
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::OutcomeUnknown) => {}
                Err(error) => return Err(error),
            }
        }
        Err(codes::contended("service.report_snapshot"))
    }

    /// Whether the manifest is one, and nothing that it names is about to be removed.
    async fn check_named(&self, snapshot: &Snapshot, manifest: &str) -> Result<()> {
        let listed = self.snapshot_manifest(manifest).await.map_err(|error| match error.kind() {
            // Swept before it was named: to be stored anew.
            ErrorKind::NotFound => {
                Error::unavailable("service.report_snapshot", "the manifest is not there").with_source(error)
            }
            _ => error,
        })?;
        if listed.snapshot != snapshot.id {
            return Err(Error::invalid(
                "service.report_snapshot",
                "manifest",
                "The manifest is another snapshot's.",
            ));
        }
        let mut named: BTreeSet<String> =
            listed.digests().into_iter().map(SnapshotManifest::chunk_blob).collect();
        named.insert(manifest.to_owned());
        let mut after = None;
        loop {
            let page = self.records().all_condemned(after, MAX_PAGE).await?;
            if let Some(condemned) = page.items.iter().find(|condemned| named.contains(&condemned.blob)) {
                return Err(Error::unavailable("service.report_snapshot", "a chunk is being swept")
                    .with_resource("blob", &condemned.blob)
                    .with_retry_after(std::time::Duration::from_secs(1)));
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Reads a manifest. Errors: `InvalidInput` when it is none, or too long; `NotFound`; `Unavailable`.
    pub(crate) async fn snapshot_manifest(&self, blob: &str) -> Result<SnapshotManifest> {
        let invalid =
            || Error::invalid("service.snapshot_manifest", "manifest", "The blob is no snapshot's manifest.");
        if !blob.starts_with(SnapshotManifest::BLOB_PREFIX) {
            return Err(invalid());
        }
        let key = BlobKey::new(blob)?;
        let text = self.blobs().get_bytes(&key, SnapshotManifest::MAX_BYTES).await.map_err(|error| {
            if error.kind() == ErrorKind::Exhausted { invalid().with_source(error) } else { error }
        })?;
        let listed: SnapshotManifest = serde_json::from_slice(&text).map_err(|_| invalid())?;
        if listed.is_sound() { Ok(listed) } else { Err(invalid()) }
    }
}
