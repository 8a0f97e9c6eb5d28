//! The end of a run, and of what it held.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flames_clock::ClockExt;
use flames_error::{ErrorKind, Result};
use flames_guest_protocol::message::{MAIN_PROCESS, ProcessExit};
use flames_model::{Exit, ExitCause, IncarnationState};
use flames_vmm::{Exit as MonitorExit, Phase, StopHow};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::live::LAST_WORDS;
use super::session::GuestSession;
use super::{Worker, reasons};
use crate::backoff::Backoff;
use crate::folder::CONSOLE_KEPT;
use crate::guest::Guest;
use crate::machine;
use crate::record::RecordPhase;

/// Beyond a grace that a guest was given, how long it may take to power off.
const POWER_OFF_SLACK: Duration = Duration::from_secs(5);
/// How many pieces of a console are read at most in search of its end.
const CONSOLE_READS: usize = 64;
/// SIGKILL, as Linux numbers it (signal(7)).
const SIGKILL: i32 = 9;

impl Worker {
    /// It is to end, and there is no machine yet.
    pub(super) async fn end_unstarted(&mut self) {
        if self.is_gone() {
            return;
        }
        let exit = self.exit_by(ExitCause::Stopped);
        self.conclude(IncarnationState::Stopped, exit, Some(self.why_asked(false))).await;
    }

    fn why_asked(&self, killed: bool) -> flames_model::Reason {
        let wanted_to_run =
            !matches!(self.wanted(), flames_model::Wanted::Stopped | flames_model::Wanted::Purged);
        if wanted_to_run {
            return reasons::drained();
        }
        let grace = self.record.as_ref().map(|record| record.assignment.spec.stop_grace_ms);
        reasons::asked(grace.filter(|_| killed))
    }

    /// It is to end: asks the guest first.
    pub(super) async fn end_asked(&mut self, session: GuestSession, paused: bool) {
        self.enter(IncarnationState::Stopping, None).await;
        let Some(record) = &self.record else { return };
        let grace = Duration::from_millis(record.assignment.spec.stop_grace_ms);
        let killed = match record.phase {
            RecordPhase::Running => self.wind_down(&session, paused, grace).await,
            // Nothing is known to run in it that could be asked.
            _ => {
                self.kill().await;
                false
            }
        };
        let is_told = self.record.as_ref().is_some_and(|record| record.ending.is_some());
        if is_told || self.is_gone() {
            return;
        }
        let exit = self.exit_by(ExitCause::Stopped);
        self.conclude(IncarnationState::Stopped, exit, Some(self.why_asked(killed))).await;
    }

    /// Hears the end of a workload that was asked to end: writes it down, and then lets the agent forget it, which waits for that before
    /// it powers the guest off.
    async fn hear_end(&mut self, session: &GuestSession) {
        let told = session.view.borrow().exit.clone();
        let Some(told) = told.filter(|_| !self.heard) else { return };
        self.heard = true;
        let is_known = self.record.as_ref().is_some_and(|record| record.ending.is_some());
        let written = is_known || {
            let reason = self.why_asked(told.signal == Some(SIGKILL));
            let exit = Exit { code: told.code, signal: told.signal, ..self.exit_by(ExitCause::Stopped) };
            self.conclude(IncarnationState::Stopped, exit, Some(reason)).await
        };
        if written {
            self.acknowledge(session).await;
        }
    }

    async fn acknowledge(&self, session: &GuestSession) {
        let Some(guest) = session.guest() else { return };
        let limit = self.shared.config.timings.guest_call;
        // The agent keeps it for the case that we did not get it; without an answer it only keeps it longer.
        let acknowledging = guest.acknowledge_exit(MAIN_PROCESS);
        let _ = self.shared.within("controller.acknowledge", limit, acknowledging).await;
    }

    /// Its workload ended by itself.
    pub(super) async fn end_by_workload(&mut self, session: GuestSession, paused: bool, exit: ProcessExit) {
        self.note_workload(&exit).await;
        if !self.ensure_written().await {
            return;
        }
        self.acknowledge(&session).await;
        self.heard = true;
        self.release(Some((session, paused))).await;
    }

    /// Writes down how the workload ended, and says so at once: who waits for it need not wait for the machine's end.
    pub(super) async fn note_workload(&mut self, exit: &ProcessExit) {
        let (state, ended, reason) = reasons::workload_ended(exit, self.shared.clock.now());
        self.conclude(state, ended, Some(reason.clone())).await;
        self.enter(IncarnationState::Stopping, Some(reason)).await;
    }

