//! One incarnation's worker: brings what is to what is wanted, and says so.
//!
//! The order of the steps makes it safe to stop a worker at any of its awaits, and to begin another over the same host:
//!
//! * The record is written before anything is made, so that what is found on the host has an owner.
//! * How a run ended is written before the guest is told that it may forget it, and before anything is taken away.
//! * An incarnation whose end was written is never started; one whose release was written is kept as a record until the control plane
//!   does not assign it any more.
//! * Everything in between is asked of the driver, whose calls are idempotent.

mod bring_up;
mod ending;
mod live;
mod policy;
mod reasons;
mod saving;
mod session;

use std::sync::Arc;

use flames_clock::RandomExt;
use flames_guest_protocol::AgentKey;
use flames_model::{
    AppliedNetwork, Assignment, Exit, ExitCause, IncarnationId, IncarnationState, NetworkTrouble, Reason,
    Report, Timestamp, Wanted,
};
use flames_vmm::IncarnationName;
use tokio::sync::{Notify, watch};

pub(crate) use session::GuestView;

use crate::backoff::Backoff;
use crate::record::{Ending, IncarnationRecord, RECORD_SCHEMA, RecordPhase};
use crate::shared::{Claim, Shared};

/// What the control plane said last of an incarnation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Order {
    /// None: nothing yet, since this process began.
    pub(crate) told: Option<Told>,
    /// Grows with each telling, also of the same.
    pub(crate) serial: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Told {
    Assigned(Arc<Assignment>),
    /// It is not assigned: nothing of it is to be left.
    Gone,
}

/// A worker that has nothing more to do.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Whether nothing of the incarnation is left, not even its record.
    pub(crate) forgotten: bool,
    /// Its record.
    pub(crate) record: Option<IncarnationRecord>,
    /// The order that it has dealt with.
    pub(crate) serial: u64,
}

/// What a step led to.
enum Step {
    /// There may be more to do.
    Again,
    /// There is nothing to do until another order comes.
    Done,
}

#[derive(Debug)]
pub(crate) struct Worker {
    shared: Arc<Shared>,
    id: IncarnationId,
    name: IncarnationName,
    orders: watch::Receiver<Order>,
    draining: watch::Receiver<bool>,
    /// Something may have happened to the machine.
    nudge: Arc<Notify>,
    record: Option<IncarnationRecord>,
    /// Whether there was a machine of it, and no record.
    stray: bool,
    /// Whether its record could not be written at first, so that nothing was ever made.
    unmade: bool,
    claim: Option<Claim>,
    /// Whether the end of the run is on the disk.
    end_written: bool,
    /// Whether the workload's end was heard, and acknowledged if it could be written down.
    heard: bool,
    /// The last order that was taken in.
    taken: u64,
    /// The number of the last report.
    sequence: u64,
    state: IncarnationState,
    reason: Option<Reason>,
    /// Why its machine is not under the network that was told.
    network_trouble: Option<NetworkTrouble>,
}

