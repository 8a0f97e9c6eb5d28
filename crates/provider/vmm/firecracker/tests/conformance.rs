//! The driver under the suite that every VmDriver must pass, with a real Firecracker and real guests.
//!
//! A guest is booted once on a machine and saved; the cases start from that snapshot.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use flames_vmm::{
    AgentChannel, Egress, IncarnationName, MachineSpec, NetworkPolicy, NetworkSpec, StartFrom, VmDriver,
};
use flames_vmm_conformance::{Capabilities, Fixture, Harness, Unavailable, async_trait};
use support::world::{World, all_rules};
use support::{Host, base, driver_of};
use tokio::io::AsyncWriteExt;

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
        let driver = Mutex::new(Some(driver(&host, &world)));
        Box::new(UnderTest { driver, host, world })
    }
}

struct UnderTest {
    // Dropped before what it works on.
    driver: Mutex<Option<Arc<dyn VmDriver>>>,
    host: Host,
    world: World,
}

/// A driver with networks, so that it can do all that one can.
fn driver(host: &Host, world: &World) -> Arc<dyn VmDriver> {
    Arc::new(driver_of(world.networked(host.config())))
}

#[async_trait]
impl Fixture for UnderTest {
    fn driver(&self) -> Arc<dyn VmDriver> {
        self.driver.lock().unwrap().clone().expect("the driver is open")
    }

    async fn close(&self) {
        self.driver.lock().unwrap().take();
    }

    async fn reopen(&self) {
        self.close().await;
        *self.driver.lock().unwrap() = Some(driver(&self.host, &self.world));
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
        let recorded = std::fs::read(self.host.path(incarnation, "network-policy.json")).ok();
        let policy = match recorded {
            Some(bytes) => {
                let record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                serde_json::from_value(record["policy"].clone()).unwrap()
            }
            None => NetworkPolicy::default(),
        };
        let rules = all_rules(&self.host.cluster, incarnation);
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
        self.host.kill(incarnation);
    }

    async fn power_off_guest(&self, incarnation: &IncarnationName) {
        let mut stream = support::talk(&*self.driver(), incarnation).await;
        stream.write_all(b"reboot\n").await.unwrap();
        // The connection must outlive the words.
        tokio::spawn(async move { tokio::io::copy(&mut stream, &mut tokio::io::sink()).await });
    }

    async fn monitors(&self) -> usize {
        self.host.monitors()
    }

    async fn residue(&self) -> Vec<String> {
        self.host.residue()
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
