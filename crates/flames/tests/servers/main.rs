//! The configuration against real servers, and against disks that are full or read-only. Each case is skipped, with the reason, where what
//! it needs is not there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod bucket;
#[cfg(feature = "postgres")]
mod database;
mod disks;
#[cfg(feature = "postgres")]
mod fleet;
#[cfg(feature = "postgres")]
mod postgres;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;

use flames_conformance_runner::{CASE_LIMIT, Case, Suite, Time, run};
use flames_test_servers::{Unavailable, shared};

use bucket::make_bucket;
use disks::*;
#[cfg(feature = "postgres")]
use fleet::*;
#[cfg(feature = "postgres")]
use postgres::*;
use support::{Ended, Installation, finish};

fn main() -> ExitCode {
    run(Suite {
        name: "configuration",
        provider: "flames",
        unavailable: None,
        time: Time::Real,
        cases: cases(),
    })
}

/// What a case needs.
#[derive(Debug, Clone, Copy)]
enum Needs {
    Root,
    Postgres,
    Redis,
    Nats,
    Etcd,
    S3,
    Caddy,
    /// What several servers share.
    PostgresAndS3,
}

impl Needs {
    /// The feature of the binary, and why the server is not there.
    fn missing(self) -> Option<(&'static str, String)> {
        let feature = |name: &str, has: bool| {
            (!has).then(|| format!("`flames` was built without the feature `{name}`"))
        };
        let absent = |service: &'static str, found: Result<(), Unavailable>| {
            found.err().map(|missing| (service, missing.to_string()))
        };
        let (service, has, found) = match self {
            Self::Root => {
                let is_root = rustix::process::geteuid().is_root();
                return (!is_root).then(|| ("root", "only root mounts file systems".to_owned()));
            }
            Self::Postgres => ("postgres", cfg!(feature = "postgres"), shared::postgres().map(drop)),
            Self::PostgresAndS3 => return Self::Postgres.missing().or_else(|| Self::S3.missing()),
            Self::Redis => ("redis", cfg!(feature = "redis"), flames_test_servers::Redis::find().map(drop)),
            Self::Nats => ("nats", cfg!(feature = "nats"), shared::nats().map(drop)),
            Self::Etcd => ("etcd", cfg!(feature = "etcd"), shared::etcd().map(drop)),
            Self::S3 => ("s3", cfg!(feature = "s3"), shared::s3().map(drop)),
            Self::Caddy => ("caddy", cfg!(feature = "caddy"), flames_test_servers::Caddy::find().map(drop)),
        };
        // What was not built cannot be required of this build.
        feature(service, has).map(|reason| ("", reason)).or_else(|| absent(service, found))
    }
}

fn is_required(service: &str) -> bool {
    let required = std::env::var("FLAMES_REQUIRE").unwrap_or_default();
    !service.is_empty()
        && required
            .split(',')
            .map(str::trim)
            .any(|name| name == service || name == "all" && service != "root")
}

fn case(name: &'static str, needs: Needs, work: fn()) -> Case {
    let missing = needs.missing();
    let failed = missing.clone().filter(|(service, _)| is_required(service));
    Case {
        name,
        ignored: missing.filter(|_| failed.is_none()).map(|(_, reason)| reason),
        limit: CASE_LIMIT,
        run: Box::new(move || {
            Box::pin(async move {
                if let Some((service, reason)) = failed {
                    panic!("{service} is required and not there: {reason}");
                }
                work();
            })
        }),
    }
}

macro_rules! cases {
    ($($needs:ident: $($case:ident),+ $(,)?);+ $(;)?) => {
        fn cases() -> Vec<Case> {
            vec![$($(case(stringify!($case), Needs::$needs, $case)),+),+]
        }
    };
}

