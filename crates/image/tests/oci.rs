//! Images of several layers: whiteouts, links and owners over layers, digests, the configuration, and the three forms they come in.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{Header, Made, Mounted, Tar, check, gzip, have, hex, make, make_from_bytes};
use flames_image::{ConversionRequest, ImageError, ImageErrorKind, Limits};
use serde_json::{Value, json};

/// The files of an image layout by name.
struct Layout {
    files: Vec<(String, Vec<u8>)>,
    manifests: Vec<Value>,
}

impl Layout {
    fn new() -> Self {
        Self {
            files: vec![("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())],
            manifests: vec![],
        }
    }

    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = hex(bytes);
        self.files.push((format!("blobs/sha256/{digest}"), bytes.to_vec()));
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    }

    /// Adds an image of these layers (packed, unpacked).
    fn image(&mut self, name: &str, architecture: &str, layers: &[(Vec<u8>, Vec<u8>)], run: Value) {
        let diff_ids: Vec<String> = layers.iter().map(|(_, tar)| format!("sha256:{}", hex(tar))).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": run,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let layers: Vec<Value> = layers
            .iter()
            .map(|(packed, _)| self.blob("application/vnd.oci.image.layer.v1.tar+gzip", packed))
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
        let mut descriptor = self.blob("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        self.manifests.push(descriptor);
    }

    fn finished(mut self) -> Vec<(String, Vec<u8>)> {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        self.files.push(("index.json".into(), index.to_string().into_bytes()));
        self.files
    }
}

fn packed(tar: Tar) -> (Vec<u8>, Vec<u8>) {
    let tar = tar.done();
    (gzip(&tar), tar)
}

fn folder_of(files: &[(String, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

/// As an archive. Entries of files with long names need no PAX: a blob's name is 77 bytes.
fn archive_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let start = Tar::new().directory("blobs/").directory("blobs/sha256/");
    files.iter().fold(start, |tar, (name, bytes)| tar.file(name, bytes)).done()
}

fn request(folder: &Path) -> ConversionRequest {
    ConversionRequest { architecture: "amd64".into(), ..ConversionRequest::new(folder) }
}

fn amd64(request: &mut ConversionRequest) {
    request.architecture = "amd64".into();
}

fn failure(files: &[(String, Vec<u8>)], change: impl FnOnce(&mut ConversionRequest)) -> ImageError {
    let folder = folder_of(files);
    let mut request = request(folder.path());
    change(&mut request);
    make(&request).err().expect("this image must be refused")
}

fn one_layer() -> Layout {
    let mut layout = Layout::new();
    layout.image("app:1", "amd64", &[packed(Tar::new().file("f", b"x"))], json!({}));
    layout
}

/// Three layers that take away, replace and link what lies below them.
fn layered() -> Layout {
    let base = Tar::new()
        .directory("usr/bin")
        .symlink("bin", "usr/bin")
        .file("usr/bin/tool", b"old tool")
        .file("gone", b"x")
        .file("cache/a", b"x")
        .file("cache/sub/b", b"x")
        .file("replaced/by-a-file", b"x")
        .file("linked", b"linked over layers");
    let middle = Tar::new()
        .file(".wh.gone", b"")
        .file("cache/fresh", b"fresh")
        .file("cache/.wh..wh..opq", b"")
        .file("cache/sub/also-fresh", b"fresh")
        .file("replaced", b"now a file")
        .file("bin/tool", b"new tool")
        .file(".wh.never-there", b"")
        .file(".wh..wh.plnk", b"");
    let top = Tar::new()
        .hard_link("second-name", "linked")
        .entry(&Header { path: b"owned", owner: (1000, 1001), mode: 0o600, ..Header::default() }, b"mine");
    let run = json!({
        "User": "1000:1001", "Env": ["PATH=/usr/bin", "A=b=c"], "Entrypoint": ["/usr/bin/tool"], "Cmd": null,
        "WorkingDir": "/srv", "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGINT", "Labels": {"k": "v"},
    });
    let mut layout = Layout::new();
    let zstd = middle.done();
    let middle = (zstd::bulk::compress(&zstd, 3).unwrap(), zstd);
    layout.image("app:1", "amd64", &[packed(base), middle, packed(top)], run);
    layout
}

#[test]
fn layers_are_applied_with_whiteouts_opaque_folders_links_and_owners() {
    let folder = folder_of(&layered().finished());
    let made = make(&request(folder.path())).unwrap();
    let config = &made.result.config;
    assert_eq!(config.entrypoint, ["/usr/bin/tool"]);
    assert!(config.cmd.is_empty());
    assert_eq!(config.env, ["PATH=/usr/bin", "A=b=c"]);
    assert_eq!((config.working_dir.as_deref(), config.user.as_deref()), (Some("/srv"), Some("1000:1001")));
    assert_eq!(
        (config.exposed_ports.as_slice(), config.stop_signal.as_deref()),
        (["80/tcp".into()].as_slice(), Some("SIGINT"))
    );
    assert_eq!(config.labels["k"], "v");
    if have("mke2fs") {
        check(&made.image);
    }
    if !have("root") {
        return;
    }
    let mounted = Mounted::new(&made.image, "ro,loop");
    for gone in [
        "gone",
        "cache/a",
        "cache/sub/b",
        "replaced/by-a-file",
        ".wh.gone",
        ".wh..wh.plnk",
        "cache/.wh..wh..opq",
    ] {
        assert!(!mounted.has(gone), "{gone}");
    }
    assert_eq!(mounted.text("cache/fresh"), "fresh");
    assert_eq!(mounted.text("cache/sub/also-fresh"), "fresh");
    assert_eq!(mounted.text("replaced"), "now a file");
    assert_eq!(mounted.text("usr/bin/tool"), "new tool");
    assert_eq!(mounted.text("second-name"), "linked over layers");
    let linked = fs::metadata(mounted.path.join("linked")).unwrap();
    assert_eq!(linked.nlink(), 2);
    let owned = fs::metadata(mounted.path.join("owned")).unwrap();
    assert_eq!((owned.uid(), owned.gid(), owned.mode() & 0o7777), (1000, 1001, 0o600));
}

#[test]
fn a_layout_and_its_archive_give_the_same_bytes() {
    let files = layered().finished();
    let folder = folder_of(&files);
    let from_folder = make(&request(folder.path())).unwrap();
    let from_archive = make_from_bytes(&gzip(&archive_of(&files)), amd64).unwrap();
    assert_eq!(from_folder.result.source_kind, "oci-layout");
    assert_eq!(from_archive.result.source_kind, "image-archive");
    assert_eq!(from_folder.result.digest, from_archive.result.digest);
    assert_eq!(from_folder.result.config, from_archive.result.config);
}

#[test]
fn what_docker_save_writes_is_read_with_its_shared_layers() {
    let (_, layer) = packed(Tar::new().file("f", b"from docker"));
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer)), format!("sha256:{}", hex(&layer))]},
    })
    .to_string();
    let (one, two) = ("1".repeat(64), "2".repeat(64));
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let manifest = json!([{
        "Config": config_name, "RepoTags": ["app:latest"],
        "Layers": [format!("{one}/layer.tar"), format!("{two}/layer.tar")],
    }]);
    let archive = |config_name: &str| {
        Tar::new()
            .directory(&format!("{one}/"))
            .file(&format!("{one}/VERSION"), b"1.0")
            .file(&format!("{one}/layer.tar"), &layer)
            .symlink(&format!("{two}/layer.tar"), &format!("../{one}/layer.tar"))
            .file(config_name, config.as_bytes())
            .file("manifest.json", manifest.to_string().as_bytes())
            .done()
    };
    let made = make_from_bytes(&archive(&config_name), amd64).unwrap();
    assert_eq!(made.result.config.cmd, ["sh"]);
    let error = make_from_bytes(&archive(&config_name), |request| {
        amd64(request);
        request.reference = Some("other:latest".into());
    });
    assert_eq!(error.err().unwrap().kind, ImageErrorKind::NotFound);
}

