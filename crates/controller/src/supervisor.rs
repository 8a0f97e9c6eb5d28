//! One worker for each incarnation that has something to do, and the books on all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use flames_clock::Monotonic;
use flames_error::Result;
use flames_model::{Assignment, IncarnationId, VmId};
use flames_vmm::IncarnationName;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{self, JoinError, JoinSet};

use crate::backoff::Backoff;
use crate::record::IncarnationRecord;
use crate::shared::{Live, Shared};
use crate::worker::{Finished, Order, Told, Worker};

/// What the control plane said.
#[derive(Debug)]
pub(crate) enum Instruction {
    /// This is assigned.
    Assigned(Arc<Assignment>),
    /// This is not assigned (any more): nothing of it is to be left.
    Absent(IncarnationId),
    /// These, and no others, were assigned when all were read.
    Listed(BTreeSet<IncarnationId>),
}

/// What is known of an incarnation.
#[derive(Debug)]
struct Entry {
    orders: watch::Sender<Order>,
    nudge: Arc<Notify>,
    /// The record, while no worker has it.
    record: Option<IncarnationRecord>,
    /// Whether the driver had a machine of it when there was no record.
    stray: bool,
    working: bool,
    /// The last order that a worker has dealt with.
    handled: u64,
}

impl Entry {
    fn new(record: Option<IncarnationRecord>, stray: bool) -> Self {
        let orders = watch::Sender::new(Order::default());
        Self { orders, nudge: Arc::default(), record, stray, working: false, handled: 0 }
    }
}

/// Owns every worker. Ends when told to; dropping it aborts them all.
#[derive(Debug)]
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    instructions: mpsc::Receiver<Instruction>,
    stop: watch::Receiver<bool>,
    /// Whether, while draining, nothing runs any more.
    drained: watch::Sender<bool>,
    entries: BTreeMap<IncarnationId, Entry>,
    workers: JoinSet<Finished>,
    working: HashMap<task::Id, IncarnationId>,
    /// Incarnations whose worker waits for a place among the workers.
    waiting: VecDeque<IncarnationId>,
    /// Machines that nobody knows, and since when.
    strays: BTreeMap<IncarnationId, Monotonic>,
    /// What was assigned when all was read last, and what was told since.
    assigned: Option<BTreeSet<IncarnationId>>,
    /// The disks that were named as nobody's last.
    orphaned_disks: Vec<VmId>,
    /// Notified when something on this host may be needed no more.
    freed: Arc<Notify>,
    sweeper: JoinSet<()>,
}

