//! The driver under the suite that every VmDriver must pass, with real guests.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use flames_vmm::{AgentChannel, IncarnationName, MachineSpec, VmDriver};
use flames_vmm_conformance::{Capabilities, Fixture, Harness, Unavailable, async_trait};
use support::Host;
use tokio::io::AsyncWriteExt;

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
        let host = Host::new();
        let driver = Mutex::new(Some(host.driver()));
        Box::new(UnderTest { host, driver })
    }
}

struct UnderTest {
    host: Host,
    driver: Mutex<Option<Arc<dyn VmDriver>>>,
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
        self.host.spec()
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
