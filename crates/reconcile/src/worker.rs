//! Takes jobs and has the VM that each names brought a step further.

use std::sync::Arc;
use std::time::Duration;

use flames_clock::{ClockExt, RandomExt};
use flames_error::{ErrorKind, Result};
use flames_queue::{Job, Topic, WakeupStream, WorkerId};
use flames_records::DueKey;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::{ReconcileParts, VmReconciler};

/// The longest pause before a job that failed is tried again.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

pub(crate) async fn run(
    parts: ReconcileParts,
    vms: Arc<VmReconciler>,
    topic: Topic,
    number: usize,
    stop: CancellationToken,
) {
    let Ok(worker) = WorkerId::new(format!("reconcile-{number}")) else { return };
    let mut wakeups: Option<WakeupStream> = None;
    while !stop.is_cancelled() {
        if wakeups.is_none() {
            wakeups = parts.queue.wakeups(&topic).await.ok();
        }
        match parts.queue.dequeue(&topic, &worker, parts.config.batch, parts.config.job_lease).await {
            Ok(jobs) if !jobs.is_empty() => {
                let until = parts.clock.monotonic().saturating_add(parts.config.job_lease);
                for job in jobs {
                    if stop.is_cancelled() || parts.clock.monotonic() >= until {
                        // The lease of the rest ends, and another worker takes it.
                        break;
                    }
                    work(&parts, &vms, job).await;
                }
                continue;
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "no jobs can be taken; trying again"),
        }
        let idle = async {
            match &mut wakeups {
                Some(stream) => {
                    if stream.next().await.is_none() {
                        wakeups = None;
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = idle => {}
            () = parts.clock.sleep(parts.config.poll) => {}
        }
    }
}

async fn work(parts: &ReconcileParts, vms: &VmReconciler, job: Job) {
    let settled = match due_key(&job) {
        Ok(due) => match vms.reconcile(&due).await {
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
        },
        Err(error) => parts.queue.park(&job.lease.token, &error.to_string()).await,
    };
    if let Err(error) = settled {
        // The job is delivered again, and finds nothing to do.
        tracing::debug!(%error, "a job was not settled");
    }
}

fn due_key(job: &Job) -> Result<DueKey> {
    String::from_utf8_lossy(&job.payload).parse()
}
