//! What the suite of all StateStores cannot know of etcd.

// What fails here fails the case.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;

use flames_conformance_runner::{Row, Suite, run, table};
use flames_state_etcd::EtcdConfig;
use flames_test_servers::shared;

/// A prefix of the shared cluster.
pub(crate) struct Prefix {
    pub(crate) config: EtcdConfig,
}

fn fresh() -> Prefix {
    let mut config = EtcdConfig::at(shared::etcd().unwrap());
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    config.prefix = format!("own/{}.{started}/", std::process::id());
    Prefix { config }
}

mod promises {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use flames_clock::SystemClock;
    use flames_error::{ErrorKind, Result};
    use flames_state::{Commit, Hint, Key, LogEntry, Position, StateStore};
    use flames_state_etcd::{EtcdConfig, EtcdStore};
    use futures::StreamExt as _;
    use futures::future::join_all;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::Prefix;

    async fn open(config: &EtcdConfig) -> Result<EtcdStore> {
        EtcdStore::open(config.clone(), Arc::new(SystemClock::new())).await
    }

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    async fn append(store: &EtcdStore, log: &str, payload: String) {
        store.commit(Commit::new().append(key(log), payload)).await.unwrap();
    }

    /// A log, read page by page as a follower does.
    async fn whole(store: &EtcdStore, log: &str, page: usize) -> Vec<LogEntry> {
        let mut entries: Vec<LogEntry> = Vec::new();
        loop {
            let after = entries.last().map_or(Position::START, |entry| entry.position);
            let read = store.read_log(&key(log), after, page).await.unwrap();
            if read.is_empty() {
                assert!(
                    entries.is_sorted_by(|one, other| one.position < other.position),
                    "{log}: {entries:?}"
                );
                return entries;
            }
            entries.extend(read);
        }
    }

    fn payloads(entries: &[LogEntry]) -> Vec<String> {
        entries.iter().map(|entry| String::from_utf8(entry.payload.to_vec()).unwrap()).collect()
    }

    /// Two stores, which are two processes, append to a busy log and now and then to a quiet one, across several segments.
    pub(crate) async fn logs_that_span_segments_are_read_whole_and_in_order(prefix: &Prefix) {
        const EACH: usize = 220;
        let stores =
            [Arc::new(open(&prefix.config).await.unwrap()), Arc::new(open(&prefix.config).await.unwrap())];
        let writers = (0..8).map(|writer| {
            let store = Arc::clone(&stores[writer % 2]);
            tokio::spawn(async move {
                for number in 0..EACH {
                    append(&store, "busy", format!("{writer}.{number:03}")).await;
                    if writer == 0 && number % 20 == 0 {
                        append(&store, "quiet", format!("{number:03}")).await;
                    }
                }
            })
        });
        let follower = {
            let store = Arc::clone(&stores[1]);
            async move {
                let mut followed: Vec<LogEntry> = Vec::new();
                while followed.len() < 8 * EACH {
                    let after = followed.last().map_or(Position::START, |entry| entry.position);
                    followed.extend(store.read_log(&key("busy"), after, 37).await.unwrap());
                }
                followed
            }
        };
        let (written, followed) = futures::join!(join_all(writers), follower);
        written.into_iter().for_each(|writer| writer.unwrap());
        let busy = whole(&stores[0], "busy", 1_000).await;
        assert_eq!(followed, busy, "who follows sees the same as who reads it later");
        assert_eq!(busy.len(), 8 * EACH);
        for writer in 0..8 {
            let mut own = payloads(&busy);
            own.retain(|payload| payload.starts_with(&format!("{writer}.")));
            assert!(own.len() == EACH && own.is_sorted(), "{own:?}");
        }
        let segments: std::collections::BTreeSet<u64> =
            busy.iter().map(|entry| entry.position.as_raw().0 - (entry.position.as_raw().1 >> 8)).collect();
        assert!(segments.len() >= 3, "{segments:?}");
        let quiet: Vec<String> = (0..EACH).step_by(20).map(|number| format!("{number:03}")).collect();
        for page in [1, 3, 1_000] {
            assert_eq!(payloads(&whole(&stores[1], "quiet", page).await), quiet);
        }
        // From anywhere on, and trimmed anywhere.
        for place in [0, 5, 499, 500, 501, 1_000, 8 * EACH - 1] {
            let read = stores[0].read_log(&key("busy"), busy[place].position, 10).await.unwrap();
            assert_eq!(read, busy[place + 1..busy.len().min(place + 11)]);
        }
        for place in [3, 700, 1_100] {
            stores[0].trim_log(&key("busy"), busy[place].position).await.unwrap();
            assert_eq!(whole(&stores[1], "busy", 1_000).await, busy[place + 1..]);
        }
        assert_eq!(payloads(&whole(&stores[1], "quiet", 100).await), quiet);
    }