#[test]
fn bytes_that_do_not_have_their_digest_are_refused_wherever_they_are() {
    let files = one_layer().finished();
    let blobs: Vec<usize> = files
        .iter()
        .enumerate()
        .filter(|(_, (name, _))| name.starts_with("blobs/"))
        .map(|(index, _)| index)
        .collect();
    assert_eq!(blobs.len(), 3);
    for index in blobs {
        let mut damaged: Vec<(String, Vec<u8>)> = files.clone();
        // A space behind: JSON and tar both read on as if nothing were.
        damaged[index].1.push(b' ');
        let error = failure(&damaged, |_| {});
        assert!(
            matches!(error.kind, ImageErrorKind::DigestMismatch | ImageErrorKind::Malformed),
            "{}: {error}",
            files[index].0
        );
    }
}

#[test]
fn a_layer_whose_unpacked_bytes_are_others_is_refused() {
    let (layer, _) = packed(Tar::new().file("f", b"x"));
    let (_, other) = packed(Tar::new().file("f", b"y"));
    let mut layout = Layout::new();
    layout.image("app:1", "amd64", &[(layer, other)], json!({}));
    assert_eq!(failure(&layout.finished(), |_| {}).kind, ImageErrorKind::DigestMismatch);
}

#[test]
fn a_missing_blob_is_named() {
    let mut files = one_layer().finished();
    let index = files.iter().position(|(name, _)| name.starts_with("blobs/")).unwrap();
    let (name, _) = files.remove(index);
    let error = failure(&files, |_| {});
    assert_eq!((error.kind, error.entry), (ImageErrorKind::NotFound, Some(name)));
}

