//! Monitors that wait for a machine: made while nobody waits, so that a start has only the machine itself to make.
//!
//! A spare is a jail with a slot, a Firecracker that answers, and a namespace with a tap. It bears a name of its own
//! ([`JailName::of_spare`]) from the first step of its making on, and loses it when it becomes a machine's. So each is one of three: in this
//! driver's list, a machine's, or left of a driver before, whose `adopt` removes it. No spare is given twice: it is taken out of the list, and
//! the list ends with its driver.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::{ClockExt, RandomExt};
use flames_error::{ErrorKind, Result};
use flames_firecracker_jail::{Jail, JailName, JailSpec, Launch, Slot, Vmm};
use flames_firecracker_network::Incarnation;
use flames_host::blocking;
use flames_vmm::MachineSpec;
use futures::StreamExt;

use crate::context::Context;
use crate::machine::{API, FOLDERS, OPEN_FILES, SERIAL, arguments, inside};
use crate::network::EmptyNamespace;

/// The most of them that may be asked for.
pub(crate) const MOST: usize = 256;
/// How long nothing was prepared or started before the next one is made, so that spares take no time from starts.
const QUIET: Duration = Duration::from_millis(20);
/// After one that could not be made: from this to that, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How many are taken away at once when the driver is gone.
const REMOVED_AT_ONCE: usize = 4;

/// One that waits.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) jail: Jail,
    vmm: Vmm,
}

impl Spare {
    /// Its name towards the networks, where the driver has networks.
    pub(crate) fn network_name(&self) -> Result<Incarnation> {
        Incarnation::new(self.jail.name().as_str())
    }
}

/// Those of one driver.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    ready: Mutex<Vec<Spare>>,
    /// Their names, from before anything of one is made until nothing bears it.
    known: Mutex<BTreeSet<JailName>>,
    is_kept: AtomicBool,
    has_ended: AtomicBool,
    /// Calls that prepare or start a machine.
    busy: AtomicUsize,
    wake: tokio::sync::Notify,
    /// Nothing bears a spare's name any more.
    gone: tokio::sync::Notify,
    /// Held while one is made.
    making: tokio::sync::Mutex<()>,
    /// Why the last one could not be made; none since one was.
    problem: Mutex<Option<String>>,
}

/// Holds the making of spares back for as long as it lives.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Context>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.spares.busy.fetch_sub(1, Ordering::AcqRel);
        self.0.spares.wake.notify_one();
    }
}

impl Spares {
    pub(crate) fn busy(context: &Arc<Context>) -> Busy {
        context.spares.busy.fetch_add(1, Ordering::AcqRel);
        Busy(Arc::clone(context))
    }

    /// Whether something bears the name, or is about to, that this driver has made for later.
    pub(crate) fn knows(&self, name: &JailName) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// How many wait.
    pub(crate) fn count(&self) -> usize {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(crate) fn forget(&self, name: &JailName) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(name);
        if known.is_empty() {
            self.gone.notify_waiters();
        }
    }

    /// Why none can be made at present.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells the operator of a problem, once as long as it is the same.
    fn note(&self, made: &Result<()>) {
        let problem =
            made.as_ref().err().map(|error| error.user_message().unwrap_or(error.message()).to_owned());
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == problem {
            return;
        }
        match made {
            Ok(()) => tracing::info!("monitors that wait for their machines can be made again"),
            Err(error) => {
                tracing::warn!(
                    ?error,
                    "a monitor that waits for its machine cannot be made: starts make their own"
                );
            }
        }
        *known = problem;
    }

    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// One that can become this machine, which is the caller's from now on; none when there is none.
    pub(crate) async fn take(context: &Arc<Context>, spec: &MachineSpec) -> Option<Spare> {
        if context.config.spare_monitors == 0 {
            return None;
        }
        let (folder, spec) = (context.config.jail.cluster_folder(), spec.clone());
        // A mount can be made only at a start.
        if !blocking(move || Ok(all_on_one_disk(&folder, &spec))).await.unwrap_or(false) {
            return None;
        }
        loop {
            let spare = context.spares.pop()?;
            if spare.vmm.process.is_alive() {
                return Some(spare);
            }
            Self::remove(context, spare.jail.name()).await;
        }
    }

    /// The machine's slot, as [`Jails::reserve`](flames_firecracker_jail::Jails::reserve); one that waits gives up its own when no other is left.
    pub(crate) async fn reserve(context: &Arc<Context>, name: &JailName) -> Result<Slot> {
        loop {
            let reserved = context.host().await?.jails.reserve(name).await;
            match reserved {
                Err(error) if error.kind() == ErrorKind::Exhausted => {
                    // One that is being made is waited for: it has a slot already, and no other is begun as long as the caller is busy.
                    let making = context.spares.making.lock().await;
                    let spare = context.spares.pop();
                    drop(making);
                    let Some(spare) = spare else { return Err(error) };
                    Self::remove(context, spare.jail.name()).await;
                }
                reserved => return reserved,
            }
        }
    }

