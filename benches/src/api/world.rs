//! The system under test: the whole control plane with its HTTP server, and a host of simulated machines that take no time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use async_trait::async_trait;
use flames_blob::{BlobKey, BlobStore, BlobStoreExt, ByteStream, PutOptions};
use flames_blob_memory::MemoryBlobStore;
use flames_client::{Client, ClientConfig, HostClient};
use flames_clock::{Clock, IdSource, Random, SystemClock, SystemRandom, UuidSource};
use flames_controller::{
    Controller, ControllerConfig, ControllerParts, DiskFiles, Guest, GuestConnector, MemoryFolder,
    ShutdownMode, SnapshotStore, Superseded,
};
use flames_error::{Error, Result};
use flames_guest_protocol::Identity;
use flames_model::{
    Actor, DesiredState, Event, EventKind, ImageDefaults, ImageKind, ImageManifest, ImageName, ProjectName,
    Resources, Vm, VmId, VmName,
};
use flames_queue_memory::MemoryQueue;
use flames_reconcile::{ReconcileConfig, ReconcileParts, Reconciler};
use flames_records::{Change, Records, VmFilter};
use flames_service::{
    Caller, ImageImporter, ImportProgress, Imported, Mutation, NoLinks, Service, ServiceConfig, ServiceParts,
    VmRef,
};
use flames_state_memory::MemoryStore;
use flames_testbed::{SimulatedArtefacts, SimulatedGuests};
use flames_transport_host::HostConfig;
use flames_transport_http::{
    Access, HttpApi, HttpConfig, HttpMetrics, ServeConfig, SharedRegistry, serve_tcp,
};
use flames_vmm::{GuestStream, IncarnationName, SecretBytes};
use flames_vmm_simulated::{
    GuestFuture, GuestProgram, SimulatedConfig, SimulatedDriver, SimulatedGuest, SimulatedHost,
};
use flames_wire::CreateVm;
use futures::{StreamExt, TryStreamExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{IMAGE, TOKEN};

/// More than any bench asks for.
const ROOM: u64 = 1 << 40;
/// Bytes of each workload's output that the host keeps. Its workloads say nothing.
const OUTPUT_KEPT: u64 = 4_096;
/// Deletes that are under way at once.
const DELETES: usize = 16;
/// How long VMs may take to go.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that a simulated channel holds. Nothing is said on it but the handshake.
const CHANNEL: usize = 256;

/// The running system.
pub(crate) struct World {
    pub(crate) service: Service,
    pub(crate) address: SocketAddr,
    api: HttpApi,
    serving: JoinHandle<()>,
    /// None: what is accepted stays where it is.
    converging: Option<(Reconciler, Controller)>,
}

/// Who the bench is to the service.
pub(crate) fn caller() -> Result<Caller> {
    Ok(Caller {
        project: ProjectName::new("default")?,
        actor: Actor::User("bench".into()),
        request_id: "bench".into(),
    })
}

#[derive(Debug)]
struct NoImports;

#[async_trait]
impl ImageImporter for NoImports {
    async fn import(
        &self,
        _: flames_service::NewImage,
        _: ByteStream,
        _: ImportProgress,
    ) -> Result<Imported> {
        Err(Error::internal("bench.import", "this bench imports nothing"))
    }
}

/// Simulated guests in many small rooms. One room looks at all its guests whenever one begins, to see whether a VM runs twice: right in a
/// test, and a cost of the simulation here, which must not count as the system's.
#[derive(Debug, Clone)]
struct Rooms(Arc<Vec<SimulatedGuests>>);

impl Rooms {
    fn new(clock: &Arc<dyn Clock>) -> Self {
        Self(Arc::new((0..1_024).map(|_| SimulatedGuests::new(clock.clone())).collect()))
    }

    fn of(&self, incarnation: &str) -> &SimulatedGuests {
        let hash = incarnation
            .bytes()
            .fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte)));
        &self.0[hash % self.0.len()]
    }
}

impl GuestProgram for Rooms {
    fn boot(
        &self,
        incarnation: &IncarnationName,
        config: &SecretBytes,
        guest: SimulatedGuest,
    ) -> GuestFuture {
        self.of(incarnation.as_str()).boot(incarnation, config, guest)
    }
}

#[async_trait]
impl GuestConnector for Rooms {
    async fn connect(&self, stream: GuestStream, identity: &Identity) -> Result<Box<dyn Guest>> {
        self.of(&identity.incarnation).connect(stream, identity).await
    }
}

impl World {
    /// Starts everything on the present runtime, with so many stopped VMs in its records; or all but what brings VMs to run.
    pub(crate) async fn start(existing: usize, converges: bool) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let ids: Arc<dyn IdSource> = Arc::new(UuidSource::new(clock.clone(), random.clone()));
        let records = Records::new(Arc::new(MemoryStore::new()));
        let blobs: Arc<dyn BlobStore> = Arc::new(MemoryBlobStore::new(clock.clone()));
        let service = Service::new(ServiceParts {
            records: records.clone(),
            blobs,
            importer: Arc::new(NoImports),
            links: Arc::new(NoLinks),
            urls: Arc::new(flames_service::NoUrls),
            clock: clock.clone(),
            ids: ids.clone(),
            random: random.clone(),
            config: ServiceConfig::default(),
        });
        add_image(&service).await?;
        for _ in 0..existing {
            add_stopped_vm(&service, VmId::from_uuid(ids.next_id())).await?;
        }
        let converging = if converges {
            let reconciler = Reconciler::start(ReconcileParts {
                records,
                queue: Arc::new(MemoryQueue::new(clock.clone())),
                clock: clock.clone(),
                ids: ids.clone(),
                random: random.clone(),
                config: ReconcileConfig::default(),
            })?;
            Some((reconciler, controller(&service, &clock, &random).await?))
        } else {
            None
        };
        let api = HttpApi::new(
            service.clone(),
            ids,
            HttpConfig::new(ProjectName::new("default")?),
            HttpMetrics::new(SharedRegistry::default()),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = api.router(Access::Token { token: TOKEN.to_owned(), hosts: Vec::new() });
        let serving = tokio::spawn(serve_tcp(listener, router, ServeConfig::default(), api.stop_token()));
        Ok(Self { service, address, api, serving, converging })
    }

