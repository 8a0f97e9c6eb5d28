//! The way of one request: read, looked up, perhaps waited for, sent on, answered.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::access::Entry;
use crate::activity::UnderWay;
use crate::body::{Download, RequestBody, ResponseBody, Source};
use crate::client::Client;
use crate::config::Protocol;
use crate::connection::{Connection, Outgoing};
use crate::exchange::{Patience, over_http1, over_http2};
use crate::headers::{fit_version, remove_hop_by_hop};
use crate::problem::Problem;
use crate::request::{check, host, wants_upgrade};
use crate::shared::{Place, Shared};
use crate::table::Live;
use crate::tunnel;
use crate::upstream::InFlight;

/// What the client gets instead of the target's answer, and when it may try again.
struct Refusal(Problem, Option<Duration>);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem, None)
    }
}

/// An upgrade that the client asked for.
struct Wanted {
    on_upgrade: OnUpgrade,
    protocol: HeaderValue,
    place: Place,
}

enum Answer {
    Download(Response<Download>),
    Upgraded(Response<()>),
}

/// Serves one request. Never fails: a problem is answered with a page.
pub(crate) async fn handle(
    shared: Arc<Shared>,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let under_way = UnderWay::begin(&client.activity);
    let mut log = Entry::open(&shared.access_log, client.origin.peer, request.method(), request.uri().path());
    let version = request.version();
    let is_http1 = version != Version::HTTP_2;
    // hyper takes the length of a request away that also says it is chunked (RFC 9112, section 6.1: that connection must be closed).
    // What was taken away cannot be seen, so each connection that carried a chunked request ends after its answer.
    let must_close = is_http1 && request.headers().contains_key(TRANSFER_ENCODING);

    let mut response = match answer(&shared, &client, request, &mut log).await {
        Ok(Answer::Download(response)) => {
            note(&mut log, |record| record.status = response.status().as_u16());
            let (parts, download) = response.into_parts();
            Response::from_parts(parts, ResponseBody::download(download, under_way, log))
        }
        // The log's entry went with the tunnel.
        Ok(Answer::Upgraded(response)) => {
            return Ok(response.map(|()| ResponseBody::own(Bytes::new(), under_way, None)));
        }
        Err(Refusal(problem, after)) => {
            let page = problem.page(after, is_http1);
            note(&mut log, |record| {
                record.status = page.status().as_u16();
                record.problem = Some(problem.name());
            });
            page.map(|page| ResponseBody::own(page, under_way, log))
        }
    };
    if must_close {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    *response.version_mut() = if is_http1 { Version::HTTP_11 } else { Version::HTTP_2 };
    Ok(response)
}

fn note(log: &mut Option<Box<Entry>>, change: impl FnOnce(&mut crate::access::AccessRecord)) {
    if let Some(log) = log {
        log.with(change);
    }
}

async fn answer(
    shared: &Arc<Shared>,
    client: &Client,
    mut request: Request<Incoming>,
    log: &mut Option<Box<Entry>>,
) -> Result<Answer, Refusal> {
    let deadline = shared.timeouts.request.map(|span| Instant::now() + span);
    let host = host(&request)?;
    note(log, |record| record.host.clone_from(&host));
    check(&request, shared.limits.uri_bytes, shared.limits.request_body)?;
    let live = find(shared, &host).await?;
    note(log, |record| record.vm = Some(live.key.vm.as_str().to_owned()));
    let in_flight = live.upstream.enter()?;
    let wanted = if wants_upgrade(request.method(), request.version(), request.headers()) {
        Some(Wanted {
            protocol: request.headers()[UPGRADE].clone(),
            on_upgrade: hyper::upgrade::on(&mut request),
            place: Place::take(&shared.tunnels, shared.limits.tunnels).ok_or(Problem::TooManyTunnels)?,
        })
    } else {
        None
    };

    let (mut parts, incoming) = request.into_parts();
    let limits = &shared.limits;
    let (body, upload) =
        RequestBody::new(incoming, limits.request_body, shared.timeouts.body_idle, &client.activity);
    let named = match parts.headers.get(HOST) {
        Some(value) => value.clone(),
        None => parts
            .uri
            .authority()
            .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok())
            .ok_or(Problem::MalformedRequest)?,
    };
    let protocol = wanted.as_ref().map(|wanted| wanted.protocol.clone());
    let mut patience = Patience::new(shared.timeouts.response, deadline, upload);

    if live.upstream.protocol == Protocol::Http2 && wanted.is_none() {
        client.origin.rewrite(&mut parts.headers, &named, None);
        let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        let authority = named.to_str().unwrap_or(&host);
        let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path).build();
        parts.uri = uri.map_err(|_| Problem::MalformedRequest)?;
        parts.version = Version::HTTP_2;
        parts.extensions.clear();
        fit_version(&mut parts.headers, Version::HTTP_2);
        let request = Request::from_parts(parts, body);
        let (response, cut, timer) = over_http2(&live.upstream, request, &mut patience).await?;
        let (parts, incoming) = response.into_parts();
        let source = Source::Http2(incoming, cut, timer);
        let response = Response::from_parts(parts, ());
        return Ok(download(response, source, in_flight, patience.deadline));
    }

    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let length = body.size_hint().exact();
    let line = (&parts.method, path);
    let head = client.origin.write_head(line, &mut parts.headers, &named, protocol, length);
    let request = Outgoing { head, method: parts.method, body, is_chunked: length.is_none() };
    let (response, connection) = over_http1(&live.upstream, request, &mut patience).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(download(response, Source::Http1(connection), in_flight, patience.deadline));
    }
    // Nobody asked: this is no HTTP any more.
    let wanted = wanted.ok_or(Problem::TargetBroke)?;
    Ok(upgrade(shared, response, *connection, wanted, in_flight, log))
}

