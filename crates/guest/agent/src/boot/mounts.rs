use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use flames_guest_protocol::config::RootConfig;
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, mount, mount_move, mount_remount};

use super::BootResult;
use super::drives::find_device;

/// The root of the image, in the initramfs.
const LOWER: &str = "/flames/lower";
/// The writable device, in the initramfs.
const UPPER: &str = "/flames/upper";
/// The future root, in the initramfs.
const NEW_ROOT: &str = "/flames/root";

const HARDENED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// The file systems that must not stay writable at the end, by descriptors, since paths no longer lead there.
#[derive(Debug, Default)]
pub struct Roots(Vec<OwnedFd>);

impl Roots {
    /// Makes them read-only, which writes everything out. What fails is left to the journal.
    pub(super) fn make_read_only(&self) {
        for root in &self.0 {
            use std::os::fd::AsRawFd;
            let path = format!("/proc/self/fd/{}", root.as_raw_fd());
            let _ = mount_remount(path, MountFlags::RDONLY, c"");
        }
    }
}

fn text(value: &str) -> BootResult<CString> {
    CString::new(value).map_err(|_| format!("{value:?} has a zero byte"))
}

fn attach(source: &str, target: &str, kind: &str, flags: MountFlags, options: &str) -> BootResult<()> {
    directory(target)?;
    let options = text(options)?;
    mount(source, target, kind, flags, Some(options.as_c_str()))
        .map_err(|error| format!("mount {kind} {source} on {target}: {error}"))
}

fn directory(path: &str) -> BootResult<()> {
    if Path::new(path).is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|error| format!("make the directory {path}: {error}"))
}

/// Mounts what the agent itself needs, and moves its messages to the console.
pub(super) fn kernel_file_systems() -> BootResult<()> {
    // A kernel may have mounted devtmpfs already.
    if !Path::new("/dev/null").exists() {
        attach("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755")?;
    }
    if let Ok(console) = open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdin(&console);
        let _ = rustix::stdio::dup2_stdout(&console);
        let _ = rustix::stdio::dup2_stderr(&console);
    }
    attach("proc", "/proc", "proc", HARDENED, "")?;
    attach("sysfs", "/sys", "sysfs", HARDENED, "")
}

/// Keeps the initramfs as the root.
pub(super) fn stay() -> BootResult<Roots> {
    system_file_systems("")?;
    Ok(Roots::default())
}

/// Mounts the root from its devices and makes it `/`. The agent's binary stays in memory.
pub(super) fn switch_root(root: &RootConfig, limit: Duration) -> BootResult<Roots> {
    let lower = find_device(&root.lower, limit)?;
    let lower = lower.to_string_lossy();
    let mut roots = Roots::default();
    match &root.upper {
        None => {
            attach(&lower, NEW_ROOT, &root.lower_filesystem, MountFlags::NOATIME, "")?;
            roots.0.push(reference(NEW_ROOT)?);
        }
        Some(upper) => {
            let upper = find_device(upper, limit)?;
            let read_only = MountFlags::RDONLY | MountFlags::NOATIME;
            attach(&lower, LOWER, &root.lower_filesystem, read_only, "")?;
            attach(&upper.to_string_lossy(), UPPER, "ext4", MountFlags::NOATIME, "")?;
            directory(&format!("{UPPER}/upper"))?;
            directory(&format!("{UPPER}/work"))?;
            let options = format!("lowerdir={LOWER},upperdir={UPPER}/upper,workdir={UPPER}/work");
            attach("overlay", NEW_ROOT, "overlay", MountFlags::NOATIME, &options)?;
            roots.0.push(reference(NEW_ROOT)?);
            roots.0.push(reference(UPPER)?);
        }
    }
    for moved in ["/dev", "/proc", "/sys"] {
        let target = format!("{NEW_ROOT}{moved}");
        directory(&target)?;
        mount_move(moved, &target).map_err(|error| format!("move {moved} to the new root: {error}"))?;
    }
    free_initramfs();
    let failed = |error: rustix::io::Errno| format!("switch to the new root: {error}");
    rustix::process::chdir(NEW_ROOT).map_err(failed)?;
    mount_move(".", "/").map_err(failed)?;
    rustix::process::chroot(".").map_err(failed)?;
    rustix::process::chdir("/").map_err(failed)?;
    system_file_systems("")?;
    Ok(roots)
}

fn reference(path: &str) -> BootResult<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|error| format!("open {path}: {error}"))
}

// The initramfs is memory. Only what is known to be ours and to be of no more use goes.
fn free_initramfs() {
    let _ = std::fs::remove_file("/init");
    let _ = std::fs::remove_dir_all("/flames/modules");
    let _ = std::fs::remove_dir_all("/lib/modules");
}

/// The file systems that programs expect. What an image does not let us mount is left out: only `/dev/pts` and
/// `/run` are worth ending the boot for.
fn system_file_systems(root: &str) -> BootResult<()> {
    let at = |path: &str| format!("{root}{path}");
    let private = MountFlags::NOSUID | MountFlags::NOEXEC;
    attach("devpts", &at("/dev/pts"), "devpts", private, "gid=5,mode=0620,ptmxmode=0666")?;
    attach("tmpfs", &at("/run"), "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=0755,size=20%")?;
    let shared = MountFlags::NOSUID | MountFlags::NODEV;
    let _ = attach("tmpfs", &at("/dev/shm"), "tmpfs", shared, "mode=1777");
    let _ = attach("mqueue", &at("/dev/mqueue"), "mqueue", HARDENED, "");
    let _ = attach("cgroup2", &at("/sys/fs/cgroup"), "cgroup2", HARDENED, "");
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(target, at(link));
    }
    // An image without a /tmp gets one; one that is there keeps its owner and mode.
    let temporary = at("/tmp");
    if !Path::new(&temporary).exists() && std::fs::create_dir(&temporary).is_ok() {
        let _ = rustix::fs::chmod(&temporary, Mode::from_raw_mode(0o1777));
    }
    Ok(())
}
