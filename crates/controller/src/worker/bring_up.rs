//! From an assignment to a machine that boots.

use std::sync::Arc;
use std::time::Duration;

use flames_error::{Error, ErrorKind, Result};
use flames_model::{Exit, IncarnationState, Reason, Source};
use flames_vmm::{IncarnationName, Observation, Phase, Prepared, StartFrom};

use super::{Worker, reasons};
use crate::backoff::Backoff;
use crate::machine::{self, Local};
use crate::record::{IncarnationRecord, RestoredAgent};
use crate::shared::Shared;
use crate::snapshots::Loaded;

/// A preparation that takes longer than this says what it waits for.
const LONG: Duration = Duration::from_millis(500);

/// Why a machine did not come to boot.
pub(super) struct NotUp {
    pub(super) reason: Reason,
}

impl Worker {
    /// What is true of the machine; none when there is none.
    pub(super) async fn observe(&self) -> Result<Option<Observation>> {
        let observing = self.shared.driver.observe(&self.name);
        match self.shared.drive("controller.observe", Default::default(), observing).await {
            Ok(observation) => Ok(Some(observation)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the machine and starts it. Each step can be done again, so this may be dropped at any await and called anew.
    pub(super) async fn bring_up(&mut self) -> Result<(), NotUp> {
        if let Some(reason) = self.unfit() {
            return Err(NotUp { reason });
        }
        self.enter(IncarnationState::Preparing, None).await;
        let timings = self.shared.config.timings;
        let restores = self.restores();
        let limit = if restores { timings.restore } else { timings.prepare };
        let deadline = self.shared.clock.monotonic().saturating_add(limit);
        let mut backoff = Backoff::new(&self.shared.config.timings);
        let from = loop {
            let left = deadline.saturating_since(self.shared.clock.monotonic());
            let error = match self.prepare(left).await {
                Ok(from) => break from,
                Err(error) => error,
            };
            // What is used up on a host does not come back by waiting for it; the restart policy decides.
            let again = error.is_retryable() && error.kind() != ErrorKind::Exhausted;
            if !again || self.shared.clock.monotonic() >= deadline {
                tracing::warn!(?error, incarnation = %self.id, "its machine could not be made");
                let is_snapshot = restores && error.kind() == ErrorKind::Corrupt;
                let reason = if is_snapshot { reasons::not_restored } else { reasons::not_prepared }(&error);
                return Err(NotUp { reason });
            }
            tracing::debug!(?error, incarnation = %self.id, "making its machine is tried again");
            self.shared.clock.sleep(backoff.next(self.shared.random.as_ref())).await;
        };
        self.enter(self.coming_up(), None).await;
        backoff.reset();
        loop {
            let starting = self.shared.driver.start(&self.name, from.clone(), false);
            let Err(error) = self.shared.drive("controller.start", Default::default(), starting).await else {
                return Ok(());
            };
            // The answer may be lost and the machine run all the same.
            match self.observe().await.ok().flatten().map(|seen| seen.phase) {
                Some(Phase::Starting | Phase::Running | Phase::Paused) => return Ok(()),
                Some(Phase::Exited) => return Err(NotUp { reason: reasons::not_started(&error) }),
                Some(Phase::Prepared | Phase::Unknown) | None => {}
            }
            if !error.is_retryable() || self.shared.clock.monotonic() >= deadline {
                tracing::warn!(?error, incarnation = %self.id, "its machine could not be started");
                let is_snapshot =
                    restores && matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotSupported);
                let reason = if is_snapshot { reasons::not_restored } else { reasons::not_started }(&error);
                return Err(NotUp { reason });
            }
            self.shared.clock.sleep(backoff.next(self.shared.random.as_ref())).await;
        }
    }

    /// Makes the machine, says what that waits for when it takes long, and writes down what it is loaded from before it can be.
    async fn prepare(&mut self, most: Duration) -> Result<StartFrom> {
        // What is told meanwhile is not in the machine.
        let revision = self.record.as_ref().map(|record| record.assignment.network_revision);
        let Made { prepared, loaded } = self.make(most).await?;
        let Some(record) = &mut self.record else { return Ok(StartFrom::Boot) };
        record.network_revision = revision.unwrap_or_default();
        record.endpoints = machine::endpoints(&record.assignment, &prepared);
        let Some(Loaded { artefacts, agent, agent_key }) = loaded else { return Ok(StartFrom::Boot) };
        let restored = Some(RestoredAgent { incarnation: agent, key: agent_key });
        if record.restored != restored {
            record.restored = restored;
            if !self.write("what it is loaded from").await {
                if let Some(record) = &mut self.record {
                    record.restored = None;
                }
                return Err(Error::unavailable("controller.prepare", "the record could not be written"));
            }
        }
        Ok(StartFrom::Snapshot(artefacts))
    }

    async fn make(&mut self, most: Duration) -> Result<Made> {
        let (shared, name, record) = (Arc::clone(&self.shared), self.name.clone(), self.record.clone());
        let making = async {
            let missing = || Error::internal("controller.prepare", "there is no record to make a machine of");
            make(&shared, &name, &record.ok_or_else(missing)?).await
        };
        let mut making = Box::pin(shared.within("controller.prepare", most, making));
        let mut told = None;
        let fetching = self.restores().then_some("Its snapshot is being fetched.");
        loop {
            tokio::select! {
                biased;
                made = &mut making => return made,
                () = shared.clock.sleep(LONG) => {}
            }
            let waited_for = shared.driver.waited_for().or_else(|| fetching.map(str::to_owned));
            if waited_for != told {
                let reason = waited_for.as_deref().map(reasons::waits_for);
                told = waited_for;
                self.enter(IncarnationState::Preparing, reason).await;
            }
        }
    }

    fn restores(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.assignment.restore.is_some())
    }

    /// Why what it starts from cannot be started here.
    fn unfit(&self) -> Option<Reason> {
        let assignment = &self.record.as_ref()?.assignment;
        match (&assignment.restore, &assignment.source) {
            (Some(order), _) => {
                order.platform.misfit(&self.shared.driver_info()).map(|why| reasons::misfit(&why))
            }
            (None, Source::Snapshot(_)) => Some(reasons::snapshot_unnamed()),
            (None, _) => None,
        }
    }

    /// An end that a machine brought about that never came up or broke down.
    pub(super) async fn fail(&mut self, reason: Reason) {
        let exit: Exit = self.exit_by(flames_model::ExitCause::Machine);
        self.conclude(IncarnationState::Failed, exit, Some(reason)).await;
    }
}

/// A machine that can be started.
struct Made {
    prepared: Prepared,
    /// What it is to be loaded from, when it does not boot.
    loaded: Option<Loaded>,
}

/// Makes everything local that the machine is made from, and the machine.
async fn make(shared: &Shared, name: &IncarnationName, record: &IncarnationRecord) -> Result<Made> {
    let (assignment, artefacts) = (&record.assignment, &shared.artefacts);
    let _turn = shared.preparations.acquire().await.map_err(|closed| {
        Error::unavailable("controller.prepare", "the controller is closing").with_source(closed)
    })?;
    let layer = shared.folder.disk_path(assignment);
    let local = Local {
        kernel: artefacts.kernel(assignment.kernel.as_ref()).await?,
        initramfs: artefacts.initramfs().await?,
        rootfs: artefacts.rootfs(&assignment.image).await?,
        layer,
    };
    let loaded = match &assignment.restore {
        Some(order) => {
            // A disk that a guest may have run on already is not put back.
            let disk = record.restored.is_none().then_some(local.layer.as_path());
            Some(shared.snapshots.load(order, disk).await?)
        }
        None => {
            let size = assignment.spec.root_disk_mib.saturating_mul(1024 * 1024);
            artefacts.writable_layer(&local.layer, size).await?;
            None
        }
    };
    let spec = machine::machine_spec(record, &local, &shared.capabilities)?;
    let preparing =
        || shared.drive("controller.prepare", Default::default(), shared.driver.prepare(name, &spec));
    let prepared = match preparing().await {
        // Made by an earlier process from other files, and never started: made anew.
        Err(error) if error.kind() == ErrorKind::Conflict => {
            let destroying = shared.driver.destroy(name);
            shared.drive("controller.destroy", Default::default(), destroying).await?;
            preparing().await?
        }
        done => done?,
    };
    Ok(Made { prepared, loaded })
}
