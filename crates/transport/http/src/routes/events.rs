//! Events: pages, and following as server-sent events.

use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use flames_error::Error;
use flames_service::codes;
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
        Some("newest") if field == "after" => api.service.newest_event(&caller).await?,
        Some(position) => position.parse().map_err(unreadable)?,
    };
    if !query.follow {
        let entries = api.service.events(&caller, after, limit).await?;
        let next_cursor = entries.last().map_or(after, |entry| entry.position).to_string();
        let items =
            entries.iter().map(|entry| Event::new(entry.position.to_string(), &entry.event)).collect();
        return Ok(JsonAnswer(EventList { items, next_cursor }).into_response());
    }
    let place = api.stream_permit()?;
    // First the place itself: who connects to `newest` and is cut off before the first event still resumes here.
    let start = Message::default().id(after.to_string()).retry(std::time::Duration::from_secs(1));
    let following =
        api.service.follow_events(&caller, after).map(move |entry| {
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
