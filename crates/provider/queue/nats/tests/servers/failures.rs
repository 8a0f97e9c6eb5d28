//! A server that dies, answers that are lost, and what is left afterwards.

use super::*;

pub(crate) async fn jobs_and_leases_outlive_a_server_that_is_killed(_: &()) {
    let server = Server::start(&[]);
    let queue = server.open().await;
    queue.enqueue(&topic(), Bytes::from_static(b"parked"), keyed("parked")).await.unwrap();
    let parked = take(&queue, 1).await.remove(0);
    queue.park(&parked.lease.token, "why").await.unwrap();
    queue.enqueue(&topic(), Bytes::from_static(b"leased"), keyed("leased")).await.unwrap();
    let leased = take(&queue, 1).await.remove(0);
    let later = SystemClock::new().now_plus(Duration::from_secs(3_600));
    let delayed = EnqueueOptions { not_before: Some(later), ..EnqueueOptions::default() };
    queue.enqueue(&topic(), Bytes::from_static(b"delayed"), delayed).await.unwrap();
    queue.enqueue(&topic(), Bytes::from_static(b"ready"), EnqueueOptions::default()).await.unwrap();

    server.nats.restart().unwrap();
    let stats = when_back(async || queue.stats(&topic()).await).await;
    assert_eq!(stats, TopicStats { ready: 1, delayed: 1, leased: 1, parked: 1 });
    assert_eq!(take(&queue, 10).await[0].payload, "ready");
    queue.ack(&leased.lease.token).await.unwrap();
    let page = queue.parked(&topic(), None, 10).await.unwrap();
    assert_eq!((page.jobs[0].reason.as_str(), &page.jobs[0].id), ("why", &parked.id));
    // Another process that never saw the first server.
    let fresh = server.open().await;
    assert_eq!(
        fresh.stats(&topic()).await.unwrap(),
        TopicStats { ready: 0, delayed: 1, leased: 1, parked: 1 }
    );
}

pub(crate) async fn without_a_server_calls_fail_at_once_and_work_again_afterwards(_: &()) {
    let server = Server::start(&[]);
    let queue = server.open().await;
    queue.enqueue(&topic(), Bytes::new(), keyed("vm")).await.unwrap();
    let job = take(&queue, 1).await.remove(0);
    server.nats.kill();
    let clock = SystemClock::new();
    while queue.stats(&topic()).await.is_ok() {
        clock.sleep(Duration::from_millis(20)).await;
    }
    let start = clock.monotonic();
    let kinds = [
        queue.enqueue(&topic(), Bytes::new(), keyed("vm")).await.unwrap_err().kind(),
        queue.dequeue(&topic(), &WorkerId::new("w").unwrap(), 1, LEASE).await.unwrap_err().kind(),
        queue.ack(&job.lease.token).await.unwrap_err().kind(),
        queue.extend(&job.lease.token, LEASE).await.unwrap_err().kind(),
        queue.stats(&topic()).await.unwrap_err().kind(),
    ];
    assert_eq!(kinds, [ErrorKind::Unavailable; 5]);
    assert!(clock.monotonic().saturating_since(start) < Duration::from_secs(1), "nothing waits");
    server.nats.restart().unwrap();
    when_back(async || queue.ack(&job.lease.token).await).await;
    assert_eq!(queue.stats(&topic()).await.unwrap(), TopicStats::default());
}

pub(crate) async fn a_lost_answer_is_told_as_such_and_the_repetition_makes_no_second_job(_: &()) {
    let server = Server::start(&[]);
    let proxy = FaultProxy::start(server.nats.address()).await.unwrap();
    let config = NatsConfig {
        servers: vec![format!("nats://{}", proxy.address())],
        operation_deadline: Duration::from_secs(2),
        ..server.config()
    };
    let queue = open(config).await.unwrap();
    queue.stats(&topic()).await.unwrap();
    proxy.swallow(Direction::ToClient);
    let lost = queue.enqueue(&topic(), Bytes::from_static(b"1"), keyed("vm")).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::OutcomeUnknown, "{lost:?}");
    assert_eq!(server.open().await.stats(&topic()).await.unwrap().ready, 1, "it was done all the same");
    proxy.heal();
    proxy.cut_now();
    let again =
        when_back(async || queue.enqueue(&topic(), Bytes::from_static(b"2"), keyed("vm")).await).await;
    assert!(again.coalesced);
    let jobs = take(&queue, 10).await;
    assert_eq!((jobs.len(), &*jobs[0].payload), (1, &b"2"[..]));
}

