//! The snapshot that is taken of a guest.
//!
//! ```text
//! ordered ─► announced ─► (guest stands still: saved, disk copied) ─► named ─► chunks stored ─► ready
//! ```
//!
//! What talks to the control plane and the BlobStore is done beside the run, which goes on meanwhile; the guest stands still only while it
//! is saved. What is saved is written down once it is whole; before that, whoever comes next begins anew. Whoever finds a guest that stands
//! still for a snapshot that broke off lets it run on, as [`Worker::converge_pause`] does with every pause that nobody wants.

use std::sync::Arc;
use std::time::Duration;

use flames_client::wire::host::SnapshotReportOutcome;
use flames_clock::Monotonic;
use flames_error::{Error, ErrorKind, Result};
use flames_model::{
    FencingToken, IncarnationId, ProjectName, Reason, SecretString, SnapshotBase, SnapshotId,
    SnapshotProgress, SnapshotReport, SnapshotSizes,
};
use flames_vmm::{SnapshotArtefacts, SnapshotKind};
use tokio::task::JoinHandle;

use super::live::Run;
use super::{Worker, reasons};
use crate::backoff::Backoff;
use crate::record::{IncarnationRecord, RecordPhase, Saving, SavingStage};
use crate::shared::Shared;
use crate::snapshots::{Described, SavedFiles, Stored};

/// Report numbers that one part of a snapshot's way has for itself.
const REPORTS: u64 = IncarnationRecord::SEQUENCE_BLOCK;

/// What is known of the snapshot beside the record.
#[derive(Debug, Default)]
pub(super) struct SnapshotRun {
    task: Option<Task>,
    /// What the task said at its end, and of which snapshot.
    next: Option<(SnapshotId, Next)>,
    /// The snapshot that is finished, whatever the order still says.
    over: Option<SnapshotId>,
    /// Not to clean up before.
    pub(super) retry_at: Option<Monotonic>,
}

#[derive(Debug)]
struct Task {
    snapshot: SnapshotId,
    work: JoinHandle<Next>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// What is to be done after a part of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The snapshot is wanted: the guest is to be saved.
    Save,
    /// It is finished, or nobody's any more.
    Over,
}

impl SnapshotRun {
    /// Returns once the part that is under way has ended; never when none is.
    pub(super) async fn ended(&mut self) {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        // One that broke down is begun anew.
        let next = (&mut task.work).await.ok();
        self.next = next.map(|next| (task.snapshot, next));
        self.task = None;
    }
}

