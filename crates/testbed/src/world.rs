//! One run: storm, calm, judgement.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use flames_blob::{BlobStore, ByteStream};
use flames_blob_memory::MemoryBlobStore;
use flames_clock::{Clock, Random, RandomExt, SeededRandom, SimulatedClock, UuidSource};
use flames_decorate::{Decorated, FaultInjection};
use flames_error::{Error, Result};
use flames_queue::WorkQueue;
use flames_queue_memory::MemoryQueue;
use flames_reconcile::{ImageSweepConfig, ReconcileConfig, ReconcileParts, Reconciler};
use flames_records::{Position, Records};
use flames_service::{
    ImageImporter, ImportProgress, Imported, NoLinks, Service, ServiceConfig, ServiceParts, SweepConfig,
};
use flames_simulated_guest::SimulatedGuests;
use flames_state::StateStore;
use flames_state_memory::MemoryStore;
use flames_vmm::IncarnationName;
use tokio::task::JoinSet;

use crate::check::{self, Truth, Violation};
use crate::clients::{Client, SharedLedger, caller};
use crate::faults::{Faults, Histogram, Shared};
use crate::host::{Host, HostEnvironment};
use crate::images::{self, ImageKeeper};
use crate::sabotage::Sabotage;

/// What a run is made from. The same plan gives the same run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Everything random in the run comes from this.
    pub seed: u64,
    /// How many VM operations clients ask for.
    pub operations: u64,
    /// What is broken on purpose.
    pub sabotage: Option<Sabotage>,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How many VM operations clients asked for.
    pub operations: u64,
    /// Which faults fired how often.
    pub faults: Histogram,
    /// What must never be, and was.
    pub violations: Vec<Violation>,
    /// A digest of everything that happened: equal for equal plans.
    pub trace: String,
}

const HOSTS: u64 = 3;
const CLIENTS: u64 = 3;
const REPLICAS: usize = 2;
/// How long the calm lasts at most, and how long nothing may change for it to count as settled: longer than every back-off, lease and
/// resync.
const CALM: Duration = Duration::from_secs(40 * 60);
const SETTLED: Duration = Duration::from_secs(7 * 60);
/// Short enough that images are swept while the storm goes on.
const IMAGES: ImageSweepConfig = ImageSweepConfig {
    every: Duration::from_secs(5),
    sweep: SweepConfig { grace: Duration::from_secs(8), takeover: Duration::from_secs(60) },
};

/// Runs `plan` on a runtime of its own: one thread, paused time.
///
/// Errors: `Internal` when the runtime cannot be made or the world cannot be set up: a defect of the testbed.
pub fn run(plan: Plan) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .map_err(|error| Error::internal("testbed.run", "no runtime").with_source(error))?;
    runtime.block_on(async {
        let mut world = World::new(plan).await?;
        world.storm().await;
        world.calm().await;
        world.judge().await
    })
}

#[derive(Debug)]
struct NoImports;

#[async_trait]
impl ImageImporter for NoImports {
    async fn import(
        &self,
        _new: flames_service::NewImage,
        _archive: ByteStream,
        _progress: ImportProgress,
    ) -> Result<Imported> {
        Err(Error::internal("testbed.import", "the testbed imports nothing"))
    }
}

struct World {
    plan: Plan,
    clock: Arc<SimulatedClock>,
    random: Arc<SeededRandom>,
    faults: Arc<Faults>,
    store: Arc<dyn StateStore>,
    blobs: Arc<dyn BlobStore>,
    /// Blobs that were needed at some moment, and gone.
    lost_blobs: BTreeSet<String>,
    queue: MemoryQueue,
    service: Service,
    environment: HostEnvironment,
    reconcile: ReconcileParts,
    replicas: Vec<Option<Reconciler>>,
    hosts: Vec<Host>,
    ledger: SharedLedger,
    followed: Vec<flames_service::EventEntry>,
}

