//! What goes into a test guest: the agent, and a kernel.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::process::{Echo, Interrupted, Supervisor};
use crate::workspace;

/// The one target for which the agent is built.
const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";

/// What its binary is called.
const AGENT_BINARY: &str = "flames-guest-agent";

/// Names the kernel for tests, when it is not the one beside the checkout.
const KERNEL_VARIABLE: &str = "FLAMES_TEST_KERNEL";

/// Names the folder of that kernel's modules, when a guest must load some.
const MODULES_VARIABLE: &str = "FLAMES_TEST_KERNEL_MODULES";
/// Names the custom CPU template (a file of JSON) that it needs under Firecracker.
const TEMPLATE_VARIABLE: &str = "FLAMES_TEST_CPU_TEMPLATE";

/// What lets the test kernel, with its template, run on a KVM that emulates a guest's kernel mode (see `shared/guest-kernel/README.md`).
pub(crate) const EMULATED_ARGUMENTS: &str = "quiet loglevel=1 noxsave clearcpuid=141,308,295,151,158,288,59 lpj=5000000 tsc=reliable \
    no_timer_check random.trust_cpu=off GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-AVX,-AVX512F,-XSAVE,-XSAVEC";

/// The word that stands for Debian's packaged kernel, as in `flames up --kernel debian`.
pub(crate) const DEBIAN: &str = "debian";

/// The program that fetches it.
const KERNEL_FETCHER: &str = "flames-debian-kernel";

/// 30 MB, also over a slow line.
const FETCH_LIMIT: Duration = Duration::from_secs(360);

/// Builds the guest agent as one static binary and returns its path.
///
/// # Errors
/// When it does not build.
pub(crate) fn build_agent(supervisor: &Supervisor) -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command
        .args(["build", "--profile", "agent", "--target", AGENT_TARGET, "--package", "flames-guest-agent"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(workspace::root())
        // This form wins over every other place for flags, so no local setting can make the agent a dynamic binary,
        // which would end silently in an initramfs that has no loader. With `--target` it does not reach build scripts.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    let (ended, messages) = supervisor.run_capturing(&mut command, Echo::No)?;
    if !ended.success() {
        bail!("the guest agent does not build: {ended}");
    }
    executable_of(&messages, AGENT_BINARY).context("the package flames-guest-agent has no binary")
}

/// The executable of that name that cargo's JSON messages tell of (one object a line; `compiler-artifact` has
/// `executable`).
pub(crate) fn executable_of(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let path = PathBuf::from(message.get("executable")?.as_str()?);
        path.file_name().is_some_and(|file| file == name).then_some(path)
    })
}

/// A kernel for guests of tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TestKernel {
    /// A vmlinux or bzImage.
    pub(crate) kernel: PathBuf,
    /// The folder of the modules that a guest must load, for a kernel that has not all of them built in.
    pub(crate) modules: Option<PathBuf>,
    /// The custom CPU template that it needs under Firecracker, when it needs one.
    pub(crate) cpu_template: Option<PathBuf>,
}

impl TestKernel {
    /// What suites read of it.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let word = |name, path: &PathBuf| (name, path.as_os_str().to_owned());
        let modules = self.modules.as_ref().map(|folder| word(MODULES_VARIABLE, folder));
        let template = self.cpu_template.as_ref().map(|file| word(TEMPLATE_VARIABLE, file));
        [word(KERNEL_VARIABLE, &self.kernel)].into_iter().chain(modules).chain(template).collect()
    }
}

/// The kernel for guests of tests: `FLAMES_TEST_KERNEL` (a file, with its modules in `FLAMES_TEST_KERNEL_MODULES` when it needs some; or
/// `debian`), else the one that `../shared/guest-kernel` carries, unpacked once, else Debian's packaged one, fetched once.
/// `None` when there is none of these, and why; then suites that boot say that they skip.
///
/// # Errors
/// When a kernel was named that is not there, or the packed one does not unpack.
pub(crate) fn test_kernel(supervisor: &Supervisor) -> Result<Result<TestKernel, String>> {
    let folder = workspace::target_folder().join("test-kernel");
    if let Some(named) = std::env::var_os(KERNEL_VARIABLE).map(PathBuf::from) {
        if named == Path::new(DEBIAN) && !named.exists() {
            return debian_kernel(supervisor, &folder).map(Ok);
        }
        if !named.is_file() {
            bail!("{KERNEL_VARIABLE} names {}, which is not a file", named.display());
        }
        let modules = match std::env::var_os(MODULES_VARIABLE).map(PathBuf::from) {
            Some(modules) if !modules.is_dir() => {
                bail!("{MODULES_VARIABLE} names {}, which is not a folder", modules.display())
            }
            Some(modules) => Some(std::path::absolute(modules)?),
            None => None,
        };
        let cpu_template = std::env::var_os(TEMPLATE_VARIABLE).map(std::path::absolute).transpose()?;
        return Ok(Ok(TestKernel { kernel: std::path::absolute(named)?, modules, cpu_template }));
    }
    let packed = workspace::root().join("../shared/guest-kernel/vmlinux-6.12-emulated.xz");
    if packed.is_file() {
        let kernel = unpack(supervisor, &packed, &folder)?;
        let template = packed.with_file_name("cpu-template.json");
        let cpu_template = template.is_file().then(|| std::path::absolute(template)).transpose()?;
        return Ok(Ok(TestKernel { kernel, modules: None, cpu_template }));
    }
    // Not being able to fetch one is no reason to run none of the tests that need none.
    match debian_kernel(supervisor, &folder) {
        Err(error) if error.is::<Interrupted>() => Err(error),
        fetched => Ok(fetched.map_err(|error| format!("{error:#}"))),
    }
}

