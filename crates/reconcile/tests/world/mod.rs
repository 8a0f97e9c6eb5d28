//! Service and reconciliation over in-memory providers, with a host that the test plays itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flames_blob::{BlobKey, BlobStoreExt, ByteStream, PutOptions};
use flames_clock::{Clock, SeededRandom, SimulatedClock, UuidSource};
use flames_error::Result;
use flames_model::*;
use flames_queue_memory::MemoryQueue;
use flames_reconcile::{ReconcileConfig, ReconcileParts, Reconciler};
use flames_records::{Position, Records};
use flames_service::*;
use flames_state::StateStore;
use flames_state_memory::MemoryStore;

#[derive(Debug)]
pub struct NoImports;

#[async_trait::async_trait]
impl ImageImporter for NoImports {
    async fn import(
        &self,
        _new: NewImage,
        _archive: ByteStream,
        _progress: ImportProgress,
    ) -> Result<Imported> {
        Err(flames_error::Error::internal("test", "nothing is imported here"))
    }
}

pub struct World {
    pub clock: Arc<SimulatedClock>,
    pub records: Records,
    pub service: Service,
    pub reconciler: Option<Reconciler>,
    parts: ReconcileParts,
}

impl World {
    pub async fn new() -> Self {
        Self::with_config(ReconcileConfig::default()).await
    }

    /// For tests that last days: looks seldom, so that simulated days pass quickly.
    pub async fn looking_seldom() -> Self {
        let hour = Duration::from_secs(3_600);
        Self::with_config(ReconcileConfig {
            poll: hour,
            lease_check: hour,
            sweep: hour,
            ..ReconcileConfig::default()
        })
        .await
    }

    /// Over this store.
    pub async fn over(store: Arc<dyn StateStore>) -> Self {
        Self::with(ReconcileConfig::default(), store).await
    }

    async fn with_config(config: ReconcileConfig) -> Self {
        Self::with(config, Arc::new(MemoryStore::new())).await
    }

    async fn with(config: ReconcileConfig, store: Arc<dyn StateStore>) -> Self {
        let clock = Arc::new(SimulatedClock::at_fixed_start());
        let random = Arc::new(SeededRandom::new(1));
        let ids = Arc::new(UuidSource::new(clock.clone(), random.clone()));
        let records = Records::new(store);
        let service = Service::new(ServiceParts {
            records: records.clone(),
            blobs: Arc::new(flames_blob_memory::MemoryBlobStore::new(clock.clone())),
            importer: Arc::new(NoImports),
            links: Arc::new(NoLinks),
            urls: Arc::new(NoUrls),
            clock: clock.clone(),
            ids: ids.clone(),
            random: random.clone(),
            config: ServiceConfig::default(),
        });
        let parts = ReconcileParts {
            records: records.clone(),
            queue: Arc::new(MemoryQueue::new(clock.clone())),
            clock: clock.clone(),
            ids,
            random,
            config,
        };
        let world = Self {
            clock,
            records,
            service,
            reconciler: Some(Reconciler::start(parts.clone()).unwrap()),
            parts,
        };
        world.add_image("debian", ImageKind::Rootfs).await;
        world
    }

    /// Ends the reconciler as a crash does, and starts another.
    pub fn crash_reconciler(&mut self) {
        self.stop_reconciler();
        self.start_reconciler();
    }

    pub fn stop_reconciler(&mut self) {
        self.reconciler = None;
    }

    pub fn start_reconciler(&mut self) {
        self.reconciler = Some(Reconciler::start(self.parts.clone()).unwrap());
    }

    pub async fn add_image(&self, name: &str, kind: ImageKind) {
        let key = BlobKey::new(format!("image/{name}")).unwrap();
        let info = self.service.blobs().put_bytes(&key, "bytes".into(), PutOptions::default()).await.unwrap();
        let manifest = ImageManifest {
            kind,
            blob: key.as_str().to_owned(),
            digest: info.digest.to_string(),
            size_bytes: info.size,
            defaults: ImageDefaults::default(),
        };
        let name = ImageName::new(name).unwrap();
        self.service.name_image(&caller(), &name, manifest, &Mutation::default()).await.unwrap();
    }

    pub async fn add_host(&self, number: u128, vcpus: u64) -> Host {
        self.add_host_with(number, vcpus, None).await
    }

    /// With an address block, or none.
    pub async fn add_host_with(&self, number: u128, vcpus: u64, block: Option<&str>) -> Host {
        let address_block = block.map(|block| AddressBlock { ipv4: block.parse().unwrap(), ipv6: None });
        let register = Register {
            id: ControllerId::from_uuid(uuid::Uuid::from_u128(number)),
            name: VmName::new(format!("host-{number}")).unwrap(),
            capacity: Resources { vcpus, memory_mib: 65_536, disk_mib: 1 << 20, vms: 100 },
            labels: Labels::default(),
            driver: DriverInfo {
                name: "simulated".into(),
                version: None,
                acceleration: "none".into(),
                pause: true,
                snapshot: true,
                diff_snapshot: true,
                cpu: CpuFacts { vendor: "v".to_owned(), model: "m".to_owned(), features: "f".to_owned() },
                default_kernel: None,
                network: if address_block.is_some() { DriverNetwork::Tap } else { DriverNetwork::User },
                live_network: address_block.is_some(),
            },
            address_block,
        };
        let registered = self.service.register_controller(register.clone()).await.unwrap();
        Host {
            register,
            session: registered.session,
            from: registered.changes_from,
            sequence: BTreeMap::new(),
        }
    }

