//! What a wrong configuration is told, and what is full.

use super::*;

async fn refusal(config: NatsConfig, kind: ErrorKind, named: &str) {
    let error = open(config).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error:?}");
    let sentence = error.user_message().unwrap();
    assert!(sentence.contains("`nats`") && sentence.contains(named), "{sentence}");
    assert!(!sentence.contains('\n') && !sentence.contains("hunter2"), "{sentence}");
}

pub(crate) async fn a_server_that_is_not_there_is_named(_: &()) {
    let port = flames_test_servers::free_ports(1).unwrap()[0];
    let config = NatsConfig::at(format!("nats://user:hunter2@127.0.0.1:{port}"));
    refusal(config, ErrorKind::Unavailable, "`servers`").await;
    refusal(NatsConfig::at("nats://[half"), ErrorKind::InvalidInput, "`servers`").await;
}

pub(crate) async fn wrong_credentials_and_files_are_named(_: &()) {
    let server = Server::start(&["authorization { user: \"a\", password: \"b\" }"]);
    let with = |credentials| NatsConfig { credentials, ..server.config() };
    let wrong = Credentials::Password { user: "a".to_owned(), password: "hunter2".to_owned() };
    refusal(with(wrong), ErrorKind::PermissionDenied, "`credentials`").await;
    refusal(with(Credentials::None), ErrorKind::PermissionDenied, "`credentials`").await;
    let absent = Credentials::File("/nonexistent/file.creds".into());
    refusal(with(absent), ErrorKind::InvalidInput, "/nonexistent/file.creds").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    refusal(with(Credentials::File(file.path().into())), ErrorKind::InvalidInput, "`credentials`").await;
    let right = Credentials::Password { user: "a".to_owned(), password: "b".to_owned() };
    open(with(right)).await.unwrap();
}

pub(crate) async fn an_account_without_jetstream_is_told_what_to_do(_: &()) {
    let server = Server::start(&[
        "accounts { A { users: [ { user: \"a\", password: \"b\" } ] } }",
        "no_auth_user: \"a\"",
    ]);
    refusal(server.config(), ErrorKind::NotSupported, "--jetstream").await;
}

pub(crate) async fn a_stream_of_somebody_else_is_left_alone(_: &()) {
    let server = Server::start(&[]);
    let context = async_nats::jetstream::new(async_nats::connect(server.nats.url()).await.unwrap());
    let foreign = async_nats::jetstream::stream::Config {
        name: "flames_jobs".to_owned(),
        subjects: vec!["flames.jobs.>".to_owned()],
        ..Default::default()
    };
    context.create_stream(foreign.clone()).await.unwrap();
    refusal(server.config(), ErrorKind::InvalidInput, "max_msgs_per_subject").await;
    context.delete_stream("flames_jobs").await.unwrap();
    context
        .create_stream(async_nats::jetstream::stream::Config { name: "other".to_owned(), ..foreign })
        .await
        .unwrap();
    refusal(server.config(), ErrorKind::AlreadyExists, "`prefix`").await;
}

pub(crate) async fn more_replicas_than_servers_are_refused(_: &()) {
    let server = Server::start(&[]);
    refusal(NatsConfig { replicas: 3, ..server.config() }, ErrorKind::InvalidInput, "`replicas`").await;
}

pub(crate) async fn a_full_queue_and_a_full_stream_are_exhausted(_: &()) {
    let server = Server::start(&[]);
    let queue = open(NatsConfig { max_jobs: 2, ..server.config() }).await.unwrap();
    for key in ["a", "b"] {
        queue.enqueue(&topic(), Bytes::new(), keyed(key)).await.unwrap();
    }
    let full = queue.enqueue(&topic(), Bytes::new(), keyed("c")).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Exhausted);
    assert!(
        queue.enqueue(&topic(), Bytes::new(), keyed("a")).await.unwrap().coalesced,
        "a known one is taken"
    );

    let config = NatsConfig { prefix: "small".to_owned(), max_bytes: Some(100_000), ..server.config() };
    let queue = open(config).await.unwrap();
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(queue.enqueue(&topic(), Bytes::from(vec![7; 10_000]), EnqueueOptions::default()).await);
    }
    let refused: Vec<Error> = answers.into_iter().filter_map(Result::err).collect();
    assert!((9..=15).contains(&refused.len()), "{} of 20 were refused", refused.len());
    assert!(refused.iter().all(|error| error.kind() == ErrorKind::Exhausted), "{refused:?}");
    let held = queue.stats(&topic()).await.unwrap().ready;
    assert_eq!(held, 20 - refused.len() as u64, "what was taken is kept");
}

pub(crate) async fn a_closed_queue_is_unavailable(_: &()) {
    let server = Server::start(&[]);
    let queue = server.open().await;
    queue.close().await;
    queue.close().await;
    let error = queue.enqueue(&topic(), Bytes::new(), EnqueueOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}
