//! The calls.

use std::time::Duration;

use axum::extract::State;
use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use flames_model::{DriverInfo, IncarnationId, Labels, Reason, Report, SnapshotProgress, SnapshotReport};
use flames_service::{Register, ReportOutcome, codes};
use flames_wire::host::{
    Assigned, AssignmentsPage, Changes, HostSession, MAX_ASSIGNMENTS, MAX_REPORTS, RegisterRequest,
    Registered, Renewed, ReportBatch, ReportOutcomes, SnapshotReportOutcome, SnapshotReported,
};
use http::HeaderMap;
use serde::Deserialize;

use crate::Host;
use crate::answer::{Failure, JsonAnswer};
use crate::input::{Json, Parameters, Session, proof};

/// The most endpoints of one report: as many as a VM has ports.
const MAX_ENDPOINTS: usize = 32;

type Answer<T> = std::result::Result<JsonAnswer<T>, Failure>;

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Runs a call for at most the configured time.
pub(crate) async fn in_time<T>(
    host: &Host,
    call: impl Future<Output = Result<T>> + Send,
) -> std::result::Result<T, Failure> {
    let done = host.service.clock().timeout(host.config.timeout, call).await;
    let late = |_| {
        let error = Error::new(ErrorKind::OutcomeUnknown, "host.call", "the call took too long");
        Err(error.with_code(codes::REQUEST_TIMEOUT))
    };
    done.unwrap_or_else(late).map_err(Failure)
}

pub(crate) async fn register(
    State(host): State<Host>,
    headers: HeaderMap,
    Json(request): Json<RegisterRequest>,
) -> Answer<Registered> {
    let proof = proof(&host, &headers).await?;
    if !request.driver.is_bounded() {
        let sentence = format!(
            "A driver's texts are at most {} bytes without control characters.",
            DriverInfo::MAX_TEXT
        );
        return Err(Error::invalid("host.register", "driver", sentence)
            .with_code(codes::INVALID_FIELD)
            .into());
    }
    let labels = Labels::new(request.labels.pairs().clone(), "labels")
        .map_err(|error| error.with_code(codes::INVALID_FIELD))?;
    let register = Register {
        id: request.id,
        name: request.name,
        capacity: request.capacity,
        labels,
        driver: request.driver,
        address_block: request.address_block,
    };
    let registered = match &proof {
        Some(proof) => in_time(&host, host.service.admit_controller(register, proof)).await?,
        None => in_time(&host, host.service.register_controller(register)).await?,
    };
    Ok(JsonAnswer(Registered {
        session: HostSession {
            controller: registered.session.controller,
            session: registered.session.session,
        },
        lease_ms: milliseconds(registered.lease),
        changes_from: registered.changes_from.to_string(),
    }))
}

pub(crate) async fn renew(State(host): State<Host>, Session(session): Session) -> Answer<Renewed> {
    let renewed = in_time(&host, host.service.renew_lease(&session)).await?;
    Ok(JsonAnswer(Renewed { lease_ms: milliseconds(renewed.lease) }))
}

/// Which page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AssignmentsQuery {
    after: Option<IncarnationId>,
    limit: Option<usize>,
}

pub(crate) async fn assignments(
    State(host): State<Host>,
    Session(session): Session,
    Parameters(query): Parameters<AssignmentsQuery>,
) -> Answer<AssignmentsPage> {
    let limit = query.limit.unwrap_or(MAX_ASSIGNMENTS).clamp(1, MAX_ASSIGNMENTS);
    let page = in_time(&host, host.service.host_assignments(&session, query.after, limit)).await?;
    Ok(JsonAnswer(AssignmentsPage { items: page.items, next: page.next }))
}

/// From where on, and for how long.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangesQuery {
    after: String,
    wait_ms: u64,
}

pub(crate) async fn changes(
    State(host): State<Host>,
    Session(session): Session,
    Parameters(query): Parameters<ChangesQuery>,
) -> Answer<Changes> {
    let after = query
        .after
        .parse()
        .map_err(|error: Error| error.with_field("after").with_code(codes::INVALID_FIELD))?;
    // The service cuts the wait to its longest one; its reads have deadlines of their own.
    let waiting = host.service.host_changes(&session, after, Duration::from_millis(query.wait_ms));
    let changes = tokio::select! {
        biased;
        changes = waiting => changes?,
        () = host.config.stop.cancelled() => {
            return Ok(JsonAnswer(Changes { changed: Vec::new(), next: after.to_string() }));
        }
    };
    let assigned = |assigned: flames_service::Assigned| Assigned {
        incarnation: assigned.incarnation,
        assignment: assigned.assignment,
    };
    Ok(JsonAnswer(Changes {
        changed: changes.changed.into_iter().map(assigned).collect(),
        next: changes.next.to_string(),
    }))
}

pub(crate) async fn reports(
    State(host): State<Host>,
    Session(session): Session,
    Json(batch): Json<ReportBatch>,
) -> Answer<ReportOutcomes> {
    if batch.reports.len() > MAX_REPORTS {
        let sentence = "A batch has at most 256 reports.";
        return Err(Error::invalid("host.report", "reports", sentence)
            .with_code(codes::INVALID_FIELD)
            .into());
    }
    let reports: Vec<Report> = batch.reports.into_iter().map(clean_report).collect::<Result<_>>()?;
    let outcome = |outcome| match outcome {
        ReportOutcome::Taken => flames_wire::host::ReportOutcome::Taken,
        ReportOutcome::Stale(_) => flames_wire::host::ReportOutcome::Stale,
        ReportOutcome::Unknown => flames_wire::host::ReportOutcome::Unknown,
        ReportOutcome::Forbidden => flames_wire::host::ReportOutcome::Forbidden,
    };
    let outcomes = in_time(&host, host.service.reports(&session, &reports)).await?;
    Ok(JsonAnswer(ReportOutcomes { outcomes: outcomes.into_iter().map(outcome).collect() }))
}

pub(crate) async fn report_snapshot(
    State(host): State<Host>,
    Session(session): Session,
    Json(mut report): Json<SnapshotReport>,
) -> Answer<SnapshotReported> {
    if let SnapshotProgress::Failed { reason } = &mut report.progress {
        *reason = Reason::new(reason.code, &reason.message);
    }
    let outcome = match in_time(&host, host.service.report_snapshot(&session, &report)).await? {
        flames_service::SnapshotReportOutcome::Taken => SnapshotReportOutcome::Taken,
        flames_service::SnapshotReportOutcome::Over => SnapshotReportOutcome::Over,
        flames_service::SnapshotReportOutcome::NotNamed => SnapshotReportOutcome::NotNamed,
    };
    Ok(JsonAnswer(SnapshotReported { outcome }))
}

/// A report whose texts are cut and cleaned, since part of them may come from a guest.
///
/// Errors: `InvalidInput` when it has more endpoints than a VM can have.
pub fn clean_report(mut report: Report) -> Result<Report> {
    if report.endpoints.len() > MAX_ENDPOINTS {
        return Err(Error::invalid("host.report", "reports.endpoints", "A report has at most 32 endpoints.")
            .with_code(codes::INVALID_FIELD));
    }
    report.reason = report.reason.map(|reason| Reason::new(reason.code, reason.message));
    Ok(report)
}
