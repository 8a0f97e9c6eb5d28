//! Brings due entries to the queue.

use bytes::Bytes;
use flames_clock::Monotonic;
use flames_error::Result;
use flames_queue::{EnqueueOptions, Topic};
use flames_records::{DUE_SHARDS, DueKey, Hint, HintStream, Records};
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::ReconcileParts;

/// How many due entries one read of a scan takes.
const SCAN_PAGE: usize = 256;
/// How many times as long as a scan took nothing is scanned after it, at most until the next poll.
const SCAN_PAUSE: u32 = 4;

pub(crate) async fn run(parts: ReconcileParts, topic: Topic, stop: CancellationToken) {
    let relay = async {
        loop {
            match subscribe(&parts).await {
                Ok(hints) => Relay::new(&parts, &topic, hints).run().await,
                Err(error) => tracing::warn!(%error, "due entries cannot be followed; trying again"),
            }
            parts.clock.sleep(parts.config.poll).await;
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = relay => {}
    }
}

async fn subscribe(parts: &ReconcileParts) -> Result<HintStream> {
    parts.records.changes(&Records::due_prefix()?).await
}

/// Relays what is hinted at once, and what is due by scanning now and then.
struct Relay<'a> {
    parts: &'a ReconcileParts,
    topic: &'a Topic,
    hints: HintStream,
    ended: bool,
    /// Whether hints were lost since the last scan began.
    lost: bool,
    next_scan: Monotonic,
    /// Not to scan before, though hints were lost: see [`Relay::scan`].
    earliest_scan: Monotonic,
}

impl<'a> Relay<'a> {
    fn new(parts: &'a ReconcileParts, topic: &'a Topic, hints: HintStream) -> Self {
        let now = parts.clock.monotonic();
        Self { parts, topic, hints, ended: false, lost: false, next_scan: now, earliest_scan: now }
    }

    /// Until the hints end.
    async fn run(mut self) {
        while !self.ended {
            let due = if self.lost { self.earliest_scan } else { self.next_scan };
            let left = due.saturating_since(self.parts.clock.monotonic());
            // Looked at before the hints: where they never cease, they must not hold up the scan.
            if left.is_zero() {
                self.scan().await;
                continue;
            }
            let hint = tokio::select! {
                biased;
                hint = self.hints.next() => hint,
                () = self.parts.clock.sleep(left) => continue,
            };
            self.take(hint).await;
        }
    }

    async fn take(&mut self, hint: Option<Hint>) {
        match hint {
            Some(Hint::Changed(key)) => {
                if let Some(due) = Records::due_key_of(&key)
                    && let Err(error) = relay(self.parts, self.topic, &due).await
                {
                    tracing::debug!(%error, %due, "a due entry was not queued; the scan will");
                }
            }
            Some(Hint::Lost) => self.lost = true,
            None => self.ended = true,
        }
    }

    /// Queues every entry that is due, and plans the next scan.
    ///
    /// Hints are lost when much is due, and a scan reads all that is: scans that followed each other would leave a large backlog no time to be
    /// worked off.
    async fn scan(&mut self) {
        let began = self.parts.clock.monotonic();
        self.lost = false;
        if let Err(error) = self.queue_all().await {
            tracing::warn!(%error, "due entries cannot be scanned; trying again");
        }
        let ended = self.parts.clock.monotonic();
        let pause = ended.saturating_since(began).saturating_mul(SCAN_PAUSE).min(self.parts.config.poll);
        self.earliest_scan = ended.saturating_add(pause);
        self.next_scan = ended.saturating_add(self.parts.config.poll);
    }

    /// Queues every entry that is due. Those that are queued or leased already coalesce by their dedupe key.
    async fn queue_all(&mut self) -> Result<()> {
        let now = self.parts.clock.now();
        for shard in 0..DUE_SHARDS {
            let mut after: Option<DueKey> = None;
            loop {
                let page = self.parts.records.due_entries(shard, now, after.as_ref(), SCAN_PAGE).await?;
                for entry in &page.items {
                    enqueue(self.parts, self.topic, &entry.key).await?;
                }
                // None is lost because a scan takes long.
                while !self.ended
                    && let Some(hint) = self.hints.next().now_or_never()
                {
                    self.take(hint).await;
                }
                match page.next {
                    // Over a store that answers at once nothing else here ever waits.
                    Some(next) => {
                        after = Some(next);
                        tokio::task::yield_now().await;
                    }
                    None => break,
                }
            }
        }
        Ok(())
    }
}

/// Queues the entry that a hint was about, if it is there: a hint tells of one that was settled too.
async fn relay(parts: &ReconcileParts, topic: &Topic, due: &DueKey) -> Result<()> {
    match parts.records.due(due).await? {
        Some(_) => enqueue(parts, topic, due).await,
        None => Ok(()),
    }
}

async fn enqueue(parts: &ReconcileParts, topic: &Topic, due: &DueKey) -> Result<()> {
    let text = due.to_string();
    let not_before = Some(due.at).filter(|at| *at > parts.clock.now());
    let options = EnqueueOptions { dedupe_key: Some(text.clone()), not_before, ..EnqueueOptions::default() };
    parts.queue.enqueue(topic, Bytes::from(text), options).await.map(|_| ())
}
