//! Several processes on one stream.

use super::*;

pub(crate) async fn two_processes_see_one_queue(_: &()) {
    let server = Server::start(&[]);
    let (here, there) = (server.open().await, server.open().await);
    for number in 0..20 {
        let queue = if number % 2 == 0 { &here } else { &there };
        queue.enqueue(&topic(), Bytes::from(format!("{number}")), keyed("vm")).await.unwrap();
        let other = if number % 3 == 0 { &here } else { &there };
        let job = take(other, 10).await.pop().unwrap();
        assert_eq!(job.payload, format!("{number}"), "what one enqueues the other takes at once");
        let stats = TopicStats { leased: 1, ..TopicStats::default() };
        assert_eq!(
            (here.stats(&topic()).await.unwrap(), there.stats(&topic()).await.unwrap()),
            (stats, stats)
        );
        queue.extend(&job.lease.token, LEASE).await.unwrap();
        here.ack(&job.lease.token).await.unwrap();
        let lost = there.ack(&job.lease.token).await.unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::LeaseLost, "a lease settles once, wherever");
        assert_eq!(there.stats(&topic()).await.unwrap(), TopicStats::default());
    }
}

pub(crate) async fn workers_of_several_processes_share_without_overlap(_: &()) {
    const JOBS: usize = 300;
    let server = Server::start(&[]);
    let queues = [server.open().await, server.open().await, server.open().await];
    let adding =
        (0..JOBS).map(|number| {
            let queue = &queues[number % 3];
            async move {
                queue.enqueue(&topic(), Bytes::from(format!("{number}")), EnqueueOptions::default()).await
            }
        });
    for added in futures::future::join_all(adding).await {
        added.unwrap();
    }
    let workers = (0..6).map(|number| {
        let queue = Arc::clone(&queues[number % 3]);
        tokio::spawn(async move {
            let mut seen = Vec::new();
            loop {
                let jobs = take(&queue, 7).await;
                if jobs.is_empty() {
                    return seen;
                }
                for job in jobs {
                    queue.ack(&job.lease.token).await.unwrap();
                    seen.push(job.payload);
                }
            }
        })
    });
    let mut deliveries = BTreeMap::<Bytes, usize>::new();
    for worker in futures::future::join_all(workers).await {
        for payload in worker.unwrap() {
            *deliveries.entry(payload).or_default() += 1;
        }
    }
    assert!(deliveries.values().all(|count| *count == 1), "no job is delivered twice: {deliveries:?}");
    // A worker may stop at a moment when others held all that was left, but nobody gave anything back.
    assert_eq!(deliveries.len(), JOBS, "each job is delivered");
    for queue in &queues {
        assert_eq!(queue.stats(&topic()).await.unwrap(), TopicStats::default());
    }
}

pub(crate) async fn a_key_enqueued_by_many_at_once_makes_one_job(_: &()) {
    let server = Server::start(&[]);
    let queues = [server.open().await, server.open().await];
    let adding = (0..32).map(|number| {
        let queue = Arc::clone(&queues[number % 2]);
        tokio::spawn(
            async move { queue.enqueue(&topic(), Bytes::from(format!("{number}")), keyed("vm")).await },
        )
    });
    let mut made = 0;
    for added in futures::future::join_all(adding).await {
        made += usize::from(!added.unwrap().unwrap().coalesced);
    }
    assert_eq!(made, 1, "one made the job, the others met it");
    assert_eq!(take(&queues[0], 256).await.len(), 1);
    assert_eq!(take(&queues[1], 256).await.len(), 0);
}

pub(crate) async fn no_signal_is_lost_between_processes(_: &()) {
    const SIGNALS: usize = 400;
    let server = Server::start(&[]);
    let (signals, works) = (server.open().await, server.open().await);
    let signalling = tokio::spawn(async move {
        for number in 1..=SIGNALS {
            signals.enqueue(&topic(), Bytes::from(number.to_string()), keyed("vm")).await.unwrap();
        }
    });
    let mut last = 0;
    while last < SIGNALS {
        for job in take(&works, 4).await {
            let number: usize = std::str::from_utf8(&job.payload).unwrap().parse().unwrap();
            assert!(number >= last, "{number} after {last}: an older payload came back");
            last = number;
            works.ack(&job.lease.token).await.unwrap();
        }
        assert!(
            last == SIGNALS
                || !signalling.is_finished()
                || works.stats(&topic()).await.unwrap() != TopicStats::default(),
            "the queue is empty and signal {SIGNALS} was never delivered; the last one was {last}"
        );
    }
    signalling.await.unwrap();
}

pub(crate) async fn an_enqueue_elsewhere_wakes_a_waiting_worker(_: &()) {
    use futures::StreamExt;
    let server = Server::start(&[]);
    let (here, there) = (server.open().await, server.open().await);
    let mut hints = here.wakeups(&topic()).await.unwrap();
    there.enqueue(&topic(), Bytes::new(), EnqueueOptions::default()).await.unwrap();
    let hint = SystemClock::new().timeout(Duration::from_secs(5), hints.next()).await;
    assert_eq!(hint, Ok(Some(())));
    assert_eq!(take(&here, 1).await.len(), 1);
}
