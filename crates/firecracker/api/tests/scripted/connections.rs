//! The one connection: how it is opened, kept, given up; and what a lost answer means.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use flames_clock::SystemClock;
use flames_error::ErrorKind;
use flames_firecracker_api::{Client, Options, SnapshotCreate, SnapshotType};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};

use crate::server::{NO_CONTENT, Server, answer};

const PATIENCE: Duration = Duration::from_secs(10);

fn instance(id: impl std::fmt::Display) -> String {
    let info =
        format!(r#"{{"id":"{id}","state":"Running","vmm_version":"1.16.1","app_name":"Firecracker"}}"#);
    answer(200, &info)
}

#[tokio::test]
async fn a_call_is_unavailable_where_nobody_listens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let client = Client::new(&path, Arc::new(SystemClock::new()), Options::default());
    assert_eq!(client.start().await.unwrap_err().kind(), ErrorKind::Unavailable, "no socket");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert_eq!(client.start().await.unwrap_err().kind(), ErrorKind::Unavailable, "no listener");
    let connected = Client::connect(&path, Arc::new(SystemClock::new())).await;
    assert_eq!(connected.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_file_or_a_link_in_the_sockets_place_is_refused() {
    let server = Server::always(NO_CONTENT);
    let file = server.folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let link = server.folder.path().join("link");
    std::os::unix::fs::symlink(&server.path, &link).unwrap();
    for path in [file, link] {
        let client = Client::new(&path, Arc::new(SystemClock::new()), Options::default());
        assert_eq!(client.pause().await.unwrap_err().kind(), ErrorKind::InvalidInput, "{path:?}");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_socket_deeper_than_an_address_can_say_is_reached() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("d".repeat(120)).join("e".repeat(200));
    std::fs::create_dir_all(&deep).unwrap();
    let server = Server::listen(folder, deep.join("firecracker.socket"), |mut connection, _| async move {
        while connection.request().await.is_some() && connection.say(NO_CONTENT).await {}
    });
    server.client().pause().await.unwrap();
}

#[tokio::test]
async fn the_listener_is_known_and_must_be_the_user_that_was_asked_for() {
    let server = Server::always(NO_CONTENT);
    let peer = server.client().peer().await.unwrap();
    assert_eq!(peer.pid, Some(i32::try_from(std::process::id()).unwrap()));
    let right = server.client_with(Options { expected_uid: Some(peer.uid), ..Options::default() });
    right.pause().await.unwrap();
    let wrong = server.client_with(Options { expected_uid: Some(peer.uid + 1), ..Options::default() });
    assert_eq!(wrong.pause().await.unwrap_err().kind(), ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn a_connection_that_was_closed_between_two_calls_is_opened_anew() {
    let closed = Arc::new(Notify::new());
    let tell = Arc::clone(&closed);
    let server = Server::start(move |mut connection, number| {
        let tell = Arc::clone(&tell);
        async move {
            connection.request().await;
            connection.say(&instance(number)).await;
            drop(connection);
            tell.notify_one();
        }
    });
    let client = server.client();
    for number in 0..10 {
        assert_eq!(client.instance_info().await.unwrap().id, number.to_string());
        closed.notified().await;
        // Whether the client knows of it already: both must do.
        if number % 2 == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_connection_of_whose_end_nobody_told_yet_is_opened_anew_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (close, must_close) = std::sync::mpsc::channel();
    let (closed, is_closed) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        for number in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            stream.write_all(instance(number).as_bytes()).unwrap();
            must_close.recv().unwrap();
            drop(stream);
            closed.send(()).unwrap();
        }
    });
    let client = Client::new(&path, Arc::new(SystemClock::new()), Options::default());
    assert_eq!(client.instance_info().await.unwrap().id, "0");
    // Holds up the only thread, so that the client's own task sees nothing of it.
    close.send(()).unwrap();
    is_closed.recv().unwrap();
    assert_eq!(client.instance_info().await.unwrap().id, "1");
    close.send(()).unwrap();
    server.join().unwrap();
}

#[tokio::test]
async fn what_nobody_asked_for_is_no_answer_to_the_next_call() {
    let server = Server::start(|mut connection, number| async move {
        connection.request().await;
        connection.say(&instance(number)).await;
        sleep(Duration::from_millis(5)).await;
        connection.say(&instance("unasked")).await;
        connection.hung_up().await;
    });
    let client = server.client();
    for number in 0..3 {
        assert_eq!(client.instance_info().await.unwrap().id, number.to_string());
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_leaves_a_changes_outcome_unknown() {
    for part in
        ["", "HTTP/1.1 20", "HTTP/1.1 204 \r\nServer: Fire", "HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\n{"]
    {
        let server = Server::start(move |mut connection, _| async move {
            connection.request().await;
            connection.say(part).await;
        });
        let client = server.client();
        assert_eq!(client.pause().await.unwrap_err().kind(), ErrorKind::OutcomeUnknown, "{part}");
        assert_eq!(client.instance_info().await.unwrap_err().kind(), ErrorKind::Unavailable, "{part}");
        assert_eq!(server.connections(), 2);
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_costs_no_more_than_the_deadline_and_no_connection() {
    let hung_up = Arc::new(Semaphore::new(0));
    let tell = Arc::clone(&hung_up);
    let server = Server::start(move |mut connection, _| {
        let tell = Arc::clone(&tell);
        async move {
            connection.request().await;
            connection.hung_up().await;
            tell.add_permits(1);
        }
    });
    let client = server.impatient_client();
    let asked = timeout(PATIENCE, client.instance_info()).await.unwrap();
    assert_eq!(asked.unwrap_err().kind(), ErrorKind::Unavailable);
    let changed = timeout(PATIENCE, client.pause()).await.unwrap();
    assert_eq!(changed.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    let closed = timeout(PATIENCE, hung_up.acquire_many(2)).await;
    closed.expect("both connections are closed").unwrap().forget();
    assert_eq!(server.connections(), 2, "the first connection was not used again");
}

#[tokio::test]
async fn a_snapshot_may_take_longer_than_a_quick_call() {
    let server = Server::start(|mut connection, _| async move {
        while connection.request().await.is_some() {
            sleep(Duration::from_millis(120)).await;
            connection.say(NO_CONTENT).await;
        }
    });
    let client = server.impatient_client();
    let create = SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: "/state".into(),
        mem_file_path: "/memory".into(),
    };
    client.create_snapshot(&create).await.unwrap();
    assert_eq!(client.pause().await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
}

#[tokio::test]
async fn a_call_that_never_had_its_turn_has_changed_nothing() {
    let server = Server::start(|mut connection, _| async move {
        connection.request().await;
        connection.hung_up().await;
    });
    let client = Arc::new(server.impatient_client());
    let holder = tokio::spawn({
        let client = Arc::clone(&client);
        async move {
            let create = SnapshotCreate {
                snapshot_type: SnapshotType::Full,
                snapshot_path: "/state".into(),
                mem_file_path: "/memory".into(),
            };
            client.create_snapshot(&create).await
        }
    });
    while server.connections() == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(client.pause().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(holder.await.unwrap().unwrap_err().kind(), ErrorKind::OutcomeUnknown);
}

#[tokio::test]
async fn a_dropped_call_closes_its_connection_and_no_answer_goes_to_another() {
    let hung_up = Arc::new(Notify::new());
    let tell = Arc::clone(&hung_up);
    let server = Server::start(move |mut connection, number| {
        let tell = Arc::clone(&tell);
        async move {
            connection.request().await;
            if number == 0 {
                // Half an answer, and the rest too late.
                let late = instance("late");
                connection.say(&late[..40]).await;
                sleep(Duration::from_millis(60)).await;
                connection.say(&late[40..]).await;
                connection.hung_up().await;
                tell.notify_one();
            } else {
                connection.say(&instance(number)).await;
                connection.hung_up().await;
            }
        }
    });
    let client = server.client();
    assert!(timeout(Duration::from_millis(20), client.instance_info()).await.is_err());
    assert_eq!(client.instance_info().await.unwrap().id, "1");
    timeout(PATIENCE, hung_up.notified()).await.expect("the connection is closed");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn calls_that_come_together_take_turns_on_one_connection() {
    let server = Server::start(|mut connection, _| async move {
        let mut number = 0;
        while connection.request().await.is_some() {
            sleep(Duration::from_millis(1)).await;
            connection.say(&instance(number)).await;
            number += 1;
        }
    });
    let client = Arc::new(server.client());
    let calls: Vec<_> = (0..30)
        .map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { client.instance_info().await.unwrap().id })
        })
        .collect();
    let mut ids = Vec::new();
    for call in calls {
        ids.push(call.await.unwrap().parse::<u32>().unwrap());
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..30).collect::<Vec<_>>());
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn one_that_is_being_spawned_is_waited_for_and_no_longer_than_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let client = Arc::new(Client::new(&path, Arc::new(SystemClock::new()), Options::default()));
    let error = client.wait_until_serving(Duration::from_millis(30)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let waiting = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.wait_until_serving(PATIENCE).await }
    });
    sleep(Duration::from_millis(30)).await;
    let _server = Server::listen(folder, path, |mut connection, _| async move {
        while connection.request().await.is_some() && connection.say(&instance("new")).await {}
    });
    assert_eq!(waiting.await.unwrap().unwrap().id, "new");
}
