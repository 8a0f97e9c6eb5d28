//! The programs that a run needs beside Rust: what is missing is installed, and each line says what and why.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process::Supervisor;
use crate::workspace;

/// One program of the system and the Debian package that has it.
struct SystemProgram {
    program: &'static str,
    package: &'static str,
    /// What suites call it in `FLAMES_REQUIRE`.
    requirement: &'static str,
    why: &'static str,
}

const SYSTEM_PROGRAMS: [SystemProgram; 7] = [
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

/// Installs what is missing. Without the rights to do so, it says what to install, and the rest goes on without.
///
/// # Errors
/// When an installation that should work fails, or there is no nextest in the end.
pub(crate) fn install(supervisor: &Supervisor) -> Result<Tools> {
    let mut tools = Tools::default();
    install_system_programs(supervisor, &mut tools)?;
    install_nextest(supervisor, &mut tools)?;
    install_schemathesis(supervisor, &mut tools)?;
    println!("there: {}", tools.available.join(", "));
    for missing in &tools.missing {
        println!("missing: {missing}");
    }
    Ok(tools)
}

/// Installs those of the system's programs that are named (as in [`SystemProgram::requirement`]) and missing, and has
/// apt's lists of packages fresh when `lists` says that packages will be asked for.
///
/// # Errors
/// When one is missing and cannot be installed: what to type is in the error then.
pub(crate) fn require(supervisor: &Supervisor, names: &[&str], lists: bool) -> Result<()> {
    let wanted = || SYSTEM_PROGRAMS.iter().filter(|program| names.contains(&program.requirement));
    let absent: Vec<&SystemProgram> = wanted().filter(|program| find(program.program).is_none()).collect();
    let may_install = rustix::process::geteuid().is_root() && find("apt-get").is_some();
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

fn install_system_programs(supervisor: &Supervisor, tools: &mut Tools) -> Result<()> {
    let absent: Vec<&SystemProgram> =
        SYSTEM_PROGRAMS.iter().filter(|program| find(program.program).is_none()).collect();
    let packages: Vec<&str> = absent.iter().map(|program| program.package).collect();
    if !absent.is_empty() {
        if rustix::process::geteuid().is_root() && find("apt-get").is_some() {
            for program in &absent {
                println!("installing {} (apt): it {}", program.package, program.why);
            }
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
    Ok(())
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
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

fn install_schemathesis(supervisor: &Supervisor, tools: &mut Tools) -> Result<()> {
    let Some(python) = find("python3") else {
        tools.missing.push(format!("{SCHEMATHESIS}, which needs python3"));
        return Ok(());
    };
    let environment = tools_folder().join("schemathesis");
    let program = environment.join("bin/schemathesis");
    // Written last, so an installation that was interrupted is done again.
    let marker = environment.join("installed");
    let installed = std::fs::read_to_string(&marker).is_ok_and(|version| version == SCHEMATHESIS);
    if !installed || !works(Command::new(&program).arg("--version")) {
        println!("installing {SCHEMATHESIS} (PyPI): it sends hostile requests to the API");
        if !works(Command::new(&python).args(["-c", "import ensurepip, venv"])) {
            if !(rustix::process::geteuid().is_root() && find("apt-get").is_some()) {
                tools.missing.push(format!("{SCHEMATHESIS}, which needs the Debian package python3-venv"));
                return Ok(());
            }
            println!("installing python3-venv (apt): it keeps schemathesis out of the system's Python");
            apt_install(supervisor, &["python3-venv"])?;
        }
        supervisor.run_to_success(Command::new(&python).args(["-m", "venv", "--clear"]).arg(&environment))?;
        supervisor.run_to_success(Command::new(environment.join("bin/pip")).args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            SCHEMATHESIS,
        ]))?;
        std::fs::write(&marker, SCHEMATHESIS).context("cannot write into the virtual environment")?;
    }
    if !works(Command::new(&program).arg("--version")) {
        bail!("{} does not start", program.display());
    }
    tools.available.push("schemathesis");
    tools.schemathesis = Some(program);
    Ok(())
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