cases![
    Root: a_read_only_folder_is_refused_in_one_line_that_names_the_setting,
          a_full_disk_is_refused_in_one_line_that_names_the_setting;
    Postgres: state_and_queue_in_postgres_outlive_a_restart,
              a_check_of_postgres_makes_no_tables_and_says_that_a_start_would,
              a_wrong_password_or_database_of_postgres_is_told_and_not_echoed,
              a_postgres_schema_of_a_newer_version_is_refused_and_left_as_it_is,
              views_show_records_as_tables;
    PostgresAndS3: a_vm_made_at_one_of_two_servers_is_reached_through_the_other;
    Redis: the_cache_is_in_redis_and_a_wrong_password_is_told;
    Nats: the_queue_is_on_nats_and_a_check_makes_no_stream;
    Etcd: the_state_is_in_etcd_and_a_check_makes_nothing;
    S3: images_are_in_a_bucket_and_one_that_is_not_there_is_told;
    Caddy: a_caddy_is_asked_before_it_is_relied_on;
];

/// The one line of a refusal, which ends with 2.
#[track_caller]
fn one_line(ended: Ended) -> String {
    let said = ended.failed(2);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 1, "{said}");
    lines[0].to_owned()
}

#[track_caller]
fn tells(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
}

/// Runs a command with settings in the environment, where secrets may stand.
#[track_caller]
fn run_with(installation: &Installation, variables: &[(&str, &str)], arguments: &[&str]) -> Ended {
    let mut command = installation.command(arguments);
    finish(command.envs(variables.iter().copied()), b"")
}

#[track_caller]
fn up_refused(installation: &Installation, variables: &[(&str, &str)]) -> String {
    one_line(run_with(installation, variables, &["up", "--listen", "0", "--driver", "simulated"]))
}

#[track_caller]
fn check_refused(installation: &Installation, variables: &[(&str, &str)]) -> String {
    one_line(run_with(installation, variables, &["-q", "config", "check", "--listen", "0"]))
}

/// What a check that finds nothing wrong says of one provider.
#[track_caller]
fn checked(installation: &Installation, variables: &[(&str, &str)], provider: &str) -> serde_json::Value {
    let told = run_with(installation, variables, &["--json", "config", "check", "--listen", "0"]).json();
    told["checks"].as_array().unwrap().iter().find(|check| check["provider"] == provider).unwrap().clone()
}

/// Writes a configuration and starts `flames up` with it.
fn up_with(installation: &mut Installation, config: &str) -> serde_json::Value {
    let path = installation.folder.path().join("flames.toml");
    std::fs::write(&path, config).unwrap();
    installation.up(&["--driver", "simulated", "--config", path.to_str().unwrap()])
}

fn secret_file(installation: &Installation, secret: &str) -> PathBuf {
    let path = installation.folder.path().join("secret");
    std::fs::write(&path, format!("{secret}\n")).unwrap();
    path
}

/// A name that nobody else has.
fn unique() -> String {
    format!(
        "t{:x}{:x}",
        std::process::id(),
        std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos()
    )
}

/// Runs a VM to its end, and another that stays.
fn use_it(installation: &Installation) {
    installation.import_small_image();
    installation.run(&["run", "--rm", "test", "--", "true"]).ok();
    installation.run(&["run", "-d", "--name", "kept", "test", "--", "sleep", "infinity"]).ok();
    installation.run(&["stop", "kept"]).ok();
}

#[cfg(not(feature = "postgres"))]
use without_postgres::*;

/// Listed, so that what is skipped is told.
#[cfg(not(feature = "postgres"))]
mod without_postgres {
    macro_rules! unreachable_cases {
        ($($case:ident),+ $(,)?) => {$(pub(crate) fn $case() {
            panic!("`flames` was built without the feature `postgres`");
        })+};
    }
    unreachable_cases![
        state_and_queue_in_postgres_outlive_a_restart,
        a_check_of_postgres_makes_no_tables_and_says_that_a_start_would,
        a_wrong_password_or_database_of_postgres_is_told_and_not_echoed,
        a_postgres_schema_of_a_newer_version_is_refused_and_left_as_it_is,
        views_show_records_as_tables,
        a_vm_made_at_one_of_two_servers_is_reached_through_the_other,
    ];
}

