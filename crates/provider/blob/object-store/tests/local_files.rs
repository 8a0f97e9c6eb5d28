//! What local files promise beyond the suite.
#![cfg(feature = "fs")]
// Helpers of tests may panic.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_blob::{BlobKey, BlobStore, BlobStoreExt, PutOptions};
use flames_blob_object_store::FsBlobStore;
use flames_clock::{Clock, SimulatedClock, SystemClock};
use flames_error::ErrorKind;
use futures::StreamExt;

async fn open(folder: &Path) -> FsBlobStore {
    FsBlobStore::open(folder, Arc::new(SystemClock::new())).await.unwrap()
}

fn key(text: &str) -> BlobKey {
    BlobKey::new(text).unwrap()
}

async fn put(store: &FsBlobStore, name: &str, bytes: &'static [u8]) {
    store.put_bytes(&key(name), Bytes::from_static(bytes), PutOptions::default()).await.unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn only_the_owner_can_read_files_and_folders() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("made/here");
    let store = open(&folder).await;
    put(&store, "a", b"secret").await;
    let mode = |path: &str| fs::metadata(folder.join(path)).unwrap().permissions().mode() & 0o777;
    for path in ["", "blobs", "temporary"] {
        assert_eq!(mode(path), 0o700, "{path}");
    }
    for path in ["lock", "blobs/a"] {
        assert_eq!(mode(path), 0o600, "{path}");
    }
}

#[tokio::test]
async fn what_a_crashed_put_left_is_removed_at_the_next_open() {
    let root = tempfile::tempdir().unwrap();
    put(&open(root.path()).await, "a", b"whole").await;
    fs::write(root.path().join("temporary/0"), b"half of a bl").unwrap();
    let store = open(root.path()).await;
    assert_eq!(names(&root.path().join("temporary")), [""; 0]);
    assert_eq!(store.get_bytes(&key("a"), 100).await.unwrap(), Bytes::from_static(b"whole"));
}

#[tokio::test]
async fn refused_failed_and_abandoned_puts_leave_no_file() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let some = || futures::stream::once(async { Ok(Bytes::from_static(b"some")) });
    let refused = PutOptions { expected_size: Some(3), ..PutOptions::default() };
    assert!(store.put(&key("a"), some().boxed(), refused).await.is_err());
    let broken =
        futures::stream::once(async { Err(flames_error::Error::unavailable("test", "the line broke")) });
    assert!(store.put(&key("b"), some().chain(broken).boxed(), PutOptions::default()).await.is_err());
    let endless = some().chain(futures::stream::pending()).boxed();
    let key = key("c");
    let abandoned = store.put(&key, endless, PutOptions::default());
    assert!(tokio::time::timeout(Duration::from_millis(50), abandoned).await.is_err());
    // The blocking thread may still be at it.
    for _ in 0..200 {
        if names(&root.path().join("temporary")).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(names(&root.path().join("temporary")), [""; 0]);
    assert_eq!(names(&root.path().join("blobs")), [""; 0]);
}

#[tokio::test]
async fn a_folder_belongs_to_one_store_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let refused = FsBlobStore::open(root.path(), Arc::new(SystemClock::new())).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.user_message().is_some());
    drop(store);
    open(root.path()).await;
}

#[tokio::test]
async fn a_byte_that_changed_on_disk_ends_the_read_with_corrupt() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    put(&store, "a", b"as it was put").await;
    fs::File::options().write(true).open(root.path().join("blobs/a")).unwrap().write_all_at(b"X", 3).unwrap();
    let mut read = store.get(&key("a"), None).await.unwrap();
    let outcome = read.stream.next().await.unwrap();
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Corrupt);
    store.delete(&key("a")).await.unwrap();
    assert!(!store.exists(&key("a")).await.unwrap());
}

