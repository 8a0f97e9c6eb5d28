//! The one task that changes Caddy's configuration.

use flames_error::{Error, ErrorKind, Result};
use flames_ingress::{Registration, RouteKey, RouteOwner, Target};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use crate::admin::{AGAIN_AFTER, Admin, Answer};
use crate::document::{Found, Naming, Table};

/// Changes that are applied together.
const BATCH: usize = 128;

/// How often a change is applied anew because somebody else changed the configuration meanwhile.
const ATTEMPTS: usize = 16;

/// One change.
#[derive(Debug)]
pub(crate) enum Change {
    Register(Registration),
    RemovePort(RouteKey),
    RemoveTarget(RouteKey, Target),
    RemoveVm(RouteOwner),
}

impl Change {
    fn operation(&self) -> &'static str {
        match self {
            Self::Register(_) => "ingress.register",
            Self::RemovePort(_) => "ingress.unregister_port",
            Self::RemoveTarget(..) => "ingress.unregister_target",
            Self::RemoveVm(_) => "ingress.unregister",
        }
    }

    /// Applies it, and answers whether it changed anything.
    fn apply(&self, table: &mut Table) -> Result<bool> {
        match self {
            Self::Register(wanted) => {
                let key = &wanted.route.key;
                let mut others = table.values().filter(|other| other.route.key.vm != key.vm);
                let taken = others.find_map(|other| {
                    other.route.hosts.iter().find(|host| wanted.route.hosts.contains(host)).cloned()
                });
                if let Some(host) = taken {
                    return Err(Error::new(
                        ErrorKind::AlreadyExists,
                        self.operation(),
                        "the host name belongs to another VM's route",
                    )
                    .with_resource("host", host)
                    .with_field("hosts")
                    .with_user_message("This host name is in use by another VM."));
                }
                let old = table.insert(key.clone(), wanted.clone());
                Ok(old.as_ref() != Some(wanted))
            }
            Self::RemovePort(key) => Ok(table.remove(key).is_some()),
            Self::RemoveTarget(key, target) => {
                let leads_there = table.get(key).is_some_and(|standing| standing.target == *target);
                if leads_there {
                    table.remove(key);
                }
                Ok(leads_there)
            }
            Self::RemoveVm(vm) => {
                let before = table.len();
                table.retain(|key, _| key.vm != *vm);
                Ok(table.len() != before)
            }
        }
    }
}

/// A change, and whom to tell of it: whether it changed anything.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) change: Change,
    pub(crate) answer: oneshot::Sender<Result<bool>>,
}

/// Where our routes are, and how they are read and written.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) admin: Admin,
    pub(crate) naming: Naming,
    pub(crate) server: String,
    pub(crate) listen: Vec<String>,
    pub(crate) automatic_https: bool,
}

impl Document {
    fn path(&self) -> String {
        format!("/config/apps/http/servers/{}", self.server)
    }

    /// What stands now, with the tag under which it may be changed.
    pub(crate) async fn read(&self, operation: &'static str) -> Result<(Found, Option<String>)> {
        let answer = self.admin.read(operation, &self.path()).await?;
        let server: Value = match answer.status {
            StatusCode::OK => serde_json::from_slice(&answer.body).map_err(|error| {
                Error::new(ErrorKind::Corrupt, operation, "Caddy's answer is no JSON").with_source(error)
            })?,
            // `invalid traversal path`: there is no HTTP app yet.
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => Value::Null,
            _ => return Err(refused(operation, &answer)),
        };
        Ok((Found::read(&self.naming, &server)?, answer.tag))
    }

