//! From a prepared folder to a loaded machine.
//!
//! Every point at which the driver may be killed:
//!
//! * before `process.json` is written: the incarnation is prepared.
//! * between that and QEMU's start: the same; no process has the folder on its command line.
//! * between QEMU's start and the second `process.json`, with the pid: a QEMU that has run none of its guest, since it starts
//!   stopped (`-S`) and only a driver that has written the pid lets it go. It is found by its command line, and ended by the next `start`,
//!   `stop` or `destroy`. One that is too young to be found fails to lock QEMU's pid file, or makes its successor fail so.
//! * after that: the process is known by (boot id, pid, start time, command line). Its guest may have run, so the incarnation
//!   is never started again; when QEMU says `prelaunch`, it has not, and `start` goes on from there.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::failed;
use flames_host::process::{self, Confinement, Process, Program, open_bounded_pipe, spawn_detached};
use flames_vmm_local::Folder;
use serde_json::json;

use crate::attached::{Attached, RunState};
use crate::command_line::{self, Launch};
use crate::config::Channel;
use crate::context::Context;
use crate::folder::{ProcessRecord, SCHEMA, SpecRecord};
use crate::qmp::QmpError;

const OPERATION: &str = "vmm.start";

/// Starts QEMU with the guest's processors stopped. `turn` is held until nothing more is on its way, also when the call is dropped, and
/// given back.
pub(crate) async fn launch<T: Send + 'static>(
    context: &Context,
    folder: &Folder,
    spec: &SpecRecord,
    leave_paused: bool,
    incoming: Option<File>,
    turn: T,
) -> Result<(Attached, T)> {
    let installed = context.installed().await?.clone();
    let mut record = ProcessRecord {
        schema: SCHEMA,
        boot_id: context.boot_id.clone(),
        leave_paused,
        monitor: None,
        helper: None,
    };
    let helper = match spec.channel {
        Channel::VirtioSerial => None,
        Channel::Vsock => Some(start_helper(context, folder, &mut record).await?),
    };
    let sandbox = context.config.sandbox && installed.has_sandbox;
    let restrict_user_network = context.config.restrict_user_network;
    let tsc_khz = context.tsc_khz().await;
    let (in_folder, spec) = (folder.clone(), spec.clone());
    let (record, monitor, errors, turn) = blocking(move || {
        let io = |error| failed("the monitor cannot be started", error);
        in_folder.write(&record)?;
        let listen = |name| in_folder.listen(name).map_err(io);
        let mut inherited: Vec<OwnedFd> = vec![listen("monitor.sock")?, listen("console.sock")?];
        let agent = match spec.channel {
            Channel::VirtioSerial => {
                inherited.push(listen("agent.sock")?);
                inherited.last().map(AsRawFd::as_raw_fd)
            }
            Channel::Vsock => None,
        };
        let incoming = incoming.map(OwnedFd::from);
        let launch = Launch {
            monitor: inherited[0].as_raw_fd(),
            console: inherited[1].as_raw_fd(),
            agent,
            incoming: incoming.as_ref().map(AsRawFd::as_raw_fd),
            sandbox,
            restrict_user_network,
            tsc_khz,
        };
        inherited.extend(incoming);
        let arguments = command_line::build(&spec, &in_folder, &launch);
        let errors = open_bounded_pipe(&in_folder.join("monitor.errors")).map_err(io)?;
        let for_monitor = errors.try_clone().map_err(io)?;
        let pid = spawn_detached(Program {
            binary: &installed.binary,
            arguments: &arguments,
            inherited: &inherited,
            input: None,
            output: None,
            errors: for_monitor,
            confinement: Confinement::default(),
        })
        .map_err(io)?;
        // A monitor that has ended already is still there: only this driver reaps it.
        let monitor = Process::of_child(pid).map_err(io)?;
        record.monitor = Some(monitor.identity());
        in_folder.write(&record)?;
        Ok((record, monitor, errors, turn))
    })
    .await?;
    let attached = Attached::new(context, folder.clone(), record, monitor, helper, Some(errors));
    Ok((attached, turn))
}

