//! The control groups of one jail: made before its process, entered by it before its first instruction, removed after it.
//!
//! `<hierarchy>/<parent>/<cluster>/<id>`, in each hierarchy that limits something. Parents are made when the first jail needs them and
//! removed with the last.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flames_error::{Error, ErrorKind, Result};
use flames_host::files::failed;
use rustix::io::Errno;

use crate::hierarchy::{Hierarchies, Home, Resource};
use crate::limits::Setting;
use crate::may_die_here;
use crate::name::JailName;

const OPERATION: &str = "jail.group";

/// What a jail's processes get of processors that others want too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    /// Sixteen times what another jail gets: for one whose guest does not run yet, which needs some milliseconds.
    Ahead,
    /// As much as any other.
    Even,
}

impl Weight {
    /// (file, value): in the kernel's terms, 100 is a group's weight in version 2, and 1024 its shares in version 1, where nobody says otherwise
    /// (cgroup-v2.rst, sched-design-CFS.rst).
    fn setting(self, home: &Home) -> (&'static str, &'static str) {
        match (home, self) {
            (Home::V2(_), Self::Ahead) => ("cpu.weight", "1600"),
            (Home::V2(_), Self::Even) => ("cpu.weight", "100"),
            (Home::V1(_), Self::Ahead) => ("cpu.shares", "16384"),
            (Home::V1(_), Self::Even) => ("cpu.shares", "1024"),
        }
    }
}

/// Where the groups of a cluster's jails are.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    hierarchies: Hierarchies,
    parent: String,
    cluster: String,
}

impl Groups {
    pub(crate) fn new(hierarchies: Hierarchies, parent: &str, cluster: &str) -> Self {
        Self { hierarchies, parent: parent.to_owned(), cluster: cluster.to_owned() }
    }

    pub(crate) fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    fn of_cluster(&self, home: &Home) -> PathBuf {
        home.root().join(&self.parent).join(&self.cluster)
    }

    fn of(&self, home: &Home, name: &JailName) -> PathBuf {
        self.of_cluster(home).join(name.id())
    }

    /// Makes the jail's groups with their limits. The files through which a process enters them.
    ///
    /// Errors: `Conflict` when a process is in one of them; `InvalidInput` for a limit that the kernel refuses; `Internal`.
    pub(crate) fn make(&self, name: &JailName, settings: &[Setting]) -> Result<Vec<File>> {
        let homes: BTreeSet<&Home> = settings.iter().map(|setting| &setting.home).collect();
        for home in &homes {
            let controllers: BTreeSet<&str> = settings
                .iter()
                .filter(|setting| setting.home == **home)
                .map(|setting| setting.resource.name())
                .collect();
            may_die_here!("before a group is made");
            self.make_one(home, name, &controllers)
                .map_err(|error| failed("a control group cannot be made", error))?;
            if !members_of(&self.of(home, name)).is_empty() {
                return Err(Error::new(ErrorKind::Conflict, OPERATION, "a process is in the jail's group")
                    .with_resource("incarnation", name.as_str()));
            }
        }
        self.limit(name, settings)?;
        let enter = |home: &&Home| {
            // In version 1 one thread that moves itself does not wait for all processors of the host, as a move of a process does
            // (`cgroup_procs_write_start` in kernel/cgroup/cgroup.c): 5 ms and more, for each hierarchy. A fork has one thread.
            let file = if matches!(home, Home::V1(_)) { "tasks" } else { "cgroup.procs" };
            OpenOptions::new()
                .write(true)
                .open(self.of(home, name).join(file))
                .map_err(|error| failed("a control group cannot be entered", error))
        };
        homes.iter().map(enter).collect()
    }

    fn make_one(&self, home: &Home, name: &JailName, controllers: &BTreeSet<&str>) -> io::Result<()> {
        let leaf = self.of(home, name);
        // The removal of the last other jail may take a parent away between two steps of ours.
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for _ in 0..100 {
            match self.try_make(home, &leaf, controllers) {
                Err(error) if is_absent(&error) => last = error,
                done => return done,
            }
        }
        Err(last)
    }

    fn try_make(&self, home: &Home, leaf: &Path, controllers: &BTreeSet<&str>) -> io::Result<()> {
        let parents = [home.root().to_owned(), home.root().join(&self.parent), self.of_cluster(home)];
        for parent in &parents {
            make_folder(parent)?;
            if matches!(home, Home::V2(_)) {
                // A group has the files of a controller only where its parent hands it on (cgroup-v2.rst, "Enabling and Disabling").
                for controller in controllers {
                    std::fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"))?;
                }
            }
        }
        make_folder(leaf)
    }

    /// Sets limits in the groups that were made for them, whoever is in them.
    ///
    /// Errors: `InvalidInput` for a limit that the kernel refuses.
    pub(crate) fn limit(&self, name: &JailName, settings: &[Setting]) -> Result<()> {
        for setting in settings {
            may_die_here!("before a limit is set");
            let file = self.of(&setting.home, name).join(&setting.file);
            match std::fs::write(&file, &setting.value) {
                Ok(()) => {}
                Err(error) if setting.is_optional && is_absent(&error) => {}
                Err(error) => {
                    let sentence =
                        format!("The host's kernel refuses `{}` for {}.", setting.value, setting.file);
                    return Err(Error::invalid(OPERATION, "limits", sentence).with_source(error));
                }
            }
        }
        Ok(())
    }

