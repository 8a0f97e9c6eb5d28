//! The driver under the suite that every VmDriver must pass, with a real Firecracker and real guests.
//!
//! A guest is booted once on a machine and saved; the cases start from that snapshot.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::process::ExitCode;
use std::sync::Arc;

use flames_test_guests::Reopened;
use flames_test_guests::words::reboot;
use flames_vmm::{
    AgentChannel, Egress, IncarnationName, MachineSpec, NetworkPolicy, NetworkSpec, StartFrom, VmDriver,
};
use flames_vmm_conformance::{Capabilities, Fixture, Harness, Unavailable, async_trait};
use support::world::{World, all_rules};
use support::{Host, base, driver_of};

struct Firecracker;

#[async_trait]
impl Harness<dyn Fixture> for Firecracker {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn unavailable(&self) -> Option<Unavailable> {
        support::unavailable()
    }

    async fn fresh(&self) -> Box<dyn Fixture> {
        let host = Host::new();
        let world = World::new(&host.cluster);
        let host = Arc::new((host, world));
        let driven = Arc::clone(&host);
        // With networks, so that it can do all that a driver can.
        let open = move || Arc::new(driver_of(driven.1.networked(driven.0.config()))) as Arc<dyn VmDriver>;
        Box::new(UnderTest { driver: Reopened::new(open), host })
    }
}

struct UnderTest {
    driver: Reopened,
    host: Arc<(Host, World)>,
}

#[async_trait]
impl Fixture for UnderTest {
    fn driver(&self) -> Arc<dyn VmDriver> {
        self.driver.driver()
    }

    async fn close(&self) {
        self.driver.close();
    }

    async fn reopen(&self) {
        self.driver.reopen();
    }

    async fn spec(&self) -> MachineSpec {
        support::spec()
    }

    async fn start_from(&self) -> StartFrom {
        base::plain()
    }

    async fn start_on_tap_from(&self) -> StartFrom {
        base::networked()
    }

    async fn tap(&self) -> Option<NetworkSpec> {
        Some(base::networked_spec(1).network)
    }

    async fn policy_in_place(&self, incarnation: &IncarnationName) -> Option<NetworkPolicy> {
        // What the driver has on record, if the kernel's rules are those of it.
        let recorded = std::fs::read(self.host.0.path(incarnation, "network-policy.json")).ok();
        let policy = match recorded {
            Some(bytes) => {
                let record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                serde_json::from_value(record["policy"].clone()).unwrap()
            }
            None => NetworkPolicy::default(),
        };
        let rules = all_rules(&self.host.0.cluster, incarnation);
        let listed: Vec<String> = match &policy.egress {
            Egress::AllowList { ranges, .. } => {
                ranges.iter().map(|(address, prefix)| format!("{address}/{prefix}")).collect()
            }
            _ => Vec::new(),
        };
        // Of all that the suite asks for, this range tells whether it is admitted.
        let admits = rules.contains("203.0.113.0/24");
        let should = listed.iter().any(|range| range == "203.0.113.0/24");
        let is_so = admits == should && listed.iter().all(|range| rules.contains(range));
        is_so.then_some(policy)
    }

    async fn crash(&self, incarnation: &IncarnationName) {
        self.host.0.kill(incarnation);
    }

    async fn power_off_guest(&self, incarnation: &IncarnationName) {
        reboot(&*self.driver(), incarnation).await;
    }

    async fn monitors(&self) -> usize {
        self.host.0.monitors()
    }

    async fn residue(&self) -> Vec<String> {
        self.host.0.residue()
    }
}

fn main() -> ExitCode {
    // Not in a case, whose time is limited; and nothing is started to list them.
    if support::unavailable().is_none() && !std::env::args().any(|argument| argument == "--list") {
        base::make_plain();
        base::make_networked_apart();
    }
    let told = Capabilities {
        agent_channel: AgentChannel::Multiplexed,
        pause: true,
        snapshot: true,
        diff_snapshot: true,
        user_network: false,
        live_network_policy: true,
        guest_writes_console: true,
        guest_answers: true,
        guest_powers_off: true,
    };
    flames_vmm_conformance::run(Firecracker, told)
}
