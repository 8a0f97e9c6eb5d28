//! What all parts of one driver share.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flames_clock::{Clock, Random};
use flames_error::{Error, ErrorKind, Result};
use flames_firecracker_api::Version;
use flames_firecracker_jail::{DoctorConfig, Jails, Outcome, checks};
use flames_firecracker_network::Networks;
use flames_vmm_local::Exits;
use tokio::sync::OnceCell;

use crate::config::FirecrackerConfig;
use crate::spares::Spares;

/// The checks of a host without which no microVM can run; the others only warn.
const NEEDED: [&str; 9] =
    ["root", "kvm", "firecracker", "jailer", "versions", "kernel", "cgroups", "users", "file-system"];

/// The host's jails and networks, held for as long as anything works with them.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) jails: Jails,
    pub(crate) networks: Option<Networks>,
}

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) config: FirecrackerConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) spares: Spares,
    pub(crate) exits: Exits,
    version: OnceCell<Version>,
    host: OnceCell<Host>,
    is_closed: AtomicBool,
}

impl Context {
    pub(crate) fn new(config: FirecrackerConfig, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self {
            config,
            clock,
            random,
            spares: Spares::default(),
            exits: Exits::default(),
            version: OnceCell::new(),
            host: OnceCell::new(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// The driver is gone: what is still on its way comes to its end, and follows nothing from then on.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.spares.wake();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.config.folder
    }

    /// The host's jails and networks, opened at the first need.
    ///
    /// Errors: those of [`Jails::open`] and [`Networks::open`]; the next call tries again.
    pub(crate) async fn host(&self) -> Result<&Host> {
        let open = || async {
            let networks = match &self.config.network {
                Some(config) => Some(Networks::open(config.clone(), Arc::clone(&self.random)).await?),
                None => None,
            };
            let jails = Jails::open(self.config.jail.clone(), Arc::clone(&self.clock)).await?;
            Ok(Host { jails, networks })
        };
        self.host.get_or_try_init(open).await
    }

    /// Firecracker's version, when it works here. `NotSupported` with a sentence for an operator otherwise; looked for anew at the next
    /// call, since it may be installed meanwhile.
    pub(crate) async fn version(&self) -> Result<Version> {
        self.version.get_or_try_init(|| self.look_at_host()).await.copied()
    }

    async fn look_at_host(&self) -> Result<Version> {
        let mut doctor = DoctorConfig::new(self.config.jail.clone(), Arc::new(supports));
        doctor.deadline = self.config.deadlines.command;
        let found = checks(&doctor, &*self.clock).await;
        let problem = found
            .iter()
            .find(|check| check.outcome == Outcome::Fatal && NEEDED.contains(&check.name))
            .map(|check| match &check.advice {
                Some(advice) => format!("{}: {}. {advice}", check.name, check.found),
                None => format!("{}: {}.", check.name, check.found),
            });
        let versions = found.iter().find(|check| check.name == "versions");
        let version = versions.and_then(|check| version_in(&check.found));
        match (problem, version) {
            (None, Some(version)) => Ok(version),
            (problem, _) => {
                let sentence = problem.unwrap_or_else(|| {
                    "Firecracker does not tell its version: install a release.".to_owned()
                });
                Err(Error::new(ErrorKind::NotSupported, "vmm.capabilities", sentence.clone())
                    .with_user_message(sentence))
            }
        }
    }
}

/// The version in the last word of what a program says of itself.
fn version_in(text: &str) -> Option<Version> {
    let word = text.split_ascii_whitespace().last()?;
    word.strip_prefix('v').unwrap_or(word).parse().ok()
}

fn supports(text: &str) -> Result<String, String> {
    let Some(version) = version_in(text) else {
        return Err("It is no version of Firecracker: install a release.".to_owned());
    };
    version.refusal().map_or_else(|| Ok(version.to_string()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_as_the_programs_tell_it_and_an_old_one_refused() {
        assert_eq!(version_in("Firecracker v1.16.1"), version_in("1.16.1"));
        assert_eq!(supports("v1.16.1").unwrap(), "1.16.1");
        assert!(supports("v1.13.0").unwrap_err().contains("too old"));
        assert!(supports("something").is_err());
    }
}
