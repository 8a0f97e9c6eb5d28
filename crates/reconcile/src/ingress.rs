//! Keeps the table of an ingress as the VMs are: each port of a VM that runs (or is paused) leads to its current incarnation, and nothing else is
//! routed.
//!
//! One VM is looked at when it is hinted that it changed; all are, against all that the ingress has, when hints were lost and on a timer.
//! That repairs whatever drifted: an ingress that forgot its table, a route left by a process that is gone. Each replica keeps
//! its own ingress so; over one that replicas share, they repeat each other's calls, which are idempotent, and one that acted on a state that
//! was over sets it right at its next pass.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use flames_error::{ErrorKind, Result};
use flames_ingress::{IngressProvider, Registration, Route, RouteKey, RouteOwner, Target};
use flames_model::{Incarnation, IncarnationState, ProjectName, Vm, VmId, VmSpec, VmState};
use flames_records::{Hint, HintStream, MAX_PAGE, Records, VmEntry, VmFilter};
use flames_service::LinkTarget;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// After hints were lost, others may be: what they would have told is gathered this long.
const GATHER: Duration = Duration::from_millis(200);
/// How long one call of the ingress may take.
const CALL: Duration = Duration::from_secs(10);

/// How routes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteConfig {
    /// How often the whole table is compared, though nothing was hinted.
    pub every: Duration,
}

impl Default for RouteConfig {
    fn default() -> Self {
        Self { every: Duration::from_secs(30) }
    }
}

/// The VMs that rest (are stopped or paused) and are woken by a request for one of their ports. Who keeps the routes keeps it true; an ingress
/// asks it at each request, so it answers from memory.
#[derive(Debug, Default)]
pub struct RestingVms(watch::Sender<HashSet<VmId>>);

impl RestingVms {
    /// Whether a request for this VM is to wake it.
    pub fn contains(&self, vm: VmId) -> bool {
        self.0.borrow().contains(&vm)
    }

    /// Waits until a request for this VM finds it awake, and its routes with it. Cancel-safe.
    pub async fn awake(&self, vm: VmId) {
        // The sender lives as long as this.
        let _ = self.0.subscribe().wait_for(|resting| !resting.contains(&vm)).await;
    }

    fn set(&self, vm: VmId, rests: bool) {
        self.0.send_if_modified(|vms| if rests { vms.insert(vm) } else { vms.remove(&vm) });
    }

    /// Forgets all but these.
    fn retain(&self, known: &HashSet<VmId>) {
        self.0.send_if_modified(|vms| {
            let before = vms.len();
            vms.retain(|vm| known.contains(vm));
            vms.len() != before
        });
    }
}

/// Whether a request for one of its ports wakes it. One that failed would fail again with each request.
fn rests(entry: &VmEntry) -> bool {
    let VmSpec { wake_on_request, ports, .. } = &*entry.vm.spec;
    *wake_on_request && !ports.is_empty() && matches!(entry.state(), VmState::Stopped | VmState::Paused)
}

/// The one who keeps the routes.
pub(crate) struct RouteKeeper {
    pub(crate) records: Records,
    pub(crate) ingress: Arc<dyn IngressProvider>,
    pub(crate) resting: Arc<RestingVms>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: RouteConfig,
    pub(crate) project: ProjectName,
}

