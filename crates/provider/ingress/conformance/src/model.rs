//! Random calls, and a model that says what each must answer and what must stand in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use flames_conformance_runner::{Sequences, agree, seeds};
use flames_error::ErrorKind;
use flames_ingress::{IngressProvider, Route, RouteKey, Target};
use proptest::prelude::*;

use crate::{Fixture, address, key, list_all};

const SEQUENCES: Sequences = Sequences { least: 24, most: 96, time: Duration::from_secs(4) };
/// How long the longest sequence is.
const CALLS: usize = 20;

/// Few names, so that they meet.
const VMS: [&str; 3] = ["vm_1", "vm_10", "vm_2"];
const PORTS: [u16; 2] = [80, 443];
const HOSTS: [&str; 4] = ["a.example", "b.example", "c.example", "x.a.example"];

/// One call. Numbers are places in the tables above.
#[derive(Debug, Clone)]
enum Call {
    Register { vm: usize, port: usize, hosts: Vec<usize>, target: u16 },
    UnregisterPort { vm: usize, port: usize },
    UnregisterTarget { vm: usize, port: usize, target: u16 },
    Unregister { vm: usize },
}

fn call() -> impl Strategy<Value = Call> {
    let (vm, port) = (0..VMS.len(), 0..PORTS.len());
    let hosts = proptest::sample::subsequence((0..HOSTS.len()).collect::<Vec<_>>(), 0..=2);
    prop_oneof![
        6 => (vm.clone(), port.clone(), hosts, 0..2_u16)
            .prop_map(|(vm, port, hosts, target)| Call::Register { vm, port, hosts, target }),
        1 => (vm.clone(), port.clone()).prop_map(|(vm, port)| Call::UnregisterPort { vm, port }),
        2 => (vm.clone(), port, 0..2_u16)
            .prop_map(|(vm, port, target)| Call::UnregisterTarget { vm, port, target }),
        1 => vm.prop_map(|vm| Call::Unregister { vm }),
    ]
}

/// The table as it must be: the plainest thing that keeps the promises.
#[derive(Default)]
struct Model(BTreeMap<RouteKey, (Route, Target)>);

impl Model {
    fn register(&mut self, route: Route, target: Target) -> Result<(), ErrorKind> {
        let clashes = |other: &Route| {
            other.key.vm != route.key.vm && other.hosts.iter().any(|host| route.hosts.contains(host))
        };
        if self.0.values().any(|(other, _)| clashes(other)) {
            return Err(ErrorKind::AlreadyExists);
        }
        self.0.insert(route.key.clone(), (route, target));
        Ok(())
    }

    fn unregister_target(&mut self, key: &RouteKey, target: &Target) -> bool {
        let leads_there = self.0.get(key).is_some_and(|(_, standing)| standing == target);
        if leads_there {
            self.0.remove(key);
        }
        leads_there
    }
}

/// Makes the calls on both, from an empty table on.
///
/// # Errors
/// The first difference.
async fn compare(ingress: &dyn IngressProvider, calls: &[Call]) -> Result<(), String> {
    for standing in list_all(ingress, 1_000).await {
        ingress.unregister(&standing.route.key.vm).await.unwrap();
    }
    let mut model = Model::default();
    let place = |vm: usize, port: usize| key(VMS[vm], PORTS[port]);
    for (number, call) in calls.iter().enumerate() {
        let is_same = match call.clone() {
            Call::Register { vm, port, hosts, target } => {
                let hosts = hosts.into_iter().map(|host| HOSTS[host].to_owned()).collect();
                let route = Route { key: place(vm, port), hosts };
                let told = ingress.register(route.clone(), address(9000 + target)).await;
                let told = told.map(|registered| (registered.route, registered.target));
                let wanted = model.register(route.clone(), address(9000 + target));
                match (told, wanted) {
                    (Ok(told), Ok(())) => told == (route, address(9000 + target)),
                    (Err(told), Err(wanted)) => told.kind() == wanted,
                    _ => false,
                }
            }
            Call::UnregisterPort { vm, port } => {
                model.0.remove(&place(vm, port));
                ingress.unregister_port(&place(vm, port)).await.is_ok()
            }
            Call::UnregisterTarget { vm, port, target } => {
                let told = ingress.unregister_target(&place(vm, port), &address(9000 + target)).await;
                let wanted = model.unregister_target(&place(vm, port), &address(9000 + target));
                told.is_ok_and(|told| told == wanted)
            }
            Call::Unregister { vm } => {
                model.0.retain(|key, _| key.vm.as_str() != VMS[vm]);
                ingress.unregister(&place(vm, 0).vm).await.is_ok()
            }
        };
        if !is_same {
            return Err(format!("call {number} has another answer"));
        }
    }
    let wanted: Vec<(Route, Target)> = model.0.into_values().collect();
    let pairs = |registrations: Vec<flames_ingress::Registration>| -> Vec<(Route, Target)> {
        registrations.into_iter().map(|listed| (listed.route, listed.target)).collect()
    };
    for limit in [2, 1_000] {
        agree(&format!("what pages of {limit} list"), &pairs(list_all(ingress, limit).await), &wanted)?;
    }
    for vm in VMS {
        let told = pairs(ingress.get(&key(vm, 1).vm).await.unwrap());
        let wanted = wanted.iter().filter(|(route, _)| route.key.vm.as_str() == vm).cloned().collect();
        agree(&format!("what {vm} is told to have"), &told, &wanted)?;
    }
    Ok(())
}

pub(crate) async fn any_order_of_calls_gives_the_table_of_the_model(fixture: &dyn Fixture) {
    let (ingress, seeds) =
        (fixture.ingress(), seeds("any_order_of_calls_gives_the_table_of_the_model", [101]));
    let calls = proptest::collection::vec(call(), 1..=CALLS);
    SEQUENCES.agree(seeds, calls, async |_, calls| compare(&*ingress, calls).await).await;
}
