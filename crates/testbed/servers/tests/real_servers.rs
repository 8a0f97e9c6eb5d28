//! The real programs: started, killed, started again, and gone without a trace.
//!
//! A server that is not installed is told as `skipped: …`; under `FLAMES_REQUIRE` it fails instead.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test file")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flames_test_servers::{Caddy, Etcd, Nats, Nginx, Postgres, Redis, SeaweedFs, Unavailable};

/// Names the folder for the test that is run once more to be killed.
const KILL_ME: &str = "FLAMES_TEST_SERVERS_KILL_ME";

/// `None` after telling why, when the program is not there.
fn unless_absent<T>(started: Result<T, Unavailable>) -> Option<T> {
    match started {
        Ok(server) => Some(server),
        Err(missing) if missing.is_absent && !is_required(missing.service) => {
            println!("skipped: {missing}");
            None
        }
        Err(missing) => panic!("{missing}"),
    }
}

fn is_required(service: &str) -> bool {
    let required = std::env::var("FLAMES_REQUIRE").unwrap_or_default();
    required.split(',').any(|name| name == service || name == "all")
}

fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// What every server promises: found by its address, killed, started again at the same place, frozen, gone.
macro_rules! lives_and_leaves_no_trace {
    ($server:expr) => {{
        let server = $server;
        let (address, folder) = (server.address(), server.folder().to_owned());
        let first = server.pid().unwrap();
        server.kill();
        assert_eq!(server.pid(), None);
        assert!(TcpStream::connect(address).is_err(), "killed, and somebody still listens");
        server.restart().unwrap();
        assert_eq!(server.address(), address);
        let second = server.pid().unwrap();
        assert_ne!(first, second);
        TcpStream::connect(address).unwrap();
        server.freeze();
        // Also a frozen one is ended.
        drop(server);
        assert!(TcpStream::connect(address).is_err(), "dropped, and somebody still listens");
        assert!(!folder.exists(), "{} is left", folder.display());
        assert!(!Path::new("/proc").join(second.to_string()).exists());
    }};
}

#[test]
fn postgres_keeps_its_data_over_a_kill_and_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let before = shared_memory_segments();
    let Some(server) = unless_absent(Postgres::start(folder.path())) else { return };
    let psql = |statement: &str| {
        let mut command = Command::new("psql");
        command.arg(server.url()).args(["--no-psqlrc", "-qtAc", statement]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let has_psql = Command::new("psql").arg("--version").output().is_ok();
    if has_psql {
        psql("create table kept (x int); insert into kept values (7)");
        assert_eq!(psql("show fsync"), "on");
    }
    server.kill();
    server.restart().unwrap();
    if has_psql {
        assert_eq!(psql("select x from kept"), "7");
    }
    lives_and_leaves_no_trace!(server);
    // Killed and dropped without another start.
    let killed = Postgres::start_with(folder.path(), &["max_connections=7"]).unwrap();
    killed.kill();
    drop(killed);
    assert_eq!(shared_memory_segments(), before);
}

/// Those of this user's Postgres, by the kernel's table: `key shmid perms size …`. Their size is that of Postgres' header.
fn shared_memory_segments() -> usize {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    // One of another test's server may come and go meanwhile: of ours there is none that nobody is attached to.
    table.lines().filter(|line| line.split_whitespace().nth(6) == Some("0")).count()
}

#[test]
fn redis_answers_and_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = unless_absent(Redis::start_with(folder.path(), &["maxmemory 3mb"])) else { return };
    let limit = exchange(server.address(), "CONFIG GET maxmemory\r\nQUIT\r\n");
    assert!(limit.contains("3145728"), "{limit}");
    assert_eq!(server.url(), format!("redis://{}", server.address()));
    lives_and_leaves_no_trace!(server);
}

#[test]
fn nats_has_jetstream_and_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = unless_absent(Nats::start(folder.path())) else { return };
    lives_and_leaves_no_trace!(server);
}

#[test]
fn etcd_keeps_its_data_over_a_kill_and_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = unless_absent(Etcd::start(folder.path())) else { return };
    let post = |path: &str, body: &str| {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n");
        exchange(server.address(), &(head + body))
    };
    let put = post("/v3/kv/put", r#"{"key":"a2V5","value":"dmFsdWU="}"#);
    assert!(put.contains("200 OK"), "{put}");
    server.kill();
    server.restart().unwrap();
    let got = post("/v3/kv/range", r#"{"key":"a2V5"}"#);
    assert!(got.contains("dmFsdWU="), "{got}");
    lives_and_leaves_no_trace!(server);
}

#[test]
fn seaweedfs_refuses_who_does_not_sign_and_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = unless_absent(SeaweedFs::start(folder.path())) else { return };
    let anonymous = exchange(server.address(), "GET / HTTP/1.0\r\n\r\n");
    assert!(anonymous.contains("403"), "{anonymous}");
    assert!(server.url().starts_with("http://flames:"), "{}", server.url());
    let port = server.address().port();
    lives_and_leaves_no_trace!(server);
    assert!(!PathBuf::from(format!("/tmp/seaweedfs-s3-{port}.sock")).exists());
}