    /// Deletes these, and returns when nothing of any VM is left on the host or waits for its end.
    pub(crate) async fn clear(&self, vms: impl IntoIterator<Item = VmId>) -> anyhow::Result<()> {
        let caller = caller()?;
        let deleted = futures::stream::iter(vms).map(Ok::<_, anyhow::Error>).try_for_each_concurrent(
            DELETES,
            async |vm| {
                self.service.delete_vm(&caller, &VmRef::Id(vm), &Mutation::default()).await?;
                Ok(())
            },
        );
        deleted.await?;
        let began = Instant::now();
        while !self.service.list_vms(&caller, &VmFilter::default(), None, 1).await?.items.is_empty() {
            ensure!(began.elapsed() < PATIENCE, "VMs that were deleted are not gone");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Takes it apart.
    pub(crate) async fn shutdown(self) -> anyhow::Result<()> {
        self.api.shutdown().await;
        self.serving.await?;
        if let Some((reconciler, controller)) = self.converging {
            controller.shutdown(ShutdownMode::LeaveRunning).await;
            reconciler.shutdown().await;
        }
        Ok(())
    }
}

async fn controller(
    service: &Service,
    clock: &Arc<dyn Clock>,
    random: &Arc<dyn Random>,
) -> Result<Controller> {
    let guests = Rooms::new(clock);
    let machines = SimulatedHost::new(
        SimulatedConfig {
            program: Some(Arc::new(guests.clone())),
            channel_buffer: CHANNEL,
            ..SimulatedConfig::default()
        },
        clock.clone(),
        random.clone(),
    );
    let host = flames_transport_host::router(service.clone(), HostConfig::default());
    let client = Client::over(host, ClientConfig::default().with_clock(clock.clone()));
    let capacity = Resources { vcpus: ROOM, memory_mib: ROOM, disk_mib: ROOM, vms: 1 << 20 };
    let config = ControllerConfig {
        superseded: Superseded::RegisterAgain,
        ..ControllerConfig::new(VmName::new("bench")?, capacity)
    };
    let parts = ControllerParts {
        driver: Arc::new(SimulatedDriver::new(machines)),
        api: Arc::new(HostClient::new(client)),
        artefacts: Arc::new(SimulatedArtefacts),
        guests: Arc::new(guests),
        folder: Arc::new(MemoryFolder::new(OUTPUT_KEPT)),
        // Nothing is saved in this bench.
        snapshots: Arc::new(SnapshotStore::new(
            service.blobs().clone(),
            Arc::new(DiskFiles),
            std::env::temp_dir().join("flames-bench-saves-nothing"),
        )),
        clock: clock.clone(),
        random: random.clone(),
    };
    Controller::start(parts, config).await
}

async fn add_image(service: &Service) -> Result<()> {
    let key = BlobKey::new("images/rootfs/bench")?;
    let info = service.blobs().put_bytes(&key, "bench".into(), PutOptions::default()).await?;
    let manifest = ImageManifest {
        kind: ImageKind::Rootfs,
        blob: key.as_str().to_owned(),
        digest: info.digest.to_string(),
        size_bytes: info.size,
        defaults: ImageDefaults::default(),
    };
    service.name_image(&caller()?, &ImageName::new(IMAGE)?, manifest, &Mutation::default()).await.map(|_| ())
}

/// A VM as one stands in the records whose user created it stopped long ago.
async fn add_stopped_vm(service: &Service, id: VmId) -> Result<()> {
    let caller = caller()?;
    let create =
        CreateVm { labels: [("team".to_owned(), "bench".to_owned())].into(), ..CreateVm::new(IMAGE) };
    let (_, labels, spec) = create.into_model()?;
    let now = service.clock().now();
    let vm = Vm {
        id,
        project: caller.project.clone(),
        name: VmName::new(format!("old-{}", &id.uuid().simple().to_string()[12..]))?,
        labels,
        spec: spec.into(),
        desired: DesiredState::Stopped,
        desired_reason: None,
        run: 1,
        generation: 1,
        placements: 0,
        incarnation: None,
        restored_from: None,
        disk: None,
        restarts: 0,
        network_revision: 0,
        unplaced: None,
        deadline: None,
        created_at: now,
        updated_at: now,
        deleted_at: None,
    };
    let event = Event {
        at: now,
        actor: caller.actor.clone(),
        request_id: caller.request_id.clone(),
        kind: EventKind::VmCreated,
        vm: Some(id),
        vm_name: Some(vm.name.clone()),
        incarnation: None,
        reason: None,
    };
    let mut change = Change::new();
    change.insert_vm(&vm).event(Some(&vm.project), &event);
    service.records().apply(change).await.map(|_| ())
}