fn download(
    response: Response<()>,
    source: Source,
    in_flight: InFlight,
    deadline: Option<Instant>,
) -> Answer {
    let (mut parts, ()) = response.into_parts();
    remove_hop_by_hop(&mut parts.headers);
    let download = Download::new(source, in_flight, deadline);
    Answer::Download(Response::from_parts(parts, download))
}

/// The route of a host name, once its VM is awake.
async fn find(shared: &Shared, host: &str) -> Result<Arc<Live>, Refusal> {
    /// How often it is asked whether the VM still rests, when no route changes.
    const ASK_AGAIN: Duration = Duration::from_millis(50);
    let found = shared.table.find(host);
    let Some(wakes) = &shared.wakes else { return found.ok_or(Problem::UnknownHost.into()) };
    let Some(vm) = wakes.resting(host, found.as_ref().map(|live| &live.key)) else {
        return found.ok_or(Problem::UnknownHost.into());
    };
    let deadline = Instant::now() + shared.timeouts.wake;
    wakes.wake(&vm, deadline).await.map_err(|(problem, after)| Refusal(problem, after))?;
    let mut changes = shared.table.changes();
    loop {
        changes.borrow_and_update();
        let found = shared.table.find(host);
        let rests = wakes.resting(host, found.as_ref().map(|live| &live.key)).is_some();
        match found {
            Some(live) if !rests => {
                live.upstream.woken(deadline);
                return Ok(live);
            }
            _ => {}
        }
        let hint = async {
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep(ASK_AGAIN) => {}
            }
        };
        timeout_at(deadline, hint).await.map_err(|_| Problem::WakeTimeout)?;
    }
}

/// Answers 101 and joins the two streams.
fn upgrade(
    shared: &Arc<Shared>,
    response: Response<()>,
    connection: Connection,
    wanted: Wanted,
    in_flight: InFlight,
    log: &mut Option<Box<Entry>>,
) -> Answer {
    /// For the client's side to hand over its stream, which nothing but the write of the answer can delay.
    const HANDOVER: Duration = Duration::from_secs(10);
    let (stream, first, cut) = connection.into_stream();
    let (mut parts, ()) = response.into_parts();
    let protocol = parts.headers.get(UPGRADE).cloned().unwrap_or_else(|| wanted.protocol.clone());
    remove_hop_by_hop(&mut parts.headers);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(UPGRADE, protocol);

    note(log, |record| record.status = StatusCode::SWITCHING_PROTOCOLS.as_u16());
    let mut log = log.take();
    let idle = shared.timeouts.tunnel_idle;
    let Wanted { on_upgrade, place, .. } = wanted;
    shared.spawner.spawn(async move {
        let _held = (place, in_flight);
        let Ok(Ok(client)) = timeout(HANDOVER, on_upgrade).await else { return };
        let moved = tunnel::copy(TokioIo::new(client), stream, first, cut, idle).await;
        note(&mut log, |record| record.bytes = moved);
    });
    Answer::Upgraded(Response::from_parts(parts, ()))
}
