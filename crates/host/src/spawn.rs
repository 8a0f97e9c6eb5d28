//! Starting a process that outlives us, confined before it runs its first instruction.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::iter;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::UnshareFlags;

use crate::vfork::{self, Image};

/// What to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// The file to execute.
    pub binary: &'a Path,
    /// Its arguments, without its own name.
    pub arguments: &'a [OsString],
    /// Open files that the process gets under the same numbers.
    pub inherited: &'a [OwnedFd],
    /// Its standard input; `/dev/null` when there is none.
    pub input: Option<File>,
    /// Its standard output; `/dev/null` when there is none.
    pub output: Option<File>,
    /// Its standard error.
    pub errors: File,
    /// What holds for it from its first instruction on.
    pub confinement: Confinement,
}

/// What is done between fork and exec, in the order of the fields. What fails makes the start fail.
#[derive(Debug, Default)]
pub struct Confinement {
    /// Files named `cgroup.procs`, or `tasks` in version 1, open for writing: the process, of one thread still, enters these groups.
    pub groups: Vec<File>,
    /// The permissions that files made by the process never get (umask(2)); ours when there is none.
    pub umask: Option<u32>,
    /// The kernel writes no core file of the process, which would hold all of its memory.
    pub no_core_file: bool,
    /// Mounts that the process alone has, in a mount namespace of its own: they are gone with it, however it ends. No namespace is made
    /// when there are none.
    pub mounts: Vec<BindMount>,
}

/// A file or folder that is seen at a second place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    source: CString,
    target: CString,
    read_only: bool,
}

impl BindMount {
    /// Both must be there. Devices and set-user-id bits have no effect below it. Errors: `InvalidInput` for a path with a zero byte.
    pub fn new(source: &Path, target: &Path, read_only: bool) -> io::Result<Self> {
        let name = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from);
        Ok(Self { source: name(source)?, target: name(target)?, read_only })
    }

    /// Allocates nothing, so that it may be called between fork and exec.
    fn mount(&self) -> io::Result<()> {
        let (source, target) = (self.source.as_c_str(), self.target.as_c_str());
        rustix::mount::mount_bind(source, target)?;
        // The flags of a bind mount are heeded by a second call only (mount(2)).
        let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        if self.read_only {
            flags |= MountFlags::RDONLY;
        }
        Ok(rustix::mount::mount_remount(target, flags, c"")?)
    }
}

impl Confinement {
    /// Makes system calls only: it runs between fork and exec.
    fn enter(&self) -> io::Result<()> {
        for group in &self.groups {
            // Zero is the writer itself (cgroups(7)).
            rustix::io::write(group, b"0")?;
        }
        if let Some(mask) = self.umask {
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
        }
        if self.no_core_file {
            rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
        }
        if !self.mounts.is_empty() {
            // SAFETY: only `UnshareFlags::FILES` can take descriptors away from other threads; and the child has one thread.
            #[allow(unsafe_code)]
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
            let propagation = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change(c"/", propagation)?;
            self.mounts.iter().try_for_each(BindMount::mount)?;
        }
        Ok(())
    }
}

/// Held for reading by whoever forks, until the child has become its program.
static BETWEEN_FORK_AND_EXEC: RwLock<()> = RwLock::new(());

/// Runs `work` while no child of this crate's is between its fork and its program: so that what is opened and closed again in it is open in no
/// other process afterwards, not even for a moment. For what one process alone may have open, as a tap. Blocks; `work` is to be short.
pub fn without_forks<T>(work: impl FnOnce() -> T) -> T {
    let _alone = BETWEEN_FORK_AND_EXEC.write().unwrap_or_else(PoisonError::into_inner);
    work()
}

/// Starts a child while [`without_forks`] does not run: for programs that are started without [`spawn_detached`].
pub fn forking<T>(start: impl FnOnce() -> T) -> T {
    let _begins = BETWEEN_FORK_AND_EXEC.read().unwrap_or_else(PoisonError::into_inner);
    start()
}

