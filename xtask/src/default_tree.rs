//! `cargo xtask default-tree`: what a plain `cargo build -p flames` must not carry.
//!
//! Optional back-ends cost tens of seconds of build time each and enlarge what has to be trusted, so each stands
//! behind a cargo feature of the `flames` binary that is off by default.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::Verdict;
use crate::workspace;

/// Prints every package in the default tree of `flames` that must not be there.
///
/// # Errors
/// When `cargo tree` cannot resolve the workspace at `manifest_path`, or it has no package `flames`.
pub(crate) fn check(manifest_path: &Path) -> Result<Verdict> {
    let output = workspace::cargo()
        .args(["tree", "--package", "flames", "--edges", "normal", "--prefix", "none", "--format", "{p}|{f}"])
        .arg("--manifest-path")
        .arg(manifest_path)
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo tree: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let tree = String::from_utf8(output.stdout).context("cargo tree printed something that is not UTF-8")?;
    let packages = resolved_packages(&tree);
    let findings = findings(&packages);
    for finding in &findings {
        println!("{finding}");
    }
    println!(
        "default-tree: {} packages behind `flames`, {} that must not be there",
        packages.len(),
        findings.len()
    );
    Ok(if findings.is_empty() { Verdict::Passed } else { Verdict::Refused })
}

/// One package of the resolved tree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    features: Vec<String>,
}

/// Each distinct (package, features) of a tree printed as `name vX.Y.Z (source)|feature,feature (*)`.
fn resolved_packages(tree: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = tree
        .lines()
        .filter_map(|line| {
            let (package, features) = line.trim_end_matches(" (*)").split_once('|')?;
            let features = features.split(',').map(str::trim).filter(|feature| !feature.is_empty());
            Some(Package {
                name: package.split_whitespace().next()?.to_owned(),
                features: features.map(str::to_owned).collect(),
            })
        })
        .collect();
    packages.sort();
    packages.dedup();
    packages
}

struct Finding {
    package: String,
    reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { package, reason } = self;
        write!(
            formatter,
            "in the default build: {package}\n     rule: {reason}; put it behind a feature of `flames` that is off \
             by default (cargo tree -p flames -i {package})"
        )
    }
}

/// What a name in the tree is matched against.
enum Pattern {
    /// This very package.
    Name(&'static str),
    /// Every package whose name begins so.
    Prefix(&'static str),
}

const BANNED: [(Pattern, &str); 15] = [
    (Pattern::Prefix("aws-"), "no cloud SDK, and ring is the one TLS provider"),
    (Pattern::Prefix("google-"), "no cloud SDK"),
    (Pattern::Prefix("gcloud-"), "no cloud SDK"),
    (Pattern::Prefix("azure"), "no cloud SDK"),
    (Pattern::Prefix("rusoto"), "no cloud SDK"),
    (Pattern::Prefix("cedar-"), "the policy engine is optional"),
    (Pattern::Name("redis"), "the Redis cache is optional"),
    (Pattern::Name("fred"), "the Redis cache is optional"),
    (Pattern::Name("async-nats"), "the NATS queue is optional"),
    (Pattern::Name("nats"), "the NATS queue is optional"),
    // `openssl-probe`, a search for certificate files, links nothing and is allowed.
    (Pattern::Name("openssl"), "rustls is the one TLS library"),
    (Pattern::Name("openssl-sys"), "rustls is the one TLS library"),
    (Pattern::Name("openssl-src"), "rustls is the one TLS library"),
    (Pattern::Name("native-tls"), "rustls is the one TLS library"),
    (Pattern::Name("tokio-native-tls"), "rustls is the one TLS library"),
];

/// The families of `object_store`'s features (`aws`, `aws-base`, …) that bring a cloud client or the HTTP stack for one.
const OBJECT_STORE_CLOUD: [&str; 6] = ["aws", "azure", "gcp", "http", "cloud", "reqwest"];

fn findings(packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        let banned = BANNED.iter().find(|(pattern, _)| match pattern {
            Pattern::Name(name) => package.name == *name,
            Pattern::Prefix(prefix) => package.name.starts_with(prefix),
        });
        if let Some((_, reason)) = banned {
            findings.push(Finding { package: package.name.clone(), reason: (*reason).to_owned() });
        }
        if package.name == "object_store" {
            let is_cloud = |feature: &&String| {
                feature.split('-').next().is_some_and(|family| OBJECT_STORE_CLOUD.contains(&family))
            };
            for feature in package.features.iter().filter(is_cloud) {
                let reason = format!("its feature `{feature}` brings a cloud client");
                findings.push(Finding { package: package.name.clone(), reason });
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_found(tree: &str) -> Vec<String> {
        findings(&resolved_packages(tree)).into_iter().map(|finding| finding.package).collect()
    }

    #[test]
    fn a_lean_tree_is_accepted() {
        let tree = "flames v0.1.0 (/w/crates/flames)|default\ntokio v1.50.0|fs,net,rt\nobject_store v0.14.0|fs\n\
                    openssl-probe v0.2.0|\nring v0.17.14|alloc (*)\n";
        assert_eq!(names_found(tree), [] as [&str; 0]);
        assert_eq!(resolved_packages(tree).len(), 5);
    }

    #[test]
    fn every_kind_of_unwanted_package_is_found() {
        for name in [
            "aws-lc-rs",
            "aws-lc-sys",
            "aws-sdk-s3",
            "google-cloud-auth",
            "azure_core",
            "cedar-policy",
            "redis",
            "async-nats",
            "openssl",
            "openssl-sys",
            "native-tls",
        ] {
            assert_eq!(names_found(&format!("flames v0.1.0|\n{name} v1.0.0|default (*)\n")), [name]);
        }
    }

    #[test]
    fn a_cloud_feature_of_object_store_is_found_by_its_resolved_features() {
        assert_eq!(names_found("object_store v0.14.0|fs,tokio\n"), [] as [&str; 0]);
        assert_eq!(names_found("object_store v0.14.0|aws-base,fs\n"), ["object_store"]);
        assert_eq!(names_found("object_store v0.14.0|fs,reqwest (*)\n"), ["object_store"]);
    }
}
