//! What a controller calls.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use flames_wire::host::{
    AssignmentsPage, CONTROLLER_HEADER, Changes, HostSession, IncarnationId, LINK_PROTOCOL, RegisterRequest,
    Registered, Renewed, ReportBatch, ReportOutcome, ReportOutcomes, SECRET_HEADER, SESSION_HEADER,
    SnapshotReport, SnapshotReportOutcome, SnapshotReported,
};
use http::Method;
use http::header::{AUTHORIZATION, CONNECTION, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Serialize;

use crate::body::{self, RequestBody, ResponseBody};
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
    async fn report(&self, session: &HostSession, batch: &ReportBatch) -> Result<Vec<ReportOutcome>>;

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

/// What a controller proves itself with when it registers over a network.
#[derive(Clone)]
pub struct HostCredentials {
    /// Its own secret: 64 hex digits, drawn once and kept.
    pub secret: String,
    /// The token with which it joins, where it is not known yet.
    pub join_token: Option<String>,
}

impl Debug for HostCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostCredentials").finish_non_exhaustive()
    }
}

/// A connection that became a link: what [`HostClient::link`] answers.
pub type LinkIo = TokioIo<Upgraded>;

/// The host API over HTTP.
#[derive(Debug, Clone)]
pub struct HostClient {
    client: Client,
    credentials: Option<Arc<HostCredentials>>,
}

fn secret_value(operation: &'static str, field: &'static str, text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text).map_err(|error| {
        Error::invalid(operation, field, "It holds bytes that a header cannot.").with_source(error)
    })?;
    value.set_sensitive(true);
    Ok(value)
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
        Self { client, credentials: None }
    }

    /// Proves itself with these when it registers: what a server asks for that is reached over a network.
    #[must_use]
    pub fn with_credentials(self, credentials: HostCredentials) -> Self {
        Self { credentials: Some(Arc::new(credentials)), ..self }
    }

    /// Sends a request as this controller, for calls that have a client of their own (blobs). Only the path and what stands behind it count of
    /// its URI.
    ///
    /// Errors: those of the connection.
    pub async fn forward(
        &self,
        session: &HostSession,
        mut request: http::Request<RequestBody>,
    ) -> std::result::Result<http::Response<ResponseBody>, tower::BoxError> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = format!("http://{}{path}", self.client.authority()).parse()?;
        let headers = request.headers_mut();
        let named = [
            (CONTROLLER_HEADER, session.controller.to_string()),
            (SESSION_HEADER, session.session.to_string()),
        ];
        for (name, text) in named {
            headers.insert(HeaderName::from_static(name), secret_value("host.forward", name, &text)?);
        }
        self.client.exchange(request).await
    }

    /// Opens a link: see [`flames_wire::host`]. Needs a client that dials an address.
    ///
    /// Errors: `LeaseLost`; `NotFound`; `NotSupported` over a router; `Unavailable`.
    pub async fn link(&self, session: &HostSession) -> Result<LinkIo> {
        const OPERATION: &str = "host.link";
        let broken = |error| Error::internal(OPERATION, "the request cannot be made").with_source(error);
        let request = http::Request::get("/host/v1/link")
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, LINK_PROTOCOL)
            .header(CONTROLLER_HEADER, session.controller.to_string())
            .header(SESSION_HEADER, session.session.to_string())
            .body(body::empty())
            .map_err(broken)?;
        let config = &self.client.config;
        let upgrading = config.clock.timeout(config.timeout, self.client.upgrade(OPERATION, request));
        let (response, upgraded) = upgrading.await.map_err(|late| {
            Error::unavailable(OPERATION, "no link within the deadline").with_source(late)
        })??;
        let becomes = response.headers().get(UPGRADE).map(HeaderValue::as_bytes);
        if becomes != Some(LINK_PROTOCOL.as_bytes()) {
            return Err(Error::new(ErrorKind::Corrupt, OPERATION, "the connection became something else"));
        }
        Ok(TokioIo::new(upgraded))
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
        const OPERATION: &str = "host.register";
        let mut call = self.client.call(OPERATION, Method::POST, "/host/v1/register".to_owned());
        if let Some(credentials) = &self.credentials {
            call = call.header(
                HeaderName::from_static(SECRET_HEADER),
                secret_value(OPERATION, "secret", &credentials.secret)?,
            );
            if let Some(token) = &credentials.join_token {
                let value = secret_value(OPERATION, "join_token", &format!("Bearer {token}"))?;
                call = call.header(AUTHORIZATION, value);
            }
        }
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

    async fn report(&self, session: &HostSession, batch: &ReportBatch) -> Result<Vec<ReportOutcome>> {
        let call = self.call("host.report", Method::POST, "reports", session)?;
        let outcomes: ReportOutcomes = call.json(batch)?.read().await?;
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
