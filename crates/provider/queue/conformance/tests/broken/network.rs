//! A client of a queue that is a server, the network between, which can be broken, and a server that can be killed.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flames_clock::{SimulatedClock, Timestamp};
use flames_conformance_runner::{Cut, SimulatedConnection, SimulatedNetwork};
use flames_error::{Error, ErrorKind, Result};
use flames_queue::{
    EnqueueOptions, Enqueued, Job, JobId, Lease, LeaseToken, ParkedPage, Topic, TopicStats, WakeupStream,
    WorkQueue, WorkerId,
};
use flames_queue_conformance::{Faults, async_trait};
use flames_queue_memory::MemoryQueue;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The one way in which a [`Networked`] queue is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// An enqueue whose connection is cut is said to be done.
    CutEnqueuesAreSuccesses,
    CutAcksAreSuccesses,
    /// A lost answer is said to be no change.
    LostAnswersAreUnavailable,
    /// Jobs are deleted when they are handed out.
    TakenIsGone,
    /// A lease ends with the connection of its worker.
    LeasesEndWithTheConnection,
    WaitsForever,
    NeverConnectsAgain,
    HintsDieInSilence,
    PoolIsUnavailable,
    WaitsForeverForItsPool,
    /// A killed server comes back empty.
    JobsLostAtRestart,
    /// A killed server does not know its leases.
    LeasesLostAtRestart,
}

const DEADLINE: Duration = Duration::from_secs(1);
const CONNECTIONS: u32 = 4;
/// What a new connection costs in each direction, and what frames a message.
const GREETING: u64 = 60;
const FRAME: u64 = 40;

/// How a call was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    NoPool,
    NoConnection,
    /// It may have arrived.
    OnTheWay,
}

#[derive(Debug)]
pub(crate) struct Networked {
    fault: Fault,
    server: MemoryQueue,
    pub(crate) network: SimulatedNetwork,
    pool: Arc<Semaphore>,
    dead: AtomicBool,
    leases: Mutex<Vec<LeaseToken>>,
    /// Connections that are open.
    idle: Mutex<Vec<SimulatedConnection>>,
}

impl Networked {
    pub(crate) const DEADLINE: Duration = DEADLINE;

    pub(crate) fn new(fault: Fault, clock: Arc<SimulatedClock>) -> Self {
        Self {
            fault,
            server: MemoryQueue::new(clock),
            network: SimulatedNetwork::with_latency(Duration::from_millis(1)),
            pool: Arc::new(Semaphore::new(CONNECTIONS as usize)),
            dead: AtomicBool::new(false),
            leases: Mutex::default(),
            idle: Mutex::default(),
        }
    }

    pub(crate) async fn every_connection(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.pool).acquire_many_owned(CONNECTIONS).await.unwrap()
    }

    pub(crate) async fn restart_server(&self) {
        self.network.cut_connections().await;
        match self.fault {
            Fault::JobsLostAtRestart => self.server.forget_everything(),
            Fault::LeasesLostAtRestart => self.end_leases().await,
            _ => {}
        }
    }

    async fn end_leases(&self) {
        let leases = std::mem::take(&mut *self.leases.lock().unwrap());
        for lease in leases {
            let _ = self.server.nack(&lease, Timestamp::UNIX_EPOCH).await;
        }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// Sends a request, has it served, and brings the answer back.
    async fn call<T>(&self, bytes: u64, serve: impl Future<Output = T>) -> Result<T, Lost> {
        let forever = Duration::from_secs(100_000);
        let patience = if self.is(Fault::WaitsForeverForItsPool) { forever } else { DEADLINE };
        let Ok(permit) = tokio::time::timeout(patience, self.pool.acquire()).await else {
            return Err(Lost::NoPool);
        };
        let _permit = permit.unwrap();
        let begun = AtomicBool::new(false);
        let work = async {
            if self.dead.load(Ordering::SeqCst) {
                return Err(Cut { arrived: 0 });
            }
            let kept = self.idle.lock().unwrap().pop().filter(|kept| !kept.is_cut());
            let mut connection = match kept {
                Some(kept) => kept,
                None => {
                    let mut new = self.network.connect();
                    new.send(GREETING).await?;
                    new.receive(GREETING).await?;
                    new
                }
            };
            begun.store(true, Ordering::SeqCst);
            connection.send(FRAME + bytes).await?;
            let answer = serve.await;
            connection.receive(FRAME).await?;
            self.idle.lock().unwrap().push(connection);
            Ok(answer)
        };
        let patience = if self.is(Fault::WaitsForever) { forever } else { DEADLINE };
        if let Ok(Ok(answer)) = tokio::time::timeout(patience, work).await {
            return Ok(answer);
        }
        if self.is(Fault::NeverConnectsAgain) {
            self.dead.store(true, Ordering::SeqCst);
        }
        if self.is(Fault::LeasesEndWithTheConnection) {
            self.end_leases().await;
        }
        Err(if begun.load(Ordering::SeqCst) { Lost::OnTheWay } else { Lost::NoConnection })
    }

    fn error(&self, lost: Lost) -> Error {
        let kind = match lost {
            Lost::NoPool if !self.is(Fault::PoolIsUnavailable) => ErrorKind::Exhausted,
            Lost::OnTheWay if !self.is(Fault::LostAnswersAreUnavailable) => ErrorKind::OutcomeUnknown,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, "queue", format!("{lost:?}"))
    }

    fn out_of_reach(&self, lost: Lost) -> Error {
        match lost {
            Lost::OnTheWay => Error::unavailable("queue", "the answer was lost"),
            lost => self.error(lost),
        }
    }

    async fn change<T>(&self, bytes: usize, serve: impl Future<Output = Result<T>>) -> Result<T> {
        let answer = self.call(u64::try_from(bytes).unwrap(), serve).await;
        answer.unwrap_or_else(|lost| Err(self.error(lost)))
    }
}

