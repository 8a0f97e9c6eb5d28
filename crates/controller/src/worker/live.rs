//! A run, from wherever it is found to its end.

use std::time::Duration;

use flames_clock::{ClockExt, Monotonic};
use flames_error::ErrorKind;
use flames_model::{IncarnationState, Reason, ReasonCode, Wanted};
use flames_vmm::{Observation, Phase};
use tokio::sync::watch;

use super::policy::PolicyRun;
use super::saving::SnapshotRun;
use super::session::{GuestSession, Introduction};
use super::{GuestView, Told, Worker, reasons};
use crate::backoff::Backoff;
use crate::machine;
use crate::record::RecordPhase;
use crate::shared::Claim;

/// How long a guest whose machine is gone may still be heard: what it said is on its way through this process.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);

/// What a run's worker knows beside its record.
pub(super) struct Run {
    pub(super) session: GuestSession,
    view: watch::Receiver<GuestView>,
    pub(super) paused: bool,
    /// Until when the agent must have answered; none once it has.
    agent_deadline: Option<Monotonic>,
    /// Since when the driver cannot tell the machine's phase.
    unknown_since: Option<Monotonic>,
    /// The order whose pause the driver refused for good.
    refused: Option<u64>,
    pub(super) backoff: Backoff,
    /// The snapshot that is taken of it.
    pub(super) snapshot: SnapshotRun,
    pub(super) network: PolicyRun,
    /// Not to pause or resume before.
    retry_at: Option<Monotonic>,
    connected: bool,
}

impl Worker {
    /// Brings the run on, until it has ended or an order must be looked at.
    pub(super) async fn work(&mut self) {
        let Some(record) = &self.record else { return };
        let (vm, phase) = (record.assignment.vm, record.phase);
        if self.claim.is_none() {
            let to_end = self.to_end();
            tokio::select! {
                biased;
                claim = Claim::take(&self.shared, vm, self.id) => self.claim = Some(claim),
                () = to_end => {}
            }
        }
        let Some(seen) = self.see().await else { return };
        match seen.as_ref().map(|seen| seen.phase) {
            Some(Phase::Exited) => self.end_by_machine(seen.and_then(|seen| seen.exit)).await,
            None | Some(Phase::Prepared | Phase::Unknown) if phase == RecordPhase::Accepted => {
                if self.is_to_end() {
                    self.end_unstarted().await;
                    return;
                }
                let to_end = self.to_end();
                let up = tokio::select! {
                    biased;
                    () = to_end => return,
                    up = self.bring_up() => up,
                };
                match up {
                    Ok(()) => self.live(false).await,
                    Err(not_up) => self.fail(not_up.reason).await,
                }
            }
            None => self.end_by_machine(None).await,
            Some(phase) => {
                if let Some(record) = &mut self.record
                    && let Some(Observation { prepared, .. }) = &seen
                {
                    record.endpoints = machine::endpoints(&record.assignment, prepared);
                }
                self.live(phase == Phase::Paused).await;
            }
        }
    }

    /// What is true of the machine, however often the driver must be asked. None: there is an order to look at.
    async fn see(&self) -> Option<Option<Observation>> {
        let mut backoff = Backoff::new(&self.shared.config.timings);
        loop {
            match self.observe().await {
                Ok(seen) => return Some(seen),
                Err(error) => {
                    tracing::debug!(?error, incarnation = %self.id, "its machine could not be looked at")
                }
            }
            if self.is_gone() {
                return None;
            }
            self.shared.clock.sleep(backoff.next(self.shared.random.as_ref())).await;
        }
    }