/// Debian's packaged kernel, fetched once into `folder` by the same code as `flames up --kernel debian`.
///
/// # Errors
/// When apt has none, or it cannot be fetched.
fn debian_kernel(supervisor: &Supervisor, folder: &Path) -> Result<TestKernel> {
    let mut build = workspace::cargo();
    build
        .args(["build", "--package", "flames-image", "--bin", KERNEL_FETCHER])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(workspace::root());
    let (ended, messages) = supervisor.run_capturing(&mut build, Echo::No)?;
    if !ended.success() {
        bail!("{KERNEL_FETCHER} does not build: {ended}");
    }
    let fetcher = executable_of(&messages, KERNEL_FETCHER).context("the build made no fetcher of kernels")?;
    let fetched = supervisor.within(FETCH_LIMIT, || {
        let (ended, text) = supervisor.run_capturing(Command::new(fetcher).arg(folder), Echo::No)?;
        if !ended.success() {
            bail!("Debian's kernel cannot be fetched (it is told above why): {ended}");
        }
        Ok(text)
    })?;
    fetched_kernel(&fetched).context("what fetches Debian's kernel did not say where it is")
}

/// The two lines that `flames-debian-kernel` prints.
fn fetched_kernel(text: &str) -> Option<TestKernel> {
    let mut lines = text.lines();
    let (kernel, modules) = (lines.next()?, lines.next()?);
    Some(TestKernel { kernel: kernel.into(), modules: Some(modules.into()), cpu_template: None })
}

/// Unpacks `packed`, an xz file, into `folder`, once for each state of `packed`.
///
/// # Errors
/// When it is damaged, or `folder` cannot be written.
pub(crate) fn unpack(supervisor: &Supervisor, packed: &Path, folder: &Path) -> Result<PathBuf> {
    let name = packed.file_stem().context("the packed kernel has no name")?;
    let unpacked = folder.join(name);
    let changed = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified());
    if let (Ok(before), Ok(after)) = (changed(packed), changed(&unpacked))
        && before <= after
    {
        return Ok(unpacked);
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut partial = tempfile::NamedTempFile::new_in(folder)?;
    let output = Stdio::from(partial.as_file_mut().try_clone()?);
    supervisor
        .run_to_success(Command::new("xz").args(["--decompress", "--stdout"]).arg(packed).stdout(output))?;
    partial.persist(&unpacked)?;
    // A temporary file is for its owner alone; a driver that gives up root must still be able to read this one.
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&unpacked, readable)?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_found_by_what_cargo_says_that_it_built() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
             {\"reason\":\"compiler-artifact\",\"executable\":\"/t/agent/flames-guest-agent\"}\n\
             {\"reason\":\"build-finished\",\"success\":true}\n";
        let found = executable_of(messages, AGENT_BINARY);
        assert_eq!(found, Some(PathBuf::from("/t/agent/flames-guest-agent")));
        assert_eq!(executable_of(messages, "agent"), None);
        assert_eq!(executable_of("{\"reason\":\"build-finished\"}\nnot json\n", AGENT_BINARY), None);
    }

    #[test]
    fn the_kernel_that_was_fetched_is_passed_on_with_its_modules() {
        let kernel = fetched_kernel("/k/vmlinuz\n/k/modules\n").unwrap();
        assert_eq!(
            kernel.environment(),
            [(KERNEL_VARIABLE, "/k/vmlinuz".into()), (MODULES_VARIABLE, "/k/modules".into())]
        );
        assert_eq!(fetched_kernel("/k/vmlinuz\n"), None);
        let whole = TestKernel { kernel: "/k/vmlinux".into(), modules: None, cpu_template: None };
        assert_eq!(whole.environment(), [(KERNEL_VARIABLE, "/k/vmlinux".into())]);
    }
}