/// Waits until the machine is loaded, and lets the guest run unless it shall stay paused.
///
/// An error of kind `Conflict` means that the guest may have run; after every other error it has not, and the monitor is gone.
pub(crate) async fn let_run(context: &Context, attached: &Attached, loads_snapshot: bool) -> Result<()> {
    let deadline = context.config.deadlines.start;
    let loaded = async {
        loop {
            match attached.run_state(deadline).await? {
                RunState::Loading => context.clock.sleep(Duration::from_millis(5)).await,
                state => return Ok(state),
            }
        }
    };
    let state = match context.clock.timeout(deadline, loaded).await.unwrap_or(Err(QmpError::Deadline)) {
        Ok(state) => state,
        Err(error) => return Err(give_up(context, attached, loads_snapshot, error).await),
    };
    match state {
        RunState::Running => return Ok(()),
        RunState::Fresh | RunState::Paused if attached.record.leave_paused => return Ok(()),
        RunState::Fresh | RunState::Paused => {}
        RunState::Loading | RunState::PausedAfterSave | RunState::Other => {
            let error = QmpError::Refused(format!("it is in the state {state:?} at its start"));
            return Err(give_up(context, attached, loads_snapshot, error).await);
        }
    }
    match attached.command("cont", json!({}), deadline).await {
        Ok(_) => Ok(()),
        Err(error @ QmpError::Refused(_)) => Err(give_up(context, attached, loads_snapshot, error).await),
        // Whether the guest has run cannot be known, so the monitor ends and the incarnation with it.
        Err(error) => {
            attached.kill().await;
            Err(Error::new(ErrorKind::Conflict, OPERATION, "the monitor ended as its guest was started")
                .with_source(error))
        }
    }
}

/// Ends a monitor whose guest has run nothing, and says why it could not.
async fn give_up(context: &Context, attached: &Attached, loads_snapshot: bool, error: QmpError) -> Error {
    // It has closed its connection because it is about to exit: let it say why.
    if matches!(error, QmpError::Closed(_)) {
        attached.ends_within(context.config.deadlines.command).await;
    }
    attached.kill().await;
    // In one line, as the rest of what is said of an error.
    let words = attached.last_words().map(|words| words.split_whitespace().collect::<Vec<_>>().join(" "));
    let said = words.as_deref().unwrap_or("nothing");
    let (kind, message) = if error == QmpError::Deadline {
        (ErrorKind::Unavailable, "the monitor did not load the machine in time")
    } else if said.contains("Could not set up host forwarding") {
        (ErrorKind::Exhausted, "a forwarded port of the host is in use")
    } else if said.contains("Cannot lock pid file") {
        (ErrorKind::Unavailable, "an earlier monitor of this incarnation is still starting")
    } else if said.contains("Cannot allocate memory") || said.contains("cannot set up guest memory") {
        (ErrorKind::Exhausted, "the host has not enough memory for the guest")
    } else if loads_snapshot {
        (ErrorKind::Corrupt, "the monitor cannot load the snapshot")
    } else {
        (ErrorKind::Internal, "the monitor ended at its start")
    };
    Error::new(kind, OPERATION, format!("{message}; it said: {said}")).with_source(error)
}

async fn start_helper(context: &Context, folder: &Folder, record: &mut ProcessRecord) -> Result<Process> {
    let binary = process::find_program(&context.config.vsock_helper)
        .ok_or_else(crate::acceleration::no_vsock_helper)?;
    if !crate::vsock::fits(folder) {
        let message = "the data folder's path is too long for vsock, or has a comma";
        return Err(Error::new(ErrorKind::NotSupported, OPERATION, message));
    }
    let in_folder = folder.clone();
    let helper = blocking(move || {
        let io = |error| failed("the vsock helper cannot be started", error);
        flames_host::files::remove_if_there(&in_folder.join(crate::vsock::MONITOR_SOCKET)).map_err(io)?;
        let errors = open_bounded_pipe(&in_folder.join("helper.errors")).map_err(io)?;
        let arguments = ["--vm".into(), crate::vsock::helper_argument(&in_folder)];
        let pid = spawn_detached(Program {
            binary: &binary,
            arguments: &arguments,
            inherited: &[],
            input: None,
            output: None,
            errors,
            confinement: Confinement::default(),
        })
        .map_err(io)?;
        Process::of_child(pid).map_err(io)
    })
    .await?;
    let listening = async {
        while helper.is_alive() {
            if folder.join(crate::vsock::MONITOR_SOCKET).exists() {
                return true;
            }
            context.clock.sleep(Duration::from_millis(2)).await;
        }
        false
    };
    if context.clock.timeout(context.config.deadlines.command, listening).await != Ok(true) {
        crate::attached::end(&helper, &*context.clock, context.config.deadlines.kill).await;
        return Err(Error::internal(OPERATION, "the vsock helper does not start"));
    }
    record.helper = Some(helper.identity());
    Ok(helper)
}