fn the_cache_is_in_redis_and_a_wrong_password_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let redis = flames_test_servers::Redis::start_with(folder.path(), &["requirepass hunter3"]).unwrap();
    let mut installation = Installation::new();
    let url = redis.url();
    let variables = |password| {
        [
            ("FLAMES_CACHE_BACKEND", "redis"),
            ("FLAMES_CACHE_URLS", url.as_str()),
            ("FLAMES_CACHE_PASSWORD", password),
        ]
    };
    for line in [
        up_refused(&installation, &variables("hunter2")),
        check_refused(&installation, &variables("hunter2")),
    ] {
        tells(&line, &["cache (redis), setting `cache.password`", "`password`"]);
        assert!(!line.contains("hunter"), "{line}");
    }
    let row = checked(&installation, &variables("hunter3"), "cache");
    assert_eq!((&row["verdict"], &row["where"]), (&"ok".into(), &url.as_str().into()));
    let secret = secret_file(&installation, "hunter3");
    let config = format!(
        "[cache]\nbackend = \"redis\"\nurls = [{url:?}]\npassword_file = {:?}\n",
        secret.display().to_string()
    );
    assert_eq!(up_with(&mut installation, &config)["providers"]["cache"], "redis");
    drop(redis);
    let line = check_refused(&Installation::new(), &variables("hunter3"));
    tells(&line, &["cache (redis), setting `cache.urls`", &url]);
}

fn the_queue_is_on_nats_and_a_check_makes_no_stream() {
    let mut installation = Installation::new();
    let (servers, prefix) = (shared::nats().unwrap(), unique());
    let variables = [
        ("FLAMES_QUEUE_BACKEND", "nats"),
        ("FLAMES_QUEUE_SERVERS", servers.as_str()),
        ("FLAMES_QUEUE_PREFIX", prefix.as_str()),
    ];
    for _ in 0..2 {
        let row = checked(&installation, &variables, "queue");
        assert_eq!(row["verdict"], "note", "the second check finds no stream either: {row}");
        tells(&row.to_string(), &["the first start makes the stream", "NATS 2."]);
    }
    let config = format!("[queue]\nbackend = \"nats\"\nservers = [{servers:?}]\nprefix = {prefix:?}\n");
    assert_eq!(up_with(&mut installation, &config)["providers"]["queue"], "nats");
    use_it(&installation);
    assert_eq!(checked(&installation, &variables, "queue")["verdict"], "ok");
    let nowhere = [("FLAMES_QUEUE_BACKEND", "nats"), ("FLAMES_QUEUE_SERVERS", "nats://127.0.0.1:1")];
    let elsewhere = Installation::new();
    for line in [up_refused(&elsewhere, &nowhere), check_refused(&elsewhere, &nowhere)] {
        tells(&line, &["queue (nats), setting `queue.servers`", "127.0.0.1:1"]);
    }
}

fn the_state_is_in_etcd_and_a_check_makes_nothing() {
    let mut installation = Installation::new();
    let (endpoint, prefix) = (shared::etcd().unwrap(), format!("{}/", unique()));
    let variables = [
        ("FLAMES_STATE_BACKEND", "etcd"),
        ("FLAMES_STATE_ENDPOINTS", endpoint.as_str()),
        ("FLAMES_STATE_PREFIX", prefix.as_str()),
    ];
    for _ in 0..2 {
        let row = checked(&installation, &variables, "state");
        assert_eq!(row["verdict"], "note", "the second check finds nothing either: {row}");
        tells(row["version"].as_str().unwrap(), &["etcd 3."]);
    }
    let config = format!("[state]\nbackend = \"etcd\"\nendpoints = [{endpoint:?}]\nprefix = {prefix:?}\n");
    assert_eq!(up_with(&mut installation, &config)["providers"]["state"], "etcd");
    use_it(&installation);
    assert_eq!(installation.interrupt().0, 0);
    up_with(&mut installation, &config);
    assert_eq!(installation.inspect("kept")["state"], "stopped");
    assert_eq!(checked(&installation, &variables, "state")["verdict"], "ok");
    let nowhere = [("FLAMES_STATE_BACKEND", "etcd"), ("FLAMES_STATE_ENDPOINTS", "http://127.0.0.1:1")];
    tells(&check_refused(&Installation::new(), &nowhere), &["state (etcd), setting `state.endpoints`"]);
}

