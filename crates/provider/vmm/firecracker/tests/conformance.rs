//! The driver under the suite that every VmDriver must pass, with a real Firecracker and real guests.
//!
//! A guest is booted once on a machine and saved; the cases start from that snapshot.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use flames_vmm::{AgentChannel, IncarnationName, MachineSpec, StartFrom, VmDriver};
use flames_vmm_conformance::{Capabilities, Fixture, Harness, Unavailable, async_trait};
use support::{Host, base};
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
        let driver = Mutex::new(Some(host.driver()));
        Box::new(UnderTest { driver, host })
    }
}

struct UnderTest {
    // Dropped before what it works on.
    driver: Mutex<Option<Arc<dyn VmDriver>>>,
    host: Host,
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
        *self.driver.lock().unwrap() = Some(self.host.driver());
    }

    async fn spec(&self) -> MachineSpec {
        support::spec()
    }

    async fn start_from(&self) -> StartFrom {
        base::plain()
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
    }
    let told = Capabilities {
        agent_channel: AgentChannel::Multiplexed,
        pause: true,
        snapshot: true,
        diff_snapshot: true,
        user_network: false,
        live_network_policy: false,
        guest_writes_console: true,
        guest_answers: true,
        guest_powers_off: true,
    };
    flames_vmm_conformance::run(Firecracker, told)
}
