//! Root file systems from tars and folders: sound by e2fsck's and the kernel's judgement, faithful, and the same every time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use common::{Header, Made, Mounted, Tar, check, gzip, have, make, make_from_bytes};
use flames_image::{ConversionRequest, DeviceNodes, ImageErrorKind, SourceKind};

/// A bit of everything that ext4 keeps in more than one way.
fn rich() -> Tar {
    let long_target = format!("/{}", "t".repeat(300));
    let mut tar = Tar::new()
        .entry(&Header { path: b"./", kind: b'5', mode: 0o711, ..Header::default() }, b"")
        .directory("etc")
        .file("etc/hello", b"hello\n")
        .entry(
            &Header { path: b"bin/su", mode: 0o4755, owner: (70_000, 65_534), ..Header::default() },
            b"suid",
        )
        .hard_link("bin/su-again", "bin/su")
        .symlink("short", "etc/hello")
        .pax(&[("linkpath", long_target.as_bytes())])
        .symlink("long", "cut")
        .pax(&[("SCHILY.xattr.user.small", b"value"), ("mtime", b"1234567890.987654321")])
        .file("in-inode", b"x")
        .pax(&[
            ("SCHILY.xattr.user.big", &[7; 2000]),
            ("SCHILY.xattr.user.a", b""),
            ("SCHILY.xattr.trusted.t", b"t"),
        ])
        .file("in-block", b"x")
        .pax(&[("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0")])
        .file("bin/ping", b"ping")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .directory("not-opaque")
        .pax(&[("path", format!("{}/{}", "d".repeat(200), "f".repeat(255)).as_bytes())])
        .file("cut", b"deep")
        .entry(&Header { path: b"null", kind: b'3', device: (1, 3), mode: 0o666, ..Header::default() }, b"")
        .entry(
            &Header { path: b"disk", kind: b'4', device: (259, 70_000), mode: 0o660, ..Header::default() },
            b"",
        )
        .entry(&Header { path: b"pipe", kind: b'6', ..Header::default() }, b"");
    for n in 0..3000 {
        tar = tar.file(&format!("many/a-name-of-some-length-{n:05}"), format!("{n}").as_bytes());
    }
    // 1,500 stretches with holes between: an extent tree of two levels below the inode.
    let mut holed = vec![0u8; 3000 * 4096];
    for n in 0..1500 {
        holed[n * 8192] = (n % 251) as u8 + 1;
    }
    tar.file("holed", &holed).file("empty", b"")
}

fn made(bytes: &[u8]) -> Made {
    make_from_bytes(bytes, |request| request.device_nodes = DeviceNodes::Keep).unwrap()
}

#[test]
fn e2fsck_finds_nothing_wrong_with_a_rich_image_whatever_the_free_room() {
    if !have("mke2fs") {
        return;
    }
    let bytes = rich().done();
    for free in [0, 10 << 20, 140 << 20] {
        let made = make_from_bytes(&bytes, |request| {
            request.device_nodes = DeviceNodes::Keep;
            request.free_bytes = free;
        })
        .unwrap();
        check(&made.image);
        assert!(made.result.size >= free);
    }
}

