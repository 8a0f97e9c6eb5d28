//! One incarnation on this host. Its truth is on the host; this holds connections and order.

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use flames_error::{Error, ErrorKind, Result};
use flames_vmm::{Exit, IncarnationName, Observation, Phase, Prepared, Stats};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::exits::Exits;
use crate::folder::Folder;
use crate::monitor::Monitor;

/// Between two looks whether a folder's lock is free.
const LOOK: Duration = Duration::from_millis(2);

/// What an incarnation's records and the host's processes show.
#[derive(Debug)]
pub enum Situation<M: Monitor> {
    /// Nothing has run; what there is, is the driver's own.
    Before(M::Before),
    /// It has a monitor.
    Alive(Arc<M>),
    /// It had one.
    Exited(Exit),
}

/// What a driver knows of an incarnation: an [`Incarnation`], and what is the driver's own.
pub trait OnHost: Deref<Target = Incarnation<Self::Monitor>> + Sized + Send + Sync + 'static {
    /// What is connected to while it lives.
    type Monitor: Monitor;
    /// What all parts of the driver share.
    type Context: Send + Sync;

    /// Errors: `InvalidInput` for a name that no incarnation of this driver can have.
    fn new(incarnation: Incarnation<Self::Monitor>) -> Result<Self>;

    /// What is true now; see [`Incarnation::known_or`].
    ///
    /// Errors: `Corrupt` when the records do not tell.
    fn situation(
        &self,
        context: &Arc<Self::Context>,
    ) -> impl Future<Output = Result<Situation<Self::Monitor>>> + Send;

    /// The monitor, when there is one. Errors: `NotFound` when there is no such incarnation; `Conflict` when it does not run.
    fn alive(
        &self,
        context: &Arc<Self::Context>,
        operation: &'static str,
    ) -> impl Future<Output = Result<Arc<Self::Monitor>>> + Send {
        async move {
            if !self.folder.exists() {
                return Err(self.not_found(operation));
            }
            match self.situation(context).await? {
                Situation::Alive(monitor) => Ok(monitor),
                Situation::Before(_) => Err(self.conflict(operation, "it was not started")),
                Situation::Exited(_) => Err(self.conflict(operation, "it has exited")),
            }
        }
    }
}

/// The right to change an incarnation.
pub type Turn = OwnedMutexGuard<()>;

/// Marks a start as on its way for as long as it lives.
#[derive(Debug)]
pub struct Starting<'a>(&'a AtomicBool);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What every driver holds of one incarnation.
#[derive(Debug)]
pub struct Incarnation<M> {
    /// Its name.
    pub name: IncarnationName,
    /// Its folder, whether it is there or not.
    pub folder: Folder,
    /// Held by whatever changes the incarnation; see [`Incarnation::turn`].
    operation: Arc<Mutex<()>>,
    attached: Arc<Mutex<Option<Arc<M>>>>,
    /// A `start` is on its way, whose monitor is not attached yet.
    starting: AtomicBool,
}

impl<M: Monitor> Incarnation<M> {
    /// Nothing is looked at yet.
    pub fn new(name: IncarnationName, folder: Folder) -> Self {
        Self {
            name,
            folder,
            operation: Arc::default(),
            attached: Arc::default(),
            starting: AtomicBool::new(false),
        }
    }

    /// The error of a call on what is not there.
    pub fn not_found(&self, operation: &'static str) -> Error {
        Error::not_found(operation, "incarnation", self.name.as_str())
    }

    /// The error of a call that the incarnation's state does not admit.
    pub fn conflict(&self, operation: &'static str, message: &str) -> Error {
        Error::new(ErrorKind::Conflict, operation, message).with_resource("incarnation", self.name.as_str())
    }

    /// The error of a call that waits for an end that does not come.
    pub fn does_not_end(&self, operation: &'static str) -> Error {
        Error::unavailable(operation, "the monitor does not end")
            .with_resource("incarnation", self.name.as_str())
    }

    /// Waits until nothing else changes the incarnation. Errors: `Unavailable` when that takes longer than `limit`.
    pub async fn turn(&self, clock: &dyn Clock, limit: Duration, operation: &'static str) -> Result<Turn> {
        self.waited(clock, limit, operation, Arc::clone(&self.operation).lock_owned()).await
    }

    /// As [`Incarnation::turn`], and with the folder's lock, when there is a folder: against a driver that was dropped, in this process or
    /// another, and has work on its way. Such work takes both along.
    pub async fn turn_with_lock(
        &self,
        clock: &dyn Clock,
        limit: Duration,
        operation: &'static str,
    ) -> Result<(Turn, Option<OwnedFd>)> {
        let wait = async {
            let turn = Arc::clone(&self.operation).lock_owned().await;
            loop {
                match self.folder.try_lock() {
                    Ok(Some(folder)) => return (turn, Some(folder)),
                    Ok(None) => clock.sleep(LOOK).await,
                    // There is no folder (yet), or garbage in its place.
                    Err(_) => return (turn, None),
                }
            }
        };
        self.waited(clock, limit, operation, wait).await
    }

