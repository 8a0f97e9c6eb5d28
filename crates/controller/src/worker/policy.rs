//! The network of a machine that lives, brought to the one that was told.
//!
//! The driver is asked before the record is written, so the record never names a revision that the machine is not under: a process that
//! finds an older one asks once more, which changes nothing where it was done.

use std::time::Duration;

use flames_clock::Monotonic;
use flames_error::ErrorKind;
use flames_model::NetworkTrouble;
use flames_vmm::Update;

use super::live::Run;
use super::{Worker, reasons};
use crate::network;

/// What a run knows of the network that it is brought to.
#[derive(Debug, Default)]
pub(super) struct PolicyRun {
    /// Not to be tried again before.
    pub(super) retry_at: Option<Monotonic>,
    /// The revision that the driver refused for good.
    refused: Option<u64>,
}

impl Worker {
    /// Puts the machine under the network that was told, unless it is already.
    pub(super) async fn converge_network(&mut self, run: &mut Run) {
        let Some(record) = &self.record else { return };
        let wanted = record.assignment.network_revision;
        if record.network_revision == wanted {
            run.network.retry_at = None;
            return;
        }
        let now = self.shared.clock.monotonic();
        if run.network.refused == Some(wanted) || run.network.retry_at.is_some_and(|at| now < at) {
            return;
        }
        run.network.retry_at = None;
        let update = Update::Network(network::policy(&record.assignment));
        let updating = self.shared.driver.update(&self.name, &update);
        match self.shared.drive("controller.update", Duration::ZERO, updating).await {
            Ok(()) => {
                run.backoff.reset();
                if let Some(record) = &mut self.record {
                    record.network_revision = wanted;
                }
                self.network_trouble = None;
                // When it cannot be written, the next process asks the driver once more.
                self.write("that it is under another network").await;
                self.send_report().await;
            }
            Err(error) => {
                let for_good = matches!(error.kind(), ErrorKind::NotSupported | ErrorKind::InvalidInput);
                if for_good {
                    run.network.refused = Some(wanted);
                } else {
                    let wait = run.backoff.next(self.shared.random.as_ref());
                    run.network.retry_at = Some(now.saturating_add(wait));
                    // A machine that has ended takes none: looking at it tells.
                    self.nudge.notify_one();
                }
                tracing::debug!(?error, incarnation = %self.id, for_good, "it was not put under another network");
                let trouble =
                    NetworkTrouble { revision: wanted, reason: reasons::network_not_applied(&error) };
                // What passes by itself is not worth telling.
                let is_news = self.network_trouble.as_ref() != Some(&trouble);
                if is_news && !error.is_retryable() && error.kind() != ErrorKind::Conflict {
                    self.network_trouble = Some(trouble);
                    self.send_report().await;
                }
            }
        }
    }
}
