//! Brings due entries to the queue.

use bytes::Bytes;
use flames_error::Result;
use flames_queue::{EnqueueOptions, Topic};
use flames_records::{DUE_SHARDS, DueKey, Hint, HintStream, Records};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::ReconcileParts;

/// How many due entries one read of a scan takes.
const SCAN_PAGE: usize = 256;

pub(crate) async fn run(parts: ReconcileParts, topic: Topic, stop: CancellationToken) {
    let relay = async {
        loop {
            match subscribe(&parts).await {
                Ok(hints) => follow(&parts, &topic, hints).await,
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

/// Relays what is hinted at once, and what is due by scanning now and then, until the hints end.
async fn follow(parts: &ReconcileParts, topic: &Topic, mut hints: HintStream) {
    scan_or_log(parts, topic).await;
    let mut next_scan = parts.clock.monotonic().saturating_add(parts.config.poll);
    loop {
        let left = next_scan.saturating_since(parts.clock.monotonic());
        let hint = tokio::select! {
            biased;
            hint = hints.next() => hint,
            () = parts.clock.sleep(left) => Some(Hint::Lost),
        };
        match hint {
            Some(Hint::Changed(key)) => {
                if let Some(due) = Records::due_key_of(&key)
                    && let Err(error) = enqueue(parts, topic, &due).await
                {
                    tracing::debug!(%error, %due, "a due entry was not queued; the scan will");
                }
            }
            Some(Hint::Lost) => {
                scan_or_log(parts, topic).await;
                next_scan = parts.clock.monotonic().saturating_add(parts.config.poll);
            }
            None => return,
        }
    }
}

async fn scan_or_log(parts: &ReconcileParts, topic: &Topic) {
    if let Err(error) = scan(parts, topic).await {
        tracing::warn!(%error, "due entries cannot be scanned; trying again");
    }
}

/// Queues every entry that is due. Those that are queued or leased already coalesce by their dedupe key.
async fn scan(parts: &ReconcileParts, topic: &Topic) -> Result<()> {
    let now = parts.clock.now();
    for shard in 0..DUE_SHARDS {
        let mut after: Option<DueKey> = None;
        loop {
            let page = parts.records.due_entries(shard, now, after.as_ref(), SCAN_PAGE).await?;
            for entry in &page.items {
                enqueue(parts, topic, &entry.key).await?;
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
    }
    Ok(())
}

async fn enqueue(parts: &ReconcileParts, topic: &Topic, due: &DueKey) -> Result<()> {
    let text = due.to_string();
    let not_before = Some(due.at).filter(|at| *at > parts.clock.now());
    let options = EnqueueOptions { dedupe_key: Some(text.clone()), not_before, ..EnqueueOptions::default() };
    parts.queue.enqueue(topic, Bytes::from(text), options).await.map(|_| ())
}
