//! `flames stop`, `start`, `restart`, `pause`, `resume` and `rm`.

use std::process::ExitCode;
use std::time::Instant;

use flames_client::Client;
use flames_error::ErrorKind;
use flames_wire::{IncarnationState, Vm, VmState};

use super::Context;
use crate::args::{LifecycleArgs, RemoveArgs};
use crate::connect::{once, surely};
use crate::exit::{CONFLICT, Failure, Outcome};
use crate::output;

/// What is wanted of VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Stop,
    Start,
    Restart,
    Pause,
    Resume,
}

impl Change {
    /// What to wait for (`GET …/wait?for=`).
    fn hope(self) -> &'static str {
        match self {
            Self::Stop => "ended",
            Self::Start | Self::Restart | Self::Resume => "running",
            Self::Pause => "paused",
        }
    }

    async fn ask(self, client: &Client, vm: &str) -> Result<Vm, Failure> {
        let mutation = once()?;
        let asked = surely(async || match self {
            Self::Stop => client.stop_vm(vm, &mutation).await,
            Self::Start => client.start_vm(vm, &mutation).await,
            Self::Restart => client.restart_vm(vm, &mutation).await,
            Self::Pause => client.pause_vm(vm, &mutation).await,
            Self::Resume => client.resume_vm(vm, &mutation).await,
        });
        Ok(asked.await?)
    }
}

/// Asks for the change of each VM, then waits until each is so. All are asked though one fails; the first failure is the command's.
pub(super) async fn change(context: &Context, change: Change, arguments: &LifecycleArgs) -> Outcome {
    let mut failures = Failures::default();
    let mut asked = Vec::new();
    for name in &arguments.vms {
        match change.ask(&context.api.client, name).await {
            Ok(vm) => asked.push(vm),
            Err(failure) => failures.add(context, failure),
        }
    }
    let deadline = Instant::now() + arguments.timeout;
    let mut changed = Vec::new();
    for vm in asked {
        if arguments.no_wait {
            changed.push(vm);
            continue;
        }
        match reached(&context.api.client, &vm, change.hope(), deadline).await {
            Ok(vm) => changed.push(vm),
            Err(failure) => failures.add(context, failure),
        }
    }
    tell(context, &changed)?;
    failures.outcome()
}

/// Removes VMs.
pub(super) async fn remove(context: &Context, arguments: &RemoveArgs) -> Outcome {
    let client = &context.api.client;
    let mut failures = Failures::default();
    let mut asked = Vec::new();
    for name in &arguments.vms {
        match delete(client, name, arguments.force).await {
            Ok(Some(vm)) => asked.push(vm),
            Ok(None) => {}
            Err(failure) => failures.add(context, failure),
        }
    }
    let deadline = Instant::now() + arguments.timeout;
    let mut removed = Vec::new();
    for vm in asked {
        if arguments.no_wait {
            removed.push(vm);
            continue;
        }
        match reached(client, &vm, "deleted", deadline).await {
            Ok(vm) => removed.push(vm),
            Err(failure) => failures.add(context, failure),
        }
    }
    tell(context, &removed)?;
    failures.outcome()
}

async fn delete(client: &Client, name: &str, force: bool) -> Result<Option<Vm>, Failure> {
    let mutation = once()?;
    let generation = match client.get_vm(name).await {
        Ok(vm) if vm.state == VmState::Deleted && force => return Ok(None),
        Ok(vm) if !force && !vm.state.is_over() => {
            return Err(Failure::new(CONFLICT, format!("The VM `{}` is {}.", vm.name, vm.state))
                .advise(format!("Stop it first, or remove it as it is with `flames rm -f {}`.", vm.name)));
        }
        Ok(vm) => vm.generation,
        Err(error) if error.kind() == ErrorKind::NotFound && force => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Without -f, only as it was seen: somebody may start it in this moment.
    let mutation = if force { mutation } else { mutation.if_generation(generation) };
    Ok(Some(surely(async || client.delete_vm(name, &mutation).await).await?))
}

/// Waits until a VM is as hoped.
pub(super) async fn reached(client: &Client, vm: &Vm, hope: &str, deadline: Instant) -> Result<Vm, Failure> {
    let id = vm.id.to_string();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = match client.wait_vm(&id, hope, left).await {
            Ok(waited) => waited,
            // Its tombstone is gone too.
            Err(error) if error.kind() == ErrorKind::NotFound && hope == "deleted" => return Ok(vm.clone()),
            Err(error) => return Err(error.into()),
        };
        if waited.reached {
            return Ok(waited.vm);
        }
        let now = waited.vm;
        // Its run is over already: it will not be running any more.
        if hope == "running" && now.state == VmState::Stopped && ran(&now) {
            return Ok(now);
        }
        let by_end = matches!(hope, "ended" | "deleted");
        let in_vain = !by_end && (now.state.is_over() || now.state == VmState::Deleting);
        if in_vain || left.is_zero() {
            let why = now.reason.as_ref().map(|reason| format!(": {}", reason.message)).unwrap_or_default();
            return Err(Failure::failed(format!("The VM `{}` is {}, not {hope}{why}", now.name, now.state))
                .advise(format!("See `flames inspect {}`.", now.name)));
        }
    }
}

/// Whether the VM's present run came so far as to run.
fn ran(vm: &Vm) -> bool {
    vm.incarnation.as_ref().is_some_and(|incarnation| {
        incarnation.run == vm.run
            && incarnation.timeline.iter().any(|entry| entry.state == IncarnationState::Running)
    })
}

fn tell(context: &Context, vms: &[Vm]) -> Result<(), Failure> {
    if context.output.json {
        return context.output.json(&vms);
    }
    vms.iter().try_for_each(|vm| output::line(&vm.name))
}

/// What failed, of several.
#[derive(Debug, Default)]
struct Failures {
    first: Option<Failure>,
}

impl Failures {
    /// The first is told at the end; each further one now.
    fn add(&mut self, context: &Context, failure: Failure) {
        if self.first.is_some() {
            context.output.failure(&failure, context.api.pages.as_deref());
        } else {
            self.first = Some(failure);
        }
    }

    fn outcome(self) -> Outcome {
        self.first.map_or(Ok(ExitCode::SUCCESS), Err)
    }
}
