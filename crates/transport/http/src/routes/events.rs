//! Events of VMs and images, and of controllers: pages, and following as server-sent events.

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use flames_error::{Error, Result};
use flames_service::{Caller, EventEntry, EventStream, Position, codes};
use flames_wire::{Event, EventList, EventQuery, ServerSentEvent};
use futures::StreamExt;
use http::HeaderMap;

use crate::access::By;
use crate::api::Api;
use crate::failure::Answer;
use crate::input::{QueryOf, limit};

const LAST_EVENT_ID: &str = "last-event-id";

/// Read or follow events
///
/// Without `follow`: a page of events, oldest first. With it: server-sent events, one for each event behind the place asked for and
/// then for each further one as it comes; the id is the position. Who connects again with `Last-Event-ID` (browsers do it by
/// themselves) goes on behind that event: none is lost and none comes twice. Comments come when nothing else does.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(EventQuery), responses(
    (status = 200, description = "A page of events; with `follow`, server-sent events whose data is one event each.",
        content((EventList = "application/json"), (ServerSentEvent = "text/event-stream"))),
))]
pub(crate) async fn list_events(
    State(api): State<Api>,
    By(caller): By,
    headers: HeaderMap,
    QueryOf(query): QueryOf<EventQuery>,
) -> Answer<Response> {
    answer(&api, &Log::Project(caller), &headers, query).await
}

/// Read or follow the events of controllers
///
/// What happened to hosts: they registered, were taken out of use, did not renew their lease, were removed. Otherwise as `/v1/events`.
#[utoipa::path(get, path = "/v1/controllers/events", tag = "events", params(EventQuery), responses(
    (status = 200, description = "A page of events; with `follow`, server-sent events whose data is one event each.",
        content((EventList = "application/json"), (ServerSentEvent = "text/event-stream"))),
))]
pub(crate) async fn list_controller_events(
    State(api): State<Api>,
    By(_caller): By,
    headers: HeaderMap,
    QueryOf(query): QueryOf<EventQuery>,
) -> Answer<Response> {
    answer(&api, &Log::System, &headers, query).await
}

/// Which events.
enum Log {
    /// Those of the caller's project.
    Project(Caller),
    /// Those that concern no project.
    System,
}

impl Log {
    async fn page(&self, api: &Api, after: Position, limit: usize) -> Result<Vec<EventEntry>> {
        match self {
            Self::Project(caller) => api.service.events(caller, after, limit).await,
            Self::System => api.service.system_events(after, limit).await,
        }
    }

    async fn newest(&self, api: &Api) -> Result<Position> {
        match self {
            Self::Project(caller) => api.service.newest_event(caller).await,
            Self::System => api.service.newest_system_event().await,
        }
    }

    fn follow(&self, api: &Api, after: Position) -> EventStream {
        match self {
            Self::Project(caller) => api.service.follow_events(caller, after),
            Self::System => api.service.follow_system_events(after),
        }
    }
}

async fn answer(api: &Api, log: &Log, headers: &HeaderMap, query: EventQuery) -> Answer<Response> {
    let limit = limit(query.limit, 100, 1_000)?;
    // The header is what a follower saw last: newer than the query that it was started with.
    let resumed = headers.get(LAST_EVENT_ID).filter(|_| query.follow);
    let resumed = resumed.map(|value| value.to_str().unwrap_or_default().to_owned());
    let (field, after) = match &resumed {
        Some(position) => ("Last-Event-ID", Some(position)),
        None => ("after", query.after.as_ref()),
    };
    let unreadable = |error: Error| {
        let sentence = "A position is what an event of this API has: two numbers joined by `-`; or `newest`.";
        error.with_field(field).with_code(codes::INVALID_FIELD).with_user_message(sentence)
    };
    let after = match after.map(String::as_str) {
        None => Default::default(),
        Some("newest") if field == "after" => log.newest(api).await?,
        Some(position) => position.parse().map_err(unreadable)?,
    };
    if !query.follow {
        let entries = log.page(api, after, limit).await?;
        let next_cursor = entries.last().map_or(after, |entry| entry.position).to_string();
        let items =
            entries.iter().map(|entry| Event::new(entry.position.to_string(), &entry.event)).collect();
        return Ok(JsonAnswer(EventList { items, next_cursor }).into_response());
    }
    let place = api.stream_permit()?;
    // First the place itself: who connects to `newest` and is cut off before the first event still resumes here.
    let start = Message::default().id(after.to_string()).retry(std::time::Duration::from_secs(1));
    let following =
        log.follow(api, after).map(move |entry| {
            let _place = &place;
            let entry = entry?;
            let event = Event::new(entry.position.to_string(), &entry.event);
            let name = serde_json::to_value(event.event_type).ok();
            let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or("unknown");
            Message::default().id(event.position.clone()).event(name).json_data(&event).map_err(|error| {
                Error::internal("http.events", "an event cannot be encoded").with_source(error)
            })
        });
    let events = futures::stream::once(futures::future::ready(Ok(start)))
        .chain(following)
        .take_until(api.stop.clone().cancelled_owned());
    let keep_alive = KeepAlive::new().interval(api.config.heartbeat).text("still here");
    Ok(Sse::new(events).keep_alive(keep_alive).into_response())
}
