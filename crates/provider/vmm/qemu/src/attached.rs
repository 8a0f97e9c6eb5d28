//! A monitor that this driver is connected to, until its end.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use flames_error::Result;
use flames_host::process::{Ended, Process};
use flames_vmm::{Exit, ExitCause, Phase};
use flames_vmm_local::{Folder, Monitor, Ties, end_of};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::config::Deadlines;
use crate::context::Context;
use crate::folder::ProcessRecord;
use crate::qmp::{Qmp, QmpError, Shutdown};
use crate::vm::Before;

/// How long is waited, after a monitor's end, for what it has said to be read.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// The most bytes of a monitor's message that are kept.
const LONGEST_MESSAGE: usize = 1024;

/// How the processors stand, by QEMU's run state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunState {
    /// Loaded; has run nothing.
    Fresh,
    /// A snapshot is being loaded.
    Loading,
    Running,
    Paused,
    /// Paused, and its disks are let go since it was saved; it runs on by `cont`, and cannot be saved again before.
    PausedAfterSave,
    Other,
}

/// A monitor's process with its connections.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) folder: Folder,
    pub(crate) record: ProcessRecord,
    pub(crate) monitor: Process,
    helper: Option<Process>,
    /// Whether it lived when it was found; of one that did not, nothing can be known.
    seen_alive: bool,
    /// Held open, so that its content outlives the monitor.
    errors: Option<File>,
    clock: Arc<dyn Clock>,
    deadlines: Deadlines,
    qmp: tokio::sync::Mutex<Option<Arc<Qmp>>>,
    shutdown: Arc<Mutex<Option<Shutdown>>>,
    ties: Ties,
    exit: OnceCell<Exit>,
}

impl Attached {
    /// Follows the process; nothing is connected yet.
    pub(crate) fn new(
        context: &Context,
        folder: Folder,
        record: ProcessRecord,
        monitor: Process,
        helper: Option<Process>,
        errors: Option<File>,
    ) -> Self {
        Self {
            folder,
            record,
            seen_alive: monitor.is_alive(),
            monitor,
            helper,
            errors,
            clock: Arc::clone(&context.clock),
            deadlines: context.config.deadlines,
            qmp: tokio::sync::Mutex::default(),
            shutdown: Arc::default(),
            ties: Ties::default(),
            exit: OnceCell::new(),
        }
    }

    /// Starts to copy the console into its log. `mark_gap`: output may have been lost before.
    pub(crate) async fn record_console(&self, context: &Context, mark_gap: bool) {
        let Ok(stream) = self.folder.connect("console.sock").await else { return };
        let clock = Arc::clone(&self.clock);
        let Ok(task) = context.config.console().record(&self.folder, stream, clock, mark_gap) else { return };
        self.ties.read_by(task);
    }

    /// The connection, made anew when there is none.
    pub(crate) async fn qmp(&self, deadline: Duration) -> Result<Arc<Qmp>, QmpError> {
        let connect = async {
            let mut qmp = self.qmp.lock().await;
            if let Some(open) = qmp.as_ref().filter(|open| !open.is_closed()) {
                return Ok(Arc::clone(open));
            }
            let stream = self
                .folder
                .connect("monitor.sock")
                .await
                .map_err(|error| QmpError::Closed(error.to_string()))?;
            let made =
                Qmp::handshake(stream, Arc::clone(&self.clock), Arc::clone(&self.shutdown), deadline).await?;
            let made = Arc::new(made);
            *qmp = Some(Arc::clone(&made));
            Ok(made)
        };
        self.clock.timeout(deadline, connect).await.map_err(|_| QmpError::Deadline)?
    }

    pub(crate) async fn command(
        &self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        self.qmp(deadline).await?.execute(command, arguments, deadline).await
    }

    pub(crate) async fn run_state(&self, deadline: Duration) -> Result<RunState, QmpError> {
        let answer = self.command("query-status", json!({}), deadline).await?;
        Ok(match answer.get("status").and_then(Value::as_str).unwrap_or_default() {
            "prelaunch" => RunState::Fresh,
            "inmigrate" => RunState::Loading,
            // A machine that shuts down is about to exit; one that was suspended by its guest wakes by itself.
            "running" | "shutdown" | "suspended" => RunState::Running,
            // An error of a disk on the host stops the processors; `cont` tries again.
            "paused" | "io-error" | "finish-migrate" | "save-vm" | "restore-vm" => RunState::Paused,
            "postmigrate" => RunState::PausedAfterSave,
            _ => RunState::Other,
        })
    }

    pub(crate) async fn phase(&self) -> Result<Phase, QmpError> {
        Ok(match self.run_state(self.deadlines.command).await? {
            RunState::Running => Phase::Running,
            RunState::Paused | RunState::PausedAfterSave => Phase::Paused,
            RunState::Fresh if self.record.leave_paused => Phase::Paused,
            RunState::Fresh | RunState::Loading => Phase::Starting,
            RunState::Other => Phase::Unknown,
        })
    }

    async fn is_ending(&self, error: &QmpError) -> bool {
        let has_hung_up = matches!(error, QmpError::Closed(_));
        !self.monitor.is_alive() || (has_hung_up && self.ends_within(self.deadlines.command).await)
    }

