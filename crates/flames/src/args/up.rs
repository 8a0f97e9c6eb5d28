//! The arguments of `flames up`, and of the commands about its configuration.

use clap::{Args, Subcommand, ValueEnum};

use crate::config::SettingFlags;

pub(crate) const EXAMPLES: &str = "\
Examples:
  flames up --kernel ./vmlinuz
  flames up --kernel debian                      (Debian's packaged kernel, fetched once)
  flames up --data /tmp/try --listen 0 --ephemeral --driver simulated
  flames up --kernel ./vmlinuz --accel tcg --on-exit stop
  flames up --config /etc/flames/flames.toml     (`flames config example` writes one)

Each setting is a flag, a variable of the environment and a line of flames.toml; the flag goes before the variable, that before the
file. `-h` shows the most used; `--help` shows all.

Ctrl-C drains: no new requests, what is under way is finished, VMs run on (or are stopped: --on-exit) and are taken up
by the next `flames up`. A second Ctrl-C ends at once; VMs run on then too.";

const CHECK_EXAMPLES: &str = "\
Examples:
  flames config check
  flames config check --config ./flames.toml
  flames config check --for server --config /etc/flames/flames.toml
  flames config check --for controller --server https://flames-1.example.org:7071 --server-ca ca.pem
  FLAMES_STATE_PASSWORD=… flames config check --state-backend postgres --state-url postgres://flames@db/flames
  flames --json config check | jq '.problems[]'

Connects to everything and changes nothing; in a bucket, one small object is put and removed again. Ends with 2 when something is
wrong, with one line for each problem.";

const DB_EXAMPLES: &str = "\
Examples:
  flames db views --config /etc/flames/flames.toml
  psql -c 'SELECT project, name, desired FROM flames.vms' flames";

/// What `flames up` takes, and what the commands about its configuration take.
#[derive(Debug, Clone, Args)]
pub(crate) struct UpArgs {
    /// Keep everything in memory and a folder that is removed at the end. VMs are stopped at the end.
    #[arg(long)]
    pub(crate) ephemeral: bool,
    #[command(flatten)]
    pub(crate) settings: SettingFlags,
}

pub(crate) const SERVER_EXAMPLES: &str = "\
Examples:
  flames server                                  (SQLite and files in the data folder: the only server)
  flames server --config /etc/flames/flames.toml
  flames server --host-listen 0.0.0.0:7071 --host-certificate host.pem --host-key host.key
  flames controllers token create > join-token   (for the hosts that are to join)

Reads the same flames.toml as `flames up`. It runs no VMs: hosts join with `flames controller run`. Several servers work side by side
over one Postgres or etcd and one bucket; docs/guides/fleet.md tells how.

Ctrl-C drains: no new requests, and what is under way is finished. Hosts and their VMs go on, and find the server when it is back.";

pub(crate) const RUN_EXAMPLES: &str = "\
Examples:
  flames controller run --server https://flames-1.example.org:7071 --server-ca ca.pem --join-token-file join-token
  flames controller run --server https://flames-1:7071,https://flames-2:7071 --driver firecracker --kernel vmlinux
  flames controller run --server http://127.0.0.1:7071 --join-token-file join-token --driver simulated --data /tmp/host-1

The token is needed once; from then on the host proves itself by a secret in its data folder. VMs run on when servers are away, and
when this process ends (or are stopped: --on-exit); the next `flames controller run` takes them up.";

/// What `flames server` takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) settings: SettingFlags,
}

/// What `flames controller run` takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct ControllerRunArgs {
    #[command(flatten)]
    pub(crate) settings: SettingFlags,
}

/// What `flames config check` takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct CheckArgs {
    /// Which command is to read the configuration.
    #[arg(long = "for", value_enum, default_value_t = Role::Up, value_name = "COMMAND")]
    pub(crate) role: Role,
    #[command(flatten)]
    pub(crate) up: UpArgs,
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// `flames up`.
    Up,
    /// `flames server`.
    Server,
    /// `flames controller run`.
    Controller,
}

/// What is done with the configuration.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ConfigAction {
    /// Validate the configuration, connect to everything, and say what is wrong. Changes nothing.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Write an example of flames.toml with every setting.
    #[command(after_help = "Example:\n  flames config example > flames.toml")]
    Example,
    /// Show the configuration that holds, and where each value comes from. Secrets are not shown.
    #[command(
        after_help = "Examples:\n  flames config show\n  flames --json config show --config ./flames.toml"
    )]
    Show(UpArgs),
}

/// What is done with the database.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum DbAction {
    /// Make views in the Postgres database that show records as tables. Views that were there before are replaced.
    #[command(after_help = DB_EXAMPLES)]
    Views(UpArgs),
}
