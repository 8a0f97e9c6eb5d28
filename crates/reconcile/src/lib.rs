//! Workers that converge observed state on desired state.
//!
//! The truth about what needs attention stands in the store as due entries, written in the same commit as whatever caused them.
//!
//! * The *relay* brings due entries to the queue: at once when hinted, and by scanning, so that a lost hint costs a poll.
//! * *Workers* take jobs and bring one VM one step further each: read, decide (`flames_model::next_step`), act, commit ([`vm`]). The
//!   commit checks all that was read, so two workers, two replicas or a stale one do no harm.
//! * The *lease watcher* judges controllers' leases by this replica's own monotonic clock.
//! * The *sweeper* removes what was kept long enough; another one the blobs of images that nothing names.
//!
//! Nothing here takes any input but the store; a queue that loses everything costs time only.

mod images;
mod ingress;
mod leases;
mod place;
mod relay;
mod reserve;
mod sweep;
pub mod vm;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use flames_clock::{Clock, IdSource, Random};
use flames_error::Result;
use flames_ingress::IngressProvider;
use flames_model::ProjectName;
use flames_queue::{Topic, WorkQueue};
use flames_records::Records;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use images::ImageSweepConfig;
pub use ingress::{RestingVms, RouteConfig};
pub use leases::Liveness;
pub use vm::{Done, VmReconciler};

/// How many, how long and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReconcileConfig {
    /// How many workers take jobs.
    pub workers: usize,
    /// How many jobs a worker takes at once.
    pub batch: usize,
    /// How long a worker may take for its batch before others may take it too.
    pub job_lease: Duration,
    /// How often due entries are scanned, and how often an idle worker looks though no wake-up came.
    pub poll: Duration,
    /// How often leases are read.
    pub lease_check: Duration,
    /// How often the sweeper runs.
    pub sweep: Duration,
    /// How long events are kept.
    pub events_kept: Duration,
    /// How long the view of controllers that placement decides on may be old.
    pub view_age: Duration,
}

impl Default for ReconcileConfig {
    fn default() -> Self {
        Self {
            workers: 4,
            batch: 32,
            job_lease: Duration::from_secs(30),
            poll: Duration::from_millis(500),
            lease_check: Duration::from_secs(3),
            sweep: Duration::from_secs(60),
            events_kept: Duration::from_secs(7 * 24 * 3_600),
            view_age: Duration::from_secs(1),
        }
    }
}

/// What reconciliation stands on.
#[derive(Debug, Clone)]
pub struct ReconcileParts {
    /// The source of truth.
    pub records: Records,
    /// Where due entries become jobs.
    pub queue: Arc<dyn WorkQueue>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Ids of incarnations and disks.
    pub ids: Arc<dyn IdSource>,
    /// Choices among equals, and jitter.
    pub random: Arc<dyn Random>,
    /// How many, how long and how often.
    pub config: ReconcileConfig,
}

/// The topic of jobs that say "look at this VM".
pub(crate) fn vm_topic() -> Result<Topic> {
    Topic::new("vm")
}

/// The running workers. Dropping it ends them at their next await; [`Reconciler::shutdown`] lets each finish its step.
#[derive(Debug)]
pub struct Reconciler {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    liveness: Arc<Liveness>,
}

impl Reconciler {
    /// Starts relay, workers, lease watcher and sweeper.
    ///
    /// Errors: none but a defect: a topic's name that is none.
    pub fn start(parts: ReconcileParts) -> Result<Self> {
        let stop = CancellationToken::new();
        let liveness = Arc::new(Liveness::default());
        let vms = Arc::new(VmReconciler::new(parts.clone(), liveness.clone()));
        let mut tasks = JoinSet::new();
        tasks.spawn(relay::run(parts.clone(), vm_topic()?, stop.clone()));
        let listening = Arc::new(Semaphore::new(1));
        for number in 0..parts.config.workers.max(1) {
            let (parts, vms, listening) = (parts.clone(), vms.clone(), listening.clone());
            tasks.spawn(worker::run(parts, vms, vm_topic()?, number, listening, stop.clone()));
        }
        tasks.spawn(leases::run(parts.clone(), liveness.clone(), stop.clone()));
        tasks.spawn(sweep::run(parts, stop.clone()));
        Ok(Self { tasks, stop, liveness })
    }

    /// Also removes the blobs of images of `service` that nothing names any more.
    pub fn sweep_images(&mut self, service: flames_service::Service, config: ImageSweepConfig) {
        let clock = service.clock().clone();
        self.tasks.spawn(images::run(service, clock, config, self.stop.clone()));
    }

    /// Also keeps the routes of `ingress` as the VMs are, and `resting` as they rest.
    ///
    /// Errors: none but a defect: a project's name that is none.
    pub fn keep_routes(
        &mut self,
        records: Records,
        ingress: Arc<dyn IngressProvider>,
        resting: Arc<RestingVms>,
        clock: Arc<dyn Clock>,
        config: RouteConfig,
    ) -> Result<()> {
        let project = ProjectName::new("default")?;
        let keeper = ingress::RouteKeeper { records, ingress, resting, clock, config, project };
        self.tasks.spawn(ingress::run(keeper, self.stop.clone()));
        Ok(())
    }

    /// Which controllers this replica takes for alive.
    pub fn liveness(&self) -> &Arc<Liveness> {
        &self.liveness
    }

    /// Lets each worker finish the step that it is at, and ends.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}
