//! Images.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use futures::StreamExt;
use http::{Request, StatusCode};
use serde_json::Value;

use crate::common::{Harness, Reply};

/// SHA-256 of `bytes`.
const DIGEST: &str = "sha256:277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9";

async fn import_with(harness: &Harness, query: &str, accept: &str, body: &'static str) -> Reply {
    let request = Request::post(format!("/v1/images?{query}")).header("accept", accept);
    let request = request.header("content-type", "application/x-tar").body(Body::from(body)).unwrap();
    Reply::of(harness.send(request).await).await
}

#[tokio::test]
async fn an_image_is_imported_read_listed_and_removed_also_when_its_name_has_slashes() {
    let harness = Harness::new();
    let imported = harness.import("team/app:2026", "rootfs", b"bytes").await;
    assert_eq!((imported.status, &imported.json["size_bytes"]), (StatusCode::CREATED, &Value::from(5)));
    harness.import("another", "kernel", b"kernel").await;
    let path = "/v1/images/team%2Fapp%3A2026";
    assert_eq!(harness.call("GET", path, None).await.json, imported.json);
    let list = harness.call("GET", "/v1/images?limit=1", None).await;
    assert_eq!(
        (&list.json["items"][0]["name"], &list.json["next_cursor"]),
        (&"another".into(), &"another".into())
    );
    let list = harness.call("GET", "/v1/images?cursor=another", None).await;
    assert_eq!(
        (&list.json["items"][0]["name"], &list.json["next_cursor"]),
        (&"team/app:2026".into(), &Value::Null)
    );
    assert_eq!(harness.call("DELETE", path, None).await.status, StatusCode::NO_CONTENT);
    harness.call("GET", path, None).await.refused(404, "IMAGE_NOT_FOUND");
    harness.call("DELETE", path, None).await.refused(404, "IMAGE_NOT_FOUND");
}

#[tokio::test]
async fn an_image_in_use_is_not_removed() {
    let harness = Harness::new();
    harness.create("web").await;
    harness.call("DELETE", "/v1/images/debian", None).await.refused(409, "IMAGE_IN_USE");
}

#[tokio::test]
async fn progress_comes_line_by_line_and_the_last_line_is_the_image() {
    let harness = Harness::new();
    let reply = import_with(&harness, "name=a&kind=rootfs", "application/x-ndjson", "bytes").await;
    assert_eq!(reply.headers["content-type"], "application/x-ndjson");
    let lines: Vec<Value> = reply.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["progress"], "Reading the archive.");
    assert_eq!(lines[1]["progress"], "Storing the image.");
    assert_eq!(lines[2]["image"]["name"], "a");
    assert_eq!(lines.len(), 3);
}

#[tokio::test]
async fn a_refused_archive_is_a_problem_and_leaves_nothing() {
    let harness = Harness::new();
    import_with(&harness, "name=a&kind=rootfs", "*/*", "bad").await.refused(400, "IMAGE_REFUSED");
    let told = import_with(&harness, "name=a&kind=rootfs", "application/x-ndjson", "bad").await;
    let last: Value = serde_json::from_str(told.text.lines().last().unwrap()).unwrap();
    assert_eq!(last["problem"]["code"], "IMAGE_REFUSED");
    harness.call("GET", "/v1/images/a", None).await.refused(404, "IMAGE_NOT_FOUND");
}

#[tokio::test]
async fn a_body_with_another_digest_than_declared_is_refused() {
    let harness = Harness::new();
    let import = async |digest: &str| {
        import_with(&harness, &format!("name=a&kind=rootfs&digest={digest}"), "*/*", "bytes").await
    };
    import("sha256:12").await.refused(400, "INVALID_FIELD").field("digest");
    import(&format!("sha256:{:064}", 0)).await.refused(400, "IMAGE_DIGEST_MISMATCH").field("digest");
    assert_eq!(import(DIGEST).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn an_archive_over_the_limit_or_of_another_type_is_refused() {
    let harness = Harness::with(Arc::new(flames_service::NoLinks), |config| config.max_image_bytes = 4);
    import_with(&harness, "name=a&kind=rootfs", "*/*", "bytes").await.refused(413, "BODY_TOO_LARGE");
    let chunks = futures::stream::iter([Ok::<_, std::io::Error>("by"), Ok("tes")]);
    let request = Request::post("/v1/images?name=a&kind=rootfs").body(Body::from_stream(chunks)).unwrap();
    Reply::of(harness.send(request).await).await.refused(413, "BODY_TOO_LARGE");
    harness
        .call("POST", "/v1/images?name=a&kind=rootfs", Some("{}"))
        .await
        .refused(415, "UNSUPPORTED_MEDIA_TYPE");
    harness
        .call("POST", "/v1/images?name=A&kind=rootfs", None)
        .await
        .refused(400, "INVALID_FIELD")
        .field("name");
    harness
        .call("POST", "/v1/images?name=a&kind=floppy", None)
        .await
        .refused(400, "INVALID_FIELD")
        .field("kind");
}

#[tokio::test]
async fn who_sends_more_than_is_taken_may_send_it_to_the_end_and_reads_why_it_was_not() {
    let harness = Harness::new();
    for accept in ["application/json", "application/x-ndjson"] {
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        let body = futures::stream::iter(0..50).map(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>("too much")
        });
        let request = Request::post("/v1/images?name=a&kind=rootfs").header("accept", accept);
        let request =
            request.header("content-type", "application/x-tar").body(Body::from_stream(body)).unwrap();
        let reply = Reply::of(harness.send(request).await).await;
        assert!(reply.text.contains("It is full."), "{}", reply.text);
        assert_eq!(sent.load(Ordering::Relaxed), 50);
    }
}
