//! Simulated hosts: a machine room that outlives its controller, and a way to the API that fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use flames_blob::BlobStore;
use flames_client::wire::host::{
    AssignmentsPage, Changes, HostSession, RegisterRequest, Registered, Renewed, ReportBatch, ReportOutcome,
    SnapshotReport, SnapshotReportOutcome,
};
use flames_client::{Client, ClientConfig, HostApi, HostClient};
use flames_clock::{Clock, Random, RandomExt};
use flames_controller::{
    Artefacts, Controller, ControllerConfig, ControllerParts, HostFolder, MemoryFolder, SnapshotStore,
    Superseded,
};
use flames_decorate::{Decorated, FaultInjection};
use flames_error::{Error, ErrorKind, Result};
use flames_model::{AddressBlock, ControllerId, ImageManifest, IncarnationId, Resources, VmName};
use flames_service::Service;
use flames_vmm::VmDriver;
use flames_vmm_simulated::{SimulatedConfig, SimulatedDriver, SimulatedHost, SimulatedTimings};

use crate::faults::{Faults, Shared};
use crate::sabotage::Sabotage;
use flames_simulated_guest::{SimulatedDisk, SimulatedGuests};

/// Artefacts that are always there: simulated machines read no file.
#[derive(Debug, Clone, Copy, Default)]
pub struct SimulatedArtefacts;

#[async_trait]
impl Artefacts for SimulatedArtefacts {
    async fn rootfs(&self, image: &ImageManifest) -> Result<PathBuf> {
        Ok(PathBuf::from("/simulated").join(image.digest.replace(':', "-")))
    }

    async fn kernel(&self, _kernel: Option<&ImageManifest>) -> Result<PathBuf> {
        Ok(PathBuf::from("/simulated/kernel"))
    }

    async fn default_kernel(&self) -> Result<Option<String>> {
        Ok(Some("simulated".to_owned()))
    }

    async fn initramfs(&self) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    async fn writable_layer(&self, _path: &Path, _size_bytes: u64) -> Result<()> {
        Ok(())
    }

    async fn sweep(&self, _needed: &[ImageManifest]) -> Result<()> {
        Ok(())
    }
}

/// A host with its machines, its disk, and at most one controller.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) number: u64,
    pub(crate) machines: Arc<SimulatedHost>,
    pub(crate) folder: Arc<dyn HostFolder>,
    pub(crate) cut_off: Arc<AtomicBool>,
    pub(crate) capacity: Resources,
    guests: SimulatedGuests,
    controller: Option<Controller>,
}

/// What all hosts share.
pub(crate) struct HostEnvironment {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) service: Service,
    pub(crate) guests: SimulatedGuests,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) blobs: Arc<dyn BlobStore>,
}

/// The hosts' address blocks: for sixteen VMs, more than fit; for four, fewer than fit otherwise; for eight.
const BLOCKS: [(&str, Option<&str>); 3] =
    [("10.77.0.0/26", None), ("10.77.1.0/28", Some("fd77:1::/64")), ("10.77.2.0/27", None)];

fn address_block(number: u64) -> Option<AddressBlock> {
    let (ipv4, ipv6) = BLOCKS.get(usize::try_from(number).ok()?)?;
    let ipv6 = ipv6.map(str::parse).transpose().ok()?;
    Some(AddressBlock { ipv4: ipv4.parse().ok()?, ipv6 })
}

/// Where hosts keep saved guests.
const SNAPSHOTS: &str = "/snapshots";

impl Host {
    pub(crate) fn new(number: u64, environment: &HostEnvironment) -> Self {
        let HostEnvironment { clock, random, guests, .. } = environment;
        let config = SimulatedConfig {
            program: Some(Arc::new(guests.clone())),
            timings: SimulatedTimings::realistic(),
            ..SimulatedConfig::default()
        };
        Self {
            number,
            machines: SimulatedHost::new(config, Arc::clone(clock), Arc::clone(random)),
            folder: Arc::new(MemoryFolder::new(1024 * 1024)),
            cut_off: Arc::default(),
            capacity: Resources { vcpus: 6, memory_mib: 4_096, disk_mib: 8_192, vms: 8 },
            guests: guests.clone(),
            controller: None,
        }
    }

    /// Drops the controller wherever it is, as a crash does.
    pub(crate) fn crash(&mut self) {
        self.controller = None;
    }

