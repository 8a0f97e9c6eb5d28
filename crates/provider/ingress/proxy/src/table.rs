//! The table of routes.
//!
//! Two views of one thing. The *control* view, under a lock, is ordered: it answers `list` and decides who owns a host name. The
//! *data* view is what requests read, without a lock: host names spread over [`SHARDS`] maps, each behind an `ArcSwap`. A change
//! copies the one shard that it touches (about a hundred entries at 100,000 routes) and is seen by the next request.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use flames_error::{Error, ErrorKind, Result};
use flames_ingress::{Registration, RegistrationPage, Route, RouteKey, RouteOwner, Target};
use tokio::sync::watch;

use crate::upstream::Upstream;

const SHARDS: usize = 1_024;

/// A route as requests see it.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) key: RouteKey,
    pub(crate) upstream: Arc<Upstream>,
}

type Shard = HashMap<Arc<str>, Arc<Live>, RandomState>;

/// Names and where they lead, for reading without a lock.
struct Names {
    hasher: RandomState,
    shards: Box<[ArcSwap<Shard>]>,
}

impl Names {
    fn new() -> Self {
        let hasher = RandomState::new();
        let empty = Arc::new(Shard::with_hasher(hasher.clone()));
        let shards = (0..SHARDS).map(|_| ArcSwap::new(Arc::clone(&empty))).collect();
        Self { hasher, shards }
    }

    fn shard(&self, name: &str) -> &ArcSwap<Shard> {
        // The upper bits: the maps themselves use the lower ones.
        let hash = self.hasher.hash_one(name) >> 32;
        &self.shards[hash as usize % SHARDS]
    }

    fn get(&self, name: &str) -> Option<Arc<Live>> {
        self.shard(name).load().get(name).cloned()
    }

    /// Only called under the control view's lock, so that no change is lost.
    fn set(&self, name: &str, live: Option<Arc<Live>>) {
        let shard = self.shard(name);
        let mut changed = Shard::clone(&shard.load());
        match live {
            Some(live) => changed.insert(Arc::from(name), live),
            None => changed.remove(name),
        };
        shard.store(Arc::new(changed));
    }
}

struct Standing {
    registration: Registration,
    live: Arc<Live>,
}

#[derive(Default)]
struct Control {
    routes: BTreeMap<RouteKey, Standing>,
    /// Which routes name a host: all of one VM. The one with the lowest port answers.
    hosts: HashMap<String, BTreeSet<RouteKey>>,
}

/// What a change took out of use.
#[derive(Debug)]
pub(crate) enum Retired {
    /// Its route leads elsewhere now.
    Replaced(Arc<Upstream>),
    /// Its route is gone.
    Removed(Arc<Upstream>),
}

/// The table. See the module's docs.
pub(crate) struct Table {
    domain: String,
    control: Mutex<Control>,
    custom: Names,
    /// By `{port}-{vm}`.
    conventional: Names,
    changes: watch::Sender<u64>,
}

impl Table {
    pub(crate) fn new(domain: String) -> Self {
        Self {
            domain,
            control: Mutex::default(),
            custom: Names::new(),
            conventional: Names::new(),
            changes: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The route that answers under a host name (lower case, without a port).
    pub(crate) fn find(&self, host: &str) -> Option<Arc<Live>> {
        self.custom.get(host).or_else(|| {
            let label = self.conventional_label(host)?;
            self.conventional.get(label).or_else(|| {
                // `8080-vm-0a1b…` for `8080-vm_0a1b…`: an underscore is not allowed in a host name (RFC 1123, section 2.1).
                let (port, vm) = label.split_once('-')?;
                let (prefix, rest) = vm.split_once('-')?;
                self.conventional.get(&format!("{port}-{prefix}_{rest}"))
            })
        })
    }

    /// `{port}-{vm}` of `{port}-{vm}.{domain}`.
    fn conventional_label<'h>(&self, host: &'h str) -> Option<&'h str> {
        let label = host.strip_suffix(self.domain.as_str())?.strip_suffix('.')?;
        let digits = label.bytes().take_while(u8::is_ascii_digit).count();
        let is_one = !label.contains('.') && digits > 0 && label.as_bytes().get(digits) == Some(&b'-');
        is_one.then_some(label)
    }

    /// The host name that a port of a VM has by convention.
    pub(crate) fn conventional_host(&self, key: &RouteKey) -> String {
        let vm = key.vm.as_str();
        let dashed = vm.replacen('_', "-", 1);
        // Only where it can be read back: the first dash stands for the only underscore.
        let readable = !dashed.contains('_') && vm.find('_').is_some_and(|at| !vm[..at].contains('-'));
        format!("{}-{}.{}", key.port, if readable { &dashed } else { vm }, self.domain)
    }

