//! What goes into a test guest: the agent, and a kernel.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process::{Echo, Supervisor};
use crate::workspace;

/// The one target for which the agent is built.
const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";

/// What its binary is called.
const AGENT_BINARY: &str = "flames-guest-agent";

/// Names the kernel for tests, when it is not the one beside the checkout.
const KERNEL_VARIABLE: &str = "FLAMES_TEST_KERNEL";

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

/// The kernel for guests of tests: `FLAMES_TEST_KERNEL`, else the one that `../shared/guest-kernel` carries,
/// unpacked once. `None` when there is neither; then suites that boot say that they skip.
///
/// # Errors
/// When a kernel was named that is not there, or the packed one does not unpack.
pub(crate) fn test_kernel(supervisor: &Supervisor) -> Result<Option<PathBuf>> {
    if let Some(named) = std::env::var_os(KERNEL_VARIABLE).map(PathBuf::from) {
        if !named.is_file() {
            bail!("{KERNEL_VARIABLE} names {}, which is not a file", named.display());
        }
        return Ok(Some(std::path::absolute(named)?));
    }
    let packed = workspace::root().join("../shared/guest-kernel/vmlinux-6.12-emulated.xz");
    if !packed.is_file() {
        return Ok(None);
    }
    unpack(supervisor, &packed, &workspace::target_folder().join("test-kernel")).map(Some)
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
}
