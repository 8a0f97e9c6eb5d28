//! `flames ps`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use flames_wire::{ReasonCode, Vm, VmListQuery, VmState, label_filter};

use super::{Context, controllers, now};
use crate::args::PsArgs;
use crate::exit::{Failure, Outcome};
use crate::output::{self, age, printable};

/// Lists VMs.
pub(super) async fn ps(context: &Context, arguments: &PsArgs) -> Outcome {
    let mut query = VmListQuery { limit: Some(200), ..VmListQuery::default() };
    let mut labels = BTreeMap::new();
    for (name, value) in &arguments.filter {
        match name.as_str() {
            "label" => {
                let (key, value) = value.split_once('=').unwrap_or((value, ""));
                labels.insert(key.to_owned(), value.to_owned());
            }
            "state" => query.state = Some(state(value)?),
            "controller" => query.controller = Some(controllers::id_of(&context.api.client, value).await?),
            _ => {
                return Err(Failure::usage(format!("`{name}` is no filter."))
                    .advise("Filters are label=KEY=VALUE, state=STATE and controller=NAME."));
            }
        }
    }
    query.labels = label_filter(&labels);
    let all = arguments.all || query.state.is_some();
    let mut vms = context.api.client.list_all_vms(&query).await?;
    vms.retain(|vm| all || !vm.state.is_over());
    if context.output.json {
        context.output.json(&vms)?;
    } else if context.output.quiet {
        for vm in &vms {
            output::line(vm.id.to_string())?;
        }
    } else {
        let rows = vms.iter().map(row).collect();
        context.output.table(&["name", "state", "image", "command", "ports", "age", "id"], rows)?;
        if vms.is_empty() && !all {
            context.output.say("No VM runs. `flames ps --all` shows the others too.");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn state(text: &str) -> Result<VmState, Failure> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|_| {
        Failure::usage(format!("`{text}` is no state of a VM."))
            .advise("States are pending, scheduled, preparing, starting, running, paused, stopping, stopped, failed, lost, restarting, deleting and deleted.")
    })
}

fn row(vm: &Vm) -> Vec<String> {
    let words = vm.spec.command.iter().flatten().chain(&vm.spec.args);
    let command = words.map(String::as_str).collect::<Vec<_>>().join(" ");
    let endpoints = vm.incarnation.iter().flat_map(|incarnation| &incarnation.endpoints);
    let ports = endpoints.map(|endpoint| format!("{}->{}", endpoint.address, endpoint.guest_port));
    vec![
        vm.name.clone(),
        described(vm),
        vm.spec.image.clone(),
        shortened(&command),
        ports.collect::<Vec<_>>().join(", "),
        age(now(), vm.created_at),
        vm.id.to_string(),
    ]
}

/// The state, with how the run ended when it has.
pub(super) fn described(vm: &Vm) -> String {
    match vm.exit().filter(|_| vm.state.is_over()) {
        Some(exit) => match (exit.code, exit.signal) {
            (Some(code), _) => format!("{} ({code})", vm.state),
            (None, Some(signal)) => format!("{} (signal {signal})", vm.state),
            (None, None) => vm.state.to_string(),
        },
        None => match vm.reason.as_ref().filter(|reason| reason.code == ReasonCode::Waiting) {
            Some(reason) => format!("{}: {}", vm.state, printable(&reason.message)),
            None => vm.state.to_string(),
        },
    }
}

fn shortened(text: &str) -> String {
    const LONGEST: usize = 40;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_named_as_in_the_api() {
        assert_eq!(state("running").unwrap(), VmState::Running);
        assert_eq!(state("Running").unwrap_err().exit, crate::exit::USAGE);
    }

    #[test]
    fn a_long_command_is_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"ü".repeat(50)), format!("{}…", "ü".repeat(40)));
    }
}
