//! IngressProvider that only remembers its routes: the default, and the reference answer.
//!
//! It takes every target and forwards nothing, so no registration has a URL. Its table is as long as what it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use flames_error::{Error, ErrorKind, Result};
use flames_ingress::{
    IngressCapabilities, IngressProvider, MAX_PAGE, Registration, RegistrationPage, Route, RouteKey,
    RouteOwner, Target,
};

/// A table of routes that nothing is forwarded by.
#[derive(Default)]
pub struct NoopIngress {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    routes: BTreeMap<RouteKey, Registration>,
    /// Which routes name a host: all of one VM.
    hosts: BTreeMap<String, BTreeSet<RouteKey>>,
}

impl NoopIngress {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debug for NoopIngress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NoopIngress").field("routes", &self.lock().routes.len()).finish()
    }
}

impl Table {
    fn owner_of(&self, host: &str) -> Option<&RouteOwner> {
        self.hosts.get(host)?.first().map(|key| &key.vm)
    }

    fn remove(&mut self, key: &RouteKey) {
        let Some(registration) = self.routes.remove(key) else { return };
        for host in registration.route.hosts {
            if let Some(keys) = self.hosts.get_mut(&host) {
                keys.remove(key);
                if keys.is_empty() {
                    self.hosts.remove(&host);
                }
            }
        }
    }

    fn of<'t>(&'t self, vm: &'t RouteOwner) -> impl Iterator<Item = (&'t RouteKey, &'t Registration)> {
        let from = RouteKey { vm: vm.clone(), port: 0 };
        self.routes.range(from..).take_while(move |(key, _)| key.vm == *vm)
    }
}

#[async_trait]
impl IngressProvider for NoopIngress {
    fn name(&self) -> &'static str {
        "noop"
    }

    fn capabilities(&self) -> IngressCapabilities {
        IngressCapabilities { forwards: false, guest_targets: true }
    }

    async fn register(&self, route: Route, target: Target) -> Result<Registration> {
        route.validate()?;
        let mut table = self.lock();
        for host in &route.hosts {
            if table.owner_of(host).is_some_and(|owner| *owner != route.key.vm) {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    "ingress.register",
                    "the host name belongs to another VM's route",
                )
                .with_resource("host", host)
                .with_field("hosts"));
            }
        }
        table.remove(&route.key);
        for host in &route.hosts {
            table.hosts.entry(host.clone()).or_default().insert(route.key.clone());
        }
        let registration = Registration { route, target, url: None };
        table.routes.insert(registration.route.key.clone(), registration.clone());
        Ok(registration)
    }

    async fn unregister_port(&self, key: &RouteKey) -> Result<()> {
        self.lock().remove(key);
        Ok(())
    }

    async fn unregister(&self, vm: &RouteOwner) -> Result<()> {
        let mut table = self.lock();
        let keys: Vec<RouteKey> = table.of(vm).map(|(key, _)| key.clone()).collect();
        for key in keys {
            table.remove(&key);
        }
        Ok(())
    }

    async fn unregister_target(&self, key: &RouteKey, target: &Target) -> Result<bool> {
        let mut table = self.lock();
        let leads_there = table.routes.get(key).is_some_and(|standing| standing.target == *target);
        if leads_there {
            table.remove(key);
        }
        Ok(leads_there)
    }

    async fn get(&self, vm: &RouteOwner) -> Result<Vec<Registration>> {
        Ok(self.lock().of(vm).map(|(_, registration)| registration.clone()).collect())
    }

    async fn list(&self, after: Option<&RouteKey>, limit: usize) -> Result<RegistrationPage> {
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(Error::invalid("ingress.list", "limit", "A page has 1 to 1,000 routes."));
        }
        let table = self.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut behind = table.routes.range((from, Bound::Unbounded));
        let registrations: Vec<Registration> = behind.by_ref().take(limit).map(|(_, r)| r.clone()).collect();
        let next = behind.next().and(registrations.last()).map(|last| last.route.key.clone());
        Ok(RegistrationPage { registrations, next })
    }
}
