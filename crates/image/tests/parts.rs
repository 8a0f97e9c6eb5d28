//! Writable layers, the initramfs, and artefacts in a BlobStore and on a host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Mounted, Tar, check, have, program};
use flames_blob::{BlobStore, BlobStoreExt, PutOptions};
use flames_blob_memory::MemoryBlobStore;
use flames_error::ErrorKind;
use flames_image::cpio::CpioWriter;
use flames_image::initramfs::{Initramfs, Packing};
use flames_image::writable::ensure;
use flames_image::{
    Artefact, ArtefactKind, Bounds, ConversionRequest, Converter, Encoding, ImageErrorKind, ImageStore,
    LocalImages,
};

#[test]
fn a_writable_layer_is_sparse_sound_quick_and_made_once() {
    let folder = tempfile::tempdir().unwrap();
    for (index, size) in [32 << 20, 1 << 30, 10 << 30, 2 << 40].into_iter().enumerate() {
        let path = folder.path().join(format!("disk{index}"));
        let started = Instant::now();
        ensure(&path, size).unwrap();
        let took = started.elapsed();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), size);
        if size <= 10 << 30 {
            assert!(took < Duration::from_secs(2), "{took:?}");
            assert!(metadata.blocks() * 512 < 1 << 20, "{} bytes for {size}", metadata.blocks() * 512);
            if have("mke2fs") {
                check(&path);
            }
        }
        fs::File::options().write(true).open(&path).unwrap().write_all(b"the guest's").unwrap();
        ensure(&path, size).unwrap();
        assert!(
            fs::File::open(&path)
                .map(|mut file| {
                    let mut start = [0; 11];
                    std::io::Read::read_exact(&mut file, &mut start).unwrap();
                    start == *b"the guest's"
                })
                .unwrap()
        );
        assert_eq!(ensure(&path, size + 4096).unwrap_err().kind, ImageErrorKind::Conflict);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    for size in [0, 1 << 20, (64 << 20) + 1, 1 << 60] {
        assert_eq!(ensure(&folder.path().join("none"), size).unwrap_err().kind, ImageErrorKind::Unsupported);
    }
}

