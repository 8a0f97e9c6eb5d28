//! Sockets.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use flames_client::wire::{CreateVm, VmListQuery};
use flames_client::{Client, ClientConfig, Mutation};
use flames_error::ErrorKind;
use flames_transport_http::{Access, ServeConfig, bind_unix, serve_tcp, serve_unix};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::common::Harness;

async fn served(harness: &Harness, config: ServeConfig) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = harness.api.router(Access::Token { token: "t".to_owned(), hosts: Vec::new() });
    (address, tokio::spawn(serve_tcp(listener, router, config, harness.api.stop_token())))
}

#[tokio::test]
async fn the_client_over_tcp_creates_reads_and_deletes_and_gets_errors_back_whole() {
    let harness = Harness::new();
    harness.import("debian", "rootfs", b"x").await;
    let (address, server) = served(&harness, ServeConfig::default()).await;
    let client = Client::tcp(&address, ClientConfig::default().with_token("t")).unwrap();
    let mut create = CreateVm::new("debian");
    create.name = Some("web".to_owned());
    let created = client.create_vm(&create, &Mutation::once("k")).await.unwrap();
    let again = client.create_vm(&create, &Mutation::once("k")).await.unwrap();
    assert_eq!(created.id, again.id);
    create.spec.vcpus = 0;
    let error = client.create_vm(&create, &Mutation::default()).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.code(), error.field(), error.user_message()),
        (ErrorKind::InvalidInput, Some("INVALID_FIELD"), Some("spec.vcpus"), Some("A VM has 1 to 64 vCPUs."))
    );
    let stale = client.stop_vm("web", &Mutation::default().if_generation(9)).await.unwrap_err();
    assert_eq!((stale.kind(), stale.code()), (ErrorKind::Conflict, Some("GENERATION_MISMATCH")));
    assert_eq!(client.list_all_vms(&VmListQuery::default()).await.unwrap().len(), 1);
    client.delete_vm("web", &Mutation::default()).await.unwrap();
    let wrong = Client::tcp(&address, ClientConfig::default().with_token("wrong")).unwrap();
    assert_eq!(wrong.get_vm("web").await.unwrap_err().code(), Some("UNAUTHENTICATED"));
    assert_eq!(wrong.health().await.unwrap().status, "ok");
    drop((client, wrong));
    harness.api.shutdown().await;
    server.await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable_and_nothing_was_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let client = Client::tcp(&address, ClientConfig::default()).unwrap();
    let error = client.create_vm(&CreateVm::new("debian"), &Mutation::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_change_whose_answer_is_lost_has_an_unknown_outcome() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let rude = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4_096];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
        }
    });
    let client = Client::tcp(&address, ClientConfig::default()).unwrap();
    let error = client.create_vm(&CreateVm::new("debian"), &Mutation::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(client.get_vm("web").await.unwrap_err().kind(), ErrorKind::Unavailable);
    rude.abort();
}

#[tokio::test]
async fn a_unix_socket_is_the_owners_alone_and_serves_without_a_token() {
    let harness = Harness::new();
    harness.create("web").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let listener = bind_unix(&path).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let router = harness.api.router(Access::Peer);
    let server = tokio::spawn(serve_unix(listener, router, ServeConfig::default(), harness.api.stop_token()));
    let client = Client::unix(&path, ClientConfig::default());
    assert_eq!(client.get_vm("web").await.unwrap().name, "web");
    let error = bind_unix(&path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    drop(client);
    harness.api.shutdown().await;
    server.await.unwrap();
    // What is left behind does not keep the next server from starting.
    bind_unix(&path).await.unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert_eq!(bind_unix(&file).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn a_client_that_sends_its_headers_too_slowly_is_cut_off() {
    let harness = Harness::new();
    let config = ServeConfig { header_timeout: Duration::from_millis(100), ..ServeConfig::default() };
    let (address, _server) = served(&harness, config).await;
    let mut slow = TcpStream::connect(&address).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: loc").await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), slow.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "the connection is still open");
}

#[tokio::test]
async fn headers_over_the_limit_are_refused() {
    let harness = Harness::new();
    let config = ServeConfig { max_header_bytes: 8 * 1024, ..ServeConfig::default() };
    let (address, _server) = served(&harness, config).await;
    let mut client = TcpStream::connect(&address).await.unwrap();
    let long =
        format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n", "x".repeat(64 * 1024));
    client.write_all(long.as_bytes()).await.ok();
    let mut answer = vec![0; 64];
    let read = client.read(&mut answer).await.unwrap_or_default();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn further_connections_wait_until_one_is_free() {
    let harness = Harness::new();
    let config = ServeConfig { max_connections: 1, ..ServeConfig::default() };
    let (address, _server) = served(&harness, config).await;
    let first = TcpStream::connect(&address).await.unwrap();
    // The first is served before the second asks.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let client = Client::tcp(&address, ClientConfig::default()).unwrap();
    let waiting = tokio::spawn(async move { client.health().await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    drop(first);
    assert_eq!(waiting.await.unwrap().unwrap().status, "ok");
}
