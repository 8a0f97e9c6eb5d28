//! One incarnation on this host: what is true of it, and its way from prepared to gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use flames_firecracker_jail::{Jail, JailName, State};
use flames_host::blocking;
use flames_vmm::{Exit, IncarnationName, Observation, Phase, Prepared, StartFrom};

use crate::attached::{Attached, settle_unseen};
use crate::context::Context;
use crate::folder::Folder;
use crate::launch::{Launching, launch};
use crate::saved::Saved;
use crate::spares::Spares;

/// How long is waited for the end of a monitor that hung up.
const HUNG_UP: Duration = Duration::from_millis(500);

/// What an incarnation's folder, its jail and the host's processes show.
pub(crate) enum Situation {
    /// Its making did not come to its end, or its removal.
    Half,
    /// Nothing has run.
    Prepared(Jail),
    /// A start did not come to its end: whatever is left of it has run nothing of the guest.
    Stale(Jail),
    Alive(Arc<Attached>),
    Exited(Exit),
}

/// One incarnation. Its truth is on the host; this holds connections and order.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) name: IncarnationName,
    pub(crate) jail_name: JailName,
    pub(crate) folder: Folder,
    /// Held by whatever changes the incarnation; see [`Vm::turn`].
    operation: Arc<tokio::sync::Mutex<()>>,
    attached: tokio::sync::Mutex<Option<Arc<Attached>>>,
    /// A `start` is on its way, whose monitor is not attached yet.
    starting: AtomicBool,
    /// This driver has made or adopted its network.
    pub(crate) has_network: AtomicBool,
}

/// The right to change an incarnation.
pub(crate) type Turn = tokio::sync::OwnedMutexGuard<()>;

/// Marks a start as on its way for as long as it lives.
struct Starting<'a>(&'a AtomicBool);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Runs the work to its end even when the caller is dropped: it is bounded by the deadlines of its calls, and holds the host's jails, so
/// that no other driver works with them meanwhile.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => {
            Err(Error::internal("vmm.task", "a part of the driver has panicked").with_source(error))
        }
    }
}

impl Vm {
    /// Errors: `InvalidInput` for a name that no jail can have, or that is a spare's.
    pub(crate) fn new(name: IncarnationName, folder: Folder) -> Result<Self> {
        let jail_name = JailName::new(name.as_str())?;
        if jail_name.is_spare() {
            let sentence = "An incarnation's name does not begin with `flames_spare_`.";
            return Err(Error::invalid("vmm.name", "incarnation", sentence));
        }
        Ok(Self {
            jail_name,
            name,
            folder,
            operation: Arc::default(),
            attached: tokio::sync::Mutex::default(),
            starting: AtomicBool::new(false),
            has_network: AtomicBool::new(false),
        })
    }

    /// Waits until nothing else changes the incarnation. `Unavailable` when that takes longer than a start and a save may.
    pub(crate) async fn turn(&self, context: &Context, operation: &'static str) -> Result<Turn> {
        let limits = &context.config.deadlines;
        let deadline = limits.start + limits.machine + limits.snapshot + limits.snapshot;
        let wait = Arc::clone(&self.operation).lock_owned();
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

    /// Lets the monitor be, once no other call is looking for it; it runs on.
    pub(crate) async fn release(&self) {
        if let Some(attached) = self.attached.lock().await.take() {
            attached.detach();
        }
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
            return Ok(if attached.process().is_alive() {
                Situation::Alive(Arc::clone(attached))
            } else if attached.is_let_go() {
                Situation::Exited(attached.exit(context).await?)
            } else {
                Situation::Stale(attached.jail.clone())
            });
        }
        let Some(found) = context.host().await?.jails.find(&self.jail_name).await? else {
            return Ok(Situation::Half);
        };
        let is_let_go = self.folder.is_let_go();
        let (jail, process) = match (found.state, found.jail) {
            (State::Damaged(error), _) => return Err(error.with_kind(ErrorKind::Corrupt)),
            (_, None) => return Ok(Situation::Half),
            (State::Prepared, Some(jail)) if !is_let_go => return Ok(Situation::Prepared(jail)),
            (State::Waiting(_), Some(jail)) if !is_let_go => return Ok(Situation::Prepared(jail)),
            (State::Unfinished(_), Some(jail)) if !is_let_go => return Ok(Situation::Stale(jail)),
            (State::Started(process), Some(jail)) => (jail, Some(process)),
            // Let go, and its process is gone even from the jail's records: a host that died in between.
            (State::Prepared | State::Waiting(_) | State::Unfinished(_) | State::Gone, Some(jail)) => {
                (jail, None)
            }
        };
        let Some(process) = process.filter(|process| process.is_alive() || is_let_go) else {
            return Ok(if is_let_go {
                Situation::Exited(settle_unseen(&self.folder, &jail, None, &context.clock).await?)
            } else {
                Situation::Stale(jail)
            });
        };
        if !process.is_alive() {
            let exit = settle_unseen(&self.folder, &jail, Some(&process), &context.clock).await?;
            return Ok(Situation::Exited(exit));
        }
        let vmm = jail.attach(process)?;
        let found = Arc::new(Attached::new(context, self.folder.clone(), jail, vmm));
        found.listen(context, true)?;
        *attached = Some(Arc::clone(&found));
        self.follow(context, &found);
        Ok(Situation::Alive(found))
    }