#[tokio::test]
async fn a_file_that_is_cut_or_strange_is_corrupt_and_no_blob() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    put(&store, "whole", b"0123456789").await;
    let whole = fs::read(root.path().join("blobs/whole")).unwrap();
    let text = String::from_utf8_lossy(&whole).replace(r#""schema":1"#, r#""schema":2"#);
    for (name, content) in [
        ("empty", Vec::new()),
        ("cut", whole[..whole.len() - 1].to_vec()),
        ("short", whole[1..].to_vec()),
        ("foreign", b"just a file that somebody put here".to_vec()),
        ("newer", text.into_bytes()),
        ("renamed", whole.clone()),
    ] {
        fs::write(root.path().join("blobs").join(name), content).unwrap();
        let error = store.head(&key(name)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}");
        store.delete(&key(name)).await.unwrap();
    }
    let page = store.list("", None, 10).await.unwrap();
    assert_eq!(page.blobs.iter().map(|info| info.key.as_str()).collect::<Vec<_>>(), ["whole"]);
}

#[tokio::test]
async fn keys_too_long_for_a_file_name_are_listed_among_the_others() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).await;
    let long = |end: &str| format!("layers/{}{end}", "k".repeat(400));
    let keys = ["a".to_owned(), long("1"), long("2"), "layers/z".to_owned(), "m".to_owned()];
    for name in keys.iter().rev() {
        put(&store, name, b"x").await;
    }
    let listed = async |prefix: &str, after: Option<&str>| -> Vec<String> {
        let page = store.list(prefix, after.map(key).as_ref(), 10).await.unwrap();
        page.blobs.into_iter().map(|info| info.key.to_string()).collect()
    };
    assert_eq!(listed("", None).await, keys);
    assert_eq!(listed("layers/", Some(&long("1"))).await, keys[2..4]);
    assert_eq!(listed(&long("2"), None).await, keys[2..3]);
    assert_eq!(listed("m", None).await, keys[4..]);
}

#[tokio::test]
async fn the_injected_clock_says_when_a_blob_was_stored() {
    let root = tempfile::tempdir().unwrap();
    let clock = Arc::new(SimulatedClock::at_fixed_start());
    clock.jump_wall(-90_000);
    let store = FsBlobStore::open(root.path(), clock.clone()).await.unwrap();
    let (before, _) = (clock.now(), put(&store, "a", b"x").await);
    let stored_at = store.head(&key("a")).await.unwrap().stored_at;
    assert!((before..=clock.now()).contains(&stored_at));
}

const CHILD_FOLDER: &str = "FLAMES_TEST_KILLED_CHILD_FOLDER";

/// Puts, replaces and deletes until it is killed.
async fn put_for_ever(folder: &Path) {
    let store = open(folder).await;
    for round in 0_usize.. {
        let bytes = Bytes::from(vec![u8::try_from(round % 251).unwrap(); 1 + round * 7_919 % 600_000]);
        let name = key(&format!("blob-{}", round % 4));
        store.put_bytes(&name, bytes, PutOptions::default()).await.unwrap();
        if round % 7 == 6 {
            store.delete(&name).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_process_killed_at_any_moment_leaves_whole_blobs_only() {
    if let Some(folder) = std::env::var_os(CHILD_FOLDER) {
        return put_for_ever(Path::new(&folder)).await;
    }
    let root = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for round in 0..6 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_process_killed_at_any_moment_leaves_whole_blobs_only", "--nocapture"])
            .env(CHILD_FOLDER, root.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Long enough to start and put something, and each time another moment.
        tokio::time::sleep(Duration::from_millis(150 + 37 * round)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(root.path()).await;
        assert_eq!(names(&root.path().join("temporary")), [""; 0]);
        for info in store.list("", None, 10).await.unwrap().blobs {
            let bytes = store.get_bytes(&info.key, 1_000_000).await.unwrap();
            assert_eq!(bytes.len() as u64, info.size);
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{} is of two puts", info.key);
            seen += 1;
        }
    }
    assert!(seen > 0, "no child lived long enough to put a blob");
}
