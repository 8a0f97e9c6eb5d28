//! WorkQueue.
//!
//! One unit is a job's whole way: enqueue, dequeue, ack, each answered. By hand the same is done with what the backend has: an insert, an
//! update with `SKIP LOCKED` that gives a lease and counts deliveries, and a delete that checks both; or JetStream's publish, pull and double
//! ack. By hand there is no dedupe, no priority, no delay and no fence.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use bytes::Bytes;
use flames_queue::{EnqueueOptions, LeaseToken, MAX_BATCH, Topic, WorkQueue, WorkerId};

use super::compare::{Operation, compare, operation, rates};
use super::servers::Servers;
use super::{Findings, ProvidersArguments, figure};
use crate::measure::count;
use crate::report::Row;

pub(crate) const LEASE: Duration = Duration::from_secs(60);
/// Jobs of one emptying of the queue.
const FULL: usize = 2_048;
/// Workers that empty it.
const WORKERS: usize = 4;
/// Clients of one turn.
const CLIENTS: [usize; 2] = [1, 16];
/// The size of a batch.
const BATCH: usize = 32;

pub(crate) fn topic() -> Result<Topic> {
    Ok(Topic::new("bench")?)
}

/// A queue made by hand.
#[async_trait]
pub(crate) trait BareQueue: Send + Sync + 'static {
    /// What a job in hand is known by.
    type Taken: Send + 'static;
    async fn add(&self, payload: Bytes) -> Result<()>;
    async fn take(&self, max: usize) -> Result<Vec<Self::Taken>>;
    async fn finish(&self, taken: Self::Taken) -> Result<()>;
}

/// One of ours.
pub(crate) struct Ours {
    pub(crate) queue: Arc<dyn WorkQueue>,
    topic: Topic,
    worker: WorkerId,
}

impl Ours {
    pub(crate) fn new(queue: Arc<dyn WorkQueue>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { queue, topic: topic()?, worker: WorkerId::new("bench")? }))
    }
}

#[async_trait]
impl BareQueue for Ours {
    type Taken = LeaseToken;
    async fn add(&self, payload: Bytes) -> Result<()> {
        self.queue.enqueue(&self.topic, payload, EnqueueOptions::default()).await?;
        Ok(())
    }
    async fn take(&self, max: usize) -> Result<Vec<LeaseToken>> {
        let jobs = self.queue.dequeue(&self.topic, &self.worker, max, LEASE).await?;
        Ok(jobs.into_iter().map(|job| job.lease.token).collect())
    }
    async fn finish(&self, taken: LeaseToken) -> Result<()> {
        Ok(self.queue.ack(&taken).await?)
    }
}

fn payload() -> Bytes {
    Bytes::from_static(b"vm_0123456789abcdef")
}

/// A job's whole way.
fn ways<Q: BareQueue>(queue: &Arc<Q>) -> Operation {
    operation(queue, async |queue, _| {
        queue.add(payload()).await?;
        let taken = queue.take(1).await?;
        let done = taken.len();
        for job in taken {
            queue.finish(job).await?;
        }
        // Of several clients one may find nothing, when others took what it added.
        Ok(done)
    })
}

/// Takes what is left of a measurement.
async fn drain<Q: BareQueue>(queue: &Q) -> Result<()> {
    loop {
        let taken = queue.take(MAX_BATCH).await?;
        if taken.is_empty() {
            return Ok(());
        }
        for done in futures::future::join_all(taken.into_iter().map(|job| queue.finish(job))).await {
            done?;
        }
    }
}

/// Jobs a second of emptying a queue in batches, each batch acknowledged at once.
async fn emptying<Q: BareQueue>(queue: &Arc<Q>, batch: usize) -> Result<f64> {
    drain(&**queue).await?;
    for _ in 0..FULL / 64 {
        for added in futures::future::join_all((0..64).map(|_| queue.add(payload()))).await {
            added?;
        }
    }
    let began = Instant::now();
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let queue = Arc::clone(queue);
            tokio::spawn(async move {
                let mut done = 0;
                loop {
                    let taken = queue.take(batch).await?;
                    if taken.is_empty() {
                        return anyhow::Ok(done);
                    }
                    done += taken.len();
                    for ended in
                        futures::future::join_all(taken.into_iter().map(|job| queue.finish(job))).await
                    {
                        ended?;
                    }
                }
            })
        })
        .collect();
    let mut done = 0;
    for worker in workers {
        done += worker.await??;
    }
    anyhow::ensure!(done == FULL, "{done} of {FULL} jobs came back");
    Ok(count(FULL) / began.elapsed().as_secs_f64())
}

/// Bars beyond those of every adapter.
#[derive(Clone, Copy)]
pub(crate) struct Goals {
    pub(crate) batches: Option<f64>,
    pub(crate) flat: f64,
    /// How many old jobs there are for `flat`.
    pub(crate) old_jobs: u32,
}

