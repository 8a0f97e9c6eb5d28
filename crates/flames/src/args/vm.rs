//! The arguments of commands on VMs.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::parse::{self, Forward, Moment, Place};

const RUN_EXAMPLES: &str = "\
Examples:
  flames run debian -- uname -a
  flames run --rm -it debian -- /bin/bash
  flames run --rm -i debian -- wc -l < lines.txt
  flames run -d --name web -p 8080:80 --restart always nginx
  TOKEN=… flames run --rm --secret-env TOKEN debian -- sh -c 'echo ${#TOKEN}'
  flames run --egress allow debian -- apt-get update               (the public internet; by default a VM reaches nothing)
  flames run --allow-domain pypi.org --allow-domain '*.pythonhosted.org' --allow-port 443 python -- pip install requests
  flames run --egress allow --allow 10.20.0.0/16 debian -- psql -h 10.20.0.5
  flames run --private-network team-a --upload 1M --download 10M debian -- ./worker
  flames run --cpus 2 --memory 1G --disk 4G --persistent --name db debian -- sleep infinity

Ctrl-C is sent to the workload as SIGINT; a second one stops the VM; a third leaves it to itself.";

/// Arguments of `flames run`.
#[derive(Debug, Clone, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(crate) struct RunArgs {
    /// Send standard input to the workload, to its end.
    #[arg(long, short, conflicts_with = "detach")]
    pub(crate) interactive: bool,
    /// Give the workload a terminal.
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// Do not wait for the workload: end once the VM runs.
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Remove the VM once its workload has ended.
    #[arg(long, conflicts_with = "detach")]
    pub(crate) rm: bool,
    /// The VM's name, unique, and the guest's host name [default: one is made up].
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// A label.
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = parse::pair)]
    pub(crate) label: Vec<(String, String)>,
    /// A port of the guest to be reached from outside: at a URL, and at 127.0.0.1 or the VM's own address, as its host has it.
    #[arg(long = "publish", short, value_name = "[HOST:]GUEST", value_parser = parse::forward)]
    pub(crate) ports: Vec<Forward>,
    /// Let a request for one of its ports start it when it is stopped, and resume it when it is paused.
    #[arg(long, requires = "ports")]
    pub(crate) wake_on_request: bool,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// A variable of the workload's environment; without a value, your own is taken.
    #[arg(long, short, value_name = "NAME[=VALUE]", value_parser = parse::variable)]
    pub(crate) env: Vec<(String, String)>,
    /// A variable of your own environment that nobody can read back from the API.
    #[arg(long, value_name = "NAME", value_parser = parse::secret)]
    pub(crate) secret_env: Vec<(String, String)>,
    /// Virtual processors.
    #[arg(long, default_value_t = 1)]
    pub(crate) cpus: u32,
    /// Memory.
    #[arg(long, short, default_value = "256M", value_name = "AMOUNT", value_parser = parse::mebibytes)]
    pub(crate) memory: u64,
    /// The size of the writable layer.
    #[arg(long, default_value = "1G", value_name = "AMOUNT", value_parser = parse::mebibytes)]
    pub(crate) disk: u64,
    /// Keep the writable layer when the VM stops.
    #[arg(long)]
    pub(crate) persistent: bool,
    /// The kernel image to boot [default: that of the host].
    #[arg(long, value_name = "IMAGE")]
    pub(crate) kernel: Option<String>,
    /// The workload's working directory [default: the image's].
    #[arg(long, short, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// The workload's user [default: the image's].
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Stop the run when it lasts longer.
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub(crate) timeout: Option<Duration>,
    /// How long the workload has to end when it is asked to.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = parse::duration)]
    pub(crate) stop_grace: Duration,
    /// When a run that ended is started again.
    #[arg(long, value_enum, default_value_t = RestartWhen::Never)]
    pub(crate) restart: RestartWhen,
    /// The most restarts in a row [default: no end].
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_restarts: Option<u32>,
    /// A label that the VM's host must have.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::pair)]
    pub(crate) placement: Vec<(String, String)>,
    /// The image.
    pub(crate) image: String,
    /// The command, in place of the image's own.
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// What a new VM may reach, and who may reach it.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkArgs {
    /// What the VM may connect to [default: deny, or allow-list where domains or ports are given].
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) egress: Option<EgressArg>,
    /// A range that is reached: with `allow` of private, link-local and other special addresses, with `allow-list` of any.
    #[arg(long, value_name = "CIDR")]
    pub(crate) allow: Vec<String>,
    /// A name that resolves and is reached, or `*.example.com` for every name below one; of `allow-list`.
    #[arg(long, value_name = "NAME")]
    pub(crate) allow_domain: Vec<String>,
    /// A port of TCP and UDP at the above; of `allow-list` [default: every one].
    #[arg(long, value_name = "PORT[-PORT]", value_parser = parse::port_range)]
    pub(crate) allow_port: Vec<(u16, u16)>,
    /// A private network: VMs of one host that name the same one reach each other.
    #[arg(long, value_name = "NAME")]
    pub(crate) private_network: Option<String>,
    /// The most that the VM sends in a second, in bytes [default: no limit].
    #[arg(long, value_name = "BYTES", value_parser = parse::bytes)]
    pub(crate) upload: Option<u64>,
    /// The most that the VM receives in a second, in bytes [default: no limit].
    #[arg(long, value_name = "BYTES", value_parser = parse::bytes)]
    pub(crate) download: Option<u64>,
}

impl NetworkArgs {
    /// Whether any of them is given.
    pub(crate) fn is_given(&self) -> bool {
        self.egress.is_some()
            || self.private_network.is_some()
            || self.upload.is_some()
            || self.download.is_some()
            || ![self.allow.len(), self.allow_domain.len(), self.allow_port.len()]
                .iter()
                .all(|count| *count == 0)
    }
}