    /// Writes `table` in the place of what was found. False when something else stands there by now.
    async fn write(
        &self,
        operation: &'static str,
        found: &Found,
        tag: Option<&str>,
        table: &Table,
    ) -> Result<bool> {
        let (holder, unknown) = (self.naming.holder(table), self.naming.unknown_host());
        let (method, path, body) = match found {
            Found::NoServer => {
                let server = json!({
                    "listen": self.listen,
                    "automatic_https": { "disable": !self.automatic_https },
                    "routes": [holder, unknown],
                });
                (Method::PUT, self.path(), server)
            }
            Found::NoRoutes => (Method::PUT, format!("{}/routes", self.path()), json!([holder, unknown])),
            // `...`: each of the list is appended.
            Found::NoHolder { .. } => {
                (Method::POST, format!("{}/routes/...", self.path()), json!([holder, unknown]))
            }
            Found::Holder { .. } => (Method::PATCH, format!("/id/{}", self.naming.holder_id()), holder),
        };
        let answer = self.admin.change(operation, method, &path, tag, body.to_string().into_bytes()).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT | StatusCode::NOT_FOUND => Ok(false),
            _ => Err(refused(operation, &answer)),
        }
    }

    /// Sees to it that ours are in their places. False when what was found is not what stands there now: read again.
    async fn arrange(&self, operation: &'static str, found: &Found, tag: Option<&str>) -> Result<bool> {
        let (method, path, body) = match found {
            // PUT puts it before what is at that place.
            Found::NoHolder { place, is_end: false } => {
                let holder = self.naming.holder(&Table::new());
                (Method::PUT, format!("{}/routes/{place}", self.path()), holder.to_string())
            }
            Found::Holder { is_closed: false, has_unknown_host: true, .. } => {
                (Method::DELETE, format!("/id/{}", self.naming.unknown_host_id()), String::new())
            }
            Found::Holder { is_closed: false, has_unknown_host: false, .. } => {
                (Method::POST, format!("{}/routes", self.path()), self.naming.unknown_host().to_string())
            }
            _ => return Ok(true),
        };
        let answer = self.admin.change(operation, method, &path, tag, body.into_bytes()).await?;
        match answer.status {
            StatusCode::OK | StatusCode::PRECONDITION_FAILED | StatusCode::NOT_FOUND => Ok(false),
            _ => Err(refused(operation, &answer)),
        }
    }

    async fn apply(&self, changes: &[&Change]) -> Result<Vec<Result<bool>>> {
        let operation = changes.first().map_or("ingress.register", |change| change.operation());
        // A write whose answer was lost, with what it would have left.
        let mut unknown: Option<(Error, Table, Vec<Result<bool>>)> = None;
        for _ in 0..ATTEMPTS {
            let (found, tag) = match self.read(operation).await {
                Ok(read) => read,
                Err(error) => return Err(unknown.map_or(error, |(first, ..)| first)),
            };
            let mut table = found.table();
            let mut outcomes: Vec<Result<bool>> =
                changes.iter().map(|change| change.apply(&mut table)).collect();
            let mut is_changed = outcomes.iter().any(|outcome| matches!(outcome, Ok(true)));
            if let Some((_, left, before)) = &unknown {
                // It was written when what it would have left stands.
                is_changed &= *left != found.table();
                merge(&mut outcomes, before);
            }
            if !is_changed {
                return Ok(outcomes);
            }
            let written = match self.arrange(operation, &found, tag.as_deref()).await {
                Ok(true) => self.write(operation, &found, tag.as_deref(), &table).await,
                // What is moved is no route of a VM's: to read again tells all.
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => Ok(false),
                other => other,
            };
            match written {
                Ok(true) => return Ok(outcomes),
                Ok(false) => {}
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                    unknown = Some((error, table, outcomes));
                    sleep(AGAIN_AFTER).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(unknown.map_or_else(
            || {
                Error::unavailable(operation, "Caddy's configuration changes all the time")
                    .with_context("attempts", ATTEMPTS)
            },
            |(error, ..)| error,
        ))
    }
}

/// What a change did when its answer was lost, it need not do again.
fn merge(outcomes: &mut [Result<bool>], before: &[Result<bool>]) {
    for (outcome, before) in outcomes.iter_mut().zip(before) {
        if let (Ok(did), Ok(true)) = (outcome, before) {
            *did = true;
        }
    }
}

/// Caddy refused.
fn refused(operation: &'static str, answer: &Answer) -> Error {
    let kind = match answer.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::PermissionDenied,
        StatusCode::SERVICE_UNAVAILABLE => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    let said = String::from_utf8_lossy(&answer.body[..answer.body.len().min(1_024)]).into_owned();
    Error::new(kind, operation, "Caddy refused")
        .with_context("status", answer.status)
        .with_context("said", said)
}

/// Applies changes until nobody can ask for any.
pub(crate) async fn run(document: std::sync::Arc<Document>, mut requests: mpsc::Receiver<Request>) {
    let mut batch = Vec::with_capacity(BATCH);
    while requests.recv_many(&mut batch, BATCH).await > 0 {
        // Whoever gave up before it was sent does not want it any more.
        batch.retain(|request| !request.answer.is_closed());
        let changes: Vec<&Change> = batch.iter().map(|request| &request.change).collect();
        match document.apply(&changes).await {
            Ok(outcomes) => {
                for (request, outcome) in batch.drain(..).zip(outcomes) {
                    // Whoever gave up is not there to be told.
                    let _ = request.answer.send(outcome);
                }
            }
            Err(error) => {
                for request in batch.drain(..) {
                    let shared = Error::new(error.kind(), request.change.operation(), error.message())
                        .with_context("cause", format!("{error:?}"));
                    let _ = request.answer.send(Err(shared));
                }
            }
        }
    }
}