    /// Kills the monitor and its helper; returns once they are gone. False when they do not go.
    pub(crate) async fn kill(&self) -> bool {
        let mut gone = true;
        for process in [Some(&self.monitor), self.helper.as_ref()].into_iter().flatten() {
            gone &= end(process, &*self.clock, self.deadlines.kill).await;
        }
        gone
    }

    /// Returns true once the monitor has ended, false after the deadline.
    pub(crate) async fn ends_within(&self, deadline: Duration) -> bool {
        self.monitor.ends_within(&*self.clock, deadline).await
    }

    /// Everything that the monitor has said and was not read, cut to its end.
    pub(crate) fn last_words(&self) -> Option<String> {
        let mut errors = self.errors.as_ref()?;
        let mut said = Vec::new();
        let mut part = [0; 4096];
        while let Ok(count @ 1..) = errors.read(&mut part) {
            said.extend_from_slice(&part[..count]);
            let surplus = said.len().saturating_sub(LONGEST_MESSAGE);
            said.drain(..surplus);
        }
        end_of(&String::from_utf8_lossy(&said))
    }

    async fn settle_exit(&self) -> Result<Exit> {
        let connection = self.qmp.lock().await.take();
        if let Some(connection) = &connection {
            let _ = self.clock.timeout(LAST_WORDS, connection.closed()).await;
        }
        self.ties.read_out(&*self.clock).await;
        // A process with several threads has no status before the last of them is gone.
        self.ends_within(self.deadlines.kill).await;
        let ended = self.monitor.reap();
        if let Some(helper) = &self.helper {
            end(helper, &*self.clock, self.deadlines.kill).await;
        }
        let shutdown = *self.shutdown.lock().unwrap_or_else(PoisonError::into_inner);
        let stopped = self.folder.is_stop_requested();
        let exit = Exit {
            cause: cause(stopped, shutdown, self.seen_alive, connection.is_some(), ended),
            code: ended.and_then(|ended| if let Ended::Code(code) = ended { Some(code) } else { None }),
            signal: ended
                .and_then(|ended| if let Ended::Signal(signal) = ended { Some(signal) } else { None }),
            at: self.clock.now(),
            message: self.last_words(),
        };
        self.folder.note_exit(exit).await
    }
}

impl Monitor for Attached {
    type Before = Before;

    fn process(&self) -> &Process {
        &self.monitor
    }

    fn ties(&self) -> &Ties {
        &self.ties
    }

    fn detach(&self) {
        self.ties.cut();
        if let Ok(mut qmp) = self.qmp.try_lock() {
            qmp.take();
        }
    }

    async fn look(&self) -> Option<Phase> {
        match self.phase().await {
            Ok(phase) => Some(phase),
            // It may have ended while it was asked, or be about to.
            Err(error) if self.is_ending(&error).await => None,
            Err(_) => Some(Phase::Unknown),
        }
    }

    async fn exit(&self) -> Result<Exit> {
        self.exit.get_or_try_init(|| self.settle_exit()).await.cloned()
    }
}

/// Kills the process, and takes its exit status, once it is gone; false when it does not go.
pub(crate) async fn end(process: &Process, clock: &dyn Clock, deadline: Duration) -> bool {
    let gone = process.kill_within(clock, deadline).await;
    process.reap();
    gone
}

/// Why a monitor has ended, by what is known of it.
fn cause(
    stopped: bool,
    shutdown: Option<Shutdown>,
    seen_alive: bool,
    was_connected: bool,
    ended: Option<Ended>,
) -> ExitCause {
    match (stopped, shutdown, ended) {
        (true, ..) => ExitCause::Stopped,
        (false, Some(Shutdown { by_guest: true }), _) => ExitCause::Guest,
        (false, ..) if !seen_alive => ExitCause::Unknown,
        // Ended from outside: by a signal that QEMU heeds, or one that it cannot.
        (false, Some(Shutdown { by_guest: false }), _) => ExitCause::Crashed,
        (false, None, Some(Ended::Signal(_))) => ExitCause::Crashed,
        (false, None, Some(Ended::Code(code))) if code != 0 => ExitCause::Crashed,
        // An orderly end is announced; this one was not, though somebody listened.
        (false, None, _) if was_connected => ExitCause::Crashed,
        (false, None, _) => ExitCause::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_only_when_it_is_known() {
        let by_guest = Some(Shutdown { by_guest: true });
        let by_host = Some(Shutdown { by_guest: false });
        assert_eq!(cause(true, by_guest, true, true, None), ExitCause::Stopped);
        assert_eq!(cause(true, None, false, false, None), ExitCause::Stopped);
        assert_eq!(cause(false, by_guest, true, true, Some(Ended::Code(0))), ExitCause::Guest);
        assert_eq!(cause(false, by_host, true, true, Some(Ended::Code(0))), ExitCause::Crashed);
        assert_eq!(cause(false, None, true, true, Some(Ended::Signal(9))), ExitCause::Crashed);
        assert_eq!(cause(false, None, true, true, None), ExitCause::Crashed);
        assert_eq!(cause(false, None, true, false, None), ExitCause::Unknown);
        assert_eq!(cause(false, None, false, false, Some(Ended::Signal(9))), ExitCause::Unknown);
    }
}
