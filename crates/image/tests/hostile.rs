//! Archives that mean harm, or are broken: each is refused with an error that names the entry, and none costs more than its bound.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod common;

use common::{Header, Tar, gzip, make_from_bytes};
use flames_image::ImageErrorKind::{Hostile, Malformed, TooLarge, Unsupported};
use flames_image::{ConversionRequest, DeviceNodes, ImageError, ImageErrorKind, Limits};

fn refused_with(bytes: &[u8], change: impl FnOnce(&mut ConversionRequest)) -> ImageError {
    make_from_bytes(bytes, change).err().expect("this archive must be refused")
}

fn refused(tar: Tar, kind: ImageErrorKind, entry: &str) {
    let error = refused_with(&tar.done(), |_| {});
    assert_eq!((error.kind, error.entry.as_deref()), (kind, Some(entry)), "{error}");
}

#[test]
fn absolute_paths_are_refused() {
    refused(Tar::new().file("fine", b"").file("/etc/passwd", b"x"), Hostile, "/etc/passwd");
    refused(Tar::new().directory("//x"), Hostile, "//x");
}

#[test]
fn paths_that_climb_are_refused() {
    for path in ["../x", "a/../../x", "a/..", "./../x"] {
        refused(Tar::new().file(path, b"x"), Hostile, path);
    }
    let long = Tar::new().pax(&[("path", b"../../../../etc/cron.d/x")]).file("harmless", b"x");
    refused(long, Hostile, "../../../../etc/cron.d/x");
}

#[test]
fn links_that_lead_out_are_refused() {
    refused(Tar::new().symlink("out", "../../etc"), Hostile, "out");
    refused(Tar::new().symlink("a/out", "../../etc"), Hostile, "a/out");
    refused(Tar::new().symlink("out", "/../etc"), Hostile, "out");
    refused(Tar::new().hard_link("out", "/etc/shadow"), Hostile, "out");
    refused(Tar::new().hard_link("out", "../../etc/shadow"), Hostile, "out");
    refused(Tar::new().directory("d").hard_link("out", "d"), Hostile, "out");
    refused(Tar::new().hard_link("out", "nothing"), Malformed, "out");
}

#[test]
fn a_write_through_a_link_stays_in_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().to_str().unwrap();
    let tar = Tar::new().symlink("evil", outside).file("evil/written", b"x");
    let made = make_from_bytes(&tar.done(), |_| {}).unwrap();
    assert!(!folder.path().join("written").exists());
    assert!(made.result.inodes > 3);
    refused(Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b""), Hostile, "a/x");
}

#[test]
fn device_nodes_are_refused_unless_asked_for() {
    let device =
        |kind| Tar::new().entry(&Header { path: b"dev/x", kind, device: (8, 0), ..Header::default() }, b"");
    refused(device(b'3'), Hostile, "dev/x");
    refused(device(b'4'), Hostile, "dev/x");
    for devices in [DeviceNodes::Skip, DeviceNodes::Keep] {
        make_from_bytes(&device(b'4').done(), |request| request.device_nodes = devices).unwrap();
    }
}

#[test]
fn a_bomb_of_zeros_is_refused_by_its_ratio_before_it_unpacks() {
    let mut tar = Tar::new();
    tar.header(&Header { path: b"bomb", ..Header::default() }, 64 << 20);
    let mut bytes = tar.unfinished();
    bytes.resize(512 + (64 << 20), 0);
    let packed = gzip(&bytes);
    assert!(packed.len() < 100_000);
    let error = refused_with(&packed, |request| {
        request.limits = Limits { ratio_free_bytes: 1 << 20, ..Limits::default() };
    });
    assert_eq!((error.kind, error.entry.as_deref()), (TooLarge, Some("bomb")));
}

#[test]
fn a_bomb_hidden_behind_the_end_of_the_archive_is_refused() {
    let mut bytes = Tar::new().file("a", b"a").done();
    bytes.resize(32 << 20, 0);
    let limits = Limits { ratio_free_bytes: 1 << 20, ..Limits::default() };
    let error = refused_with(&zstd::bulk::compress(&bytes, 3).unwrap(), |request| request.limits = limits);
    assert_eq!(error.kind, TooLarge);
}