#[test]
fn calls_for_one_writable_layer_at_the_same_time_make_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let inodes = std::thread::scope(|scope| {
        let one = || {
            ensure(&path, 64 << 20).unwrap();
            fs::metadata(&path).unwrap().ino()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(inodes.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_guest_can_fill_and_remount_a_writable_layer() {
    if !have("root") || !have("mke2fs") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    ensure(&path, 512 << 20).unwrap();
    for round in 0..2 {
        let mounted = Mounted::new(&path, "rw,loop");
        for n in 0..2000 {
            fs::write(mounted.path.join(format!("{round}-{n}")), vec![n as u8; 20_000]).unwrap();
        }
    }
    check(&path);
}

fn agent() -> Option<std::path::PathBuf> {
    have("busybox").then(|| program("busybox").unwrap())
}

#[test]
fn the_initramfs_holds_the_agent_the_console_and_the_modules_and_is_the_same_every_time() {
    let Some(agent) = agent() else { return };
    let folder = tempfile::tempdir().unwrap();
    let modules = ["virtio_ring.ko", "virtio.ko"].map(|name| folder.path().join(name));
    modules.iter().for_each(|module| fs::write(module, "module").unwrap());
    let build = |packing| Initramfs { agent: &agent, modules: &modules, packing }.build().unwrap();
    let plain = build(Packing::Plain);
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        assert_eq!(build(packing), build(packing));
    }
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(
        &mut flate2::read::GzDecoder::new(build(Packing::Gzip).as_slice()),
        &mut unpacked,
    )
    .unwrap();
    assert_eq!(unpacked, plain);
    assert_eq!(zstd::stream::decode_all(build(Packing::Zstd).as_slice()).unwrap(), plain);
    if !have("cpio") {
        return;
    }
    let mut child = Command::new("cpio")
        .args(["-t", "-v", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(&plain).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let list = String::from_utf8(output.stdout).unwrap();
    let line = |end: &str| {
        list.lines().find(|line| line.ends_with(end)).unwrap_or_else(|| panic!("no {end} in {list}"))
    };
    assert!(line(" init").starts_with("-rwxr-xr-x"));
    assert!(line(" dev/console").starts_with("crw-------") && line(" dev/console").contains("5,   1"));
    assert!(line(" proc").starts_with("drwxr-xr-x"));
    line(" flames/modules.list");
    line(" flames/modules/virtio_ring.ko");
}

#[test]
fn an_agent_that_could_not_run_alone_is_refused() {
    let build = |agent: &Path| Initramfs { agent, modules: &[], packing: Packing::Plain }.build();
    let own = std::env::current_exe().unwrap();
    assert!(build(&own).unwrap_err().message.contains("dynamically linked"));
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    assert_eq!(build(&script).unwrap_err().kind, ImageErrorKind::Unsupported);
}

fn blobs() -> Arc<dyn BlobStore> {
    Arc::new(MemoryBlobStore::new(Arc::new(flames_clock::SystemClock::new())))
}

#[tokio::test]
async fn an_image_goes_through_the_store_to_a_host_and_is_the_same_there() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.tar");
    fs::write(&source, Tar::new().file("a", &[3; 100_000]).done()).unwrap();
    let converter = Converter::with_program(
        env!("CARGO_BIN_EXE_flames-image-convert"),
        [],
        folder.path().join("staging"),
        Bounds::default(),
    );
    let conversion = converter.convert(&ConversionRequest::new(&source), &mut |_| {}).await.unwrap();
    let blobs = blobs();
    let store = ImageStore::new(Arc::clone(&blobs));
    let (digest, manifest) = store.put_conversion(&conversion, "tar: source.tar").await.unwrap();
    assert_eq!(store.put_conversion(&conversion, "tar: source.tar").await.unwrap().0, digest);
    assert_eq!(store.manifest(&digest).await.unwrap(), manifest);
    drop(conversion);

    let local = Arc::new(LocalImages::open(Arc::clone(&blobs), folder.path().join("local")).unwrap());
    let fetches = (0..8).map(|_| {
        let (local, rootfs) = (Arc::clone(&local), manifest.rootfs.clone());
        tokio::spawn(async move { local.fetch(&rootfs).await })
    });
    let paths: Vec<_> =
        futures::future::join_all(fetches).await.into_iter().map(|path| path.unwrap().unwrap()).collect();
    assert!(paths.windows(2).all(|pair| pair[0] == pair[1]));
    let bytes = fs::read(&paths[0]).unwrap();
    assert_eq!(common::hex(&bytes), manifest.rootfs.digest.hex());
    assert!(fs::metadata(&paths[0]).unwrap().blocks() * 512 < bytes.len() as u64);
    // What is local needs no store.
    store.delete_artefact(&manifest.rootfs).await.unwrap();
    local.fetch(&manifest.rootfs).await.unwrap();
    local.remove(&manifest.rootfs).await.unwrap();
    assert_eq!(local.fetch(&manifest.rootfs).await.unwrap_err().kind(), ErrorKind::NotFound);
    store.delete_manifest(&digest).await.unwrap();
    assert_eq!(store.manifest(&digest).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_sweep_takes_what_is_not_needed_and_was_not_asked_for_lately() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = blobs();
    let local = LocalImages::open(Arc::clone(&blobs), folder.path()).unwrap();
    let store = ImageStore::new(Arc::clone(&blobs));
    let mut made = Vec::new();
    for byte in 0..4_u8 {
        let artefact = store.put_bytes(ArtefactKind::Kernel, vec![byte; 1_000].into()).await.unwrap();
        made.push((local.fetch(&artefact).await.unwrap(), artefact));
    }
    let [(needed, needed_by), (swept, of_swept), (young, of_young), (stored, _)] = &made[..] else {
        panic!()
    };
    fs::write(folder.path().join("not-ours"), "left alone").unwrap();
    let back = |path: &Path, hours: u64| {
        let at = std::time::SystemTime::now() - Duration::from_secs(hours * 3_600);
        fs::File::open(path).unwrap().set_modified(at).unwrap();
    };
    for (path, _) in &made {
        back(path, 2);
    }
    for artefact in [of_swept, of_young] {
        store.delete_artefact(artefact).await.unwrap();
    }
    local.fetch(of_young).await.unwrap();
    let (grace, kept) = (Duration::from_secs(600), Duration::from_secs(24 * 3_600));
    let needs = [needed_by.clone()];
    assert_eq!(local.sweep(&needs, grace, kept).await.unwrap(), 1_000);
    assert!(needed.exists() && young.exists() && stored.exists() && !swept.exists());
    back(stored, 25);
    back(needed, 25);
    assert_eq!(local.sweep(&needs, grace, kept).await.unwrap(), 1_000);
    assert!(needed.exists() && !stored.exists(), "kept for a day, for the next VM");
    assert!(folder.path().join("not-ours").exists());
}

#[tokio::test]
async fn bytes_that_are_not_the_artefact_never_get_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = blobs();
    let local = LocalImages::open(Arc::clone(&blobs), folder.path()).unwrap();
    let store = ImageStore::new(Arc::clone(&blobs));
    let sound = store.put_bytes(ArtefactKind::Initramfs, vec![7; 10_000].into()).await.unwrap();
    let path = local.fetch(&sound).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), vec![7; 10_000]);
    local.remove(&sound).await.unwrap();

    let other = zstd::bulk::compress(&vec![0; 50_000_000], 3).unwrap();
    let cases: [(&[u8], Encoding); 5] = [
        (&[8; 10_000], Encoding::Plain),
        (&[7; 9_999], Encoding::Plain),
        (&[7; 10_001], Encoding::Plain),
        (&other, Encoding::Zstd),
        (b"not zstd", Encoding::Zstd),
    ];
    for (bytes, encoding) in cases {
        let artefact = Artefact { encoding, ..sound.clone() };
        let key = artefact.key().unwrap();
        blobs.put_bytes(&key, bytes.to_vec().into(), PutOptions::default()).await.unwrap();
        let error = local.fetch(&artefact).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_fetch_that_was_interrupted_leaves_nothing_after_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".fetch-abc"), "half").unwrap();
    LocalImages::open(blobs(), folder.path()).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_kernel_that_is_none_is_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    fs::write(&path, "#!/bin/sh\n").unwrap();
    let error = ImageStore::new(blobs()).put_file(ArtefactKind::Kernel, &path).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, Some("NOT_A_KERNEL")));
    assert!(error.user_message().unwrap().contains("a script"));
}

#[test]
fn an_archive_of_every_kind_of_entry_is_read_by_cpio() {
    if !have("cpio") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut archive = CpioWriter::new(Vec::new());
    archive.directory("d", 0o750).unwrap();
    archive.file("d/f", 0o640, b"odd length").unwrap();
    archive.symlink("l", "d/f").unwrap();
    let path = folder.path().join("a.cpio");
    fs::write(&path, archive.finish().unwrap()).unwrap();
    let status = Command::new("cpio")
        .args(["-i", "--quiet"])
        .current_dir(folder.path())
        .stdin(fs::File::open(&path).unwrap())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(fs::read_to_string(folder.path().join("l")).unwrap(), "odd length");
    assert_eq!(fs::metadata(folder.path().join("d/f")).unwrap().mode() & 0o7777, 0o640);
}