impl World {
    async fn new(plan: Plan) -> Result<Self> {
        let simulated = Arc::new(SimulatedClock::at_fixed_start());
        let clock: Arc<dyn Clock> = simulated.clone();
        let seeded = Arc::new(SeededRandom::new(plan.seed));
        let random: Arc<dyn Random> = seeded.clone();
        let faults = Faults::new(plan.seed);
        let inject = || FaultInjection::new(Arc::clone(&clock), Shared(Arc::clone(&faults)));
        let store: Arc<dyn StateStore> = Arc::new(MemoryStore::new());
        let records = Records::new(Arc::new(Decorated::new(
            Sabotage::store(plan.sabotage, Arc::clone(&store)),
            inject(),
        )));
        let queue = MemoryQueue::new(Arc::clone(&clock));
        let plain_queue: Arc<dyn WorkQueue> = Arc::new(queue.clone());
        let blobs: Arc<dyn BlobStore> = Arc::new(MemoryBlobStore::new(Arc::clone(&clock)));
        let ids = Arc::new(UuidSource::new(Arc::clone(&clock), Arc::clone(&random)));
        let service = Service::new(ServiceParts {
            records: records.clone(),
            blobs: Arc::new(Decorated::new(Arc::clone(&blobs), inject())),
            importer: Arc::new(NoImports),
            links: Arc::new(NoLinks),
            urls: Arc::new(flames_service::NoUrls),
            clock: Arc::clone(&clock),
            ids: ids.clone(),
            random: Arc::clone(&random),
            config: ServiceConfig::default(),
        });
        let reconcile = ReconcileParts {
            records,
            queue: Arc::new(Decorated::new(plain_queue, inject())),
            clock: Sabotage::lease_clock(plan.sabotage, Arc::clone(&clock)),
            ids,
            random: Arc::clone(&random),
            config: ReconcileConfig {
                workers: 2,
                poll: Duration::from_secs(1),
                ..ReconcileConfig::default()
            },
        };
        let host_blobs = Arc::new(Decorated::new(Arc::clone(&blobs), inject()));
        let environment = HostEnvironment {
            guests: SimulatedGuests::new(Arc::clone(&clock)),
            clock,
            random,
            faults: Arc::clone(&faults),
            service: service.clone(),
            sabotage: plan.sabotage,
            blobs: host_blobs,
        };
        let hosts = (0..HOSTS).map(|number| Host::new(number, &environment)).collect();
        let mut world = Self {
            plan,
            clock: simulated,
            random: seeded,
            faults,
            store,
            blobs,
            lost_blobs: BTreeSet::new(),
            queue,
            service,
            environment,
            reconcile,
            replicas: Vec::new(),
            hosts,
            ledger: SharedLedger::default(),
            followed: Vec::new(),
        };
        world.replicas.resize_with(REPLICAS, || None);
        images::import(&world.service, "debian", 0).await?;
        world.start_everything().await?;
        Ok(world)
    }

    async fn start_everything(&mut self) -> Result<()> {
        for replica in self.replicas.iter_mut().filter(|replica| replica.is_none()) {
            let mut started = Reconciler::start(self.reconcile.clone())?;
            started.sweep_images(self.service.clone(), IMAGES);
            *replica = Some(started);
        }
        for host in &mut self.hosts {
            host.cut_off.store(false, Ordering::Relaxed);
            host.start(&self.environment).await;
        }
        Ok(())
    }

