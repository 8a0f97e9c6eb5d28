//! Policies of machines that live.

use flames_error::ErrorKind;
use flames_vmm::{Egress, IncarnationName, MachineSpec, NetworkPolicy, Phase, Update};

use crate::Fixture;
use crate::lab::{Lab, fresh_name, refused, same};

fn policy() -> NetworkPolicy {
    let egress = Egress::AllowList {
        ranges: vec![("203.0.113.0".parse().unwrap(), 24)],
        domains: vec!["*.example.com".to_owned()],
        ports: vec![(443, 443)],
    };
    NetworkPolicy { egress, private_network: Some("team".to_owned()), ..NetworkPolicy::default() }
}

async fn running_on_a_tap(lab: &Lab<'_>) -> (IncarnationName, MachineSpec) {
    let network = lab.fixture.tap().await.expect("a driver that replaces policies has taps");
    let (name, spec) = (fresh_name(), MachineSpec { network, ..lab.fixture.spec().await });
    lab.prepare(&name, &spec).await;
    let from = lab.fixture.start_on_tap_from().await;
    lab.call("start", lab.driver().start(&name, from, false)).await.expect("it starts");
    (name, spec)
}

async fn replace(lab: &Lab<'_>, name: &IncarnationName, policy: &NetworkPolicy) {
    let update = Update::Network(policy.clone());
    lab.call("update", lab.driver().update(name, &update)).await.expect("the policy is replaced");
}

pub(crate) async fn a_policy_is_replaced_while_its_guest_runs(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let (name, _) = running_on_a_tap(&lab).await;
    let before = lab.observe(&name).await;
    assert_eq!(fixture.policy_in_place(&name).await, Some(NetworkPolicy::default()));
    for policy in [policy(), policy(), NetworkPolicy::default(), policy()] {
        replace(&lab, &name, &policy).await;
        assert_eq!(fixture.policy_in_place(&name).await, Some(policy));
        same(&before, &lab.observe(&name).await);
    }
}

pub(crate) async fn a_replaced_policy_outlives_its_driver(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let (name, spec) = running_on_a_tap(&lab).await;
    replace(&lab, &name, &policy()).await;
    fixture.reopen().await;
    lab.adopt().await;
    assert_eq!(fixture.policy_in_place(&name).await, Some(policy()));
    lab.is(&name, Phase::Running).await;
    // What it was prepared with is still what it was prepared with.
    lab.prepare(&name, &spec).await;
    assert_eq!(fixture.policy_in_place(&name).await, Some(policy()));
}

pub(crate) async fn a_machine_without_a_tap_takes_no_policy(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let answer = lab.call("update", lab.driver().update(&name, &Update::Network(policy()))).await;
    refused(answer, ErrorKind::InvalidInput);
    lab.is(&name, Phase::Running).await;
}

pub(crate) async fn without_the_capability_a_policy_is_not_supported(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let answer = lab.call("update", lab.driver().update(&name, &Update::Network(policy()))).await;
    refused(answer, ErrorKind::NotSupported);
    lab.is(&name, Phase::Running).await;
}