    pub async fn create(&self, name: &str, change: impl FnOnce(&mut VmSpec)) -> VmView {
        let create = CreateVm {
            name: Some(VmName::new(name).unwrap()),
            labels: Labels::default(),
            spec: spec(change),
        };
        self.service.create_vm(&caller(), create, &Mutation::default()).await.unwrap()
    }

    pub async fn state(&self, name: &str) -> VmState {
        self.view(name).await.state
    }

    pub async fn view(&self, name: &str) -> VmView {
        self.service.get_vm(&caller(), &VmRef::parse(name).unwrap()).await.unwrap()
    }

    /// Lets everything that can run do so, for a while of simulated time.
    pub async fn settle(&self) {
        self.clock.sleep(Duration::from_millis(50)).await;
    }
}

pub fn caller() -> Caller {
    Caller {
        project: ProjectName::new("default").unwrap(),
        actor: Actor::User("test".into()),
        request_id: "test".into(),
    }
}

pub fn spec(change: impl FnOnce(&mut VmSpec)) -> VmSpec {
    let mut spec = VmSpec {
        image: ImageName::new("debian").unwrap(),
        kernel: None,
        vcpus: 1,
        memory_mib: 128,
        root_disk_mib: 64,
        disk: DiskKind::Ephemeral,
        command: None,
        args: vec![],
        env: BTreeMap::new(),
        secret_env: BTreeMap::new(),
        working_directory: None,
        user: None,
        tty: false,
        stdin: false,
        ports: vec![],
        network: Default::default(),
        restart: RestartPolicy::default(),
        wake_on_request: false,
        timeout_ms: None,
        auto_delete_after_ms: None,
        stop_grace_ms: 1_000,
        on_host_loss: OnHostLoss::Wait,
        placement: Labels::default(),
    };
    change(&mut spec);
    spec
}

/// A host that does what it is told, when it is told to look.
pub struct Host {
    pub register: Register,
    pub session: HostSession,
    from: Position,
    sequence: BTreeMap<IncarnationId, u64>,
}

impl Host {
    pub async fn changes(&mut self, world: &World) -> Vec<Assigned> {
        let changes =
            world.service.host_changes(&self.session, self.from, Duration::from_millis(20)).await.unwrap();
        self.from = changes.next;
        changes.changed
    }

    /// Does everything it was told since it last looked.
    pub async fn obey(&mut self, world: &World) {
        for assigned in self.changes(world).await {
            let Some(assignment) = assigned.assignment else { continue };
            match assignment.wanted {
                Wanted::Running => self.report(world, &assignment, IncarnationState::Running, |_| {}).await,
                Wanted::Paused => self.report(world, &assignment, IncarnationState::Paused, |_| {}).await,
                Wanted::Stopped => self.end(world, &assignment, ExitCause::Stopped, None, false).await,
                Wanted::Purged => self.end(world, &assignment, ExitCause::Stopped, None, true).await,
            };
        }
    }

    pub async fn end(
        &mut self,
        world: &World,
        of: &Assignment,
        cause: ExitCause,
        code: Option<i32>,
        purged: bool,
    ) -> ReportOutcome {
        let exit = Exit { code, signal: None, at: world.clock.now(), cause };
        self.report(world, of, IncarnationState::Stopped, |report| {
            (report.exit, report.released, report.purged) = (Some(exit), true, purged);
        })
        .await
    }

    pub async fn report(
        &mut self,
        world: &World,
        of: &Assignment,
        state: IncarnationState,
        change: impl FnOnce(&mut Report),
    ) -> ReportOutcome {
        let mut report = self.next_report(of, state);
        change(&mut report);
        world.service.report(&self.session, &report).await.unwrap()
    }

    /// The next report on an assignment, not sent yet.
    pub fn next_report(&mut self, of: &Assignment, state: IncarnationState) -> Report {
        let sequence = self.sequence.entry(of.incarnation).or_default();
        *sequence += 1;
        Report {
            incarnation: of.incarnation,
            vm: of.vm,
            project: of.project.clone(),
            token: of.token,
            sequence: *sequence,
            state,
            reason: None,
            exit: None,
            endpoints: vec![],
            network: AppliedNetwork { revision: of.network_revision, trouble: None },
            timeline: BTreeMap::new(),
            released: false,
            purged: false,
        }
    }

    pub async fn assignment(&self, world: &World, name: &str) -> Assignment {
        let view = world.view(name).await;
        let id = view.vm.incarnation.unwrap();
        world.records.assignment(self.session.controller, id).await.unwrap().unwrap().into_record()
    }
}
