//! `flames snapshot` and `flames restore` on the command line.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::NetworkArgs;
use super::parse;

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum SnapshotAction {
    /// Save a running or paused VM with its memory and its disk. It runs on.
    #[command(after_help = "\
Examples:
  flames snapshot create web-1
  flames snapshot create web-1 --name before-upgrade
  flames snapshot create web-1 --diff
  flames snapshot create web-1 --no-wait

With --diff only what the memory has become since the VM's newest snapshot is saved and stored: it is quicker, and whole all the same, so
that the other one can be removed. The VM stands still while its memory is saved; then it runs on while the snapshot is stored.")]
    Create {
        /// The VM, by name or id.
        vm: String,
        /// The snapshot's name [default: one is made up].
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Save only what changed since the newest ready snapshot of the VM's present run.
        #[arg(long)]
        diff: bool,
        /// The snapshot that this is, to be sure of it.
        #[arg(long, value_name = "SNAPSHOT", requires = "diff")]
        base: Option<String>,
        /// Do not wait until it is ready.
        #[arg(long)]
        no_wait: bool,
        /// How long to wait at most.
        #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = parse::duration)]
        timeout: Duration,
    },
    /// List snapshots.
    #[command(after_help = "Examples:\n  flames snapshot ls\n  flames snapshot ls --vm web-1")]
    Ls {
        /// Only those of this VM, by name or id.
        #[arg(long, value_name = "VM")]
        vm: Option<String>,
    },
    /// Show everything about snapshots.
    #[command(after_help = "Example:\n  flames snapshot inspect before-upgrade")]
    Inspect {
        /// Snapshots, by name or id.
        #[arg(required = true, value_name = "SNAPSHOT")]
        snapshots: Vec<String>,
    },
    /// Remove snapshots. VMs that run from them run on.
    #[command(after_help = "Example:\n  flames snapshot rm before-upgrade")]
    Rm {
        /// Snapshots, by name or id.
        #[arg(required = true, value_name = "SNAPSHOT")]
        snapshots: Vec<String>,
    },
}

/// Arguments of `flames restore`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  flames restore before-upgrade
  flames restore before-upgrade --name web-2 --label copy=yes
  flames restore before-upgrade --egress deny

The new VM goes on where the saved one was: its processes run, its files are open. It has its own name, host name, ports and
address. With any flag of the network it has that network in place of the saved one's.")]
pub(crate) struct RestoreArgs {
    /// The snapshot, by name or id.
    pub(crate) snapshot: String,
    /// The VM's name [default: one is made up].
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// A label of the VM, in place of those that the saved one had. May be given several times.
    #[arg(long = "label", short = 'l', value_name = "KEY=VALUE", value_parser = parse::pair)]
    pub(crate) labels: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// Do not wait until it runs.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long to wait at most.
    #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = parse::duration)]
    pub(crate) timeout: Duration,
}