    pub(crate) async fn a_hint_reaches_another_process(prefix: &Prefix) {
        let (one, other) = (open(&prefix.config).await.unwrap(), open(&prefix.config).await.unwrap());
        let mut hints = other.changes(&key("p/")).await.unwrap();
        let mut commit = Commit::new();
        commit.put(key("q"), "x").put(key("p/a"), "x").append(key("p/log"), "x");
        one.commit(&commit).await.unwrap();
        let mut told = Vec::new();
        while told.len() < 2 {
            match tokio::time::timeout(Duration::from_secs(3), hints.next()).await.unwrap() {
                Some(Hint::Changed(name)) => told.push(name),
                other => panic!("{other:?}"),
            }
        }
        told.sort();
        assert_eq!(told, [key("p/a"), key("p/log")]);
    }

    pub(crate) async fn another_member_is_asked_when_one_does_not_answer(prefix: &Prefix) {
        // Bound and not listened on: nobody else can listen there meanwhile.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut config = prefix.config.clone();
        config.endpoints.insert(0, format!("http://{}", socket.local_addr().unwrap()));
        let store = open(&config).await.unwrap();
        store.commit(Commit::new().put(key("a"), "1")).await.unwrap();
        assert_eq!(store.get(&key("a")).await.unwrap().unwrap().value, "1");
    }

