//! The programs that a run needs beside Rust: what is missing is installed, and each line says what and why.

mod python;
mod rights;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::process::Supervisor;
use crate::servers::{ServerKind, Source};
use crate::workspace;
use python::{Installing, PythonEnvironment};

/// One program of the system and the Debian package that has it.
struct SystemProgram {
    program: &'static str,
    package: &'static str,
    /// What suites call it in `FLAMES_REQUIRE`.
    requirement: &'static str,
    why: &'static str,
}

const SYSTEM_PROGRAMS: [SystemProgram; 9] = [
    SystemProgram {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        requirement: "qemu",
        why: "runs the virtual machines",
    },
    SystemProgram {
        program: "mke2fs",
        package: "e2fsprogs",
        requirement: "mke2fs",
        why: "makes root file systems",
    },
    SystemProgram { program: "xz", package: "xz-utils", requirement: "xz", why: "unpacks kernels" },
    SystemProgram {
        program: "mmdebstrap",
        package: "mmdebstrap",
        requirement: "mmdebstrap",
        why: "makes the base image from Debian's packages",
    },
    SystemProgram {
        program: "cpio",
        package: "cpio",
        requirement: "cpio",
        why: "reads initramfs archives back in tests",
    },
    SystemProgram {
        program: "busybox",
        package: "busybox-static",
        requirement: "busybox",
        why: "is the user land of test guests",
    },
    SystemProgram {
        program: "python3",
        package: "python3",
        requirement: "python3",
        why: "runs schemathesis against the HTTP API",
    },
    SystemProgram {
        program: "nft",
        package: "nftables",
        requirement: "nft",
        why: "filters what microVMs send and receive",
    },
    SystemProgram {
        program: "ip",
        package: "iproute2",
        requirement: "ip",
        why: "shows what networks of microVMs left behind",
    },
];

const SCHEMATHESIS: &str = "schemathesis==4.32.5";

/// What is there after the installation.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    /// The names for `FLAMES_REQUIRE`: a suite must not skip for lack of any of these.
    pub(crate) available: Vec<&'static str>,
    /// What is not there, each with the reason.
    pub(crate) missing: Vec<String>,
    /// The program of that name, in its virtual environment.
    pub(crate) schemathesis: Option<PathBuf>,
    /// Folders to put before `PATH`.
    pub(crate) path_folders: Vec<PathBuf>,
}

/// Installs what is missing, servers included. Without the rights to do so, it says what to install, and the rest goes on
/// without.
///
/// # Errors
/// When an installation that should work fails, or there is no nextest in the end.
pub(crate) fn install(supervisor: &Supervisor) -> Result<Tools> {
    let mut tools = Tools::default();
    let environments = vec![
        ("it sends hostile requests to the API", PythonEnvironment::new("schemathesis", vec![SCHEMATHESIS])),
        (WHY_WHEELS, server_wheels(&ServerKind::ALL)),
    ];
    // PyPI while apt is at work, where Python is there already; and while cargo is.
    let mut installing = Vec::new();
    let mut waiting = environments;
    if let Some(python) = python::python() {
        installing = begin(supervisor, &python, std::mem::take(&mut waiting))?;
    }
    install_system_programs(supervisor, &mut tools, &ServerKind::ALL)?;
    match python::python() {
        Some(python) => installing.extend(begin(supervisor, &python, waiting)?),
        None => tools.missing.extend(waiting.iter().map(|(why, environment)| {
            format!("{} (PyPI), which needs python3 and python3-venv: {why}", environment.packages())
        })),
    }
    install_nextest(supervisor, &mut tools)?;
    for installation in installing {
        installation.finish(supervisor)?;
    }
    let schemathesis = tools_folder().join("schemathesis/bin/schemathesis");
    if schemathesis.exists() {
        if !works(Command::new(&schemathesis).arg("--version")) {
            bail!("{} does not start", schemathesis.display());
        }
        tools.available.push("schemathesis");
        tools.schemathesis = Some(schemathesis);
    }
    rights::look(&mut tools);
    println!("there: {}", tools.available.join(", "));
    for missing in &tools.missing {
        println!("missing: {missing}");
    }
    Ok(tools)
}

