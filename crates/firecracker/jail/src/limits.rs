//! What a microVM may use of its host, and the files that say so.

use std::path::{Path, PathBuf};

use flames_error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::hierarchy::{Hierarchies, Home, Resource};

const OPERATION: &str = "jail.limits";
/// The period that processor time is given out by, in microseconds: the kernel's default (sched-bwc.rst, cgroup-v2.rst).
const PERIOD_US: u64 = 100_000;
/// The least quota that the kernel takes, in microseconds (sched-bwc.rst).
const LEAST_QUOTA_US: u64 = 1_000;

/// The most that a microVM's whole process may use. None: no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Thousandths of a processor, over 100 ms.
    pub cpu_millis: Option<u32>,
    /// Bytes of memory, the page cache of its disks included: what passes it is taken back from the cache, and at last killed.
    pub memory_bytes: Option<u64>,
    /// Bytes of swap beyond that. 0 with [`Limits::for_guest`]: a guest's memory is not to stand on a disk.
    pub swap_bytes: Option<u64>,
    /// Threads.
    pub threads: Option<u32>,
    /// Of the disk that the jails are on. Version 1 holds back only what is not written through the page cache.
    pub io: Option<IoLimits>,
}

/// Per second, of one disk. None: no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoLimits {
    /// Bytes read.
    pub read_bytes: Option<u64>,
    /// Bytes written.
    pub write_bytes: Option<u64>,
    /// Reads.
    pub read_operations: Option<u64>,
    /// Writes.
    pub write_operations: Option<u64>,
}

impl IoLimits {
    /// (name in version 2, name in version 1, value)
    fn entries(&self) -> [(&'static str, &'static str, Option<u64>); 4] {
        [
            ("rbps", "read_bps_device", self.read_bytes),
            ("wbps", "write_bps_device", self.write_bytes),
            ("riops", "read_iops_device", self.read_operations),
            ("wiops", "write_iops_device", self.write_operations),
        ]
    }
}

impl Limits {
    /// For a guest of this size: its processors and a half for the VMM's own threads, its memory and 64 MiB for the VMM (which needs 5)
    /// and page tables, no swap, and 32 threads beyond its processors.
    pub fn for_guest(vcpus: u32, memory_bytes: u64) -> Self {
        Self {
            cpu_millis: Some(vcpus.saturating_mul(1000).saturating_add(500)),
            memory_bytes: Some(memory_bytes.saturating_add(64 * 1024 * 1024)),
            swap_bytes: Some(0),
            threads: Some(vcpus.saturating_add(32)),
            io: None,
        }
    }

    /// The resources that have a limit.
    pub(crate) fn resources(&self) -> Vec<Resource> {
        let has_io = self.io.as_ref().is_some_and(|io| *io != IoLimits::default());
        let wanted = [
            (Resource::Cpu, self.cpu_millis.is_some()),
            (Resource::Memory, self.memory_bytes.is_some() || self.swap_bytes.is_some()),
            (Resource::Pids, self.threads.is_some()),
            (Resource::Io, has_io),
        ];
        wanted.into_iter().filter(|(_, is_wanted)| *is_wanted).map(|(resource, _)| resource).collect()
    }

    /// What is to be written, and where. `disk` is the number of the disk that the jails are on.
    ///
    /// Errors: `NotSupported` when the host cannot limit what has a limit, unless that is allowed.
    pub(crate) fn plan(
        &self,
        hierarchies: &Hierarchies,
        disk: Option<(u32, u32)>,
        allow_without: bool,
    ) -> Result<Vec<Setting>> {
        let mut settings = Vec::new();
        let mut missing = Vec::new();
        for resource in self.resources() {
            match hierarchies.home(resource) {
                Some(home) if resource != Resource::Io || disk.is_some() => {
                    self.settings(resource, &home, disk.unwrap_or_default(), &mut settings);
                }
                _ => missing.push(resource.name()),
            }
        }
        if missing.is_empty() || allow_without {
            return Ok(settings);
        }
        let missing = missing.join(", ");
        let sentence = format!(
            "This host cannot limit what a microVM uses of: {missing}. Mount cgroup v2 with these controllers (boot with \
             systemd.unified_cgroup_hierarchy=1), or cgroup v1's, and keep the jails on a real disk; or let microVMs run without these \
             limits by `allow_without_limits` in the controller's configuration."
        );
        Err(Error::new(ErrorKind::NotSupported, OPERATION, "a controller of control groups is missing")
            .with_context("missing", missing)
            .with_user_message(sentence))
    }

