//! Takes jobs and has the VMs that they name brought a step further, several in one commit where that can be.

use std::sync::Arc;
use std::time::Duration;

use flames_clock::{ClockExt, RandomExt};
use flames_error::{Error, ErrorKind, Result};
use flames_queue::{Job, Topic, WakeupStream, WorkerId};
use flames_records::DueKey;
use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{Done, ReconcileParts, VmReconciler};

/// How many times a commit lets all else go first, by turns. Fewer, and requests wait for what was accepted before them; more, and it is done later, with
/// memory that is cold by then. Found by measuring: see `docs/plan.md`, `bench api`.
const YIELDS: [u32; 2] = [1, 2];
/// The longest pause before a job that failed is tried again.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// One worker. `listening` is the turn to wait for jobs: who has taken some hands it on, so that a job wakes one worker and not all.
pub(crate) async fn run(
    parts: ReconcileParts,
    vms: Arc<VmReconciler>,
    topic: Topic,
    number: usize,
    listening: Arc<Semaphore>,
    stop: CancellationToken,
) {
    let Ok(worker) = WorkerId::new(format!("reconcile-{number}")) else { return };
    let mut wakeups: Option<WakeupStream> = None;
    let mut commits = 0;
    while let Some(turn) = stop.run_until_cancelled(listening.acquire()).await {
        let jobs = take(&parts, &topic, &worker, &mut wakeups, &stop).await;
        drop(turn);
        let until = parts.clock.monotonic().saturating_add(parts.config.job_lease);
        let jobs = readable(&parts, jobs).await;
        let keys: Vec<DueKey> = jobs.iter().map(|(_, due)| due.clone()).collect();
        let mut done = 0;
        // When the time is up, the lease of the rest ends, and another worker takes it.
        while done < jobs.len() && !stop.is_cancelled() && parts.clock.monotonic() < until {
            for outcome in vms.reconcile_together(&keys[done..]).await {
                let Some((job, due)) = jobs.get(done) else { break };
                settle(&parts, job, due, outcome).await;
                done += 1;
            }
            // Over a store that answers at once nothing else here ever waits, and requests come first: on a busy server each commit waits
            // for so many rounds of all else that is ready, on an idle one for nothing.
            commits += 1;
            for _ in 0..YIELDS[commits % YIELDS.len()] {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// The next jobs, as soon as there are any. None of them: the worker is to stop.
async fn take(
    parts: &ReconcileParts,
    topic: &Topic,
    worker: &WorkerId,
    wakeups: &mut Option<WakeupStream>,
    stop: &CancellationToken,
) -> Vec<Job> {
    loop {
        if wakeups.is_none() {
            *wakeups = parts.queue.wakeups(topic).await.ok();
        }
        // Nobody else takes any meanwhile, so it must not hang. What was leased and not heard of is delivered again.
        let lease = parts.config.job_lease;
        let taking = parts.queue.dequeue(topic, worker, parts.config.batch, lease);
        match parts.clock.timeout(lease, taking).await {
            Ok(Ok(jobs)) if !jobs.is_empty() => return jobs,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "no jobs can be taken; trying again"),
            Err(late) => tracing::warn!(%late, "the queue does not answer; trying again"),
        }
        let idle = async {
            match wakeups {
                Some(stream) => {
                    if stream.next().await.is_none() {
                        *wakeups = None;
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return Vec::new(),
            () = idle => {}
            () = parts.clock.sleep(parts.config.poll) => {}
        }
    }
}

/// The jobs that name a due entry, each with it. One that does not never will.
async fn readable(parts: &ReconcileParts, jobs: Vec<Job>) -> Vec<(Job, DueKey)> {
    let mut readable = Vec::with_capacity(jobs.len());
    for job in jobs {
        match String::from_utf8_lossy(&job.payload).parse() {
            Ok(due) => readable.push((job, due)),
            Err(error) => {
                let error: Error = error;
                note(parts.queue.park(&job.lease.token, &error.to_string()).await);
            }
        }
    }
    readable
}

/// Tells the queue what became of a job.
async fn settle(parts: &ReconcileParts, job: &Job, due: &DueKey, outcome: Result<Done>) {
    note(match outcome {
        Ok(_) => parts.queue.ack(&job.lease.token).await,
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotSupported) => {
            tracing::error!(%error, %due, "a VM cannot be reconciled");
            parts.queue.park(&job.lease.token, &error.to_string()).await
        }
        Err(error) => {
            tracing::warn!(%error, %due, "a VM was not reconciled; trying again");
            let doublings = job.attempt.min(10);
            let longest = Duration::from_millis(100 << doublings).min(LONGEST_RETRY);
            let longest_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
            let pause = Duration::from_millis(longest_ms / 2 + parts.random.below(longest_ms / 2 + 1));
            parts.queue.nack(&job.lease.token, parts.clock.now_plus(pause)).await
        }
    });
}

fn note(settled: Result<()>) {
    if let Err(error) = settled {
        // The job is delivered again, and finds nothing to do.
        tracing::debug!(%error, "a job was not settled");
    }
}
