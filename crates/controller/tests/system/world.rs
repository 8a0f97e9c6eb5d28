//! One host with its control plane, under simulated time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flames_blob_memory::MemoryBlobStore;
use flames_clock::{Clock, ClockExt, SeededRandom, SimulatedClock};
use flames_controller::{
    Artefacts, Controller, ControllerConfig, ControllerParts, HostFolder, MemoryFolder, ShutdownMode,
    SnapshotStore, Timings,
};
use flames_error::Result;
use flames_model::{
    Assignment, ControllerId, DiskKind, FencingToken, ImageDefaults, ImageKind, ImageManifest, ImageName,
    Incarnation, IncarnationId, IncarnationState, OnHostLoss, ProjectName, Resources, RestartPolicy, Source,
    VmId, VmName, VmSpec, Wanted,
};
use flames_simulated_guest::SimulatedDisk;
use flames_vmm::{IncarnationName, VmDriver};
use flames_vmm_simulated::{SimulatedConfig, SimulatedDriver, SimulatedHost, SimulatedTimings, Span};
use uuid::Uuid;

use crate::api::FakeApi;
use crate::guests::{Connector, Guests, Inside, Program};
use crate::steps::{SteppedApi, SteppedBlobs, SteppedDriver, SteppedFolder, Steps};

/// Artefacts that are always there; what is wrong with them is said by the image's digest.
#[derive(Debug, Default)]
pub(crate) struct ImaginedArtefacts {
    /// What was needed at each sweep.
    pub(crate) swept: std::sync::Mutex<Vec<Vec<String>>>,
}

#[async_trait]
impl Artefacts for ImaginedArtefacts {
    async fn rootfs(&self, image: &ImageManifest) -> Result<PathBuf> {
        match image.digest.as_str() {
            "missing" => Err(flames_error::Error::not_found("blob.get", "blob", "images/rootfs/00")),
            "full" => Err(flames_error::Error::new(
                flames_error::ErrorKind::Exhausted,
                "image.fetch",
                "the disk is full",
            )
            .with_user_message("The host's disk is full.")),
            digest => Ok(PathBuf::from(format!("/images/{digest}"))),
        }
    }
    async fn kernel(&self, kernel: Option<&ImageManifest>) -> Result<PathBuf> {
        match kernel {
            None => Ok(PathBuf::from("/kernel")),
            Some(_) => Err(flames_error::Error::invalid(
                "image.kernel",
                "kernel",
                "a script; a kernel is an ELF file",
            )),
        }
    }
    async fn default_kernel(&self) -> Result<Option<String>> {
        Ok(Some("the host's".to_owned()))
    }
    async fn initramfs(&self) -> Result<Option<PathBuf>> {
        Ok(Some(PathBuf::from("/initramfs")))
    }
    async fn writable_layer(&self, _path: &Path, _size_bytes: u64) -> Result<()> {
        Ok(())
    }
    async fn sweep(&self, needed: &[ImageManifest]) -> Result<()> {
        let needed = needed.iter().map(|image| image.digest.clone()).collect();
        self.swept.lock().unwrap().push(needed);
        Ok(())
    }
}

pub(crate) struct World {
    pub(crate) clock: Arc<SimulatedClock>,
    pub(crate) host: Arc<SimulatedHost>,
    pub(crate) api: Arc<FakeApi>,
    pub(crate) folder: Arc<MemoryFolder>,
    pub(crate) blobs: Arc<MemoryBlobStore>,
    pub(crate) guests: Arc<Guests>,
    pub(crate) steps: Arc<Steps>,
    pub(crate) config: ControllerConfig,
    pub(crate) random: Arc<SeededRandom>,
    pub(crate) artefacts: Arc<ImaginedArtefacts>,
}

