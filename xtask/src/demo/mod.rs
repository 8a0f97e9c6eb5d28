//! `cargo xtask demo`: from a fresh clone to the output of a real microVM, through the whole control plane.

mod control_plane;
mod timeline;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use rustix::fs::FlockOperation;

use crate::guest::DEBIAN;
use crate::process::{Echo, Supervisor};
use crate::stages::Stages;
use crate::{Verdict, guest, tools, workspace};
use control_plane::{ControlPlane, Settings};

/// What the base image is called in Flames.
const IMAGE: &str = "debian";
/// The label of VMs of the demo, by which those that an earlier demo left are found.
const LABEL: &str = "flames-demo=yes";
/// The variable in which the nonce goes into the guest.
const NONCE: &str = "FLAMES_DEMO_NONCE";
/// What the guest runs. The nonce's line is looked for afterwards.
const SCRIPT: &str = "uname -a; cat /etc/os-release; echo \"nonce $FLAMES_DEMO_NONCE\"";
/// The base image is 100 MB that are fetched, unpacked and packed.
const BASE_LIMIT: Duration = Duration::from_secs(1200);
/// The import converts these 100 MB to a file system.
const IMPORT_LIMIT: Duration = Duration::from_secs(600);
/// A guest boots in 5 s under emulation on an idle machine; this is for one that is not idle.
const RUN_LIMIT: Duration = Duration::from_secs(300);
/// For a short question to the API, or the removal of a VM.
const CALL_LIMIT: Duration = Duration::from_secs(150);

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo
  cargo xtask demo --keep                      (then: flames ps, exec, run …; it says how)
  cargo xtask demo --kernel ./vmlinux          (a vmlinux or bzImage with virtio built in; .xz too)

The first run installs what is missing (as root, with apt; else it says what to type), builds,
and makes kernel and base image from Debian's packages: some minutes. Later runs reuse all of it.
FLAMES_QEMU names another QEMU. Everything lies in one folder, which may be deleted.";

/// Boot a real microVM through the whole control plane, from a fresh clone.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DemoArguments {
    /// Leave `flames up` and a VM running at the end, and say how to use and how to stop them.
    #[arg(long)]
    keep: bool,
    /// The folder for all that the demo makes [default: target/demo].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The kernel of the guest: a file, or `debian` for Debian's packaged one.
    #[arg(long, value_name = "FILE", default_value = DEBIAN)]
    kernel: PathBuf,
    /// What runs the guest's processor.
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    accel: Accel,
}

/// As of `flames up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Accel {
    /// KVM when the kernel boots under it here, else emulation.
    Auto,
    /// KVM, untried.
    Kvm,
    /// Emulation.
    Tcg,
}

impl Accel {
    /// What `flames up` is told, when it is told anything.
    fn argument(self) -> Option<&'static str> {
        match self {
            Self::Auto => None,
            Self::Kvm => Some("kvm"),
            Self::Tcg => Some("tcg"),
        }
    }
}

/// What was built.
struct Programs {
    flames: PathBuf,
    base_maker: PathBuf,
    agent: PathBuf,
}

/// Runs the demo. Refused when the guest did not answer with the nonce.
///
/// # Errors
/// When something cannot be installed, built, made or started, or the run was interrupted. What the demo started has
/// been ended then.
pub(crate) fn run(arguments: &DemoArguments) -> Result<Verdict> {
    let folder = arguments.data.clone().unwrap_or_else(|| workspace::target_folder().join("demo"));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let folder = std::fs::canonicalize(folder)?;
    let _alone = lock(&folder)?;
    control_plane::refuse_a_second(&folder)?;
    let from_debian = arguments.kernel == Path::new(DEBIAN) && !arguments.kernel.exists();
    let named = &arguments.kernel;
    ensure!(from_debian || named.is_file(), "--kernel names {}, which is not a file", named.display());
    let supervisor = Supervisor::start()?;
    let mut stages = Stages::default();

    let asks_apt = !has_base(&folder.join("base")) || (from_debian && !folder.join("data/boot").is_dir());
    let needed = ["qemu", "xz", "mmdebstrap"];
    stages.run("tools", || tools::require(&supervisor, &needed, asks_apt))?;
    let kernel = if from_debian { named.clone() } else { named_kernel(&supervisor, named, &folder)? };
    let programs = stages.run("build", || build(&supervisor))?;
    let base = stages.run("base image", || make_base(&supervisor, &programs.base_maker, &folder))?;

    let settings = Settings {
        flames: programs.flames,
        agent: programs.agent,
        kernel,
        accel: arguments.accel.argument(),
        folder: folder.clone(),
    };
    let control = stages.run("flames up", || ControlPlane::start(&supervisor, settings))?;
    let outcome = show(&supervisor, &mut stages, &control, &base, arguments.keep);
    match outcome {
        Ok((verdict, Some(vm))) => {
            println!("\n{}", stages.line());
            println!("{}", control.how_to_use(&vm));
            supervisor.leave();
            Ok(verdict)
        }
        Ok((verdict, None)) => {
            stages.run("end", || control.stop(&supervisor))?;
            println!("\n{}", stages.line());
            println!("{}", control.how_to_start_again());
            Ok(verdict)
        }
        Err(error) => {
            println!("\n=== end");
            if !error.is::<crate::process::Interrupted>() {
                control.tell_log();
            }
            control.stop(&supervisor)?;
            Err(error)
        }
    }
}

