//! The driver under the suite, on a host that does everything at once, and as little as a driver may do.

mod harness;

use flames_vmm::AgentChannel;
use flames_vmm_simulated::{SimulatedConfig, SimulatedTimings};

fn main() -> std::process::ExitCode {
    let host = SimulatedConfig {
        timings: SimulatedTimings::INSTANT,
        agent_channel: AgentChannel::Multiplexed,
        pause: false,
        snapshot: false,
        diff_snapshot: false,
        live_network_policy: false,
        ..SimulatedConfig::default()
    };
    flames_conformance_runner::run(harness::Simulated::new(host).suite())
}
