//! What S3 promises beyond the suite: clear words for wrong settings, bounded memory, nothing left behind. Against the server that
//! `FLAMES_TEST_S3` names.

// Helpers of tests may panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::ExitCode;
use std::time::Duration;

use flames_blob::{BlobKey, BlobStore, BlobStoreExt, PutOptions};
use flames_blob_object_store::{CloudLimits, S3Config};
use flames_conformance_runner::{Row, Suite, run, table};
use flames_error::{Error, ErrorKind};
use flames_test_servers::{S3Access, shared};
use futures::StreamExt;

const MIB: usize = 1024 * 1024;

fn main() -> ExitCode {
    run(Suite::own_tests("blob-beyond", "s3", shared::s3().err(), rows(), fresh))
}

fn rows() -> Vec<Row<Box<S3Access>>> {
    table![
        promises:
            seaweedfs_keeps_conditions,
            wrong_keys_are_told_in_one_line_that_names_the_settings,
            a_bucket_that_is_not_there_is_told_and_not_made,
            a_server_that_is_not_there_is_told_at_once,
            settings_that_cannot_work_are_refused_before_anything_is_asked,
            a_put_that_fails_in_the_middle_leaves_no_upload,
            an_upload_that_a_killed_process_left_is_swept,
            what_was_replaced_or_deleted_is_swept_and_the_rest_stays,
            a_blob_of_many_parts_is_read_back_and_its_ranges_too,
    ]
}

async fn fresh() -> Box<S3Access> {
    let access = shared::s3().unwrap();
    common::make_bucket(&access).await;
    Box::new(access)
}

fn key(text: &str) -> BlobKey {
    BlobKey::new(text).unwrap()
}

/// What an operator reads when the store cannot be opened.
async fn refused(config: S3Config) -> (Error, String) {
    let error = common::open(&config, common::impatient()).await.unwrap_err();
    let line =
        error.user_message().unwrap_or_else(|| panic!("nothing for the operator: {error:?}")).to_owned();
    assert!(!line.contains('\n'), "more than a line: {line}");
    if let Some(secret) = config.secret_key {
        assert_eq!(format!("{secret:?}"), "<redacted>");
    }
    (error, line)
}

mod promises {
    use super::*;

    pub(super) async fn seaweedfs_keeps_conditions(access: &S3Access) {
        let store = common::open(&common::config(access), CloudLimits::default()).await.unwrap();
        assert!(store.capabilities().conditional_put);
    }

    pub(super) async fn wrong_keys_are_told_in_one_line_that_names_the_settings(access: &S3Access) {
        let right = common::config(access);
        let wrong = [
            S3Config { secret_key: Some("wrong".into()), ..right.clone() },
            S3Config { access_key: Some("nobody".into()), ..right },
        ];
        for config in wrong {
            let (error, line) = refused(config).await;
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
            for word in ["s3", "`access_key`", "`secret_key`", access.endpoint.as_str()] {
                assert!(line.contains(word), "{word} is not in: {line}");
            }
            assert!(!format!("{error:?}").contains(&access.secret_key));
        }
    }

    pub(super) async fn a_bucket_that_is_not_there_is_told_and_not_made(access: &S3Access) {
        let config = S3Config { bucket: "flames-no-such-bucket".into(), ..common::config(access) };
        let (error, line) = refused(config).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(line.contains("`flames-no-such-bucket`") && line.contains("`bucket`"), "{line}");
        assert_eq!(common::ask(access, http::Method::HEAD, "flames-no-such-bucket").await, 404);
    }

    pub(super) async fn a_server_that_is_not_there_is_told_at_once(access: &S3Access) {
        let port = flames_test_servers::free_ports(1).unwrap()[0];
        let endpoint = format!("http://127.0.0.1:{port}");
        let config = S3Config { endpoint: Some(endpoint.clone()), ..common::config(access) };
        let started = tokio::time::Instant::now();
        let (error, line) = refused(config).await;
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(line.contains(&endpoint) && line.contains("`endpoint`"), "{line}");
    }