impl Worker {
    /// Brings the snapshot that is taken to the one that is ordered.
    pub(super) async fn converge_snapshot(&mut self, run: &mut Run) {
        let Some(record) = &self.record else { return };
        if record.phase != RecordPhase::Running {
            return;
        }
        let ordered = record.assignment.snapshot.filter(|id| run.snapshot.over != Some(*id));
        let mut saving = record.saving.clone();
        if run.snapshot.task.as_ref().is_some_and(|task| Some(task.snapshot) != ordered) {
            run.snapshot.task = None;
        }
        if let Some(stale) = saving.as_ref().map(|saving| saving.snapshot).filter(|id| Some(*id) != ordered) {
            self.drop_saved(run, stale).await;
            if self.record.as_ref().is_none_or(|record| record.saving.is_some()) {
                return;
            }
            saving = None;
        }
        let Some(id) = ordered.filter(|_| run.snapshot.task.is_none()) else { return };
        // Another one may have been ordered since.
        let next = run.snapshot.next.take().filter(|(of, _)| *of == id).map(|(_, next)| next);
        match (next, saving.map(|saving| saving.stage)) {
            (Some(Next::Over), _) => {
                run.snapshot.over = Some(id);
                if self.record.as_ref().is_some_and(|record| record.saving.is_some()) {
                    self.drop_saved(run, id).await;
                }
            }
            (Some(Next::Save), _) => {
                let to_end = self.to_end();
                let saved = tokio::select! {
                    biased;
                    () = to_end => return,
                    saved = self.save(run, id) => saved,
                };
                match saved {
                    Ok(Some(saved)) => self.begin(run, id, |way| way.store(saved)).await,
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(?error, snapshot = %id, "a guest could not be saved");
                        let reason = reasons::not_saved(&error);
                        self.begin(run, id, |way| way.fail(reason)).await;
                    }
                }
            }
            (None, Some(SavingStage::Saved { state, memory, base })) => {
                let artefacts = SnapshotArtefacts { state, memory };
                let Some(saved) = self.saved_files(id, artefacts, base) else { return };
                self.begin(run, id, |way| way.store(saved)).await;
            }
            (None, None | Some(SavingStage::Taking)) => self.begin(run, id, Way::announce).await,
        }
    }

    fn saved_files(
        &self,
        snapshot: SnapshotId,
        artefacts: SnapshotArtefacts,
        base: Option<SnapshotBase>,
    ) -> Option<SavedFiles> {
        let record = self.record.as_ref()?;
        let agent_key = SecretString::new(record.key.to_hex());
        Some(SavedFiles { snapshot, artefacts, base, agent: record.assignment.incarnation, agent_key })
    }

    /// Has the driver save the guest: what changed since the base that is ordered, if the driver still knows that, else all of it.
    async fn save_guest(&self, id: SnapshotId) -> Result<(SnapshotArtefacts, Option<SnapshotBase>)> {
        let name = id.to_string();
        let taking = async |kind| {
            let saving = self.shared.driver.snapshot(&self.name, &name, kind);
            self.shared.within("controller.save", self.shared.config.timings.save, saving).await
        };
        let base = self.record.as_ref().and_then(|record| record.assignment.snapshot_base.clone());
        if let Some(base) = base {
            match taking(SnapshotKind::DiffOf(base.snapshot.to_string())).await {
                // It saved another one since, which came to nothing, or cannot do that at all.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::NotSupported
                    ) =>
                {
                    tracing::debug!(?error, snapshot = %id, "a guest is saved whole, and not as a difference");
                }
                done => return Ok((done?, Some(base))),
            }
        }
        Ok((taking(SnapshotKind::Full).await?, None))
    }

    /// Begins a part of the way.
    async fn begin<F: Future<Output = Next> + Send + 'static>(
        &mut self,
        run: &mut Run,
        snapshot: SnapshotId,
        part: impl FnOnce(Way) -> F,
    ) {
        let Some(way) = self.way(snapshot).await else { return };
        run.snapshot.task = Some(Task { snapshot, work: tokio::spawn(part(way)) });
    }

    async fn way(&mut self, snapshot: SnapshotId) -> Option<Way> {
        let record = self.record.as_mut()?;
        record.sequence_reserved = record.sequence_reserved.max(self.sequence + REPORTS);
        // When it cannot be written, the next process leaves a block out all the same.
        self.write("the reserved numbers of reports").await;
        let assignment = &self.record.as_ref()?.assignment;
        let way = Way {
            shared: Arc::clone(&self.shared),
            snapshot,
            project: assignment.project.clone(),
            incarnation: self.id,
            token: assignment.token,
            sequence: self.sequence,
        };
        self.sequence += REPORTS;
        Some(way)
    }

    /// Saves the guest and its disk, both of one moment. It stands still until the caller lets it run on.
    async fn save(&mut self, run: &mut Run, id: SnapshotId) -> Result<Option<SavedFiles>> {
        let cannot_write = || Error::unavailable("controller.save", "the snapshot could not be written down");
        self.note_saving(Some(Saving { snapshot: id, stage: SavingStage::Taking }));
        if !self.write("that it is being saved").await {
            self.note_saving(None);
            return Err(cannot_write());
        }
        let timings = self.shared.config.timings;
        // Of a try that broke off: what it saved is of another moment than the disk now.
        self.remove_saved(id).await?;
        if !run.paused {
            if let Some(guest) = run.session.guest() {
                // Without it the disk alone holds less; memory and disk together lose nothing.
                let flushed = self.shared.within("controller.flush", timings.guest_call, guest.flush()).await;
                if let Err(error) = flushed {
                    tracing::debug!(?error, snapshot = %id, "the guest did not write out what it holds back");
                }
            }
            run.session.set_paused(true);
            // Also when the answer is lost: whatever is true, it is let run on.
            run.paused = true;
            let pausing = self.shared.driver.pause(&self.name);
            self.shared.drive("controller.pause", Duration::ZERO, pausing).await?;
        }
        let (artefacts, base) = self.save_guest(id).await?;
        let Some(record) = &self.record else { return Ok(None) };
        let disk = self.shared.folder.disk_path(&record.assignment);
        self.shared
            .within("controller.stage", timings.save, self.shared.snapshots.stage_disk(id, &disk))
            .await?;
        let saved = self.saved_files(id, artefacts.clone(), base.clone());
        let SnapshotArtefacts { state, memory } = artefacts;
        self.note_saving(Some(Saving { snapshot: id, stage: SavingStage::Saved { state, memory, base } }));
        if self.write("that it is saved").await { Ok(saved) } else { Err(cannot_write()) }
    }

    fn note_saving(&mut self, saving: Option<Saving>) {
        if let Some(record) = &mut self.record {
            record.saving = saving;
        }
    }

    /// Removes what was saved on this host, and the note of it.
    async fn drop_saved(&mut self, run: &mut Run, id: SnapshotId) {
        let now = self.shared.clock.monotonic();
        if run.snapshot.retry_at.is_some_and(|at| now < at) {
            return;
        }
        run.snapshot.retry_at = None;
        let removed = self.remove_saved(id).await;
        let noted = Saving { snapshot: id, stage: SavingStage::Taking };
        self.note_saving(None);
        if removed.is_ok() && self.write("that nothing of a snapshot is kept").await {
            return;
        }
        tracing::debug!(?removed, snapshot = %id, "what was saved is still there; it is tried again");
        self.note_saving(Some(noted));
        let wait = run.backoff.next(self.shared.random.as_ref());
        run.snapshot.retry_at = Some(now.saturating_add(wait));
    }

    async fn remove_saved(&self, id: SnapshotId) -> Result<()> {
        let name = id.to_string();
        let deleting = self.shared.driver.delete_snapshot(&self.name, &name);
        match self.shared.drive("controller.delete_snapshot", Duration::ZERO, deleting).await {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotSupported) => {
                return Err(error);
            }
            _ => {}
        }
        self.shared.snapshots.discard(id).await
    }

    /// Removes what was kept for a snapshot beside the machine, which takes the rest along.
    pub(super) async fn discard_saved(&self) -> Result<()> {
        match self.record.as_ref().and_then(|record| record.saving.as_ref()) {
            Some(saving) => self.shared.snapshots.discard(saving.snapshot).await,
            None => Ok(()),
        }
    }

    /// Says of a snapshot that is ordered of a guest that has ended that there will be none. False: there is an order to look at.
    pub(super) async fn disclaim_snapshot(&mut self) -> bool {
        let ordered = self.record.as_ref().and_then(|record| record.assignment.snapshot);
        // A controller that is ending its guests does not wait for the control plane: the next one over the folder says it.
        let Some(id) = ordered.filter(|_| !*self.draining.borrow()) else { return true };
        let Some(way) = self.way(id).await else { return true };
        tokio::select! {
            biased;
            _ = self.orders.changed() => false,
            _ = self.draining.changed() => false,
            _ = way.fail(reasons::ended_unsaved()) => true,
        }
    }
}

