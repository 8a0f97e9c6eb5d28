//! Which control groups this host has: version 2, version 1, or each for some resources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use flames_error::Result;
use flames_host::files::failed;

use crate::mounts;

/// What a microVM can be limited in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Processor time.
    Cpu,
    /// Memory, and swap.
    Memory,
    /// Threads.
    Pids,
    /// Bytes and operations on the disk.
    Io,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Pids, Self::Io];

    /// The controller's name in version 2.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
        }
    }

    /// The controller's name in version 1.
    fn old_name(self) -> &'static str {
        if self == Self::Io { "blkio" } else { self.name() }
    }
}

/// Where a resource is limited.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Home {
    /// In the unified hierarchy mounted there (cgroup v2).
    V2(PathBuf),
    /// In a hierarchy of version 1 mounted there.
    V1(PathBuf),
}

impl Home {
    /// The hierarchy's root.
    pub fn root(&self) -> &Path {
        match self {
            Self::V2(root) | Self::V1(root) => root,
        }
    }
}

/// The hierarchies that are mounted. A controller is in one of them at a time (cgroups(7)), so a host may have some resources here
/// and some there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    unified: Option<PathBuf>,
    unified_controllers: BTreeSet<String>,
    old: BTreeMap<String, PathBuf>,
}

impl Hierarchies {
    /// What `/proc/self/mountinfo` and `cgroup.controllers` say. Mounts nothing. Errors: `Internal`.
    pub fn probe() -> Result<Self> {
        let text = std::fs::read("/proc/self/mountinfo")
            .map_err(|error| failed("the mounts cannot be read", error))?;
        Ok(Self::parse(&text, |root| std::fs::read_to_string(root.join("cgroup.controllers")).ok()))
    }

    /// As [`Hierarchies::probe`], from what was read. `controllers` gives what the file `cgroup.controllers` of a root holds.
    pub(crate) fn parse(mountinfo: &[u8], controllers: impl Fn(&Path) -> Option<String>) -> Self {
        let mut found = Self::default();
        for mount in mounts::parse(mountinfo) {
            match mount.kind.as_str() {
                "cgroup2" if found.unified.is_none() => {
                    let listed = controllers(&mount.point).unwrap_or_default();
                    found.unified_controllers = listed.split_ascii_whitespace().map(str::to_owned).collect();
                    found.unified = Some(mount.point);
                }
                "cgroup" => {
                    for resource in Resource::ALL {
                        let name = resource.old_name();
                        if mount.super_options.iter().any(|option| option == name) {
                            found.old.entry(name.to_owned()).or_insert_with(|| mount.point.clone());
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Where the resource is limited; none when nowhere.
    pub fn home(&self, resource: Resource) -> Option<Home> {
        if let Some(root) = &self.unified
            && self.unified_controllers.contains(resource.name())
        {
            return Some(Home::V2(root.clone()));
        }
        self.old.get(resource.old_name()).map(|root| Home::V1(root.clone()))
    }

    /// Every hierarchy in which a jail may have a group, each once.
    pub fn homes(&self) -> BTreeSet<Home> {
        Resource::ALL.into_iter().filter_map(|resource| self.home(resource)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn version_2_is_taken_where_it_has_the_controller_and_version_1_where_only_that_does() {
        let hybrid = Hierarchies::parse(HYBRID, |_| Some("hugetlb\n".into()));
        assert_eq!(hybrid.home(Resource::Cpu), Some(Home::V1("/sys/fs/cgroup/cpu".into())));
        assert_eq!(hybrid.home(Resource::Io), Some(Home::V1("/sys/fs/cgroup/blkio".into())));
        assert_eq!(hybrid.home(Resource::Pids), None);
        assert_eq!(hybrid.homes().len(), 3);
        let pure = b"41 31 0:38 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let pure = Hierarchies::parse(pure, |_| Some("cpuset cpu io memory pids\n".into()));
        for resource in Resource::ALL {
            assert_eq!(pure.home(resource), Some(Home::V2("/sys/fs/cgroup".into())));
        }
        assert_eq!(pure.homes().len(), 1);
        let mixed = Hierarchies::parse(HYBRID, |_| Some("pids".into()));
        assert_eq!(mixed.home(Resource::Pids), Some(Home::V2("/sys/fs/cgroup/unified".into())));
        assert_eq!(mixed.home(Resource::Memory), Some(Home::V1("/sys/fs/cgroup/memory".into())));
    }

    #[test]
    fn a_host_without_control_groups_has_no_home() {
        let none = Hierarchies::parse(b"22 27 0:21 / /proc rw - proc proc rw\n", |_| None);
        assert!(none.homes().is_empty());
        assert_eq!(none, Hierarchies::default());
    }
}