impl Worker {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        shared: Arc<Shared>,
        id: IncarnationId,
        name: IncarnationName,
        orders: watch::Receiver<Order>,
        nudge: Arc<Notify>,
        record: Option<IncarnationRecord>,
        stray: bool,
    ) -> Self {
        // Numbers of the block after the reserved one are used too, in case the reservation of it could not be written.
        let sequence =
            record.as_ref().map_or(0, |record| record.sequence_reserved + IncarnationRecord::SEQUENCE_BLOCK);
        let (state, reason) = match record.as_ref().and_then(|record| record.ending.as_ref()) {
            Some(ending) => (ending.state, ending.reason.clone()),
            None => (IncarnationState::Scheduled, None),
        };
        let draining = shared.draining.subscribe();
        let end_written = record.as_ref().is_some_and(|record| record.ending.is_some());
        Self {
            shared,
            id,
            name,
            orders,
            draining,
            nudge,
            record,
            stray,
            unmade: false,
            claim: None,
            end_written,
            heard: false,
            taken: 0,
            sequence,
            state,
            reason,
            network_trouble: None,
        }
    }

    pub(crate) async fn run(mut self) -> Finished {
        loop {
            let order = self.orders.borrow_and_update().clone();
            self.taken = order.serial;
            match order.told {
                Some(Told::Gone) => {
                    self.forget().await;
                    return Finished { forgotten: true, record: None, serial: order.serial };
                }
                Some(Told::Assigned(assignment)) => self.take_over(&assignment).await,
                None => {}
            }
            let step = Box::pin(self.step()).await;
            if matches!(step, Step::Done) && !self.orders.has_changed().unwrap_or(false) {
                return Finished { forgotten: false, record: self.record, serial: self.taken };
            }
        }
    }

    async fn step(&mut self) -> Step {
        let Some(record) = &self.record else { return Step::Done };
        match record.phase {
            RecordPhase::Released if record.assignment.wanted == Wanted::Purged => {
                self.purge().await;
                Step::Again
            }
            RecordPhase::Released | RecordPhase::Purged => {
                self.send_report().await;
                if self.disclaim_snapshot().await { Step::Done } else { Step::Again }
            }
            RecordPhase::Accepted | RecordPhase::Running if record.ending.is_some() => {
                self.release(None).await;
                Step::Again
            }
            RecordPhase::Accepted | RecordPhase::Running => {
                self.work().await;
                Step::Again
            }
        }
    }

    /// Takes in what was told last.
    async fn take_over(&mut self, assignment: &Arc<Assignment>) {
        match &mut self.record {
            Some(record) if assignment.token < record.assignment.token => {
                tracing::warn!(incarnation = %self.id, "an assignment with an older token is not followed");
            }
            Some(record) if record.assignment == *assignment => {}
            Some(record) => {
                record.assignment = Arc::clone(assignment);
                // When it cannot be written, what was told is followed all the same: it is told again after a restart.
                self.write("what was told").await;
            }
            None => self.accept(assignment).await,
        }
    }

    /// Makes the record, before anything else is made.
    async fn accept(&mut self, assignment: &Arc<Assignment>) {
        let now = self.shared.clock.now();
        let record = IncarnationRecord {
            schema: RECORD_SCHEMA,
            assignment: Arc::clone(assignment),
            key: AgentKey::from_bytes(self.shared.random.bytes()),
            epoch_ms: u64::try_from(now.as_millisecond()).unwrap_or(0),
            phase: RecordPhase::Accepted,
            network_revision: assignment.network_revision,
            sequence_reserved: IncarnationRecord::SEQUENCE_BLOCK,
            endpoints: Vec::new(),
            timeline: Default::default(),
            ending: None,
            saving: None,
            restored: None,
        };
        self.record = Some(record);
        if self.stray {
            let reason = reasons::record_lost();
            self.conclude(IncarnationState::Failed, self.exit_by(ExitCause::Machine), Some(reason)).await;
            return;
        }
        let mut backoff = Backoff::new(&self.shared.config.timings);
        for attempt in 1.. {
            let Some(record) = &self.record else { return };
            let Err(error) = self.shared.folder.put_record(record).await else { return };
            if !error.is_retryable() || attempt == 3 || error.kind() == flames_error::ErrorKind::Exhausted {
                self.unmade = true;
                let reason = reasons::not_prepared(&error);
                self.conclude(IncarnationState::Failed, self.exit_by(ExitCause::Machine), Some(reason)).await;
                return;
            }
            self.shared.clock.sleep(backoff.next(self.shared.random.as_ref())).await;
        }
    }

    /// Writes the record. Says whether it is on the disk.
    async fn write(&self, what: &'static str) -> bool {
        let Some(record) = &self.record else { return false };
        match self.shared.folder.put_record(record).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(?error, incarnation = %self.id, what, "a record could not be written");
                false
            }
        }
    }

    /// Whether what is told now, or the controller's own end, ends the run.
    fn is_to_end(&self) -> bool {
        ends(&self.orders.borrow(), *self.draining.borrow(), self.wanted())
    }

    /// Returns once [`Worker::is_to_end`] holds.
    fn to_end(&self) -> impl Future<Output = ()> + use<> {
        let (mut orders, mut draining) = (self.orders.clone(), self.draining.clone());
        let wanted = self.wanted();
        async move {
            loop {
                if ends(&orders.borrow_and_update(), *draining.borrow_and_update(), wanted) {
                    return;
                }
                tokio::select! {
                    biased;
                    // A sender that is gone takes the worker along.
                    changed = orders.changed() => if changed.is_err() { std::future::pending().await },
                    _ = draining.changed() => {}
                }
            }
        }
    }

    fn wanted(&self) -> Wanted {
        self.record.as_ref().map_or(Wanted::Stopped, |record| record.assignment.wanted)
    }

    fn is_gone(&self) -> bool {
        matches!(self.orders.borrow().told, Some(Told::Gone))
    }

    fn exit_by(&self, cause: ExitCause) -> Exit {
        Exit { code: None, signal: None, at: self.shared.clock.now(), cause }
    }

    /// Notes where it is now, and says so.
    async fn enter(&mut self, state: IncarnationState, reason: Option<Reason>) {
        let now: Timestamp = self.shared.clock.now();
        if let Some(record) = &mut self.record {
            record.timeline.entry(state).or_insert(now);
        }
        (self.state, self.reason) = (state, reason);
        self.send_report().await;
    }

    /// Says how it is now.
    async fn send_report(&mut self) {
        self.sequence += 1;
        let Some(record) = &mut self.record else { return };
        if self.sequence > record.sequence_reserved {
            record.sequence_reserved = self.sequence + IncarnationRecord::SEQUENCE_BLOCK;
            self.write("the reserved numbers of reports").await;
        }
        let Some(record) = &self.record else { return };
        let assignment = &record.assignment;
        let report = Report {
            incarnation: self.id,
            vm: assignment.vm,
            project: assignment.project.clone(),
            token: assignment.token,
            sequence: self.sequence,
            state: self.state,
            reason: self.reason.clone(),
            exit: record.ending.as_ref().map(|ending| ending.exit),
            endpoints: record.endpoints.clone(),
            network: AppliedNetwork {
                revision: record.network_revision,
                trouble: self.network_trouble.clone(),
            },
            timeline: record.timeline.clone(),
            released: record.is_released(),
            purged: record.phase == RecordPhase::Purged,
        };
        self.shared.reports.put(report, self.shared.clock.monotonic());
    }

    /// Writes down how the run ended, and says so. Says whether it is on the disk.
    async fn conclude(&mut self, state: IncarnationState, exit: Exit, reason: Option<Reason>) -> bool {
        let now = self.shared.clock.now();
        let Some(record) = &mut self.record else { return false };
        record.ending = Some(Ending { state, exit, reason: reason.clone() });
        if state == IncarnationState::Stopped {
            // A workload that ends by itself begins to end where it has ended.
            record.timeline.entry(IncarnationState::Stopping).or_insert(now);
        }
        record.timeline.entry(state).or_insert(now);
        if let Some(live) = self.shared.live().get_mut(&self.id) {
            live.exit = Some(exit);
            live.changed();
        }
        tracing::info!(incarnation = %self.id, state = state.as_str(), ?exit, ?reason, "a run ended");
        self.end_written = self.write("how the run ended").await;
        (self.state, self.reason) = (state, reason);
        self.end_written
    }
}

fn ends(order: &Order, draining: bool, recorded: Wanted) -> bool {
    let wanted = match &order.told {
        Some(Told::Gone) => return true,
        Some(Told::Assigned(assignment)) => assignment.wanted,
        None => recorded,
    };
    draining || matches!(wanted, Wanted::Stopped | Wanted::Purged)
}
