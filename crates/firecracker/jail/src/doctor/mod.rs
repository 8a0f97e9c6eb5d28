//! Whether this host can run jailed microVMs, and how safely: what `flames controller doctor` shows.
//!
//! Each check is explained in `docs/guides/production-host.md`, under its name. Nothing is changed.

mod kernel;
mod places;
mod programs;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flames_clock::Clock;
use flames_error::Result;

use crate::config::JailConfig;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It could not be found out on this host.
    Unknown,
    /// MicroVMs run, and something is less safe or slower than it could be.
    Warning,
    /// No microVM can run, or none should.
    Fatal,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Fatal => "fatal",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name, which is that of its section in the guide.
    pub name: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do; none when nothing is to be done.
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, found: found.into(), advice: None }
    }

    fn unknown(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Unknown, found: found.into(), advice: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Warning, found: found.into(), advice: Some(advice.into()) }
    }

    fn fatal(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { outcome: Outcome::Fatal, ..Self::warning(name, found, advice) }
    }
}

/// Says whether a version is supported: from what `firecracker --version` wrote first, the version as it is to be shown, or a sentence on
/// what to do.
pub type Supports = dyn Fn(&str) -> Result<String, String> + Send + Sync;

/// What is looked at.
#[derive(Clone)]
pub struct DoctorConfig {
    /// The jails' configuration.
    pub jail: JailConfig,
    /// Where images and disks are; not looked at when there is none.
    pub images: Option<PathBuf>,
    /// The least space that should be free below the jails.
    pub free_bytes: u64,
    /// How long one program may take to tell its version.
    pub deadline: Duration,
    /// Which versions of Firecracker are supported.
    pub supports: Arc<Supports>,
}

impl fmt::Debug for DoctorConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DoctorConfig")
            .field("jail", &self.jail)
            .field("images", &self.images)
            .finish_non_exhaustive()
    }
}

impl DoctorConfig {
    /// 10 GiB to be free; 5 s for a program.
    pub fn new(jail: JailConfig, supports: Arc<Supports>) -> Self {
        Self {
            jail,
            images: None,
            free_bytes: 10 * 1024 * 1024 * 1024,
            deadline: Duration::from_secs(5),
            supports,
        }
    }
}

/// Where the host's files are read: `/`, or a folder that a test has made.
#[derive(Debug, Clone)]
struct Sight(PathBuf);

impl Sight {
    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// None when it is not there, or cannot be read.
    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.path(path)).ok().map(|text| text.trim().to_owned())
    }
}

/// Every check, in the order in which they are best read. Starts `firecracker`, `jailer` and `nft` to ask for their versions.
pub async fn checks(config: &DoctorConfig, clock: &dyn Clock) -> Vec<Check> {
    let sight = Sight(Path::new("/").to_owned());
    let mut found = vec![places::root()];
    found.push(places::kvm(&sight));
    found.extend(programs::firecracker(config, clock).await);
    found.push(programs::nftables(config, clock).await);
    found.push(places::tun(&sight));
    found.push(kernel::version(&sight));
    found.push(kernel::control_groups(config.jail.allow_without_limits));
    found.push(places::users(&sight, config.jail.users));
    found.extend(places::jail_base(config));
    found.push(places::safe_paths(config));
    found.push(places::open_files(config.jail.users));
    found.extend(kernel::hardening(&sight));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_explains_every_check() {
        let guide = include_str!("../../../../../docs/guides/production-host.md");
        for name in NAMES {
            assert!(guide.lines().any(|line| line == format!("### `{name}`")), "{name} has no section");
        }
    }

    #[tokio::test]
    async fn every_check_is_made_whatever_the_host_lacks() {
        let mut jail = JailConfig::new("/nowhere/jails", "clu");
        jail.firecracker = "/nowhere/firecracker".into();
        jail.jailer = "/nowhere/jailer".into();
        let config = DoctorConfig::new(jail, Arc::new(|version| Ok(version.to_owned())));
        let found = checks(&config, &flames_clock::SystemClock::new()).await;
        let names: Vec<&str> = found.iter().map(|check| check.name).collect();
        assert_eq!(names, NAMES);
        for check in &found {
            let needs_advice = matches!(check.outcome, Outcome::Warning | Outcome::Fatal);
            assert!(!check.found.is_empty() && check.advice.is_some() == needs_advice, "{check:?}");
        }
        let firecracker = found.iter().find(|check| check.name == "firecracker").unwrap();
        assert_eq!(firecracker.outcome, Outcome::Fatal);
    }

    const NAMES: [&str; 20] = [
        "root",
        "kvm",
        "firecracker",
        "jailer",
        "versions",
        "nftables",
        "tun",
        "kernel",
        "cgroups",
        "users",
        "space",
        "file-system",
        "paths",
        "open-files",
        "smt",
        "ksm",
        "swap",
        "microcode",
        "vulnerabilities",
        "favordynmods",
    ];
}