/// A part of a snapshot's way, done beside the run.
struct Way {
    shared: Arc<Shared>,
    snapshot: SnapshotId,
    project: ProjectName,
    incarnation: IncarnationId,
    token: FencingToken,
    sequence: u64,
}

/// Why something was not stored.
enum Trouble {
    /// The control plane does not take a report.
    Report(Error),
    /// Files or BlobStore.
    Storage(Error),
}

impl Way {
    /// Says that it is begun, and hears whether it is still wanted.
    async fn announce(mut self) -> Next {
        let shared = Arc::clone(&self.shared);
        let mut backoff = Backoff::new(&shared.config.timings);
        loop {
            match self.report(SnapshotProgress::Taking).await {
                Ok(SnapshotReportOutcome::Taken) => return Next::Save,
                Ok(SnapshotReportOutcome::Over | SnapshotReportOutcome::NotNamed) => return Next::Over,
                Err(error) if error.is_retryable() => self.wait(&error, &mut backoff).await,
                Err(error) => return self.fail(reasons::not_stored(&error)).await,
            }
        }
    }

    /// Stores what was saved.
    async fn store(mut self, saved: SavedFiles) -> Next {
        let shared = Arc::clone(&self.shared);
        let limit = shared.config.timings.store;
        let mut deadline = shared.clock.monotonic().saturating_add(limit);
        let mut backoff = Backoff::new(&shared.config.timings);
        let mut described = None;
        loop {
            let error = match self.try_to_store(&saved, &mut described).await {
                Ok(()) => return Next::Over,
                Err(Trouble::Report(error)) if error.is_retryable() => {
                    // A control plane that is away is waited for.
                    deadline = shared.clock.monotonic().saturating_add(limit);
                    error
                }
                Err(Trouble::Report(error) | Trouble::Storage(error)) => error,
            };
            if !error.is_retryable() || shared.clock.monotonic() >= deadline {
                tracing::warn!(?error, snapshot = %self.snapshot, "a snapshot could not be stored");
                return self.fail(reasons::not_stored(&error)).await;
            }
            self.wait(&error, &mut backoff).await;
        }
    }

