//! The arguments of `flames up`, and of the commands about its configuration.

use clap::{Args, Subcommand};

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

/// What is done with the configuration.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ConfigAction {
    /// Validate the configuration, connect to everything, and say what is wrong. Changes nothing.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(UpArgs),
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
