//! What Redis promises beyond the suite: clear words for wrong settings, other kinds of servers. The servers are the tests' own.

// Helpers of tests may panic.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_cache::{CacheKey, CacheStore, CacheStoreExt, MAX_TTL};
use flames_cache_redis::{RedisCache, RedisConfig};
use flames_clock::SystemClock;
use flames_conformance_runner::{Row, Suite, run, table};
use flames_error::{Error, ErrorKind, Result};
use flames_test_servers::{Redis, free_ports, shared};
use tempfile::TempDir;

fn main() -> ExitCode {
    let fresh = async || Box::new(tempfile::tempdir().unwrap());
    run(Suite::own_tests("cache-beyond", "redis", shared::redis().err(), rows(), fresh))
}

fn rows() -> Vec<Row<Box<TempDir>>> {
    table![
        promises:
            a_wrong_password_is_told_in_one_line_that_names_the_setting,
            a_server_that_is_not_there_is_told_at_once_and_found_when_it_comes,
            a_user_without_rights_is_told_so,
            a_full_server_is_exhausted_and_forgets_where_it_may,
            keys_of_another_program_are_let_be,
            an_earlier_run_of_the_server_is_forgotten,
            a_cluster_is_used_like_a_node,
            a_script_that_the_server_lost_is_brought_again,
    ]
}

async fn server(folder: &TempDir, settings: &'static [&'static str]) -> Arc<Redis> {
    let path = folder.path().to_owned();
    let started = tokio::task::spawn_blocking(move || Redis::start_with(path, settings)).await.unwrap();
    Arc::new(started.unwrap())
}

async fn open(config: RedisConfig) -> Result<RedisCache> {
    RedisCache::open(config, Arc::new(SystemClock::new())).await
}

fn key(text: &str) -> CacheKey {
    CacheKey::new(text).unwrap()
}

/// A command of an operator.
async fn command<T: redis::FromRedisValue>(url: &str, words: &[&str]) -> T {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let (first, rest) = words.split_first().unwrap();
    redis::cmd(first).arg(rest).query_async(&mut connection).await.unwrap()
}

fn line_of(error: &Error) -> String {
    let line = error.user_message().unwrap_or_else(|| panic!("nothing for the operator: {error:?}"));
    assert!(!line.contains('\n'), "more than a line: {line}");
    line.to_owned()
}

mod promises {
    use super::*;

    pub(super) async fn a_wrong_password_is_told_in_one_line_that_names_the_setting(folder: &TempDir) {
        let server = server(folder, &["requirepass right-word"]).await;
        let right = RedisConfig { password: Some("right-word".into()), ..RedisConfig::new(server.url()) };
        let cache = open(right.clone()).await.unwrap();
        cache.set(&key("a"), "value".into(), MAX_TTL).await.unwrap();
        for password in [None, Some("wrong-word".into())] {
            let error = open(RedisConfig { password, ..right.clone() }).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
            let line = line_of(&error);
            assert!(
                line.contains("redis") && line.contains("`password`") && line.contains(&server.url()),
                "{line}"
            );
            assert!(!format!("{error:?}").contains("-word"), "{error:?}");
        }
    }

    pub(super) async fn a_server_that_is_not_there_is_told_at_once_and_found_when_it_comes(folder: &TempDir) {
        let port = free_ports(1).unwrap()[0];
        let url = format!("redis://127.0.0.1:{port}");
        let started = tokio::time::Instant::now();
        let error = open(RedisConfig::new(&url)).await.unwrap_err();
        assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        let line = line_of(&error);
        assert!(line.contains(&url) && line.contains("`urls`"), "{line}");
        let server = server(folder, &[]).await;
        let cache = open(RedisConfig::new(server.url())).await.unwrap();
        server.kill();
        // The first one may lose its answer, the others find nobody.
        let _ = cache.get(&key("a")).await;
        for _ in 0..20 {
            let began = tokio::time::Instant::now();
            assert_eq!(cache.get(&key("a")).await.unwrap_err().kind(), ErrorKind::Unavailable);
            let set = cache.set(&key("a"), "value".into(), MAX_TTL).await.unwrap_err();
            assert_eq!(set.kind(), ErrorKind::Unavailable, "{set:?}");
            assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
        }
        let again = Arc::clone(&server);
        tokio::task::spawn_blocking(move || again.restart()).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        cache.set(&key("a"), "value".into(), MAX_TTL).await.unwrap();
        assert_eq!(cache.get(&key("a")).await.unwrap(), "value");
    }