    /// Told of every change, after it can be seen.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().routes.len()
    }

    /// Sets a route; `upstream` makes what leads to the target when the standing one leads elsewhere.
    pub(crate) fn register(
        &self,
        route: Route,
        target: Target,
        url: String,
        upstream: impl FnOnce(&Target) -> Arc<Upstream>,
    ) -> Result<(Registration, Option<Retired>)> {
        const OPERATION: &str = "ingress.register";
        route.validate()?;
        if route.hosts.iter().any(|host| self.conventional_label(host).is_some() || *host == self.domain) {
            let sentence = "Names of the form `{port}-{vm}` under the proxy's own domain belong to the VMs that they name.";
            return Err(Error::invalid(OPERATION, "hosts", sentence));
        }
        let mut control = self.lock();
        for host in &route.hosts {
            let owner = control.hosts.get(host).and_then(BTreeSet::first);
            if owner.is_some_and(|owner| owner.vm != route.key.vm) {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    OPERATION,
                    "the host name belongs to another VM's route",
                )
                .with_resource("host", host)
                .with_field("hosts")
                .with_user_message("This host name is in use by another VM."));
            }
        }
        let registration = Registration { route, target, url: Some(url) };
        let old = control.routes.get(&registration.route.key);
        if old.is_some_and(|old| old.registration == registration) {
            return Ok((registration, None));
        }
        let kept = old.filter(|old| old.registration.target == registration.target);
        let upstream =
            kept.map_or_else(|| upstream(&registration.target), |kept| Arc::clone(&kept.live.upstream));
        let live = Arc::new(Live { key: registration.route.key.clone(), upstream });
        let standing = Standing { registration: registration.clone(), live: Arc::clone(&live) };
        let old = control.routes.insert(live.key.clone(), standing);

        let mut touched: BTreeSet<&str> = registration.route.hosts.iter().map(String::as_str).collect();
        for host in &registration.route.hosts {
            control.hosts.entry(host.clone()).or_default().insert(live.key.clone());
        }
        if let Some(old) = &old {
            for host in &old.registration.route.hosts {
                if touched.insert(host) {
                    control.free(host, &live.key);
                }
            }
        }
        for host in touched {
            self.custom.set(host, control.answering(host));
        }
        self.conventional.set(&label(&live.key), Some(Arc::clone(&live)));
        drop(control);
        self.changes.send_modify(|change| *change += 1);
        let retired = old.map(|old| Arc::clone(&old.live.upstream));
        let retired = retired.filter(|old| !Arc::ptr_eq(old, &live.upstream)).map(Retired::Replaced);
        Ok((registration, retired))
    }

    /// Removes a route, when it is there and `wanted` says so of its target.
    pub(crate) fn remove(&self, key: &RouteKey, wanted: impl FnOnce(&Target) -> bool) -> Option<Retired> {
        let mut control = self.lock();
        if !control.routes.get(key).is_some_and(|standing| wanted(&standing.registration.target)) {
            return None;
        }
        let standing = control.routes.remove(key)?;
        for host in &standing.registration.route.hosts {
            control.free(host, key);
            self.custom.set(host, control.answering(host));
        }
        self.conventional.set(&label(key), None);
        drop(control);
        self.changes.send_modify(|change| *change += 1);
        Some(Retired::Removed(Arc::clone(&standing.live.upstream)))
    }

    pub(crate) fn of(&self, vm: &RouteOwner) -> Vec<Registration> {
        let from = RouteKey { vm: vm.clone(), port: 0 };
        let control = self.lock();
        let own = control.routes.range(from..).take_while(|(key, _)| key.vm == *vm);
        own.map(|(_, standing)| standing.registration.clone()).collect()
    }

    pub(crate) fn page(&self, after: Option<&RouteKey>, limit: usize) -> RegistrationPage {
        let control = self.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut behind = control.routes.range((from, Bound::Unbounded));
        let registrations: Vec<Registration> =
            behind.by_ref().take(limit).map(|(_, standing)| standing.registration.clone()).collect();
        let next = behind.next().and(registrations.last()).map(|last| last.route.key.clone());
        RegistrationPage { registrations, next }
    }
}

impl Control {
    fn free(&mut self, host: &str, key: &RouteKey) {
        if let Some(keys) = self.hosts.get_mut(host) {
            keys.remove(key);
            if keys.is_empty() {
                self.hosts.remove(host);
            }
        }
    }

    fn answering(&self, host: &str) -> Option<Arc<Live>> {
        let key = self.hosts.get(host)?.first()?;
        self.routes.get(key).map(|standing| Arc::clone(&standing.live))
    }
}

fn label(key: &RouteKey) -> String {
    format!("{}-{}", key.port, key.vm)
}