pub(crate) async fn run(keeper: RouteKeeper, stop: CancellationToken) {
    let keeping = async {
        loop {
            match keeper.subscribe().await {
                Ok(hints) => keeper.follow(hints).await,
                Err(error) => {
                    tracing::warn!(%error, "changes of VMs cannot be followed; routes are looked at by the timer");
                    keeper.compare_all_or_log().await;
                }
            }
            keeper.clock.sleep(keeper.config.every).await;
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = keeping => {}
    }
}

impl RouteKeeper {
    async fn subscribe(&self) -> Result<HintStream> {
        self.records.changes(&Records::vms_prefix(&self.project)?).await
    }

    /// Until the hints end.
    async fn follow(&self, mut hints: HintStream) {
        self.compare_all_or_log().await;
        let mut next_pass = self.clock.monotonic().saturating_add(self.config.every);
        loop {
            let left = next_pass.saturating_since(self.clock.monotonic());
            let mut hint = tokio::select! {
                biased;
                hint = hints.next() => hint,
                () = self.clock.sleep(left) => Some(Hint::Lost),
            };
            // Several changes of one VM are one look at it.
            let mut changed = BTreeSet::new();
            let mut lost = false;
            loop {
                match hint {
                    Some(Hint::Changed(key)) => changed.extend(Records::vm_of_key(&self.project, &key)),
                    Some(Hint::Lost) => lost = true,
                    None => return,
                }
                match hints.next().now_or_never() {
                    Some(next) => hint = next,
                    None => break,
                }
            }
            if lost {
                self.clock.sleep(GATHER).await;
                while let Some(Some(_)) = hints.next().now_or_never() {}
                self.compare_all_or_log().await;
                next_pass = self.clock.monotonic().saturating_add(self.config.every);
                continue;
            }
            for vm in changed {
                if let Err(error) = self.look_at(vm).await {
                    tracing::warn!(%error, %vm, "its routes are not as they should be; they are looked at again");
                    next_pass = self.clock.monotonic().saturating_add(GATHER);
                }
            }
        }
    }

    /// Makes one VM's routes what they should be.
    async fn look_at(&self, id: VmId) -> Result<()> {
        let entry = self.records.vm(&self.project, id).await?;
        let owner = RouteOwner::new(id.to_string())?;
        let known = self.call("get", self.ingress.get(&owner)).await?;
        let rests = entry.as_ref().is_some_and(rests);
        if rests {
            self.resting.set(id, true);
        }
        let converged = self.converge(&owner, entry.as_ref(), known).await;
        // Last: a request that finds it awake finds its route too.
        if !rests {
            self.resting.set(id, false);
        }
        converged
    }

    async fn compare_all_or_log(&self) {
        if let Err(error) = self.compare_all().await {
            tracing::warn!(%error, "the routes were not all compared; they are again later");
        }
    }

    /// Compares every route and every VM.
    async fn compare_all(&self) -> Result<()> {
        // What is routed is read first: of a VM that comes up meanwhile, the routes are missing here and registered once more below.
        let mut routed = self.routed().await?;
        let mut after = None;
        let mut failed = None;
        let mut resting = HashSet::new();
        loop {
            let page =
                self.records.list_vms(&self.project, &VmFilter::default(), after, MAX_PAGE / 2).await?;
            for entry in &page.items {
                let owner = RouteOwner::new(entry.vm.id.to_string())?;
                if rests(entry) {
                    resting.insert(entry.vm.id);
                    self.resting.set(entry.vm.id, true);
                }
                let known = routed.remove(&owner).unwrap_or_default();
                if known.is_empty() && entry.vm.spec.ports.is_empty() {
                    continue;
                }
                // One VM whose name is another's must not keep the others from their routes.
                failed = self.converge(&owner, Some(entry), known).await.err().or(failed);
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        self.resting.retain(&resting);
        for owner in routed.into_keys() {
            // Not among the VMs a moment ago; it may be by now.
            failed = match owner.as_str().parse::<VmId>() {
                Ok(id) => self.look_at(id).await,
                Err(_) => self.call("unregister", self.ingress.unregister(&owner)).await,
            }
            .err()
            .or(failed);
        }
        failed.map_or(Ok(()), Err)
    }

    async fn routed(&self) -> Result<BTreeMap<RouteOwner, Vec<Registration>>> {
        let mut routed: BTreeMap<RouteOwner, Vec<Registration>> = BTreeMap::new();
        let mut after: Option<RouteKey> = None;
        loop {
            let page = self.call("list", self.ingress.list(after.as_ref(), flames_ingress::MAX_PAGE)).await?;
            for registration in page.registrations {
                routed.entry(registration.route.key.vm.clone()).or_default().push(registration);
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(routed),
            }
        }
    }

    async fn converge(
        &self,
        owner: &RouteOwner,
        entry: Option<&VmEntry>,
        known: Vec<Registration>,
    ) -> Result<()> {
        let mut wanted = entry.map(|entry| self.wanted(entry)).unwrap_or_default();
        for registration in known {
            let Registration { route, target, .. } = registration;
            match wanted.get(&route.key.port) {
                Some(right) if *right == target && route.hosts.is_empty() => {
                    wanted.remove(&route.key.port);
                }
                // Registered again below, which replaces it.
                Some(_) => {}
                None => self.remove(&route.key, &target).await?,
            }
        }
        for (port, target) in wanted {
            let route = Route { key: RouteKey { vm: owner.clone(), port }, hosts: Vec::new() };
            self.call("register", self.ingress.register(route, target)).await?;
        }
        Ok(())
    }

    /// Removes a route unless it was given another target meanwhile.
    async fn remove(&self, key: &RouteKey, target: &Target) -> Result<()> {
        match self.call("unregister", self.ingress.unregister_target(key, target)).await {
            Err(error) if error.kind() == ErrorKind::NotSupported => {
                self.call("unregister", self.ingress.unregister_port(key)).await
            }
            other => other.map(|_| ()),
        }
    }

    /// Where each port of a VM should lead now.
    fn wanted(&self, entry: &VmEntry) -> BTreeMap<u16, Target> {
        let serves = |incarnation: &&flames_records::Versioned<Incarnation>| {
            incarnation.released_at.is_none()
                && matches!(
                    incarnation.state,
                    IncarnationState::Running | IncarnationState::Pausing | IncarnationState::Paused
                )
        };
        let Some(incarnation) = entry.incarnation.as_ref().filter(serves) else { return BTreeMap::new() };
        let ports = entry.vm.spec.ports.iter().map(|port| port.guest_port);
        ports.filter_map(|port| Some((port, self.target(&entry.vm, incarnation, port)?))).collect()
    }

    /// None: the ingress cannot dial guests, and the host publishes no address for the port.
    fn target(&self, vm: &Vm, incarnation: &Incarnation, port: u16) -> Option<Target> {
        if self.ingress.capabilities().guest_targets {
            let guest =
                LinkTarget { incarnation: incarnation.id, vm: vm.id, controller: incarnation.controller };
            return Some(Target::Guest { incarnation: guest.to_string(), port });
        }
        let published = incarnation.endpoints.iter().find(|endpoint| endpoint.guest_port == port);
        published.map(|endpoint| Target::Address(endpoint.address))
    }

    async fn call<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        self.clock.timeout(CALL, call).await.unwrap_or_else(|_| {
            Err(flames_error::Error::unavailable("reconcile.ingress", "the ingress did not answer in time")
                .with_context("call", operation))
        })
    }
}
