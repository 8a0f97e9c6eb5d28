//! Reports on their way to the control plane.
//!
//! Only the newest state of each incarnation is kept while the API cannot be reached; each report carries the whole timeline, so that no
//! phase in between is lost with the ones that it replaced.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flames_client::HostApi;
use flames_client::wire::host::{HostSession, ReportBatch, ReportOutcome};
use flames_clock::Monotonic;
use flames_error::{Error, ErrorKind, Result};
use flames_model::{IncarnationId, IncarnationState, Report};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc};

use crate::backoff::Backoff;
use crate::session::SessionCell;
use crate::shared::Shared;
use crate::supervisor::Instruction;

/// The most reports of one call.
pub(crate) const BATCH: usize = 64;
/// How many calls are under way at once. While two are, what comes piles up and becomes the next one: a server commits what comes in one
/// call together.
const CALLS: usize = 2;
/// How long a report of a state that a start passes through waits for the next one. A machine that comes up at once is told of once, and
/// not three times; what waits longer than this is told meanwhile.
const HELD: Duration = Duration::from_millis(10);

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
    /// Those that are not in `order` yet, and from when on they are to be.
    held: VecDeque<(Monotonic, IncarnationId)>,
    /// Of which a report was sent that is not answered yet. A newer one waits for that answer: the two would only meet at the server.
    under_way: BTreeSet<IncarnationId>,
}

/// Whether a start goes on from there by itself, so that another report follows.
fn passes(report: &Report) -> bool {
    use IncarnationState::{Preparing, Restoring, Starting};
    matches!(report.state, Preparing | Starting | Restoring) && report.reason.is_none()
}

impl Pending {
    /// Takes a report in; held until then, if it is to be and there is none of its incarnation yet.
    fn put(&mut self, mut report: Report, held_until: Option<Monotonic>) {
        let id = report.incarnation;
        if held_until.is_none() {
            self.release(id);
        }
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
                match held_until {
                    Some(until) => self.held.push_back((until, id)),
                    None => self.order.push_back(id),
                }
            }
        }
    }

    fn release(&mut self, id: IncarnationId) {
        if let Some(place) = self.held.iter().position(|(_, held)| *held == id) {
            self.held.remove(place);
            self.order.push_back(id);
        }
    }
}

impl Reports {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a report in, in place of an older one on the same incarnation.
    pub(crate) fn put(&self, report: Report, now: Monotonic) {
        let held_until = passes(&report).then(|| now.saturating_add(HELD));
        let mut pending = self.lock();
        // Whoever sends waits for the first that is held, and finds those behind it then.
        let is_news = held_until.is_none() || pending.held.is_empty();
        pending.put(report, held_until);
        drop(pending);
        if is_news {
            self.news.notify_one();
        }
    }

    /// When the next report that is held is to be sent.
    fn next_release(&self) -> Option<Monotonic> {
        self.lock().held.front().map(|(until, _)| *until)
    }

    /// Forgets what is not sent yet about an incarnation.
    pub(crate) fn forget(&self, incarnation: IncarnationId) {
        let mut pending = self.lock();
        if pending.reports.remove(&incarnation).is_some() {
            pending.order.retain(|id| *id != incarnation);
            pending.held.retain(|(_, id)| *id != incarnation);
        }
    }

