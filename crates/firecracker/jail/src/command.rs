//! The jailer's command line.

use std::ffi::OsString;
use std::path::Path;

use flames_error::{Error, Result};
use flames_host::process::Marker;

use crate::name::JailName;
use crate::record::JailRecord;

/// Arguments of Firecracker that are not the caller's: the jailer gives them, or they would let a guest run before its process is on
/// record (`--config-file`), or nobody could ask the VMM anything (`--no-api`).
const OURS: [&str; 6] =
    ["--id", "--start-time-us", "--start-time-cpu-us", "--parent-cpu-time-us", "--config-file", "--no-api"];
/// The jailer's argument for the folder in which it makes the chroot.
const CHROOT_BASE: &str = "--chroot-base-dir";
/// Arguments that change the filter of system calls.
const SECCOMP: [&str; 2] = ["--no-seccomp", "--seccomp-filter"];

/// What stands on the command line of the jailer, and then of the Firecracker that it becomes (`exec_command` in `jailer/src/env.rs`),
/// of each jail of this name on the host: another cluster's too, so that only the user tells whose it is.
pub(crate) fn name_marker(name: &JailName) -> Marker {
    Marker::new(["--id".into(), name.id().into()])
}

/// What stands on the command line of this jail's jailer and of no other's, as long as it is root's: the jail's folder at its start.
pub(crate) fn folder_marker(folder: &Path) -> Marker {
    Marker::new([CHROOT_BASE.into(), folder.into()])
}

/// Errors: `InvalidInput` for an argument that the caller may not give.
pub(crate) fn check(arguments: &[OsString], allow_without_seccomp: bool) -> Result<()> {
    for argument in arguments {
        let word = argument.to_string_lossy();
        let flag = word.split('=').next().unwrap_or_default();
        let is_refused = OURS.contains(&flag) || (SECCOMP.contains(&flag) && !allow_without_seccomp);
        if is_refused || word == "--" {
            let sentence = format!("Firecracker's argument `{flag}` may not be given here.");
            return Err(Error::invalid("jail.start", "arguments", sentence));
        }
    }
    Ok(())
}

/// The arguments of the jailer for this jail.
pub(crate) fn build(
    record: &JailRecord,
    folder: &Path,
    network_namespace: Option<&Path>,
    arguments: &[OsString],
) -> Vec<OsString> {
    let user = record.slot.user.to_string();
    let mut words: Vec<OsString> = Vec::with_capacity(24 + arguments.len());
    let mut pair = |flag: &str, value: OsString| words.extend([flag.into(), value]);
    pair("--id", record.started_name().id().into());
    pair("--exec-file", record.firecracker.clone().into());
    pair("--uid", user.clone().into());
    pair("--gid", user.into());
    pair(CHROOT_BASE, folder.into());
    if let Some(namespace) = network_namespace {
        pair("--netns", namespace.into());
    }
    // Without any `--cgroup` this does nothing at all, in either hierarchy: see the crate's docs.
    pair("--cgroup-version", "1".into());
    pair("--resource-limit", format!("no-file={}", record.spec.open_files).into());
    if let Some(bytes) = record.spec.largest_file {
        pair("--resource-limit", format!("fsize={bytes}").into());
    }
    words.push("--".into());
    words.extend(arguments.iter().cloned());
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::JailSpec;
    use crate::slots::Slot;

    #[test]
    fn the_jailer_is_told_everything_and_firecracker_what_the_caller_says() {
        let record = JailRecord {
            schema: 1,
            cluster: "clu".into(),
            incarnation: JailName::new("inc_1").unwrap(),
            started_as: None,
            slot: Slot { index: 3, user: 2_000_003 },
            firecracker: "/opt/firecracker".into(),
            spec: JailSpec { largest_file: Some(1 << 30), ..JailSpec::default() },
            placed: Vec::new(),
        };
        let extra = ["--api-sock".into(), "/run/api.sock".into()];
        let words = build(&record, Path::new("/jails/clu/inc_1"), Some(Path::new("/run/netns/x")), &extra);
        let line: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(
            line.join(" "),
            "--id inc-1 --exec-file /opt/firecracker --uid 2000003 --gid 2000003 --chroot-base-dir /jails/clu/inc_1 --netns \
             /run/netns/x --cgroup-version 1 --resource-limit no-file=1024 --resource-limit fsize=1073741824 -- --api-sock \
             /run/api.sock"
        );
    }

    #[test]
    fn arguments_that_would_undo_the_jail_are_refused() {
        let refused = |word: &str, allow| check(&[word.into()], allow).is_err();
        for word in
            ["--id", "--id=x", "--config-file", "--no-api", "--no-seccomp", "--seccomp-filter=f", "--"]
        {
            assert!(refused(word, false), "{word}");
        }
        assert!(!refused("--no-seccomp", true) && refused("--no-api", true));
        assert!(!refused("--api-sock", false) && !refused("--boot-timer", false));
    }
}
