//! `cargo xtask layers`: the walls of the house, checked on what the manifests declare.

mod rules;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::Verdict;
use crate::workspace;
use rules::{Graph, Import, ImportKind, forbidden_edges};

/// Prints every forbidden import of the workspace at `manifest_path` with its rule.
///
/// # Errors
/// When `cargo metadata` cannot read that workspace.
pub(crate) fn check(manifest_path: &Path) -> Result<Verdict> {
    let graph = read_graph(manifest_path)?;
    let violations = forbidden_edges(&graph);
    for violation in &violations {
        println!("{violation}");
    }
    let (crates, imports) = (graph.packages.len(), graph.imports.len());
    println!("layers: {crates} crates, {imports} imports between them, {} forbidden", violations.len());
    Ok(if violations.is_empty() { Verdict::Passed } else { Verdict::Refused })
}

/// The part of `cargo metadata`'s answer (format version 1) that the rules need.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

/// As declared: optional and platform-specific dependencies are imports too, whatever this build has switched on.
#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// Absent for a normal dependency.
    kind: Option<String>,
    /// Present when the dependency is a folder, as all of ours are.
    path: Option<String>,
}

fn read_graph(manifest_path: &Path) -> Result<Graph> {
    let output = workspace::cargo()
        .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
        .arg(manifest_path)
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata =
        serde_json::from_slice(&output.stdout).context("cannot read the answer of cargo metadata")?;
    Ok(graph_of(metadata))
}

fn graph_of(metadata: Metadata) -> Graph {
    let packages: Vec<String> = metadata.packages.iter().map(|package| package.name.clone()).collect();
    let mut imports = Vec::new();
    for package in metadata.packages {
        for dependency in package.dependencies {
            let kind = match dependency.kind.as_deref() {
                None => ImportKind::Normal,
                Some("build") => ImportKind::Build,
                Some(_) => continue,
            };
            if dependency.path.is_some() && packages.contains(&dependency.name) {
                imports.push(Import { from: package.name.clone(), to: dependency.name, kind });
            }
        }
    }
    Graph { packages, imports }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dev_dependencies_are_free_and_build_and_optional_ones_are_not() {
        let metadata = r#"{"packages": [
            {"name": "flames-model", "dependencies": [
                {"name": "flames-wire", "kind": null, "path": "/w/wire", "optional": true},
                {"name": "flames-client", "kind": "build", "path": "/w/client"},
                {"name": "flames-service", "kind": "dev", "path": "/w/service"},
                {"name": "serde", "kind": null}]},
            {"name": "flames-wire", "dependencies": []},
            {"name": "flames-client", "dependencies": []},
            {"name": "flames-service", "dependencies": []}]}"#;
        let graph = graph_of(serde_json::from_str(metadata).unwrap());
        let import = |to: &str, kind| Import { from: "flames-model".to_owned(), to: to.to_owned(), kind };
        assert_eq!(
            graph.imports,
            [import("flames-wire", ImportKind::Normal), import("flames-client", ImportKind::Build)]
        );
    }

    #[test]
    fn this_workspace_is_read_whole() {
        let graph = read_graph(&workspace::root().join("Cargo.toml")).unwrap();
        for package in ["flames", "xtask", "flames-model", "flames-state-sqlite"] {
            assert!(graph.packages.iter().any(|known| known == package), "{package} is missing");
        }
        assert!(
            graph.imports.iter().any(|import| import.from == "flames-records" && import.to == "flames-state")
        );
    }
}
