//! Devices, users and folders.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::{Check, DoctorConfig, Outcome, Sight};
use crate::mounts;
use crate::slots::SlotRange;

/// Open files of the controller for one microVM: pidfd, output, API, vsock, console and their like.
const FILES_FOR_ONE: u64 = 8;
/// Below this, nothing works for long.
const LEAST_FREE: u64 = 1024 * 1024 * 1024;

pub(super) fn root() -> Check {
    if rustix::process::geteuid().is_root() {
        return Check::ok("root", "yes");
    }
    let advice = "Run the controller as root: the jailer makes devices, mounts and namespaces, and gives up root itself.";
    Check::fatal("root", "no", advice)
}

pub(super) fn kvm(sight: &Sight) -> Check {
    const NAME: &str = "kvm";
    let path = sight.path("dev/kvm");
    if !path.metadata().is_ok_and(|found| found.file_type().is_char_device()) {
        let advice = "Load kvm_intel or kvm_amd, and turn virtualisation on in the firmware; on a virtual machine, use one with nested virtualisation.";
        return Check::fatal(NAME, "/dev/kvm is not there", advice);
    }
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::ok(NAME, "/dev/kvm can be opened"),
        Err(error) => Check::fatal(
            NAME,
            format!("/dev/kvm: {error}"),
            "Run as root, or see in the kernel's log why KVM refuses.",
        ),
    }
}

pub(super) fn tun(sight: &Sight) -> Check {
    let path = sight.path("dev/net/tun");
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::ok("tun", "/dev/net/tun can be opened"),
        Err(error) => Check::fatal(
            "tun",
            format!("/dev/net/tun: {error}"),
            "Load the module `tun`: the network of microVMs needs it.",
        ),
    }
}

/// The numbers of users and of groups are the same.
pub(super) fn users(sight: &Sight, range: SlotRange) -> Check {
    const NAME: &str = "users";
    let (first, end) = (u64::from(range.first_user), u64::from(range.first_user) + u64::from(range.count));
    let shown = format!("{first} to {}", end.saturating_sub(1));
    if let Err(error) = range.validate() {
        return Check::fatal(NAME, shown, error.user_message().unwrap_or("Choose another range.").to_owned());
    }
    let names = |file: &str| -> Vec<String> {
        let text = sight.read(file).unwrap_or_default();
        let number = |line: &str| line.split(':').nth(2)?.parse::<u64>().ok();
        text.lines()
            .filter(|line| number(line).is_some_and(|number| (first..end).contains(&number)))
            .filter_map(|line| line.split(':').next().map(str::to_owned))
            .collect()
    };
    let taken: Vec<String> = names("etc/passwd").into_iter().chain(names("etc/group")).collect();
    let advice = "Choose another first user in the controller's configuration: a microVM's user must be nobody else's.";
    if !taken.is_empty() {
        return Check::fatal(NAME, format!("{shown} holds {}", taken.join(", ")), advice);
    }
    let delegated: Vec<String> = ["etc/subuid", "etc/subgid"]
        .into_iter()
        .flat_map(|file| {
            let text = sight.read(file).unwrap_or_default();
            let overlapping = |line: &str| {
                let mut words = line.split(':');
                let name = words.next()?;
                let start: u64 = words.next()?.parse().ok()?;
                let count: u64 = words.next()?.trim().parse().ok()?;
                (start < end && first < start.saturating_add(count)).then(|| format!("{name} in {file}"))
            };
            text.lines().filter_map(overlapping).collect::<Vec<_>>()
        })
        .collect();
    if !delegated.is_empty() {
        return Check::warning(NAME, format!("{shown} is lent to {}", delegated.join(", ")), advice);
    }
    Check::ok(NAME, shown)
}

/// The nearest folder above the path that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
}

/// Whether there is space, and whether the file system is fit for jails.
pub(super) fn jail_base(config: &DoctorConfig) -> [Check; 2] {
    let base = existing(&config.jail.base);
    [space(base, config.free_bytes), file_system(base, config)]
}