    /// One that is nobody's any more: of the caller's alone.
    fn pop(&self) -> Option<Spare> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Makes spares from now on, as many as are wanted, until the driver is gone; those that are left are removed then.
    pub(crate) fn keep(context: &Arc<Context>) {
        if context.config.spare_monitors == 0 || context.spares.is_kept.swap(true, Ordering::AcqRel) {
            return;
        }
        let context = Arc::clone(context);
        // Ends with the driver, which wakes it.
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            while !context.is_closed() && !context.spares.has_ended.load(Ordering::Acquire) {
                if context.spares.is_enough(&context) {
                    context.spares.wake.notified().await;
                    continue;
                }
                context.clock.sleep(QUIET).await;
                let making = context.spares.making.lock().await;
                if context.spares.is_enough(&context) {
                    continue;
                }
                let made = Self::add(&context).await;
                drop(making);
                context.spares.note(&made);
                if made.is_ok() {
                    pause = FIRST_PAUSE;
                } else {
                    // Woken earlier when the driver goes.
                    let _ = context.clock.timeout(pause, context.spares.wake.notified()).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            let left =
                std::mem::take(&mut *context.spares.ready.lock().unwrap_or_else(PoisonError::into_inner));
            futures::stream::iter(left)
                .for_each_concurrent(REMOVED_AT_ONCE, |spare| {
                    let context = Arc::clone(&context);
                    async move { Self::remove(&context, spare.jail.name()).await }
                })
                .await;
        });
    }

    /// Removes those that wait, and makes no more. Returns when nothing of any of them is left, or after the deadline for a kill.
    pub(crate) async fn end(context: &Arc<Context>) {
        context.spares.has_ended.store(true, Ordering::Release);
        context.spares.wake();
        let gone = async {
            loop {
                let mut gone = std::pin::pin!(context.spares.gone.notified());
                // From here on none is missed.
                gone.as_mut().enable();
                if context.spares.known.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                    return;
                }
                gone.await;
            }
        };
        let _ = context.clock.timeout(context.config.deadlines.kill, gone).await;
    }

    fn is_enough(&self, context: &Context) -> bool {
        self.busy.load(Ordering::Acquire) > 0 || self.count() >= context.config.spare_monitors
    }

    async fn add(context: &Arc<Context>) -> Result<()> {
        let name = JailName::of_spare(context.random.next_u64());
        context.spares.known.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        let made = Self::make(context, &name).await;
        match made {
            Ok(spare) => {
                context.spares.ready.lock().unwrap_or_else(PoisonError::into_inner).push(spare);
                Ok(())
            }
            Err(error) => {
                Self::remove(context, &name).await;
                Err(error)
            }
        }
    }

    async fn make(context: &Arc<Context>, name: &JailName) -> Result<Spare> {
        let host = context.host().await?;
        let jail = host.jails.create(name, JailSpec::of_spare(OPEN_FILES)).await?;
        // What every machine has, before anything runs that could put something else in its place.
        let ready = jail.clone();
        blocking(move || FOLDERS.iter().try_for_each(|folder| ready.make_folder(&inside(*folder)?))).await?;
        drop(jail.pipe(&inside(SERIAL)?)?);
        let (namespace, _empty) = match &host.networks {
            Some(networks) => {
                let spare = Incarnation::new(name.as_str())?;
                (networks.create_spare(&spare, jail.slot().user).await?, None)
            }
            None => {
                let empty = EmptyNamespace::new().await?;
                (empty.path(), Some(empty))
            }
        };
        let launch = Launch { network_namespace: Some(namespace), arguments: arguments() };
        let vmm = jail.start_waiting(launch).await?;
        drop(jail.answering(&vmm, &inside(API)?, context.config.deadlines.start).await?);
        Ok(Spare { jail, vmm })
    }

    /// Takes away what there is of a spare. What cannot be taken away now is left to the next `adopt`.
    pub(crate) async fn remove(context: &Arc<Context>, name: &JailName) {
        let remove = async {
            let host = context.host().await?;
            host.jails.remove(name).await?;
            match &host.networks {
                Some(networks) => networks.remove(&Incarnation::new(name.as_str())?).await,
                None => Ok(()),
            }
        };
        let _: Result<()> = remove.await;
        context.spares.forget(name);
    }
}

/// Whether all files of the machine can get into a jail without a mount, as far as that can be told before.
fn all_on_one_disk(jails: &std::path::Path, spec: &MachineSpec) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &std::path::Path| path.metadata().ok().map(|found| found.dev());
    let Some(here) = device(jails) else { return false };
    std::iter::once(&spec.boot.kernel)
        .chain(&spec.boot.initramfs)
        .chain(spec.drives.iter().map(|drive| &drive.path))
        .all(|path| device(path) == Some(here))
}

#[cfg(test)]
mod tests {
    use flames_clock::{SimulatedClock, SystemRandom};

    use super::*;
    use crate::config::FirecrackerConfig;

    #[tokio::test(start_paused = true)]
    async fn an_end_is_woken_when_the_last_one_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let config = FirecrackerConfig::new(folder.path(), "clu");
        let context = Arc::new(Context::new(
            config,
            Arc::new(SimulatedClock::at_fixed_start()),
            Arc::new(SystemRandom),
        ));
        let names = [JailName::of_spare(1), JailName::of_spare(2)];
        context.spares.known.lock().unwrap().extend(names.clone());
        let begun = tokio::time::Instant::now();
        let ending = tokio::spawn({
            let context = Arc::clone(&context);
            async move { Spares::end(&context).await }
        });
        for name in &names {
            tokio::task::yield_now().await;
            assert!(!ending.is_finished());
            context.spares.forget(name);
        }
        ending.await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO, "no time had to pass");
    }
}