    pub(super) async fn a_user_without_rights_is_told_so(folder: &TempDir) {
        let server = server(folder, &[]).await;
        let rules =
            ["ACL", "SETUSER", "reader", "on", ">hush", "~flames:*", "+get", "+info", "+ping", "+client"];
        command::<()>(&server.url(), &rules).await;
        let config = RedisConfig {
            username: Some("reader".into()),
            password: Some("hush".into()),
            ..RedisConfig::new(server.url())
        };
        let cache = open(config.clone()).await.unwrap();
        assert_eq!(cache.find(&key("a")).await.unwrap(), None);
        let error = cache.set(&key("a"), "value".into(), MAX_TTL).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
        let other = open(RedisConfig { prefix: "other:".into(), ..config }).await.unwrap();
        assert_eq!(other.get(&key("a")).await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }

    pub(super) async fn a_full_server_is_exhausted_and_forgets_where_it_may(folder: &TempDir) {
        let server = server(folder, &["maxmemory 3mb", "maxmemory-policy noeviction"]).await;
        let cache = open(RedisConfig::new(server.url())).await.unwrap();
        let mut refused = None;
        for number in 0..100 {
            if let Err(error) = cache.set(&key(&format!("k{number}")), vec![1; 100_000].into(), MAX_TTL).await
            {
                refused = Some(error);
                break;
            }
        }
        assert_eq!(refused.map(|error| error.kind()), Some(ErrorKind::Exhausted));
        assert!(cache.get(&key("k0")).await.is_ok(), "it goes on reading");
        command::<()>(&server.url(), &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
        cache.set(&key("new"), vec![1; 100_000].into(), MAX_TTL).await.unwrap();
    }

    pub(super) async fn keys_of_another_program_are_let_be(folder: &TempDir) {
        let server = server(folder, &[]).await;
        command::<()>(&server.url(), &["SET", "a", "theirs"]).await;
        let cache = open(RedisConfig::new(server.url())).await.unwrap();
        assert_eq!(cache.find(&key("a")).await.unwrap(), None);
        cache.set(&key("a"), "ours".into(), MAX_TTL).await.unwrap();
        cache.delete(&key("a")).await.unwrap();
        assert_eq!(command::<String>(&server.url(), &["GET", "a"]).await, "theirs");
        let neighbour = RedisConfig { prefix: "neighbour:".into(), ..RedisConfig::new(server.url()) };
        let neighbour = open(neighbour).await.unwrap();
        cache.set(&key("a"), "ours".into(), MAX_TTL).await.unwrap();
        assert_eq!(neighbour.find(&key("a")).await.unwrap(), None);
        // A second one of the same prefix is the same cache.
        let same = open(RedisConfig::new(server.url())).await.unwrap();
        assert_eq!(same.get(&key("a")).await.unwrap(), "ours");
    }

    pub(super) async fn an_earlier_run_of_the_server_is_forgotten(folder: &TempDir) {
        let server = server(folder, &[]).await;
        let cache = open(RedisConfig::new(server.url())).await.unwrap();
        cache.set(&key("a"), "older".into(), MAX_TTL).await.unwrap();
        command::<()>(&server.url(), &["SAVE"]).await;
        cache.set(&key("a"), "newer".into(), MAX_TTL).await.unwrap();
        let again = Arc::clone(&server);
        tokio::task::spawn_blocking(move || again.restart()).await.unwrap().unwrap();
        let kept: Vec<String> = command(&server.url(), &["KEYS", "flames:*"]).await;
        assert_eq!(kept.len(), 1, "the server did not keep its file, so that this test shows nothing");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(cache.find(&key("a")).await.unwrap(), None);
    }

    pub(super) async fn a_cluster_is_used_like_a_node(folder: &TempDir) {
        let server = server(folder, &["cluster-enabled yes"]).await;
        command::<()>(&server.url(), &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
        let started = tokio::time::Instant::now();
        while !command::<String>(&server.url(), &["CLUSTER", "INFO"]).await.contains("cluster_state:ok") {
            assert!(started.elapsed() < Duration::from_secs(20), "the cluster does not form");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let config = RedisConfig { is_cluster: true, ..RedisConfig::new(server.url()) };
        let cache = open(config).await.unwrap();
        for number in 0..50 {
            // Braces, which a cluster hashes alone.
            let (name, value) = (key(&format!("k{{{number}}}")), Bytes::from(number.to_string()));
            assert!(cache.compare_and_set(&name, None, value.clone(), MAX_TTL).await.unwrap());
            assert_eq!(cache.get(&name).await.unwrap(), value);
            cache.delete(&name).await.unwrap();
            assert_eq!(cache.find(&name).await.unwrap(), None);
        }
    }

    pub(super) async fn a_script_that_the_server_lost_is_brought_again(folder: &TempDir) {
        let server = server(folder, &[]).await;
        let cache = open(RedisConfig::new(server.url())).await.unwrap();
        for number in 0..3 {
            command::<()>(&server.url(), &["SCRIPT", "FLUSH"]).await;
            let name = key(&format!("k{number}"));
            assert!(cache.compare_and_set(&name, None, "value".into(), MAX_TTL).await.unwrap());
        }
    }
}
