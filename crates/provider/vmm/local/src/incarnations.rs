//! All incarnations of one driver, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use flames_error::{ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::failed;
use flames_vmm::{BootSource, Found, IncarnationName, Observation, Phase, Prepared};
use futures::StreamExt;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::folder::Folder;
use crate::incarnation::{Incarnation, OnHost, seen};

/// How many incarnations are looked at at once by `adopt`.
const ADOPTED_AT_ONCE: usize = 16;

/// The incarnations that a driver works with. When this is dropped their monitors run on, and the tasks that followed them end.
#[derive(Debug)]
pub struct Incarnations<V: OnHost> {
    root: PathBuf,
    table: Mutex<BTreeMap<IncarnationName, Arc<V>>>,
    /// `adopt` clears away what is half made or half removed; nothing is being made or removed meanwhile.
    making: Arc<RwLock<()>>,
}

impl<V: OnHost> Drop for Incarnations<V> {
    fn drop(&mut self) {
        for vm in self.table.lock().unwrap_or_else(PoisonError::into_inner).values() {
            vm.detach();
        }
    }
}

/// Forgets an incarnation that has no folder and no monitor, once no other call is at work on it.
struct Forget<'a, V: OnHost> {
    incarnations: &'a Incarnations<V>,
    name: &'a IncarnationName,
}

impl<V: OnHost> Drop for Forget<'_, V> {
    fn drop(&mut self) {
        let mut table = self.incarnations.table.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = |vm: &Arc<V>| Arc::strong_count(vm) == 1 && !vm.is_followed() && !vm.folder.exists();
        if table.get(self.name).is_some_and(is_idle) {
            table.remove(self.name);
        }
    }
}

impl<V: OnHost> Incarnations<V> {
    /// Those with a folder below `root`; nothing is looked at yet.
    pub fn new(root: PathBuf) -> Self {
        Self { root, table: Mutex::default(), making: Arc::default() }
    }

    /// Runs a call on an incarnation, whether anything is known of it or not, and forgets it afterwards when nothing of it is on the host.
    ///
    /// Errors: those of [`OnHost::new`], and of the call.
    pub async fn on<'a, T, F>(
        &'a self,
        name: &'a IncarnationName,
        call: impl FnOnce(Arc<V>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>> + 'a,
    {
        let vm = self.get(name)?;
        let _forget = Forget { incarnations: self, name };
        call(vm).await
    }

    fn get(&self, name: &IncarnationName) -> Result<Arc<V>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vm) = table.get(name) {
            return Ok(Arc::clone(vm));
        }
        let vm = V::new(Incarnation::new(name.clone(), Folder::of(&self.root, name)))?;
        let vm = Arc::new(vm);
        table.insert(name.clone(), Arc::clone(&vm));
        Ok(vm)
    }

    /// Held by whoever makes or removes an incarnation, for as long as that may be half done.
    pub async fn making(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.making).read_owned().await
    }

    /// Held by whoever takes away what is half made or half removed: waits until no call of this driver makes or removes anything.
    pub async fn clearing(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.making).write_owned().await
    }

    /// The names of all that have a folder. What has no incarnation's name is not ours.
    ///
    /// Errors: `Internal` when the driver's folder cannot be listed.
    pub async fn names(&self) -> Result<BTreeSet<IncarnationName>> {
        let root = self.root.clone();
        blocking(move || names_in(&root)).await
    }

    /// The kernels and initramfs that the incarnations on this host were prepared with, by what `boot` reads in their folders.
    ///
    /// Errors: `Internal` when the driver's folder cannot be listed; those of `boot`.
    pub async fn boot_files(
        &self,
        boot: impl Fn(&Folder) -> Result<BootSource> + Send + 'static,
    ) -> Result<BTreeSet<PathBuf>> {
        let root = self.root.clone();
        blocking(move || {
            let mut files = BTreeSet::new();
            for name in names_in(&root)? {
                let boot = boot(&Folder::of(&root, &name))?;
                files.insert(boot.kernel);
                files.extend(boot.initramfs);
            }
            Ok(files)
        })
        .await
    }

    /// What `adopt` finds: an observation of each name, in order. One that cannot be observed is [`Phase::Unknown`]; one that is gone
    /// meanwhile is not found.
    pub async fn found<F>(
        &self,
        names: BTreeSet<IncarnationName>,
        observe: impl Fn(IncarnationName) -> F + Send,
    ) -> Vec<Found>
    where
        F: Future<Output = Result<Observation>> + Send,
    {
        let found = futures::stream::iter(names).map(|incarnation| {
            let observed = observe(incarnation.clone());
            async move {
                let observation = match observed.await {
                    Ok(observation) => observation,
                    Err(error) if error.kind() == ErrorKind::NotFound => return None,
                    Err(_) => seen(Phase::Unknown, Prepared::default()),
                };
                Some(Found { incarnation, observation })
            }
        });
        found.buffered(ADOPTED_AT_ONCE).filter_map(|found| async { found }).collect().await
    }
}

fn names_in(root: &Path) -> Result<BTreeSet<IncarnationName>> {
    let unreadable = |error| failed("the driver's folder cannot be listed", error);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(root).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        names.extend(name.to_str().and_then(|name| IncarnationName::new(name).ok()));
    }
    Ok(names)
}
