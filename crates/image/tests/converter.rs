//! The child process: it answers, it is bounded, it dies with its parent, and it leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Header, Tar};
use flames_image::{Bounds, ConversionRequest, Converter, ImageErrorKind, SourceKind};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flames-image-convert");

fn converter(staging: &Path, bounds: Bounds) -> Converter {
    Converter::with_program(PROGRAM, [], staging, bounds)
}

fn source(folder: &Path, bytes: &[u8]) -> ConversionRequest {
    let path = folder.join("source");
    fs::write(&path, bytes).unwrap();
    ConversionRequest::new(path)
}

/// A tar of one file with 12 GiB of zeros, itself a hole: takes no room and keeps a conversion busy for long.
fn endless(folder: &Path) -> ConversionRequest {
    let mut tar = Tar::new();
    tar.header(&Header { path: b"endless", ..Header::default() }, 0o77777777777);
    let path = folder.join("endless");
    let file = fs::File::create(&path).unwrap();
    file.write_all_at(&tar.unfinished(), 0).unwrap();
    file.set_len(12 << 30).unwrap();
    ConversionRequest { kind: SourceKind::Tar, ..ConversionRequest::new(path) }
}

/// The conversions' folders.
fn contents(staging: &Path) -> Vec<PathBuf> {
    let items = fs::read_dir(staging).into_iter().flatten().map(|item| item.unwrap().path());
    items.filter(|path| path.is_dir()).collect()
}

#[tokio::test]
async fn a_conversion_tells_its_phases_and_its_folder_goes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let staging = folder.path().join("staging");
    let request = source(folder.path(), &Tar::new().file("a", b"a").done());
    let mut phases = Vec::new();
    let conversion = converter(&staging, Bounds::default())
        .convert(&request, &mut |progress| phases.push(progress.phase))
        .await
        .unwrap();
    assert!(phases.iter().any(|phase| phase == "reading the archive"), "{phases:?}");
    assert!(phases.iter().any(|phase| phase == "compressing"), "{phases:?}");
    assert_eq!(fs::metadata(conversion.path()).unwrap().len(), conversion.result.compressed_size);
    assert_eq!(contents(&staging).len(), 1);
    drop(conversion);
    assert!(contents(&staging).is_empty());
}

#[tokio::test]
async fn a_refusal_crosses_the_process_boundary_whole_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let staging = folder.path().join("staging");
    let request = source(folder.path(), &Tar::new().file("../evil", b"a").done());
    let error = converter(&staging, Bounds::default()).convert(&request, &mut |_| {}).await.unwrap_err();
    assert_eq!((error.kind, error.entry.as_deref()), (ImageErrorKind::Hostile, Some("../evil")));
    assert!(contents(&staging).is_empty());
}

#[tokio::test]
async fn a_conversion_that_is_dropped_midway_is_killed_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let staging = folder.path().join("staging");
    let request = endless(folder.path());
    let converter = converter(&staging, Bounds::default());
    let started = || contents(&staging).iter().any(|folder| folder.join("contents").exists());
    {
        let mut ignore = |_| {};
        let conversion = converter.convert(&request, &mut ignore);
        tokio::pin!(conversion);
        let until = Instant::now() + Duration::from_secs(20);
        while !started() {
            assert!(Instant::now() < until, "the conversion never started");
            tokio::select! {
                _ = &mut conversion => panic!("it ended"),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
        }
    }
    assert!(contents(&staging).is_empty());
    assert_eq!(users_of(&request.source), 0);
}

/// How many processes have the file open.
fn users_of(path: &Path) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let files =
        processes.flat_map(|process| fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten());
    files.filter(|file| fs::read_link(file.path()).is_ok_and(|target| target == path)).count()
}

#[tokio::test]
async fn a_conversion_past_its_time_or_its_processor_time_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let staging = folder.path().join("staging");
    let request = endless(folder.path());
    let bounds = Bounds { seconds: 1, ..Bounds::default() };
    let error = converter(&staging, bounds).convert(&request, &mut |_| {}).await.unwrap_err();
    assert_eq!(error.kind, ImageErrorKind::TimedOut);
    let bounds = Bounds { cpu_seconds: 1, ..Bounds::default() };
    let error = converter(&staging, bounds).convert(&request, &mut |_| {}).await.unwrap_err();
    assert_eq!(error.kind, ImageErrorKind::TooLarge, "{error}");
    assert!(contents(&staging).is_empty());
}

#[tokio::test]
async fn a_conversion_past_its_memory_or_its_file_size_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let staging = folder.path().join("staging");
    let many = (0..40_000).fold(Tar::new(), |tar, n| tar.file(&format!("{}{n}", "n".repeat(80)), b""));
    let request = source(folder.path(), &many.done());
    let bounds = Bounds { memory_bytes: 20 << 20, ..Bounds::default() };
    let error = converter(&staging, bounds).convert(&request, &mut |_| {}).await.unwrap_err();
    assert_eq!(error.kind, ImageErrorKind::TooLarge, "{error}");

    let request = source(folder.path(), &Tar::new().file("big", &vec![1; 3 << 20]).done());
    let bounds = Bounds { file_bytes: 1 << 20, ..Bounds::default() };
    let error = converter(&staging, bounds).convert(&request, &mut |_| {}).await.unwrap_err();
    assert_eq!(error.kind, ImageErrorKind::TooLarge, "{error}");
    assert!(contents(&staging).is_empty());
}

#[tokio::test]
async fn what_a_crashed_parent_left_is_removed_by_the_next_conversion_and_a_living_one_s_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let staging = folder.path().join("staging");
    let request = source(folder.path(), &Tar::new().file("a", b"a").done());
    let converter = converter(&staging, Bounds::default());
    let alive = converter.convert(&request, &mut |_| {}).await.unwrap();
    let left = staging.join("conversion-left");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join(".alive"), "").unwrap();
    fs::write(left.join("contents"), "half").unwrap();
    let second = converter.convert(&request, &mut |_| {}).await.unwrap();
    assert!(!left.exists());
    assert!(alive.path().exists() && second.path().exists());
}

#[tokio::test]
async fn conversions_at_the_same_time_do_not_take_each_other_for_abandoned() {
    let folder = tempfile::tempdir().unwrap();
    let request = source(folder.path(), &Tar::new().file("a", b"a").done());
    let converter = converter(&folder.path().join("staging"), Bounds::default());
    let conversions = (0..8).map(|_| {
        let (converter, request) = (converter.clone(), request.clone());
        tokio::spawn(async move { converter.convert(&request, &mut |_| {}).await })
    });
    for conversion in futures::future::join_all(conversions).await {
        let conversion = conversion.unwrap().unwrap();
        assert!(conversion.path().is_file());
    }
}

#[test]
fn the_child_ends_when_its_parent_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let request = endless(folder.path());
    let staging = folder.path().join("staging");
    fs::create_dir(&staging).unwrap();
    let mut child = Command::new(PROGRAM).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let assignment = serde_json::json!({"request": request, "bounds": Bounds::default(), "staging": staging})
        .to_string()
        + "\n";
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, assignment.as_bytes()).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !staging.join("contents").exists() {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(input);
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn a_child_without_an_assignment_says_so() {
    let output = Command::new(PROGRAM).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains(r#""event":"failed""#));
}
