//! `flames run`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use flames_client::{Client, EventStream};
use flames_error::ErrorKind;
use flames_wire::{
    AttachQuery, Bandwidth, CreateVm, CreateVmSpec, DiskKind, Egress, EgressMode, EventType, ExitCause,
    ExitStatus, IncarnationState, Network, Port, PortRange, Reason, ReasonCode, RestartRule, SignalProcess,
    Vm, VmState,
};
use futures::StreamExt;

use super::{Context, lifecycle};
use crate::args::{EgressArg, NetworkArgs, RestartWhen, RunArgs};
use crate::attached::{Ended, Interrupt, Interrupts, Joined, SIGINT, join};
use crate::connect::{once, surely};
use crate::exit::{self, Failure, Outcome};
use crate::output;
use crate::progress::Phases;

/// The workload's process.
const WORKLOAD: &str = "main";
/// When the server removes a VM of `--rm` by itself, should this command not come to it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// How long the end of a run is waited for, once its output has ended, and its removal.
const SETTLES: Duration = Duration::from_secs(60);
/// How often in a row, and after how long, a connection for output that broke is made again.
const REATTACHED: u32 = 20;
const REATTACH_AFTER: Duration = Duration::from_millis(250);
/// How often a connection for events that broke is made again.
const ATTEMPTS: u32 = 20;

/// How far a VM came.
enum Came {
    /// Its workload was started.
    Runs(Box<Vm>),
    /// Its run is over, with or without having run.
    Over(Box<Vm>),
    /// The user does not want it any more.
    Interrupted,
}

/// What there was to see of a VM's workload.
enum Shown {
    /// Its output, which ended so.
    Output(Ended),
    /// Nothing any more.
    Nothing,
    /// There is none: its image has no command, and it was given none.
    NoWorkload,
}

/// The API's code for a process that the guest does not have.
const NO_SUCH_PROCESS: &str = "PROCESS_NOT_FOUND";

/// Creates a VM, shows its output, and ends as its workload ends. A VM without a workload stays up, as with `--detach`.
pub(super) async fn run(context: &Context, arguments: RunArgs) -> Outcome {
    let client = &context.api.client;
    let (detach, remove) = (arguments.detach, arguments.rm);
    let (stdin, tty) = (arguments.interactive, arguments.tty);
    let mut interrupts = Interrupts::listen()?;
    let mut phases = Phases::start(context.output, &arguments.image);
    phases.phase("creating");
    // Followed from before the VM is there, so that none of its events is missed.
    let mut events = client.follow_events(Some(newest(client).await?), ATTEMPTS);
    let create = request(arguments);
    let mutation = once()?;
    let vm = surely(async || client.create_vm(&create, &mutation).await).await?;
    let id = vm.id.to_string();
    phases.subject(&vm.name);
    let came = tokio::select! {
        came = bring_up(client, &vm, &mut events, &mut phases) => came?,
        _ = interrupts.next() => Came::Interrupted,
    };
    drop(events);
    phases.finish();
    drop(phases);
    let vm = match came {
        Came::Interrupted => {
            delete(client, &id).await?;
            context.output.say(format!("The VM `{}` was removed before it ran.", vm.name));
            return Ok(ExitCode::from(128 + SIGINT));
        }
        Came::Runs(vm) | Came::Over(vm) => vm,
    };
    tell_endpoints(context, &vm);
    if detach && vm.state != VmState::Failed && !never_started(client, &vm).await? {
        return detached(context, &vm);
    }
    let shown = match has_run(&vm) && !detach {
        true => show(client, &vm, stdin, tty, &mut interrupts).await,
        false => Ok(Shown::Nothing),
    };
    let shown = match shown {
        Ok(Shown::Output(Ended::Left)) => {
            context
                .output
                .say(format!("The VM `{}` is left to itself: `flames attach {}`.", vm.name, vm.name));
            return Ok(ExitCode::from(128 + SIGINT));
        }
        // As the end of the terminal that it was started at.
        Ok(Shown::Output(Ended::Unread)) => {
            if remove {
                delete(client, &id).await?;
            } else {
                let mutation = once()?;
                surely(async || client.stop_vm(&id, &mutation).await).await?;
            }
            return Ended::Unread.exit_code();
        }
        Ok(Shown::NoWorkload) => {
            context.output.say(stays_up(&vm.name, remove));
            return detached(context, &vm);
        }
        Ok(Shown::Output(ended)) => Ok(Some(ended)),
        Ok(Shown::Nothing) => Ok(None),
        Err(failure) => Err(failure),
    };
    let finished = async {
        let outcome = match shown {
            Ok(shown) => ending(context, &vm, shown, remove).await,
            Err(failure) => Err(failure),
        };
        if remove {
            delete(client, &id).await?;
        }
        outcome
    };
    tokio::select! {
        biased;
        outcome = finished => outcome,
        // The end is not waited for any more; the server goes on with it.
        _ = interrupts.next() => Ok(ExitCode::from(128 + SIGINT)),
    }
}