/// Measures one queue beside one made by hand. `age` fills ours with old jobs.
pub(crate) async fn beside<Q: BareQueue>(
    name: &str,
    arguments: &ProvidersArguments,
    findings: &mut Findings,
    (ours, bare): (&Arc<Ours>, &Arc<Q>),
    goals: Goals,
    age: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let mut rows = Vec::<Row>::new();
    for clients in CLIENTS {
        let compared = compare(arguments.effort(), clients, &ways(ours), &ways(bare)).await?;
        rows.push(compared.row(format!("{clients} clients")));
        findings.adapter_bars(&format!("queue/{name}, {clients} clients"), &compared);
    }
    findings.section(format!("queue/{name} beside the same by hand: enqueue, dequeue, ack"), "load", rows);

    let [ours_one, bare_one, ours_many, bare_many] = rates(arguments.rounds, async |way| match way {
        0 => emptying(ours, 1).await,
        1 => emptying(bare, 1).await,
        2 => emptying(ours, BATCH).await,
        _ => emptying(bare, BATCH).await,
    })
    .await?;
    let row = |key: &str, ours: f64, bare: f64| Row {
        key: key.to_owned(),
        figures: vec![figure("ours /s", ours), figure("bare /s", bare), figure("ratio", ours / bare)],
    };
    let rows = vec![
        row("one at a time", ours_one, bare_one),
        row("batches of 32", ours_many, bare_many),
        row("batches / one at a time", ours_many / ours_one, bare_many / bare_one),
    ];
    findings.section(
        format!("queue/{name}: {WORKERS} workers empty a queue of {FULL} (dequeue and ack)"),
        "way",
        rows,
    );
    if let Some(goal) = goals.batches {
        findings.at_least(format!("queue/{name}: batches of 32 / one at a time"), goal, ours_many / ours_one);
    }
    findings.at_least(format!("queue/{name}, batches of 32: ours / bare"), 0.85, ours_many / bare_many);

    let young = way_rate(arguments, ours).await?;
    age().await?;
    let old = way_rate(arguments, ours).await?;
    let figures = vec![figure("young /s", young), figure("old /s", old), figure("young / old", young / old)];
    findings.section(
        format!("queue/{name} before and after {} old jobs", goals.old_jobs),
        "clients",
        vec![Row { key: "16".to_owned(), figures }],
    );
    findings.at_most(
        format!("queue/{name}: without / with {} old jobs", goals.old_jobs),
        goals.flat,
        young / old,
    );
    Ok(())
}

/// Measures a job's whole way beside another way of doing it by hand.
#[cfg_attr(not(feature = "nats"), allow(dead_code, reason = "only JetStream has two ways"))]
pub(crate) async fn beside_another<Q: BareQueue>(
    name: &str,
    how: &str,
    arguments: &ProvidersArguments,
    findings: &mut Findings,
    (ours, bare): (&Arc<Ours>, &Arc<Q>),
) -> Result<()> {
    let mut rows = Vec::<Row>::new();
    for clients in CLIENTS {
        let compared = compare(arguments.effort(), clients, &ways(ours), &ways(bare)).await?;
        rows.push(compared.row(format!("{clients} clients")));
        findings.adapter_bars(&format!("queue/{name} beside {how}, {clients} clients"), &compared);
    }
    findings.section(format!("queue/{name} beside {how} by hand"), "load", rows);
    Ok(())
}

/// Jobs a second of ours alone.
async fn way_rate(arguments: &ProvidersArguments, ours: &Arc<Ours>) -> Result<f64> {
    let ways = ways(ours);
    let compared = compare(arguments.effort(), 16, &ways, &ways).await?;
    Ok(crate::measure::median([compared.ours.rates, compared.bare.rates].concat()))
}

pub(crate) async fn measure(arguments: &ProvidersArguments, servers: &Servers, findings: &mut Findings) {
    #[cfg(feature = "sqlite")]
    {
        let measured = super::queue_sql::sqlite::measure(arguments, findings).await;
        findings.attempted("queue/sqlite", measured);
    }
    #[cfg(feature = "postgres")]
    match servers.postgres() {
        Ok(url) => {
            let measured = super::queue_sql::postgres::measure(arguments, &url, findings).await;
            findings.attempted("queue/postgres", measured);
        }
        Err(missing) => findings.skip("queue/postgres", missing),
    }
    #[cfg(feature = "nats")]
    match servers.nats() {
        Ok(url) => {
            let measured = super::queue_nats::measure(arguments, &url, findings).await;
            findings.attempted("queue/nats", measured);
        }
        Err(missing) => findings.skip("queue/nats", missing),
    }
    #[cfg(not(any(feature = "postgres", feature = "nats")))]
    let _ = servers;
}
