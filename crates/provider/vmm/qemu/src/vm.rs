//! One incarnation on this host: what is true of it, and its way from prepared to gone.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::failed;
use flames_host::process::{Process, scan};
use flames_vmm::{Exit, ExitCause, IncarnationName, Observation, Phase};
use serde_json::json;

use crate::attached::{Attached, RunState, end};
use crate::channel::Newest;
use crate::context::Context;
use crate::folder::Folder;
use crate::launch::{launch, let_run};
use crate::network::{PortReservation, reserve_again};
use crate::qmp::QmpError;
use crate::snapshot::Opened;

/// What an incarnation's folder and the host's processes show.
pub(crate) enum Situation {
    /// Nothing has run.
    Prepared,
    /// Processes that have run nothing of the guest, of a driver that died before it could note them.
    Orphans(Vec<Process>),
    Alive(Arc<Attached>),
    Exited(Exit),
}

/// One incarnation. Its truth is in its folder; this holds connections and order.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) name: IncarnationName,
    pub(crate) folder: Folder,
    /// Held by whatever changes the incarnation; see [`Vm::turn`].
    operation: Arc<tokio::sync::Mutex<()>>,
    attached: tokio::sync::Mutex<Option<Arc<Attached>>>,
    /// A `start` is on its way, whose monitor is not attached yet.
    starting: AtomicBool,
    pub(crate) agent: Newest,
    ports: Mutex<Option<Vec<PortReservation>>>,
}

/// The right to change an incarnation. Work that goes on after its call was dropped takes it along.
#[derive(Debug)]
pub(crate) struct Turn {
    _operation: tokio::sync::OwnedMutexGuard<()>,
    /// Against a driver that was dropped, in this process or another, and has work on its way.
    _folder: Option<OwnedFd>,
}

/// Marks a start as on its way for as long as it lives.
struct Starting<'a>(&'a AtomicBool);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Vm {
    pub(crate) fn new(name: IncarnationName, folder: Folder) -> Self {
        Self {
            name,
            folder,
            operation: Arc::default(),
            attached: tokio::sync::Mutex::default(),
            starting: AtomicBool::new(false),
            agent: Newest::default(),
            ports: Mutex::default(),
        }
    }

    /// Waits until nothing else changes the incarnation. `Unavailable` when that takes longer than a start may.
    pub(crate) async fn turn(&self, context: &Context, operation: &'static str) -> Result<Turn> {
        let wait = async {
            let guard = Arc::clone(&self.operation).lock_owned().await;
            loop {
                match self.folder.try_lock() {
                    Ok(Some(folder)) => return Turn { _operation: guard, _folder: Some(folder) },
                    Ok(None) => context.clock.sleep(Duration::from_millis(2)).await,
                    // There is no folder (yet), or garbage in its place.
                    Err(_) => return Turn { _operation: guard, _folder: None },
                }
            }
        };
        // A save may be on its way, and a start.
        let deadline = context.config.deadlines.start + context.config.deadlines.snapshot;
        context.clock.timeout(deadline, wait).await.map_err(|late| {
            Error::unavailable(operation, "another call on this incarnation does not end")
                .with_resource("incarnation", self.name.as_str())
                .with_source(late)
        })
    }

    pub(crate) fn not_found(&self, operation: &'static str) -> Error {
        Error::not_found(operation, "incarnation", self.name.as_str())
    }

    pub(crate) fn conflict(&self, operation: &'static str, message: &str) -> Error {
        Error::new(ErrorKind::Conflict, operation, message).with_resource("incarnation", self.name.as_str())
    }

    /// Keeps the ports for the monitor to come.
    pub(crate) fn hold_ports(&self, ports: Vec<PortReservation>) {
        *self.ports.lock().unwrap_or_else(PoisonError::into_inner) = Some(ports);
    }

