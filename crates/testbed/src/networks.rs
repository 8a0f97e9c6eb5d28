//! Networks of VMs that change: what clients ask for, and whether it came to that.

use flames_clock::{Random, RandomExt};
use flames_model::{Bandwidth, Egress, EventKind, NetworkSpec, VmState};
use flames_vmm::NetworkPolicy;

use crate::check::{Seen, Truth};

/// Some network, of many, so that hardly two are the same.
pub(crate) fn any(random: &dyn Random) -> NetworkSpec {
    NetworkSpec {
        egress: if random.below(2) == 0 { Egress::Allow { named: Vec::new() } } else { Egress::Deny },
        upload: Some(Bandwidth::of(Bandwidth::MIN_RATE + random.below(1_000_000))),
        ..NetworkSpec::default()
    }
}

/// Whether a machine's policy is what was asked, as far as clients ask.
fn is_under(policy: &NetworkPolicy, asked: &NetworkSpec) -> bool {
    let egress = match (&policy.egress, &asked.egress) {
        (flames_vmm::Egress::Deny, Egress::Deny) => true,
        (flames_vmm::Egress::Allow { named }, Egress::Allow { .. }) => named.is_empty(),
        _ => false,
    };
    let rate = policy.upload.map(|limit| limit.bytes_per_second);
    egress && rate == asked.upload.map(|limit| limit.bytes_per_second)
}

/// Every machine that lives is finally under the network that is wanted of its VM, and its host says so. Every change was told.
pub(crate) fn in_force(truth: &Truth, seen: &Seen, found: &mut Vec<String>) {
    for (id, last) in &seen.vms {
        let changes = seen.events.iter().filter(|entry| {
            entry.event.vm == Some(*id) && matches!(entry.event.kind, EventKind::VmNetwork { .. })
        });
        let changes = u64::try_from(changes.count()).unwrap_or(0);
        if changes != last.vm.network_revision {
            let revision = last.vm.network_revision;
            found.push(format!("{id} has network revision {revision}, and {changes} events say so"));
        }
        let Some(incarnation) = &last.incarnation else { continue };
        if !matches!(last.state, VmState::Running | VmState::Paused) {
            continue;
        }
        if !last.vm.is_network_in_force(Some(incarnation)) {
            found.push(format!(
                "{id} is wanted under network revision {}, and is under {:?}",
                last.vm.network_revision, incarnation.network
            ));
        }
        let Ok(name) = flames_vmm::IncarnationName::new(incarnation.id.to_string()) else { continue };
        let policy = truth.hosts.iter().find_map(|(_, host)| host.machine(&name)?.network_policy);
        if !policy.as_ref().is_some_and(|policy| is_under(policy, &last.vm.spec.network)) {
            found.push(format!("{id} is to be under {:?}, and is under {policy:?}", last.vm.spec.network));
        }
    }
}
