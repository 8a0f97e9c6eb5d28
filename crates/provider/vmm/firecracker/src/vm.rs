//! One incarnation on this host: what is true of it, and its way from prepared to gone.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flames_error::{Error, ErrorKind, Result};
use flames_firecracker_jail::{Jail, JailName, State};
use flames_host::blocking;
use flames_vmm::{Observation, Phase, Prepared, StartFrom};
use flames_vmm_local::{Incarnation, Monitor, OnHost, Turn, seen};

use crate::attached::{Attached, HUNG_UP, settle_unseen};
use crate::context::Context;
use crate::folder::Records;
use crate::launch::{Launching, launch};
use crate::saved::Saved;
use crate::spares::Spares;

/// What there is of an incarnation of which nothing has run.
#[derive(Debug)]
pub(crate) enum Before {
    /// Its making did not come to its end, or its removal.
    Half,
    Prepared(Jail),
    /// A start did not come to its end: whatever is left of it has run nothing of the guest.
    Stale(Jail),
}

/// What an incarnation's folder, its jail and the host's processes show.
pub(crate) type Situation = flames_vmm_local::Situation<Attached>;

/// One incarnation, with what only this driver knows of it.
#[derive(Debug)]
pub(crate) struct Vm {
    incarnation: Incarnation<Attached>,
    pub(crate) jail_name: JailName,
    /// This driver has made or adopted its network.
    pub(crate) has_network: AtomicBool,
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

    /// Errors: `InvalidInput` for a name that no jail can have, or that is a spare's.
    fn new(incarnation: Incarnation<Attached>) -> Result<Self> {
        let jail_name = JailName::new(incarnation.name.as_str())?;
        if jail_name.is_spare() {
            let sentence = "An incarnation's name does not begin with `flames_spare_`.";
            return Err(Error::invalid("vmm.name", "incarnation", sentence));
        }
        Ok(Self { incarnation, jail_name, has_network: AtomicBool::new(false) })
    }

    async fn situation(&self, context: &Arc<Context>) -> Result<Situation> {
        let known = self.known_or(&context.exits, self.find(context)).await?;
        // Dropped since: it lets go of what it has seen, and this it has not.
        if let Situation::Alive(attached) = &known
            && context.is_closed()
        {
            attached.detach();
        }
        Ok(known)
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
    /// Waits until nothing else changes the incarnation. `Unavailable` when that takes longer than a start and a save may.
    pub(crate) async fn turn(&self, context: &Context, operation: &'static str) -> Result<Turn> {
        let limits = &context.config.deadlines;
        let limit = limits.start + limits.machine + limits.snapshot + limits.snapshot;
        self.incarnation.turn(&*context.clock, limit, operation).await
    }

    /// What the records, the jail and the host's processes tell. `Corrupt` when the records do not.
    async fn find(&self, context: &Arc<Context>) -> Result<Situation> {
        let Some(found) = context.host().await?.jails.find(&self.jail_name).await? else {
            return Ok(Situation::Before(Before::Half));
        };
        let is_let_go = self.folder.is_let_go();
        let (jail, process) = match (found.state, found.jail) {
            (State::Damaged(error), _) => return Err(error.with_kind(ErrorKind::Corrupt)),
            (_, None) => return Ok(Situation::Before(Before::Half)),
            (State::Prepared | State::Waiting(_), Some(jail)) if !is_let_go => {
                return Ok(Situation::Before(Before::Prepared(jail)));
            }
            (State::Unfinished(_), Some(jail)) if !is_let_go => {
                return Ok(Situation::Before(Before::Stale(jail)));
            }
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
                Situation::Before(Before::Stale(jail))
            });
        };
        if !process.is_alive() {
            let exit = settle_unseen(&self.folder, &jail, Some(&process), &context.clock).await?;
            return Ok(Situation::Exited(exit));
        }
        let vmm = jail.attach(process)?;
        let found = Arc::new(Attached::new(context, self.folder.clone(), jail, vmm));
        found.listen(context, true)?;
        found.watch(context);
        Ok(Situation::Alive(found))
    }

    /// `NotFound` when there is nothing.
    pub(crate) async fn observe(&self, context: &Arc<Context>) -> Result<Observation> {
        const OPERATION: &str = "vmm.observe";
        let unprepared = |phase| seen(phase, Prepared::default());
        if !self.folder.exists() {
            // Something of it may be left by a removal that was cut short.
            let left = context.host().await?.jails.find(&self.jail_name).await?;
            return left.map_or_else(|| Err(self.not_found(OPERATION)), |_| Ok(unprepared(Phase::Unknown)));
        }
        if self.is_starting() {
            return Ok(unprepared(Phase::Starting));
        }
        let situation = match self.folder.spec() {
            Ok(_) => self.situation(context).await,
            Err(error) => Err(error),
        };
        let before = |before| match before {
            Before::Half => Phase::Unknown,
            Before::Prepared(_) => Phase::Prepared,
            Before::Stale(_) => Phase::Starting,
        };
        match situation {
            // It may have been destroyed since.
            Err(_) | Ok(Situation::Before(Before::Half)) if !self.folder.exists() => {
                Err(self.not_found(OPERATION))
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => Err(error),
            Err(_) => Ok(unprepared(Phase::Unknown)),
            Ok(situation) => self.observed(situation, Prepared::default(), before).await,
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
            Situation::Before(Before::Half) => {
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
            Situation::Before(Before::Stale(jail)) => {
                self.forget_start(&jail).await?;
                jail
            }
            Situation::Before(Before::Prepared(jail)) => jail,
        };
        let _starting = self.starting();
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
                attached.watch(&context);
                self.attach(&attached, &context.exits).await;
                // As in `situation`.
                if context.is_closed() {
                    attached.detach();
                }
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
