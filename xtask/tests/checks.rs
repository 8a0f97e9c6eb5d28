//! The checks as commands, on small workspaces made for them: a check that cannot fail proves nothing.

#![allow(clippy::unwrap_used, reason = "a test file: a panic is how it fails")]

use std::path::Path;
use std::process::{Command, Output};

/// Writes a workspace of empty packages, each with the lines of its `[dependencies]` and after.
fn workspace_with(packages: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &Path, text: &str| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(&folder.path().join("Cargo.toml"), "[workspace]\nresolver = \"3\"\nmembers = [\"crates/*\"]\n");
    for (name, rest) in packages {
        let package = folder.path().join("crates").join(name);
        let manifest =
            format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n{rest}\n");
        write(&package.join("Cargo.toml"), &manifest);
        write(&package.join("src/lib.rs"), "");
    }
    folder
}

fn xtask(check: &str, workspace: &Path) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args([check, "--manifest-path"])
        .arg(workspace.join("Cargo.toml"))
        .env("CARGO_NET_OFFLINE", "true")
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, text)
}

#[test]
fn layers_refuses_a_workspace_with_a_forbidden_import() {
    let workspace = workspace_with(&[
        ("flames-model", "[dependencies]\nflames-records = { path = \"../flames-records\" }"),
        ("flames-records", ""),
    ]);
    let (output, text) = xtask("layers", workspace.path());
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("flames-model -> flames-records"), "{text}");
    assert!(text.contains("flames-model may import clock and provider/error alone"), "{text}");
}

#[test]
fn layers_refuses_a_forbidden_import_that_is_a_build_dependency_or_behind_a_feature() {
    let workspace = workspace_with(&[
        ("flames-service", "[build-dependencies]\nflames-wire = { path = \"../flames-wire\" }"),
        (
            "flames-wire",
            "[features]\nstore = [\"dep:flames-state\"]\n[dependencies]\nflames-state = { path = \"../flames-state\", optional = true }",
        ),
        ("flames-state", ""),
    ]);
    let (output, text) = xtask("layers", workspace.path());
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("flames-service -> flames-wire (build dependency)"), "{text}");
    assert!(text.contains("flames-wire -> flames-state (normal dependency)"), "{text}");
}

#[test]
fn layers_accepts_a_renamed_import_that_is_allowed_and_free_dev_dependencies() {
    let workspace = workspace_with(&[
        (
            "flames-records",
            "[dependencies]\nstore = { package = \"flames-state\", path = \"../flames-state\" }\n\
             [dev-dependencies]\nflames-state-memory = { path = \"../flames-state-memory\" }",
        ),
        ("flames-state", ""),
        ("flames-state-memory", "[dependencies]\nflames-state = { path = \"../flames-state\" }"),
    ]);
    let (output, text) = xtask("layers", workspace.path());
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("3 crates, 2 imports between them, 0 forbidden"), "{text}");
}

#[test]
fn layers_refuses_a_forbidden_import_under_another_name() {
    let workspace = workspace_with(&[
        (
            "flames-scheduler",
            "[dependencies]\nharmless = { package = \"flames-service\", path = \"../flames-service\" }",
        ),
        ("flames-service", ""),
    ]);
    let (output, text) = xtask("layers", workspace.path());
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("flames-scheduler -> flames-service"), "{text}");
}

#[test]
fn a_workspace_that_cannot_be_read_is_an_error_and_not_a_verdict() {
    let folder = tempfile::tempdir().unwrap();
    for check in ["layers", "default-tree"] {
        let (output, text) = xtask(check, folder.path());
        assert_eq!(output.status.code(), Some(2), "{text}");
    }
}

#[test]
fn default_tree_refuses_a_cloud_sdk_that_comes_through_another_crate() {
    let workspace = workspace_with(&[
        ("flames", "[dependencies]\nflames-blob-object-store = { path = \"../flames-blob-object-store\" }"),
        ("flames-blob-object-store", "[dependencies]\naws-sdk-s3 = { path = \"../aws-sdk-s3\" }"),
        ("aws-sdk-s3", ""),
    ]);
    let (output, text) = xtask("default-tree", workspace.path());
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("in the default build: aws-sdk-s3"), "{text}");
}

#[test]
fn default_tree_sees_features_as_they_are_resolved_and_not_as_they_are_declared() {
    let object_store = (
        "object_store",
        "[features]\ndefault = [\"fs\"]\nfs = []\naws-base = [\"cloud-base\"]\ncloud-base = []",
    );
    let dependency = "object_store = { path = \"../object_store\" }";
    let lean = workspace_with(&[
        (
            "flames",
            "[features]\ns3 = [\"object_store/aws-base\"]\n[dependencies]\nobject_store = { path = \"../object_store\" }",
        ),
        object_store,
    ]);
    let (output, text) = xtask("default-tree", lean.path());
    assert_eq!(output.status.code(), Some(0), "{text}");

    let fat = workspace_with(&[
        (
            "flames",
            &format!(
                "[features]\ndefault = [\"s3\"]\ns3 = [\"object_store/aws-base\"]\n[dependencies]\n{dependency}"
            ),
        ),
        object_store,
    ]);
    let (output, text) = xtask("default-tree", fat.path());
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("its feature `aws-base` brings a cloud client"), "{text}");
}

#[test]
fn default_tree_ignores_dev_dependencies_and_what_other_members_use() {
    let workspace = workspace_with(&[
        ("flames", "[dev-dependencies]\nopenssl = { path = \"../openssl\" }"),
        ("openssl", ""),
        ("flames-cache-redis", "[dependencies]\nredis = { path = \"../redis\" }"),
        ("redis", ""),
    ]);
    let (output, text) = xtask("default-tree", workspace.path());
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("1 packages behind `flames`, 0 that must not be there"), "{text}");
}