    fn settings(&self, resource: Resource, home: &Home, disk: (u32, u32), settings: &mut Vec<Setting>) {
        let mut write = |file: &str, value: String, is_optional| {
            settings.push(Setting {
                home: home.clone(),
                file: file.to_owned(),
                value,
                is_optional,
                resource,
            });
        };
        let is_v2 = matches!(home, Home::V2(_));
        match resource {
            Resource::Cpu => {
                let Some(millis) = self.cpu_millis else { return };
                let quota = (u64::from(millis) * PERIOD_US / 1000).max(LEAST_QUOTA_US);
                if is_v2 {
                    write("cpu.max", format!("{quota} {PERIOD_US}"), false);
                } else {
                    write("cpu.cfs_period_us", PERIOD_US.to_string(), false);
                    write("cpu.cfs_quota_us", quota.to_string(), false);
                }
            }
            Resource::Memory => {
                let memory = self.memory_bytes;
                if let Some(bytes) = memory {
                    write(
                        if is_v2 { "memory.max" } else { "memory.limit_in_bytes" },
                        bytes.to_string(),
                        false,
                    );
                }
                // The files of swap are there only where the kernel accounts for it; without it, a group can be told to avoid it (v1).
                match (is_v2, self.swap_bytes) {
                    (_, None) => {}
                    (true, Some(swap)) => write("memory.swap.max", swap.to_string(), true),
                    (false, Some(swap)) => {
                        if let Some(bytes) = memory {
                            let both = bytes.saturating_add(swap);
                            write("memory.memsw.limit_in_bytes", both.to_string(), true);
                        }
                        if swap == 0 {
                            write("memory.swappiness", "0".to_owned(), true);
                        }
                    }
                }
                if is_v2 {
                    // The VMM is one thing: no part of it is left when the kernel has to kill.
                    write("memory.oom.group", "1".to_owned(), true);
                }
            }
            Resource::Pids => {
                if let Some(threads) = self.threads {
                    write("pids.max", threads.to_string(), false);
                }
            }
            Resource::Io => {
                let Some(io) = &self.io else { return };
                let (major, minor) = disk;
                let entries = io.entries().into_iter();
                let given = entries.filter_map(|(new, old, value)| value.map(|value| (new, old, value)));
                if is_v2 {
                    let words: Vec<String> = given.map(|(new, _, value)| format!("{new}={value}")).collect();
                    write("io.max", format!("{major}:{minor} {}", words.join(" ")), false);
                } else {
                    for (_, old, value) in given {
                        write(&format!("blkio.throttle.{old}"), format!("{major}:{minor} {value}"), false);
                    }
                }
            }
        }
    }
}

/// One value for one file of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) home: Home,
    pub(crate) file: String,
    pub(crate) value: String,
    /// Whether a kernel may be without the file.
    pub(crate) is_optional: bool,
    pub(crate) resource: Resource,
}

