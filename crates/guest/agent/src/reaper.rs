use std::sync::Weak;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::process::Table;

/// Listens for ended children. Made before the first process is started, so that no exit is missed.
#[derive(Debug)]
pub(crate) struct Reaper {
    ended: Signal,
}

impl Reaper {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { ended: signal(SignalKind::child())? })
    }

    /// Reaps until the table is gone; `adopted` also reaps what the agent did not start (PID 1).
    pub(crate) async fn run(mut self, table: Weak<Table>, adopted: bool) {
        loop {
            let Some(table) = table.upgrade() else { return };
            table.reap(adopted);
            drop(table);
            if self.ended.recv().await.is_none() {
                return;
            }
        }
    }
}
