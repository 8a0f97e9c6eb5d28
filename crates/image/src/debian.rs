//! Kernel and base image out of Debian's (or Ubuntu's) packages, from the archives that this machine's own apt is set up with. No
//! registry, no host named here, nothing installed on the machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::run;
use crate::error::{ImageError, ImageErrorKind, Result};
use crate::kernel::{GUEST_MODULES, ordered_modules, recognise};

/// The package that depends on the newest kernel for virtual machines.
pub const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// Downloads and unpacking of a kernel (30 MB).
const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(300);
/// A base image takes 30 s on two cores; slow mirrors take longer.
const BOOTSTRAP_DEADLINE: Duration = Duration::from_secs(900);
/// Where the modules of a kernel that is kept are, beside it.
const KEPT_MODULES: &str = "modules";
const QUERY_DEADLINE: Duration = Duration::from_secs(60);
/// Left out of the base image: what nobody reads in a VM.
const LEFT_OUT: [&str; 6] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/usr/lib/x86_64-linux-gnu/gconv/*",
];
/// No file of the base image is younger than this (2023-06-10, Debian 12's release), so that two makings of it are alike.
const LATEST_TIME: &str = "1686355200";

/// A kernel taken from a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelPackage {
    /// The package and its version, as `linux-image-6.1.0-56-cloud-amd64=6.1.192-2`.
    pub package: String,
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The modules that a guest needs, in the order in which they must be loaded.
    pub modules: Vec<PathBuf>,
}

impl KernelPackage {
    /// The folder that holds these modules and no others, for [`ordered_modules`].
    pub fn modules_folder(&self) -> PathBuf {
        self.kernel.with_file_name(KEPT_MODULES)
    }
}

/// Downloads the newest kernel that [`KERNEL_PACKAGE`] stands for and unpacks kernel and modules into a folder of `cache`. A second call finds
/// it there, without asking the network. `progress` is told what is being done.
///
/// Blocks for as long as the download takes. Errors: `MissingProgram`; `NotFound` when apt knows no such package (run `apt-get
/// update`); `TimedOut`; `NotAKernel`; `Io`.
pub fn kernel(cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<KernelPackage> {
    let package = kernel_package()?;
    let place = cache.join(format!("debian-kernel-{}", package.replace(['=', ':', '~'], "_")));
    let note = place.join("kernel.json");
    if let Ok(bytes) = fs::read(&note)
        && let Ok(known) = serde_json::from_slice::<KernelPackage>(&bytes)
        && known.kernel.starts_with(&place)
        && known.kernel.is_file()
        && known.modules.iter().all(|module| module.is_file())
    {
        return Ok(known);
    }
    fs::create_dir_all(cache)?;
    let staging = tempfile::Builder::new().prefix(".kernel-").tempdir_in(cache)?;
    progress(&format!("downloading {package}"));
    let deb = download(&package, staging.path())?;
    progress(&format!("unpacking {package}"));
    let tree = staging.path().join("tree");
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree), "dpkg", DOWNLOAD_DEADLINE)?;
    let kernel = only_entry(&tree.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    recognise(&kernel)?;
    let versions = ["lib/modules", "usr/lib/modules"].map(|folder| tree.join(folder));
    let versions = versions.iter().find(|folder| folder.is_dir());
    let versions = versions.ok_or_else(|| ImageError::malformed("the kernel's package has no modules"))?;
    let modules_folder = only_entry(versions, |_| true)?;
    unpack_modules(&modules_folder)?;
    let modules = ordered_modules(&modules_folder, &GUEST_MODULES)?;

    // Only what is needed is kept: 15 MB instead of 120.
    let kept = staging.path().join("kept");
    fs::create_dir_all(kept.join(KEPT_MODULES))?;
    fs::rename(&kernel, kept.join("vmlinuz"))?;
    let mut named = Vec::new();
    for module in &modules {
        let name = module.file_name().ok_or_else(|| ImageError::internal("a module without a name"))?;
        fs::rename(module, kept.join(KEPT_MODULES).join(name))?;
        named.push(place.join(KEPT_MODULES).join(name));
    }
    let found = KernelPackage { package, kernel: place.join("vmlinuz"), modules: named };
    let text = serde_json::to_vec_pretty(&found).map_err(|error| ImageError::internal(error.to_string()))?;
    fs::write(kept.join("kernel.json"), text)?;
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::rename(&kept, &place)?;
    File::open(cache)?.sync_all()?;
    Ok(found)
}

/// The versioned package that [`KERNEL_PACKAGE`] depends on, as `name=version`.
fn kernel_package() -> Result<String> {
    let shown = run(
        Command::new("apt-cache").args(["show", "--no-all-versions", KERNEL_PACKAGE]).env("LC_ALL", "C"),
        "apt",
        QUERY_DEADLINE,
    )
    .map_err(|error| match error.kind {
        ImageErrorKind::Io => unknown_package(),
        _ => error,
    })?;
    parse_dependency(&String::from_utf8_lossy(&shown)).ok_or_else(unknown_package)
}

fn unknown_package() -> ImageError {
    ImageError::new(
        ImageErrorKind::NotFound,
        format!("apt knows no package `{KERNEL_PACKAGE}`: run `apt-get update`, or name another kernel"),
    )
}

/// `Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)` as `name=version`.
fn parse_dependency(shown: &str) -> Option<String> {
    let list = shown.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    let one = list.split(',').map(str::trim).find(|one| one.starts_with("linux-image-"))?;
    let (name, version) = one.split_once(" (= ")?;
    let package = format!("{name}={}", version.strip_suffix(')')?);
    package.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"=.+-~:_".contains(&byte)).then_some(package)
}

fn download(package: &str, folder: &Path) -> Result<PathBuf> {
    // As root, apt drops its privilege for downloads and then cannot write here; root stays root in a folder of its own.
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "-o", "APT::Sandbox::User=root", "download", package])
        .current_dir(folder)
        .env("LC_ALL", "C");
    run(&mut command, "apt", DOWNLOAD_DEADLINE)?;
    only_entry(folder, |name| name.ends_with(".deb"))
}

fn only_entry(folder: &Path, fits: impl Fn(&str) -> bool) -> Result<PathBuf> {
    for item in fs::read_dir(folder).map_err(|error| ImageError::from(error).at_path(folder))? {
        let item = item?;
        if item.file_name().to_str().is_some_and(&fits) {
            return Ok(item.path());
        }
    }
    Err(ImageError::malformed("the package does not hold what it should").at_path(folder))
}

/// Later Debian releases compress their modules with xz. The guest's agent loads plain ones.
fn unpack_modules(folder: &Path) -> Result<()> {
    let mut folders = vec![folder.to_path_buf()];
    let mut packed = Vec::new();
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(&folder)? {
            let item = item?;
            if item.file_type()?.is_dir() {
                folders.push(item.path());
            } else if item.path().extension().is_some_and(|extension| extension == "xz") {
                packed.push(item.path());
            }
        }
    }
    for part in packed.chunks(256) {
        run(Command::new("xz").arg("-d").arg("--").args(part), "xz-utils", DOWNLOAD_DEADLINE)?;
    }
    Ok(())
}

/// Unpacks an `.xz` file (such as the test kernel) into `cache`, once, and answers where it is; any other file is answered as it is.
///
/// Errors: `NotFound`; `MissingProgram`; `TimedOut`; `Io` when it is damaged.
pub fn unpacked_xz(file: &Path, cache: &Path) -> Result<PathBuf> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return Ok(file.to_path_buf());
    }
    let metadata = fs::metadata(file).map_err(|error| ImageError::from(error).at_path(file))?;
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or("unpacked");
    let modified = std::os::unix::fs::MetadataExt::mtime(&metadata);
    let place = cache.join(format!("{stem}-{}-{modified}", metadata.len()));
    if place.is_file() {
        return Ok(place);
    }
    fs::create_dir_all(cache)?;
    let staging = tempfile::Builder::new().prefix(".unpack-").tempdir_in(cache)?;
    let copy = staging.path().join("file.xz");
    fs::copy(file, &copy)?;
    run(Command::new("xz").arg("-d").arg("-f").arg("--").arg(&copy), "xz-utils", DOWNLOAD_DEADLINE)?;
    let made = staging.path().join("file");
    File::open(&made)?.sync_all()?;
    fs::rename(&made, &place)?;
    Ok(place)
}

/// Makes a tar of a small Debian (essential packages: bash, coreutils, `/etc/os-release`, apt) in `cache` and answers where it is. A second call
/// finds it there. Takes about 30 s and 100 MB on two cores. As root it is made in a chroot, else in a user namespace; the owners in the
/// tar are right either way.
///
/// Blocks. Errors: `MissingProgram`; `NotFound` when apt has no archive of a Debian or Ubuntu; `TimedOut`; `Io`.
pub fn base_tar(cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let archives = archives()?;
    let place = cache.join(format!("base-{}-{}.tar", archives.codename, std::env::consts::ARCH));
    if place.is_file() {
        return Ok(place);
    }
    fs::create_dir_all(cache)?;
    let staging = tempfile::Builder::new().prefix(".base-").tempdir_in(cache)?;
    let made = staging.path().join("base.tar");
    let list = staging.path().join("sources.list");
    fs::write(&list, archives.lines.join("\n") + "\n")?;
    progress(&format!("making a base image of {} packages (half a minute)", archives.codename));
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=essential", "--format=tar", "--skip=output/dev"]);
    command.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    command.arg(&archives.codename).arg(&made).arg(&list);
    command.env("SOURCE_DATE_EPOCH", LATEST_TIME).env("LC_ALL", "C").env("TMPDIR", staging.path());
    // The user that a user namespace maps must be able to pass through.
    fs::set_permissions(staging.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    run(&mut command, "mmdebstrap", BOOTSTRAP_DEADLINE)?;
    File::open(&made)?.sync_all()?;
    fs::rename(&made, &place)?;
    Ok(place)
}

struct Archives {
    codename: String,
    lines: Vec<String>,
}

/// The distribution's own archives among those that apt is set up with, as lines of a `sources.list`.
fn archives() -> Result<Archives> {
    let format = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(CODENAME)|$(SIGNED_BY)";
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", format, "Created-By: Packages"]).env("LC_ALL", "C");
    let output = run(&mut command, "apt", QUERY_DEADLINE)?;
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|it| it.trim_matches('"'));
    let none = || {
        ImageError::new(
            ImageErrorKind::NotFound,
            "apt has no archive of Debian or Ubuntu here: run `apt-get update`, or import an image of your own",
        )
    };
    let codename = codename.ok_or_else(none)?;
    let lines = parse_archives(&String::from_utf8_lossy(&output), codename);
    if lines.is_empty() {
        return Err(none());
    }
    Ok(Archives { codename: codename.to_owned(), lines })
}

fn parse_archives(targets: &str, codename: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for target in targets.lines() {
        let fields: Vec<&str> = target.split('|').collect();
        let [uri, release, component, origin, suite, signed_by] = fields.as_slice() else { continue };
        if !matches!(*origin, "Debian" | "Ubuntu")
            || !suite.starts_with(codename)
            || !release.starts_with(codename)
        {
            continue;
        }
        // A field that apt does not know stays as it was asked for.
        let option =
            if signed_by.starts_with('/') { format!("[signed-by={signed_by}] ") } else { String::new() };
        let line = format!("deb {option}{uri} {release} {component}");
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versioned_package_is_found_in_what_apt_shows() {
        let shown = "Package: x\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nSize: 1\n";
        assert_eq!(parse_dependency(shown).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64=6.1.192-2"));
        assert_eq!(parse_dependency("Depends: linux-image-6 (= 1; rm -rf)"), None);
        assert_eq!(parse_dependency("Package: x\n"), None);
    }

    #[test]
    fn only_the_distribution_s_own_archives_are_used() {
        let targets = "http://a.example/debian/|bookworm|main|Debian|bookworm|$(SIGNED_BY)\n\
             http://a.example/debian/|bookworm-updates|main|Debian|bookworm-updates|/k.gpg\n\
             http://b.example/|nodistro|main|Other|nodistro|/k.gpg\n";
        assert_eq!(
            parse_archives(targets, "bookworm"),
            [
                "deb http://a.example/debian/ bookworm main",
                "deb [signed-by=/k.gpg] http://a.example/debian/ bookworm-updates main"
            ]
        );
    }
}