/// The number of the disk that a file system is on. A partition's is its disk's, since only disks are limited; none for file systems
/// that are on no disk, or on several.
pub(crate) fn disk_of(device: u64, sys: &Path) -> Option<(u32, u32)> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let folder: PathBuf = sys.join(format!("dev/block/{major}:{minor}")).canonicalize().ok()?;
    let disk = if folder.join("partition").exists() { folder.parent()?.to_owned() } else { folder };
    let number = std::fs::read_to_string(disk.join("dev")).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Limits {
        Limits {
            io: Some(IoLimits { read_bytes: Some(1), write_operations: Some(2), ..IoLimits::default() }),
            ..Limits::for_guest(2, 1 << 30)
        }
    }

    fn written(mountinfo: &str, controllers: &str) -> Vec<(String, String)> {
        let hierarchies = Hierarchies::parse(mountinfo.as_bytes(), |_| Some(controllers.to_owned()));
        let settings = all().plan(&hierarchies, Some((254, 16)), false).unwrap();
        settings.into_iter().map(|setting| (setting.file, setting.value)).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn version_2_gets_its_files() {
        let mountinfo = "1 1 0:1 / /cg rw - cgroup2 none rw";
        assert_eq!(
            written(mountinfo, "cpu memory pids io"),
            pairs(&[
                ("cpu.max", "250000 100000"),
                ("memory.max", "1140850688"),
                ("memory.swap.max", "0"),
                ("memory.oom.group", "1"),
                ("pids.max", "34"),
                ("io.max", "254:16 rbps=1 wiops=2"),
            ])
        );
    }

    #[test]
    fn version_1_gets_its_files() {
        let mountinfo = "1 1 0:1 / /cg rw - cgroup none rw,cpu,memory,pids,blkio";
        assert_eq!(
            written(mountinfo, ""),
            pairs(&[
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "250000"),
                ("memory.limit_in_bytes", "1140850688"),
                ("memory.memsw.limit_in_bytes", "1140850688"),
                ("memory.swappiness", "0"),
                ("pids.max", "34"),
                ("blkio.throttle.read_bps_device", "254:16 1"),
                ("blkio.throttle.write_iops_device", "254:16 2"),
            ])
        );
    }

    #[test]
    fn a_host_that_cannot_limit_is_refused_with_what_to_do_unless_that_is_allowed() {
        let none = Hierarchies::default();
        let error = all().plan(&none, Some((1, 1)), false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported);
        let sentence = error.user_message().unwrap();
        assert!(sentence.contains("cpu, memory, pids, io") && sentence.contains("allow_without_limits"));
        assert_eq!(all().plan(&none, None, true).unwrap(), []);
        assert_eq!(Limits::default().plan(&none, None, false).unwrap(), []);
        let v2 =
            Hierarchies::parse(b"1 1 0:1 / /cg rw - cgroup2 none rw", |_| Some("cpu memory pids io".into()));
        assert!(all().plan(&v2, None, false).unwrap_err().user_message().unwrap().contains("of: io."));
    }

    #[test]
    fn a_tiny_share_of_a_processor_is_rounded_up_to_what_the_kernel_takes() {
        let limits = Limits { cpu_millis: Some(1), ..Limits::default() };
        let v2 = Hierarchies::parse(b"1 1 0:1 / /cg rw - cgroup2 none rw", |_| Some("cpu".into()));
        assert_eq!(limits.plan(&v2, None, false).unwrap()[0].value, "1000 100000");
    }

    #[test]
    fn a_partition_is_limited_as_its_disk() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/vda");
        std::fs::create_dir_all(disk.join("vda1")).unwrap();
        std::fs::create_dir_all(sys.path().join("dev/block")).unwrap();
        std::fs::write(disk.join("dev"), "254:0\n").unwrap();
        std::fs::write(disk.join("vda1/dev"), "254:1\n").unwrap();
        std::fs::write(disk.join("vda1/partition"), "1\n").unwrap();
        for (number, folder) in [("254:0", "vda"), ("254:1", "vda/vda1")] {
            let link = sys.path().join("dev/block").join(number);
            std::os::unix::fs::symlink(sys.path().join("devices").join(folder), link).unwrap();
        }
        assert_eq!(disk_of(rustix::fs::makedev(254, 1), sys.path()), Some((254, 0)));
        assert_eq!(disk_of(rustix::fs::makedev(254, 0), sys.path()), Some((254, 0)));
        assert_eq!(disk_of(rustix::fs::makedev(0, 44), sys.path()), None);
    }
}
