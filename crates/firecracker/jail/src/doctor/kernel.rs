//! The kernel, and what it is told.

use super::{Check, Sight};
use crate::hierarchy::{Hierarchies, Home, Resource};
use crate::mounts;

/// The least kernel: pidfd_open (5.3), openat2 (5.6), close_range, which the jailer needs (5.9); and the oldest that Firecracker supports.
const LEAST: (u32, u32) = (5, 10);
/// The host kernels that Firecracker is validated on (its `docs/kernel-policy.md`, release 1.16).
const VALIDATED: [(u32, u32); 3] = [(5, 10), (6, 1), (6, 18)];
/// The kernel from which on moving a process between groups is slow without `favordynmods` (`docs/prod-host-setup.md`).
const SLOW_GROUPS: (u32, u32) = (6, 0);

fn kernel_version(sight: &Sight) -> Option<((u32, u32), String)> {
    let release = sight.read("proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let version = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    Some((version, release))
}

pub(super) fn version(sight: &Sight) -> Check {
    const NAME: &str = "kernel";
    let Some((version, release)) = kernel_version(sight) else {
        return Check::unknown(NAME, "the kernel does not tell its version");
    };
    if version < LEAST {
        return Check::fatal(
            NAME,
            release,
            "Use Linux 5.10 or later; best one that Firecracker is validated on: 6.1 or 6.18.",
        );
    }
    if VALIDATED.contains(&version) {
        return Check::ok(NAME, release);
    }
    let advice = "Firecracker is validated on Linux 5.10, 6.1 and 6.18. Others may work; test them before you rely on them.";
    Check::warning(NAME, release, advice)
}

pub(super) fn control_groups(allow_without_limits: bool) -> Check {
    match Hierarchies::probe() {
        Ok(hierarchies) => describe_groups(&hierarchies, allow_without_limits),
        Err(error) => Check::unknown("cgroups", error.message()),
    }
}

fn describe_groups(hierarchies: &Hierarchies, allow_without_limits: bool) -> Check {
    const NAME: &str = "cgroups";
    let mut missing = Vec::new();
    let mut words = Vec::new();
    let mut has_old = false;
    for resource in Resource::ALL {
        match hierarchies.home(resource) {
            Some(Home::V2(_)) => words.push(format!("{} v2", resource.name())),
            Some(Home::V1(_)) => {
                has_old = true;
                words.push(format!("{} v1", resource.name()));
            }
            None => missing.push(resource.name()),
        }
    }
    let unified = "Boot with systemd.unified_cgroup_hierarchy=1, so that cgroup v2 has all controllers";
    if !missing.is_empty() {
        let found = format!("nothing limits {}", missing.join(", "));
        return if allow_without_limits {
            Check::warning(
                NAME,
                found,
                format!("{unified}: microVMs run without these limits, as configured."),
            )
        } else {
            let advice = format!("{unified}; or allow microVMs without limits (`allow_without_limits`).");
            Check::fatal(NAME, found, advice)
        };
    }
    let found = words.join(", ");
    if has_old {
        let advice = format!("{unified}: version 1 does not limit what is written through the page cache.");
        return Check::warning(NAME, found, advice);
    }
    Check::ok(NAME, found)
}

pub(super) fn hardening(sight: &Sight) -> [Check; 6] {
    [smt(sight), ksm(sight), swap(sight), microcode(sight), vulnerabilities(sight), favordynmods(sight)]
}

fn smt(sight: &Sight) -> Check {
    const NAME: &str = "smt";
    match sight.read("sys/devices/system/cpu/smt/active").as_deref() {
        Some("0") => Check::ok(NAME, "off"),
        Some("1") => {
            let advice = "Boot with `nosmt`, or write `off` to /sys/devices/system/cpu/smt/control, when tenants do not trust each other.";
            Check::warning(NAME, "on: two tenants may share a core", advice)
        }
        _ => Check::unknown(NAME, "the kernel does not tell"),
    }
}

fn ksm(sight: &Sight) -> Check {
    const NAME: &str = "ksm";
    match sight.read("sys/kernel/mm/ksm/run").as_deref() {
        None => Check::ok(NAME, "the kernel has none"),
        Some("0") => Check::ok(NAME, "off"),
        Some("2") => Check::ok(NAME, "off, and merged pages were parted"),
        Some(_) => Check::warning(
            NAME,
            "on: tenants may learn what is in each other's memory",
            "Write 2 to /sys/kernel/mm/ksm/run, and keep ksmtuned off.",
        ),
    }
}

fn swap(sight: &Sight) -> Check {
    const NAME: &str = "swap";
    let Some(text) = sight.read("proc/swaps") else {
        return Check::unknown(NAME, "/proc/swaps cannot be read");
    };
    let areas: Vec<&str> =
        text.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next()).collect();
    if areas.is_empty() {
        return Check::ok(NAME, "none");
    }
    let advice = "Run `swapoff -a` and take swap out of /etc/fstab, or keep it on encrypted disks: guests' memory would stand there.";
    Check::warning(NAME, areas.join(", "), advice)
}

