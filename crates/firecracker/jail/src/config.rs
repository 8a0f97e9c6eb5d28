//! What a host's jails have in common.

use std::path::{Path, PathBuf};
use std::time::Duration;

use flames_error::{Error, ErrorKind, Result};

use crate::name::{JailName, is_cluster};
use crate::slots::SlotRange;

const OPERATION: &str = "jail.config";

/// What a host's jails have in common.
#[derive(Debug, Clone)]
pub struct JailConfig {
    /// The folder below which all jails are. Disks and images that are on the same file system are linked into jails; those on another
    /// one are mounted. Devices must work on it: not mounted `nodev`, nor `noexec`.
    pub base: PathBuf,
    /// Whose jails these are. Another cluster's are never touched.
    pub cluster: String,
    /// The path of a statically linked Firecracker.
    pub firecracker: PathBuf,
    /// The path of the jailer of the same release.
    pub jailer: PathBuf,
    /// The users of the microVMs.
    pub users: SlotRange,
    /// The group, below the root of every hierarchy, that holds a group for each cluster. Not below a service's own group: systemd would
    /// end the microVMs with the service.
    pub parent_group: String,
    /// Whether microVMs run on a host that cannot limit them. Their limits are then set as far as the host can.
    pub allow_without_limits: bool,
    /// Whether a start may turn off Firecracker's system call filter. For development only.
    pub allow_without_seccomp: bool,
    /// The largest file that is copied into a jail when it can be neither linked nor mounted.
    pub largest_copy: u64,
    /// How long is waited for a killed process to be gone, and for its groups.
    pub kill_deadline: Duration,
}

impl JailConfig {
    /// Programs from `PATH`'s usual places, 4096 slots from user 2,000,000 on (beyond systemd's dynamic users, and beyond most ranges
    /// of `/etc/subuid`), limits required.
    pub fn new(base: impl Into<PathBuf>, cluster: impl Into<String>) -> Self {
        Self {
            base: base.into(),
            cluster: cluster.into(),
            firecracker: "/usr/local/bin/firecracker".into(),
            jailer: "/usr/local/bin/jailer".into(),
            users: SlotRange { first_user: 2_000_000, count: 4096 },
            parent_group: "flames".to_owned(),
            allow_without_limits: false,
            allow_without_seccomp: false,
            largest_copy: 128 * 1024 * 1024,
            kill_deadline: Duration::from_secs(10),
        }
    }

    /// Errors: `InvalidInput`, saying which value cannot be.
    pub fn validate(&self) -> Result<()> {
        if !is_cluster(&self.cluster) {
            let sentence = "A cluster's name is 1 to 64 letters, digits, `_` and `-`.";
            return Err(Error::invalid(OPERATION, "cluster", sentence));
        }
        for (field, path) in
            [("base", &self.base), ("firecracker", &self.firecracker), ("jailer", &self.jailer)]
        {
            if !path.is_absolute() || path.to_str().is_none() {
                let sentence = format!("`{field}` must be an absolute path in UTF-8.");
                return Err(Error::invalid(OPERATION, field, sentence));
            }
        }
        if !is_cluster(&self.parent_group) {
            let sentence = "The name of the parent group is 1 to 64 letters, digits, `_` and `-`.";
            return Err(Error::invalid(OPERATION, "parent_group", sentence));
        }
        self.users.validate()
    }

    /// The folder of the cluster's jails.
    pub fn cluster_folder(&self) -> PathBuf {
        self.base.join(&self.cluster)
    }

    /// The folder of one incarnation's jail, whether it is there or not: a function of the base, the cluster and the incarnation.
    pub fn jail_folder(&self, name: &JailName) -> PathBuf {
        self.cluster_folder().join(name.as_str())
    }

    /// The folder of the slots, which clusters with the same base share.
    pub fn slots_folder(&self) -> PathBuf {
        self.base.join(".slots")
    }

    /// The jail's chroot with the Firecracker of this path (without links).
    pub(crate) fn chroot(folder: &Path, firecracker: &Path, name: &JailName) -> PathBuf {
        // `Env::new` in Firecracker's `jailer/src/env.rs`: <chroot base>/<name of the file>/<id>/root.
        let program = firecracker.file_name().unwrap_or_default();
        folder.join(program).join(name.id()).join("root")
    }

    /// Firecracker's path without links. Errors: `NotSupported` when it is not there.
    pub(crate) fn installed(&self) -> Result<PathBuf> {
        let missing = |what: &str, path: &Path| {
            let sentence = format!(
                "This host has no {what} at {}. Install the static release of Firecracker, or set the path in the controller's \
                 configuration.",
                path.display()
            );
            Error::new(ErrorKind::NotSupported, OPERATION, format!("{what} is not installed"))
                .with_user_message(sentence)
        };
        if !self.jailer.is_file() {
            return Err(missing("jailer", &self.jailer));
        }
        let firecracker = self
            .firecracker
            .canonicalize()
            .map_err(|error| missing("firecracker", &self.firecracker).with_source(error))?;
        if !firecracker.is_file() {
            return Err(missing("firecracker", &firecracker));
        }
        Ok(firecracker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jails_folder_follows_from_the_base_the_cluster_and_the_incarnation_alone() {
        let config = JailConfig::new("/srv/flames", "clu_1");
        let name = JailName::new("inc_7").unwrap();
        assert_eq!(config.jail_folder(&name), Path::new("/srv/flames/clu_1/inc_7"));
        let chroot = JailConfig::chroot(&config.jail_folder(&name), Path::new("/opt/fc/firecracker"), &name);
        assert_eq!(chroot, Path::new("/srv/flames/clu_1/inc_7/firecracker/inc-7/root"));
        config.validate().unwrap();
    }

    #[test]
    fn a_configuration_that_cannot_be_is_refused_with_the_field() {
        let good = JailConfig::new("/srv/flames", "clu_1");
        let wrong = [
            ("cluster", JailConfig { cluster: "../x".into(), ..good.clone() }),
            ("base", JailConfig { base: "srv".into(), ..good.clone() }),
            ("parent_group", JailConfig { parent_group: "a/b".into(), ..good.clone() }),
            ("first_user", JailConfig { users: SlotRange { first_user: 0, count: 9 }, ..good.clone() }),
        ];
        for (field, config) in wrong {
            assert_eq!(config.validate().unwrap_err().field(), Some(field));
        }
        let absent = JailConfig { jailer: "/nowhere/jailer".into(), ..good };
        let error = absent.installed().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported);
        assert!(error.user_message().unwrap().contains("/nowhere/jailer"));
    }
}