#[test]
fn the_sum_of_contents_is_bounded_by_what_headers_claim() {
    let mut tar = Tar::new().file("small", &[1; 600]);
    tar.header(&Header { path: b"huge", ..Header::default() }, 0o77777777777);
    let limits = Limits { unpacked_bytes: 1000, ..Limits::default() };
    let error = refused_with(&tar.done(), |request| request.limits = limits);
    assert_eq!((error.kind, error.entry.as_deref()), (TooLarge, Some("huge")));
}

#[test]
fn counts_depths_and_lengths_are_bounded() {
    let with = |tar: Tar, limits: Limits| refused_with(&tar.done(), |request| request.limits = limits).kind;
    let many = (0..50).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), b""));
    assert_eq!(with(many.clone(), Limits { entries: 49, ..Limits::default() }), TooLarge);
    assert_eq!(with(many, Limits { metadata_bytes: 100, ..Limits::default() }), TooLarge);
    let deep = Tar::new().pax(&[("path", "d/".repeat(300).as_bytes())]).directory("x");
    assert_eq!(with(deep, Limits::default()), TooLarge);
    let long = Tar::new().pax(&[("path", "d/".repeat(3000).as_bytes())]).directory("x");
    assert_eq!(with(long, Limits::default()), TooLarge);
    let name = Tar::new().pax(&[("path", "n".repeat(256).as_bytes())]).file("x", b"");
    assert_eq!(with(name, Limits::default()), TooLarge);
    let attribute = Tar::new().pax(&[("SCHILY.xattr.user.big", &[1; 5000])]).file("x", b"");
    assert_eq!(with(attribute, Limits::default()), TooLarge);
}

#[test]
fn a_header_that_claims_a_gigantic_extension_takes_no_memory_for_it() {
    let mut tar = Tar::new();
    tar.header(&Header { path: b"pax", kind: b'x', ..Header::default() }, 1 << 32);
    assert_eq!(refused_with(&tar.done(), |_| {}).kind, TooLarge);
    let endless = (0..20).fold(Tar::new(), |tar, _| tar.pax(&[("path", b"x")]));
    assert_eq!(refused_with(&endless.done(), |_| {}).kind, Malformed);
}

#[test]
fn broken_archives_are_malformed() {
    let sound = Tar::new().file("file", &[1; 3000]).done();
    assert_eq!(refused_with(b"", |_| {}).kind, Malformed);
    assert_eq!(refused_with(&sound[..1000], |_| {}).kind, Malformed);
    assert_eq!(refused_with(&sound[..700], |_| {}).entry.as_deref(), Some("file"));
    let mut wrong_sum = sound.clone();
    wrong_sum[0] = b'F';
    assert_eq!(refused_with(&wrong_sum, |_| {}).kind, Malformed);
    let packed = gzip(&sound);
    assert_eq!(refused_with(&packed[..packed.len() / 2], |_| {}).kind, Malformed);
    let mut flipped = packed;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xFF;
    assert_eq!(refused_with(&flipped, |_| {}).kind, Malformed);
    let root = Tar::new().symlink(".", "etc");
    assert_eq!(refused_with(&root.done(), |_| {}).kind, Hostile);
}

#[test]
fn what_is_not_supported_says_so() {
    assert_eq!(refused_with(b"\xfd7zXZ\0 and so on", |_| {}).kind, Unsupported);
    refused(Tar::new().entry(&Header { path: b"s", kind: b'S', ..Header::default() }, b""), Unsupported, "s");
    refused(Tar::new().entry(&Header { path: b"q", kind: b'Q', ..Header::default() }, b""), Unsupported, "q");
    refused(Tar::new().pax(&[("SCHILY.xattr.nowhere.x", b"y")]).file("f", b""), Unsupported, "f");
}

#[test]
fn names_of_strangers_are_printable_in_errors() {
    let error = refused_with(&Tar::new().file("/\x1b[2J\nowned", b"").done(), |_| {});
    assert!(!error.to_string().chars().any(char::is_control), "{error}");
}
