//! Several servers as one: each call goes to one that answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use flames_error::{Error, ErrorKind, Result};
use flames_wire::host::{
    AssignmentsPage, Changes, HostSession, IncarnationId, RegisterRequest, Registered, Renewed, ReportBatch,
    ReportOutcome, SnapshotReport, SnapshotReportOutcome,
};
use futures::future::BoxFuture;

use crate::body::{RequestBody, ResponseBody};
use crate::host::{HostApi, HostClient};

/// The host API at several servers of one installation: all speak of the same store, so any of them will do. Calls go to one as long as it
/// answers, and then to the next. Clones share which one that is.
#[derive(Debug, Clone)]
pub struct FailoverHost {
    servers: Arc<[HostClient]>,
    /// Grows with each change of server.
    turns: Arc<AtomicUsize>,
}

/// Gives the turn to the next server unless it is told that this one answered: also when the call is dropped because it took too long.
struct Turn<'a> {
    turns: &'a AtomicUsize,
    seen: usize,
    answered: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.answered {
            // Of many calls that the server does not answer the first changes it.
            let _ = self.turns.compare_exchange(
                self.seen,
                self.seen.wrapping_add(1),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }
}

impl FailoverHost {
    /// Over these servers, of which there must be one at least.
    ///
    /// Errors: `InvalidInput` when there is none.
    pub fn new(servers: Vec<HostClient>) -> Result<Self> {
        if servers.is_empty() {
            return Err(Error::invalid("client.failover", "servers", "Name one server at least."));
        }
        Ok(Self { servers: servers.into(), turns: Arc::default() })
    }

    /// Sends a request as this controller to the server whose turn it is. Nothing is sent twice: a body cannot be. A server that does not
    /// answer loses its turn.
    ///
    /// Errors: those of the connection.
    pub async fn forward(
        &self,
        session: &HostSession,
        request: http::Request<RequestBody>,
    ) -> std::result::Result<http::Response<ResponseBody>, tower::BoxError> {
        let seen = self.turns.load(Ordering::Relaxed);
        let mut turn = Turn { turns: &self.turns, seen, answered: false };
        let server = self.servers.get(seen % self.servers.len()).ok_or("there is no server")?;
        let response = server.forward(session, request).await;
        turn.answered = response.as_ref().is_ok_and(|response| !response.status().is_server_error());
        response
    }

    /// Asks one server after the other, each once, until one answers. Every call of the host API may be repeated.
    async fn ask<'a, T>(
        &'a self,
        call: impl Fn(&'a HostClient) -> BoxFuture<'a, Result<T>> + Send + Sync,
    ) -> Result<T> {
        let mut failed = None;
        for _ in 0..self.servers.len() {
            let seen = self.turns.load(Ordering::Relaxed);
            let Some(server) = self.servers.get(seen % self.servers.len()) else { break };
            let mut turn = Turn { turns: &self.turns, seen, answered: false };
            let answer = call(server).await;
            // A server that lacks something of its own (its database) is as good as one that is not there.
            turn.answered = !matches!(
                answer.as_ref().map_err(Error::kind),
                Err(ErrorKind::Unavailable | ErrorKind::OutcomeUnknown | ErrorKind::Internal)
            );
            match answer {
                Err(error) if !turn.answered => failed = Some(error),
                answer => return answer,
            }
        }
        Err(failed.unwrap_or_else(|| Error::unavailable("client.failover", "no server was asked")))
    }
}

#[async_trait]
impl HostApi for FailoverHost {
    async fn register(&self, request: &RegisterRequest) -> Result<Registered> {
        self.ask(|server| server.register(request)).await
    }

    async fn renew(&self, session: &HostSession) -> Result<Renewed> {
        self.ask(|server| server.renew(session)).await
    }

    async fn assignments(
        &self,
        session: &HostSession,
        after: Option<IncarnationId>,
        limit: usize,
    ) -> Result<AssignmentsPage> {
        self.ask(|server| server.assignments(session, after, limit)).await
    }

    async fn changes(&self, session: &HostSession, after: &str, wait: Duration) -> Result<Changes> {
        self.ask(|server| server.changes(session, after, wait)).await
    }

    async fn report(&self, session: &HostSession, batch: &ReportBatch) -> Result<Vec<ReportOutcome>> {
        self.ask(|server| server.report(session, batch)).await
    }

    async fn report_snapshot(
        &self,
        session: &HostSession,
        report: &SnapshotReport,
    ) -> Result<SnapshotReportOutcome> {
        self.ask(|server| server.report_snapshot(session, report)).await
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flames_wire::host::{ControllerId, SessionToken};
    use http::{Request, Response};
    use http_body_util::Full;

    use super::*;
    use crate::{Client, ClientConfig, RequestBody};

    #[derive(Debug, Clone, Copy)]
    enum Server {
        Answers,
        Denies,
        IsDown,
        SaysNothing,
    }

    /// A server of this kind, and how often it was asked.
    fn server(kind: Server) -> (HostClient, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let service = tower::service_fn(move |_: Request<RequestBody>| {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                let answer = |status: u16, text: &'static str| {
                    let body = Full::new(Bytes::from_static(text.as_bytes()));
                    Response::builder().status(status).body(body).map_err(tower::BoxError::from)
                };
                match kind {
                    Server::Answers => answer(200, r#"{"lease_ms":15000}"#),
                    Server::Denies => answer(403, ""),
                    Server::IsDown => Err("nobody is there".into()),
                    Server::SaysNothing => std::future::pending().await,
                }
            }
        });
        (HostClient::new(Client::over(service, ClientConfig::default())), asked)
    }

    fn session() -> HostSession {
        let none = "00000000000000000000000000000000";
        HostSession {
            controller: format!("ctl_{none}").parse::<ControllerId>().unwrap(),
            session: format!("ses_{none}").parse::<SessionToken>().unwrap(),
        }
    }

    fn asked(count: &AtomicUsize) -> usize {
        count.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_server_that_is_down_is_passed_over_and_not_asked_again_while_another_answers() {
        let ((down, downs), (up, ups)) = (server(Server::IsDown), server(Server::Answers));
        let servers = FailoverHost::new(vec![down, up]).unwrap();
        for _ in 0..3 {
            servers.renew(&session()).await.unwrap();
        }
        assert_eq!((asked(&downs), asked(&ups)), (1, 3));
    }

    #[tokio::test]
    async fn what_a_server_refuses_no_other_is_asked() {
        let ((denies, _), (other, others)) = (server(Server::Denies), server(Server::Answers));
        let servers = FailoverHost::new(vec![denies, other]).unwrap();
        let error = servers.renew(&session()).await.unwrap_err();
        assert_eq!((error.kind(), asked(&others)), (ErrorKind::PermissionDenied, 0));
    }

    #[tokio::test]
    async fn with_all_servers_down_each_is_asked_once() {
        let ((one, ones), (two, twos)) = (server(Server::IsDown), server(Server::IsDown));
        let servers = FailoverHost::new(vec![one, two]).unwrap();
        assert!(servers.renew(&session()).await.unwrap_err().is_retryable());
        assert_eq!((asked(&ones), asked(&twos)), (1, 1));
        assert!(FailoverHost::new(Vec::new()).is_err());
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_gives_the_turn_to_the_next_server() {
        let ((silent, _), (up, _)) = (server(Server::SaysNothing), server(Server::Answers));
        let servers = FailoverHost::new(vec![silent, up]).unwrap();
        let session = session();
        assert!(tokio::time::timeout(Duration::from_millis(20), servers.renew(&session)).await.is_err());
        servers.renew(&session).await.unwrap();
    }
}