fn request(arguments: RunArgs) -> CreateVm {
    let restart = match arguments.restart {
        RestartWhen::Never => RestartRule::Never,
        RestartWhen::OnFailure => RestartRule::OnFailure,
        RestartWhen::Always => RestartRule::Always,
    };
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let port = |forward: crate::args::Forward| Port { guest_port: forward.guest, host_port: forward.host };
    let secret = |(name, value): (String, String)| (name, flames_model::SecretString::new(value));
    let secrets = arguments.secret_env.into_iter().map(secret);
    let mut spec = CreateVmSpec::new(arguments.image);
    spec.kernel = arguments.kernel;
    spec.vcpus = arguments.cpus;
    spec.memory_mib = arguments.memory;
    spec.root_disk_mib = arguments.disk;
    spec.disk = if arguments.persistent { DiskKind::Persistent } else { DiskKind::Ephemeral };
    spec.command = (!arguments.command.is_empty()).then_some(arguments.command);
    spec.env = arguments.env.into_iter().collect();
    spec.secret_env = secrets.collect();
    spec.working_directory = arguments.workdir;
    spec.user = arguments.user;
    spec.tty = arguments.tty;
    spec.stdin = arguments.interactive;
    spec.ports = arguments.ports.into_iter().map(port).collect();
    spec.network = network(arguments.network);
    spec.restart.policy = restart;
    spec.restart.max_restarts = arguments.max_restarts;
    spec.wake_on_request = arguments.wake_on_request;
    spec.timeout_ms = arguments.timeout.map(millis);
    spec.auto_delete_after_ms = arguments.rm.then(|| millis(FORGOTTEN_AFTER));
    spec.stop_grace_ms = millis(arguments.stop_grace);
    spec.placement = arguments.placement.into_iter().collect();
    let labels: BTreeMap<_, _> = arguments.label.into_iter().collect();
    CreateVm { name: arguments.name, labels, spec }
}

/// A network as the flags ask for it.
pub(super) fn network(arguments: NetworkArgs) -> Network {
    let lists = !arguments.allow_domain.is_empty() || !arguments.allow_port.is_empty();
    let mode = match arguments.egress {
        Some(EgressArg::Deny) => EgressMode::Deny,
        Some(EgressArg::Allow) => EgressMode::Allow,
        Some(EgressArg::AllowList) => EgressMode::AllowList,
        Some(EgressArg::Unrestricted) => EgressMode::Unrestricted,
        // Ranges alone mean different things to `allow` and `allow-list`: which, is to be said.
        None if lists => EgressMode::AllowList,
        None => EgressMode::Deny,
    };
    let limit = |bytes_per_second| Bandwidth { bytes_per_second, burst_bytes: None };
    Network {
        egress: Egress {
            mode,
            ranges: arguments.allow,
            domains: arguments.allow_domain,
            ports: arguments.allow_port.into_iter().map(|(first, last)| PortRange { first, last }).collect(),
        },
        private_network: arguments.private_network,
        upload: arguments.upload.map(limit),
        download: arguments.download.map(limit),
    }
}

/// The position of the newest event.
async fn newest(client: &Client) -> Result<String, Failure> {
    let query = flames_wire::EventQuery { after: Some("newest".to_owned()), follow: false, limit: Some(1) };
    Ok(client.list_events(&query).await?.next_cursor)
}