#[async_trait]
impl WorkQueue for Networked {
    fn name(&self) -> &'static str {
        "networked"
    }

    async fn enqueue(&self, topic: &Topic, payload: Bytes, options: EnqueueOptions) -> Result<Enqueued> {
        options.validate(&payload)?;
        let bytes = u64::try_from(payload.len()).unwrap();
        match self.call(bytes, self.server.enqueue(topic, payload, options)).await {
            Ok(answer) => answer,
            Err(Lost::OnTheWay) if self.is(Fault::CutEnqueuesAreSuccesses) => {
                Ok(Enqueued { job: JobId::new("made-up").unwrap(), coalesced: false })
            }
            Err(lost) => Err(self.error(lost)),
        }
    }

    async fn dequeue(
        &self,
        topic: &Topic,
        worker: &WorkerId,
        max: usize,
        lease: Duration,
    ) -> Result<Vec<Job>> {
        let taken = async {
            let jobs = self.server.dequeue(topic, worker, max, lease).await?;
            if self.is(Fault::TakenIsGone) {
                for job in &jobs {
                    self.server.ack(&job.lease.token).await?;
                }
            }
            self.leases.lock().unwrap().extend(jobs.iter().map(|job| job.lease.token.clone()));
            Ok(jobs)
        };
        self.change(20, taken).await
    }

    async fn extend(&self, lease: &LeaseToken, lease_for: Duration) -> Result<Lease> {
        self.change(20, self.server.extend(lease, lease_for)).await
    }

    async fn ack(&self, lease: &LeaseToken) -> Result<()> {
        match self.call(20, self.server.ack(lease)).await {
            Ok(Err(_)) if self.is(Fault::TakenIsGone) => Ok(()),
            Ok(answer) => answer,
            Err(Lost::OnTheWay) if self.is(Fault::CutAcksAreSuccesses) => Ok(()),
            Err(lost) => Err(self.error(lost)),
        }
    }

    async fn nack(&self, lease: &LeaseToken, retry_at: Timestamp) -> Result<()> {
        self.change(20, self.server.nack(lease, retry_at)).await
    }

    async fn park(&self, lease: &LeaseToken, reason: &str) -> Result<()> {
        self.change(reason.len(), self.server.park(lease, reason)).await
    }

    async fn parked(&self, topic: &Topic, after: Option<&JobId>, limit: usize) -> Result<ParkedPage> {
        let answer = self.call(20, self.server.parked(topic, after, limit)).await;
        answer.unwrap_or_else(|lost| Err(self.out_of_reach(lost)))
    }

    async fn requeue(&self, topic: &Topic, job: &JobId) -> Result<()> {
        self.change(20, self.server.requeue(topic, job)).await
    }

    async fn stats(&self, topic: &Topic) -> Result<TopicStats> {
        let answer = self.call(20, self.server.stats(topic)).await;
        answer.unwrap_or_else(|lost| Err(self.out_of_reach(lost)))
    }

    async fn wakeups(&self, topic: &Topic) -> Result<WakeupStream> {
        let hints = self.server.wakeups(topic).await?;
        let was_cut = self.network.cuts() > 0;
        if self.is(Fault::HintsDieInSilence) && was_cut {
            return Ok(futures::stream::pending().boxed());
        }
        Ok(hints)
    }
}