/// From the import to the timeline. Answers the VM that is left running, when one is.
fn show(
    supervisor: &Supervisor,
    stages: &mut Stages,
    control: &ControlPlane,
    base: &Path,
    keep: bool,
) -> Result<(Verdict, Option<String>)> {
    stages.run("image import", || {
        control.remove_left_vms(supervisor, LABEL)?;
        import(supervisor, control, base)
    })?;
    let nonce = nonce()?;
    let vm = format!("demo-{}", &nonce[..6]);
    let output = stages.run("a microVM", || run_guest(supervisor, control, &vm, &nonce))?;
    let verdict = judge(&output, &nonce);
    match verdict {
        Verdict::Passed => println!("the nonce came back: this was a guest of this run"),
        Verdict::Refused => println!("FAILED: the guest did not answer with the nonce {nonce}"),
    }
    println!("\n=== timeline of {vm}");
    let record = control.json(supervisor, CALL_LIMIT, &["inspect", &vm])?;
    println!("{}", timeline::table(&record)?);
    if !keep {
        control.call(supervisor, CALL_LIMIT, &["rm", "--force", &vm])?;
        return Ok((verdict, None));
    }
    let kept = format!("{vm}-kept");
    stages.run("a microVM that stays", || {
        let arguments = ["run", "--detach", "--name", &kept, "--label", LABEL, IMAGE];
        control.call(supervisor, RUN_LIMIT, &arguments)
    })?;
    Ok((verdict, Some(kept)))
}

/// The kernel that was named, unpacked when it is packed.
fn named_kernel(supervisor: &Supervisor, named: &Path, folder: &Path) -> Result<PathBuf> {
    if named.extension().is_some_and(|extension| extension == "xz") {
        return guest::unpack(supervisor, named, &folder.join("kernel"));
    }
    Ok(std::path::absolute(named)?)
}

