//! How reports change an incarnation.

use jiff::Timestamp;

use crate::{Incarnation, IncarnationState, Report};

/// Why a report was not taken. Not an error of its sender: it only came too late, or twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It speaks of another placement.
    StaleToken,
    /// A report with this number or a larger one was taken already.
    StaleSequence,
    /// The incarnation has ended, and ends only once.
    Ended,
    /// It changes nothing.
    NoChange,
}

/// The incarnation after `report`, or why the report does not count.
///
/// Ended states absorb: after `stopped` or `failed` only the release and the purge can still be told. A release needs an end,
/// a purge needs a release; each is told once.
pub fn apply_report(
    incarnation: &Incarnation,
    report: &Report,
    now: Timestamp,
) -> Result<Incarnation, Refusal> {
    if report.token != incarnation.token || report.incarnation != incarnation.id {
        return Err(Refusal::StaleToken);
    }
    if report.sequence <= incarnation.sequence {
        return Err(Refusal::StaleSequence);
    }
    let ended = incarnation.state.has_ended();
    if ended && !(report.released || report.purged) {
        return Err(Refusal::Ended);
    }
    let mut after = incarnation.clone();
    after.sequence = report.sequence;
    if !ended && report.state != IncarnationState::Lost {
        after.state = report.state;
        after.state_before_loss = None;
        after.reason.clone_from(&report.reason);
        after.exit = report.exit;
        after.endpoints.clone_from(&report.endpoints);
        after.network.clone_from(&report.network);
        for (state, at) in &report.timeline {
            after.timeline.entry(*state).or_insert(*at);
        }
        after.timeline.entry(report.state).or_insert(now);
    }
    if after.state.has_ended() {
        if report.released || report.purged {
            after.released_at = after.released_at.or(Some(now));
        }
        if report.purged {
            after.purged_at = after.purged_at.or(Some(now));
        }
    }
    let only_number = Incarnation { sequence: incarnation.sequence, ..after.clone() };
    if only_number == *incarnation { Err(Refusal::NoChange) } else { Ok(after) }
}
