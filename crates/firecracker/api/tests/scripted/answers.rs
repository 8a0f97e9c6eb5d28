//! What the client makes of answers, and what it sends.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use flames_error::ErrorKind;
use flames_firecracker_api::{
    Drive, InstanceState, MachineConfig, Options, SnapshotLoad, Version, Vsock, operation::ANSWER_LIMIT,
};
use serde_json::json;

use crate::server::{NO_CONTENT, Server, answer};

const INSTANCE: &str =
    r#"{"id":"vm1","state":"Not started","vmm_version":"1.16.1","app_name":"Firecracker","new":[1]}"#;

#[tokio::test]
async fn an_answer_without_content_is_a_success_and_the_connection_is_kept() {
    let server = Server::always(NO_CONTENT);
    let client = server.client();
    for _ in 0..20 {
        client.put_machine_config(&MachineConfig::new(1, 128)).await.unwrap();
        client.pause().await.unwrap();
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn an_answer_may_hold_what_this_version_does_not_know() {
    let server = Server::always(answer(200, INSTANCE));
    let info = server.client().instance_info().await.unwrap();
    assert_eq!((info.id.as_str(), info.state), ("vm1", InstanceState::NotStarted));

    let server = Server::always(answer(200, &INSTANCE.replace("Not started", "Migrating")));
    let info = server.client().instance_info().await.unwrap();
    assert_eq!(info.state, InstanceState::Other("Migrating".into()));

    let server = Server::always(answer(200, r#"{"firecracker_version":"1.15.0"}"#));
    let version = server.client().version().await.unwrap();
    assert_eq!(version, Version::new(1, 15, 0));
    assert_eq!(version.check().unwrap_err().kind(), ErrorKind::NotSupported);
}

#[tokio::test]
async fn a_refusal_has_firecrackers_words_and_leaves_the_connection_usable() {
    let words = "The requested operation is not supported before starting the microVM.";
    let server = Server::always(answer(400, &json!({ "fault_message": words }).to_string()));
    let client = server.client();
    for _ in 0..3 {
        let refused = client.pause().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        assert!(refused.message().contains(words), "{refused:?}");
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_server_with_too_many_connections_is_unavailable_and_asked_anew() {
    let server = Server::start(|mut connection, number| async move {
        connection.request().await;
        let full = "HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n\
                    { \"error\": \"Too many open connections\" }";
        connection.say(if number == 0 { full } else { NO_CONTENT }).await;
    });
    let client = server.client();
    let refused = client.pause().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.message().contains("Too many open connections"));
    client.pause().await.unwrap();
}

#[tokio::test]
async fn what_is_not_json_is_corrupt() {
    for body in ["{", "", "[]", "{\"id\": 7}", "\u{0}", "null"] {
        let server = Server::always(answer(200, body));
        let error = server.client().instance_info().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{body}");
    }
    let server = Server::always("SSH-2.0-OpenSSH_9.2\r\n\r\n");
    assert_eq!(server.client().instance_info().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(server.client().pause().await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
}

#[tokio::test]
async fn an_answer_may_be_as_long_as_its_limit_and_no_longer() {
    let padded = |length: usize| {
        let padding = length - INSTANCE.len();
        answer(200, &format!("{INSTANCE}{}", " ".repeat(padding)))
    };
    let server = Server::always(padded(ANSWER_LIMIT));
    server.client().instance_info().await.unwrap();
    let server = Server::always(padded(ANSWER_LIMIT + 1));
    assert_eq!(server.client().instance_info().await.unwrap_err().kind(), ErrorKind::Internal);

    let metadata = answer(200, &json!({ "long": "x".repeat(3 * ANSWER_LIMIT) }).to_string());
    let server = Server::always(metadata);
    server.client().mmds().await.unwrap();
}

#[tokio::test]
async fn an_endless_answer_is_given_up_and_its_connection_closed() {
    let closed = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&closed);
    let server = Server::start(move |mut connection, _| {
        let counter = Arc::clone(&counter);
        async move {
            connection.request().await;
            connection.say("HTTP/1.1 200 OK\r\n\r\n").await;
            while connection.say(&" ".repeat(4096)).await {}
            *counter.lock().unwrap() += 1;
        }
    });
    let client = server.client();
    assert_eq!(client.instance_info().await.unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(client.resume().await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    while *closed.lock().unwrap() < 2 {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn an_endless_head_is_given_up() {
    let server = Server::start(|mut connection, _| async move {
        connection.request().await;
        connection.say("HTTP/1.1 200 OK\r\n").await;
        while connection.say("X-Header: again and again and again\r\n").await {}
    });
    assert_eq!(server.client().instance_info().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

/// What was sent for each call.
async fn sent_by<Fut: Future<Output = ()>>(
    call: impl FnOnce(flames_firecracker_api::Client) -> Fut,
) -> Vec<String> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let server = Server::start(move |mut connection, _| {
        let log = Arc::clone(&log);
        async move {
            while let Some(request) = connection.request().await {
                log.lock().unwrap().push(request);
                connection.say(NO_CONTENT).await;
            }
        }
    });
    call(server.client()).await;
    let seen = seen.lock().unwrap();
    seen.clone()
}

#[tokio::test]
async fn a_request_is_of_the_form_that_firecrackers_server_reads() {
    let requests = sent_by(|client| async move {
        let mut drive = Drive::from_file("root_1", "/disk.ext4", true);
        drive.is_root_device = true;
        client.put_drive(&drive).await.unwrap();
        client.delete_drive("root_1").await.unwrap();
        client.stop_balloon_hinting().await.unwrap();
        client.start().await.unwrap();
    })
    .await;
    let [put, delete, stop, start] = &requests[..] else { panic!("{requests:?}") };
    let (head, body) = put.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("PUT /drives/root_1 HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains(&format!("content-length: {}", body.len())));
    assert!(!head.to_lowercase().contains("transfer-encoding"));
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(body).unwrap(),
        json!({
            "drive_id": "root_1", "is_root_device": true, "cache_type": "Unsafe", "is_read_only": true,
            "path_on_host": "/disk.ext4"
        })
    );
    for (request, line) in [(delete, "DELETE /drives/root_1 "), (stop, "PATCH /balloon/hinting/stop ")] {
        assert!(request.starts_with(line) && request.ends_with("\r\n\r\n"), "{request}");
        assert!(!request.to_lowercase().contains("content-length"));
    }
    assert!(start.ends_with(r#"{"action_type":"InstanceStart"}"#));
}

#[tokio::test]
async fn a_load_without_what_is_new_is_one_that_the_oldest_version_takes() {
    let requests = sent_by(|client| async move {
        client.load_snapshot(&SnapshotLoad::from_files("/state", "/memory")).await.unwrap();
    })
    .await;
    assert!(requests[0].ends_with(
        r#"{"snapshot_path":"/state","mem_backend":{"backend_type":"File","backend_path":"/memory"}}"#
    ));
}

#[tokio::test]
async fn what_firecracker_would_misread_is_never_sent() {
    let requests = sent_by(|client| async move {
        let refused = |outcome: flames_error::Result<()>| outcome.unwrap_err();
        for id in ["", "a/b", "../vm", "a?b", "a b", "é", &"x".repeat(129)] {
            let error = refused(client.put_drive(&Drive::from_file(id, "/disk", true)).await);
            assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("id")), "{id}");
            assert!(client.delete_network_interface(id).await.is_err());
        }
        let metadata = json!({ "long": "x".repeat(51_200) });
        let error = refused(client.put_mmds(&metadata).await);
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("body")));
        let not_utf8 = PathBuf::from(OsString::from_vec(b"/vm/\xff".to_vec()));
        let error = refused(client.put_vsock(&Vsock { guest_cid: 3, uds_path: not_utf8 }).await);
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("path")));
    })
    .await;
    assert!(requests.is_empty(), "{requests:?}");

    let server = Server::always(NO_CONTENT);
    let client = server.client_with(Options { request_limit: 100_000, ..Options::default() });
    client.put_mmds(&json!({ "long": "x".repeat(51_200) })).await.unwrap();
}

#[tokio::test]
async fn the_bodies_of_actions_and_states_are_those_of_the_description() {
    let requests = sent_by(|client| async move {
        client.flush_metrics().await.unwrap();
        client.send_ctrl_alt_del().await.unwrap();
        client.start().await.unwrap();
        client.pause().await.unwrap();
        client.resume().await.unwrap();
    })
    .await;
    let bodies: Vec<_> = requests.iter().map(|request| request.split_once("\r\n\r\n").unwrap().1).collect();
    assert_eq!(
        bodies,
        [
            r#"{"action_type":"FlushMetrics"}"#,
            r#"{"action_type":"SendCtrlAltDel"}"#,
            r#"{"action_type":"InstanceStart"}"#,
            r#"{"state":"Paused"}"#,
            r#"{"state":"Resumed"}"#,
        ]
    );
}