/// Follows a new VM until its workload runs or its run is over, and names each phase.
async fn bring_up(
    client: &Client,
    vm: &Vm,
    events: &mut EventStream,
    phases: &mut Phases,
) -> Result<Came, Failure> {
    let id = vm.id.to_string();
    phases.phase("waiting for a place");
    while let Some(event) = events.next().await {
        let event = event?;
        if event.vm != Some(vm.id) {
            continue;
        }
        match event.event_type {
            EventType::VmUnplaced => {
                let why = event.reason.map(|reason| reason.message).unwrap_or_default();
                phases.phase(&format!("waiting for a place: {}", output::printable(&why)));
                continue;
            }
            EventType::VmPlaced => phases.phase("placed"),
            EventType::VmState => match (event.state, &event.reason) {
                (Some(IncarnationState::Preparing), Some(reason)) => {
                    phases.phase(&output::printable(&reason.message));
                }
                (Some(state), _) => phases.phase(phase(state)),
                (None, _) => {}
            },
            EventType::VmDeleted => {}
            _ => continue,
        }
        let vm = client.get_vm(&id).await?;
        if vm.state.is_over() || vm.state == VmState::Deleting {
            return Ok(Came::Over(Box::new(vm)));
        }
        if has_run(&vm) {
            return Ok(Came::Runs(Box::new(vm)));
        }
    }
    Err(Failure::failed("The events ended before the VM ran.").advise(format!("See `flames inspect {id}`.")))
}

/// What a VM in that state does, in words.
fn phase(state: IncarnationState) -> &'static str {
    match state {
        IncarnationState::Scheduled => "placed",
        IncarnationState::Preparing => "preparing image and disk",
        IncarnationState::Starting => "booting",
        IncarnationState::Restoring => "restoring",
        IncarnationState::Running => "running",
        IncarnationState::Pausing => "pausing",
        IncarnationState::Paused => "paused",
        IncarnationState::Stopping => "stopping",
        IncarnationState::Stopped => "stopped",
        IncarnationState::Failed => "failed",
        IncarnationState::Lost => "its host is silent",
    }
}

/// Whether its workload was started.
fn has_run(vm: &Vm) -> bool {
    vm.incarnation.as_ref().is_some_and(|incarnation| {
        incarnation.timeline.iter().any(|entry| entry.state == IncarnationState::Running)
    })
}

fn tell_endpoints(context: &Context, vm: &Vm) {
    for route in &vm.routes {
        context.output.say(format!("Port {} is at {}", route.guest_port, route.url));
    }
    for endpoint in vm.incarnation.iter().flat_map(|incarnation| &incarnation.endpoints) {
        context.output.say(format!("Port {} is at http://{}", endpoint.guest_port, endpoint.address));
    }
}

/// How a VM that has nothing to do of its own is used.
fn stays_up(name: &str, remove: bool) -> String {
    let end = if remove { "ends and removes" } else { "ends" };
    format!(
        "The VM `{name}` has no workload: its image has no command, and none was given. It stays up: `flames exec {name} -- COMMAND` runs \
         something in it, `flames stop {name}` {end} it."
    )
}