    /// Starts a controller, if there is none, over what the last one left.
    pub(crate) async fn start(&mut self, environment: &HostEnvironment) {
        if self.controller.is_some() {
            return;
        }
        let HostEnvironment { clock, random, faults, service, sabotage, blobs, .. } = environment;
        let router =
            flames_transport_host::router(service.clone(), flames_transport_host::HostConfig::default());
        let config = ClientConfig::default().with_clock(Arc::clone(clock));
        let api = UnreliableApi {
            inner: HostClient::new(Client::over(router, config)),
            cut_off: Arc::clone(&self.cut_off),
            faults: Arc::clone(faults),
            clock: Arc::clone(clock),
        };
        let plain: Arc<dyn VmDriver> = Arc::new(SimulatedDriver::new(Arc::clone(&self.machines)));
        let driver: Arc<dyn VmDriver> = Arc::new(Decorated::new(
            plain,
            FaultInjection::new(Arc::clone(clock), Shared(Arc::clone(faults))),
        ));
        if *sabotage == Some(Sabotage::HostsForget) {
            self.folder = Arc::new(MemoryFolder::new(1024 * 1024));
        }
        let parts = ControllerParts {
            driver,
            api: Sabotage::api(*sabotage, Arc::new(api)),
            artefacts: Arc::new(SimulatedArtefacts),
            guests: Arc::new(self.guests.clone()),
            folder: Arc::clone(&self.folder),
            snapshots: Arc::new(SnapshotStore::new(
                Sabotage::host_blobs(*sabotage, Arc::clone(blobs)),
                Arc::new(SimulatedDisk::new(Arc::clone(&self.machines), SNAPSHOTS)),
                SNAPSHOTS,
            )),
            clock: Arc::clone(clock),
            random: Arc::clone(random),
        };
        let Ok(name) = VmName::new(format!("host-{}", self.number)) else { return };
        let config = ControllerConfig {
            superseded: Superseded::RegisterAgain,
            address_block: address_block(self.number),
            ..ControllerConfig::new(name, self.capacity)
        };
        // A driver that does not answer now is asked again later.
        self.controller = Controller::start(parts, config).await.ok();
    }

    /// Its controller's identity, while there is one.
    pub(crate) fn id(&self) -> Option<ControllerId> {
        self.controller.as_ref().map(Controller::id)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.controller.is_some()
    }
}

/// The host API with calls that are lost on the way there or back, doubled, late, or cut off for a while.
#[derive(Debug)]
struct UnreliableApi {
    inner: HostClient,
    cut_off: Arc<AtomicBool>,
    faults: Arc<Faults>,
    clock: Arc<dyn Clock>,
}

impl UnreliableApi {
    /// What happens before a call. Errors: `Unavailable` when it never arrives.
    async fn on_the_way(&self, operation: &'static str) -> Result<()> {
        if self.cut_off.load(Ordering::Relaxed) {
            self.clock.sleep(Duration::from_millis(500)).await;
            return Err(Error::unavailable("testbed.api", "the host is cut off"));
        }
        if self.faults.strikes(60) {
            self.faults.count(format!("host.{operation} lost"));
            return Err(Error::unavailable("testbed.api", "the request was lost"));
        }
        if self.faults.strikes(60) {
            self.faults.count(format!("host.{operation} late"));
            self.clock.sleep(Duration::from_millis(1 + self.faults.random().below(5_000))).await;
        }
        Ok(())
    }

    /// What happens to an answer. Errors: `OutcomeUnknown` when it is lost.
    fn on_the_way_back<T>(&self, operation: &'static str, answer: Result<T>) -> Result<T> {
        if self.faults.strikes(60) {
            self.faults.count(format!("host.{operation} answer lost"));
            return Err(Error::new(ErrorKind::OutcomeUnknown, "testbed.api", "the answer was lost"));
        }
        answer
    }
}

#[async_trait]
impl HostApi for UnreliableApi {
    async fn register(&self, request: &RegisterRequest) -> Result<Registered> {
        self.on_the_way("register").await?;
        self.on_the_way_back("register", self.inner.register(request).await)
    }

    async fn renew(&self, session: &HostSession) -> Result<Renewed> {
        self.on_the_way("renew").await?;
        self.on_the_way_back("renew", self.inner.renew(session).await)
    }

    async fn assignments(
        &self,
        session: &HostSession,
        after: Option<IncarnationId>,
        limit: usize,
    ) -> Result<AssignmentsPage> {
        self.on_the_way("assignments").await?;
        self.on_the_way_back("assignments", self.inner.assignments(session, after, limit).await)
    }

    async fn changes(&self, session: &HostSession, after: &str, wait: Duration) -> Result<Changes> {
        self.on_the_way("changes").await?;
        self.on_the_way_back("changes", self.inner.changes(session, after, wait).await)
    }

    async fn report(&self, session: &HostSession, batch: &ReportBatch) -> Result<Vec<ReportOutcome>> {
        self.on_the_way("report").await?;
        if self.faults.strikes(30) {
            self.faults.count("host.report doubled");
            let _ = self.inner.report(session, batch).await;
        }
        self.on_the_way_back("report", self.inner.report(session, batch).await)
    }

    async fn report_snapshot(
        &self,
        session: &HostSession,
        report: &SnapshotReport,
    ) -> Result<SnapshotReportOutcome> {
        self.on_the_way("report_snapshot").await?;
        if self.faults.strikes(30) {
            self.faults.count("host.report_snapshot doubled");
            let _ = self.inner.report_snapshot(session, report).await;
        }
        self.on_the_way_back("report_snapshot", self.inner.report_snapshot(session, report).await)
    }
}