pub(crate) async fn a_frozen_server_is_given_up_at_the_deadline(_: &()) {
    let server = Server::start(&[]);
    let config = NatsConfig { operation_deadline: Duration::from_secs(1), ..server.config() };
    let queue = open(config).await.unwrap();
    queue.stats(&topic()).await.unwrap();
    server.nats.freeze();
    let clock = SystemClock::new();
    // The kernel stops its threads one by one.
    clock.sleep(Duration::from_millis(300)).await;
    let start = clock.monotonic();
    let kind = queue.enqueue(&topic(), Bytes::new(), keyed("vm")).await.unwrap_err().kind();
    assert_eq!(kind, ErrorKind::OutcomeUnknown);
    assert_eq!(queue.stats(&topic()).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(clock.monotonic().saturating_since(start) < Duration::from_secs(4));
    server.nats.thaw();
    when_back(async || queue.stats(&topic()).await).await;
}

pub(crate) async fn under_faults_what_was_answered_is_true(_: &()) {
    const JOBS: usize = 150;
    let server = Server::start(&[]);
    let seed = FaultPlan::seed_from_environment();
    let plan = FaultPlan { healthy_percent: 0, max_bytes: 64 * 1024, ..FaultPlan::new(seed) };
    let proxy = FaultProxy::seeded(server.nats.address(), plan).await.unwrap();
    let config = NatsConfig {
        servers: vec![format!("nats://{}", proxy.address())],
        operation_deadline: Duration::from_secs(1),
        ..server.config()
    };
    let queue = when_back(async || open(config.clone()).await).await;
    let worker = WorkerId::new("w").unwrap();
    let (mut added, mut settled, mut acknowledged) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for number in 0..JOBS {
        let payload = Bytes::from(number.to_string());
        if queue.enqueue(&topic(), payload.clone(), keyed(&number.to_string())).await.is_ok() {
            added.insert(payload);
        } else {
            // The connection is being made again.
            SystemClock::new().sleep(Duration::from_millis(50)).await;
        }
        if number % 10 == 9 {
            // A new connection, and a new fault.
            proxy.cut_now();
        }
        if number % 3 > 0 {
            continue;
        }
        for job in queue.dequeue(&topic(), &worker, 2, Duration::from_secs(2)).await.unwrap_or_default() {
            settled.insert(job.payload.clone());
            if queue.ack(&job.lease.token).await.is_ok() {
                acknowledged.insert(job.payload);
            }
        }
    }
    assert!(proxy.connections() > 5, "{} connections", proxy.connections());
    assert!(added.len() > JOBS / 4, "only {} were added", added.len());
    // Leases that were taken and never heard of end, some of them late: what was slow in a stalled connection was leased when it arrived.
    let (observer, mut left) = (server.open().await, BTreeSet::new());
    let missing = |left: &BTreeSet<Bytes>| {
        added.iter().find(|payload| !left.contains(*payload) && !settled.contains(*payload)).cloned()
    };
    for _ in 0..60 {
        left.extend(take(&observer, 256).await.into_iter().map(|job| job.payload));
        if missing(&left).is_none() {
            break;
        }
        SystemClock::new().sleep(Duration::from_millis(500)).await;
    }
    let gone = missing(&left);
    assert!(gone.is_none(), "job {gone:?} was taken in and is gone (FLAMES_TEST_SEED={seed})");
    for payload in &acknowledged {
        assert!(!left.contains(payload), "job {payload:?} was done and is back (FLAMES_TEST_SEED={seed})");
    }
}

pub(crate) async fn what_is_no_job_in_the_stream_is_passed_over(_: &()) {
    let server = Server::start(&[]);
    let queue = server.open().await;
    let client = async_nats::connect(server.nats.url()).await.unwrap();
    let context = async_nats::jetstream::new(client);
    for subject in ["flames.jobs.vms.kx", "flames.jobs.odd"] {
        context.publish(subject, Bytes::from_static(b"nonsense")).await.unwrap().await.unwrap();
    }
    queue.enqueue(&topic(), Bytes::new(), EnqueueOptions::default()).await.unwrap();
    assert_eq!(queue.stats(&topic()).await.unwrap(), TopicStats { ready: 1, ..TopicStats::default() });
    assert_eq!(server.open().await.stats(&topic()).await.unwrap().ready, 1);
}

pub(crate) async fn a_job_that_is_done_is_deleted_by_the_server(_: &()) {
    let server = Server::start(&[]);
    let queue = server.open().await;
    let id = queue.enqueue(&topic(), Bytes::new(), keyed("vm")).await.unwrap().job;
    let job = take(&queue, 1).await.remove(0);
    queue.ack(&job.lease.token).await.unwrap();
    let client = async_nats::connect(server.nats.url()).await.unwrap();
    let stream = async_nats::jetstream::new(client).get_stream("flames_jobs").await.unwrap();
    let message = stream.get_last_raw_message_by_subject(&format!("flames.jobs.vms.{id}")).await.unwrap();
    let end = message.headers.get("Nats-TTL").map(|value| value.as_str().to_owned());
    assert_eq!(end.as_deref(), Some("30"), "its last message has an end");
    assert_eq!(stream.get_info().await.unwrap().state.messages, 1, "and is all that is left of it");
}
