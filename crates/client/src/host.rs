//! What a controller calls.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use flames_error::{Error, Result};
use flames_wire::host::{
    AssignmentsPage, CONTROLLER_HEADER, Changes, HostSession, IncarnationId, RegisterRequest, Registered,
    Renewed, ReportBatch, ReportOutcome, ReportOutcomes, SESSION_HEADER, SnapshotReport,
    SnapshotReportOutcome, SnapshotReported,
};
use http::Method;
use http::header::{HeaderName, HeaderValue};
use serde::Serialize;

use crate::client::{Call, Client};

/// What a controller calls. [`HostClient`] is the one over HTTP; tests have others.
///
/// Every call may be repeated: nothing happens twice. `LeaseLost` and `NotFound` mean that another registration took over, or that
/// the controller was removed: register again or stop.
#[async_trait]
pub trait HostApi: Debug + Send + Sync + 'static {
    /// Takes this controller in, or takes it in again: a newer registration supersedes the older one.
    ///
    /// Errors: `AlreadyExists` when another controller has the name; `InvalidInput`; `Unavailable`; `OutcomeUnknown`.
    async fn register(&self, request: &RegisterRequest) -> Result<Registered>;

    /// Renews the lease.
    ///
    /// Errors: `LeaseLost`; `NotFound`; `Unavailable`; `OutcomeUnknown`.
    async fn renew(&self, session: &HostSession) -> Result<Renewed>;

    /// A page of all that is assigned to this controller, behind `after`.
    ///
    /// Errors: `LeaseLost`; `NotFound`; `Unavailable`.
    async fn assignments(
        &self,
        session: &HostSession,
        after: Option<IncarnationId>,
        limit: usize,
    ) -> Result<AssignmentsPage>;

    /// Waits, at most `wait`, until an assignment changed behind `after` (first [`Registered::changes_from`], then [`Changes::next`]).
    ///
    /// Errors: `LeaseLost`; `NotFound`; `Unavailable`.
    async fn changes(&self, session: &HostSession, after: &str, wait: Duration) -> Result<Changes>;

    /// Reports, at most [`MAX_REPORTS`](flames_wire::host::MAX_REPORTS) at once. Answers one outcome for each, in their order.
    ///
    /// Errors: `LeaseLost`; `NotFound`; `InvalidInput`; `Unavailable`; `OutcomeUnknown`.
    async fn report(&self, session: &HostSession, batch: ReportBatch) -> Result<Vec<ReportOutcome>>;

    /// Reports on a snapshot that an assignment orders.
    ///
    /// Errors: `LeaseLost`; `NotFound`; `InvalidInput` when what it names is no manifest; `PermissionDenied`; `Unavailable`, also while some
    /// of what it names is being removed; `OutcomeUnknown`.
    async fn report_snapshot(
        &self,
        session: &HostSession,
        report: &SnapshotReport,
    ) -> Result<SnapshotReportOutcome>;
}

/// The host API over HTTP.
#[derive(Debug, Clone)]
pub struct HostClient {
    client: Client,
}

#[derive(Serialize)]
struct AssignmentsQuery {
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    limit: usize,
}

#[derive(Serialize)]
struct ChangesQuery<'a> {
    after: &'a str,
    wait_ms: u64,
}

impl HostClient {
    /// The host API that `client` reaches.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn call(
        &self,
        operation: &'static str,
        method: Method,
        path: &str,
        session: &HostSession,
    ) -> Result<Call<'_>> {
        let value = |text: String| {
            let mut value = HeaderValue::try_from(text)
                .map_err(|error| Error::internal(operation, "an id is no header value").with_source(error))?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        };
        let call = self.client.call(operation, method, format!("/host/v1/{path}"));
        Ok(call
            .header(HeaderName::from_static(CONTROLLER_HEADER), value(session.controller.to_string())?)
            .header(HeaderName::from_static(SESSION_HEADER), value(session.session.to_string())?))
    }
}

#[async_trait]
impl HostApi for HostClient {
    async fn register(&self, request: &RegisterRequest) -> Result<Registered> {
        let call = self.client.call("host.register", Method::POST, "/host/v1/register".to_owned());
        call.json(request)?.read().await
    }

    async fn renew(&self, session: &HostSession) -> Result<Renewed> {
        self.call("host.renew", Method::POST, "renew", session)?.read().await
    }

    async fn assignments(
        &self,
        session: &HostSession,
        after: Option<IncarnationId>,
        limit: usize,
    ) -> Result<AssignmentsPage> {
        let query = AssignmentsQuery { after: after.map(|id| id.to_string()), limit };
        self.call("host.assignments", Method::GET, "assignments", session)?.query(&query)?.read().await
    }

    async fn changes(&self, session: &HostSession, after: &str, wait: Duration) -> Result<Changes> {
        let query = ChangesQuery { after, wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) };
        let call = self.call("host.changes", Method::GET, "changes", session)?;
        call.query(&query)?.waits(wait).read().await
    }

    async fn report(&self, session: &HostSession, batch: ReportBatch) -> Result<Vec<ReportOutcome>> {
        let call = self.call("host.report", Method::POST, "reports", session)?;
        let outcomes: ReportOutcomes = call.json(&batch)?.read().await?;
        Ok(outcomes.outcomes)
    }

    async fn report_snapshot(
        &self,
        session: &HostSession,
        report: &SnapshotReport,
    ) -> Result<SnapshotReportOutcome> {
        let call = self.call("host.report_snapshot", Method::POST, "snapshots", session)?;
        let reported: SnapshotReported = call.json(report)?.read().await?;
        Ok(reported.outcome)
    }
}