fn microcode(sight: &Sight) -> Check {
    const NAME: &str = "microcode";
    let files = vulnerability_files(sight);
    let without: Vec<&str> = files
        .iter()
        .filter(|(_, state)| state.to_ascii_lowercase().contains("no microcode"))
        .map(|(name, _)| name.as_str())
        .collect();
    let cpuinfo = sight.read("proc/cpuinfo").unwrap_or_default();
    let revision = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("microcode"))
        .and_then(|rest| rest.split_once(':'))
        .map(|(_, value)| value.trim().to_owned());
    if !without.is_empty() {
        let advice = "Install your distribution's microcode package (intel-microcode, amd64-microcode), which loads it early in the boot, or a newer firmware.";
        return Check::warning(NAME, format!("missing for {}", without.join(", ")), advice);
    }
    match revision {
        Some(revision) if files.is_empty() => {
            Check::unknown(NAME, format!("revision {revision}; the kernel does not tell what it mitigates"))
        }
        Some(revision) => Check::ok(NAME, format!("revision {revision}; the kernel misses none")),
        None => Check::unknown(NAME, "the processor does not tell its revision (a virtual one, or not x86)"),
    }
}

/// (name, state), in order.
fn vulnerability_files(sight: &Sight) -> Vec<(String, String)> {
    let folder = "sys/devices/system/cpu/vulnerabilities";
    let mut files: Vec<(String, String)> = std::fs::read_dir(sight.path(folder))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let state = sight.read(&format!("{folder}/{name}"))?;
            Some((name, state))
        })
        .collect();
    files.sort();
    files
}

fn vulnerabilities(sight: &Sight) -> Check {
    const NAME: &str = "vulnerabilities";
    let files = vulnerability_files(sight);
    if files.is_empty() {
        return Check::unknown(NAME, "the kernel does not tell");
    }
    let open: Vec<String> = files
        .iter()
        .filter(|(_, state)| state.starts_with("Vulnerable") || state.contains("SMT vulnerable"))
        .map(|(name, state)| format!("{name} ({state})"))
        .collect();
    if open.is_empty() {
        return Check::ok(NAME, format!("all {} are mitigated, or do not apply", files.len()));
    }
    let advice = "Update the kernel and the microcode, and do not boot with `mitigations=off`. See docs.kernel.org/admin-guide/hw-vuln.";
    Check::warning(NAME, open.join("; "), advice)
}

