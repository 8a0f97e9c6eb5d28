//! Reports on their way to the control plane.
//!
//! Only the newest state of each incarnation is kept while the API cannot be reached; each report carries the whole timeline, so that no
//! phase in between is lost with the ones that it replaced.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flames_client::HostApi;
use flames_client::wire::host::{HostSession, ReportBatch, ReportOutcome};
use flames_error::{Error, ErrorKind, Result};
use flames_model::{IncarnationId, Report};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc};

use crate::backoff::Backoff;
use crate::session::SessionCell;
use crate::shared::Shared;
use crate::supervisor::Instruction;

/// The most reports of one call.
pub(crate) const BATCH: usize = 64;
/// How many calls are under way at once: a server commits each report by itself, and several commits can share one write to its disk.
const CALLS: usize = 4;

/// The newest report on each incarnation that was not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    pending: Mutex<Pending>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    reports: BTreeMap<IncarnationId, Report>,
    /// The order in which they came, so that none waits for ever.
    order: VecDeque<IncarnationId>,
    /// Sent, and not answered yet.
    under_way: usize,
}

impl Pending {
    fn put(&mut self, mut report: Report) {
        let id = report.incarnation;
        match self.reports.get_mut(&id) {
            Some(known) if known.sequence >= report.sequence => {
                for (state, at) in report.timeline {
                    known.timeline.entry(state).or_insert(at);
                }
            }
            Some(known) => {
                for (state, at) in std::mem::take(&mut known.timeline) {
                    report.timeline.entry(state).or_insert(at);
                }
                *known = report;
            }
            None => {
                self.reports.insert(id, report);
                self.order.push_back(id);
            }
        }
    }
}

impl Reports {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a report in, in place of an older one on the same incarnation.
    pub(crate) fn put(&self, report: Report) {
        self.lock().put(report);
        self.news.notify_one();
    }

    /// Forgets what is not sent yet about an incarnation.
    pub(crate) fn forget(&self, incarnation: IncarnationId) {
        let mut pending = self.lock();
        if pending.reports.remove(&incarnation).is_some() {
            pending.order.retain(|id| *id != incarnation);
        }
    }

    /// Whether nothing waits and nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        let pending = self.lock();
        pending.reports.is_empty() && pending.under_way == 0
    }

    fn take(&self) -> Vec<Report> {
        let mut pending = self.lock();
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let Some(id) = pending.order.pop_front() else { break };
            batch.extend(pending.reports.remove(&id));
        }
        pending.under_way += batch.len();
        batch
    }

    fn settle(&self, batch: Vec<Report>, taken: bool) {
        let mut pending = self.lock();
        pending.under_way = pending.under_way.saturating_sub(batch.len());
        if !taken {
            batch.into_iter().for_each(|report| pending.put(report));
        }
    }
}

/// Sends reports while there is a session.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) shared: Arc<Shared>,
    pub(crate) api: Arc<dyn HostApi>,
    pub(crate) session: SessionCell,
    pub(crate) instructions: mpsc::Sender<Instruction>,
}

struct Sent {
    batch: Vec<Report>,
    session: HostSession,
    answer: Result<Vec<ReportOutcome>>,
}

impl Reporter {
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::new(&self.shared.config.timings);
        let mut calls = FuturesUnordered::new();
        loop {
            let session = self.session.current().await;
            while calls.len() < CALLS {
                let batch = self.shared.reports.take();
                if batch.is_empty() {
                    break;
                }
                calls.push(self.send(session, batch));
            }
            let sent = tokio::select! {
                biased;
                Some(sent) = calls.next() => sent,
                () = self.shared.reports.news.notified(), if calls.len() < CALLS => continue,
            };
            if let Some(wait) = self.settle(sent, &mut backoff).await {
                self.shared.clock.sleep(wait).await;
            }
        }
    }

    async fn send(&self, session: HostSession, batch: Vec<Report>) -> Sent {
        let limit = self.shared.config.timings.api_call;
        let call = self.api.report(&session, ReportBatch { reports: batch.clone() });
        let answer = self.shared.within("controller.report", limit, call).await;
        Sent { batch, session, answer }
    }

    /// Looks at an answer; says how long to wait before the next call, if at all.
    async fn settle(&self, sent: Sent, backoff: &mut Backoff) -> Option<Duration> {
        let Sent { batch, session, answer } = sent;
        match answer {
            Ok(outcomes) if outcomes.len() == batch.len() => {
                backoff.reset();
                for (report, outcome) in batch.iter().zip(&outcomes) {
                    self.note(report, outcome).await;
                }
                self.shared.reports.settle(batch, true);
                None
            }
            Ok(_) => {
                let error = Error::new(ErrorKind::Corrupt, "controller.report", "answers are missing");
                self.failed(batch, &error, backoff)
            }
            Err(error) if matches!(error.kind(), ErrorKind::LeaseLost | ErrorKind::NotFound) => {
                self.shared.reports.settle(batch, false);
                self.session.lost(&session, error.kind());
                None
            }
            Err(error) if !error.is_retryable() => {
                // They are made anew when everything assigned is read anew.
                let first = batch.first().map(|report| report.incarnation);
                tracing::error!(?error, reports = batch.len(), ?first, "reports were refused");
                self.shared.reports.settle(batch, true);
                Some(backoff.next(self.shared.random.as_ref()))
            }
            Err(error) => self.failed(batch, &error, backoff),
        }
    }

    fn failed(&self, batch: Vec<Report>, error: &Error, backoff: &mut Backoff) -> Option<Duration> {
        tracing::debug!(?error, "reports were not taken; they are sent again");
        self.shared.reports.settle(batch, false);
        let wait = backoff.next(self.shared.random.as_ref());
        Some(
            error
                .retry_after()
                .map_or(wait, |least| wait.max(least.min(self.shared.config.timings.backoff_most))),
        )
    }

    async fn note(&self, report: &Report, outcome: &ReportOutcome) {
        match outcome {
            ReportOutcome::Taken => {}
            ReportOutcome::Stale => {
                tracing::debug!(incarnation = %report.incarnation, "a report came too late");
            }
            ReportOutcome::Forbidden => {
                tracing::error!(incarnation = %report.incarnation, "a report was refused: the incarnation is another controller's");
            }
            ReportOutcome::Unknown => {
                // Nothing is lost when the supervisor is gone: the listing of the next start tells the same.
                let _ = self.instructions.send(Instruction::Absent(report.incarnation)).await;
            }
        }
    }
}
