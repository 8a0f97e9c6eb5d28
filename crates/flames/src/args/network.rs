//! `flames network` on the command line.

use std::time::Duration;

use clap::Subcommand;

use super::{NetworkArgs, parse};

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum NetworkAction {
    /// Replace what a VM may reach, and who may reach it, as a whole.
    #[command(after_help = "\
Examples:
  flames network set web-1 --egress deny
  flames network set web-1 --allow-domain pypi.org --allow-port 443
  flames network set web-1 --egress allow --private-network team-a --upload 1M

A VM that runs is put under it at once, without a restart; connections that it does not admit are cut. What no flag names is as for a
new VM: no private network, no limits.")]
    Set {
        /// The VM, by name or id.
        vm: String,
        #[command(flatten)]
        network: NetworkArgs,
        /// Do not wait until it is in force.
        #[arg(long)]
        no_wait: bool,
        /// How long to wait at most.
        #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = parse::duration)]
        timeout: Duration,
    },
    /// Show what a VM may reach, and whether that is in force.
    #[command(
        after_help = "Examples:\n  flames network show web-1\n  flames --json network show web-1 | jq .in_force"
    )]
    Show {
        /// The VM, by name or id.
        vm: String,
    },
}