    /// Weighs the jail's group, where it has one for processors and the kernel weighs groups.
    pub(crate) fn weigh(&self, name: &JailName, weight: Weight) -> Result<()> {
        let Some(home) = self.hierarchies.home(Resource::Cpu) else { return Ok(()) };
        let (file, value) = weight.setting(&home);
        let written = OpenOptions::new().write(true).open(self.of(&home, name).join(file));
        match written.and_then(|mut file| file.write_all(value.as_bytes())) {
            Err(error) if !is_absent(&error) => Err(failed("a control group cannot be weighed", error)),
            _ => Ok(()),
        }
    }

    /// Whether the jail has a group, and the pids of the processes in its groups.
    pub(crate) fn members(&self, name: &JailName) -> (bool, BTreeSet<u32>) {
        let groups: Vec<PathBuf> = self.hierarchies.homes().iter().map(|home| self.of(home, name)).collect();
        let has_group = groups.iter().any(|group| group.exists());
        (has_group, groups.iter().flat_map(|group| members_of(group)).collect())
    }

    /// Removes the jail's groups that are empty, and then the parents that are. False when one is still busy: a process that has
    /// ended leaves its groups a little later.
    pub(crate) fn try_remove(&self, name: &JailName) -> Result<bool> {
        let mut gone = true;
        for home in self.hierarchies.homes() {
            let remove = |path: PathBuf| match std::fs::remove_dir(path) {
                Ok(()) => Ok(true),
                Err(error) if is_absent(&error) => Ok(true),
                Err(error) if is_busy(&error) => Ok(false),
                Err(error) => Err(failed("a control group cannot be removed", error)),
            };
            may_die_here!("before a group is removed");
            if !remove(self.of(&home, name))? {
                gone = false;
                continue;
            }
            // Parents of others' jails stay.
            if remove(self.of_cluster(&home))? {
                remove(home.root().join(&self.parent))?;
            }
        }
        Ok(gone)
    }

    /// Every incarnation that has a group in one of the hierarchies.
    pub(crate) fn names(&self) -> BTreeSet<JailName> {
        let mut names = BTreeSet::new();
        for home in self.hierarchies.homes() {
            for entry in std::fs::read_dir(self.of_cluster(&home)).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    names.extend(entry.file_name().to_str().and_then(JailName::of_id));
                }
            }
        }
        names
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn members_of(group: &Path) -> BTreeSet<u32> {
    let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// ENODEV: the group was removed while one of its files was open.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

fn is_busy(error: &io::Error) -> bool {
    [Errno::BUSY, Errno::NOTEMPTY].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    /// A folder that looks like a hierarchy of version 2: its files are files.
    #[test]
    fn in_version_2_every_parent_hands_the_controllers_on_before_limits_are_set() {
        let root = tempfile::tempdir().unwrap();
        let leaf = root.path().join("flames/clu/inc-1");
        std::fs::create_dir_all(&leaf).unwrap();
        std::fs::write(leaf.join("cgroup.procs"), "").unwrap();
        let line = format!("1 1 0:1 / {} rw - cgroup2 none rw", root.path().display());
        let hierarchies = Hierarchies::parse(line.as_bytes(), |_| Some("cpu memory pids io".into()));
        let settings = Limits::for_guest(1, 1 << 20).plan(&hierarchies, None, false).unwrap();
        let groups = Groups::new(hierarchies, "flames", "clu");
        let name = JailName::new("inc_1").unwrap();
        assert_eq!(groups.make(&name, &settings).unwrap().len(), 1, "one group to enter");
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        for parent in ["", "flames", "flames/clu"] {
            let control = root.path().join(parent).join("cgroup.subtree_control");
            assert_eq!(read(&control), "+pids", "{parent}: the last of those that were enabled");
        }
        assert!(!leaf.join("cgroup.subtree_control").exists(), "a group with processes hands nothing on");
        assert_eq!(read(&leaf.join("cpu.max")), "150000 100000");
        assert_eq!(read(&leaf.join("pids.max")), "33");
        assert_eq!(groups.names(), BTreeSet::from([name.clone()]));
        groups.weigh(&name, Weight::Ahead).unwrap();
        assert!(!leaf.join("cpu.weight").exists(), "a kernel without weights is let be");
        std::fs::write(leaf.join("cpu.weight"), "").unwrap();
        for (weight, value) in [(Weight::Ahead, "1600"), (Weight::Even, "100")] {
            std::fs::write(leaf.join("cpu.weight"), "").unwrap();
            groups.weigh(&name, weight).unwrap();
            assert_eq!(read(&leaf.join("cpu.weight")), value);
        }
        std::fs::write(leaf.join("cgroup.procs"), "17\n4\n").unwrap();
        assert_eq!(groups.members(&name), (true, BTreeSet::from([4, 17])));
        assert_eq!(groups.make(&name, &settings).unwrap_err().kind(), ErrorKind::Conflict);
        assert!(!groups.try_remove(&name).unwrap(), "what is not empty stays");
    }

    #[test]
    fn a_limit_that_the_kernel_has_no_file_for_is_an_error_unless_it_may_be_missing() {
        let root = tempfile::tempdir().unwrap();
        let line = format!("1 1 0:1 / {} rw - cgroup none rw,pids", root.path().display());
        let hierarchies = Hierarchies::parse(line.as_bytes(), |_| None);
        let home = hierarchies.home(Resource::Pids).unwrap();
        let groups = Groups::new(hierarchies, "flames", "clu");
        let name = JailName::new("inc_1").unwrap();
        let setting = |is_optional| Setting {
            home: home.clone(),
            file: "none/at.all".into(),
            value: "1".into(),
            is_optional,
            resource: Resource::Pids,
        };
        let error = groups.make(&name, &[setting(false)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.user_message().unwrap().contains("none/at.all"));
        std::fs::write(root.path().join("flames/clu/inc-1/tasks"), "").unwrap();
        groups.make(&name, &[setting(true)]).unwrap();
    }
}