    /// There is a machine: lives with it.
    async fn live(&mut self, paused: bool) {
        let Some(record) = &self.record else { return };
        let timings = self.shared.config.timings;
        let booting = record.phase == RecordPhase::Accepted;
        let session = GuestSession::start(
            std::sync::Arc::clone(&self.shared),
            self.id,
            self.name.clone(),
            machine::identity(record),
            self.introduction(),
            paused,
        );
        if let Some(live) = self.shared.live().get_mut(&self.id) {
            live.guest = Some(session.view.clone());
            live.changed();
        }
        let mut run = Run {
            view: session.view.clone(),
            session,
            paused,
            agent_deadline: booting
                .then(|| self.shared.clock.monotonic().saturating_add(timings.agent_ready)),
            unknown_since: None,
            refused: None,
            backoff: Backoff::new(&timings),
            snapshot: SnapshotRun::default(),
            network: PolicyRun::default(),
            retry_at: None,
            connected: false,
        };
        let state = match (booting, paused) {
            (true, _) => self.coming_up(),
            (false, true) => IncarnationState::Paused,
            (false, false) => IncarnationState::Running,
        };
        // Said already by whoever just started it.
        if !booting || self.state != state {
            self.enter(state, None).await;
        }
        loop {
            self.answer_order().await;
            if self.is_gone() {
                return;
            }
            self.converge_network(&mut run).await;
            // Before its end, so that the timeline of a short run is whole too.
            self.note_ready(&mut run).await;
            let exit = run.view.borrow().exit.clone();
            if let Some(exit) = exit {
                return self.end_by_workload(run.session, run.paused, exit).await;
            }
            if self.is_to_end() {
                return self.end_asked(run.session, run.paused).await;
            }
            self.converge_pause(&mut run).await;
            self.converge_snapshot(&mut run).await;
            // Let run on at once, if it was saved just now.
            self.converge_pause(&mut run).await;
            if self.wait(&mut run).await && self.look(&mut run).await {
                return;
            }
            let now = self.shared.clock.monotonic();
            if run.agent_deadline.is_some_and(|deadline| now >= deadline) && !run.view.borrow().ready {
                let last_error = run.view.borrow().last_error.clone();
                let console = self.console_end().await;
                let line = reasons::last_line(&console);
                let reason =
                    reasons::agent_silent(timings.agent_ready, line.as_deref(), last_error.as_deref());
                return self.fail(reason).await;
            }
        }
    }

    /// What the guest must be told before it is taken for up, when it was loaded from a snapshot and does not know it yet.
    fn introduction(&self) -> Option<Introduction> {
        let record = self.record.as_ref().filter(|record| record.phase == RecordPhase::Accepted)?;
        let old = machine::old_identity(record)?;
        let request = machine::restored_request(record, &self.shared.capabilities);
        Some(Introduction { old, request })
    }

    /// The state of a guest that is not up yet.
    pub(super) fn coming_up(&self) -> IncarnationState {
        match self.record.as_ref().and_then(|record| record.assignment.restore.as_ref()) {
            Some(_) => IncarnationState::Restoring,
            None => IncarnationState::Starting,
        }
    }

    /// Takes in a new order, and says how it is: who asks again may have missed it.
    async fn answer_order(&mut self) {
        let order = self.orders.borrow_and_update().clone();
        if order.serial == self.taken {
            return;
        }
        self.taken = order.serial;
        if let Some(Told::Assigned(assignment)) = order.told {
            self.take_over(&assignment).await;
            self.send_report().await;
        }
    }

    async fn note_ready(&mut self, run: &mut Run) {
        let Some(record) = &mut self.record else { return };
        if record.phase != RecordPhase::Accepted || !run.view.borrow().ready {
            return;
        }
        record.phase = RecordPhase::Running;
        run.agent_deadline = None;
        self.enter(IncarnationState::Running, None).await;
        self.write("that it runs").await;
    }

    /// Brings the pause to what is wanted. A pause that nobody wants, as a snapshot that broke off leaves it, is ended.
    async fn converge_pause(&mut self, run: &mut Run) {
        let Some(record) = &self.record else { return };
        let booting = record.phase == RecordPhase::Accepted;
        let want_paused = record.assignment.wanted == Wanted::Paused && !booting;
        let now = self.shared.clock.monotonic();
        if want_paused == run.paused {
            // A retry that is not needed any more must not be waited for.
            run.retry_at = None;
            // The answer was lost, and looking at the machine told what came of it.
            let settled = match want_paused {
                true => IncarnationState::Paused,
                false if booting => self.coming_up(),
                false => IncarnationState::Running,
            };
            let was_pausing = matches!(self.state, IncarnationState::Pausing | IncarnationState::Paused);
            if was_pausing && self.state != settled {
                self.enter(settled, None).await;
            }
            return;
        }
        if run.retry_at.is_some_and(|at| now < at) || (want_paused && run.refused == Some(self.taken)) {
            return;
        }
        let done = if want_paused {
            self.enter(IncarnationState::Pausing, None).await;
            run.session.set_paused(true);
            let pausing = self.shared.driver.pause(&self.name);
            self.shared.drive("controller.pause", Duration::ZERO, pausing).await
        } else {
            let resuming = self.shared.driver.resume(&self.name);
            self.shared.drive("controller.resume", Duration::ZERO, resuming).await
        };
        run.retry_at = None;
        match done {
            Ok(()) => {
                run.backoff.reset();
                run.paused = want_paused;
                run.session.set_paused(want_paused);
                if want_paused {
                    self.enter(IncarnationState::Paused, None).await;
                    return;
                }
                if let Some(guest) = run.session.guest() {
                    let epoch = u64::try_from(self.shared.clock.now().as_millisecond()).unwrap_or(0);
                    let limit = self.shared.config.timings.guest_call;
                    // The guest's clock stood still. A guest that does not take the time keeps its own.
                    let _ = self.shared.within("controller.set_clock", limit, guest.set_clock(epoch)).await;
                }
                let state = if booting { self.coming_up() } else { IncarnationState::Running };
                self.enter(state, None).await;
            }
            Err(error) if want_paused && error.kind() == ErrorKind::NotSupported => {
                run.refused = Some(self.taken);
                run.session.set_paused(false);
                let reason =
                    Reason::new(ReasonCode::Requested, "The host's driver cannot pause it; it runs on.");
                self.enter(IncarnationState::Running, Some(reason)).await;
            }
            Err(error) => {
                tracing::debug!(?error, incarnation = %self.id, want_paused, "it was neither paused nor resumed; it is tried again");
                let wait = run.backoff.next(self.shared.random.as_ref());
                run.retry_at = Some(now.saturating_add(wait));
                // Whether it was applied, observing tells.
                self.nudge.notify_one();
            }
        }
    }