fn space(base: &Path, wanted: u64) -> Check {
    const NAME: &str = "space";
    let Ok(found) = rustix::fs::statvfs(base) else {
        return Check::unknown(NAME, format!("{} does not tell", base.display()));
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let shown = format!("{} MiB free below {}", free / (1024 * 1024), base.display());
    if free >= wanted.max(LEAST_FREE) {
        return Check::ok(NAME, shown);
    }
    let outcome = if free < LEAST_FREE { Outcome::Fatal } else { Outcome::Warning };
    let advice = "Make space, or keep the jails on a larger file system.";
    Check { outcome, ..Check::warning(NAME, shown, advice) }
}

fn file_system(base: &Path, config: &DoctorConfig) -> Check {
    const NAME: &str = "file-system";
    let mounts = match mounts::read() {
        Ok(mounts) => mounts,
        Err(error) => return Check::unknown(NAME, error.to_string()),
    };
    let base = base.canonicalize().unwrap_or_else(|_| base.to_owned());
    let Some(mount) = mounts::mount_of(&mounts, &base) else {
        return Check::unknown(NAME, format!("{} is on no mount", base.display()));
    };
    let shown = format!("{} at {}", mount.kind, mount.point.display());
    let wrong: Vec<&str> = ["ro", "nodev", "noexec"]
        .into_iter()
        .filter(|option| mount.options.iter().any(|found| found == option))
        .collect();
    if !wrong.is_empty() {
        let advice = "Keep the jails on a file system that is mounted rw,dev,exec: a jail holds devices and Firecracker itself.";
        return Check::fatal(NAME, format!("{shown}, mounted {}", wrong.join(",")), advice);
    }
    let Some(images) = &config.images else { return Check::ok(NAME, shown) };
    let device = |path: &Path| path.metadata().map(|found| found.dev()).ok();
    if device(&base) == device(existing(images)) {
        return Check::ok(NAME, format!("{shown}, where the images are too"));
    }
    let found = format!("{shown}; the images in {} are on another one", images.display());
    let advice = "Keep images, disks and jails on one file system: images are then linked into jails, which costs nothing, rather than mounted.";
    Check::warning(NAME, found, advice)
}

/// Nobody but root may change what root will start, or the folders that lead there (`docs/prod-host-setup.md`, "Jailer Configuration").
pub(super) fn safe_paths(config: &DoctorConfig) -> Check {
    const NAME: &str = "paths";
    let paths = [&config.jail.firecracker, &config.jail.jailer, &config.jail.base];
    let mut wrong: Vec<String> = Vec::new();
    for path in paths {
        // Links are resolved, as the jailer does.
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        for part in path.ancestors() {
            let Ok(found) = part.metadata() else { continue };
            let mode = found.mode();
            // Others cannot put anything in place of a file of root's in a folder with the sticky bit.
            let is_open = mode & 0o022 != 0 && !(found.is_dir() && mode & 0o1000 != 0);
            let shown = part.display().to_string();
            if (found.uid() != 0 || is_open) && !wrong.contains(&shown) {
                wrong.push(shown);
            }
        }
    }
    if wrong.is_empty() {
        return Check::ok(NAME, "only root may change them");
    }
    let advice = "Make them root's, and writable by nobody else: whoever can change them becomes root.";
    Check::fatal(NAME, format!("others may change {}", wrong.join(", ")), advice)
}

pub(super) fn open_files(range: SlotRange) -> Check {
    const NAME: &str = "open-files";
    let wanted = u64::from(range.count).saturating_mul(FILES_FOR_ONE).saturating_add(1024);
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return Check::ok(NAME, "no limit");
    };
    if limit >= wanted {
        return Check::ok(NAME, limit.to_string());
    }
    let advice = format!(
        "Set LimitNOFILE={wanted} in the controller's service, which suffices for {} microVMs.",
        range.count
    );
    Check::warning(NAME, limit.to_string(), advice)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use super::*;
    use crate::config::JailConfig;

    #[test]
    fn a_user_of_the_host_in_the_range_is_fatal_and_a_lent_range_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        let etc = folder.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(etc.join("passwd"), "root:x:0:0::/:/bin/sh\nalice:x:200007:1::/:/bin/sh\n").unwrap();
        std::fs::write(etc.join("group"), "root:x:0:\nstaff:x:300000:\n").unwrap();
        std::fs::write(etc.join("subuid"), "bob:400000:65536\n").unwrap();
        let sight = Sight(folder.path().to_owned());
        let check = |first_user, count| users(&sight, SlotRange { first_user, count });
        let taken = check(200_000, 8);
        assert_eq!((taken.outcome, taken.found.as_str()), (Outcome::Fatal, "200000 to 200007 holds alice"));
        assert_eq!(check(200_000, 7).outcome, Outcome::Ok);
        assert_eq!(check(299_999, 2).outcome, Outcome::Fatal, "a group");
        assert_eq!(check(390_000, 10_001).outcome, Outcome::Warning);
        assert_eq!(check(390_000, 10_000).outcome, Outcome::Ok);
        assert_eq!(check(10, 5).outcome, Outcome::Fatal, "the system's");
    }

    #[test]
    fn a_path_that_others_may_change_is_fatal() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("firecracker");
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o777)).unwrap();
        let mut jail = JailConfig::new("/", "clu");
        jail.firecracker = program.clone();
        jail.jailer = "/".into();
        let config = DoctorConfig::new(jail, Arc::new(|version| Ok(version.to_owned())));
        let check = safe_paths(&config);
        assert_eq!(check.outcome, Outcome::Fatal);
        assert!(check.found.contains(program.canonicalize().unwrap().to_str().unwrap()), "{check:?}");
    }

    #[test]
    fn space_is_compared_with_what_is_wanted() {
        let here = existing(Path::new("/nowhere/at/all"));
        assert_eq!(here, Path::new("/"));
        assert_ne!(space(here, u64::MAX).outcome, Outcome::Ok);
        assert!(space(here, u64::MAX).advice.is_some());
    }
}
