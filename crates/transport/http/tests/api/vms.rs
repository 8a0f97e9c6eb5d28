//! VMs and controllers.

use http::StatusCode;
use serde_json::json;

use crate::common::{Harness, fail, place_and_run, register};

const CREATE: &str = r#"{"name":"web","spec":{"image":"debian"}}"#;

#[tokio::test]
async fn a_created_vm_is_answered_202_with_its_tag_and_can_be_read_by_id_and_by_name() {
    let harness = Harness::new();
    let created = harness.create("web").await;
    assert_eq!(created["state"], "pending");
    assert_eq!(created["desired"], "running");
    assert_eq!(created["project"], "default");
    assert_eq!(created["spec"]["memory_mib"], 256);
    assert_eq!(created["spec"]["disk"], "persistent");
    for reference in [created["id"].as_str().unwrap(), "web"] {
        let read = harness.call("GET", &format!("/v1/vms/{reference}"), None).await;
        assert_eq!(read.status, StatusCode::OK);
        assert_eq!(read.headers["etag"], "\"1\"");
        assert_eq!(read.json, created);
    }
}

#[tokio::test]
async fn a_create_says_where_the_vm_is_read() {
    let harness = Harness::new();
    harness.import("debian", "rootfs", b"x").await;
    let reply = harness.call("POST", "/v1/vms", Some(CREATE)).await;
    assert_eq!(reply.headers["location"], format!("/v1/vms/{}", reply.json["id"].as_str().unwrap()));
}

#[tokio::test]
async fn a_secret_is_never_read_back() {
    let harness = Harness::new();
    harness.import("debian", "rootfs", b"x").await;
    let body = r#"{"spec":{"image":"debian","secret_env":{"TOKEN":"hunter2"}}}"#;
    let created = harness.call("POST", "/v1/vms", Some(body)).await;
    assert_eq!(created.json["spec"]["secret_env"], json!(["TOKEN"]));
    let list = harness.call("GET", "/v1/vms", None).await;
    let events = harness.call("GET", "/v1/events", None).await;
    for reply in [created, list, events] {
        assert!(!reply.text.contains("hunter2"), "{}", reply.text);
    }
}

#[tokio::test]
async fn each_action_changes_what_is_wanted_and_the_generation() {
    let harness = Harness::new();
    harness.create("web").await;
    for (method, action, desired, generation) in [
        ("POST", "/stop", "stopped", 2),
        ("POST", "/start", "running", 3),
        ("POST", "/pause", "paused", 4),
        ("POST", "/resume", "running", 5),
        ("POST", "/restart", "running", 6),
        ("DELETE", "", "deleted", 7),
    ] {
        let reply = harness.call(method, &format!("/v1/vms/web{action}"), None).await;
        if action.is_empty() {
            assert_eq!(reply.json["state"], "deleting");
        }
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{action}: {reply:?}");
        assert_eq!(
            (&reply.json["desired"], &reply.json["generation"]),
            (&json!(desired), &json!(generation))
        );
        assert_eq!(reply.headers["etag"], format!("\"{generation}\""));
    }
    harness.call("POST", "/v1/vms/web/start", None).await.refused(404, "VM_NOT_FOUND");
}

#[tokio::test]
async fn a_deleted_vm_refuses_everything_but_another_delete() {
    let harness = Harness::new();
    let id = harness.create("web").await["id"].as_str().unwrap().to_owned();
    harness.call("DELETE", "/v1/vms/web", None).await;
    harness.call("POST", &format!("/v1/vms/{id}/start"), None).await.refused(409, "VM_DELETED");
    let again = harness.call("DELETE", &format!("/v1/vms/{id}"), None).await;
    assert_eq!(again.status, StatusCode::ACCEPTED);
    harness.create("web").await;
}

#[tokio::test]
async fn a_stopped_vm_cannot_be_paused() {
    let harness = Harness::new();
    harness.create("web").await;
    harness.call("POST", "/v1/vms/web/stop", None).await;
    harness.call("POST", "/v1/vms/web/pause", None).await.refused(409, "VM_NOT_RUNNING");
}

