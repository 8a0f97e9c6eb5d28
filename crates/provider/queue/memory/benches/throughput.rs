//! Enqueue, dequeue and acknowledge, as fast as one thread can: jobs per second of its processor time, so that a machine with other
//! work to do gives the same figure. `cargo bench -p flames-queue-memory`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_clock::SystemClock;
use flames_queue::{EnqueueOptions, Topic, WorkQueue, WorkerId};
use flames_queue_memory::MemoryQueue;

const ROUNDS: usize = 500_000;
/// Jobs per second that the queue must sustain in a release build.
const BAR: f64 = 300_000.0;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut slow = false;
    for (standing, batch) in [(0, 1), (0, 64), (100_000, 1), (100_000, 64)] {
        let rate = runtime.block_on(rate(standing, batch));
        println!("{standing:>7} standing jobs, batches of {batch:>2}: {rate:>9.0} jobs/s");
        slow |= rate < BAR;
    }
    if slow && !cfg!(debug_assertions) {
        println!("below the bar of {BAR} jobs/s");
        std::process::exit(1);
    }
}

async fn rate(standing: usize, batch: usize) -> f64 {
    let queue: Arc<dyn WorkQueue> = Arc::new(MemoryQueue::new(Arc::new(SystemClock::new())));
    let (topic, worker) = (Topic::new("vms").unwrap(), WorkerId::new("worker-1").unwrap());
    let payload = Bytes::from_static(b"vm_0197f3a2b4c5d6e7");
    let keyed =
        |number: usize| EnqueueOptions { dedupe_key: Some(format!("vm_{number}")), ..Default::default() };
    for number in 0..standing {
        queue.enqueue(&topic, payload.clone(), keyed(number)).await.unwrap();
    }
    let start = processor_time();
    let mut number = standing;
    for _ in 0..ROUNDS / batch {
        for _ in 0..batch {
            queue.enqueue(&topic, payload.clone(), keyed(number)).await.unwrap();
            number += 1;
        }
        let jobs = queue.dequeue(&topic, &worker, batch, Duration::from_secs(30)).await.unwrap();
        assert_eq!(jobs.len(), batch);
        for job in jobs {
            queue.ack(&job.lease.token).await.unwrap();
        }
    }
    f64::from(u32::try_from(number - standing).unwrap()) / (processor_time() - start).as_secs_f64()
}

/// The time that this thread has run (proc(5), `/proc/pid/schedstat`: the first number, in nanoseconds).
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}