/// Installs these servers alone, and answers which are missing because there is no right to install them.
///
/// # Errors
/// When an installation that should work fails.
pub(crate) fn install_servers(supervisor: &Supervisor, wanted: &[ServerKind]) -> Result<Vec<String>> {
    let environment = server_wheels(wanted);
    let absent = absent_servers(wanted);
    let mut packages: Vec<&str> = absent.iter().map(|(_, package)| *package).collect();
    let needs_python = !environment.is_empty() && !environment.is_installed() && python::python().is_none();
    if needs_python {
        packages.push("python3-venv");
    }
    if !packages.is_empty() && may_install() {
        tell_installation(&absent);
        apt_install(supervisor, &packages)?;
    }
    let mut missing = Vec::new();
    if !environment.is_empty() {
        match python::python() {
            Some(python) => {
                for installation in begin(supervisor, &python, vec![(WHY_WHEELS, environment)])? {
                    installation.finish(supervisor)?;
                }
            }
            None => missing.push("the Debian package python3-venv".to_owned()),
        }
    }
    missing.extend(
        absent_servers(wanted)
            .into_iter()
            .map(|(kind, package)| format!("the Debian package {package}, which {}", kind.why())),
    );
    Ok(missing)
}

const WHY_WHEELS: &str = "they are servers that adapters are tested against";

/// The environment with those of these servers that come from PyPI. All of them always, so that a run that wants one does not
/// take away those of another; empty when none of these does.
fn server_wheels(wanted: &[ServerKind]) -> PythonEnvironment {
    let wheel = |kind: &ServerKind| match kind.source() {
        Source::Wheel(wheel) => Some(wheel),
        Source::Apt(_) => None,
    };
    let packages = if wanted.iter().any(|kind| wheel(kind).is_some()) {
        ServerKind::ALL.iter().filter_map(wheel).collect()
    } else {
        vec![]
    };
    let environment = PythonEnvironment::new("servers", packages);
    flames_test_servers::prefer_folder(environment.programs());
    environment
}

/// Those that come from Debian and are not there, with their packages.
fn absent_servers(wanted: &[ServerKind]) -> Vec<(ServerKind, &'static str)> {
    let absent = |kind: &ServerKind| match kind.source() {
        Source::Apt(package) => {
            kind.find().is_err_and(|missing| missing.is_absent).then_some((*kind, package))
        }
        Source::Wheel(_) => None,
    };
    wanted.iter().filter_map(absent).collect()
}