#[test]
fn the_kernel_sees_every_entry_as_the_archive_has_it() {
    if !have("root") {
        return;
    }
    let made = made(&rich().done());
    let mounted = Mounted::new(&made.image, "ro,loop");
    let at = |path: &str| fs::symlink_metadata(mounted.path.join(path)).unwrap();
    let get = |path: &str, name: &str| {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(mounted.path.join(path), name, &mut value);
        length.map(|length| value[..length].to_vec()).ok()
    };

    assert_eq!(at("").mode() & 0o7777, 0o711);
    assert_eq!(mounted.text("etc/hello"), "hello\n");
    let su = at("bin/su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.nlink()), (0o4755, 70_000, 65_534, 2));
    assert_eq!(at("bin/su-again").ino(), su.ino());
    assert_eq!(fs::read_link(mounted.path.join("short")).unwrap(), Path::new("etc/hello"));
    assert_eq!(fs::read_link(mounted.path.join("long")).unwrap().as_os_str().len(), 301);
    assert_eq!((at("in-inode").mtime(), at("in-inode").mtime_nsec()), (1_234_567_890, 987_654_321));
    assert_eq!(
        (at("empty").mtime(), at("empty").ctime(), at("empty").atime()),
        (1_000_000_000, 1_000_000_000, 1_000_000_000)
    );
    assert_eq!(get("in-inode", "user.small").unwrap(), b"value");
    assert_eq!(get("in-block", "user.big").unwrap(), vec![7; 2000]);
    assert_eq!(get("in-block", "user.a").unwrap(), b"");
    assert_eq!(get("in-block", "trusted.t").unwrap(), b"t");
    assert!(get("bin/ping", "security.capability").is_some());
    assert_eq!(get("not-opaque", "trusted.overlay.opaque"), None);
    assert_eq!(mounted.text(&format!("{}/{}", "d".repeat(200), "f".repeat(255))), "deep");
    assert!(at("null").file_type().is_char_device() && at("null").rdev() == rustix::fs::makedev(1, 3));
    assert!(
        at("disk").file_type().is_block_device() && at("disk").rdev() == rustix::fs::makedev(259, 70_000)
    );
    assert!(at("pipe").file_type().is_fifo());
    assert_eq!(fs::read_dir(mounted.path.join("many")).unwrap().count(), 3000);
    assert_eq!(mounted.text("many/a-name-of-some-length-02999"), "2999");
    let holed = fs::read(mounted.path.join("holed")).unwrap();
    assert_eq!(holed.len(), 3000 * 4096);
    assert!((0..1500).all(|n| holed[n * 8192] == (n % 251) as u8 + 1 && holed[n * 8192 + 4096] == 0));
    assert!(at("holed").blocks() < 1600 * 8);
    assert_eq!(at("empty").len(), 0);
}

#[test]
fn the_same_content_gives_the_same_bytes_whatever_the_order_of_entries_and_the_packing() {
    let forwards =
        Tar::new().directory("d").file("d/a", b"a").file("d/b", &[5; 9000]).symlink("l", "d/a").done();
    let backwards =
        Tar::new().symlink("l", "d/a").file("d/b", &[5; 9000]).file("d/a", b"a").directory("d").done();
    let first = made(&forwards);
    let second = made(&gzip(&backwards));
    let third = made(&zstd::bulk::compress(&forwards, 3).unwrap());
    assert_eq!(first.result.digest, second.result.digest);
    assert_eq!(first.result.digest, third.result.digest);
    assert_eq!(first.result.compressed_digest, second.result.compressed_digest);
    let other =
        made(&Tar::new().directory("d").file("d/a", b"A").file("d/b", &[5; 9000]).symlink("l", "d/a").done());
    assert_ne!(first.result.digest, other.result.digest);
}

#[test]
fn two_folders_filled_in_different_order_at_different_times_give_the_same_bytes() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()];
    let moment = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000);
    for (index, folder) in folders.iter().enumerate() {
        let root = folder.path();
        let mut numbers: Vec<u32> = (0..200).collect();
        if index == 1 {
            // Change times differ by more than a file system's grain.
            std::thread::sleep(std::time::Duration::from_millis(1100));
            numbers.reverse();
        }
        fs::create_dir(root.join("sub")).unwrap();
        for n in numbers {
            fs::write(root.join(format!("sub/f{n}")), n.to_string()).unwrap();
            let file = fs::File::open(root.join(format!("sub/f{n}"))).unwrap();
            file.set_modified(moment).unwrap();
        }
        fs::hard_link(root.join("sub/f1"), root.join("again")).unwrap();
        for path in [root.join("sub"), root.to_path_buf()] {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
            fs::File::open(path).unwrap().set_modified(moment).unwrap();
        }
    }
    let [first, second] =
        folders.each_ref().map(|folder| make(&ConversionRequest::new(folder.path())).unwrap());
    assert_eq!(first.result.source_kind, "directory");
    assert_eq!(first.result.digest, second.result.digest);
    assert_eq!(fs::read(&first.image).unwrap(), fs::read(&second.image).unwrap());
    if have("mke2fs") {
        check(&first.image);
    }
}

