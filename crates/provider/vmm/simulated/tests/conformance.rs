//! The driver under the suite, on a host whose steps take time.

mod harness;

use flames_vmm::AgentChannel;
use flames_vmm_simulated::{SimulatedConfig, SimulatedTimings};

fn main() -> std::process::ExitCode {
    let host = SimulatedConfig {
        timings: SimulatedTimings::realistic(),
        agent_channel: AgentChannel::Exclusive,
        ..SimulatedConfig::default()
    };
    flames_conformance_runner::run(harness::Simulated::new(host).suite())
}
