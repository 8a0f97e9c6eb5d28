//! `flames inspect` and `flames version`.

use std::process::ExitCode;

use flames_wire::{Bandwidth, Egress, EgressMode, Network, Vm};
use serde_json::json;

use super::Context;
use super::list::described;
use crate::args::Global;
use crate::connect;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Output};

/// Shows everything about VMs: as JSON, or for people.
pub(super) async fn inspect(context: &Context, names: &[String]) -> Outcome {
    let mut vms = Vec::new();
    for name in names {
        vms.push(context.api.client.get_vm(name).await?);
    }
    if context.output.json {
        match vms.as_slice() {
            [vm] => context.output.json(vm)?,
            vms => context.output.json(&vms)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    for (number, vm) in vms.iter().enumerate() {
        if number > 0 {
            output::line("")?;
        }
        context.output.list(facts(vm))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn facts(vm: &Vm) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![name.to_owned(), value]);
        }
    };
    let spec = &vm.spec;
    let pairs = |pairs: &std::collections::BTreeMap<String, String>| {
        pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    };
    row("name", vm.name.clone());
    row("id", vm.id.to_string());
    row("state", described(vm));
    row("reason", vm.reason.as_ref().map(|reason| reason.message.clone()).unwrap_or_default());
    row("wanted", format!("{:?}", vm.desired).to_lowercase());
    row("run", format!("{} ({} restarts in a row)", vm.run, vm.restarts));
    row("labels", pairs(&vm.labels));
    row("image", spec.image.clone());
    row("kernel", spec.kernel.clone().unwrap_or_default());
    let words = spec.command.iter().flatten().chain(&spec.args);
    row("command", words.map(String::as_str).collect::<Vec<_>>().join(" "));
    row("env", pairs(&spec.env));
    row("secret env", spec.secret_env.join(" "));
    row(
        "size",
        format!("{} vCPU, {} MiB memory, {} MiB disk", spec.vcpus, spec.memory_mib, spec.root_disk_mib),
    );
    row("disk", format!("{:?}", spec.disk).to_lowercase());
    for (name, value) in network(vm) {
        row(name, value);
    }
    row("restored from", vm.restored_from.map(|snapshot| snapshot.to_string()).unwrap_or_default());
    row("created", vm.created_at.to_string());
    row("deadline", vm.deadline.map(|at| at.to_string()).unwrap_or_default());
    if let Some(incarnation) = &vm.incarnation {
        row("incarnation", incarnation.id.to_string());
        row("controller", incarnation.controller.to_string());
        if let Some(address) = &incarnation.address {
            row("address", address.ipv4.clone());
            row("address", address.ipv6.clone().unwrap_or_default());
        }
        for endpoint in &incarnation.endpoints {
            row("port", format!("{} -> {}", endpoint.address, endpoint.guest_port));
        }
        for route in &vm.routes {
            row("url", route.url.clone());
        }
        let mut before = incarnation.created_at;
        for entry in &incarnation.timeline {
            let took = entry.at.duration_since(before).as_millis();
            row(entry.state.as_str(), format!("{} (+{took} ms)", entry.at));
            before = entry.at;
        }
    }
    rows
}

/// What a VM may reach, and whether that is in force where it could be.
pub(super) fn network(vm: &Vm) -> Vec<(&'static str, String)> {
    let (network, status) = (&vm.spec.network, &vm.network);
    let limit = |limit: Option<Bandwidth>| {
        limit.map(|limit| format!("{} bytes/s", limit.bytes_per_second)).unwrap_or_default()
    };
    let in_force = match (status.in_force, status.applied_revision, &status.reason) {
        (true, ..) | (false, None, _) => String::new(),
        (false, Some(_), None) => "not in force yet".to_owned(),
        (false, Some(_), Some(reason)) => format!("not in force: {}", reason.message),
    };
    vec![
        ("egress", egress(network)),
        ("private network", network.private_network.clone().unwrap_or_default()),
        ("upload", limit(network.upload)),
        ("download", limit(network.download)),
        ("network", in_force),
    ]
}

/// What a VM may connect to, in one line.
fn egress(network: &Network) -> String {
    let Egress { mode, ranges, domains, ports } = &network.egress;
    let ports = ports.iter().map(|ports| match ports.first == ports.last {
        true => format!(":{}", ports.first),
        false => format!(":{}-{}", ports.first, ports.last),
    });
    let mode = match mode {
        EgressMode::Deny => "deny",
        EgressMode::Allow => "allow",
        EgressMode::AllowList => "allow-list",
        EgressMode::Unrestricted => "unrestricted",
    };
    let words = std::iter::once(mode.to_owned()).chain(ranges.iter().cloned()).chain(domains.iter().cloned());
    words.chain(ports).collect::<Vec<_>>().join(" ")
}

/// Shows the versions of this program and of the server, when one is reached.
pub(super) async fn version(global: &Global, output: Output) -> Outcome {
    let own = env!("CARGO_PKG_VERSION");
    let server = match connect::find(global) {
        Ok(api) => api.client.version().await.map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    if output.json {
        output.json(&json!({ "client": own, "server": server.as_ref().ok() }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format!("flames {own}"))?;
    match server {
        Ok(server) => output::line(format!("server {} (API {})", server.version, server.api))?,
        Err(failure) => output.say(format!("server: {}", failure.message)),
    }
    Ok(ExitCode::SUCCESS)
}
