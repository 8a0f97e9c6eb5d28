//! What holds for every request: idempotency, preconditions, limits, errors, the server's own paths.

use axum::body::Body;
use bytes::Bytes;
use http::{Request, StatusCode};
use serde_json::json;

use crate::common::{Harness, Reply};

const CREATE: &str = r#"{"spec":{"image":"debian"}}"#;

async fn harness_with_image() -> Harness {
    let harness = Harness::new();
    harness.import("debian", "rootfs", b"x").await;
    harness
}

async fn vm_count(harness: &Harness) -> usize {
    harness.call("GET", "/v1/vms", None).await.json["items"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_concurrent_requests_with_one_idempotency_key_make_one_vm() {
    let harness = harness_with_image().await;
    let key = [("idempotency-key", "the key")];
    let one = || harness.call_with("POST", "/v1/vms", Some(CREATE), &key);
    let replies = futures::future::join_all((0..16).map(|_| one())).await;
    let ids: std::collections::BTreeSet<_> =
        replies.iter().map(|reply| reply.json["id"].as_str().unwrap_or("none").to_owned()).collect();
    assert!(replies.iter().all(|reply| reply.status == StatusCode::ACCEPTED));
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(vm_count(&harness).await, 1);
}

#[tokio::test]
async fn an_idempotency_key_with_another_body_is_refused_and_on_another_path_is_another_key() {
    let harness = harness_with_image().await;
    let key = [("idempotency-key", "k")];
    let first = harness.call_with("POST", "/v1/vms", Some(CREATE), &key).await;
    let other = r#"{"spec":{"image":"debian"} }"#;
    let reused = harness.call_with("POST", "/v1/vms", Some(other), &key).await;
    reused.refused(422, "IDEMPOTENCY_KEY_REUSED").field("Idempotency-Key");
    let path = format!("/v1/vms/{}/stop", first.json["id"].as_str().unwrap());
    assert_eq!(harness.call_with("POST", &path, None, &key).await.status, StatusCode::ACCEPTED);
    assert_eq!(vm_count(&harness).await, 1);
}

#[tokio::test]
async fn a_repeated_restart_makes_one_new_run() {
    let harness = Harness::new();
    harness.create("web").await;
    let key = [("idempotency-key", "again")];
    for _ in 0..2 {
        let reply = harness.call_with("POST", "/v1/vms/web/restart", None, &key).await;
        assert_eq!((reply.status, &reply.json["run"]), (StatusCode::ACCEPTED, &json!(2)));
    }
}

#[tokio::test]
async fn an_idempotency_key_out_of_bounds_is_refused_by_name() {
    let harness = harness_with_image().await;
    for key in ["", &"k".repeat(256)] {
        let reply = harness.call_with("POST", "/v1/vms", Some(CREATE), &[("idempotency-key", key)]).await;
        reply.refused(400, "INVALID_FIELD").field("Idempotency-Key");
    }
}

#[tokio::test]
async fn a_change_is_made_only_at_the_generation_that_if_match_names() {
    let harness = Harness::new();
    harness.create("web").await;
    let stop =
        async |tag: &str| harness.call_with("POST", "/v1/vms/web/stop", None, &[("if-match", tag)]).await;
    stop("\"9\"").await.refused(412, "GENERATION_MISMATCH");
    stop("nine").await.refused(400, "INVALID_FIELD").field("If-Match");
    assert_eq!(harness.call("GET", "/v1/vms/web", None).await.json["desired"], "running");
    assert_eq!(stop("\"1\"").await.status, StatusCode::ACCEPTED);
    stop("\"1\"").await.refused(412, "GENERATION_MISMATCH");
    assert_eq!(stop("*").await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn what_is_never_allowed_is_refused_for_that_even_when_the_generation_is_stale_too() {
    let harness = Harness::new();
    harness.create("web").await;
    for (path, body, field) in [
        (
            "network",
            r#"{"upload":{"bytes_per_second":372944340131}}"#,
            "spec.network.upload.bytes_per_second",
        ),
        ("network", r#"{"egress":{"mode":"allow_list"}}"#, "spec.network.egress"),
        ("labels", r#"{"labels":{"a":"\u0007"}}"#, "labels"),
    ] {
        let path = format!("/v1/vms/web/{path}");
        let reply = harness.call_with("PUT", &path, Some(body), &[("if-match", "\"9\"")]).await;
        reply.refused(400, "INVALID_FIELD").field(field);
    }
}

#[tokio::test]
async fn a_body_that_is_no_json_of_another_type_or_too_long_is_refused_each_with_its_code() {
    let harness =
        Harness::with(std::sync::Arc::new(flames_service::NoLinks), |config| config.max_json_bytes = 256);
    harness.call("POST", "/v1/vms", Some("{")).await.refused(400, "INVALID_REQUEST");
    harness.call("POST", "/v1/vms", Some("{} {}")).await.refused(400, "INVALID_FIELD").field("spec");
    let long = format!("{{\"name\":\"{}\"}}", "x".repeat(300));
    harness.call("POST", "/v1/vms", Some(&long)).await.refused(413, "BODY_TOO_LARGE");
    let chunks =
        futures::stream::iter((0..10).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 100]))));
    let request = Request::post("/v1/vms").header("content-type", "application/json");
    let streamed = harness.send(request.body(Body::from_stream(chunks)).unwrap()).await;
    Reply::of(streamed).await.refused(413, "BODY_TOO_LARGE");
    let untyped = Request::post("/v1/vms").body(Body::from(CREATE)).unwrap();
    Reply::of(harness.send(untyped).await).await.refused(415, "UNSUPPORTED_MEDIA_TYPE");
}

#[tokio::test]
async fn an_action_takes_no_body() {
    let harness = Harness::new();
    harness.create("web").await;
    let reply = harness.call("POST", "/v1/vms/web/stop", Some(r#"{"grace":1}"#)).await;
    reply.refused(400, "INVALID_REQUEST");
    assert_eq!(harness.call("POST", "/v1/vms/web/stop", Some("{}")).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn an_unknown_path_and_a_wrong_method_are_problems_too() {
    let harness = Harness::new();
    harness.call("GET", "/v2/vms", None).await.refused(404, "ROUTE_NOT_FOUND");
    let wrong = harness.call("PATCH", "/v1/vms/web", None).await;
    wrong.refused(405, "METHOD_NOT_ALLOWED");
    assert!(wrong.headers["allow"].contains("DELETE"), "{wrong:?}");
    harness.call("GET", "/v1/vms/Not%20A%20Name", None).await.refused(400, "INVALID_FIELD").field("vm");
    harness.call("GET", "/v1/vms/%FF", None).await.refused(400, "INVALID_REQUEST");
}

#[tokio::test]
async fn the_clients_request_id_is_kept_and_stands_in_the_event() {
    let harness = harness_with_image().await;
    let id = [("x-request-id", "trace-7")];
    let reply = harness.call_with("POST", "/v1/vms", Some(CREATE), &id).await;
    assert_eq!(reply.headers["x-request-id"], "trace-7");
    let events = harness.call("GET", "/v1/events", None).await;
    let created = events.json["items"].as_array().unwrap().iter().find(|event| event["type"] == "vm_created");
    assert_eq!(created.unwrap()["request_id"], "trace-7");
    let bad = harness.call_with("GET", "/v1/version", None, &[("x-request-id", "with space")]).await;
    assert_ne!(bad.headers["x-request-id"], "with space");
    assert!(!bad.headers["x-request-id"].is_empty());
}

#[tokio::test]
async fn a_handler_that_panics_is_a_500_that_tells_nothing_and_the_next_request_works() {
    let harness = Harness::new();
    let reply = harness.import("a", "rootfs", b"panic").await;
    reply.refused(500, "INTERNAL");
    assert!(!reply.text.contains("hunter2"), "{}", reply.text);
    assert_eq!(harness.call("GET", "/healthz", None).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_server_with_no_place_left_says_when_to_come_back() {
    let harness = Harness::with(std::sync::Arc::new(flames_service::NoLinks), |config| {
        config.max_requests = 0;
        config.max_streams = 0;
    });
    for path in ["/v1/vms", "/v1/events?follow=true"] {
        let reply = harness.call("GET", path, None).await;
        reply.refused(503, "UNAVAILABLE");
        assert_eq!(reply.headers["retry-after"], "1");
    }
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_ended() {
    let harness = Harness::with(std::sync::Arc::new(flames_service::NoLinks), |config| {
        config.request_timeout = std::time::Duration::from_millis(50);
    });
    let endless = futures::stream::pending::<Result<Bytes, std::io::Error>>();
    let request = Request::post("/v1/vms").header("content-type", "application/json");
    let reply = Reply::of(harness.send(request.body(Body::from_stream(endless)).unwrap()).await).await;
    reply.refused(504, "REQUEST_TIMEOUT");
    assert_eq!(reply.json["kind"], "outcome_unknown");
}

#[tokio::test]
async fn the_server_tells_of_its_health_its_version_its_metrics_and_itself() {
    let harness = Harness::new();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(harness.call("GET", path, None).await.json, json!({"status": "ok"}));
    }
    let version = harness.call("GET", "/v1/version", None).await;
    assert_eq!((&version.json["api"], &version.json["stream_protocol"]), (&json!("v1"), &json!(1)));
    harness.call("GET", "/v1/vms/none", None).await;
    let metrics = harness.call("GET", "/metrics", None).await;
    let line = r#"flames_http_requests_total{method="GET",route="/v1/vms/{vm}",status="404"} 1"#;
    assert!(metrics.text.contains(line), "{}", metrics.text);
    assert!(!metrics.text.contains("/v1/vms/none"), "a path of a client's must not become a label");
    assert_eq!(harness.call("GET", "/openapi.json", None).await.json["openapi"], "3.1.0");
}

#[tokio::test]
async fn the_page_behind_each_problems_type_is_served() {
    let harness = Harness::new();
    for (code, _) in flames_client::wire::codes::TITLES {
        let page = harness.call("GET", &format!("/docs/errors/{code}"), None).await;
        assert_eq!(page.status, StatusCode::OK, "{code}");
        assert!(page.headers["content-type"].starts_with("text/markdown"));
        assert!(page.text.starts_with(&format!("# {code}")));
    }
    harness.call("GET", "/docs/errors/NO_SUCH_CODE", None).await.refused(404, "ROUTE_NOT_FOUND");
}
