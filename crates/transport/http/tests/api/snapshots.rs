//! Snapshots as they are asked for: `kind` and `base`.

use flames_model::{
    Assignment, ImageDefaults, ImageKind, ImageManifest, IncarnationId, Snapshot, SnapshotState, Source,
    Wanted,
};
use flames_records::Change;
use flames_service::codes;
use http::StatusCode;
use serde_json::Value;

use crate::common::{Harness, Reply, place_and_run, project, register};

/// A VM that runs on a host, which has it assigned.
struct Saved {
    harness: Harness,
    incarnation: IncarnationId,
}

impl Saved {
    async fn new() -> Self {
        let harness = Harness::new();
        let vm = harness.create("web").await;
        let id = vm["id"].as_str().unwrap();
        let incarnation = place_and_run(&harness.service, id).await;
        let (controller, _) = register(&harness.service).await;
        let entry = harness.service.records().vm(&project(), id.parse().unwrap()).await.unwrap().unwrap();
        let mut change = Change::new();
        change.insert_assignment(Assignment {
            incarnation,
            vm: entry.vm.id,
            project: project(),
            name: entry.vm.name.clone(),
            controller,
            token: entry.incarnation.as_ref().unwrap().token,
            wanted: Wanted::Running,
            address: None,
            spec: entry.vm.spec.clone(),
            network_revision: 0,
            source: Source::Boot,
            image: ImageManifest {
                kind: ImageKind::Rootfs,
                blob: "image/x".to_owned(),
                digest: "sha256:0".to_owned(),
                size_bytes: 1,
                defaults: ImageDefaults::default(),
            },
            kernel: None,
            restore: None,
            snapshot: None,
            snapshot_base: None,
        });
        harness.service.records().apply(change).await.unwrap();
        Self { harness, incarnation }
    }

    async fn ask(&self, body: &str) -> Reply {
        self.harness.call("POST", "/v1/vms/web/snapshots", Some(body)).await
    }

    /// Asks for one that is given, and answers it with what the host is told of it.
    async fn given(&self, body: &str) -> (Value, Assignment) {
        let reply = self.ask(body).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
        assert_eq!(
            reply.headers["location"],
            format!("/v1/snapshots/{}", reply.json["id"].as_str().unwrap())
        );
        let (controller, _) = register(&self.harness.service).await;
        let ordered = self.harness.service.records().assignment(controller, self.incarnation).await;
        let ordered = Assignment::clone(&ordered.unwrap().unwrap());
        assert_eq!(ordered.snapshot.map(|id| id.to_string()).as_deref(), reply.json["id"].as_str());
        (reply.json, ordered)
    }

    /// As the host's last report of a snapshot leaves it.
    async fn ready(&self, snapshot: &Value) {
        let records = self.harness.service.records();
        let id = snapshot["id"].as_str().unwrap();
        let before = records.snapshot(&project(), id.parse().unwrap()).await.unwrap().unwrap();
        let (controller, _) = register(&self.harness.service).await;
        let ordered = records.assignment(controller, self.incarnation).await.unwrap().unwrap();
        let mut change = Change::new();
        let manifest = Some(format!("snapshot/manifest/{id}"));
        let finished_at = Some(before.created_at);
        let after =
            Snapshot { state: SnapshotState::Ready, manifest, finished_at, ..Snapshot::clone(&before) };
        let withdrawn = Assignment { snapshot: None, snapshot_base: None, ..Assignment::clone(&ordered) };
        change.update_snapshot(&before, &after).update_assignment(&ordered, withdrawn);
        records.apply(change).await.unwrap();
    }
}

#[tokio::test]
async fn a_snapshot_is_full_unless_a_difference_is_asked_for_and_names_no_base() {
    let saved = Saved::new().await;
    for body in ["{}", r#"{"kind":"full"}"#, r#"{"kind":"full","base":null}"#] {
        let (snapshot, ordered) = saved.given(body).await;
        assert_eq!((&snapshot["base"], ordered.snapshot_base), (&Value::Null, None), "{body}");
        saved.ready(&snapshot).await;
    }
    saved.ask(r#"{"kind":"full","base":"first"}"#).await.refused(400, codes::INVALID_FIELD).field("base");
}

#[tokio::test]
async fn a_difference_is_from_the_newest_ready_snapshot_of_the_run_and_from_no_other() {
    let saved = Saved::new().await;
    let none = saved.ask(r#"{"kind":"diff"}"#).await;
    none.refused(409, codes::SNAPSHOT_BASE_UNUSABLE).field("base");
    assert!(none.json["detail"].as_str().unwrap().contains("Take a full one first"), "{none:?}");
    let (first, _) = saved.given(r#"{"name":"first"}"#).await;
    saved.ask(r#"{"kind":"diff"}"#).await.refused(409, codes::SNAPSHOT_IN_PROGRESS);
    saved.ready(&first).await;
    let (second, ordered) = saved.given(r#"{"name":"second","kind":"diff"}"#).await;
    assert_eq!(second["base"], first["id"]);
    assert_eq!(ordered.snapshot_base.unwrap().snapshot.to_string(), first["id"].as_str().unwrap());
    saved.ready(&second).await;
    let other = saved.ask(r#"{"kind":"diff","base":"first"}"#).await;
    other.refused(409, codes::SNAPSHOT_BASE_UNUSABLE).field("base");
    assert!(other.json["detail"].as_str().unwrap().contains("`second`"), "{other:?}");
    for (name, base) in [("by-name", "second"), ("by-id", "by-name")] {
        let base = saved.harness.call("GET", &format!("/v1/snapshots/{base}"), None).await.json;
        let named = if name == "by-id" { &base["id"] } else { &base["name"] };
        let body = serde_json::json!({ "name": name, "kind": "diff", "base": named }).to_string();
        let (snapshot, _) = saved.given(&body).await;
        assert_eq!(snapshot["base"], base["id"]);
        let read = saved.harness.call("GET", &format!("/v1/snapshots/{name}"), None).await.json;
        assert_eq!(read["base"], base["id"], "and is shown so");
        saved.ready(&snapshot).await;
    }
}

#[tokio::test]
async fn a_kind_or_base_that_cannot_be_is_refused_with_its_field_and_leaves_no_snapshot() {
    let saved = Saved::new().await;
    saved.ask(r#"{"kind":"half"}"#).await.refused(400, codes::INVALID_FIELD).field("kind");
    saved.ask(r#"{"kind":"diff","base":"No Name"}"#).await.refused(400, codes::INVALID_FIELD).field("base");
    let absent = saved.ask(r#"{"kind":"diff","base":"absent"}"#).await;
    absent.refused(404, codes::SNAPSHOT_NOT_FOUND).field("base");
    let listed = saved.harness.call("GET", "/v1/snapshots", None).await.json;
    assert_eq!(listed["items"], serde_json::json!([]));
}
