//! The control plane: everything of a server but its listeners.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::{Clock, IdSource, Random, SystemRandom, UuidSource};
use flames_model::ProjectName;
use flames_reconcile::{
    ImageSweepConfig, ReconcileConfig, ReconcileParts, Reconciler, RestingVms, RouteConfig,
};
use flames_records::Records;
use flames_service::{HostLinks, Service, ServiceConfig, ServiceParts};
use flames_transport_http::{HttpApi, HttpConfig, HttpMetrics, SharedRegistry};

use super::dial::{self, GuestDial, IngressUrls};
use super::importer::Importer;
use crate::data::LockedFolder;
use crate::exit::Failure;
use crate::providers::{Ingress, Plans, Providers};

/// How long a job of the queue is a worker's. The queue outlives a `kill -9`, and so do the leases of the process that was killed: what it was
/// at waits for their end. A job takes milliseconds, and one that takes longer is only looked at twice.
const JOB_LEASE: Duration = Duration::from_secs(5);

/// The one project, for now.
const PROJECT: &str = "default";

/// Providers, service, reconciliation and the HTTP API over them.
pub(crate) struct ControlPlane {
    pub(crate) api: HttpApi,
    pub(crate) service: Service,
    reconciler: Reconciler,
    pub(crate) providers: Providers,
    /// How traffic from outside reaches guests.
    ingress: Ingress,
}

impl ControlPlane {
    /// Puts it together, with what is under way below `base`. Guests are reached through `links`.
    pub(crate) async fn start(
        base: &Path,
        folder: &LockedFolder,
        plans: Plans,
        links: Arc<dyn HostLinks>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, Failure> {
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
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let ids: Arc<dyn IdSource> = Arc::new(UuidSource::new(clock.clone(), random.clone()));
        let records = Records::new(providers.state.store());
        let staging = base.join("staging");
        std::fs::create_dir_all(&staging)
            .map_err(|error| Failure::io(format!("{} cannot be made", staging.display()), &error))?;
        let service = Service::new(ServiceParts {
            records: records.clone(),
            importer: Arc::new(Importer::new(&staging, providers.blobs.clone())?),
            blobs: providers.blobs.clone(),
            links,
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
            random,
            config: ReconcileConfig { job_lease: JOB_LEASE, ..ReconcileConfig::default() },
        })?;
        reconciler.sweep_images(service.clone(), ImageSweepConfig::default());
        let routes = RouteConfig::default();
        reconciler.keep_routes(records, ingress.provider.clone(), resting, clock.clone(), routes)?;
        let http = HttpConfig::new(ProjectName::new(PROJECT)?);
        let api = HttpApi::new(service.clone(), ids, http, HttpMetrics::new(SharedRegistry::default()));
        Ok(Self { api, service, reconciler, providers, ingress })
    }

    /// Which provider is what, for people.
    pub(crate) fn names(&self) -> BTreeMap<&'static str, &'static str> {
        let Providers { state, blobs, cache, queue, .. } = &self.providers;
        BTreeMap::from([
            ("state", state.store().name()),
            ("blob", blobs.name()),
            ("cache", cache.name()),
            ("queue", queue.queue().name()),
            ("ingress", self.ingress.provider.name()),
        ])
    }

    /// The same in one line.
    pub(crate) fn stores(&self) -> String {
        let names = self.names();
        let words = names.iter().map(|(provider, backend)| format!("{provider} {backend}"));
        let words = words.collect::<Vec<_>>().join(", ");
        match self.ingress_address() {
            Some(address) => format!("{words} on {address}"),
            None => words,
        }
    }

    /// Where the ingress listens, when it is in this process.
    pub(crate) fn ingress_address(&self) -> Option<SocketAddr> {
        self.ingress.address()
    }

    /// Takes it apart, once nobody calls it any more.
    pub(crate) async fn shutdown(self) {
        self.reconciler.shutdown().await;
        self.ingress.close().await;
        self.providers.close().await;
    }
}