fn detached(context: &Context, vm: &Vm) -> Outcome {
    match context.output.json {
        true => context.output.json(vm)?,
        false => output::line(&vm.name)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the workload could not be started, of a VM that is up: its agent knows before it answers. One that its restart policy tries again is
/// that policy's.
async fn never_started(client: &Client, vm: &Vm) -> Result<bool, Failure> {
    if !has_run(vm) || vm.spec.restart.policy != RestartRule::Never {
        return Ok(false);
    }
    let ended_so = |vm: &Vm| is_of_no_start(vm.reason.as_ref());
    let id = vm.id.to_string();
    match client.list_processes(&id).await {
        Ok(list) => {
            // As a shell's (`ProcessExit::code` of the guest's protocol): only what has such a code is waited for.
            let codes = [Some(126), Some(127)];
            let ends = |exit: &ExitStatus| codes.contains(&exit.code);
            if !list
                .items
                .iter()
                .any(|process| process.id == WORKLOAD && process.exit.as_ref().is_some_and(ends))
            {
                return Ok(false);
            }
            Ok(ended_so(&lifecycle::reached(client, vm, "ended", Instant::now() + SETTLES).await?))
        }
        // Its run is over, or somebody else does something with it.
        Err(_) => Ok(ended_so(&client.get_vm(&id).await?)),
    }
}

fn is_of_no_start(reason: Option<&Reason>) -> bool {
    reason.is_some_and(|reason| reason.code == ReasonCode::WorkloadNotStarted)
}

/// Shows the workload's output until it has ended. A connection that breaks is made again where it broke.
async fn show(
    client: &Client,
    vm: &Vm,
    stdin: bool,
    tty: bool,
    interrupts: &mut Interrupts,
) -> Result<Shown, Failure> {
    let id = vm.id.to_string();
    let (mut from, mut failures) = (0, 0);
    loop {
        let query = AttachQuery { process: Some(WORKLOAD.to_owned()), from };
        let ended = match client.attach(&id, &query).await {
            Ok(stream) => {
                let joined = Joined { stdin, terminal: tty, from };
                let heeding = async |interrupt| heed(client, &id, interrupt).await;
                match join(stream, joined, interrupts, heeding).await {
                    Err(failure) if failure.code.as_deref() == Some(NO_SUCH_PROCESS) => {
                        return Ok(Shown::NoWorkload);
                    }
                    joined => joined?,
                }
            }
            Err(error) if error.code() == Some(NO_SUCH_PROCESS) => return Ok(Shown::NoWorkload),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict) => {
                return Ok(Shown::Nothing);
            }
            Err(error) if error.is_retryable() && failures < REATTACHED => Ended::Cut(from),
            Err(error) => return Err(error.into()),
        };
        match ended {
            // What was typed went to the connection that broke: it cannot be told how much of it arrived.
            Ended::Cut(_) if stdin || failures >= REATTACHED => return Ok(Shown::Output(ended)),
            Ended::Cut(shown) => {
                failures = if shown > from { 1 } else { failures + 1 };
                from = shown;
                tokio::time::sleep(REATTACH_AFTER).await;
            }
            ended => return Ok(Shown::Output(ended)),
        }
    }
}

/// Does what the user's interrupt means; says whether to leave the VM to itself.
async fn heed(client: &Client, id: &str, interrupt: Interrupt) -> Result<bool, Failure> {
    match interrupt {
        Interrupt::Asked(1) => {
            let signal = SignalProcess { signal: i32::from(SIGINT), group: true };
            // It may have ended in this moment; then its output tells.
            let _ = client.signal_process(id, WORKLOAD, &signal).await;
        }
        Interrupt::Asked(2) | Interrupt::Ended => {
            output::write_error(b"flames: stopping the VM; once more to leave it to itself\n")?;
            let mutation = once()?;
            surely(async || client.stop_vm(id, &mutation).await).await?;
        }
        Interrupt::Asked(_) => return Ok(true),
    }
    Ok(false)
}

/// How the run ended, as this command's exit code. The record is the truth: it knows of ends that the output does not tell.
async fn ending(context: &Context, vm: &Vm, shown: Option<Ended>, remove: bool) -> Outcome {
    let client = &context.api.client;
    let told = match shown {
        Some(Ended::Exited(status)) => exit::of_workload(status.code, status.signal),
        _ => None,
    };
    let again = vm.spec.restart.policy != RestartRule::Never;
    if let Some(code) = told.filter(|_| again) {
        return Ok(code.into());
    }
    // Waited for also when the code is known, so that whoever looks at the VM next finds it ended.
    let settled = lifecycle::reached(client, vm, "ended", Instant::now() + SETTLES).await;
    let vm = match settled {
        Ok(vm) => vm,
        Err(failure) => return told.map_or(Err(failure), |code| Ok(code.into())),
    };
    let end = vm.exit().filter(|end| end.cause != ExitCause::Machine);
    let code = told.or_else(|| end.and_then(|end| exit::of_workload(end.code, end.signal)));
    // A program that never started told nobody why, and its code alone says little.
    match code {
        Some(code) if has_run(&vm) && !is_of_no_start(vm.reason.as_ref()) => Ok(code.into()),
        Some(code) => Err(Failure { exit: code, ..failed(&vm, remove) }),
        None => Err(failed(&vm, remove)),
    }
}

fn failed(vm: &Vm, remove: bool) -> Failure {
    let name = &vm.name;
    let why = vm.reason.as_ref().map(|reason| reason.message.clone());
    Failure::failed(why.unwrap_or_else(|| format!("The VM `{name}` is {}.", vm.state))).advise(match remove {
        true => "It is removed, as --rm asks. Without --rm `flames inspect` and `flames logs --console` tell more.".to_owned(),
        false => format!("See `flames inspect {name}` and `flames logs --console {name}`."),
    })
}

/// Removes the VM and waits until nothing of it is left.
async fn delete(client: &Client, id: &str) -> Result<(), Failure> {
    let mutation = once()?;
    match surely(async || client.delete_vm(id, &mutation).await).await {
        Ok(vm) => lifecycle::reached(client, &vm, "deleted", Instant::now() + SETTLES).await.map(drop),
        // It removed itself.
        Err(error) if matches!(error.code(), Some("VM_NOT_FOUND" | "VM_DELETED")) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