fn images_are_in_a_bucket_and_one_that_is_not_there_is_told() {
    let access = shared::s3().unwrap();
    let bucket = unique();
    let variables = |bucket, secret| {
        [
            ("FLAMES_BLOB_BACKEND", "s3"),
            ("FLAMES_BLOB_BUCKET", bucket),
            ("FLAMES_BLOB_ENDPOINT", access.endpoint.as_str()),
            ("FLAMES_BLOB_ACCESS_KEY", access.access_key.as_str()),
            ("FLAMES_BLOB_SECRET_KEY", secret),
        ]
    };
    let installation = Installation::new();
    let right = access.secret_key.as_str();
    for line in [
        up_refused(&installation, &variables(&bucket, right)),
        check_refused(&installation, &variables(&bucket, right)),
    ] {
        tells(&line, &["blob (s3), setting `blob.bucket`", &bucket, "Make it"]);
        assert!(!line.contains(right), "{line}");
    }
    for line in [
        up_refused(&installation, &variables(&bucket, "hunter2")),
        check_refused(&installation, &variables(&bucket, "hunter2")),
    ] {
        tells(&line, &["blob (s3), setting `blob.secret_key`", "`secret_key`"]);
        assert!(!line.contains("hunter2"), "{line}");
    }
    let half = [
        ("FLAMES_BLOB_BACKEND", "s3"),
        ("FLAMES_BLOB_BUCKET", bucket.as_str()),
        ("FLAMES_BLOB_ACCESS_KEY", "x"),
    ];
    tells(&check_refused(&installation, &half), &["blob (s3), setting `blob.secret_key`"]);
    make_bucket(&access, &bucket);
    let row = checked(&installation, &variables(&bucket, right), "blob");
    assert_eq!(row["verdict"], "ok", "{row}");
    let mut installation = Installation::new();
    let secret = secret_file(&installation, right);
    let config = format!(
        "[blob]\nbackend = \"s3\"\nbucket = {bucket:?}\nendpoint = {:?}\naccess_key = {:?}\nsecret_key_file = {:?}\n",
        access.endpoint,
        access.access_key,
        secret.display().to_string()
    );
    assert_eq!(up_with(&mut installation, &config)["providers"]["blob"], "s3");
    use_it(&installation);
    assert!(!installation.data().join("blobs").exists());
}

fn a_caddy_is_asked_before_it_is_relied_on() {
    let folder = tempfile::tempdir().unwrap();
    let caddy = flames_test_servers::Caddy::start(folder.path()).unwrap();
    let admin = caddy.url();
    let installation = Installation::new();
    let variables = [("FLAMES_INGRESS_BACKEND", "caddy"), ("FLAMES_INGRESS_ADMIN", admin.as_str())];
    assert_eq!(checked(&installation, &variables, "ingress")["verdict"], "ok");
    let mut up = Installation::new();
    assert_eq!(
        up_with(&mut up, &format!("[ingress]\nbackend = \"caddy\"\nadmin = {admin:?}\n"))["providers"]["ingress"],
        "caddy"
    );
    drop(caddy);
    for line in [up_refused(&installation, &variables), check_refused(&installation, &variables)] {
        tells(&line, &["ingress (caddy), setting `ingress.admin`"]);
    }
}
