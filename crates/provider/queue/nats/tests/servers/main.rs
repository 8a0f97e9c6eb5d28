//! What the shared suite cannot know: several processes on one stream, a server that dies, answers that are lost, and what a wrong
//! configuration is told. Each case starts a NATS server of its own.

// What fails here fails the case.
#![allow(clippy::unwrap_used)]

mod failures;
mod openings;
mod processes;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_clock::{Clock, ClockExt, SystemClock, SystemRandom};
use flames_conformance_runner::{Row, Suite, run, table};
use flames_error::{Error, ErrorKind};
use flames_queue::{EnqueueOptions, Job, Topic, TopicStats, WorkQueue, WorkerId};
use flames_queue_nats::{Credentials, NatsConfig, NatsQueue};
use flames_test_servers::{Direction, FaultPlan, FaultProxy, Nats};
use tempfile::TempDir;

const LEASE: Duration = Duration::from_secs(60);

struct Server {
    nats: Nats,
    _folder: TempDir,
}

impl Server {
    fn start(settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { nats: Nats::start_with(folder.path(), settings).unwrap(), _folder: folder }
    }

    fn config(&self) -> NatsConfig {
        NatsConfig { operation_deadline: Duration::from_secs(5), ..NatsConfig::at(self.nats.url()) }
    }

    async fn open(&self) -> Arc<NatsQueue> {
        Arc::new(open(self.config()).await.unwrap())
    }
}

async fn open(config: NatsConfig) -> Result<NatsQueue, Error> {
    NatsQueue::open(config, Arc::new(SystemClock::new()), Arc::new(SystemRandom)).await
}

fn topic() -> Topic {
    Topic::new("vms").unwrap()
}

fn keyed(key: &str) -> EnqueueOptions {
    EnqueueOptions { dedupe_key: Some(key.to_owned()), ..EnqueueOptions::default() }
}

async fn take(queue: &NatsQueue, max: usize) -> Vec<Job> {
    queue.dequeue(&topic(), &WorkerId::new("w").unwrap(), max, LEASE).await.unwrap()
}

/// Repeats a call while the connection is being made again.
async fn when_back<T>(call: impl AsyncFn() -> Result<T, Error>) -> T {
    for _ in 0..100 {
        match call().await {
            Ok(value) => return value,
            Err(error) if error.is_retryable() => SystemClock::new().sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("the queue did not come back")
}

struct Nothing(());

impl Deref for Nothing {
    type Target = ();
    fn deref(&self) -> &() {
        &self.0
    }
}

fn rows() -> Vec<Row<Nothing>> {
    table![
        processes:
            two_processes_see_one_queue,
            workers_of_several_processes_share_without_overlap,
            a_key_enqueued_by_many_at_once_makes_one_job,
            no_signal_is_lost_between_processes,
            an_enqueue_elsewhere_wakes_a_waiting_worker;
        failures:
            jobs_and_leases_outlive_a_server_that_is_killed,
            without_a_server_calls_fail_at_once_and_work_again_afterwards,
            a_lost_answer_is_told_as_such_and_the_repetition_makes_no_second_job,
            a_frozen_server_is_given_up_at_the_deadline,
            under_faults_what_was_answered_is_true,
            what_is_no_job_in_the_stream_is_passed_over,
            a_job_that_is_done_is_deleted_by_the_server;
        openings:
            a_server_that_is_not_there_is_named,
            wrong_credentials_and_files_are_named,
            an_account_without_jetstream_is_told_what_to_do,
            a_stream_of_somebody_else_is_left_alone,
            more_replicas_than_servers_are_refused,
            a_full_queue_and_a_full_stream_are_exhausted,
            a_closed_queue_is_unavailable,
    ]
}

fn main() -> ExitCode {
    run(Suite::own_tests("queue-servers", "nats", Nats::find().err(), rows(), || async { Nothing(()) }))
}