/// Starts a process in a session of its own, without a terminal, so that neither our end nor a Ctrl-C reaches it. Its environment is empty
/// and its folder is `/`. Blocks until it has become its program.
///
/// Errors: those of the confinement and of execve(2); `InvalidInput` for a word with a zero byte. No process is left then.
pub fn spawn_detached(program: Program<'_>) -> io::Result<u32> {
    let word = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
    let binary = word(program.binary.as_os_str())?;
    let words: Vec<CString> =
        program.arguments.iter().map(|argument| word(argument)).collect::<Result<_, _>>()?;
    let arguments: Vec<&CStr> = iter::once(&*binary).chain(words.iter().map(|word| &**word)).collect();
    let nothing = || File::options().read(true).write(true).open("/dev/null");
    let open = |file: Option<File>| match file {
        Some(file) => above_standard(&file),
        None => above_standard(&nothing()?),
    };
    let standard = [open(program.input)?, open(program.output)?, open(Some(program.errors))?];
    let (confinement, inherited) = (&program.confinement, program.inherited);
    let prepare = || {
        rustix::process::setsid()?;
        confinement.enter()?;
        for descriptor in inherited {
            rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
        }
        Ok(())
    };
    let image = Image {
        binary: &binary,
        arguments: &arguments,
        standard: standard.each_ref().map(AsRawFd::as_raw_fd),
        prepare: &prepare,
    };
    // The process is not waited for here: it is followed, and reaped, through its pidfd.
    forking(|| vfork::spawn(&image))
}

/// The same open file under a number that is none of the three standard ones, which the child gives away one after the other.
fn above_standard(file: &File) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(file, 3)?)
}

/// A pipe of the kernel with a name: what is written while nobody reads is kept up to its capacity (64 KiB, pipe(7)) and then
/// refused, so a monitor that talks without end fills nothing.
pub fn open_bounded_pipe(path: &Path) -> io::Result<File> {
    use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
    match mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(open(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a line of shell and gives what it wrote.
    async fn says(line: &str, input: Option<File>, confinement: Confinement) -> String {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("output");
        let file = File::create(&output).unwrap();
        let pid = spawn_detached(Program {
            binary: Path::new("/bin/sh"),
            arguments: &["-c".into(), line.into()],
            inherited: &[],
            input,
            errors: file.try_clone().unwrap(),
            output: Some(file),
            confinement,
        })
        .unwrap();
        let process = crate::process::Process::of_child(pid).unwrap();
        process.ended().await.unwrap();
        process.reap();
        std::fs::read_to_string(output).unwrap()
    }

    #[test]
    fn a_child_begins_only_when_what_must_be_alone_is_done() {
        let (tell, told) = std::sync::mpsc::channel();
        let soon = std::time::Duration::from_millis(50);
        let child = without_forks(|| {
            let child = std::thread::spawn(move || forking(|| tell.send(()).unwrap()));
            assert!(told.recv_timeout(soon).is_err(), "it waits");
            child
        });
        told.recv_timeout(100 * soon).unwrap();
        child.join().unwrap();
    }

    #[tokio::test]
    async fn a_process_begins_with_its_mask_its_input_and_without_core_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("input"), "asked\n").unwrap();
        let input = File::open(folder.path().join("input")).unwrap();
        let confinement = Confinement { umask: Some(0o077), no_core_file: true, ..Confinement::default() };
        assert_eq!(says("umask; ulimit -c; cat", Some(input), confinement).await, "0077\n0\nasked\n");
        assert_eq!(says("cat", None, Confinement::default()).await, "");
    }

    #[test]
    fn a_bounded_pipe_refuses_what_it_cannot_hold_and_blocks_nobody() {
        use std::io::{Read, Write};
        let folder = tempfile::tempdir().unwrap();
        let mut pipe = open_bounded_pipe(&folder.path().join("pipe")).unwrap();
        let mut written = 0;
        let refused = loop {
            match pipe.write(&[7; 4096]) {
                Ok(count) => written += count,
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert!(written <= 1024 * 1024, "{written}");
        let mut read = [0; 16];
        assert_eq!(open_bounded_pipe(&folder.path().join("pipe")).unwrap().read(&mut read).unwrap(), 16);
    }
}
