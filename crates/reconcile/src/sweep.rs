//! Removes what was kept long enough.

use std::time::Duration;

use flames_clock::Timestamp;
use flames_error::Result;
use flames_model::ProjectName;
use flames_records::{Change, Position};
use tokio_util::sync::CancellationToken;

use crate::ReconcileParts;

/// How many expired idempotency records go in one commit: two deletes each.
const PER_COMMIT: usize = 24;

pub(crate) async fn run(parts: ReconcileParts, stop: CancellationToken) {
    let sweep = async {
        loop {
            parts.clock.sleep(parts.config.sweep).await;
            if let Err(error) = sweep_once(&parts).await {
                tracing::warn!(%error, "sweeping stopped early; trying again later");
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = sweep => {}
    }
}

async fn sweep_once(parts: &ReconcileParts) -> Result<()> {
    let now = parts.clock.now();
    loop {
        let expired = parts.records.expired_idempotency(now, PER_COMMIT).await?;
        if expired.is_empty() {
            break;
        }
        let mut change = Change::new();
        for expiry in &expired {
            change.remove_idempotency(expiry);
        }
        parts.records.apply(change).await?;
    }
    let project = ProjectName::new("default")?;
    trim_events(parts, Some(&project), now, parts.config.events_kept).await?;
    trim_events(parts, None, now, parts.config.events_kept).await
}

async fn trim_events(
    parts: &ReconcileParts,
    project: Option<&ProjectName>,
    now: Timestamp,
    kept: Duration,
) -> Result<()> {
    let oldest_kept = now.saturating_sub(kept).unwrap_or(Timestamp::MIN);
    loop {
        let page = parts.records.events(project, Position::START, flames_records::MAX_PAGE).await?;
        let Some(last_old) = page.iter().take_while(|entry| entry.event.at < oldest_kept).last() else {
            return Ok(());
        };
        parts.records.trim_events(project, last_old.position).await?;
    }
}