/// What a VM may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EgressArg {
    /// Nothing; no name resolves.
    Deny,
    /// The public internet, and of private, link-local and metadata addresses what `--allow` names.
    Allow,
    /// Only what `--allow` and `--allow-domain` name.
    AllowList,
    /// Whatever its host reaches, private and metadata addresses among it.
    Unrestricted,
}

/// When a run that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RestartWhen {
    /// Never.
    Never,
    /// When it failed.
    OnFailure,
    /// Always, until stopped or removed.
    Always,
}

/// Arguments of `flames ps`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  flames ps
  flames ps --all --filter label=team=web
  flames ps --filter state=failed
  flames --quiet ps --all        (ids alone)")]
pub(crate) struct PsArgs {
    /// Those that do not run, too.
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Only some: `label=KEY=VALUE`, `state=STATE`, `controller=NAME`.
    #[arg(long, short, value_name = "FILTER", value_parser = parse::pair)]
    pub(crate) filter: Vec<(String, String)>,
}

/// Arguments of `flames logs`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  flames logs web-1
  flames logs -f --tail 20 web-1
  flames logs --since 5m web-1
  flames logs --console web-1    (the machine's serial console)")]
pub(crate) struct LogsArgs {
    /// Go on as more comes, until the run is over.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only output since then: a time (RFC 3339), or how long ago (5m).
    #[arg(long, value_name = "WHEN", value_parser = parse::moment)]
    pub(crate) since: Option<Moment>,
    /// Only this many lines at the end.
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<u64>,
    /// The machine's serial console, in place of the workload's output.
    #[arg(long, conflicts_with_all = ["since", "tail"])]
    pub(crate) console: bool,
    /// The VM, by name or id.
    pub(crate) vm: String,
}

/// Arguments of `flames exec`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  flames exec web-1 -- ps aux
  flames exec -it web-1 -- /bin/sh
  tar c . | flames exec -i web-1 -- tar x -C /srv")]
pub(crate) struct ExecArgs {
    /// Send standard input.
    #[arg(long, short)]
    pub(crate) interactive: bool,
    /// Give the command a terminal.
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// A variable of the command's environment; without a value, your own is taken.
    #[arg(long, short, value_name = "NAME[=VALUE]", value_parser = parse::variable)]
    pub(crate) env: Vec<(String, String)>,
    /// The working directory [default: the workload's].
    #[arg(long, short, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// The user [default: the workload's].
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// The VM, by name or id.
    pub(crate) vm: String,
    /// The command.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Arguments of `flames attach`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  flames attach web-1
  flames attach --process p3 web-1
  flames attach --no-stdin --from-now web-1

Ctrl-C sends the process SIGINT, the second time SIGTERM, and the third time it leaves the process to itself. With --no-stdin, and when the
terminal is closed, the process hears nothing of it and runs on.")]
pub(crate) struct AttachArgs {
    /// The process [default: the workload].
    #[arg(long, default_value = "main")]
    pub(crate) process: String,
    /// Only look; keep standard input here.
    #[arg(long)]
    pub(crate) no_stdin: bool,
    /// Leave out the output that came before.
    #[arg(long)]
    pub(crate) from_now: bool,
    /// The VM, by name or id.
    pub(crate) vm: String,
}

/// Arguments of `flames cp`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  flames cp app.tar web-1:/srv/
  flames cp web-1:/var/log/app.log .
  flames cp -r ./site web-1:/srv/site
  flames cp web-1:/etc/os-release -")]
pub(crate) struct CopyArgs {
    /// Directories with all that is in them.
    #[arg(long, short)]
    pub(crate) recursive: bool,
    /// From where: `VM:PATH`, a path here, or `-`.
    #[arg(value_parser = parse::place)]
    pub(crate) source: Place,
    /// To where: `VM:PATH`, a path here, or `-`.
    #[arg(value_parser = parse::place)]
    pub(crate) target: Place,
}

/// Arguments of `flames port-forward`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  flames port-forward web-1 80            (any free port here)
  flames port-forward web-1 8080:80 5432")]
pub(crate) struct PortForwardArgs {
    /// The VM, by name or id.
    pub(crate) vm: String,
    /// Ports of the guest, each with a port here before it.
    #[arg(required = true, value_name = "[HERE:]GUEST", value_parser = parse::forward)]
    pub(crate) ports: Vec<Forward>,
}

/// Arguments of `flames stop`, `start`, `restart`, `pause` and `resume`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LifecycleArgs {
    /// Do not wait until it is so.
    #[arg(long, overrides_with = "wait")]
    pub(crate) no_wait: bool,
    /// Wait until it is so (this is the default).
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait at most.
    #[arg(long, default_value = "2m", value_name = "DURATION", value_parser = parse::duration)]
    pub(crate) timeout: Duration,
    /// VMs, by name or id.
    #[arg(required = true, value_name = "VM")]
    pub(crate) vms: Vec<String>,
}

/// Arguments of `flames rm`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  flames rm web-1
  flames rm -f web-1 web-2       (also while they run)
  flames rm -f $(flames -q ps --all)")]
pub(crate) struct RemoveArgs {
    /// Also VMs that run, and no error for those that are not there.
    #[arg(long, short)]
    pub(crate) force: bool,
    /// Do not wait until nothing of it is left.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long to wait at most.
    #[arg(long, default_value = "2m", value_name = "DURATION", value_parser = parse::duration)]
    pub(crate) timeout: Duration,
    /// VMs, by name or id.
    #[arg(required = true, value_name = "VM")]
    pub(crate) vms: Vec<String>,
}
