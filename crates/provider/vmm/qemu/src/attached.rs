//! A monitor that this driver is connected to, until its end.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use flames_error::Result;
use flames_host::blocking;
use flames_host::console::{self, ConsoleLog};
use flames_host::process::{Ended, Process};
use flames_vmm::{Exit, ExitCause};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::task::{AbortHandle, JoinHandle};

use crate::context::Context;
use crate::folder::{Folder, ProcessRecord};
use crate::qmp::{Qmp, QmpError, Shutdown};

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
    qmp: tokio::sync::Mutex<Option<Arc<Qmp>>>,
    shutdown: Arc<Mutex<Option<Shutdown>>>,
    console: Mutex<Option<JoinHandle<()>>>,
    supervisor: Mutex<Option<AbortHandle>>,
    exit: OnceCell<Exit>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.detach();
    }
}

impl Attached {
    /// Follows the process; nothing is connected yet.
    pub(crate) fn new(
        folder: Folder,
        record: ProcessRecord,
        monitor: Process,
        helper: Option<Process>,
        errors: Option<File>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            folder,
            record,
            seen_alive: monitor.is_alive(),
            monitor,
            helper,
            errors,
            clock,
            qmp: tokio::sync::Mutex::default(),
            shutdown: Arc::default(),
            console: Mutex::default(),
            supervisor: Mutex::default(),
            exit: OnceCell::new(),
        }
    }

    /// Starts to copy the console into its log. `mark_gap`: output may have been lost before.
    pub(crate) async fn record_console(&self, context: &Context, mark_gap: bool) {
        let Ok(stream) = self.folder.connect("console.sock").await else { return };
        let log = ConsoleLog::new(self.folder.path(), context.config.console_log_limit);
        let Ok(mut writer) = log.writer() else { return };
        let clock = Arc::clone(&self.clock);
        let rate = context.config.console_bytes_per_second;
        let task = tokio::spawn(async move {
            if mark_gap {
                let _ = writer.append(console::GAP).await;
            }
            console::record(stream, writer, clock, rate).await;
        });
        *self.console.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    pub(crate) fn supervised_by(&self, task: AbortHandle) {
        if let Some(older) = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner).replace(task) {
            older.abort();
        }
    }

    /// Lets the monitor be; it runs on.
    pub(crate) fn detach(&self) {
        if let Some(task) = self.console.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
        if let Some(task) = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
        if let Ok(mut qmp) = self.qmp.try_lock() {
            qmp.take();
        }
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

    /// Kills the monitor and its helper; returns once they are gone. False when they do not go.
    pub(crate) async fn kill(&self, deadline: Duration) -> bool {
        let mut gone = true;
        for process in [Some(&self.monitor), self.helper.as_ref()].into_iter().flatten() {
            gone &= end(process, &self.clock, deadline).await;
        }
        gone
    }

    /// Returns true once the monitor has ended, false after the deadline.
    pub(crate) async fn ends_within(&self, deadline: Duration) -> bool {
        matches!(self.clock.timeout(deadline, self.monitor.ended()).await, Ok(Ok(())))
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
        let text = String::from_utf8_lossy(&said);
        let mut text = text.trim();
        // A byte that was no character has become three.
        while text.len() > LONGEST_MESSAGE {
            text = text.char_indices().nth(1).map_or("", |(next, _)| &text[next..]);
        }
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// What is to be told of the monitor's end; settled once, and on disk when this returns. Call it only after the end.
    pub(crate) async fn exit(&self, context: &Context) -> Result<Exit> {
        self.exit.get_or_try_init(|| self.settle_exit(context)).await.cloned()
    }

    async fn settle_exit(&self, context: &Context) -> Result<Exit> {
        let connection = self.qmp.lock().await.take();
        if let Some(connection) = &connection {
            let _ = self.clock.timeout(LAST_WORDS, connection.closed()).await;
        }
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut task) = console
            && self.clock.timeout(LAST_WORDS, &mut task).await.is_err()
        {
            task.abort();
        }
        // A process with several threads has no status before the last of them is gone.
        self.ends_within(context.config.deadlines.kill).await;
        let ended = self.monitor.reap();
        if let Some(helper) = &self.helper {
            end(helper, &self.clock, context.config.deadlines.kill).await;
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
        let folder = self.folder.clone();
        let record = exit.clone();
        blocking(move || folder.write_exit(&record)).await?;
        Ok(exit)
    }
}

/// Kills the process and returns once it is gone; false when it does not go.
pub(crate) async fn end(process: &Process, clock: &Arc<dyn Clock>, deadline: Duration) -> bool {
    if process.is_alive() && process.kill().is_err() {
        return false;
    }
    let gone = matches!(clock.timeout(deadline, process.ended()).await, Ok(Ok(())));
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