fn build(supervisor: &Supervisor) -> Result<Programs> {
    println!(
        "profile dev: the quicker one to build, and the demo waits for the guest rather than for Flames"
    );
    let mut command = workspace::cargo();
    command
        .args(["build", "--package", "flames", "--package", "flames-image", "--bins"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(workspace::root());
    let (ended, messages) = supervisor.run_capturing(&mut command, Echo::No)?;
    ensure!(ended.success(), "Flames does not build: {ended}");
    let executable = |name| {
        guest::executable_of(&messages, name).with_context(|| format!("the build made no program {name}"))
    };
    Ok(Programs {
        flames: executable("flames")?,
        base_maker: executable("flames-debian-base")?,
        agent: guest::build_agent(supervisor)?,
    })
}

/// The folder for this demo alone, as long as the answer is kept.
fn lock(folder: &Path) -> Result<File> {
    let lock = File::create(folder.join("lock")).context("the folder of the demo cannot be written")?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another demo works in {}. Wait for it, or give another folder with --data", folder.display());
    }
    Ok(lock)
}

fn make_base(supervisor: &Supervisor, maker: &Path, folder: &Path) -> Result<PathBuf> {
    let folder = folder.join("base");
    remove_half_made(&folder);
    let mut command = Command::new(maker);
    command.arg(&folder);
    let made = supervisor.within(BASE_LIMIT, || {
        let (ended, text) = supervisor.run_capturing(&mut command, Echo::Yes)?;
        ensure!(ended.success(), "the base image cannot be made: {ended}");
        Ok(PathBuf::from(text.trim()))
    });
    if made.is_err() {
        // What writes there must have ended first.
        supervisor.end_leftovers();
        remove_half_made(&folder);
    }
    made
}

fn has_base(folder: &Path) -> bool {
    entries(folder).any(|path| path.extension().is_some_and(|extension| extension == "tar"))
}

/// Removes what a making that was interrupted left, which may be 200 MB.
fn remove_half_made(folder: &Path) {
    for path in entries(folder) {
        let half_made = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".base-"));
        if half_made && let Err(error) = std::fs::remove_dir_all(&path) {
            println!("{} cannot be removed: {error}", path.display());
        }
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// Imports the base image, unless it was imported from this very file before.
fn import(supervisor: &Supervisor, control: &ControlPlane, base: &Path) -> Result<()> {
    let state = std::fs::metadata(base)?;
    let state = format!("{} {} {:?}", base.display(), state.len(), state.modified()?);
    let note = control.folder().join("imported");
    let there = control.call_silently(supervisor, CALL_LIMIT, &["--quiet", "image", "ls"])?;
    if there.lines().any(|name| name == IMAGE)
        && std::fs::read_to_string(&note).is_ok_and(|known| known == state)
    {
        println!("there: {IMAGE}");
        return Ok(());
    }
    let path = base.to_str().context("the path of the base image is no text")?;
    control.call(supervisor, IMPORT_LIMIT, &["image", "import", IMAGE, path])?;
    std::fs::write(&note, state)?;
    Ok(())
}

fn run_guest(supervisor: &Supervisor, control: &ControlPlane, vm: &str, nonce: &str) -> Result<String> {
    let variable = format!("{NONCE}={nonce}");
    let arguments =
        ["run", "--name", vm, "--label", LABEL, "--env", &variable, IMAGE, "--", "/bin/sh", "-c", SCRIPT];
    let result = control.call(supervisor, RUN_LIMIT, &arguments);
    if let Err(error) = &result
        && !error.is::<crate::process::Interrupted>()
    {
        control.tell_console(supervisor, CALL_LIMIT, vm);
    }
    result
}

/// Whether the guest said all that it was asked for.
fn judge(output: &str, nonce: &str) -> Verdict {
    let answered = output.lines().any(|line| line.trim_end() == format!("nonce {nonce}"));
    let kernel = output.lines().any(|line| line.starts_with("Linux "));
    let system = output.lines().any(|line| line.starts_with("PRETTY_NAME="));
    if answered && kernel && system { Verdict::Passed } else { Verdict::Refused }
}

/// 64 bits that nobody can know before this run.
fn nonce() -> Result<String> {
    let mut bytes = [0; 8];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if let Err(error) = read {
        bail!("the system gives no randomness: {error}");
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_does_not_know_the_nonce_is_refused() {
        let output = "Linux demo 6.1\r\nPRETTY_NAME=\"Debian\"\r\nnonce 01ab\r\n";
        assert_eq!(judge(output, "01ab"), Verdict::Passed);
        assert_eq!(judge(output, "01a"), Verdict::Refused);
        assert_eq!(judge("nonce 01ab\n", "01ab"), Verdict::Refused);
    }

    #[test]
    fn what_was_half_made_goes_and_what_is_whole_stays() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join(".base-x/root")).unwrap();
        assert!(!has_base(folder.path()));
        std::fs::write(folder.path().join("base-a.tar"), "").unwrap();
        remove_half_made(folder.path());
        assert!(has_base(folder.path()));
        assert!(!folder.path().join(".base-x").exists());
        remove_half_made(&folder.path().join("none"));
    }

    #[test]
    fn two_demos_do_not_work_in_one_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        assert!(lock(folder.path()).is_err());
        drop(first);
        lock(folder.path()).unwrap();
    }

    #[test]
    fn no_two_nonces_are_alike() {
        let (one, other) = (nonce().unwrap(), nonce().unwrap());
        assert_eq!(one.len(), 16);
        assert_ne!(one, other);
    }
}