    /// Waits until something may have changed. Says whether the machine is to be looked at.
    async fn wait(&mut self, run: &mut Run) -> bool {
        let now = self.shared.clock.monotonic();
        let mut most = self.shared.config.timings.observe;
        for at in [run.agent_deadline, run.retry_at, run.snapshot.retry_at, run.network.retry_at]
            .into_iter()
            .flatten()
        {
            most = most.min(at.saturating_since(now));
        }
        if run.unknown_since.is_some() {
            most = most.min(self.shared.config.timings.observe_ending);
        }
        tokio::select! {
            biased;
            _ = self.orders.changed() => false,
            _ = self.draining.changed() => false,
            changed = run.view.changed() => {
                if changed.is_err() {
                    // Its keeper broke down: another takes over, soon but not at once.
                    self.shared.clock.sleep(self.shared.config.timings.backoff_first).await;
                    self.renew_session(run);
                }
                // A session that ended hints at a machine that did.
                let connected = run.view.borrow().guest.is_some();
                std::mem::replace(&mut run.connected, connected) && !connected
            }
            () = run.snapshot.ended() => false,
            () = self.nudge.notified() => true,
            () = self.shared.clock.sleep(most) => true,
        }
    }

    fn renew_session(&self, run: &mut Run) {
        let Some(record) = &self.record else { return };
        let (shared, identity) = (std::sync::Arc::clone(&self.shared), machine::identity(record));
        let (name, introduction) = (self.name.clone(), self.introduction());
        run.session = GuestSession::start(shared, self.id, name, identity, introduction, run.paused);
        run.view = run.session.view.clone();
        if let Some(live) = self.shared.live().get_mut(&self.id) {
            live.guest = Some(run.view.clone());
            live.changed();
        }
    }

    /// Looks at the machine. Says whether the run has ended.
    async fn look(&mut self, run: &mut Run) -> bool {
        let now = self.shared.clock.monotonic();
        let Ok(seen) = self.observe().await else { return false };
        match seen.as_ref().map(|seen| seen.phase) {
            Some(Phase::Running | Phase::Starting) => {
                run.unknown_since = None;
                run.paused = false;
            }
            Some(Phase::Paused) => {
                run.unknown_since = None;
                run.paused = true;
                run.session.set_paused(true);
            }
            Some(Phase::Prepared | Phase::Unknown) => {
                let since = *run.unknown_since.get_or_insert(now);
                if now.saturating_since(since) >= self.shared.config.timings.unknown_phase {
                    self.fail(reasons::machine_unclear()).await;
                    return true;
                }
            }
            Some(Phase::Exited) | None => {
                let silent = run.view.wait_for(|view| view.exit.is_some() || view.guest.is_none());
                let _ = self.shared.clock.timeout(LAST_WORDS, silent).await;
                let told = run.view.borrow().exit.clone();
                match told {
                    Some(exit) => self.note_workload(&exit).await,
                    None => self.end_by_machine(seen.and_then(|seen| seen.exit)).await,
                }
                return true;
            }
        }
        false
    }
}