    pub(super) async fn settings_that_cannot_work_are_refused_before_anything_is_asked(access: &S3Access) {
        let right = common::config(access);
        let wrong = [
            ("bucket", S3Config { bucket: String::new(), ..right.clone() }),
            ("endpoint", S3Config { endpoint: Some("127.0.0.1".into()), ..right.clone() }),
            ("secret_key", S3Config { secret_key: None, ..right.clone() }),
            ("prefix", S3Config { prefix: "a//b".into(), ..right.clone() }),
        ];
        for (setting, config) in wrong {
            let (error, _) = refused(config).await;
            assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some(setting)));
        }
        let limits = CloudLimits { part_bytes: MIB, ..CloudLimits::default() };
        let error = common::open(&right, limits).await.unwrap_err();
        assert_eq!(error.field(), Some("part_bytes"));
    }

    fn small_parts(put: Duration) -> CloudLimits {
        CloudLimits { part_bytes: 5 * MIB, put, ..CloudLimits::default() }
    }

    /// 12 MiB, in two parts and the beginning of a third, and then nothing more.
    fn three_parts_that_never_end() -> flames_blob::ByteStream {
        let chunk = bytes::Bytes::from(vec![7; MIB]);
        let chunks = futures::stream::iter((0..12).map(move |_| Ok(chunk.clone())));
        chunks.chain(futures::stream::pending()).boxed()
    }

    pub(super) async fn a_put_that_fails_in_the_middle_leaves_no_upload(access: &S3Access) {
        const PATIENCE: Duration = Duration::from_secs(1);
        let store = common::open(&common::config(access), small_parts(PATIENCE / 2)).await.unwrap();
        let broken = futures::stream::once(async { Err(Error::unavailable("test", "the line broke")) });
        let chunk = bytes::Bytes::from(vec![7; 12 * MIB]);
        let stream = futures::stream::once(async move { Ok(chunk) }).chain(broken).boxed();
        assert!(store.put(&key("failed"), stream, PutOptions::default()).await.is_err());
        let dropped_key = key("dropped");
        let dropped = store.put(&dropped_key, three_parts_that_never_end(), PutOptions::default());
        assert!(tokio::time::timeout(Duration::from_secs(2), dropped).await.is_err());
        // The aborts run in tasks of the store.
        tokio::time::sleep(PATIENCE + Duration::from_secs(2)).await;
        let swept = store.sweep_abandoned(PATIENCE).await.unwrap();
        assert_eq!((swept.uploads, swept.objects), (0, 0), "something was left to sweep");
        assert_eq!(store.list("", None, 10).await.unwrap().blobs, []);
    }

    pub(super) async fn an_upload_that_a_killed_process_left_is_swept(access: &S3Access) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let config = common::config(access);
        let store = common::open(&config, small_parts(PATIENCE / 2)).await.unwrap();
        // The runtime ends, and all that the put could still do, as when its process is killed.
        let killed = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let store = runtime.block_on(common::open(&config, small_parts(PATIENCE / 2))).unwrap();
            runtime.spawn(async move {
                let put = store.put(&key("left"), three_parts_that_never_end(), PutOptions::default()).await;
                panic!("the put ended: {put:?}");
            });
            std::thread::sleep(Duration::from_secs(2));
            runtime.shutdown_background();
        });
        tokio::task::spawn_blocking(move || killed.join().unwrap()).await.unwrap();
        let young = store.sweep_abandoned(PATIENCE * 1_000).await.unwrap();
        assert_eq!(young.uploads, 0, "it is too young to go");
        tokio::time::sleep(PATIENCE + Duration::from_secs(1)).await;
        assert_eq!(store.sweep_abandoned(PATIENCE).await.unwrap().uploads, 1);
        assert_eq!(store.sweep_abandoned(PATIENCE).await.unwrap().uploads, 0, "it is gone");
        assert!(!store.exists(&key("left")).await.unwrap());
    }

    pub(super) async fn what_was_replaced_or_deleted_is_swept_and_the_rest_stays(access: &S3Access) {
        const PATIENCE: Duration = Duration::from_secs(4);
        let store = common::open(&common::config(access), small_parts(PATIENCE / 2)).await.unwrap();
        let put = async |name: &str, bytes: &'static str| {
            store.put_bytes(&key(name), bytes.into(), PutOptions::default()).await.unwrap();
        };
        let deep = "layers/".to_owned() + &"k".repeat(400);
        for name in ["a", "a-", "a/b", &deep, "z"] {
            put(name, "old").await;
            put(name, "new").await;
        }
        put("deleted", "gone").await;
        store.delete(&key("deleted")).await.unwrap();
        tokio::time::sleep(PATIENCE + Duration::from_secs(1)).await;
        let swept = store.sweep_abandoned(PATIENCE).await.unwrap();
        assert_eq!((swept.objects, swept.bytes), (6, 5 * 3 + 4));
        for name in ["a", "a-", "a/b", &deep, "z"] {
            assert_eq!(store.get_bytes(&key(name), 10).await.unwrap(), "new");
        }
        assert_eq!(store.list("", None, 10).await.unwrap().blobs.len(), 5);
        assert_eq!(store.sweep_abandoned(PATIENCE).await.unwrap().objects, 0);
    }

    pub(super) async fn a_blob_of_many_parts_is_read_back_and_its_ranges_too(access: &S3Access) {
        const PART: u64 = 5 * MIB as u64;
        let store =
            common::open(&common::config(access), small_parts(Duration::from_secs(600))).await.unwrap();
        // Just two parts, two and a byte, and several.
        for size in [2 * PART, 2 * PART + 1, 3 * PART + 12_345] {
            let byte_at = |at: u64| u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).unwrap();
            let chunks = (0..size).step_by(100_003).map(move |start| {
                Ok((start..size.min(start + 100_003)).map(byte_at).collect::<bytes::Bytes>())
            });
            let options = PutOptions { expected_size: Some(size), ..PutOptions::default() };
            let info = store.put(&key("long"), futures::stream::iter(chunks).boxed(), options).await.unwrap();
            assert_eq!(info.size, size);
            let whole = store.get_bytes(&key("long"), size).await.unwrap();
            assert_eq!(whole.len() as u64, size, "and the digest fits, or the read would have failed");
            for start in [0, PART - 1, PART, size - 2] {
                let mut read = store.get(&key("long"), Some(start..start + 2)).await.unwrap();
                let found = read.stream.next().await.unwrap().unwrap();
                assert_eq!(found[..], [byte_at(start), byte_at(start + 1)], "at {start}");
            }
        }
    }
}
