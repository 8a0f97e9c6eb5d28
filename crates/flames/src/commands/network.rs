//! `flames network`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use flames_wire::Vm;
use serde_json::json;

use super::{Context, run, show};
use crate::args::NetworkAction;
use crate::connect::{once, surely};
use crate::exit::{Failure, Outcome};
use crate::output;

/// Changes and shows what VMs may reach.
pub(super) async fn network(context: &Context, action: NetworkAction) -> Outcome {
    match action {
        NetworkAction::Set { vm, network, no_wait, timeout } => {
            if !network.is_given() {
                return Err(Failure::usage("Say what the VM may reach, as `--egress deny`."));
            }
            let (client, mutation, network) = (&context.api.client, once()?, run::network(network));
            let mut vm = surely(async || client.set_network(&vm, &network, &mutation).await).await?;
            if !no_wait {
                vm = in_force(context, vm, timeout).await?;
            }
            match context.output.json {
                true => context.output.json(&vm)?,
                false => output::line(&vm.name)?,
            }
        }
        NetworkAction::Show { vm } => tell(context, &context.api.client.get_vm(&vm).await?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until a VM's machine is under the network that is wanted, if it has one or is about to.
async fn in_force(context: &Context, mut vm: Vm, timeout: Duration) -> Result<Vm, Failure> {
    let deadline = Instant::now() + timeout;
    while !vm.network.in_force && !vm.state.is_over() {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = context.api.client.wait_vm(&vm.id.to_string(), "network", left).await?;
        vm = waited.vm;
        if waited.reached || vm.state.is_over() {
            break;
        }
        if vm.network.reason.is_some() || left.is_zero() {
            let why = vm.network.reason.as_ref().map(|reason| format!(": {}", reason.message));
            let said = format!(
                "The network of the VM `{}` is wanted and not in force{}",
                vm.name,
                why.unwrap_or_default()
            );
            return Err(Failure::failed(said).advise(format!("See `flames inspect {}`.", vm.name)));
        }
    }
    Ok(vm)
}

fn tell(context: &Context, vm: &Vm) -> Result<(), Failure> {
    if context.output.json {
        let status = &vm.network;
        return context.output.json(&json!({
            "network": vm.spec.network,
            "revision": status.revision,
            "applied_revision": status.applied_revision,
            "in_force": status.in_force,
            "reason": status.reason,
        }));
    }
    let rows = show::network(vm).into_iter().filter(|(_, value)| !value.is_empty());
    context.output.list(rows.map(|(name, value)| vec![name.to_owned(), value]).collect())
}
