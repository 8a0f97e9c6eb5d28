//! One incarnation on this host: what is true of it, and its way from prepared to gone.

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::failed;
use flames_host::process::{Process, scan};
use flames_vmm::{Exit, ExitCause, Observation, Phase, Prepared};
use flames_vmm_local::{Incarnation, Monitor, OnHost, Turn, seen};
use serde_json::json;

use crate::attached::{Attached, RunState, end};
use crate::channel::Newest;
use crate::context::Context;
use crate::folder::{ProcessRecord, Records};
use crate::launch::{launch, let_run};
use crate::network::{PortReservation, reserve_again};
use crate::qmp::QmpError;
use crate::snapshot::Opened;

/// What there is of an incarnation of which nothing has run.
#[derive(Debug)]
pub(crate) enum Before {
    Prepared,
    /// Processes that have run nothing of the guest, of a driver that died before it could note them.
    Orphans(Vec<Process>),
}

/// What an incarnation's folder and the host's processes show.
pub(crate) type Situation = flames_vmm_local::Situation<Attached>;

/// One incarnation, with what only this driver holds for it.
#[derive(Debug)]
pub(crate) struct Vm {
    incarnation: Incarnation<Attached>,
    pub(crate) agent: Newest,
    ports: Mutex<Option<Vec<PortReservation>>>,
}

impl Deref for Vm {
    type Target = Incarnation<Attached>;

    fn deref(&self) -> &Incarnation<Attached> {
        &self.incarnation
    }
}

impl OnHost for Vm {
    type Monitor = Attached;
    type Context = Context;

    fn new(incarnation: Incarnation<Attached>) -> Result<Self> {
        Ok(Self { incarnation, agent: Newest::default(), ports: Mutex::default() })
    }

    async fn situation(&self, context: &Arc<Context>) -> Result<Situation> {
        self.known_or(&context.exits, self.find(context)).await
    }
}

impl Vm {
    /// Waits until nothing else changes the incarnation. `Unavailable` when that takes longer than a start and a save may.
    pub(crate) async fn turn(
        &self,
        context: &Context,
        operation: &'static str,
    ) -> Result<(Turn, Option<OwnedFd>)> {
        let limit = context.config.deadlines.start + context.config.deadlines.snapshot;
        self.turn_with_lock(&*context.clock, limit, operation).await
    }

    /// Keeps the ports for the monitor to come.
    pub(crate) fn hold_ports(&self, ports: Vec<PortReservation>) {
        *self.ports.lock().unwrap_or_else(PoisonError::into_inner) = Some(ports);
    }

    /// Lets everything go that is held for the incarnation.
    pub(crate) async fn let_go(&self) {
        self.release().await;
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// What the records and the host's processes tell. `Corrupt` when the records do not.
    async fn find(&self, context: &Arc<Context>) -> Result<Situation> {
        let Some(record) = self.folder.read::<ProcessRecord>()? else {
            return Ok(Situation::Before(Before::Prepared));
        };
        let Some(identity) = record.monitor else {
            let orphans = self.scan().await?;
            let is_prepared = orphans.is_empty();
            return Ok(Situation::Before(if is_prepared {
                Before::Prepared
            } else {
                Before::Orphans(orphans)
            }));
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
                end(helper, &*context.clock, context.config.deadlines.kill).await;
            }
            return Ok(Situation::Exited(self.settle_unseen_exit(context).await?));
        };
        let errors = flames_host::process::open_bounded_pipe(&self.folder.join("monitor.errors")).ok();
        let found = Attached::new(context, self.folder.clone(), record, monitor, helper, errors);
        let found = Arc::new(found);
        if !found.monitor.is_alive() {
            return Ok(Situation::Exited(found.exit().await?));
        }
        // So that the monitor can announce its end from now on. One that does not answer is found out when it is asked.
        let _ = found.qmp(context.config.deadlines.command).await;
        found.record_console(context, true).await;
        Ok(Situation::Alive(found))
    }

    /// A monitor that ended while no driver was there.
    async fn settle_unseen_exit(&self, context: &Context) -> Result<Exit> {
        let stopped = self.folder.is_stop_requested();
        let cause = if stopped { ExitCause::Stopped } else { ExitCause::Unknown };
        let exit = Exit { cause, code: None, signal: None, at: context.clock.now(), message: None };
        self.folder.note_exit(exit).await
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
            if !end(process, &*context.clock, context.config.deadlines.kill).await {
                return Err(Error::unavailable(operation, "a process does not end")
                    .with_resource("incarnation", self.name.as_str())
                    .with_context("pid", process.identity().pid));
            }
        }
        Ok(())
    }

    /// `NotFound` when there is nothing.
    pub(crate) async fn observe(&self, context: &Arc<Context>) -> Result<Observation> {
        const OPERATION: &str = "vmm.observe";
        if !self.folder.exists() {
            return Err(self.not_found(OPERATION));
        }
        let prepared = match self.folder.spec() {
            Ok(spec) => spec.prepared,
            // It may have been destroyed since.
            Err(_) if !self.folder.exists() => return Err(self.not_found(OPERATION)),
            Err(_) => return Ok(seen(Phase::Unknown, Prepared::default())),
        };
        if self.is_starting() {
            return Ok(seen(Phase::Starting, prepared));
        }
        let situation = match self.situation(context).await {
            Ok(situation) => situation,
            Err(_) if !self.folder.exists() => return Err(self.not_found(OPERATION)),
            Err(_) => return Ok(seen(Phase::Unknown, prepared)),
        };
        let before = |before| match before {
            Before::Prepared => Phase::Prepared,
            Before::Orphans(_) => Phase::Starting,
        };
        self.observed(situation, prepared, before).await
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
            Situation::Before(Before::Orphans(orphans)) => self.end_all(context, &orphans, OPERATION).await?,
            Situation::Before(Before::Prepared) => {}
        }
        let incoming = match snapshot {
            None => None,
            Some(path) => {
                let (path, spec) = (path.to_owned(), spec.clone());
                Some(blocking(move || Opened::for_machine(&path, &spec)).await?.file)
            }
        };
        let _starting = self.starting();
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
                        attached.exit().await?;
                        Err(error.with_kind(ErrorKind::Internal))
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        match started {
            Ok((attached, _turn)) => {
                self.attach(&attached, &context.exits).await;
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
        match attached.phase().await.map_err(failed)? {
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
        match attached.phase().await.map_err(failed)? {
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
