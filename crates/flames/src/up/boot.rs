//! What machines boot: the kernel, and the initramfs with the agent.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flames_image::initramfs::{Initramfs, Packing};
use flames_image::kernel::{GUEST_MODULES, ordered_modules, recognise};
use flames_image::{ImageErrorKind, debian};
use sha2::{Digest, Sha256};

use crate::config::UpConfig;
use crate::data::DataFolder;
use crate::exit::{Failure, NOT_FOUND};
use crate::output::Output;

/// The name of the agent's binary.
const AGENT: &str = "flames-guest-agent";
/// What the name of every initramfs that is made here begins with.
const INITRAMFS: &str = "initramfs-";
/// The word that stands for Debian's packaged kernel.
const DEBIAN: &str = "debian";

/// What machines boot from.
#[derive(Debug, Clone)]
pub(crate) struct BootFiles {
    /// The kernel of VMs that name none.
    pub(crate) kernel: Option<PathBuf>,
    /// The initramfs of all.
    pub(crate) initramfs: PathBuf,
}

/// Finds or makes what machines boot from; what is made lies in `place`. Blocks.
pub(crate) fn prepare(
    arguments: &UpConfig,
    place: &Path,
    data: &DataFolder,
    output: Output,
) -> Result<BootFiles, Failure> {
    let mut modules = Vec::new();
    let kernel = match &arguments.kernel {
        None => None,
        Some(path) if path == Path::new(DEBIAN) && !path.exists() => {
            // Kept beside what is removed at the end: it is the same every time.
            let mut told = |words: &str| output.say(format!("kernel: {words}"));
            let package = debian::kernel(&data.join("boot"), &mut told).map_err(|error| {
                Failure::failed(format!("Debian's kernel cannot be fetched: {error}"))
                    .advise("Give a kernel of your own with --kernel FILE.")
            })?;
            modules = package.modules;
            Some(package.kernel)
        }
        Some(path) => Some(checked_kernel(path)?),
    };
    if let Some(folder) = &arguments.kernel_modules {
        modules = ordered_modules(folder, &GUEST_MODULES).map_err(|error| {
            Failure::failed(format!("The kernel's modules cannot be used: {error}"))
                .advise("--kernel-modules is a folder `lib/modules/<version>` with unpacked modules.")
        })?;
    }
    if let Some(path) = &arguments.initramfs {
        let initramfs = fs::canonicalize(path).map_err(|error| {
            Failure::io(format!("The initramfs {} cannot be read", path.display()), &error)
        })?;
        return Ok(BootFiles { kernel, initramfs });
    }
    let (_, archive) = with_agent(arguments.agent.as_deref(), &modules)?;
    let initramfs =
        kept(place, &archive).map_err(|error| Failure::io("The initramfs cannot be written", &error))?;
    Ok(BootFiles { kernel, initramfs })
}

/// The kernel's path, when it is one.
pub(crate) fn checked_kernel(path: &Path) -> Result<PathBuf, Failure> {
    recognise(path).map_err(|error| {
        let exit = if error.kind == ImageErrorKind::NotFound { NOT_FOUND } else { crate::exit::USAGE };
        Failure::new(exit, format!("The kernel cannot be used: {error}"))
            .advise("Give a vmlinux or bzImage with --kernel FILE, or `--kernel debian`.")
    })?;
    fs::canonicalize(path).map_err(|error| Failure::io("The kernel cannot be read", &error))
}

