use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use flames_guest_protocol::message::TerminalSize;
use flames_guest_protocol::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Uid};

use crate::user::User;

pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process to start, with everything looked up.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    pub(crate) argv: &'a [String],
    /// In order; a later name wins.
    pub(crate) env: &'a [(String, String)],
    pub(crate) working_directory: &'a str,
    /// `None` keeps the agent's own user.
    pub(crate) user: Option<&'a User>,
    pub(crate) tty: Option<TerminalSize>,
    pub(crate) stdin: bool,
}

/// A started process. Nobody but the reaper waits for it.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: u32,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// The terminal's master side, in place of the three.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Starts a process in a session of its own.
///
/// Errors: `InvalidInput`, `NotFound` and `PermissionDenied` about the program or the working directory.
pub(crate) fn spawn(request: &Spawn<'_>) -> Result<Spawned> {
    let Some((program, arguments)) = request.argv.split_first() else {
        return Err(Error::new(ErrorKind::InvalidInput, "no program is named"));
    };
    let texts = request.argv.iter().chain(request.env.iter().flat_map(|(name, value)| [name, value]));
    if program.is_empty() || texts.into_iter().any(|text| text.contains('\0')) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "a program name is empty, or a text has a zero byte",
        ));
    }
    if let Some((name, _)) = request.env.iter().find(|(name, _)| name.is_empty() || name.contains('=')) {
        return Err(Error::new(ErrorKind::InvalidInput, format!("{name:?} is no name of a variable")));
    }
    if !Path::new(request.working_directory).is_dir() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("the working directory {:?} is not there", request.working_directory),
        ));
    }

    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir(request.working_directory);
    command.envs(request.env.iter().map(|(name, value)| (name, value)));

    let terminal = match request.tty {
        Some(size) => {
            let (master, slave) = open_terminal(size, request.user)
                .map_err(|error| Error::from_io("open a terminal", &error))?;
            let copy = || slave.try_clone().map_err(|error| Error::from_io("open a terminal", &error));
            command.stdin(copy()?).stdout(copy()?).stderr(slave);
            Some(master)
        }
        None => {
            command.stdin(if request.stdin { Stdio::piped() } else { Stdio::null() });
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            None
        }
    };
    prepare_child(&mut command, request.user, terminal.is_some());

    let mut child = command.spawn().map_err(|error| explain(program, request.env, &error))?;
    Ok(Spawned {
        pid: child.id(),
        stdin: child.stdin.take().map(OwnedFd::from),
        stdout: child.stdout.take().map(OwnedFd::from),
        stderr: child.stderr.take().map(OwnedFd::from),
        terminal,
    })
}

#[allow(unsafe_code)]
fn prepare_child(command: &mut Command, user: Option<&User>, terminal: bool) {
    let ids = user.map(|user| {
        let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        (Uid::from_raw(user.uid), Gid::from_raw(user.gid), groups)
    });
    let prepare = move || -> std::io::Result<()> {
        rustix::process::setsid()?;
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        if let Some((uid, gid, groups)) = &ids {
            rustix::thread::set_thread_groups(groups)?;
            rustix::thread::set_thread_gid(*gid)?;
            rustix::thread::set_thread_uid(*uid)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe work is allowed. The closure makes plain system calls on
    // memory that was allocated before the fork: it neither allocates nor takes a lock. The calls act on one thread,
    // and the child has one.
    unsafe {
        command.pre_exec(prepare);
    }
}

fn open_terminal(size: TerminalSize, user: Option<&User>) -> std::io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    set_terminal_size(&master, size)?;
    if let Some(user) = user {
        // So that the user may open its own terminal by name; a read-only devpts does not matter.
        let _ = rustix::fs::fchown(&slave, Some(Uid::from_raw(user.uid)), None);
        let _ = rustix::fs::fchmod(&slave, Mode::from_raw_mode(0o620));
    }
    let status = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, status | OFlags::NONBLOCK)?;
    Ok((master, slave))
}

/// Changes a terminal's size; the processes in its foreground get SIGWINCH.
pub(crate) fn set_terminal_size(terminal: impl AsFd, size: TerminalSize) -> std::io::Result<()> {
    let window =
        rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, window)?)
}

fn explain(program: &str, env: &[(String, String)], error: &std::io::Error) -> Error {
    let shown: String = program.chars().take(200).collect();
    match error.kind() {
        std::io::ErrorKind::NotFound if program.contains('/') => Error::new(
            ErrorKind::NotFound,
            format!("the program {shown:?}, or the interpreter that it names, is not in the image"),
        ),
        std::io::ErrorKind::NotFound => {
            let path = env.iter().rev().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
            Error::new(
                ErrorKind::NotFound,
                format!("the program {shown:?} is not in the image (looked in {path:?})"),
            )
        }
        std::io::ErrorKind::PermissionDenied => Error::new(
            ErrorKind::PermissionDenied,
            format!("the program {shown:?} may not be executed by this user"),
        ),
        _ => Error::from_io(&format!("start {shown:?}"), error),
    }
}
