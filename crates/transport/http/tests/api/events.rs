//! Events: pages, following, resuming.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use flames_client::{Client, ClientConfig};
use futures::StreamExt;
use http::{Request, StatusCode};
use serde_json::Value;

use crate::common::{Harness, register};

struct Follower {
    body: BodyDataStream,
    buffer: String,
}

/// A server-sent event: id, name, data.
type Message = (String, String, Value);

impl Follower {
    async fn start(harness: &Harness, query: &str, last_seen: Option<&str>) -> Self {
        Self::at(harness, "/v1/events", query, last_seen).await
    }

    async fn at(harness: &Harness, path: &str, query: &str, last_seen: Option<&str>) -> Self {
        let mut request = Request::get(format!("{path}?follow=true{query}"));
        if let Some(position) = last_seen {
            request = request.header("last-event-id", position);
        }
        let response = harness.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), buffer: String::new() }
    }

    /// The next event; none at the end.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some((block, rest)) = self.buffer.clone().split_once("\n\n") {
                self.buffer = rest.to_owned();
                let field = |name: &str| {
                    let line = block.lines().find_map(|line| line.strip_prefix(name));
                    line.map(|text| text.trim().to_owned()).unwrap_or_default()
                };
                let data = field("data:");
                if data.is_empty() {
                    continue;
                }
                return Some((field("id:"), field("event:"), serde_json::from_str(&data).unwrap()));
            }
            let chunk = tokio::time::timeout(Duration::from_secs(10), self.body.next()).await.unwrap()?;
            self.buffer.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
    }
}

#[tokio::test]
async fn events_are_read_in_pages_behind_a_position() {
    let harness = Harness::new();
    harness.create("a").await;
    harness.create("b").await;
    let all = harness.call("GET", "/v1/events", None).await;
    let kinds: Vec<_> = all.json["items"].as_array().unwrap().iter().map(|e| e["type"].clone()).collect();
    assert_eq!(kinds, ["image_imported", "vm_created", "vm_created"]);
    assert_eq!(all.json["items"][1]["actor"]["id"], "tester");
    assert_eq!(all.json["items"][1]["vm_name"], "a");
    let first = harness.call("GET", "/v1/events?limit=1", None).await;
    let cursor = first.json["next_cursor"].as_str().unwrap();
    let rest = harness.call("GET", &format!("/v1/events?after={cursor}"), None).await;
    assert_eq!(rest.json["items"].as_array().unwrap().len(), 2);
    let none = harness.call("GET", "/v1/events?after=newest", None).await;
    assert_eq!(none.json["items"].as_array().unwrap().len(), 0);
    assert_eq!(none.json["next_cursor"], rest.json["next_cursor"]);
    for (query, field) in [("after=x", "after"), ("limit=1001", "limit"), ("before=1-0", "before")] {
        harness
            .call("GET", &format!("/v1/events?{query}"), None)
            .await
            .refused(400, "INVALID_FIELD")
            .field(field);
    }
}

#[tokio::test]
async fn a_follower_that_is_cut_off_resumes_without_a_gap_and_without_a_repetition() {
    let harness = Harness::new();
    harness.create("vm-0").await;
    let mut follower = Follower::start(&harness, "", None).await;
    let mut seen = Vec::new();
    let mut last = String::new();
    for round in 1..=20 {
        harness.create(&format!("vm-{round}")).await;
        let (id, name, data) = follower.next().await.unwrap();
        assert_eq!(data["position"], id.as_str());
        assert_eq!(data["type"], name.as_str());
        seen.push(id.clone());
        last = id;
        if round % 3 == 0 {
            // Cut off; what happens meanwhile comes after the new connection.
            drop(follower);
            harness.call("POST", &format!("/v1/vms/vm-{round}/stop"), None).await;
            follower = Follower::start(&harness, "&after=0-0", Some(&last)).await;
        }
    }
    let all = harness.call("GET", "/v1/events?limit=1000", None).await;
    let all: Vec<_> = all.json["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["position"].as_str().unwrap().to_owned())
        .collect();
    while seen.len() < all.len() {
        seen.push(follower.next().await.unwrap().0);
    }
    assert_eq!(seen, all);
    assert!(!last.is_empty());
}

#[tokio::test]
async fn following_the_newest_tells_only_what_comes_and_ends_when_the_server_stops() {
    let harness = Harness::new();
    harness.create("old").await;
    let mut follower = Follower::start(&harness, "&after=newest", None).await;
    harness.create("new").await;
    assert_eq!(follower.next().await.unwrap().2["vm_name"], "new");
    harness.api.shutdown().await;
    assert!(follower.next().await.is_none());
}

#[tokio::test]
async fn a_silent_follower_hears_comments() {
    let harness = Harness::with(std::sync::Arc::new(flames_service::NoLinks), |config| {
        config.heartbeat = Duration::from_millis(20);
    });
    let mut follower = Follower::start(&harness, "", None).await;
    let mut heard = String::new();
    while !heard.contains(": still here") {
        let chunk = tokio::time::timeout(Duration::from_secs(10), follower.body.next()).await.unwrap();
        heard.push_str(std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap());
    }
}

#[tokio::test]
async fn a_last_event_id_that_is_none_of_ours_is_refused() {
    let harness = Harness::new();
    let reply = harness.call_with("GET", "/v1/events?follow=true", None, &[("last-event-id", "seven")]).await;
    reply.refused(400, "INVALID_FIELD").field("Last-Event-ID");
}

#[tokio::test]
async fn the_client_follows_across_broken_connections() {
    let harness = Harness::new();
    let client = Client::over(harness.router.clone(), ClientConfig::default());
    let mut events = client.follow_events(None, 3);
    for round in 0..5 {
        harness.create(&format!("vm-{round}")).await;
    }
    let mut positions = Vec::new();
    for _ in 0..6 {
        positions.push(events.next().await.unwrap().unwrap().position);
    }
    let page = client.list_events(&flames_client::wire::EventQuery::default()).await.unwrap();
    assert_eq!(positions, page.items.into_iter().map(|event| event.position).collect::<Vec<_>>());
    harness.api.shutdown().await;
    let error = events.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), flames_error::ErrorKind::Unavailable);
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn what_happens_to_controllers_is_read_and_followed_on_a_path_of_its_own() {
    const PATH: &str = "/v1/controllers/events";
    let harness = Harness::new();
    harness.create("a").await;
    let mut follower = Follower::at(&harness, PATH, "", None).await;
    let (id, _) = register(&harness.service).await;
    let (registered, name, event) = follower.next().await.unwrap();
    assert_eq!(
        (name.as_str(), &event["controller"]),
        ("controller_registered", &Value::from(id.to_string()))
    );
    harness.call("POST", &format!("/v1/controllers/{id}/cordon"), None).await;
    assert_eq!(follower.next().await.unwrap().1, "controller_cordoned");

    let mut resumed = Follower::at(&harness, PATH, "", Some(&registered)).await;
    assert_eq!(resumed.next().await.unwrap().2["cordoned"], true);
    let all = harness.call("GET", PATH, None).await;
    let kinds: Vec<_> = all.json["items"].as_array().unwrap().iter().map(|e| e["type"].clone()).collect();
    assert_eq!(kinds, ["controller_registered", "controller_cordoned"], "and nothing of any VM");
    let none = harness.call("GET", &format!("{PATH}?after=newest"), None).await;
    assert_eq!(none.json["next_cursor"], all.json["next_cursor"]);
    harness.call("GET", &format!("{PATH}?after=x"), None).await.refused(400, "INVALID_FIELD").field("after");
}