    /// Clients ask while everything goes wrong that may.
    async fn storm(&mut self) {
        self.faults.switch(true);
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let client = Client {
                number,
                service: self.service.clone(),
                clock: self.environment.clock.clone(),
                random: Arc::new(SeededRandom::new(self.plan.seed.wrapping_mul(31).wrapping_add(number))),
                ledger: Arc::clone(&self.ledger),
                faults: Arc::clone(&self.faults),
                forgets_its_key: self.plan.sabotage == Some(Sabotage::ClientsForgetTheirKey),
            };
            clients.spawn(client.run(self.plan.operations.div_ceil(CLIENTS)));
        }
        let mut keepers = JoinSet::new();
        let keeper = ImageKeeper {
            service: self.service.clone(),
            clock: self.environment.clock.clone(),
            random: Arc::new(SeededRandom::new(self.plan.seed.wrapping_mul(37))),
        };
        keepers.spawn(keeper.run());
        while !clients.is_empty() {
            tokio::select! {
                biased;
                _ = clients.join_next() => {}
                () = self.clock.sleep(Duration::from_millis(200 + self.random.below(3_000))) => self.strike().await,
            }
            self.follow().await;
        }
        self.faults.switch(false);
    }

    /// One thing goes wrong, or is put right again.
    async fn strike(&mut self) {
        let below =
            |bound: usize| usize::try_from(self.random.below(u64::try_from(bound).unwrap_or(1))).unwrap_or(0);
        match below(12) {
            0 | 1 => {
                let at = below(self.replicas.len());
                self.faults.count("reconciler dropped");
                self.replicas[at] = None;
            }
            // The first host is never down or cut off: nothing may ever take it for lost.
            2 => {
                let at = 1 + below(self.hosts.len() - 1);
                self.faults.count("controller dropped");
                self.hosts[at].crash();
            }
            3 => {
                self.faults.count("controller dropped and started");
                self.hosts[0].crash();
                self.hosts[0].start(&self.environment).await;
            }
            4 => {
                let at = 1 + below(self.hosts.len() - 1);
                self.faults.count("host cut off");
                self.hosts[at].cut_off.store(true, Ordering::Relaxed);
            }
            5 => {
                let at = below(self.hosts.len());
                if let Some(name) = self.some_machine(at) {
                    self.faults.count("machine crashed");
                    self.hosts[at].machines.crash_vm(&name);
                }
            }
            6 => {
                let at = below(self.hosts.len());
                if let Some(name) = self.some_machine(at) {
                    self.faults.count("guest powered off");
                    self.hosts[at].machines.power_off_guest(&name);
                }
            }
            7 => {
                self.faults.count("queue lost everything");
                self.queue.forget_everything();
            }
            8 => {
                self.faults.count("wall clock jumped");
                let by = i64::try_from(self.random.below(60_000)).unwrap_or(0);
                self.clock.jump_wall(if self.random.below(2) == 0 { by } else { -by });
            }
            _ => {
                // Put right: an operator, or a supervisor of processes.
                let _ = self.start_everything().await;
            }
        }
    }

    fn some_machine(&self, host: usize) -> Option<IncarnationName> {
        let running = self.hosts[host].machines.running();
        let count = u64::try_from(running.len()).ok()?;
        running.get(usize::try_from(self.random.below(count)).ok()?).cloned()
    }

    /// A follower of events reads on, with calls that fail like everyone's.
    async fn follow(&mut self) {
        let after = self.followed.last().map_or(Position::START, |entry| entry.position);
        let Ok(caller) = caller() else { return };
        if let Ok(entries) = self.service.events(&caller, after, 50).await {
            self.followed.extend(entries);
        }
        self.look_for_blobs().await;
    }

    /// Everything that is needed right now is there.
    async fn look_for_blobs(&mut self) {
        let truth = Records::new(Arc::clone(&self.store));
        // Neither store fails: these are not the decorated ones.
        let lost = images::lost(&truth, self.blobs.as_ref()).await.unwrap_or_default();
        self.lost_blobs.extend(lost);
    }

    /// No more faults: everything runs, until nothing changes any more.
    async fn calm(&mut self) {
        // Whatever is left of an interrupted start is tried until it is done.
        let began = self.clock.monotonic();
        while !self.hosts.iter().all(Host::is_up) || self.replicas.iter().any(Option::is_none) {
            let _ = self.start_everything().await;
            self.clock.sleep(Duration::from_secs(1)).await;
            if self.clock.monotonic().saturating_since(began) > Duration::from_secs(120) {
                break;
            }
        }
        let _ = self.start_everything().await;
        let truth = Records::new(Arc::clone(&self.store));
        let project = flames_model::ProjectName::new("default").ok();
        let mut position = Position::START;
        let mut changed_at = self.clock.monotonic();
        while self.clock.monotonic().saturating_since(began) < CALM
            && self.clock.monotonic().saturating_since(changed_at) < SETTLED
        {
            self.clock.sleep(Duration::from_secs(20)).await;
            while let Ok(page) = truth.events(project.as_ref(), position, 1_000).await {
                let Some(last) = page.last() else { break };
                position = last.position;
                changed_at = self.clock.monotonic();
            }
        }
    }

    async fn judge(mut self) -> Result<Outcome> {
        loop {
            let before = self.followed.len();
            self.follow().await;
            if self.followed.len() == before {
                break;
            }
        }
        let records = Records::new(Arc::clone(&self.store));
        let left_over = images::left_over(&records, self.blobs.as_ref()).await?;
        let truth = Truth {
            records: Records::new(Arc::clone(&self.store)),
            hosts: self.hosts.iter().map(|host| (host.number, Arc::clone(&host.machines))).collect(),
            ledger: Arc::clone(&self.ledger),
            followed: std::mem::take(&mut self.followed),
            never_away: self.hosts.first().and_then(Host::id),
            doubled: self.environment.guests.doubled(),
            blobs: std::mem::take(&mut self.lost_blobs).into_iter().chain(left_over).collect(),
        };
        let violations = check::all(&truth).await?;
        let faults = self.faults.histogram();
        let trace = check::trace(&truth, &faults).await?;
        let operations = self.ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner).asked;
        Ok(Outcome { operations, faults, violations, trace })
    }
}