#[test]
fn caddy_keeps_its_configuration_over_a_restart_unless_told_not_to() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = unless_absent(Caddy::start(folder.path())) else { return };
    let body = format!(
        r#"{{"servers":{{"s":{{"listen":["{}"],"routes":[{{"handle":[{{"handler":"static_response","body":"served"}}]}}]}}}}}}"#,
        server.http_address()
    );
    let length = body.len();
    // Caddy checks that the host is the one that it listens as, against pages that rebind names.
    let head = format!(
        "PUT /config/apps/http HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n",
        server.address()
    );
    let put = exchange(server.address(), &(head + &body));
    assert!(put.contains("200 OK"), "{put}");
    let served = || exchange(server.http_address(), "GET / HTTP/1.0\r\nHost: x\r\n\r\n").contains("served");
    assert!(served());
    server.restart().unwrap();
    assert!(served());
    server.restart_forgetful().unwrap();
    assert!(TcpStream::connect(server.http_address()).is_err());
    lives_and_leaves_no_trace!(server);
}

#[test]
fn nginx_passes_requests_on_and_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let Some(server) = unless_absent(Nginx::proxying(folder.path(), upstream.local_addr().unwrap())) else {
        return;
    };
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = upstream.accept().unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).unwrap() > 0);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nupstream")
            .unwrap();
    });
    let answer = exchange(server.address(), "GET / HTTP/1.0\r\nHost: x\r\n\r\n");
    answering.join().unwrap();
    assert!(answer.ends_with("upstream"), "{answer}");
    lives_and_leaves_no_trace!(server);
}

#[test]
fn a_server_that_cannot_start_says_what_its_log_says() {
    let folder = tempfile::tempdir().unwrap();
    if unless_absent(Redis::find()).is_none() {
        return;
    }
    let error = Redis::start_with(folder.path(), &["no-such-setting 1"]).unwrap_err();
    assert!(!error.is_absent);
    assert!(error.reason.contains("no-such-setting"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a folder is left");
}

#[test]
fn versions_are_told_without_starting_anything() {
    let versions = [
        ("postgres", Postgres::version()),
        ("redis", Redis::version()),
        ("nats", Nats::version()),
        ("etcd", Etcd::version()),
        ("s3", SeaweedFs::version()),
        ("caddy", Caddy::version()),
        ("nginx", Nginx::version()),
    ];
    for (server, version) in versions {
        if let Some(version) = unless_absent(version) {
            assert!(
                version.chars().next().unwrap().is_ascii_digit() && version.contains('.'),
                "{server} {version}"
            );
        }
    }
}

#[test]
fn a_test_that_is_killed_leaves_neither_process_nor_folder() {
    if let Some(folder) = std::env::var_os(KILL_ME) {
        return wait_to_be_killed(Path::new(&folder));
    }
    if unless_absent(Redis::find()).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_test_that_is_killed_leaves_neither_process_nor_folder"])
        .env(KILL_ME, folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let report = folder.path().join("report");
    within(Duration::from_secs(60), || report.exists() || child.try_wait().unwrap().is_some());
    let report = std::fs::read_to_string(report).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    for line in report.lines() {
        let (pid, server_folder) = line.split_once(' ').unwrap();
        let process = Path::new("/proc").join(pid);
        within(Duration::from_secs(20), || !is_alive(&process) && !Path::new(server_folder).exists());
    }
}

/// In the process that the test above starts and kills: has servers, and says where.
fn wait_to_be_killed(folder: &Path) {
    let redis = Redis::start(folder).unwrap();
    let postgres = Postgres::find().is_ok().then(|| Postgres::start(folder).unwrap());
    let line = |pid: Option<u32>, folder: &Path| format!("{} {}\n", pid.unwrap(), folder.display());
    let mut report = line(redis.pid(), redis.folder());
    if let Some(postgres) = &postgres {
        report += &line(postgres.pid(), postgres.folder());
    }
    std::fs::write(folder.join("partial"), report).unwrap();
    std::fs::rename(folder.join("partial"), folder.join("report")).unwrap();
    std::thread::sleep(Duration::from_secs(300));
}

fn is_alive(process: &Path) -> bool {
    // One that has ended and that nobody has asked yet how is not alive.
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

#[track_caller]
fn within(limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