    async fn try_to_store(
        &mut self,
        saved: &SavedFiles,
        described: &mut Option<Described>,
    ) -> Result<(), Trouble> {
        let shared = Arc::clone(&self.shared);
        let described = match described {
            Some(described) => described,
            None => described.insert(shared.snapshots.describe(saved).await.map_err(Trouble::Storage)?),
        };
        shared.snapshots.store_list(described).await.map_err(Trouble::Storage)?;
        // From here on the sweep leaves alone what the list names.
        let (manifest, sizes) = (described.blob.clone(), described.sizes);
        let base = saved.base.as_ref().map(|base| base.snapshot);
        let named = SnapshotProgress::Named { manifest: manifest.clone(), sizes, base };
        if self.report(named).await.map_err(Trouble::Report)? != SnapshotReportOutcome::Taken {
            return Ok(());
        }
        let Stored { all: stored_bytes, own: own_bytes } =
            shared.snapshots.upload(saved, described).await.map_err(Trouble::Storage)?;
        let sizes = SnapshotSizes { stored_bytes, own_bytes, ..sizes };
        let ready = SnapshotProgress::Ready { manifest, sizes };
        match self.report(ready).await.map_err(Trouble::Report)? {
            SnapshotReportOutcome::Taken | SnapshotReportOutcome::Over => Ok(()),
            SnapshotReportOutcome::NotNamed => {
                let why = "the snapshot names something else by now";
                Err(Trouble::Report(Error::unavailable("controller.store", why)))
            }
        }
    }

    /// Says that it cannot be taken.
    async fn fail(mut self, reason: Reason) -> Next {
        let shared = Arc::clone(&self.shared);
        let mut backoff = Backoff::new(&shared.config.timings);
        while let Err(error) = self.report(SnapshotProgress::Failed { reason: reason.clone() }).await {
            self.wait(&error, &mut backoff).await;
        }
        Next::Over
    }

    async fn wait(&self, error: &Error, backoff: &mut Backoff) {
        tracing::debug!(?error, snapshot = %self.snapshot, "a snapshot does not come on; it is tried again");
        let least = error.retry_after().unwrap_or_default().min(self.shared.config.timings.backoff_most);
        self.shared.clock.sleep(backoff.next(self.shared.random.as_ref()).max(least)).await;
    }

    /// Reports, under a registration that counts.
    async fn report(&mut self, progress: SnapshotProgress) -> Result<SnapshotReportOutcome> {
        self.sequence += 1;
        let report = SnapshotReport {
            snapshot: self.snapshot,
            project: self.project.clone(),
            incarnation: self.incarnation,
            token: self.token,
            sequence: self.sequence,
            progress,
        };
        let limit = self.shared.config.timings.api_call;
        loop {
            let session = self.shared.session.current().await;
            let call = self.shared.api.report_snapshot(&session, &report);
            match self.shared.within("controller.report_snapshot", limit, call).await {
                Err(error) if matches!(error.kind(), ErrorKind::LeaseLost | ErrorKind::NotFound) => {
                    self.shared.session.lost(&session, error.kind());
                }
                answer => return answer,
            }
        }
    }
}