impl Supervisor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        instructions: mpsc::Receiver<Instruction>,
        stop: watch::Receiver<bool>,
        drained: watch::Sender<bool>,
    ) -> Self {
        Self {
            shared,
            instructions,
            stop,
            drained,
            entries: BTreeMap::new(),
            workers: JoinSet::new(),
            working: HashMap::new(),
            waiting: VecDeque::new(),
            strays: BTreeMap::new(),
            assigned: None,
            orphaned_disks: Vec::new(),
            freed: Arc::default(),
            sweeper: JoinSet::new(),
        }
    }

    pub(crate) async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = until(stop) => {}
            () = self.work() => {}
        }
        self.sweeper.shutdown().await;
        self.workers.shutdown().await;
    }

    async fn work(&mut self) {
        self.adopt().await;
        self.sweeper.spawn(crate::sweep::run(Arc::clone(&self.shared), Arc::clone(&self.freed)));
        let mut exits = None;
        let shared = Arc::clone(&self.shared);
        let mut draining = shared.draining.subscribe();
        let look = shared.config.timings.stray_grace;
        let mut tick = Box::pin(shared.clock.sleep(look));
        loop {
            self.fill();
            if *draining.borrow_and_update() && self.workers.is_empty() && self.waiting.is_empty() {
                self.drained.send_replace(true);
            }
            tokio::select! {
                biased;
                _ = draining.changed() => {}
                Some(ended) = self.workers.join_next_with_id(), if !self.workers.is_empty() => self.ended(ended).await,
                hint = next_exit(&shared, &mut exits) => {
                    if let Some(entry) = self.entries.get(&hint) {
                        entry.nudge.notify_one();
                    }
                }
                Some(instruction) = self.instructions.recv() => {
                    let is_listing = matches!(instruction, Instruction::Listed(_));
                    self.instruct(instruction);
                    if is_listing {
                        self.name_orphaned_disks().await;
                    }
                }
                () = &mut tick => {
                    self.end_strays();
                    tick = Box::pin(shared.clock.sleep(look));
                }
            }
        }
    }

    /// Takes up what an earlier process left, however long the driver and the disk take to tell.
    async fn adopt(&mut self) {
        let mut backoff = Backoff::new(&self.shared.config.timings);
        while let Err(error) = self.try_adopt().await {
            tracing::error!(?error, "what is on this host could not be read; it is tried again");
            self.shared.clock.sleep(backoff.next(self.shared.random.as_ref())).await;
        }
    }

    async fn try_adopt(&mut self) -> Result<()> {
        let found =
            self.shared.drive("controller.adopt", Default::default(), self.shared.driver.adopt()).await?;
        let kept = self.shared.folder.incarnations().await?;
        self.entries = kept
            .into_iter()
            .map(|kept| {
                if kept.record.is_none() {
                    tracing::error!(incarnation = %kept.incarnation, "its record cannot be read");
                }
                (kept.incarnation, Entry::new(kept.record, false))
            })
            .collect();
        let now = self.shared.clock.monotonic();
        for machine in found {
            let Ok(id) = machine.incarnation.as_str().parse::<IncarnationId>() else {
                tracing::warn!(name = %machine.incarnation, "a machine is not named as ours are; it is left alone");
                continue;
            };
            let entry = self.entries.entry(id).or_insert_with(|| Entry::new(None, false));
            entry.stray = entry.record.is_none();
        }
        let mut adopted = Vec::new();
        for (id, entry) in &self.entries {
            match &entry.record {
                Some(record) => {
                    self.announce(*id, record.ending.as_ref().map(|ending| ending.exit));
                    if !record.is_released() {
                        adopted.push(*id);
                    }
                }
                None => drop(self.strays.insert(*id, now)),
            }
        }
        tracing::info!(known = self.entries.len(), unfinished = adopted.len(), "this host was looked at");
        adopted.into_iter().for_each(|id| self.want_worker(id));
        Ok(())
    }

    /// Lets streams find it.
    fn announce(&self, id: IncarnationId, exit: Option<flames_model::Exit>) {
        if let Ok(name) = IncarnationName::new(id.to_string()) {
            self.shared.live().insert(id, Live::new(name, exit));
        }
    }

    fn instruct(&mut self, instruction: Instruction) {
        match instruction {
            Instruction::Assigned(assignment) => {
                let id = assignment.incarnation;
                if assignment.controller != self.shared.id {
                    tracing::error!(incarnation = %id, "an assignment is another controller's; it is not followed");
                    return;
                }
                if *self.shared.draining.borrow() && !self.entries.contains_key(&id) {
                    // Not begun: another process, or this one when it is back, is told again.
                    return;
                }
                if let Some(assigned) = &mut self.assigned {
                    assigned.insert(id);
                }
                self.strays.remove(&id);
                let mut is_new = false;
                self.entries.entry(id).or_insert_with(|| {
                    is_new = true;
                    Entry::new(None, false)
                });
                if is_new {
                    self.announce(id, None);
                }
                self.tell(id, Told::Assigned(assignment));
            }
            Instruction::Absent(id) => {
                if let Some(assigned) = &mut self.assigned {
                    assigned.remove(&id);
                }
                self.tell(id, Told::Gone);
            }
            Instruction::Listed(listed) => {
                let absent: Vec<_> = self
                    .entries
                    .iter()
                    .filter(|(id, _)| !listed.contains(id) && !self.strays.contains_key(id))
                    .map(|(id, _)| *id)
                    .collect();
                absent.into_iter().for_each(|id| self.tell(id, Told::Gone));
                self.assigned = Some(listed);
                self.end_strays();
            }
        }
    }

    /// Ends machines that nobody knows, once the control plane has said that it does not know them either, after a while.
    fn end_strays(&mut self) {
        let Some(assigned) = &self.assigned else { return };
        let (now, grace) = (self.shared.clock.monotonic(), self.shared.config.timings.stray_grace);
        let due: Vec<_> = self
            .strays
            .iter()
            .filter(|(id, since)| !assigned.contains(id) && now.saturating_since(**since) >= grace)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            tracing::warn!(incarnation = %id, "a machine that nobody knows is removed");
            self.strays.remove(&id);
            self.tell(id, Told::Gone);
        }
    }

    /// Names persistent disks whose VM is not assigned here. They are kept: a disk is removed only by being told so.
    async fn name_orphaned_disks(&mut self) {
        let Ok(disks) = self.shared.folder.persistent_disks().await else { return };
        let assigned: BTreeSet<VmId> = self
            .entries
            .values()
            .filter_map(|entry| match &entry.orders.borrow().told {
                Some(Told::Assigned(assignment)) => Some(assignment.vm),
                Some(Told::Gone) | None => None,
            })
            .collect();
        let orphaned: Vec<_> = disks.into_iter().filter(|vm| !assigned.contains(vm)).collect();
        if orphaned != self.orphaned_disks && !orphaned.is_empty() {
            tracing::warn!(
                ?orphaned,
                "disks of VMs that are not assigned here are kept; remove them by hand if they are not needed"
            );
        }
        self.orphaned_disks = orphaned;
    }

    fn tell(&mut self, id: IncarnationId, told: Told) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.orders.send_modify(|order| {
            // What is gone never comes back: ids are not reused, so an assignment behind it is a late one.
            if !matches!(order.told, Some(Told::Gone)) {
                *order = Order { told: Some(told), serial: order.serial + 1 };
            }
        });
        if !entry.working {
            self.want_worker(id);
        }
    }

    fn want_worker(&mut self, id: IncarnationId) {
        if !self.waiting.contains(&id) {
            self.waiting.push_back(id);
        }
    }

    /// Starts workers while there are places.
    fn fill(&mut self) {
        let config = &self.shared.config;
        let machines = usize::try_from(config.capacity.vms).unwrap_or(usize::MAX);
        let most = config.bounds.incarnations.max(machines);
        while self.workers.len() < most {
            let Some(id) = self.waiting.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            let Ok(name) = IncarnationName::new(id.to_string()) else { continue };
            entry.working = true;
            let worker = Worker::new(
                Arc::clone(&self.shared),
                id,
                name,
                entry.orders.subscribe(),
                Arc::clone(&entry.nudge),
                entry.record.take(),
                std::mem::take(&mut entry.stray),
            );
            let handle = self.workers.spawn(worker.run());
            self.working.insert(handle.id(), id);
        }
    }

    async fn ended(&mut self, ended: std::result::Result<(task::Id, Finished), JoinError>) {
        match ended {
            Ok((task, finished)) => {
                let Some(id) = self.working.remove(&task) else { return };
                if finished.forgotten {
                    self.entries.remove(&id);
                    self.strays.remove(&id);
                    self.shared.live().remove(&id);
                    self.shared.reports.forget(id);
                    self.freed.notify_one();
                    return;
                }
                let Some(entry) = self.entries.get_mut(&id) else { return };
                entry.working = false;
                entry.record = finished.record;
                entry.handled = finished.serial;
                if entry.orders.borrow().serial > entry.handled {
                    self.want_worker(id);
                }
            }
            Err(error) => {
                let Some(id) = self.working.remove(&error.id()) else { return };
                tracing::error!(incarnation = %id, ?error, "its worker broke down; another takes over");
                // What was written down is the truth; without it, nothing is known to have run.
                let record = loop {
                    match self.shared.folder.incarnations().await {
                        Ok(kept) => {
                            break kept
                                .into_iter()
                                .find(|kept| kept.incarnation == id)
                                .and_then(|kept| kept.record);
                        }
                        Err(_) => self.shared.clock.sleep(self.shared.config.timings.backoff_most).await,
                    }
                };
                let Some(entry) = self.entries.get_mut(&id) else { return };
                entry.working = false;
                entry.stray = record.is_none();
                entry.record = record;
                self.want_worker(id);
            }
        }
    }
}

async fn until(mut flag: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = flag.wait_for(|set| *set).await;
}

/// The next hint of an exit. Without hints, nothing; `observe` finds out by itself.
async fn next_exit(
    shared: &Shared,
    exits: &mut Option<BoxStream<'static, IncarnationName>>,
) -> IncarnationId {
    let mut backoff = Backoff::new(&shared.config.timings);
    loop {
        if exits.is_none() {
            *exits = shared.driver.exits().await.ok();
        }
        if let Some(stream) = exits {
            while let Some(name) = stream.next().await {
                if let Ok(id) = name.as_str().parse() {
                    return id;
                }
            }
            *exits = None;
        }
        shared.clock.sleep(backoff.next(shared.random.as_ref())).await;
    }
}
