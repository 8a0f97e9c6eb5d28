//! The command line.

mod network;
pub(crate) mod parse;
mod snapshot;
mod up;
mod vm;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub(crate) use network::NetworkAction;
pub(crate) use parse::{Forward, Place};
pub(crate) use snapshot::{RestoreArgs, SnapshotAction};
pub(crate) use up::{CheckArgs, ConfigAction, ControllerRunArgs, DbAction, Role, ServerArgs, UpArgs};
pub(crate) use vm::{
    AttachArgs, CopyArgs, EgressArg, ExecArgs, LifecycleArgs, LogsArgs, NetworkArgs, PortForwardArgs, PsArgs,
    RemoveArgs, RestartWhen, RunArgs,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage, or input that is not allowed
  3  what was named is not there
  4  it does not fit what is there now (a conflict)
  5  the API cannot be reached
  `run`, `exec` and `attach` end with the workload's own code once it ran; 128+n when signal n ended it.

Where the API is:
  --api or FLAMES_API (`http://127.0.0.1:7070` or `unix:/path`), with FLAMES_TOKEN or --token-file;
  else what `flames up` wrote into the data folder (--data or FLAMES_DATA).

Begin with:
  flames doctor
  flames up
  flames image import debian debian.tar
  flames run debian -- uname -a";

/// Flames: a control plane for microVMs.
#[derive(Debug, Parser)]
#[command(name = "flames", version, about, after_help = EXIT_CODES, max_term_width = 110, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Global {
    /// The configuration [default: ~/.config/flames/flames.toml, else /etc/flames/flames.toml, where there is one].
    #[arg(long, global = true, env = "FLAMES_CONFIG", value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = "Everywhere")]
    pub(crate) config: Option<PathBuf>,
    /// The data folder of `flames up` [default: ~/.local/share/flames].
    #[arg(long, global = true, env = "FLAMES_DATA", value_name = "DIR", help_heading = "Everywhere")]
    pub(crate) data: Option<PathBuf>,
    /// The API's address: `http://HOST:PORT` or `unix:PATH`.
    #[arg(long, global = true, env = "FLAMES_API", value_name = "ADDRESS", help_heading = "Everywhere")]
    pub(crate) api: Option<String>,
    /// The API's bearer token.
    #[arg(
        long,
        global = true,
        env = "FLAMES_TOKEN",
        value_name = "TOKEN",
        hide = true,
        hide_env_values = true
    )]
    pub(crate) token: Option<String>,
    /// A file that holds the API's bearer token [default: `token` in the data folder].
    #[arg(long, global = true, env = "FLAMES_TOKEN_FILE", value_name = "FILE", help_heading = "Everywhere")]
    pub(crate) token_file: Option<PathBuf>,
    /// Write JSON.
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,
    /// Say nothing but the result.
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the API and run VMs on this machine, in the foreground.
    #[command(after_help = up::EXAMPLES)]
    Up(Box<UpArgs>),
    /// Serve the API for hosts on other machines, in the foreground. Runs no VMs itself.
    #[command(after_help = up::SERVER_EXAMPLES)]
    Server(Box<ServerArgs>),
    /// Create a VM, stream its workload's output, and end as the workload ends.
    Run(Box<RunArgs>),
    /// List VMs.
    #[command(visible_alias = "ls")]
    Ps(PsArgs),
    /// Show everything about VMs.
    #[command(
        after_help = "Examples:\n  flames inspect web-1\n  flames --json inspect web-1 | jq .incarnation.timeline"
    )]
    Inspect {
        /// VMs, by name or id.
        #[arg(required = true, value_name = "VM")]
        vms: Vec<String>,
    },
    /// Show a workload's output.
    Logs(LogsArgs),
    /// Run a command in a VM.
    Exec(ExecArgs),
    /// Attach to a process of a VM.
    Attach(AttachArgs),
    /// Copy files to and from a VM.
    Cp(CopyArgs),
    /// Make a port of a VM reachable on 127.0.0.1.
    PortForward(PortForwardArgs),
    /// Stop VMs.
    #[command(after_help = "Examples:\n  flames stop web-1 web-2\n  flames stop --no-wait web-1")]
    Stop(LifecycleArgs),
    /// Start stopped VMs again.
    #[command(after_help = "Example:\n  flames start web-1")]
    Start(LifecycleArgs),
    /// Stop VMs where they run, and start them again.
    #[command(after_help = "Example:\n  flames restart web-1")]
    Restart(LifecycleArgs),
    /// Let VMs' processors stand still.
    #[command(after_help = "Example:\n  flames pause web-1")]
    Pause(LifecycleArgs),
    /// Let paused VMs run on.
    #[command(after_help = "Example:\n  flames resume web-1")]
    Resume(LifecycleArgs),
    /// Change and show what VMs may reach.
    Network {
        #[command(subcommand)]
        action: NetworkAction,
    },
    /// Save VMs with their memory and disk, and look after what was saved.
    #[command(visible_alias = "snapshots")]
    Snapshot {
        #[command(subcommand)]
        action: SnapshotAction,
    },
    /// Make a VM of a snapshot.
    Restore(RestoreArgs),
    /// Remove VMs with all that belongs to them.
    Rm(RemoveArgs),
    /// Show what happened.
    #[command(
        after_help = "Examples:\n  flames events\n  flames events -f --vm web-1\n  flames events --controllers\n  flames --json events -f | jq .type"
    )]
    Events {
        /// Go on as more happens.
        #[arg(long, short)]
        follow: bool,
        /// What happened to the hosts that run VMs, in place of what happened to VMs and images.
        #[arg(long)]
        controllers: bool,
        /// Only what concerns this VM, by name or id.
        #[arg(long, value_name = "VM", conflicts_with = "controllers")]
        vm: Option<String>,
        /// Only events behind this position.
        #[arg(long, value_name = "POSITION")]
        after: Option<String>,
    },
    /// Look after the hosts that run VMs.
    #[command(
        visible_alias = "controller",
        after_help = "Examples:\n  flames controllers\n  flames controllers cordon local\n  flames controllers remove old --confirmed-dead\n  flames controller doctor\n  flames controller run --server https://flames.example.org:7071 --join-token-file join-token"
    )]
    Controllers {
        #[command(subcommand)]
        action: Option<ControllerAction>,
    },
    /// Import, list and remove images.
    #[command(visible_alias = "images")]
    Image {
        #[command(subcommand)]
        action: ImageAction,
    },
    /// Check, show and write the configuration.
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Look after the database.
    Db {
        #[command(subcommand)]
        action: DbAction,
    },
    /// Find out what keeps VMs from starting here, and what to do about it.
    #[command(
        after_help = "Examples:\n  flames doctor\n  flames doctor --kernel ./vmlinuz\n\nEnds with 1 when VMs cannot start."
    )]
    Doctor(DoctorArgs),
    /// Show the versions of this program and of the server.
    #[command(after_help = "Example:\n  flames version --json")]
    Version,
    /// Write the completions for a shell.
    #[command(
        after_help = "Example:\n  flames completions bash > ~/.local/share/bash-completion/completions/flames"
    )]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Convert an image; started by `flames up` for each import.
    #[command(name = "__convert-image", hide = true)]
    ConvertImage,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ControllerAction {
    /// List controllers.
    Ls,
    /// Place nothing new on a controller.
    Cordon {
        /// The controller, by name or id.
        controller: String,
    },
    /// Let VMs be placed on a controller again.
    Uncordon {
        /// The controller, by name or id.
        controller: String,
    },
    /// Check whether this machine can run VMs in production, behind Firecracker's jailer; needs no `flames up`.
    #[command(
        after_help = "Examples:\n  sudo flames controller doctor\n  sudo flames controller doctor --json | jq '.checks[] | select(.outcome != \"ok\")'\n\nEnds with 1 when a check is fatal. docs/guides/production-host.md explains each."
    )]
    Doctor,
    /// Make, list and remove the tokens with which hosts join.
    Token {
        #[command(subcommand)]
        action: TokenAction,
    },
    /// Run VMs on this machine for servers on other machines, in the foreground.
    #[command(after_help = up::RUN_EXAMPLES)]
    Run(Box<ControllerRunArgs>),
    /// Forget a controller.
    Remove {
        /// The controller, by name or id.
        controller: String,
        /// Its host is dead for certain: what ran there is ended.
        #[arg(long)]
        confirmed_dead: bool,
    },
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum TokenAction {
    /// Make a token, and write it to standard output: it is told this once.
    #[command(
        after_help = "Examples:\n  flames controllers token create > join-token\n  flames controllers token create --ttl 10m"
    )]
    Create {
        /// How long it holds: 90s, 10m, 2h, 7d.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse::duration)]
        ttl: std::time::Duration,
    },
    /// List the tokens that hold.
    #[command(after_help = "Example:\n  flames controllers token ls")]
    Ls,
    /// Remove a token: nobody joins with it any more. Hosts that joined stay.
    #[command(after_help = "Example:\n  flames controllers token rm 0f4c2f3a9d1e")]
    Rm {
        /// What it is called by.
        token: String,
    },
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ImageAction {
    /// Import a root file system (a tar, an OCI archive, a folder) or a kernel.
    #[command(after_help = "\
Examples:
  flames image import debian debian.tar.zst
  docker save alpine | flames image import alpine -
  flames image import busybox ./rootfs-folder
  flames image import jail ./with-a-dev-folder --device-nodes skip
  flames image import linux-6.12 vmlinux --kind kernel")]
    Import {
        /// The image's name.
        name: String,
        /// A file, a folder, or `-` for standard input.
        path: PathBuf,
        /// What it is for.
        #[arg(long, value_enum, default_value_t = ImportKind::Rootfs)]
        kind: ImportKind,
        /// What becomes of device nodes in the archive: few need any, since a guest's /dev is made by its kernel.
        #[arg(long, value_enum, default_value_t = ImportNodes::Refuse)]
        device_nodes: ImportNodes,
        /// Refuse a file with another digest.
        #[arg(long, value_name = "sha256:…")]
        digest: Option<String>,
    },
    /// List images.
    #[command(after_help = "Example:\n  flames image ls")]
    Ls,
    /// Remove images that no VM uses.
    #[command(after_help = "Example:\n  flames image rm debian")]
    Rm {
        /// The images' names.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImportKind {
    /// A root file system.
    Rootfs,
    /// A kernel.
    Kernel,
}

/// What becomes of device nodes in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImportNodes {
    /// The archive is refused.
    Refuse,
    /// They are left out.
    Skip,
    /// They are made.
    Keep,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DoctorArgs {
    /// The kernel that `flames up` will be given.
    #[arg(long, env = "FLAMES_KERNEL", value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The guest agent that `flames up` will be given.
    #[arg(long, env = "FLAMES_GUEST_AGENT", value_name = "FILE")]
    pub(crate) agent: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_in_its_help() {
        let root = Arguments::command();
        for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
            let own = command.get_after_help().is_some();
            let below = command.get_subcommands().any(|below| below.get_after_help().is_some());
            assert!(own || below, "{} has no example", command.get_name());
        }
    }
}