#[test]
fn the_image_is_chosen_by_name_and_processor() {
    let mut layout = Layout::new();
    for (name, architecture, text) in [("one", "amd64", b"1"), ("two", "amd64", b"2"), ("two", "arm64", b"3")]
    {
        layout.image(
            name,
            architecture,
            &[packed(Tar::new().file("f", text))],
            json!({"Cmd": [architecture]}),
        );
    }
    let files = layout.finished();
    assert!(failure(&files, |_| {}).message.contains("one, two"));
    assert_eq!(
        failure(&files, |request| request.reference = Some("three".into())).kind,
        ImageErrorKind::NotFound
    );
    let folder = folder_of(&files);
    let made: Made = make(&ConversionRequest {
        reference: Some("two".into()),
        architecture: "arm64".into(),
        ..ConversionRequest::new(folder.path())
    })
    .unwrap();
    assert_eq!(made.result.config.cmd, ["arm64"]);
    let mut layout = Layout::new();
    layout.image("app", "s390x", &[], json!({}));
    assert!(failure(&layout.finished(), |_| {}).message.contains("linux/amd64"));
}

#[test]
fn too_many_layers_and_hostile_names_are_refused() {
    let layers: Vec<_> = (0..4).map(|n| packed(Tar::new().file(&format!("f{n}"), b""))).collect();
    let mut layout = Layout::new();
    layout.image("app", "amd64", &layers, json!({}));
    let limits = Limits { layers: 3, ..Limits::default() };
    assert_eq!(failure(&layout.finished(), |request| request.limits = limits).kind, ImageErrorKind::TooLarge);

    for whiteout in [".wh.", ".wh..", ".wh...", "../.wh.x", "/.wh.x"] {
        let mut layout = Layout::new();
        layout.image("app", "amd64", &[packed(Tar::new().file(whiteout, b""))], json!({}));
        let error = failure(&layout.finished(), |_| {});
        assert_eq!((error.kind, error.entry.as_deref()), (ImageErrorKind::Hostile, Some(whiteout)));
    }
    let mut layout = Layout::new();
    layout.image("app", "amd64", &[], json!({"Env": ["no value"]}));
    assert_eq!(failure(&layout.finished(), |_| {}).kind, ImageErrorKind::Malformed);
}

#[test]
fn an_archive_with_members_that_lead_out_is_refused() {
    let files = one_layer().finished();
    let base = files.iter().fold(Tar::new(), |tar, (name, bytes)| tar.file(name, bytes));
    let digest = "a".repeat(64);
    let cases = [
        base.clone().file("blobs/sha256/../../../evil", b"x"),
        base.clone().file("/evil", b"x"),
        base.clone().symlink(&format!("blobs/sha256/{digest}"), "/etc/passwd"),
        base.entry(&Header { path: b"index.json", kind: b'3', device: (1, 3), ..Header::default() }, b""),
    ];
    for tar in cases {
        assert_eq!(make_from_bytes(&tar.done(), amd64).err().unwrap().kind, ImageErrorKind::Hostile);
    }
    // In a folder, a blob that is a link to elsewhere is not followed.
    let folder = folder_of(&files);
    let blob = files.iter().find(|(name, _)| name.starts_with("blobs/")).unwrap();
    fs::remove_file(folder.path().join(&blob.0)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join(&blob.0)).unwrap();
    assert_eq!(make(&request(folder.path())).err().unwrap().kind, ImageErrorKind::Hostile);
}
