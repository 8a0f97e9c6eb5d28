//! Has what was made local for VMs removed when no VM of this host needs it any more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flames_error::Result;
use tokio::sync::Notify;

use crate::shared::Shared;

/// How often, though nothing hints at it.
const EVERY: Duration = Duration::from_secs(10 * 60);
/// After a hint others may follow: they are taken together.
const GATHER: Duration = Duration::from_secs(5);

/// Until dropped: when something may be needed no more, and on a timer.
pub(crate) async fn run(shared: Arc<Shared>, freed: Arc<Notify>) {
    loop {
        tokio::select! {
            biased;
            () = freed.notified() => shared.clock.sleep(GATHER).await,
            () = shared.clock.sleep(EVERY) => {}
        }
        if let Err(error) = sweep(&shared).await {
            tracing::warn!(?error, "what no VM needs was not removed; it is tried again");
        }
    }
}

async fn sweep(shared: &Shared) -> Result<()> {
    let mut needed = Vec::new();
    let (mut saving, mut restoring) = (BTreeSet::new(), BTreeSet::new());
    shared.snapshots.begin_sweep();
    // Read from the disk, where an incarnation stands before anything is made for it.
    for kept in shared.folder.incarnations().await? {
        let Some(record) = kept.record else {
            tracing::warn!(incarnation = %kept.incarnation, "what it needs is not known, so nothing is removed");
            return Ok(());
        };
        if !record.is_released() {
            restoring.extend(record.assignment.restore.as_ref().map(|restore| restore.snapshot));
            saving.extend(record.saving.as_ref().map(|saving| saving.snapshot));
            needed.push(record.assignment.image.clone());
            needed.extend(record.assignment.kernel.clone());
        }
    }
    shared.snapshots.sweep(&saving, &restoring).await?;
    shared.artefacts.sweep(&needed).await
}