#[tokio::test]
async fn labels_are_replaced_and_lists_are_filtered_by_them_and_by_state_in_pages() {
    let harness = Harness::new();
    for name in ["a", "b", "c"] {
        harness.create(name).await;
    }
    for name in ["a", "c"] {
        let body = r#"{"labels":{"team":"web","tier":"front"}}"#;
        let reply = harness.call("PUT", &format!("/v1/vms/{name}/labels"), Some(body)).await;
        assert_eq!((reply.status, &reply.json["labels"]["team"]), (StatusCode::ACCEPTED, &json!("web")));
    }
    harness.call("POST", "/v1/vms/c/stop", None).await;
    let names = async |query: &str| -> Vec<String> {
        let reply = harness.call("GET", &format!("/v1/vms{query}"), None).await;
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
        let items = reply.json["items"].as_array().unwrap().clone();
        // Ids of one millisecond are in no order.
        let names = items.iter().map(|vm| vm["name"].as_str().unwrap().to_owned());
        names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    };
    assert_eq!(names("").await, ["a", "b", "c"]);
    assert_eq!(names("?labels=team=web,tier=front").await, ["a", "c"]);
    assert_eq!(names("?labels=team%3Dweb&state=stopped").await, ["c"]);
    assert_eq!(names("?state=running").await, Vec::<String>::new());

    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = harness.call("GET", &format!("/v1/vms?limit=2{cursor}"), None).await;
        let names =
            page.json["items"].as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap().to_owned());
        seen.extend(names);
        match page.json["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    seen.sort();
    assert_eq!(seen, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_network_is_replaced_as_a_whole_and_shown_with_whether_it_is_in_force() {
    let harness = Harness::new();
    let vm = harness.create("web").await;
    assert_eq!(
        vm["network"],
        json!({"revision": 0, "applied_revision": null, "in_force": false, "reason": null})
    );
    let put = async |body: &str| harness.call("PUT", "/v1/vms/web/network", Some(body)).await;
    let reply =
        put(r#"{"egress":{"mode":"allow_list","domains":["pypi.org"]},"private_network":"team"}"#).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
    assert_eq!(reply.headers["etag"], "\"2\"");
    assert_eq!(reply.json["network"]["revision"], 1);
    assert_eq!(reply.json["spec"]["network"]["egress"]["domains"], json!(["pypi.org"]));
    let reply = put(r#"{"egress":{"mode":"allow"}}"#).await;
    assert_eq!(reply.json["spec"]["network"]["private_network"], json!(null));
    put(r#"{"egress":{"mode":"allow_list"}}"#)
        .await
        .refused(400, "INVALID_FIELD")
        .field("spec.network.egress");
    put(r#"{"egres":{}}"#).await.refused(400, "INVALID_FIELD");

    place_and_run(&harness.service, vm["id"].as_str().unwrap()).await;
    put("{}").await.refused(422, "NETWORK_NOT_CHANGEABLE").field("spec.network");
    // The host says that its machine is under the first one.
    let shown = harness.call("GET", "/v1/vms/web", None).await.json["network"].clone();
    assert_eq!(shown, json!({"revision": 2, "applied_revision": 0, "in_force": false, "reason": null}));
    let waited = harness.call("GET", "/v1/vms/web/wait?for=network&timeout_ms=1", None).await;
    assert_eq!((waited.status, &waited.json["reached"]), (StatusCode::OK, &json!(false)));
}

#[tokio::test]
async fn a_filter_that_cannot_be_read_names_its_parameter() {
    let harness = Harness::new();
    for (query, field) in [
        ("labels=team", "labels"),
        ("state=flying", "state"),
        ("controller=x", "controller"),
        ("cursor=x", "cursor"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=many", "limit"),
        ("colour=red", "colour"),
    ] {
        let reply = harness.call("GET", &format!("/v1/vms?{query}"), None).await;
        reply.refused(400, "INVALID_FIELD").field(field);
    }
}

#[tokio::test]
async fn bad_input_names_the_field_and_the_range() {
    let harness = Harness::new();
    harness.import("debian", "rootfs", b"x").await;
    let long_name = "x".repeat(10_240);
    for (body, field) in [
        (r#"{"spec":{"image":"debian","vcpus":0}}"#.to_owned(), "spec.vcpus"),
        (r#"{"spec":{"image":"debian","vcpus":"two"}}"#.to_owned(), "spec.vcpus"),
        (r#"{"spec":{"image":"debian","memory_mib":10485760}}"#.to_owned(), "spec.memory_mib"),
        (r#"{"spec":{"image":"debian","memory":1}}"#.to_owned(), "spec.memory"),
        (r#"{"spec":{"image":"debian"},"nmae":"a"}"#.to_owned(), "nmae"),
        (r#"{"spec":{}}"#.to_owned(), "spec.image"),
        ("[]".to_owned(), "body"),
        (r#"[null,{},{"image":"debian"}]"#.to_owned(), "body"),
        (r#"{"spec":{"image":"debian","ports":[[80,null]]}}"#.to_owned(), "spec.ports[0]"),
        (format!(r#"{{"name":"{long_name}","spec":{{"image":"debian"}}}}"#), "name"),
        (r#"{"labels":{"a":"b\u0007"},"spec":{"image":"debian"}}"#.to_owned(), "labels"),
        (r#"{"spec":{"image":"Not A Name"}}"#.to_owned(), "spec.image"),
        (r#"{"spec":{"image":"debian","ports":[{"guest_port":0}]}}"#.to_owned(), "spec.ports"),
        (r#"{"spec":{"image":"debian","on_host_loss":"restart"}}"#.to_owned(), "spec.on_host_loss"),
    ] {
        let reply = harness.call("POST", "/v1/vms", Some(&body)).await;
        reply.refused(400, "INVALID_FIELD").field(field);
        assert!(reply.json["detail"].as_str().unwrap().len() > 10, "{reply:?}");
    }
    assert_eq!(harness.call("GET", "/v1/vms", None).await.json["items"], json!([]));
}

#[tokio::test]
async fn what_cannot_be_read_is_told_with_its_range_and_without_what_was_sent() {
    let harness = Harness::new();
    let body = r#"{"spec":{"image":"debian","secret_env":"hunter2"}}"#;
    let reply = harness.call("POST", "/v1/vms", Some(body)).await;
    reply.refused(400, "INVALID_FIELD").field("spec.secret_env");
    assert!(!reply.text.contains("hunter2"), "{reply:?}");
    let body = r#"{"spec":{"image":"debian","ports":[{"guest_port":70000}]}}"#;
    let reply = harness.call("POST", "/v1/vms", Some(body)).await;
    reply.refused(400, "INVALID_FIELD").field("spec.ports[0].guest_port");
    assert!(reply.json["detail"].as_str().unwrap().contains("0 to 65535"), "{reply:?}");
    harness.call("GET", "/v1/vms/web/wait", None).await.refused(400, "INVALID_FIELD").field("for");
    let reply = harness.call("GET", "/v1/vms/web/logs?since=yesterday", None).await;
    reply.refused(400, "INVALID_FIELD").field("since");
    assert!(reply.json["detail"].as_str().unwrap().contains("RFC 3339"), "{reply:?}");
}

#[tokio::test]
async fn a_restart_is_over_when_the_new_run_is_there_and_not_while_the_last_one_lives() {
    let harness = Harness::new();
    let vm = harness.create("web").await;
    place_and_run(&harness.service, vm["id"].as_str().unwrap()).await;
    let running = "/v1/vms/web/wait?for=running&timeout_ms=50";
    assert_eq!(harness.call("GET", running, None).await.json["reached"], true);
    assert_eq!(harness.call("POST", "/v1/vms/web/restart", None).await.status, StatusCode::ACCEPTED);
    let waited = harness.call("GET", running, None).await;
    assert_eq!((&waited.json["reached"], &waited.json["vm"]["state"]), (&json!(false), &json!("running")));
}

#[tokio::test]
async fn a_missing_image_and_one_of_the_wrong_kind_are_told_apart() {
    let harness = Harness::new();
    harness.call("POST", "/v1/vms", Some(CREATE)).await.refused(404, "IMAGE_NOT_FOUND").field("spec.image");
    harness.import("vmlinux", "kernel", b"kernel").await;
    let body = r#"{"spec":{"image":"vmlinux"}}"#;
    harness.call("POST", "/v1/vms", Some(body)).await.refused(400, "IMAGE_WRONG_KIND").field("spec.image");
}

#[tokio::test]
async fn a_name_is_given_once() {
    let harness = Harness::new();
    harness.create("web").await;
    harness.call("POST", "/v1/vms", Some(CREATE)).await.refused(409, "VM_NAME_TAKEN").field("name");
}

#[tokio::test]
async fn a_wait_ends_when_the_vm_is_as_hoped_or_the_time_is_up() {
    let harness = Harness::new();
    let vm = harness.create("web").await;
    let now = harness.call("GET", "/v1/vms/web/wait?for=pending", None).await;
    assert_eq!((now.status, &now.json["reached"]), (StatusCode::OK, &json!(true)));
    let late = harness.call("GET", "/v1/vms/web/wait?for=running&timeout_ms=20", None).await;
    assert_eq!((late.status, &late.json["reached"]), (StatusCode::OK, &json!(false)));
    let waiting = harness.call("GET", "/v1/vms/web/wait?for=running&timeout_ms=20000", None);
    let placing = place_and_run(&harness.service, vm["id"].as_str().unwrap());
    let (waited, _) = tokio::join!(waiting, placing);
    assert_eq!((&waited.json["reached"], &waited.json["vm"]["state"]), (&json!(true), &json!("running")));
    harness.call("GET", "/v1/vms/web/wait", None).await.refused(400, "INVALID_FIELD");
    harness.call("GET", "/v1/vms/web/wait?for=lunch", None).await.refused(400, "INVALID_FIELD").field("for");
    harness.call("GET", "/v1/vms/none/wait?for=running", None).await.refused(404, "VM_NOT_FOUND");
}

#[tokio::test]
async fn a_wait_ends_when_the_run_is_over_and_does_not_go_on_by_itself() {
    let harness = Harness::new();
    let vm = harness.create("web").await;
    let id = vm["id"].as_str().unwrap();
    place_and_run(&harness.service, id).await;
    let waiting = harness.call("GET", "/v1/vms/web/wait?for=paused&timeout_ms=60000", None);
    let (waited, ()) = tokio::join!(waiting, fail(&harness.service, id));
    assert_eq!((&waited.json["reached"], &waited.json["vm"]["state"]), (&json!(false), &json!("failed")));
    for hope in ["running", "stopped"] {
        let path = format!("/v1/vms/web/wait?for={hope}&timeout_ms=60000");
        assert_eq!(harness.call("GET", &path, None).await.json["reached"], json!(false), "{hope}");
    }
    for hope in ["failed", "ended"] {
        let path = format!("/v1/vms/web/wait?for={hope}&timeout_ms=60000");
        assert_eq!(harness.call("GET", &path, None).await.json["reached"], json!(true), "{hope}");
    }
    let again = harness.call("POST", "/v1/vms/web/start", None).await;
    assert_eq!(again.status, StatusCode::ACCEPTED);
    let late = harness.call("GET", "/v1/vms/web/wait?for=running&timeout_ms=20", None).await;
    assert_eq!((&late.json["reached"], &late.json["vm"]["state"]), (&json!(false), &json!("restarting")));
}

#[tokio::test]
async fn a_shutdown_ends_waits_with_an_answer_that_says_to_try_again() {
    let harness = Harness::new();
    harness.create("web").await;
    let waiting = harness.call("GET", "/v1/vms/web/wait?for=running&timeout_ms=60000", None);
    let stopping = async {
        tokio::task::yield_now().await;
        harness.api.shutdown().await;
    };
    let (waited, ()) = tokio::join!(waiting, stopping);
    waited.refused(503, "UNAVAILABLE");
    assert_eq!(waited.headers["retry-after"], "1");
}

#[tokio::test]
async fn controllers_are_listed_cordoned_and_removed() {
    let harness = Harness::new();
    let vm = harness.create("web").await;
    place_and_run(&harness.service, vm["id"].as_str().unwrap()).await;
    let (id, _) = register(&harness.service).await;
    let list = harness.call("GET", "/v1/controllers", None).await;
    assert_eq!(list.json["items"][0]["id"], id.to_string());
    assert_eq!(list.json["items"][0]["reserved"]["memory_mib"], 256);
    for (action, cordoned) in [("cordon", true), ("uncordon", false)] {
        let reply = harness.call("POST", &format!("/v1/controllers/{id}/{action}"), None).await;
        assert_eq!((reply.status, &reply.json["cordoned"]), (StatusCode::ACCEPTED, &json!(cordoned)));
    }
    let path = format!("/v1/controllers/{id}");
    harness.call("DELETE", &path, None).await.refused(409, "CONTROLLER_IN_USE");
    assert_eq!(harness.call("GET", &path, None).await.json["name"], "host-1");
    harness.call("GET", "/v1/controllers/host-1", None).await.refused(400, "INVALID_FIELD").field("id");
    let absent = format!("/v1/controllers/ctl_{:032x}", 1);
    harness.call("GET", &absent, None).await.refused(404, "CONTROLLER_NOT_FOUND");
    harness.call("DELETE", &absent, None).await.refused(404, "CONTROLLER_NOT_FOUND");
}
