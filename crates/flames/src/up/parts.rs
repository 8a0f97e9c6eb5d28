//! The parts of an all-in-one Flames, put together and taken apart.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flames_client::{Client, ClientConfig, HostClient};
use flames_clock::{Clock, IdSource, Random, SystemRandom, UuidSource};
use flames_controller::{
    Controller, ControllerConfig, ControllerParts, DEFAULT_OUTPUT_KEPT, FileFolder, GuestStreams, Offer,
    ShutdownMode, SnapshotStore, Superseded, detect_capacity,
};
use flames_error::Result;
use flames_model::{IncarnationId, Labels, ProjectName, Resources};
use flames_reconcile::{
    ImageSweepConfig, ReconcileConfig, ReconcileParts, Reconciler, RestingVms, RouteConfig,
};
use flames_records::Records;
use flames_service::{LinkChannel, Service, ServiceConfig, ServiceParts};
use flames_transport_host::HostConfig;
use flames_transport_http::{HttpApi, HttpConfig, HttpMetrics, SharedRegistry};
use flames_transport_link::{InProcessLinks, LinkHandler, Registration};
use flames_wire::stream::StreamRequest;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::EPHEMERAL;
use super::dial::{self, GuestDial, IngressUrls};
use super::importer::Importer;
use super::machines::{self, Machines};
use crate::config::UpConfig;
use crate::data::LockedFolder;
use crate::exit::Failure;
use crate::output::Output;
use crate::providers::{Ingress, Plans, Providers};

/// How long a job of the queue is a worker's. The queue outlives a `kill -9`, and so do the leases of the process that was killed: what it was
/// at waits for their end. A job takes milliseconds, and one that takes longer is only looked at twice.
const JOB_LEASE: Duration = Duration::from_secs(5);

/// The one project, for now.
const PROJECT: &str = "default";

/// Everything but the listeners.
pub(super) struct Parts {
    pub(super) api: HttpApi,
    /// The driver with what accelerates it, for people.
    pub(super) driver: String,
    /// The kernel of VMs that name none.
    pub(super) kernel: Option<String>,
    controller: Controller,
    reconciler: Reconciler,
    providers: Providers,
    /// How traffic from outside reaches guests.
    ingress: Ingress,
    streams: TaskTracker,
    warming: Option<JoinHandle<()>>,
    _registration: Registration,
}