    /// Its machine ended, or is gone.
    pub(super) async fn end_by_machine(&mut self, exit: Option<MonitorExit>) {
        if self.is_gone() {
            return;
        }
        if self.is_to_end() {
            let ended = self.exit_by(ExitCause::Stopped);
            self.conclude(IncarnationState::Stopped, ended, Some(self.why_asked(false))).await;
            return;
        }
        let console = self.console_end().await;
        let line = reasons::last_line(&console);
        self.fail(reasons::machine_ended(exit.as_ref(), line.as_deref())).await;
    }

    /// Ends a guest whose agent has answered: asks the agent, then presses the power button, then kills. Says whether it was killed.
    async fn wind_down(&mut self, session: &GuestSession, paused: bool, grace: Duration) -> bool {
        let timings = self.shared.config.timings;
        if paused {
            let resuming = self.shared.driver.resume(&self.name);
            // A guest that stays paused is killed below.
            let _ = self.shared.drive("controller.resume", Duration::ZERO, resuming).await;
        }
        session.set_paused(false);
        let mut view = session.view.clone();
        let connected = view.wait_for(|view| view.guest.is_some());
        let _ = self.shared.clock.timeout(timings.guest_call, connected).await;
        if let Some(guest) = session.guest()
            && self.ask(guest, grace).await
            && self.has_ended_within(grace.saturating_add(POWER_OFF_SLACK), session).await
        {
            return false;
        }
        if self.is_gone() {
            return true;
        }
        let how = StopHow::PowerOff { grace: timings.power_off_grace };
        let stopping = self.shared.driver.stop(&self.name, how);
        let stopped = self.shared.drive("controller.stop", timings.power_off_grace, stopping).await;
        if stopped.is_err() || !self.has_ended_within(Duration::ZERO, session).await {
            self.kill().await;
        }
        true
    }

    async fn ask(&self, guest: Arc<dyn Guest>, grace: Duration) -> bool {
        let limit = self.shared.config.timings.guest_call;
        let asked = self.shared.within("controller.shutdown", limit, guest.shutdown(grace)).await;
        // An answer that is lost on the way may mean that the guest is already ending.
        !asked.is_err_and(|error| error.kind() != ErrorKind::OutcomeUnknown)
    }

    async fn kill(&self) {
        let killing = self.shared.driver.stop(&self.name, StopHow::Kill);
        // What this does not end, destroying it does.
        if let Err(error) = self.shared.drive("controller.kill", Duration::ZERO, killing).await {
            tracing::debug!(?error, incarnation = %self.id, "its machine was not killed at once");
        }
    }

    /// Waits until the machine has ended, at most this long.
    async fn has_ended_within(&mut self, limit: Duration, session: &GuestSession) -> bool {
        let deadline = self.shared.clock.monotonic().saturating_add(limit);
        let mut view = session.view.clone();
        loop {
            view.mark_unchanged();
            self.hear_end(session).await;
            let seen = self.observe().await;
            if matches!(&seen, Ok(None))
                || seen.is_ok_and(|seen| seen.is_some_and(|seen| seen.phase == Phase::Exited))
            {
                // Its last words may still be on their way through this process.
                let silent = view.wait_for(|view| view.exit.is_some() || view.guest.is_none());
                let _ = self.shared.clock.timeout(LAST_WORDS, silent).await;
                self.hear_end(session).await;
                return true;
            }
            let left = deadline.saturating_since(self.shared.clock.monotonic());
            if left.is_zero() || self.is_gone() {
                return false;
            }
            tokio::select! {
                biased;
                () = self.nudge.notified() => {}
                // A keeper that broke down tells nothing more; the timer goes on.
                changed = view.changed(), if view.has_changed().is_ok() => drop(changed),
                () = self.shared.clock.sleep(left.min(self.shared.config.timings.observe_ending)) => {}
            }
        }
    }

    /// Makes sure that the end of the run is on the disk before anything is taken away: what has ended must never be started again. False:
    /// there is an order to look at.
    async fn ensure_written(&mut self) -> bool {
        let mut backoff = Backoff::new(&self.shared.config.timings);
        while !self.end_written {
            if self.is_gone() {
                return false;
            }
            self.shared.clock.sleep(backoff.next(self.shared.random.as_ref())).await;
            self.end_written = self.write("how the run ended").await;
        }
        true
    }