    async fn waited<T>(
        &self,
        clock: &dyn Clock,
        limit: Duration,
        operation: &'static str,
        wait: impl Future<Output = T> + Send,
    ) -> Result<T> {
        clock.timeout(limit, wait).await.map_err(|late| {
            Error::unavailable(operation, "another call on this incarnation does not end")
                .with_resource("incarnation", self.name.as_str())
                .with_source(late)
        })
    }

    /// A start is on its way until what this gives is dropped.
    pub fn starting(&self) -> Starting<'_> {
        self.starting.store(true, Ordering::Release);
        Starting(&self.starting)
    }

    /// Whether a start is on its way.
    pub fn is_starting(&self) -> bool {
        self.starting.load(Ordering::Acquire)
    }
}

impl<M: Monitor> Incarnation<M> {
    /// Whether a monitor is followed, or looked for. Then it is not forgotten.
    pub(crate) fn is_followed(&self) -> bool {
        self.attached.try_lock().map_or(true, |attached| attached.is_some())
    }

    /// What is true now: what the record of its exit or the monitor that is followed tells, else what `find` finds on the host. A monitor
    /// that it finds is followed from then on. One call of all looks at a time, so that no monitor is followed twice.
    ///
    /// Errors: `Corrupt` when the records do not tell; those of `find`, and of [`Monitor::exit`].
    pub async fn known_or(
        &self,
        exits: &Exits,
        find: impl Future<Output = Result<Situation<M>>> + Send,
    ) -> Result<Situation<M>> {
        let mut attached = self.attached.lock().await;
        if let Some(exit) = self.folder.exit()? {
            return Ok(Situation::Exited(exit));
        }
        if let Some(monitor) = attached.as_ref() {
            if monitor.process().is_alive() {
                return Ok(Situation::Alive(Arc::clone(monitor)));
            }
            return match monitor.left_before() {
                None => Ok(Situation::Exited(monitor.exit().await?)),
                Some(before) => Ok(Situation::Before(before)),
            };
        }
        let found = find.await?;
        if let Situation::Alive(monitor) = &found {
            *attached = Some(Arc::clone(monitor));
            self.follow(monitor, exits);
        }
        Ok(found)
    }

    /// Follows a monitor that was started. Within a runtime.
    pub async fn attach(&self, monitor: &Arc<M>, exits: &Exits) {
        *self.attached.lock().await = Some(Arc::clone(monitor));
        self.follow(monitor, exits);
    }

    /// Waits for the monitor's end, notes it and tells of it. Called once it is where [`Incarnation::detach`] finds it.
    fn follow(&self, monitor: &Arc<M>, exits: &Exits) {
        let (attached, followed) = (Arc::clone(&self.attached), Arc::clone(monitor));
        let (name, exits) = (self.name.clone(), exits.clone());
        let task = tokio::spawn(async move {
            // One that has run nothing is cleared away by whoever started it, or by the next start.
            if followed.process().ended().await.is_ok() && followed.left_before().is_none() {
                // What cannot be noted now is found out by the next call that looks.
                let _ = followed.exit().await;
                exits.tell(name);
                // The record tells of it from now on; the descriptors are let go.
                attached.lock().await.take();
            }
        });
        monitor.ties().followed_by(task.abort_handle());
    }

    /// Lets the monitor be, once no other call is looking for it; it runs on.
    pub async fn release(&self) {
        if let Some(monitor) = self.attached.lock().await.take() {
            monitor.detach();
        }
    }

    /// Lets the monitor be, unless a call is looking for it; it runs on.
    pub fn detach(&self) {
        if let Ok(mut attached) = self.attached.try_lock()
            && let Some(monitor) = attached.take()
        {
            monitor.detach();
        }
    }

    /// What is observed of an incarnation in this situation. `before` tells the phase of one of which nothing has run.
    ///
    /// Errors: those of [`Monitor::exit`].
    pub async fn observed(
        &self,
        situation: Situation<M>,
        prepared: Prepared,
        before: impl FnOnce(M::Before) -> Phase,
    ) -> Result<Observation> {
        let exited = |exit, prepared| Observation { exit: Some(exit), ..seen(Phase::Exited, prepared) };
        match situation {
            Situation::Before(found) => Ok(seen(before(found), prepared)),
            Situation::Exited(exit) => Ok(exited(exit, prepared)),
            Situation::Alive(monitor) => match monitor.look().await {
                Some(phase) => {
                    let pid = Some(monitor.process().identity().pid);
                    Ok(Observation { pid, ..seen(phase, prepared) })
                }
                // It has ended while it was asked.
                None => Ok(exited(monitor.exit().await?, prepared)),
            },
        }
    }

    /// What the monitor's process takes of the host. Errors: `Conflict` when it has just ended.
    pub fn stats(&self, monitor: &M) -> Result<Stats> {
        let usage = monitor.process().usage();
        let (resident_bytes, cpu_time, uptime) = usage
            .map_err(|error| self.conflict("vmm.stats", "its process has just ended").with_source(error))?;
        Ok(Stats { resident_bytes, cpu_time, uptime })
    }
}

/// An observation without a monitor and without an exit.
pub fn seen(phase: Phase, prepared: Prepared) -> Observation {
    Observation { phase, exit: None, pid: None, prepared }
}
