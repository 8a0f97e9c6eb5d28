//! What all parts of one controller share.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flames_client::HostApi;
use flames_clock::{Clock, ClockExt, Random};
use flames_error::{Error, Result};
use flames_model::{ControllerId, CpuFacts, DriverInfo, DriverNetwork, Exit, IncarnationId, VmId};
use flames_vmm::{DriverCapabilities, IncarnationName, VmDriver};
use tokio::sync::{Semaphore, watch};

use crate::artefacts::Artefacts;
use crate::config::ControllerConfig;
use crate::controller::ControllerParts;
use crate::folder::HostFolder;
use crate::guest::GuestConnector;
use crate::report::Reports;
use crate::session::SessionCell;
use crate::snapshots::SnapshotStore;
use crate::worker::GuestView;

/// What streams need to know of an incarnation.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) name: IncarnationName,
    /// The session with its agent, while there is one.
    pub(crate) guest: Option<watch::Receiver<GuestView>>,
    /// How its run ended, when it has.
    pub(crate) exit: Option<Exit>,
    /// Told of each change of the above, and of each write to its log. There once somebody asked for it.
    changes: Option<watch::Sender<()>>,
}

impl Live {
    pub(crate) fn new(name: IncarnationName, exit: Option<Exit>) -> Self {
        Self { name, guest: None, exit, changes: None }
    }

    /// Says that something changed.
    pub(crate) fn changed(&self) {
        if let Some(changes) = &self.changes {
            changes.send_replace(());
        }
    }

    /// Hears of what changes from now on. To be had before what may change is read.
    pub(crate) fn changes(&mut self) -> watch::Receiver<()> {
        self.changes.get_or_insert_with(|| watch::Sender::new(())).subscribe()
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: ControllerId,
    pub(crate) config: ControllerConfig,
    pub(crate) driver: Arc<dyn VmDriver>,
    pub(crate) capabilities: DriverCapabilities,
    pub(crate) artefacts: Arc<dyn Artefacts>,
    pub(crate) guests: Arc<dyn GuestConnector>,
    pub(crate) folder: Arc<dyn HostFolder>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) reports: Reports,
    pub(crate) snapshots: Arc<SnapshotStore>,
    pub(crate) api: Arc<dyn HostApi>,
    pub(crate) session: SessionCell,
    /// The digest of the kernel of guests that name none.
    pub(crate) default_kernel: Option<String>,
    /// Which incarnation of each VM may have a machine or use its disk.
    pub(crate) claims: watch::Sender<BTreeMap<VmId, IncarnationId>>,
    pub(crate) preparations: Semaphore,
    /// Whether everything that runs is to be ended.
    pub(crate) draining: watch::Sender<bool>,
    live: Mutex<BTreeMap<IncarnationId, Live>>,
}

impl Shared {
    pub(crate) fn new(
        id: ControllerId,
        config: ControllerConfig,
        capabilities: DriverCapabilities,
        default_kernel: Option<String>,
        session: SessionCell,
        parts: ControllerParts,
    ) -> Self {
        let ControllerParts { driver, artefacts, guests, folder, clock, random, api, snapshots } = parts;
        let preparations = Semaphore::new(config.bounds.preparations.max(1));
        Self {
            id,
            config,
            driver,
            capabilities,
            artefacts,
            guests,
            folder,
            clock,
            random,
            reports: Reports::default(),
            snapshots,
            api,
            session,
            default_kernel,
            claims: watch::Sender::new(BTreeMap::new()),
            preparations,
            draining: watch::Sender::new(false),
            live: Mutex::default(),
        }
    }

    /// What this host runs guests with.
    pub(crate) fn driver_info(&self) -> DriverInfo {
        let capabilities = &self.capabilities;
        let cpu = &capabilities.guest_cpu;
        DriverInfo {
            name: self.driver.name().to_owned(),
            version: capabilities.version.clone(),
            // However much the driver says: it does not keep the host from registering. By the others drivers are compared, so those stay whole.
            acceleration: DriverInfo::text(&capabilities.acceleration),
            pause: capabilities.pause,
            snapshot: capabilities.snapshot,
            diff_snapshot: capabilities.diff_snapshot,
            cpu: CpuFacts {
                vendor: cpu.vendor.clone(),
                model: cpu.model.clone(),
                features: cpu.features.clone(),
            },
            default_kernel: self.default_kernel.clone(),
            live_network: capabilities.live_network_policy && self.config.address_block.is_some(),
            network: if capabilities.tap_network && self.config.address_block.is_some() {
                DriverNetwork::Tap
            } else if capabilities.user_network {
                DriverNetwork::User
            } else {
                DriverNetwork::None
            },
        }
    }

    pub(crate) fn live(&self) -> MutexGuard<'_, BTreeMap<IncarnationId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a log was written, or that a session with a guest's agent came up or went.
    pub(crate) fn live_changed(&self, id: IncarnationId) {
        if let Some(live) = self.live().get(&id) {
            live.changed();
        }
    }

    /// A call of the driver, with the deadline that each has, and `more` on top.
    pub(crate) async fn drive<T>(
        &self,
        operation: &'static str,
        more: Duration,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        self.within(operation, self.config.timings.driver_call.saturating_add(more), call).await
    }

    /// Work with a deadline. What does not end in time is `Unavailable`.
    pub(crate) async fn within<T>(
        &self,
        operation: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        self.clock
            .timeout(limit, work)
            .await
            .unwrap_or_else(|late| Err(Error::unavailable(operation, "no answer in time").with_source(late)))
    }
}

/// The right of one incarnation to be the only one of its VM that has a machine here. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: watch::Sender<BTreeMap<VmId, IncarnationId>>,
    vm: VmId,
    incarnation: IncarnationId,
}

impl Claim {
    /// Waits until no other incarnation of the VM has it. Cancel-safe.
    pub(crate) async fn take(shared: &Shared, vm: VmId, incarnation: IncarnationId) -> Self {
        let mut changes = shared.claims.subscribe();
        loop {
            let mut mine = false;
            shared.claims.send_if_modified(|claims| {
                mine = *claims.entry(vm).or_insert(incarnation) == incarnation;
                false
            });
            if mine {
                return Self { claims: shared.claims.clone(), vm, incarnation };
            }
            // The sender is part of what `shared` is, so this cannot fail while it is borrowed.
            let _ = changes.changed().await;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.send_if_modified(|claims| {
            if claims.get(&self.vm) == Some(&self.incarnation) {
                claims.remove(&self.vm);
                return true;
            }
            false
        });
    }
}