fn tell_installation(servers: &[(ServerKind, &'static str)]) {
    for (kind, package) in servers {
        println!("installing {package} (apt; its service is not started): it {}", kind.why());
    }
}

/// Begins those of these environments that are not installed yet.
fn begin(
    supervisor: &Supervisor,
    python: &Path,
    environments: Vec<(&'static str, PythonEnvironment)>,
) -> Result<Vec<Installing>> {
    let absent = environments.into_iter().filter(|(_, environment)| !environment.is_installed());
    absent
        .map(|(why, environment)| {
            println!("installing {} (PyPI): {why}", environment.packages());
            environment.begin(supervisor, python)
        })
        .collect()
}

fn may_install() -> bool {
    rustix::process::geteuid().is_root() && find("apt-get").is_some()
}

/// Installs those of the system's programs that are named (as in [`SystemProgram::requirement`]) and missing, and has
/// apt's lists of packages fresh when `lists` says that packages will be asked for.
///
/// # Errors
/// When one is missing and cannot be installed: what to type is in the error then.
pub(crate) fn require(supervisor: &Supervisor, names: &[&str], lists: bool) -> Result<()> {
    let wanted = || SYSTEM_PROGRAMS.iter().filter(|program| names.contains(&program.requirement));
    let absent: Vec<&SystemProgram> = wanted().filter(|program| find(program.program).is_none()).collect();
    let may_install = may_install();
    if !absent.is_empty() {
        let packages: Vec<&str> = absent.iter().map(|program| program.package).collect();
        for program in &absent {
            println!(
                "{}: {} (apt): it {}",
                if may_install { "installing" } else { "missing" },
                program.package,
                program.why
            );
        }
        if !may_install {
            bail!(
                "type this first, then the same again: sudo apt-get update && sudo apt-get install {} uidmap",
                packages.join(" ")
            );
        }
        apt_install(supervisor, &packages)?;
    } else if lists && may_install {
        println!("updating apt's lists: kernel and base image come from the newest packages");
        apt_update(supervisor)?;
    }
    if let Some(program) = wanted().find(|program| find(program.program).is_none()) {
        bail!("{} was installed, and there is no {}", program.package, program.program);
    }
    println!("there: {}", wanted().map(|program| program.program).collect::<Vec<_>>().join(", "));
    Ok(())
}

fn install_system_programs(supervisor: &Supervisor, tools: &mut Tools, servers: &[ServerKind]) -> Result<()> {
    let absent: Vec<&SystemProgram> =
        SYSTEM_PROGRAMS.iter().filter(|program| find(program.program).is_none()).collect();
    let absent_of_servers = absent_servers(servers);
    let mut packages: Vec<&str> = absent.iter().map(|program| program.package).collect();
    packages.extend(absent_of_servers.iter().map(|(_, package)| *package));
    if python::python().is_none() {
        packages.push("python3-venv");
    }
    if !packages.is_empty() {
        if may_install() {
            for program in &absent {
                println!("installing {} (apt): it {}", program.package, program.why);
            }
            tell_installation(&absent_of_servers);
            apt_install(supervisor, &packages)?;
        } else {
            println!(
                "not root, or no apt-get here. To have it all: sudo apt-get install {}",
                packages.join(" ")
            );
        }
    }
    for program in &SYSTEM_PROGRAMS {
        if find(program.program).is_some() {
            tools.available.push(program.requirement);
        } else {
            tools
                .missing
                .push(format!("{} (package {}), which {}", program.program, program.package, program.why));
        }
    }
    for (kind, package) in absent_servers(servers) {
        tools.missing.push(format!("{} (package {package}), which {}", kind.name(), kind.why()));
    }
    Ok(())
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
    // A package with a server would start it, on its usual port: systemctl then only notes that it is enabled (systemd's
    // ENVIRONMENT.md), and in runlevel 1 no init script is due (runlevel(8) answers what this variable says).
    command.env("SYSTEMD_OFFLINE", "1").env("RUNLEVEL", "1");
    command
}

fn apt_update(supervisor: &Supervisor) -> Result<()> {
    supervisor.run_to_success(&mut apt(&["update"]))
}

fn apt_install(supervisor: &Supervisor, packages: &[&str]) -> Result<()> {
    apt_update(supervisor)?;
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    supervisor.run_to_success(&mut apt(&arguments))
}

fn install_nextest(supervisor: &Supervisor, tools: &mut Tools) -> Result<()> {
    let folder = tools_folder().join("bin");
    if works(workspace::cargo().args(["nextest", "--version"])) {
        return Ok(());
    }
    if !folder.join("cargo-nextest").exists() {
        println!(
            "installing cargo-nextest (crates.io): it runs each test in its own process, with a deadline"
        );
        let mut command = workspace::cargo();
        command.args(["install", "cargo-nextest", "--locked", "--root"]).arg(tools_folder());
        supervisor.run_to_success(&mut command)?;
    }
    tools.path_folders.push(folder);
    Ok(())
}

/// The version of the QEMU that tests find, when there is one.
pub(crate) fn qemu_version() -> Option<String> {
    flames_test_servers::program_version("qemu", &find("qemu-system-x86_64")?, "--version").ok()
}

/// The version of the Firecracker that tests find, when there is one.
pub(crate) fn firecracker_version() -> Option<String> {
    let named = std::env::var_os("FLAMES_FIRECRACKER").map(PathBuf::from);
    let program = named.or_else(|| find("firecracker"))?;
    flames_test_servers::program_version("firecracker", &program, "--version").ok()
}

fn tools_folder() -> PathBuf {
    workspace::target_folder().join("tools")
}

/// Whether a short command exits with 0.
fn works(command: &mut Command) -> bool {
    let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    silent.status().is_ok_and(|status| status.success())
}

/// A program on `PATH`, or where Debian keeps programs for root.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(program, std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)))
}

fn find_in(program: &str, folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    folders.map(|folder| folder.join(program)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_its_name_and_a_file_without_execute_permission_is_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tool"), "#!/bin/sh\n").unwrap();
        let folders = || [PathBuf::from("/nonexistent"), folder.path().to_owned()].into_iter();
        assert_eq!(find_in("tool", folders()), None);
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path().join("tool"), executable).unwrap();
        assert_eq!(find_in("tool", folders()), Some(folder.path().join("tool")));
    }

    #[test]
    fn every_program_has_a_name_of_its_own_for_what_suites_require() {
        let mut names: Vec<&str> = SYSTEM_PROGRAMS.iter().map(|program| program.requirement).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SYSTEM_PROGRAMS.len());
    }
}
