//! The driver under the suite that every VmDriver must pass, with real guests.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::process::ExitCode;
use std::sync::Arc;

use flames_test_guests::Reopened;
use flames_test_guests::words::reboot;
use flames_vmm::{AgentChannel, IncarnationName, MachineSpec, VmDriver};
use flames_vmm_conformance::{Capabilities, Fixture, Harness, Unavailable, async_trait};
use support::Host;

struct Qemu;

#[async_trait]
impl Harness<dyn Fixture> for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn unavailable(&self) -> Option<Unavailable> {
        support::unavailable()
    }

    async fn fresh(&self) -> Box<dyn Fixture> {
        let host = Arc::new(Host::new());
        let driven = Arc::clone(&host);
        Box::new(UnderTest { driver: Reopened::new(move || driven.driver()), host })
    }
}

struct UnderTest {
    driver: Reopened,
    host: Arc<Host>,
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
        self.host.spec()
    }

    async fn crash(&self, incarnation: &IncarnationName) {
        self.host.kill(incarnation);
    }

    async fn power_off_guest(&self, incarnation: &IncarnationName) {
        reboot(&*self.driver(), incarnation).await;
    }

    async fn was_restored(&self, incarnation: &IncarnationName) -> Option<bool> {
        let line = self.host.command_lines(incarnation).pop()?;
        Some(line.iter().any(|word| word == "-incoming"))
    }

    async fn monitors(&self) -> usize {
        self.host.monitors()
    }

    async fn residue(&self) -> Vec<String> {
        self.host.residue()
    }
}

fn main() -> ExitCode {
    let told = Capabilities {
        agent_channel: AgentChannel::Exclusive,
        pause: true,
        snapshot: true,
        diff_snapshot: false,
        user_network: true,
        live_network_policy: false,
        guest_writes_console: true,
        guest_answers: true,
        guest_powers_off: true,
    };
    flames_vmm_conformance::run(Qemu, told)
}