    /// Waits for the monitor's end, notes it and tells of it; and watches that it answers. Called once it is where [`Vm::detach`] finds it.
    fn follow(self: &Arc<Self>, context: &Arc<Context>, attached: &Arc<Attached>) {
        attached.watch(context);
        attached.see_off();
        let (vm, context_too, followed) = (Arc::clone(self), Arc::clone(context), Arc::clone(attached));
        let task = tokio::spawn(async move {
            // One that has run nothing is cleared away by whoever started it, or by the next start.
            if followed.process().ended().await.is_ok() && followed.is_let_go() {
                // What cannot be noted now is found out by the next call that looks.
                let _ = followed.exit(&context_too).await;
                let _ = context_too.exits.send(vm.name.clone());
                // The record tells of it from now on; the descriptors are let go.
                vm.attached.lock().await.take();
            }
        });
        attached.followed_by(task.abort_handle());
        // Dropped since: it lets go of what it has seen, and this it has not.
        if context.is_closed() {
            attached.detach();
        }
    }

    /// `NotFound` when there is nothing.
    pub(crate) async fn observe(self: &Arc<Self>, context: &Arc<Context>) -> Result<Observation> {
        const OPERATION: &str = "vmm.observe";
        let seen = |phase| Observation { phase, exit: None, pid: None, prepared: Prepared::default() };
        if !self.folder.exists() {
            // Something of it may be left by a removal that was cut short.
            let left = context.host().await?.jails.find(&self.jail_name).await?;
            return left.map_or_else(|| Err(self.not_found(OPERATION)), |_| Ok(seen(Phase::Unknown)));
        }
        if self.starting.load(Ordering::Acquire) {
            return Ok(seen(Phase::Starting));
        }
        let situation = match self.folder.spec() {
            Ok(_) => self.situation(context).await,
            Err(error) => Err(error),
        };
        match situation {
            // It may have been destroyed since.
            Err(_) if !self.folder.exists() => Err(self.not_found(OPERATION)),
            Ok(Situation::Half) if !self.folder.exists() => Err(self.not_found(OPERATION)),
            Err(error) if error.kind() == ErrorKind::Unavailable => Err(error),
            Err(_) | Ok(Situation::Half) => Ok(seen(Phase::Unknown)),
            Ok(Situation::Prepared(_)) => Ok(seen(Phase::Prepared)),
            Ok(Situation::Stale(_)) => Ok(seen(Phase::Starting)),
            Ok(Situation::Exited(exit)) => Ok(Observation { exit: Some(exit), ..seen(Phase::Exited) }),
            Ok(Situation::Alive(attached)) => {
                let phase = match attached.phase().await {
                    Ok(phase) => phase,
                    // It may have ended while it was asked, or be about to.
                    Err(_) if attached.is_let_go() && attached.ends_within(HUNG_UP).await => {
                        let exit = attached.exit(context).await?;
                        return Ok(Observation { exit: Some(exit), ..seen(Phase::Exited) });
                    }
                    Err(_) => Phase::Unknown,
                };
                Ok(Observation { pid: Some(attached.process().identity().pid), ..seen(phase) })
            }
        }
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
            Situation::Half | Situation::Prepared(_) | Situation::Stale(_) => {
                Err(self.conflict(operation, "it was not started"))
            }
            Situation::Exited(_) => Err(self.conflict(operation, "it has exited")),
        }
    }

    /// The error of a call that a monitor did not carry out.
    pub(crate) async fn call_failed(
        &self,
        operation: &'static str,
        attached: &Attached,
        error: Error,
    ) -> Error {
        let may_have_ended = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OutcomeUnknown);
        if may_have_ended && attached.ends_within(HUNG_UP).await {
            return self.conflict(operation, "it has exited").with_source(error);
        }
        error.with_resource("incarnation", self.name.as_str())
    }

    /// See the contract. Runs to its end even when the caller is dropped.
    pub(crate) async fn start(
        self: Arc<Self>,
        context: Arc<Context>,
        from: StartFrom,
        leave_paused: bool,
    ) -> Result<()> {
        const OPERATION: &str = "vmm.start";
        let _busy = Spares::busy(&context);
        let _turn = self.turn(&context, OPERATION).await?;
        if !self.folder.exists() {
            return Err(self.not_found(OPERATION));
        }
        let record = self.folder.spec()?;
        let jail = match self.situation(&context).await? {
            Situation::Half => {
                return Err(self.conflict(OPERATION, "it is not prepared to its end: prepare it again"));
            }
            Situation::Exited(_) => {
                return Err(self.conflict(OPERATION, "it has exited; an incarnation runs once"));
            }
            Situation::Alive(attached) => match attached.phase().await {
                // A driver died before it let the guest go.
                Ok(Phase::Starting) => {
                    let jail = attached.jail.clone();
                    self.forget_start(&jail).await?;
                    jail
                }
                Ok(_) => return Ok(()),
                Err(error) => return Err(self.call_failed(OPERATION, &attached, error).await),
            },
            Situation::Stale(jail) => {
                self.forget_start(&jail).await?;
                jail
            }
            Situation::Prepared(jail) => jail,
        };
        self.starting.store(true, Ordering::Release);
        let _starting = Starting(&self.starting);
        let with_resource = |error: Error| error.with_resource("incarnation", self.name.as_str());
        let saved = match from {
            StartFrom::Boot => None,
            StartFrom::Snapshot(artefacts) => {
                Some(Saved::open(&context, artefacts, &record).await.map_err(with_resource)?)
            }
        };
        let launching = Launching {
            name: &self.name,
            folder: &self.folder,
            jail: &jail,
            record: &record,
            saved,
            leave_paused,
            has_network: self.has_network.load(Ordering::Acquire),
        };
        match launch(&context, launching).await {
            Ok(attached) => {
                self.has_network.store(true, Ordering::Release);
                *self.attached.lock().await = Some(Arc::clone(&attached));
                self.follow(&context, &attached);
                Ok(())
            }
            Err(error) => {
                if self.folder.exit()?.is_none() {
                    // Nothing of the guest has run, so the incarnation is as it was prepared.
                    self.forget_start(&jail).await?;
                }
                Err(with_resource(error))
            }
        }
    }

    /// Back to prepared: ends what a start has left, which has run nothing of the guest.
    pub(crate) async fn forget_start(&self, jail: &Jail) -> Result<()> {
        self.release().await;
        let folder = self.folder.clone();
        // First: cut short in between, what is left is still known to have run nothing.
        blocking(move || folder.forget_start()).await?;
        jail.reset().await
    }

    pub(crate) async fn pause(self: &Arc<Self>, context: &Arc<Context>) -> Result<()> {
        self.move_to(context, "vmm.pause", Phase::Paused).await
    }

    pub(crate) async fn resume(self: &Arc<Self>, context: &Arc<Context>) -> Result<()> {
        self.move_to(context, "vmm.resume", Phase::Running).await
    }

    async fn move_to(
        self: &Arc<Self>,
        context: &Arc<Context>,
        operation: &'static str,
        wanted: Phase,
    ) -> Result<()> {
        let _turn = self.turn(context, operation).await?;
        let attached = self.alive(context, operation).await?;
        let phase = match attached.phase().await {
            Ok(phase) => phase,
            Err(error) => return Err(self.call_failed(operation, &attached, error).await),
        };
        let done = match (phase, wanted) {
            (Phase::Running, Phase::Paused) => attached.client.pause().await,
            (Phase::Paused, Phase::Running) => attached.resume().await,
            (is, wanted) if is == wanted => Ok(()),
            _ => return Err(self.conflict(operation, "it does not run yet")),
        };
        match done {
            Ok(()) => Ok(()),
            Err(error) => Err(self.call_failed(operation, &attached, error).await),
        }
    }
}