#[test]
fn a_folder_keeps_hard_links_holes_owners_and_attributes() {
    if !have("root") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("file"), "x").unwrap();
    std::os::unix::fs::chown(root.join("file"), Some(1234), Some(5678)).unwrap();
    fs::hard_link(root.join("file"), root.join("other-name")).unwrap();
    fs::File::create(root.join("hole")).unwrap().set_len(1 << 30).unwrap();
    rustix::fs::lsetxattr(root.join("file"), "trusted.kept", b"yes", rustix::fs::XattrFlags::empty())
        .unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", root.join("dangling")).unwrap();
    let made = make(&ConversionRequest::new(root)).unwrap();
    check(&made.image);
    let mounted = Mounted::new(&made.image, "ro,loop");
    let file = fs::metadata(mounted.path.join("file")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.nlink()), (1234, 5678, 2));
    assert_eq!(fs::metadata(mounted.path.join("hole")).unwrap().len(), 1 << 30);
    assert!(made.result.size < 4 << 20);
    let mut value = [0; 16];
    assert_eq!(rustix::fs::lgetxattr(mounted.path.join("file"), "trusted.kept", &mut value), Ok(3));
    assert_eq!(fs::read_link(mounted.path.join("dangling")).unwrap(), Path::new("/nowhere/at/all"));
}

#[test]
fn access_lists_are_translated_to_what_ext4_keeps() {
    if !have("root") || !have("mke2fs") {
        return;
    }
    // Version 2; owner rw, user 1000 r, group r, mask rw, others none.
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1u16, 6u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)]
    {
        list.extend(tag.to_le_bytes());
        list.extend(perm.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    let bytes = Tar::new().pax(&[("SCHILY.xattr.system.posix_acl_access", &list)]).file("f", b"x").done();
    let made = made(&bytes);
    check(&made.image);
    let mounted = Mounted::new(&made.image, "ro,loop");
    let mut value = vec![0; 256];
    let length =
        rustix::fs::lgetxattr(mounted.path.join("f"), "system.posix_acl_access", &mut value).unwrap();
    assert_eq!(value[..length], list);
}

#[test]
fn free_room_can_be_written_to() {
    if !have("root") || !have("mke2fs") {
        return;
    }
    let made = make_from_bytes(&Tar::new().file("a", b"a").done(), |request| request.free_bytes = 200 << 20)
        .unwrap();
    {
        let mounted = Mounted::new(&made.image, "rw,loop");
        fs::write(mounted.path.join("big"), vec![1; 150 << 20]).unwrap();
        for n in 0..1000 {
            fs::create_dir(mounted.path.join(format!("d{n}"))).unwrap();
        }
    }
    check(&made.image);
}

#[test]
fn a_kind_can_be_named_and_a_wrong_one_is_an_error() {
    let error = make_from_bytes(b"not a tar at all", |_| {}).err().unwrap();
    assert_eq!(error.kind, ImageErrorKind::Malformed);
    let error = make_from_bytes(&Tar::new().file("a", b"a").done(), |request| {
        request.kind = SourceKind::ImageArchive
    });
    assert_eq!(error.err().unwrap().kind, ImageErrorKind::Hostile);
    let error = make(&ConversionRequest::new("/no/such/file")).err().unwrap();
    assert_eq!((error.kind, error.entry.as_deref()), (ImageErrorKind::NotFound, Some("/no/such/file")));
    let error = make(&ConversionRequest::new("/dev/zero")).err().unwrap();
    assert_eq!(error.kind, ImageErrorKind::Unsupported);
}
