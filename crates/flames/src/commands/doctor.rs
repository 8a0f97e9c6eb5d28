//! `flames doctor`: what keeps VMs from starting here, and what to do.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use crate::args::{DoctorArgs, Global};
use crate::exit::{FAILED, Outcome};
use crate::output::Output;
use crate::{connect, up};

/// How long a program may take to say its version.
const PROGRAM: Duration = Duration::from_secs(10);
/// Free disk below which nothing works for long, and below which it will be scarce.
const DISK_LEAST: u64 = 512 << 20;
const DISK_GOOD: u64 = 4 << 30;
/// Free memory below which no VM of the default size starts.
const MEMORY_LEAST: u64 = 512 << 20;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// Fine.
    Ok,
    /// It works, and could be better.
    Note,
    /// VMs cannot start.
    Fatal,
}

/// One check.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

fn check(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Check {
    Check { name, verdict, found: found.into(), advice: None }
}

impl Check {
    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// Looks at everything; fails when something keeps VMs from starting.
pub(super) async fn doctor(global: &Global, output: Output, arguments: &DoctorArgs) -> Outcome {
    let mut checks =
        vec![qemu().await, kvm(), kernel(arguments.kernel.as_deref()), agent(arguments.agent.as_deref())];
    checks.extend(data_folder(global));
    checks.push(memory());
    checks.push(api(global).await);
    let fatal = checks.iter().any(|check| check.verdict == Verdict::Fatal);
    if output.json {
        output.json(&checks)?;
    } else {
        let rows = checks.iter().map(|check| {
            let mark = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Note => "note",
                Verdict::Fatal => "FATAL",
            };
            vec![mark.to_owned(), check.name.to_owned(), check.found.clone()]
        });
        output.table(&["", "check", "found"], rows.collect())?;
        for check in &checks {
            if let Some(advice) = &check.advice {
                output.say(format!("{}: {advice}", check.name));
            }
        }
        if !fatal {
            output.say("VMs can start here.");
        }
    }
    Ok(if fatal { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

async fn qemu() -> Check {
    let program = std::env::var_os("FLAMES_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
    let mut command = tokio::process::Command::new(&program);
    command.arg("--version").stdin(std::process::Stdio::null()).kill_on_drop(true);
    let shown = PathBuf::from(program).display().to_string();
    match tokio::time::timeout(PROGRAM, command.output()).await {
        Ok(Ok(answer)) if answer.status.success() => {
            let text = String::from_utf8_lossy(&answer.stdout).lines().next().unwrap_or_default().to_owned();
            check("qemu", Verdict::Ok, text)
        }
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
            check("qemu", Verdict::Fatal, format!("`{shown}` is not installed")).advise(
                "Install it (Debian: apt install qemu-system-x86), or name it with --qemu or FLAMES_QEMU.",
            )
        }
        Ok(Err(error)) => check("qemu", Verdict::Fatal, format!("`{shown}`: {error}")),
        Ok(Ok(answer)) => {
            check("qemu", Verdict::Fatal, format!("`{shown} --version` failed ({})", answer.status))
        }
        Err(_) => check("qemu", Verdict::Fatal, format!("`{shown} --version` does not end")),
    }
}

fn kvm() -> Check {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => check("kvm", Verdict::Ok, "/dev/kvm opens; each kernel is tried under it before it is used"),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            check("kvm", Verdict::Note, "there is no /dev/kvm: guests are emulated, which is slow")
                .advise("On real hardware, load the module (modprobe kvm_intel or kvm_amd); in a VM, switch nested virtualisation on.")
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            check("kvm", Verdict::Note, "/dev/kvm may not be opened by this user: guests are emulated, which is slow")
                .advise("Add yourself to its group: sudo usermod -aG kvm $USER, then log in again.")
        }
        Err(error) => check("kvm", Verdict::Note, format!("/dev/kvm cannot be opened ({error}): guests are emulated")),
    }
}

fn kernel(named: Option<&Path>) -> Check {
    match named {
        None => check("kernel", Verdict::Note, "none named: VMs must name one of their own")
            .advise("Give `flames up` one: --kernel FILE, or `--kernel debian`; FLAMES_KERNEL does too."),
        Some(path) if path == Path::new("debian") && !path.exists() => {
            check("kernel", Verdict::Ok, "Debian's packaged kernel, fetched at the first start")
        }
        Some(path) => match up::checked_kernel(path) {
            Ok(path) => check("kernel", Verdict::Ok, path.display().to_string()),
            Err(failure) => {
                let advice = failure.advice.unwrap_or_default();
                check("kernel", Verdict::Fatal, failure.message).advise(advice)
            }
        },
    }
}

fn agent(named: Option<&Path>) -> Check {
    match up::with_agent(named, &[]) {
        Ok((path, _)) => check("guest agent", Verdict::Ok, path.display().to_string()),
        Err(failure) => {
            let advice = failure.advice.unwrap_or_default();
            check("guest agent", Verdict::Fatal, failure.message).advise(advice)
        }
    }
}

fn data_folder(global: &Global) -> Vec<Check> {
    let folder = match connect::data_folder(global) {
        Ok(folder) => folder,
        Err(failure) => {
            let advice = failure.advice.unwrap_or_default();
            return vec![check("data folder", Verdict::Fatal, failure.message).advise(advice)];
        }
    };
    let shown = folder.path().display().to_string();
    // The nearest folder that is there: the others are made by `flames up`.
    let there = folder.path().ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let own = there == folder.path();
    let writable =
        rustix::fs::access(there, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok();
    let mut checks = Vec::new();
    checks.push(match writable {
        true if own => check("data folder", Verdict::Ok, shown),
        true => check("data folder", Verdict::Ok, format!("{shown} (is made at the first start)")),
        false => check("data folder", Verdict::Fatal, format!("{} may not be written to", there.display()))
            .advise("Name a folder of your own with --data or FLAMES_DATA."),
    });
    checks.push(match rustix::fs::statvfs(there) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let found = format!("{} free below {}", crate::output::bytes(free), there.display());
            match free {
                free if free < DISK_LEAST => check("disk", Verdict::Fatal, found)
                    .advise("Make room, or name a folder on another disk with --data."),
                free if free < DISK_GOOD => {
                    check("disk", Verdict::Note, found).advise("Images and disks of VMs will fill it soon.")
                }
                _ => check("disk", Verdict::Ok, found),
            }
        }
        Err(error) => check("disk", Verdict::Note, format!("unknown: {}", std::io::Error::from(error))),
    });
    checks
}

fn memory() -> Check {
    // proc_meminfo(5): what can be had without swapping, in KiB.
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    match available.map(|kib| kib.saturating_mul(1024)) {
        Some(bytes) if bytes < MEMORY_LEAST => {
            check("memory", Verdict::Note, format!("{} available", crate::output::bytes(bytes)))
                .advise("A VM of the default size (256 MiB) hardly fits. Give VMs less: --memory 128M.")
        }
        Some(bytes) => check("memory", Verdict::Ok, format!("{} available", crate::output::bytes(bytes))),
        None => check("memory", Verdict::Note, "unknown"),
    }
}

async fn api(global: &Global) -> Check {
    let api = match connect::find(global) {
        Ok(api) => api,
        Err(failure) => {
            return check("api", Verdict::Note, failure.message).advise("Start it with `flames up`.");
        }
    };
    match api.client.version().await {
        Ok(version) => {
            check("api", Verdict::Ok, format!("{} answers (Flames {})", api.address, version.version))
        }
        Err(error) => {
            let failure = crate::exit::Failure::from(error);
            let found = check("api", Verdict::Note, format!("{}: {}", api.address, failure.message));
            found.advise(failure.advice.unwrap_or_else(|| "See the log of `flames up`.".into()))
        }
    }
}