    /// Lets everything go that is held for the incarnation.
    pub(crate) async fn let_go(&self) {
        if let Some(attached) = self.attached.lock().await.take() {
            attached.detach();
        }
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Lets the monitor be; it runs on.
    pub(crate) fn detach(&self) {
        if let Ok(mut attached) = self.attached.try_lock()
            && let Some(attached) = attached.take()
        {
            attached.detach();
        }
    }

    /// What is true now. `Corrupt` when the records do not tell.
    pub(crate) async fn situation(self: &Arc<Self>, context: &Arc<Context>) -> Result<Situation> {
        let mut attached = self.attached.lock().await;
        if let Some(exit) = self.folder.exit()? {
            return Ok(Situation::Exited(exit));
        }
        if let Some(attached) = attached.as_ref() {
            return if attached.monitor.is_alive() {
                Ok(Situation::Alive(Arc::clone(attached)))
            } else {
                Ok(Situation::Exited(attached.exit(context).await?))
            };
        }
        let Some(record) = self.folder.process()? else { return Ok(Situation::Prepared) };
        let Some(identity) = record.monitor else {
            let orphans = self.scan().await?;
            return Ok(if orphans.is_empty() { Situation::Prepared } else { Situation::Orphans(orphans) });
        };
        let io = |error| failed("the monitor's process cannot be looked at", error);
        let same_boot = record.boot_id == context.boot_id;
        let monitor = if same_boot {
            Process::find(identity, &self.folder.monitor_marker()).map_err(io)?
        } else {
            None
        };
        let helper = match record.helper.filter(|_| same_boot) {
            Some(helper) => Process::find(helper, &self.folder.helper_marker()).map_err(io)?,
            None => None,
        };
        let Some(monitor) = monitor else {
            if let Some(helper) = &helper {
                end(helper, &context.clock, context.config.deadlines.kill).await;
            }
            return Ok(Situation::Exited(self.settle_unseen_exit(context).await?));
        };
        let errors = flames_host::process::open_bounded_pipe(&self.folder.join("monitor.errors")).ok();
        let found =
            Attached::new(self.folder.clone(), record, monitor, helper, errors, Arc::clone(&context.clock));
        let found = Arc::new(found);
        if !found.monitor.is_alive() {
            return Ok(Situation::Exited(found.exit(context).await?));
        }
        // So that the monitor can announce its end from now on. One that does not answer is found out when it is asked.
        let _ = found.qmp(context.config.deadlines.command).await;
        found.record_console(context, true).await;
        self.supervise(context, &found);
        *attached = Some(Arc::clone(&found));
        Ok(Situation::Alive(found))
    }

    /// A monitor that ended while no driver was there.
    async fn settle_unseen_exit(&self, context: &Context) -> Result<Exit> {
        let stopped = self.folder.is_stop_requested();
        let cause = if stopped { ExitCause::Stopped } else { ExitCause::Unknown };
        let exit = Exit { cause, code: None, signal: None, at: context.clock.now(), message: None };
        let (folder, record) = (self.folder.clone(), exit.clone());
        blocking(move || folder.write_exit(&record)).await?;
        Ok(exit)
    }

    /// Waits for the monitor's end, notes it and tells of it.
    fn supervise(self: &Arc<Self>, context: &Arc<Context>, attached: &Arc<Attached>) {
        let (vm, context, followed) = (Arc::clone(self), Arc::clone(context), Arc::clone(attached));
        let task = tokio::spawn(async move {
            if followed.monitor.ended().await.is_ok() {
                // What cannot be noted now is found out by the next call that looks.
                let _ = followed.exit(&context).await;
                let _ = context.exits.send(vm.name.clone());
                // The record tells of it from now on; the descriptors are let go.
                vm.attached.lock().await.take();
            }
        });
        attached.supervised_by(task.abort_handle());
    }

    /// Every process that has the incarnation on its command line.
    pub(crate) async fn scan(&self) -> Result<Vec<Process>> {
        let markers = [self.folder.monitor_marker(), self.folder.helper_marker()];
        blocking(move || {
            let mut found = Vec::new();
            for marker in &markers {
                found.extend(
                    scan(marker).map_err(|error| failed("the host's processes cannot be listed", error))?,
                );
            }
            Ok(found)
        })
        .await
    }

    pub(crate) async fn end_all(
        &self,
        context: &Context,
        processes: &[Process],
        operation: &'static str,
    ) -> Result<()> {
        for process in processes {
            if !end(process, &context.clock, context.config.deadlines.kill).await {
                return Err(Error::unavailable(operation, "a process does not end")
                    .with_resource("incarnation", self.name.as_str())
                    .with_context("pid", process.identity().pid));
            }
        }
        Ok(())
    }

    /// `NotFound` when there is nothing.
    pub(crate) async fn observe(self: &Arc<Self>, context: &Arc<Context>) -> Result<Observation> {
        if !self.folder.exists() {
            return Err(self.not_found("vmm.observe"));
        }
        let seen = |phase| Observation { phase, exit: None, pid: None, prepared: Default::default() };
        let prepared = match self.folder.spec() {
            Ok(spec) => spec.prepared,
            // It may have been destroyed since.
            Err(_) if !self.folder.exists() => return Err(self.not_found("vmm.observe")),
            Err(_) => return Ok(seen(Phase::Unknown)),
        };
        let seen = |phase| Observation { prepared: prepared.clone(), ..seen(phase) };
        if self.starting.load(Ordering::Acquire) {
            return Ok(seen(Phase::Starting));
        }
        let situation = match self.situation(context).await {
            Ok(situation) => situation,
            Err(_) if !self.folder.exists() => return Err(self.not_found("vmm.observe")),
            Err(_) => return Ok(seen(Phase::Unknown)),
        };
        match situation {
            Situation::Prepared => Ok(seen(Phase::Prepared)),
            Situation::Orphans(_) => Ok(seen(Phase::Starting)),
            Situation::Exited(exit) => Ok(Observation { exit: Some(exit), ..seen(Phase::Exited) }),
            Situation::Alive(attached) => {
                let phase = match self.phase(context, &attached).await {
                    Ok(phase) => phase,
                    // It may have ended while it was asked, or be about to.
                    Err(error) if self.is_ending(context, &attached, &error).await => {
                        let exit = attached.exit(context).await?;
                        return Ok(Observation { exit: Some(exit), ..seen(Phase::Exited) });
                    }
                    Err(_) => Phase::Unknown,
                };
                Ok(Observation { pid: Some(attached.monitor.identity().pid), ..seen(phase) })
            }
        }
    }

    async fn is_ending(&self, context: &Context, attached: &Attached, error: &QmpError) -> bool {
        let has_hung_up = matches!(error, QmpError::Closed(_));
        !attached.monitor.is_alive()
            || (has_hung_up && attached.ends_within(context.config.deadlines.command).await)
    }

    pub(crate) async fn phase(&self, context: &Context, attached: &Attached) -> Result<Phase, QmpError> {
        Ok(match attached.run_state(context.config.deadlines.command).await? {
            RunState::Running => Phase::Running,
            RunState::Paused | RunState::PausedAfterSave => Phase::Paused,
            RunState::Fresh if attached.record.leave_paused => Phase::Paused,
            RunState::Fresh | RunState::Loading => Phase::Starting,
            RunState::Other => Phase::Unknown,
        })
    }

    /// The monitor, when there is one; `NotFound` when there is no such incarnation, `Conflict` when it does not run.
    pub(crate) async fn alive(
        self: &Arc<Self>,
        context: &Arc<Context>,
        operation: &'static str,
    ) -> Result<Arc<Attached>> {
        if !self.folder.exists() {
            return Err(self.not_found(operation));
        }
        match self.situation(context).await? {
            Situation::Alive(attached) => Ok(attached),
            Situation::Prepared | Situation::Orphans(_) => {
                Err(self.conflict(operation, "it was not started"))
            }
            Situation::Exited(_) => Err(self.conflict(operation, "it has exited")),
        }
    }

    /// The error of a command that a monitor did not carry out.
    pub(crate) fn command_failed(
        &self,
        operation: &'static str,
        attached: &Attached,
        error: QmpError,
    ) -> Error {
        if !attached.monitor.is_alive() {
            return self.conflict(operation, "it has exited").with_source(error);
        }
        let kind = match &error {
            QmpError::Closed(_) => ErrorKind::Unavailable,
            QmpError::Deadline => ErrorKind::OutcomeUnknown,
            QmpError::Refused(_) => ErrorKind::Internal,
        };
        Error::new(kind, operation, "the monitor did not do it")
            .with_resource("incarnation", self.name.as_str())
            .with_source(error)
    }

    pub(crate) async fn start(
        self: &Arc<Self>,
        context: &Arc<Context>,
        snapshot: Option<&std::path::Path>,
        leave_paused: bool,
    ) -> Result<()> {
        const OPERATION: &str = "vmm.start";
        let turn = self.turn(context, OPERATION).await?;
        if !self.folder.exists() {
            return Err(self.not_found(OPERATION));
        }
        let spec = self.folder.spec()?;
        match self.situation(context).await? {
            Situation::Exited(_) => {
                return Err(self.conflict(OPERATION, "it has exited; an incarnation runs once"));
            }
            Situation::Alive(attached) => {
                let state = attached.run_state(context.config.deadlines.command).await;
                return match state.map_err(|error| self.command_failed(OPERATION, &attached, error))? {
                    // A driver died before it let the guest go.
                    RunState::Fresh | RunState::Loading => let_run(context, &attached, false)
                        .await
                        .map_err(|error| error.with_kind(ErrorKind::Conflict)),
                    _ => Ok(()),
                };
            }
            Situation::Orphans(orphans) => self.end_all(context, &orphans, OPERATION).await?,
            Situation::Prepared => {}
        }
        let incoming = match snapshot {
            None => None,
            Some(path) => {
                let (path, spec) = (path.to_owned(), spec.clone());
                Some(blocking(move || Opened::for_machine(&path, &spec)).await?.file)
            }
        };
        self.starting.store(true, Ordering::Release);
        let _starting = Starting(&self.starting);
        // After a restart of the driver the ports are held again only for the moment; one taken meanwhile makes QEMU fail.
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ports = ports.unwrap_or_else(|| reserve_again(&spec.prepared.forwards));
        let started = match launch(context, &self.folder, &spec, leave_paused, incoming, turn).await {
            Ok((attached, turn)) => {
                let attached = Arc::new(attached);
                attached.record_console(context, false).await;
                match let_run(context, &attached, snapshot.is_some()).await {
                    Ok(()) => Ok((attached, turn)),
                    Err(error) if error.kind() == ErrorKind::Conflict => {
                        attached.exit(context).await?;
                        Err(error.with_kind(ErrorKind::Internal))
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        match started {
            Ok((attached, _turn)) => {
                self.supervise(context, &attached);
                *self.attached.lock().await = Some(attached);
                Ok(())
            }
            Err(error) => {
                self.hold_ports(ports);
                if self.folder.exit()?.is_none() {
                    // Nothing of the guest has run, so the incarnation is as it was prepared.
                    let leftover = self.scan().await?;
                    self.end_all(context, &leftover, OPERATION).await?;
                    let folder = self.folder.clone();
                    blocking(move || folder.forget_process()).await?;
                }
                Err(error.with_resource("incarnation", self.name.as_str()))
            }
        }
    }

    pub(crate) async fn pause(self: &Arc<Self>, context: &Arc<Context>) -> Result<()> {
        const OPERATION: &str = "vmm.pause";
        let _turn = self.turn(context, OPERATION).await?;
        let attached = self.alive(context, OPERATION).await?;
        let failed = |error| self.command_failed(OPERATION, &attached, error);
        match self.phase(context, &attached).await.map_err(failed)? {
            Phase::Paused => Ok(()),
            Phase::Running => attached
                .command("stop", json!({}), context.config.deadlines.command)
                .await
                .map(|_| ())
                .map_err(failed),
            _ => Err(self.conflict(OPERATION, "it does not run yet")),
        }
    }

    pub(crate) async fn resume(self: &Arc<Self>, context: &Arc<Context>) -> Result<()> {
        const OPERATION: &str = "vmm.resume";
        let _turn = self.turn(context, OPERATION).await?;
        let attached = self.alive(context, OPERATION).await?;
        let failed = |error| self.command_failed(OPERATION, &attached, error);
        match self.phase(context, &attached).await.map_err(failed)? {
            Phase::Running => Ok(()),
            Phase::Paused => {
                let going = attached.command("cont", json!({}), context.config.deadlines.command).await;
                going.map_err(failed)?;
                let folder = self.folder.clone();
                blocking(move || {
                    crate::snapshot::forget_latest(&folder);
                    Ok(())
                })
                .await
            }
            _ => Err(self.conflict(OPERATION, "it does not run yet")),
        }
    }
}