impl Parts {
    pub(super) async fn start(
        folder: &LockedFolder,
        arguments: &UpConfig,
        plans: Plans,
        clock: &Arc<dyn Clock>,
        output: Output,
    ) -> std::result::Result<Self, Failure> {
        let base =
            if arguments.ephemeral { folder.make(EPHEMERAL)? } else { folder.folder().path().to_owned() };
        let staging = base.join("staging");
        let Plans { state, blob, cache, queue, ingress } = plans;
        state.check_not_emptied(folder.folder())?;
        let providers = Providers::open(state, blob, cache, queue, clock).await?;
        let dial = Arc::new(GuestDial::default());
        let resting = Arc::new(RestingVms::default());
        let wake = dial::waker(&dial, &resting, ProjectName::new(PROJECT)?);
        let ingress = match ingress.start(Some(dial.clone()), wake).await {
            Ok(ingress) => ingress,
            Err(problem) => {
                providers.close().await;
                return Err(problem.into());
            }
        };
        let machines =
            Machines::start(&base, folder, arguments, providers.blobs.clone(), clock, output).await?;
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let ids: Arc<dyn IdSource> = Arc::new(UuidSource::new(clock.clone(), random.clone()));
        let links = InProcessLinks::new(clock.clone());
        let records = Records::new(providers.state.store());
        std::fs::create_dir_all(&staging)
            .map_err(|error| Failure::io(format!("{} cannot be made", staging.display()), &error))?;
        let service = Service::new(ServiceParts {
            records: records.clone(),
            importer: Arc::new(Importer::new(&staging, providers.blobs.clone())?),
            blobs: providers.blobs.clone(),
            links: Arc::new(links.clone()),
            urls: Arc::new(IngressUrls(ingress.provider.clone())),
            clock: clock.clone(),
            ids: ids.clone(),
            random: random.clone(),
            config: ServiceConfig::default(),
        });
        dial.reach_through(service.clone());
        let mut reconciler = Reconciler::start(ReconcileParts {
            records: records.clone(),
            queue: providers.queue.queue(),
            clock: clock.clone(),
            ids: ids.clone(),
            random: random.clone(),
            config: ReconcileConfig { job_lease: JOB_LEASE, ..ReconcileConfig::default() },
        })?;
        reconciler.sweep_images(service.clone(), ImageSweepConfig::default());
        let routes = RouteConfig::default();
        reconciler.keep_routes(records, ingress.provider.clone(), resting, clock.clone(), routes)?;
        let host = flames_transport_host::router(service.clone(), HostConfig::default());
        let client = Client::over(host, ClientConfig::default().with_clock(clock.clone()));
        let host_folder: PathBuf = base.join("controller");
        let address_block = super::network::address_block(folder.folder().path(), arguments)?;
        let folder = FileFolder::open(&host_folder, DEFAULT_OUTPUT_KEPT).await?;
        let capacity = capacity(arguments, detect_capacity(&host_folder, Offer::default()).await?);
        let capabilities = machines.driver.capabilities().await?;
        let version = capabilities.version.map(|version| format!(" {version}")).unwrap_or_default();
        let driver = format!("{}{version}, {}", machines.driver.name(), capabilities.acceleration);
        let labels = Labels::new(arguments.host_labels.iter().cloned().collect(), "host-label")?;
        let config = ControllerConfig {
            labels,
            superseded: Superseded::RegisterAgain,
            address_block,
            ..ControllerConfig::new(arguments.name.clone(), capacity)
        };
        let controller = Controller::start(
            ControllerParts {
                driver: machines.driver,
                api: Arc::new(HostClient::new(client)),
                artefacts: machines.artefacts,
                guests: machines.guests,
                folder: Arc::new(folder),
                snapshots: Arc::new(SnapshotStore::new(
                    providers.blobs.clone(),
                    machines.files,
                    machines::snapshots(&base),
                )),
                clock: clock.clone(),
                random,
            },
            config,
        )
        .await
        .map_err(|error| Failure::from(error).advise("`flames doctor` looks at what VMs need here."))?;
        let streams = TaskTracker::new();
        let handler = Streams { streams: controller.streams(), tasks: streams.clone() };
        let registration = links.register(controller.id(), Arc::new(handler));
        let http = HttpConfig::new(ProjectName::new(PROJECT)?);
        let api = HttpApi::new(service, ids, http, HttpMetrics::new(SharedRegistry::default()));
        Ok(Self {
            api,
            driver,
            kernel: machines.kernel,
            controller,
            reconciler,
            providers,
            ingress,
            streams,
            warming: machines.warming,
            _registration: registration,
        })
    }

    /// Which provider is what, for people.
    pub(super) fn providers(&self) -> BTreeMap<&'static str, &'static str> {
        let Providers { state, blobs, cache, queue, .. } = &self.providers;
        BTreeMap::from([
            ("state", state.store().name()),
            ("blob", blobs.name()),
            ("cache", cache.name()),
            ("queue", queue.queue().name()),
            ("ingress", self.ingress.provider.name()),
        ])
    }

    /// Where the ingress listens, when it is in this process.
    pub(super) fn ingress_address(&self) -> Option<SocketAddr> {
        self.ingress.address()
    }

    /// Returns once the controller has given up, with the reason.
    pub(super) async fn given_up(&self) -> String {
        self.controller.given_up().await
    }

    /// Takes it apart, in the order in which the parts need each other: reports are taken until the controller has ended.
    pub(super) async fn shutdown(self, mode: ShutdownMode) {
        self.api.shutdown().await;
        self.controller.shutdown(mode).await;
        self.streams.close();
        self.streams.wait().await;
        self.reconciler.shutdown().await;
        if let Some(warming) = self.warming {
            // Cut off, it takes the machine that it tries along.
            warming.abort();
            let _ = warming.await;
        }
        self.ingress.close().await;
        self.providers.close().await;
    }
}

fn capacity(arguments: &UpConfig, detected: Resources) -> Resources {
    Resources {
        vcpus: arguments.capacity_cpus.unwrap_or(detected.vcpus),
        memory_mib: arguments.capacity_memory.unwrap_or(detected.memory_mib),
        disk_mib: arguments.capacity_disk.unwrap_or(detected.disk_mib),
        vms: arguments.capacity_vms.unwrap_or(detected.vms),
    }
}

/// The controller's end of links in this process.
#[derive(Debug)]
struct Streams {
    streams: GuestStreams,
    tasks: TaskTracker,
}

#[async_trait]
impl LinkHandler for Streams {
    async fn open(
        &self,
        incarnation: IncarnationId,
        request: StreamRequest,
        channel: LinkChannel,
    ) -> Result<()> {
        let accepted = self.streams.open(incarnation, request)?;
        self.tasks.spawn(accepted.run(channel.sender, channel.receiver));
        Ok(())
    }
}
