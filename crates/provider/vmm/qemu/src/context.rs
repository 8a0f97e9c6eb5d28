//! What all parts of one driver share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::process::{boot_id, find_program};
use flames_vmm_local::Exits;
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::config::QemuConfig;

/// What was found of QEMU on this host.
#[derive(Debug, Clone)]
pub(crate) struct Installed {
    pub(crate) binary: PathBuf,
    pub(crate) version: String,
    /// Its build has a seccomp filter.
    pub(crate) has_sandbox: bool,
}

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) config: QemuConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) exits: Exits,
    pub(crate) boot_id: String,
    installed: OnceCell<Installed>,
    tsc_khz: OnceCell<Option<u64>>,
}

impl Context {
    pub(crate) fn new(config: QemuConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        let boot_id = boot_id().map_err(|error| {
            Error::internal("vmm.new", "the host's boot id cannot be read").with_source(error)
        })?;
        Ok(Self {
            config,
            clock,
            exits: Exits::default(),
            boot_id,
            installed: OnceCell::new(),
            tsc_khz: OnceCell::new(),
        })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.config.folder
    }

    /// QEMU, when it works here. `NotSupported` with a sentence for an operator otherwise; looked for anew at the next call, since it
    /// may be installed meanwhile.
    pub(crate) async fn installed(&self) -> Result<&Installed> {
        self.installed.get_or_try_init(|| self.look_for_qemu()).await
    }

    async fn look_for_qemu(&self) -> Result<Installed> {
        let named = self.config.binary.display();
        let unusable = |sentence: String| {
            Error::new(ErrorKind::NotSupported, "vmm.capabilities", sentence.clone())
                .with_user_message(sentence)
        };
        let binary = find_program(&self.config.binary).ok_or_else(|| {
            unusable(format!(
                "`{named}` was not found: install QEMU (on Debian: `apt install qemu-system-x86`)."
            ))
        })?;
        let version_text = self.ask(&binary, "-version").await.map_err(|error| {
            unusable(format!("`{named} -version` does not work: reinstall QEMU.")).with_source(error)
        })?;
        let version = version_text
            .strip_prefix("QEMU emulator version ")
            .and_then(|rest| rest.split_ascii_whitespace().next())
            .ok_or_else(|| unusable(format!("`{named}` is not QEMU: name its binary, or install it.")))?
            .to_owned();
        // The option is in the help only where it is in the build.
        let help = self.ask(&binary, "-help").await.unwrap_or_default();
        Ok(Installed { binary, version, has_sandbox: help.contains("-sandbox on") })
    }

    async fn ask(&self, binary: &Path, question: &str) -> Result<String> {
        let failed = |message: &str| Error::unavailable("vmm.capabilities", message.to_owned());
        let mut command = Command::new(binary);
        command.arg(question).env_clear().stdin(std::process::Stdio::null()).kill_on_drop(true);
        let output = self
            .clock
            .timeout(self.config.deadlines.command, command.output())
            .await
            .map_err(|late| failed("no answer").with_source(late))?
            .map_err(|error| failed("it cannot be run").with_source(error))?;
        if !output.status.success() {
            return Err(failed("it failed").with_context("status", output.status));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The rate of the host's time stamp counter, which an emulated guest reads too.
    pub(crate) async fn tsc_khz(&self) -> Option<u64> {
        *self.tsc_khz.get_or_init(|| async { blocking(|| Ok(measure_tsc_khz())).await.ok().flatten() }).await
    }
}

/// Measured, since neither `/proc/cpuinfo` (a momentary frequency) nor CPUID tells it on every host. This is a property of the
/// hardware, so it is measured against the hardware's clock, not against the program's, which may be simulated. Takes 50 ms; good to
/// about 10 parts per million.
#[cfg(target_arch = "x86_64")]
fn measure_tsc_khz() -> Option<u64> {
    use rustix::time::{ClockId, clock_gettime};
    let reading = || {
        // SAFETY: RDTSC is part of every x86-64 processor and touches no memory.
        #[allow(unsafe_code)]
        let ticks = unsafe { core::arch::x86_64::_rdtsc() };
        let at = clock_gettime(ClockId::MonotonicRaw);
        Some((ticks, Duration::new(u64::try_from(at.tv_sec).ok()?, u32::try_from(at.tv_nsec).ok()?)))
    };
    let (first_ticks, first) = reading()?;
    std::thread::sleep(Duration::from_millis(50));
    let (last_ticks, last) = reading()?;
    let microseconds =
        u64::try_from(last.checked_sub(first)?.as_micros()).ok().filter(|passed| *passed > 0)?;
    let khz = last_ticks.checked_sub(first_ticks)?.checked_mul(1000)? / microseconds;
    // Outside of this range something is wrong with the counter, and the guest does better on its own.
    (100_000..=20_000_000).contains(&khz).then_some(khz)
}

#[cfg(not(target_arch = "x86_64"))]
fn measure_tsc_khz() -> Option<u64> {
    None
}