    pub(crate) async fn a_cluster_that_is_not_there_is_told_at_once(prefix: &Prefix) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut config = prefix.config.clone();
        config.endpoints = vec![format!("http://{}", socket.local_addr().unwrap())];
        let started = Instant::now();
        let error = open(&config).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::Unavailable, Some("endpoints")), "{error:?}");
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }

    pub(crate) async fn what_is_no_etcd_is_told_so(prefix: &Prefix) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = prefix.config.clone();
        config.endpoints = vec![format!("http://{}", listener.local_addr().unwrap())];
        let answering = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await.unwrap();
                let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
        };
        let error = tokio::select! {
            opened = open(&config) => opened.unwrap_err(),
            () = answering => unreachable!("it does not end"),
        };
        assert_eq!((error.kind(), error.field()), (ErrorKind::NotSupported, Some("endpoints")), "{error:?}");
    }

    pub(crate) async fn keys_of_another_program_are_left_alone(prefix: &Prefix) {
        // What is another program's: a store below a longer prefix.
        let mut theirs = prefix.config.clone();
        theirs.prefix.push_str("theirs/");
        let other = open(&theirs).await.unwrap();
        other.commit(Commit::new().put(key("a"), "1")).await.unwrap();
        let error = open(&prefix.config).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("prefix")), "{error:?}");
        assert_eq!(other.get(&key("a")).await.unwrap().unwrap().value, "1");
    }

    pub(crate) async fn a_layout_of_a_newer_version_is_refused_unchanged(prefix: &Prefix) {
        drop(open(&prefix.config).await.unwrap());
        put_raw(&prefix.config, &format!("{}f", prefix.config.prefix), "2").await;
        let error = open(&prefix.config).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::NotSupported, Some("prefix")), "{error:?}");
    }

    fn base64(text: &str) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    /// Puts a key by hand.
    async fn put_raw(config: &EtcdConfig, name: &str, value: &str) {
        let body = format!(r#"{{"key":"{}","value":"{}"}}"#, base64(name), base64(value));
        post(&config.endpoints[0], "/v3/kv/put", &body).await;
    }

    async fn post(endpoint: &str, path: &str, body: &str) {
        let address = endpoint.trim_start_matches("http://");
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }

    pub(crate) async fn a_cluster_with_users_is_used_by_one_and_its_token_renewed(_: &Prefix) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let start = tokio::task::spawn_blocking(move || {
            flames_test_servers::Etcd::start_with(path, &["--auth-token-ttl=1", "--bcrypt-cost=4"])
        });
        let server = start.await.unwrap().unwrap();
        let open_to_all = EtcdConfig::at(server.url());
        let mut of_nobody = open_to_all.clone();
        (of_nobody.username, of_nobody.password) = (Some("root".to_owned()), Some("hunter2".to_owned()));
        let error = open(&of_nobody).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("username")), "{error:?}");

        // What `etcdctl role grant-permission --prefix` grants.
        let range = format!(r#"{{"key":"{}","range_end":"{}"}}"#, base64("flames/"), base64("flames0"));
        for (path, body) in [
            ("/v3/auth/user/add", r#"{"name":"root","password":"hunter2"}"#.to_owned()),
            ("/v3/auth/role/add", r#"{"name":"root"}"#.to_owned()),
            ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#.to_owned()),
            ("/v3/auth/user/add", r#"{"name":"flames","password":"hunter3"}"#.to_owned()),
            ("/v3/auth/role/add", r#"{"name":"flames"}"#.to_owned()),
            ("/v3/auth/user/grant", r#"{"user":"flames","role":"flames"}"#.to_owned()),
            (
                "/v3/auth/role/grant",
                format!(r#"{{"name":"flames","perm":{{"permType":"READWRITE",{}}}"#, &range[1..]),
            ),
            ("/v3/auth/enable", "{}".to_owned()),
        ] {
            post(&server.url(), path, &body).await;
        }
        let error = open(&open_to_all).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.field()),
            (ErrorKind::PermissionDenied, Some("username")),
            "{error:?}"
        );
        let mut config = open_to_all;
        (config.username, config.password) = (Some("flames".to_owned()), Some("hunter2".to_owned()));
        let error = open(&config).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.field()),
            (ErrorKind::PermissionDenied, Some("password")),
            "{error:?}"
        );
        config.password = Some("hunter3".to_owned());
        let mut elsewhere = config.clone();
        elsewhere.prefix = "other/".to_owned();
        let error = open(&elsewhere).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.field()),
            (ErrorKind::PermissionDenied, Some("username")),
            "{error:?}"
        );

        let store = open(&config).await.unwrap();
        store.commit(Commit::new().put(key("a"), "1")).await.unwrap();
        let mut hints = store.changes(&key("b")).await.unwrap();
        // The token ends meanwhile.
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        assert_eq!(store.get(&key("a")).await.unwrap().unwrap().value, "1");
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        store.commit(Commit::new().put(key("b"), "2")).await.unwrap();
        let hint = tokio::time::timeout(Duration::from_secs(5), hints.next()).await.unwrap();
        assert_eq!(hint, Some(Hint::Changed(key("b"))));
    }

    pub(crate) async fn more_requests_than_allowed_wait_and_then_are_told(prefix: &Prefix) {
        // A member that takes requests and never answers.
        let mut config = prefix.config.clone();
        config.max_requests = 2;
        config.acquire_deadline = Duration::from_millis(200);
        config.operation_deadline = Duration::from_secs(1);
        let server: std::net::SocketAddr = config.endpoints[0].trim_start_matches("http://").parse().unwrap();
        let proxy = flames_test_servers::FaultProxy::start(server).await.unwrap();
        config.endpoints = vec![format!("http://{}", proxy.address())];
        let store = open(&config).await.unwrap();
        proxy.stall(true);
        let names: Vec<Key> = (0..5).map(|number| key(&format!("k/{number}"))).collect();
        let started = Instant::now();
        let answers = join_all(names.iter().map(|name| store.get(name))).await;
        assert!(started.elapsed() < Duration::from_secs(3));
        let kinds: Vec<ErrorKind> = answers.into_iter().map(|answer| answer.unwrap_err().kind()).collect();
        assert_eq!(kinds.iter().filter(|kind| **kind == ErrorKind::Exhausted).count(), 3, "{kinds:?}");
        proxy.heal();
        let started = Instant::now();
        while store.get(&names[0]).await.is_err() {
            assert!(started.elapsed() < Duration::from_secs(5), "it does not work again");
        }
    }
}

fn rows() -> Vec<Row<Box<Prefix>>> {
    table![promises:
        logs_that_span_segments_are_read_whole_and_in_order,
        a_hint_reaches_another_process,
        another_member_is_asked_when_one_does_not_answer,
        a_cluster_that_is_not_there_is_told_at_once,
        what_is_no_etcd_is_told_so,
        keys_of_another_program_are_left_alone,
        a_layout_of_a_newer_version_is_refused_unchanged,
        more_requests_than_allowed_wait_and_then_are_told,
        a_cluster_with_users_is_used_by_one_and_its_token_renewed,
    ]
}

fn main() -> ExitCode {
    run(Suite::own_tests("etcd", "etcd", shared::etcd().err(), rows(), || async { Box::new(fresh()) }))
}
