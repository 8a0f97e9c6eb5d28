//! `flames snapshot` and `flames restore`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use flames_client::wire::{
    CreateSnapshot, RestoreSnapshot, Snapshot, SnapshotKind, SnapshotListQuery, SnapshotState,
};
use flames_model::{SnapshotId, VmId};
use serde_json::json;

use super::{Context, lifecycle, now, run};
use crate::args::{RestoreArgs, SnapshotAction};
use crate::connect::{once, surely};
use crate::exit::{Failure, Outcome};
use crate::output::{self, age, bytes};
use crate::progress::Phases;

/// How long one question for a snapshot's end waits: short enough that its progress is seen.
const ASKED_EVERY: Duration = Duration::from_secs(2);

/// Takes, lists, shows and removes snapshots.
pub(super) async fn snapshots(context: &Context, action: SnapshotAction) -> Outcome {
    match action {
        SnapshotAction::Create { vm, name, diff, base, no_wait, timeout } => {
            let kind = if diff { SnapshotKind::Diff } else { SnapshotKind::Full };
            let new = CreateSnapshot { name, kind, base };
            create(context, &vm, new, (!no_wait).then_some(timeout)).await?;
        }
        SnapshotAction::Ls { vm } => list(context, vm).await?,
        SnapshotAction::Inspect { snapshots } => inspect(context, &snapshots).await?,
        SnapshotAction::Rm { snapshots } => remove(context, &snapshots).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(
    context: &Context,
    vm: &str,
    create: CreateSnapshot,
    wait: Option<Duration>,
) -> Result<(), Failure> {
    let client = &context.api.client;
    let mut phases = Phases::start(context.output, vm);
    phases.phase("asking for a snapshot");
    let mutation = once()?;
    let mut snapshot = surely(async || client.create_snapshot(vm, &create, &mutation).await).await?;
    let deadline = wait.map(|wait| Instant::now() + wait);
    while let Some(deadline) = deadline {
        phases.phase(doing(&snapshot));
        let left = deadline.saturating_duration_since(Instant::now());
        snapshot = client.wait_snapshot(&snapshot.id.to_string(), left.min(ASKED_EVERY)).await?.snapshot;
        match snapshot.state {
            SnapshotState::Ready => break,
            SnapshotState::Pending | SnapshotState::Taking if !left.is_zero() => {}
            state => {
                let why = snapshot.reason.as_ref().map(|reason| format!(": {}", reason.message));
                let advice = format!("See `flames snapshot inspect {}`.", snapshot.name);
                let said = format!(
                    "The snapshot `{}` is {state}, not ready{}",
                    snapshot.name,
                    why.unwrap_or_default()
                );
                return Err(Failure::failed(said).advise(advice));
            }
        }
    }
    phases.finish();
    match context.output.json {
        true => context.output.json(&snapshot),
        false => output::line(&snapshot.name),
    }
}

fn doing(snapshot: &Snapshot) -> &'static str {
    match snapshot.state {
        SnapshotState::Pending => "waiting for the VM's host",
        SnapshotState::Taking if snapshot.logical_bytes == 0 => "saving the guest",
        _ => "storing",
    }
}

async fn list(context: &Context, vm: Option<String>) -> Result<(), Failure> {
    // One that is gone by now is known by its id only.
    let vm = match vm {
        Some(vm) if vm.parse::<VmId>().is_err() => Some(context.api.client.get_vm(&vm).await?.id.to_string()),
        vm => vm,
    };
    let query = SnapshotListQuery { vm, limit: Some(200), ..SnapshotListQuery::default() };
    let snapshots = context.api.client.list_all_snapshots(&query).await?;
    if context.output.json {
        return context.output.json(&snapshots);
    }
    if context.output.quiet {
        return snapshots.iter().try_for_each(|snapshot| output::line(&snapshot.name));
    }
    let name_of = |id: SnapshotId| {
        let known = snapshots.iter().find(|snapshot| snapshot.id == id);
        known.map_or_else(|| id.to_string(), |snapshot| snapshot.name.clone())
    };
    let row = |snapshot: &Snapshot| {
        vec![
            snapshot.name.clone(),
            snapshot.vm_name.clone(),
            snapshot.base.or(snapshot.parent).map(name_of).unwrap_or_default(),
            snapshot.state.to_string(),
            bytes(snapshot.logical_bytes),
            bytes(snapshot.stored_bytes),
            bytes(snapshot.own_bytes),
            age(now(), snapshot.created_at),
            snapshot.reason.as_ref().map(|reason| reason.message.clone()).unwrap_or_default(),
        ]
    };
    let rows = snapshots.iter().map(row).collect();
    context.output.table(&["name", "vm", "parent", "state", "size", "stored", "own", "age", "reason"], rows)
}

async fn inspect(context: &Context, names: &[String]) -> Result<(), Failure> {
    let mut snapshots = Vec::new();
    for name in names {
        snapshots.push(context.api.client.get_snapshot(name).await?);
    }
    if context.output.json {
        return match snapshots.as_slice() {
            [snapshot] => context.output.json(snapshot),
            snapshots => context.output.json(&snapshots),
        };
    }
    for (number, snapshot) in snapshots.iter().enumerate() {
        if number > 0 {
            output::line("")?;
        }
        context.output.list(facts(snapshot))?;
    }
    Ok(())
}

fn facts(snapshot: &Snapshot) -> Vec<Vec<String>> {
    let platform = &snapshot.platform;
    let version = platform.version.as_deref().unwrap_or_default();
    let spec = &snapshot.spec;
    let labels = snapshot.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>();
    let rows = [
        ("name", snapshot.name.clone()),
        ("id", snapshot.id.to_string()),
        ("state", snapshot.state.to_string()),
        ("reason", snapshot.reason.as_ref().map(|reason| reason.message.clone()).unwrap_or_default()),
        ("vm", format!("{} ({})", snapshot.vm_name, snapshot.vm)),
        ("incarnation", snapshot.incarnation.to_string()),
        ("restored from", snapshot.parent.map(|parent| parent.to_string()).unwrap_or_default()),
        ("difference from", snapshot.base.map(|base| base.to_string()).unwrap_or_default()),
        ("labels", labels.join(" ")),
        ("image", spec.image.clone()),
        ("kernel", spec.kernel.clone().or(platform.kernel.clone()).unwrap_or_default()),
        ("driver", format!("{} {version}", platform.driver)),
        ("processor", format!("{} {}", platform.cpu_vendor, platform.cpu_model)),
        ("size", bytes(snapshot.logical_bytes)),
        (
            "stored",
            format!(
                "{} in {} pieces, {} of its own",
                bytes(snapshot.stored_bytes),
                snapshot.chunks,
                bytes(snapshot.own_bytes)
            ),
        ),
        ("created", snapshot.created_at.to_string()),
        ("finished", snapshot.finished_at.map(|at| at.to_string()).unwrap_or_default()),
    ];
    let told = rows.into_iter().filter(|(_, value)| !value.trim().is_empty());
    told.map(|(name, value)| vec![name.to_owned(), value]).collect()
}

async fn remove(context: &Context, names: &[String]) -> Result<(), Failure> {
    let client = &context.api.client;
    for name in names {
        let mutation = once()?;
        surely(async || client.delete_snapshot(name, &mutation).await).await?;
        if !context.output.json {
            output::line(name)?;
        }
    }
    match context.output.json {
        true => context.output.json(&json!({ "removed": names })),
        false => Ok(()),
    }
}

/// Makes a VM of a snapshot, and waits until it runs.
pub(super) async fn restore(context: &Context, arguments: RestoreArgs) -> Outcome {
    let client = &context.api.client;
    let RestoreArgs { snapshot, name, labels, network, no_wait, timeout } = arguments;
    let mut phases = Phases::start(context.output, &snapshot);
    phases.phase("restoring");
    let labels = (!labels.is_empty()).then(|| labels.into_iter().collect());
    let network = network.is_given().then(|| run::network(network));
    let restore = RestoreSnapshot { name, labels, network };
    let mutation = once()?;
    let mut vm = surely(async || client.restore_snapshot(&snapshot, &restore, &mutation).await).await?;
    if !no_wait {
        vm = lifecycle::reached(client, &vm, "running", Instant::now() + timeout).await?;
    }
    phases.finish();
    match context.output.json {
        true => context.output.json(&vm)?,
        false => output::line(&vm.name)?,
    }
    Ok(ExitCode::SUCCESS)
}