pub(crate) fn timings() -> SimulatedTimings {
    let exactly = |ms| Span::exactly(Duration::from_millis(ms));
    SimulatedTimings {
        prepare: exactly(3),
        start: exactly(40),
        restore: exactly(10),
        pause: exactly(1),
        resume: exactly(1),
        snapshot: exactly(50),
        power_off: exactly(50),
        kill: exactly(2),
        destroy: exactly(2),
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_, _| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut SimulatedConfig, &mut ControllerConfig)) -> Self {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let random = Arc::new(SeededRandom::new(11));
        let guests = Arc::new(Guests::default());
        let mut simulated = SimulatedConfig {
            timings: timings(),
            program: Some(Arc::new(Program(Arc::clone(&guests)))),
            ..SimulatedConfig::default()
        };
        let capacity = Resources { vcpus: 8, memory_mib: 8192, disk_mib: 100_000, vms: 64 };
        let mut config = ControllerConfig::new(VmName::new("host-1").unwrap(), capacity);
        config.timings = Timings { agent_ready: Duration::from_secs(20), ..Timings::default() };
        change(&mut simulated, &mut config);
        let host = SimulatedHost::new(simulated, Arc::clone(&clock) as Arc<dyn Clock>, random.clone());
        Self {
            api: FakeApi::new(Arc::clone(&clock)),
            folder: Arc::new(MemoryFolder::new(1 << 20)),
            blobs: Arc::new(MemoryBlobStore::new(Arc::clone(&clock) as Arc<dyn Clock>)),
            steps: Arc::default(),
            clock,
            host,
            guests,
            config,
            random,
            artefacts: Arc::default(),
        }
    }

    pub(crate) fn parts(&self) -> ControllerParts {
        let driver: Arc<dyn VmDriver> = Arc::new(SimulatedDriver::new(Arc::clone(&self.host)));
        ControllerParts {
            driver: Arc::new(SteppedDriver::new(driver, Arc::clone(&self.steps))),
            api: Arc::new(SteppedApi(self.api.clone(), Arc::clone(&self.steps))),
            artefacts: self.artefacts.clone(),
            guests: Arc::new(Connector(Arc::clone(&self.guests))),
            folder: Arc::new(SteppedFolder(self.folder.clone(), Arc::clone(&self.steps))),
            snapshots: Arc::new(SnapshotStore::new(
                Arc::new(SteppedBlobs(self.blobs.clone(), Arc::clone(&self.steps))),
                Arc::new(SimulatedDisk::new(Arc::clone(&self.host), "/snapshots")),
                "/snapshots",
            )),
            clock: self.clock.clone(),
            random: self.random.clone(),
        }
    }

    pub(crate) async fn start(&self) -> Controller {
        Controller::start(self.parts(), self.config.clone()).await.unwrap()
    }

    /// The controller's identity, made if it has none.
    pub(crate) async fn controller_id(&self) -> ControllerId {
        self.folder.identity(ControllerId::from_uuid(Uuid::from_u128(77))).await.unwrap()
    }

    pub(crate) async fn assignment(&self, number: u128, command: &[&str]) -> Assignment {
        Assignment {
            incarnation: IncarnationId::from_uuid(Uuid::from_u128(number)),
            vm: VmId::from_uuid(Uuid::from_u128(number)),
            project: ProjectName::new("default").unwrap(),
            name: VmName::new(format!("vm-{number}")).unwrap(),
            controller: self.controller_id().await,
            token: FencingToken(1),
            wanted: Wanted::Running,
            spec: spec(command).into(),
            network_revision: 0,
            address: None,
            source: Source::Boot,
            image: ImageManifest {
                kind: ImageKind::Rootfs,
                blob: "images/rootfs/1".to_owned(),
                digest: "1".to_owned(),
                size_bytes: 1,
                defaults: ImageDefaults::default(),
            },
            kernel: None,
            restore: None,
            snapshot: None,
            snapshot_base: None,
        }
    }

    pub(crate) async fn assign(&self, number: u128, command: &[&str]) -> IncarnationId {
        let assignment = self.assignment(number, command).await;
        let id = assignment.incarnation;
        self.api.assign(assignment);
        id
    }

    /// Waits until the control plane knows that this is true of the incarnation.
    pub(crate) async fn until(
        &self,
        id: IncarnationId,
        reached: impl Fn(&Incarnation) -> bool + Send + Sync,
    ) -> Incarnation {
        let wait = async {
            loop {
                let now = self.api.incarnation(id);
                if reached(&now) {
                    return now;
                }
                self.clock.advance(Duration::from_millis(5)).await;
            }
        };
        match self.clock.timeout(Duration::from_secs(600), wait).await {
            Ok(now) => now,
            Err(_) => panic!("it does not come to that: {:#?}", self.api.incarnation(id)),
        }
    }

    pub(crate) async fn until_state(&self, id: IncarnationId, state: IncarnationState) -> Incarnation {
        self.until(id, |incarnation| incarnation.state == state).await
    }

    pub(crate) async fn until_released(&self, id: IncarnationId) -> Incarnation {
        self.until(id, |incarnation| incarnation.released_at.is_some()).await
    }

    pub(crate) async fn until_purged(&self, id: IncarnationId) -> Incarnation {
        self.until(id, |incarnation| incarnation.purged_at.is_some()).await
    }

    pub(crate) fn inside(&self, id: IncarnationId) -> Arc<Inside> {
        self.guests.inside(&id.to_string()).unwrap()
    }

    /// Purges the incarnation, and checks that nothing of it is left anywhere.
    pub(crate) async fn purge_all(&self, controller: Controller, ids: &[IncarnationId]) {
        for id in ids {
            self.api.want(*id, Wanted::Purged);
            self.until_purged(*id).await;
            self.api.unassign(*id, false);
        }
        // What was made local for them is swept a few seconds later.
        self.clock.advance(Duration::from_secs(10)).await;
        controller.shutdown(ShutdownMode::LeaveRunning).await;
        assert_eq!(self.host.residue(), Vec::<String>::new());
        assert_eq!(self.folder.residue(), Vec::<String>::new());
        assert_eq!(self.host.started_twice(), Vec::new());
    }
}

pub(crate) fn name(id: IncarnationId) -> IncarnationName {
    IncarnationName::new(id.to_string()).unwrap()
}

pub(crate) fn spec(command: &[&str]) -> VmSpec {
    let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
    VmSpec {
        image: ImageName::new("debian").unwrap(),
        kernel: None,
        vcpus: 1,
        memory_mib: 128,
        root_disk_mib: 64,
        disk: DiskKind::Persistent,
        command: (!command.is_empty()).then_some(command),
        args: Vec::new(),
        env: BTreeMap::new(),
        secret_env: BTreeMap::new(),
        working_directory: None,
        user: None,
        tty: false,
        stdin: false,
        ports: Vec::new(),
        network: Default::default(),
        restart: RestartPolicy::default(),
        wake_on_request: false,
        timeout_ms: None,
        auto_delete_after_ms: None,
        stop_grace_ms: 1_000,
        on_host_loss: OnHostLoss::Wait,
        placement: Default::default(),
    }
}
