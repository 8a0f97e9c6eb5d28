//! Hints: one watch for the process, fanned out in memory.

use std::sync::Arc;
use std::time::Duration;

use flames_clock::ClockExt as _;
use flames_state::{Commit, HintFanout};
use tokio::sync::watch;

use crate::http::{Call, Cluster, Lines};
use crate::layout::{About, Layout};
use crate::wire::{Base64, Number, Watch, WatchCreate, WatchLine, Watched};

const OPERATION: &str = "state.changes";
/// How long the begin of a watch may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so long without a word a watch is begun anew from where it was: its connection may be gone without a sign.
const SILENCE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The longest line that is read: a commit's values come with it, as base64, and several commits may be in one.
const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;

/// What the watching task needs.
#[derive(Debug)]
pub(crate) struct Hints {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) layout: Layout,
    pub(crate) fanout: HintFanout,
}

/// How a watch ended.
enum End {
    /// It may go on from the revision that it had reached.
    Cut,
    /// What comes next cannot be told apart from what was missed.
    Lost,
}

impl Hints {
    /// Watches until aborted. `tried` becomes true after the first try, however it ended.
    pub(crate) async fn watch(self: Arc<Self>, tried: watch::Sender<bool>) {
        // The revision to go on from; zero: from now on.
        let mut next = 0;
        let mut is_first = true;
        let mut pause = FIRST_PAUSE;
        loop {
            let from = next;
            let end = self.watch_once(&mut next, &mut is_first, &tried).await;
            tried.send_replace(true);
            if matches!(end, End::Lost) {
                next = 0;
            }
            if next > from {
                pause = FIRST_PAUSE;
            } else {
                self.cluster.clock.sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    async fn watch_once(&self, next: &mut u64, is_first: &mut bool, tried: &watch::Sender<bool>) -> End {
        let (key, range_end) = self.layout.everything();
        let start_revision = Number(*next);
        let request = Watch {
            create_request: WatchCreate { key: Base64(key), range_end: Base64(range_end), start_revision },
        };
        let until = self.cluster.clock.monotonic().saturating_add(PATIENCE);
        let mut lines =
            match self.cluster.stream(Call { operation: OPERATION, until }, "/v3/watch", &request).await {
                Ok(lines) => lines,
                Err(failure) => {
                    let error = failure.of_read();
                    tracing::debug!(error = &error as &dyn std::error::Error, "hints cannot be heard");
                    return End::Cut;
                }
            };
        loop {
            let watched = match self.read(&mut lines).await {
                Ok(watched) => watched,
                Err(end) => return end,
            };
            if watched.canceled {
                // The revision to go on from was compacted.
                return End::Lost;
            }
            if watched.created {
                if start_revision.0 == 0 {
                    *next = watched.header.revision.0 + 1;
                    if !*is_first {
                        self.fanout.publish_lost();
                    }
                }
                *is_first = false;
                tried.send_replace(true);
            }
            self.publish(&watched, next);
        }
    }

    async fn read(&self, lines: &mut Lines) -> Result<Watched, End> {
        match self.cluster.clock.timeout(SILENCE, lines.next(MAX_LINE_BYTES)).await {
            Ok(Some(line)) => {
                serde_json::from_slice::<WatchLine>(&line).ok().and_then(|line| line.result).ok_or(End::Lost)
            }
            Ok(None) | Err(_) => Err(End::Cut),
        }
    }

    fn publish(&self, watched: &Watched, next: &mut u64) {
        let mut changed = Commit::new();
        for event in &watched.events {
            *next = (*next).max(event.kv.mod_revision.0 + 1);
            match self.layout.about(&event.kv.key.0) {
                // Only the keys count; a commit is what the fan-out takes.
                About::Key(key) | About::Log(key) => changed.delete(key),
                About::Other => continue,
            };
        }
        self.fanout.publish(&changed);
    }
}
