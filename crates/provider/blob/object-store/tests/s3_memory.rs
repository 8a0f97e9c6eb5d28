//! How much memory a long put and get to S3 take, measured in a process of their own. Apart from the other tests, since with
//! `FLAMES_FULL` it takes longer than a case of a suite may.

// Helpers of tests may panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, ExitCode, Stdio};

use bytes::Bytes;
use flames_blob::{BlobKey, BlobStore, PutOptions};
use flames_blob_object_store::{CloudLimits, S3Config};
use flames_test_servers::{S3Access, shared};
use futures::StreamExt;
use libtest_mimic::{Arguments, Failed, Trial};

const CHILD: &str = "FLAMES_TEST_BLOB_CHILD";
/// What a put or get of any length may add to the process.
const MEMORY_LIMIT: u64 = 64 * 1024 * 1024;

fn main() -> ExitCode {
    if let Some(config) = child_config() {
        return child(config);
    }
    const NAME: &str = "a_long_put_and_get_take_little_memory";
    let required = std::env::var("FLAMES_REQUIRE").unwrap_or_default();
    let is_required = required.split(',').any(|name| matches!(name.trim(), "s3" | "all"));
    let trial = match shared::s3() {
        Ok(access) => Trial::test(NAME, move || {
            let runtime = tokio::runtime::Runtime::new().map_err(Failed::from)?;
            runtime.block_on(measure(access));
            Ok(())
        }),
        // Decided when listed, so that it shows as skipped.
        Err(missing) => Trial::test(NAME, move || Err(missing.into())).with_ignored_flag(!is_required),
    };
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

/// 2 GiB with `FLAMES_FULL`, which takes a minute; else 256 MiB.
fn size() -> u64 {
    let is_full = std::env::var_os("FLAMES_FULL").is_some();
    if is_full { 2 << 30 } else { 256 << 20 }
}

/// Runs the child and judges what it used.
async fn measure(access: S3Access) {
    common::make_bucket(&access).await;
    let prefix = common::config(&access).prefix;
    let place = [access.endpoint, access.access_key, access.secret_key, prefix].join("\n");
    let child = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}");
    let used: u64 = told.trim().parse().unwrap();
    assert!(used <= MEMORY_LIMIT, "{} MiB for a blob of {} MiB", used >> 20, size() >> 20);
}

/// Where the child is to put its blob; none in the parent.
fn child_config() -> Option<S3Config> {
    let place = std::env::var(CHILD).ok()?;
    let parts: Vec<_> = place.split('\n').map(str::to_owned).collect();
    let [endpoint, access_key, secret_key, prefix] = <[String; 4]>::try_from(parts).unwrap();
    Some(S3Config {
        endpoint: Some(endpoint),
        access_key: Some(access_key),
        secret_key: Some(secret_key.into()),
        prefix,
        ..S3Config::new(common::BUCKET)
    })
}

/// A line of `/proc/self/status`, in bytes (proc_pid_status(5)).
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}

/// Puts and gets a long blob; tells by how much the process grew at most.
#[allow(clippy::print_stdout)]
fn child(config: S3Config) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let used = runtime.block_on(async {
        let store = common::open(&config, CloudLimits::default()).await.unwrap();
        let key = BlobKey::new("long").unwrap();
        let small = futures::stream::once(async { Ok(Bytes::from_static(b"warm")) }).boxed();
        store.put(&key, small, PutOptions::default()).await.unwrap();
        let before = status("VmRSS");
        let (size, chunk) = (size(), 64 * 1024);
        // A buffer for each chunk, as a network gives them: one shared buffer would hide what is kept.
        let chunks = futures::stream::iter((0..size / chunk).map(move |number| {
            let byte = u8::try_from(number % 251).unwrap();
            Ok(Bytes::from(vec![byte; usize::try_from(chunk).unwrap()]))
        }));
        let info = store.put(&key, chunks.boxed(), PutOptions::default()).await.unwrap();
        assert_eq!(info.size, size);
        let mut read = store.get(&key, None).await.unwrap();
        let mut length = 0;
        while let Some(chunk) = read.stream.next().await {
            length += chunk.unwrap().len() as u64;
        }
        assert_eq!(length, size);
        store.delete(&key).await.unwrap();
        status("VmHWM").saturating_sub(before)
    });
    println!("{used}");
    ExitCode::SUCCESS
}