    /// Whether nothing waits and nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        let pending = self.lock();
        pending.reports.is_empty() && pending.under_way.is_empty()
    }

    fn take(&self, now: Monotonic) -> Vec<Report> {
        let mut guard = self.lock();
        let pending = &mut *guard;
        while let Some((_, id)) = pending.held.pop_front_if(|(until, _)| *until <= now) {
            pending.order.push_back(id);
        }
        let (mut batch, mut passed_over) = (Vec::new(), Vec::new());
        while batch.len() < BATCH {
            let Some(id) = pending.order.pop_front() else { break };
            if pending.under_way.contains(&id) {
                passed_over.push(id);
                continue;
            }
            batch.extend(pending.reports.remove(&id));
        }
        // They keep their turn.
        passed_over.into_iter().rev().for_each(|id| pending.order.push_front(id));
        pending.under_way.extend(batch.iter().map(|report| report.incarnation));
        batch
    }

    fn settle(&self, batch: Vec<Report>, taken: bool) {
        let mut pending = self.lock();
        for report in batch {
            pending.under_way.remove(&report.incarnation);
            if !taken {
                pending.put(report, None);
            }
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
                let batch = self.shared.reports.take(self.shared.clock.monotonic());
                if batch.is_empty() {
                    break;
                }
                calls.push(self.send(session, batch));
            }
            let release = async {
                match self.shared.reports.next_release() {
                    Some(at) => {
                        let now = self.shared.clock.monotonic();
                        self.shared.clock.sleep(at.saturating_since(now)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            let sent = tokio::select! {
                biased;
                Some(sent) = calls.next() => sent,
                () = release, if calls.len() < CALLS => continue,
                () = self.shared.reports.news.notified(), if calls.len() < CALLS => {
                    // Whatever is ready to run goes first: on a busy host many reports become one call, on an idle one nothing waits.
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            if let Some(wait) = self.settle(sent, &mut backoff).await {
                self.shared.clock.sleep(wait).await;
            }
        }
    }

    async fn send(&self, session: HostSession, reports: Vec<Report>) -> Sent {
        let batch = ReportBatch { reports };
        let limit = self.shared.config.timings.api_call;
        let call = self.api.report(&session, &batch);
        let answer = self.shared.within("controller.report", limit, call).await;
        Sent { batch: batch.reports, session, answer }
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

#[cfg(test)]
mod tests {
    use flames_model::{FencingToken, ProjectName, Timestamp, VmId};
    use uuid::Uuid;

    use super::*;

    const NOW: Monotonic = Monotonic::from_origin(Duration::ZERO);
    const LATER: Monotonic = Monotonic::from_origin(HELD);

    fn report(number: u128, sequence: u64, state: IncarnationState) -> Report {
        Report {
            incarnation: IncarnationId::from_uuid(Uuid::from_u128(number)),
            vm: VmId::from_uuid(Uuid::from_u128(number)),
            project: ProjectName::new("default").unwrap(),
            token: FencingToken(1),
            sequence,
            state,
            reason: None,
            exit: None,
            endpoints: Vec::new(),
            network: Default::default(),
            timeline: [(state, Timestamp::UNIX_EPOCH)].into(),
            released: false,
            purged: false,
        }
    }

    #[test]
    fn what_comes_before_the_next_call_is_told_once_as_it_is_last_with_all_that_it_went_through() {
        let reports = Reports::default();
        for (sequence, state) in [(1, IncarnationState::Preparing), (2, IncarnationState::Running)] {
            reports.put(report(1, sequence, state), NOW);
        }
        let batch = reports.take(LATER);
        assert_eq!(batch.len(), 1);
        assert_eq!((batch[0].sequence, batch[0].state), (2, IncarnationState::Running));
        assert_eq!(batch[0].timeline.len(), 2);
    }

    #[test]
    fn a_newer_report_waits_for_the_answer_to_the_older_one_and_holds_up_no_other() {
        let reports = Reports::default();
        reports.put(report(1, 1, IncarnationState::Preparing), NOW);
        let first = reports.take(LATER);
        reports.put(report(1, 2, IncarnationState::Running), NOW);
        reports.put(report(2, 1, IncarnationState::Preparing), NOW);
        let others = reports.take(LATER);
        assert_eq!(
            others.iter().map(|report| report.incarnation).collect::<Vec<_>>(),
            [IncarnationId::from_uuid(Uuid::from_u128(2))]
        );
        assert!(reports.take(LATER).is_empty());
        reports.settle(first, true);
        assert_eq!(reports.take(LATER)[0].state, IncarnationState::Running);
    }

    #[test]
    fn what_was_not_taken_is_told_again_unless_there_is_newer() {
        let reports = Reports::default();
        reports.put(report(1, 1, IncarnationState::Preparing), NOW);
        let lost = reports.take(LATER);
        reports.put(report(1, 2, IncarnationState::Running), NOW);
        reports.settle(lost, false);
        let again = reports.take(LATER);
        assert_eq!((again.len(), again[0].sequence, again[0].timeline.len()), (1, 2, 2));
        assert!(!reports.is_idle());
        reports.settle(again, true);
        assert!(reports.is_idle());
    }

    #[test]
    fn what_a_start_passes_through_waits_for_what_follows_but_not_for_long() {
        let reports = Reports::default();
        reports.put(report(1, 1, IncarnationState::Preparing), NOW);
        reports.put(report(2, 1, IncarnationState::Preparing), NOW);
        reports.put(report(3, 1, IncarnationState::Stopping), NOW);
        // Only what ends nothing by itself is held.
        assert_eq!(reports.take(NOW)[0].state, IncarnationState::Stopping);
        assert!(reports.take(NOW).is_empty());
        assert_eq!(reports.next_release(), Some(LATER));
        reports.put(report(1, 2, IncarnationState::Starting), NOW);
        reports.put(report(1, 3, IncarnationState::Running), NOW);
        let batch = reports.take(NOW);
        assert_eq!((batch.len(), batch[0].state, batch[0].timeline.len()), (1, IncarnationState::Running, 3));
        assert_eq!(reports.take(LATER)[0].state, IncarnationState::Preparing);
        assert_eq!(reports.next_release(), None);
    }

    #[test]
    fn a_preparation_that_says_what_it_waits_for_is_told_at_once() {
        let reports = Reports::default();
        let reason = Some(flames_model::Reason::new(flames_model::ReasonCode::Requested, "It waits."));
        reports.put(Report { reason, ..report(1, 1, IncarnationState::Preparing) }, NOW);
        assert_eq!(reports.take(NOW).len(), 1);
    }

    #[test]
    fn what_is_forgotten_while_it_is_held_is_not_sent() {
        let reports = Reports::default();
        reports.put(report(1, 1, IncarnationState::Preparing), NOW);
        reports.forget(IncarnationId::from_uuid(Uuid::from_u128(1)));
        assert!(reports.is_idle() && reports.take(LATER).is_empty());
    }
}
