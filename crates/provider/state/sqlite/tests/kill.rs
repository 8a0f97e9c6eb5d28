//! A process that writes a SQLite state file, killed without a warning.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::SystemClock;
use flames_state::{Commit, Key, KeyRange, LogEntry, Position, StateStore, StateStoreExt};
use flames_state_sqlite::{SqliteConfig, SqliteStore};
use futures::future::join_all;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

async fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(SqliteConfig::at(path), Arc::new(SystemClock::new())).await.unwrap()
}

/// The process that is killed: commits from several tasks, and tells on standard output what was confirmed.
async fn write_until_killed(path: &Path) {
    use std::io::Write as _;
    let store = Arc::new(open(path).await);
    let writers = (0..8).map(|writer| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for n in 0.. {
                let name = format!("{writer}.{n}");
                let mut commit = Commit::new();
                commit.put(key(&format!("k/{name}")), "v").append(key("log"), name.clone());
                store.commit(&commit).await.unwrap();
                // One write each, so that lines do not mix.
                std::io::stdout().write_all(format!("confirmed {name} \n").as_bytes()).unwrap();
            }
        })
    });
    for writer in join_all(writers).await {
        writer.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_survives_kill_9_under_load() {
    const FILE: &str = "FLAMES_TEST_FILE_OF_A_PROCESS_TO_BE_KILLED";
    if let Some(path) = std::env::var_os(FILE) {
        return write_until_killed(Path::new(&path)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let mut confirmed = Vec::new();
    for patience in [250, 400] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "what_was_confirmed_survives_kill_9_under_load",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(FILE, &path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(patience)).await;
        child.kill().unwrap();
        let told = child.wait_with_output().unwrap();
        let lines = String::from_utf8(told.stdout).unwrap();
        let before = confirmed.len();
        let whole = lines.lines().filter_map(|line| line.strip_prefix("confirmed ")?.strip_suffix(' '));
        confirmed.extend(whole.map(str::to_owned));
        assert!(confirmed.len() > before + 10, "it was to be killed under load: {lines}");
        let store = open(&path).await;
        let mut log = Vec::new();
        loop {
            let after = log.last().map_or(Position::START, |entry: &LogEntry| entry.position);
            let read = store.read_log(&key("log"), after, 1_000).await.unwrap();
            if read.is_empty() {
                break;
            }
            log.extend(read);
        }
        let logged: BTreeSet<&[u8]> = log.iter().map(|entry| &entry.payload[..]).collect();
        assert_eq!(logged.len(), log.len(), "an entry is there twice");
        for name in &confirmed {
            assert!(logged.contains(name.as_bytes()), "{name} was confirmed");
            assert!(store.get(&key(&format!("k/{name}"))).await.unwrap().is_some(), "{name} was confirmed");
        }
        let page = store.scan_all(&KeyRange::prefix(&key("k/")), 100_000).await.unwrap().unwrap();
        assert_eq!(page.len(), log.len(), "a commit is there whole or not at all");
        // The second process starts its names anew: make room for them.
        confirmed.clear();
        store.trim_log(&key("log"), Position::from_raw(u64::MAX, u64::MAX)).await.unwrap();
        for group in page.chunks(60) {
            let mut commit = Commit::new();
            for entry in group {
                commit.delete(entry.key.clone());
            }
            store.commit(&commit).await.unwrap();
        }
        store.close().await.unwrap();
    }
}