    /// Takes away what the run held. Its end is written down already.
    pub(super) async fn release(&mut self, session: Option<(GuestSession, bool)>) {
        let Some(ending) = self.record.as_ref().and_then(|record| record.ending.clone()) else { return };
        if !self.unmade && !self.ensure_written().await {
            return;
        }
        let seen = self.observe().await.ok().flatten();
        let phase = seen.map(|seen| seen.phase);
        let runs = matches!(phase, Some(Phase::Starting | Phase::Running | Phase::Paused));
        if runs && ending.exit.cause != ExitCause::Machine {
            let paused = phase == Some(Phase::Paused);
            let session = match (session, &self.record) {
                (Some((session, _)), _) => session,
                (None, Some(record)) => {
                    let (shared, identity) = (Arc::clone(&self.shared), machine::identity(record));
                    GuestSession::start(shared, self.id, self.name.clone(), identity, None, paused)
                }
                (None, None) => return,
            };
            self.wind_down(&session, paused, self.shared.config.timings.guest_shutdown).await;
        }
        if let Some(live) = self.shared.live().get_mut(&self.id) {
            live.guest = None;
            live.exit = Some(ending.exit);
            live.changed();
        }
        self.enter(ending.state, ending.reason.clone()).await;
        if phase.is_some() {
            self.keep_console().await;
        }
        if !self.until_done("taking away its machine", |worker| worker.take_away().boxed()).await {
            return;
        }
        if let Some(record) = &mut self.record {
            record.phase = RecordPhase::Released;
        }
        // When this cannot be written, the next process does the same once more.
        self.write("that it is released").await;
        self.claim = None;
    }

    /// Removes the machine and its ephemeral disk.
    async fn take_away(&self) -> Result<()> {
        self.destroy().await?;
        self.discard_saved().await?;
        self.shared.folder.remove_ephemeral_disk(self.id).await
    }

    /// Removes logs and the persistent disk.
    async fn take_rest(&self) -> Result<()> {
        self.shared.folder.remove_logs(self.id).await?;
        match &self.record {
            Some(record) => self.shared.folder.remove_persistent_disk(record.assignment.vm).await,
            None => Ok(()),
        }
    }

    async fn destroy(&self) -> Result<()> {
        let destroying = self.shared.driver.destroy(&self.name);
        self.shared.drive("controller.destroy", Duration::ZERO, destroying).await
    }

    /// Does something again and again until it is done. False: there is an order to look at.
    async fn until_done(
        &self,
        what: &'static str,
        work: impl for<'a> Fn(&'a Self) -> BoxFuture<'a, Result<()>> + Send + Sync,
    ) -> bool {
        let mut backoff = Backoff::new(&self.shared.config.timings);
        while let Err(error) = work(self).await {
            tracing::warn!(?error, incarnation = %self.id, what, "not done yet; it is tried again");
            if self.is_gone() {
                return false;
            }
            self.shared.clock.sleep(backoff.next(self.shared.random.as_ref())).await;
        }
        true
    }

    /// Removes what outlived the run: logs and the persistent disk.
    pub(super) async fn purge(&mut self) {
        if !self.until_done("removing logs and disk", |worker| worker.take_rest().boxed()).await {
            return;
        }
        if let Some(record) = &mut self.record {
            record.phase = RecordPhase::Purged;
        }
        // When this cannot be written, the next process does the same once more.
        self.write("that it is purged").await;
    }

    /// Removes everything of the incarnation, its record last.
    pub(super) async fn forget(&mut self) {
        let mut backoff = Backoff::new(&self.shared.config.timings);
        if let Some(live) = self.shared.live().get_mut(&self.id) {
            live.guest = None;
            live.changed();
        }
        loop {
            let forgotten = async {
                self.destroy().await?;
                self.discard_saved().await?;
                self.shared.folder.remove_logs(self.id).await?;
                self.shared.folder.remove_incarnation(self.id).await
            };
            match forgotten.await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(?error, incarnation = %self.id, "it could not be removed yet; it is tried again");
                }
            }
            self.shared.clock.sleep(backoff.next(self.shared.random.as_ref())).await;
        }
    }

    /// The end of what the machine wrote on its console.
    pub(super) async fn console_end(&self) -> Bytes {
        let mut kept = BytesMut::new();
        let mut from = 0;
        for _ in 0..CONSOLE_READS {
            let reading = self.shared.driver.console(&self.name, from);
            let Ok(chunk) = self.shared.drive("controller.console", Duration::ZERO, reading).await else {
                break;
            };
            if chunk.data.is_empty() {
                break;
            }
            from = chunk.offset.saturating_add(chunk.data.len() as u64);
            kept.extend_from_slice(&chunk.data);
            if kept.len() > CONSOLE_KEPT {
                let _ = kept.split_to(kept.len() - CONSOLE_KEPT);
            }
        }
        kept.freeze()
    }

    async fn keep_console(&self) {
        let console = self.console_end().await;
        if console.is_empty() {
            return;
        }
        if let Err(error) = self.shared.folder.put_console(self.id, console).await {
            tracing::warn!(?error, incarnation = %self.id, "the console could not be kept");
        }
    }
}