/// An initramfs with the agent that is found first, and where that was.
pub(crate) fn with_agent(named: Option<&Path>, modules: &[PathBuf]) -> Result<(PathBuf, Vec<u8>), Failure> {
    let build = |agent: &Path| Initramfs { agent, modules, packing: Packing::Plain }.build();
    if let Some(agent) = named {
        return build(agent).map(|archive| (agent.to_owned(), archive)).map_err(|error| {
            let exit = if error.kind == ImageErrorKind::NotFound { NOT_FOUND } else { crate::exit::USAGE };
            Failure::new(exit, format!("The guest agent cannot be used: {error}")).advise(HOW)
        });
    }
    let mut looked = Vec::new();
    for agent in candidates() {
        match build(&agent) {
            Ok(archive) => return Ok((agent, archive)),
            Err(error) if error.kind == ImageErrorKind::NotFound => looked.push(agent.display().to_string()),
            Err(error) => looked.push(error.to_string()),
        }
    }
    Err(Failure::new(NOT_FOUND, format!("The guest agent was not found; looked at: {}.", looked.join("; ")))
        .advise(HOW))
}

const HOW: &str = "Build it: `cargo build --profile agent -p flames-guest-agent --target x86_64-unknown-linux-gnu` with RUSTFLAGS='-C target-feature=+crt-static'; then name it with --agent or FLAMES_GUEST_AGENT, or put it beside `flames`.";

fn candidates() -> Vec<PathBuf> {
    let Some(beside) = std::env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned))
    else {
        return Vec::new();
    };
    vec![beside.join(AGENT), beside.join("../lib/flames").join(AGENT)]
}

/// The archive as a file named by its digest. One that is there is whole: it was put in its place at once.
fn kept(place: &Path, archive: &[u8]) -> std::io::Result<PathBuf> {
    let digest = hex::encode(Sha256::digest(archive));
    let path = place.join(format!("{INITRAMFS}{}", &digest[..32]));
    if !path.is_file() {
        let mut file = tempfile::NamedTempFile::new_in(place)?;
        file.write_all(archive)?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
    }
    Ok(path)
}

/// Removes every initramfs that was made in `place` and is neither `current` nor one of those that are `needed`.
pub(crate) fn prune(place: &Path, current: &Path, needed: &BTreeSet<PathBuf>) {
    let same = |one: &Path, other: &Path| one == other || fs::canonicalize(one).is_ok_and(|one| one == other);
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let path = entry.path();
        let made_here = entry.file_name().to_str().is_some_and(|name| name.starts_with(INITRAMFS));
        let is_needed = same(&path, current) || needed.iter().any(|needed| same(&path, needed));
        if made_here
            && !is_needed
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "an old initramfs could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_is_not_static_is_refused_with_what_to_do() {
        let failure = with_agent(Some(Path::new("/bin/ls")), &[]).unwrap_err();
        assert!(failure.message.contains("/bin/ls"), "{}", failure.message);
        assert!(failure.advice.unwrap().contains("crt-static"));
        let failure = with_agent(Some(Path::new("/no/such/agent")), &[]).unwrap_err();
        assert_eq!(failure.exit, NOT_FOUND);
    }

    #[test]
    fn a_kernel_that_is_none_is_told_as_what_it_is() {
        let failure = checked_kernel(Path::new("/bin/ls")).unwrap_err();
        assert!(failure.message.contains("ordinary program"), "{}", failure.message);
        assert_eq!(checked_kernel(Path::new("/no/such/kernel")).unwrap_err().exit, NOT_FOUND);
    }

    #[test]
    fn an_initramfs_is_kept_once_under_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let first = kept(folder.path(), b"archive").unwrap();
        assert_eq!(kept(folder.path(), b"archive").unwrap(), first);
        assert_ne!(kept(folder.path(), b"other").unwrap(), first);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_initramfs_goes_when_no_machine_needs_it() {
        let folder = tempfile::tempdir().unwrap();
        let current = kept(folder.path(), b"current").unwrap();
        let needed = kept(folder.path(), b"needed").unwrap();
        let old = kept(folder.path(), b"old").unwrap();
        let other = folder.path().join("vmlinuz");
        fs::write(&other, "not one of ours").unwrap();
        prune(folder.path(), &current, &BTreeSet::from([needed.clone(), "/elsewhere/initramfs-0".into()]));
        assert!(current.exists() && needed.exists() && other.exists());
        assert!(!old.exists());
    }
}