fn favordynmods(sight: &Sight) -> Check {
    const NAME: &str = "favordynmods";
    let Some((version, _)) = kernel_version(sight) else {
        return Check::unknown(NAME, "the kernel does not tell its version");
    };
    if version < SLOW_GROUPS {
        return Check::ok(NAME, "not needed before Linux 6.0");
    }
    let mounts = sight.read("proc/self/mountinfo").unwrap_or_default();
    let is_mounted = mounts::parse(mounts.as_bytes()).iter().any(|mount| {
        mount.kind.starts_with("cgroup") && mount.super_options.iter().any(|option| option == "favordynmods")
    });
    let line = sight.read("proc/cmdline").unwrap_or_default();
    let is_booted = line.split_ascii_whitespace().any(|word| {
        word.strip_prefix("cgroup_favordynmods=")
            .is_some_and(|value| ["true", "1", "on", "y"].contains(&value))
    });
    if is_mounted || is_booted {
        return Check::ok(NAME, "on");
    }
    let is_immune = sight
        .read("sys/devices/system/cpu/vulnerabilities/itlb_multihit")
        .is_some_and(|state| state == "Not affected");
    let has_no_thread = sight
        .read("sys/module/kvm/parameters/nx_huge_pages")
        .is_some_and(|value| ["never", "N", "off"].contains(&value.as_str()));
    if has_no_thread {
        return Check::ok(NAME, "off, and not needed: kvm.nx_huge_pages is never");
    }
    let advice = if is_immune {
        "Starting a microVM takes tens of milliseconds longer: load kvm with nx_huge_pages=never (this processor does not need the mitigation), or remount cgroup v2 with favordynmods."
    } else {
        "Starting a microVM takes tens of milliseconds longer: `mount -o remount,favordynmods /sys/fs/cgroup`, or boot with cgroup_favordynmods=true."
    };
    Check::warning(NAME, "off", advice)
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    struct Host(tempfile::TempDir);

    impl Host {
        fn new(files: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let path = folder.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Self(folder)
        }

        fn sight(&self) -> Sight {
            Sight(self.0.path().to_owned())
        }
    }

    const HW: &str = "sys/devices/system/cpu/vulnerabilities";

    #[test]
    fn kernels_are_told_apart() {
        let outcome =
            |release| version(&Host::new(&[("proc/sys/kernel/osrelease", release)]).sight()).outcome;
        assert_eq!(outcome("6.1.128-3.amzn2023.x86_64\n"), Outcome::Ok);
        assert_eq!(outcome("6.18.4"), Outcome::Ok);
        assert_eq!(outcome("6.8.0-generic"), Outcome::Warning);
        assert_eq!(outcome("5.4.0"), Outcome::Fatal);
        assert_eq!(outcome("?"), Outcome::Unknown);
    }

    #[test]
    fn a_hardened_host_is_ok_and_a_soft_one_is_warned_of_everything() {
        let hard = Host::new(&[
            ("proc/sys/kernel/osrelease", "6.1.0"),
            ("proc/cmdline", "quiet cgroup_favordynmods=true"),
            ("proc/swaps", "Filename Type Size Used Priority\n"),
            ("proc/cpuinfo", "processor : 0\nmicrocode\t: 0x2b000643\n"),
            ("sys/devices/system/cpu/smt/active", "0"),
            ("sys/kernel/mm/ksm/run", "0"),
            (&format!("{HW}/mds"), "Not affected"),
            (&format!("{HW}/spectre_v2"), "Mitigation: Enhanced IBRS"),
        ]);
        for check in hardening(&hard.sight()) {
            assert_eq!(check.outcome, Outcome::Ok, "{check:?}");
        }
        let soft = Host::new(&[
            ("proc/sys/kernel/osrelease", "6.1.0"),
            ("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 9 0 -2\n"),
            ("proc/cpuinfo", "microcode : 0x1\n"),
            ("sys/devices/system/cpu/smt/active", "1"),
            ("sys/kernel/mm/ksm/run", "1"),
            (&format!("{HW}/mds"), "Vulnerable: Clear CPU buffers attempted, no microcode; SMT vulnerable"),
            (&format!("{HW}/itlb_multihit"), "KVM: Mitigation: Split huge pages"),
        ]);
        for check in hardening(&soft.sight()) {
            assert_eq!(check.outcome, Outcome::Warning, "{check:?}");
            assert!(check.advice.is_some());
        }
    }

    #[test]
    fn what_a_host_does_not_tell_is_unknown_and_not_ok() {
        let silent = Host::new(&[]);
        let outcomes: Vec<(&str, Outcome)> =
            hardening(&silent.sight()).iter().map(|check| (check.name, check.outcome)).collect();
        assert_eq!(
            outcomes,
            [
                ("smt", Outcome::Unknown),
                ("ksm", Outcome::Ok),
                ("swap", Outcome::Unknown),
                ("microcode", Outcome::Unknown),
                ("vulnerabilities", Outcome::Unknown),
                ("favordynmods", Outcome::Unknown),
            ]
        );
    }

    #[test]
    fn a_missing_controller_is_fatal_unless_limits_may_be_missing() {
        let line = b"1 1 0:1 / /cg rw - cgroup2 none rw";
        let some = Hierarchies::parse(line, |_| Some("cpu memory".into()));
        let check = describe_groups(&some, false);
        assert_eq!((check.outcome, check.found.as_str()), (Outcome::Fatal, "nothing limits pids, io"));
        assert_eq!(describe_groups(&some, true).outcome, Outcome::Warning);
        let all = Hierarchies::parse(line, |_| Some("cpu memory pids io".into()));
        assert_eq!(describe_groups(&all, false).outcome, Outcome::Ok);
        let old = Hierarchies::parse(b"1 1 0:1 / /cg rw - cgroup none rw,cpu,memory,pids,blkio", |_| None);
        assert_eq!(describe_groups(&old, false).outcome, Outcome::Warning);
    }
}
