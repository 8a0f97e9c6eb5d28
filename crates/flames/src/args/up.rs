//! The arguments of `flames up`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use flames_model::VmName;

use super::parse;

/// Where the API is served when nothing else is said.
const DEFAULT_LISTEN: &str = "127.0.0.1:7070";

const EXAMPLES: &str = "\
Examples:
  flames up --kernel ./vmlinuz
  flames up --kernel debian                      (Debian's packaged kernel, fetched once)
  flames up --data /tmp/try --listen 0 --ephemeral --driver simulated
  flames up --kernel ./vmlinuz --accel tcg --on-exit stop

Ctrl-C drains: no new requests, what is under way is finished, VMs run on (or are stopped: --on-exit) and are taken up
by the next `flames up`. A second Ctrl-C ends at once; VMs run on then too.";

#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UpArgs {
    /// Where the HTTP API is served: a loopback address and port, or a port alone; port 0: any free one.
    #[arg(long, env = "FLAMES_LISTEN", default_value = DEFAULT_LISTEN, value_parser = listen, value_name = "ADDRESS")]
    pub(crate) listen: SocketAddr,
    /// Keep everything in memory and a folder that is removed at the end. VMs are stopped at the end.
    #[arg(long)]
    pub(crate) ephemeral: bool,
    /// What runs the VMs.
    #[arg(long, value_enum, default_value_t = Driver::Qemu)]
    pub(crate) driver: Driver,
    /// What runs the guests' processors, for the QEMU driver.
    #[arg(long, value_enum, env = "FLAMES_ACCEL", default_value_t = Accel::Auto)]
    pub(crate) accel: Accel,
    /// QEMU's binary.
    #[arg(long, env = "FLAMES_QEMU", default_value = "qemu-system-x86_64", value_name = "FILE")]
    pub(crate) qemu: PathBuf,
    /// The kernel that VMs boot which name none: a file, or `debian` for Debian's packaged one.
    #[arg(long, env = "FLAMES_KERNEL", value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The folder of that kernel's modules (`lib/modules/<version>`), when the guest needs some.
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub(crate) kernel_modules: Option<PathBuf>,
    /// The guest agent, a static binary [default: `flames-guest-agent` beside this program or in ../lib/flames].
    #[arg(long, env = "FLAMES_GUEST_AGENT", value_name = "FILE")]
    pub(crate) agent: Option<PathBuf>,
    /// An initramfs that holds the agent already, in place of one that is made.
    #[arg(long, env = "FLAMES_INITRAMFS", value_name = "FILE", conflicts_with_all = ["agent", "kernel_modules"])]
    pub(crate) initramfs: Option<PathBuf>,
    /// The name of this host's controller.
    #[arg(long, default_value = "local", value_parser = name)]
    pub(crate) name: VmName,
    /// A label of this host, which VMs can ask for.
    #[arg(long = "host-label", value_name = "KEY=VALUE", value_parser = parse::pair)]
    pub(crate) host_labels: Vec<(String, String)>,
    /// Virtual processors to offer [default: four for each of this machine's].
    #[arg(long, value_name = "COUNT")]
    pub(crate) capacity_cpus: Option<u64>,
    /// Memory to offer [default: all but 512M].
    #[arg(long, value_name = "AMOUNT", value_parser = parse::mebibytes)]
    pub(crate) capacity_memory: Option<u64>,
    /// Disk to offer [default: what is free, but 1G].
    #[arg(long, value_name = "AMOUNT", value_parser = parse::mebibytes)]
    pub(crate) capacity_disk: Option<u64>,
    /// The most VMs [default: 512].
    #[arg(long, value_name = "COUNT")]
    pub(crate) capacity_vms: Option<u64>,
    /// What becomes of running VMs at the end.
    #[arg(long, value_enum, default_value_t = OnExit::Leave)]
    pub(crate) on_exit: OnExit,
    /// What is logged to standard error: a level (error, warn, info, debug), or tracing's filter syntax.
    #[arg(long, env = "FLAMES_LOG", default_value = "warn", value_name = "FILTER")]
    pub(crate) log: String,
    /// How it is logged.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

/// What runs the VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Driver {
    /// Real guests, by QEMU's microvm machine.
    Qemu,
    /// Guests that only pretend: `echo`, `sleep`, `exit`, `false` and the like.
    Simulated,
}

/// What runs the guests' processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accel {
    /// KVM for kernels that were seen to boot under it here, emulation for others.
    Auto,
    /// KVM, untried.
    Kvm,
    /// Emulation.
    Tcg,
}

/// What becomes of running VMs at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnExit {
    /// They run on, and the next `flames up` takes them up.
    Leave,
    /// They are stopped.
    Stop,
}

/// How is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// Lines of JSON.
    Json,
}

/// The API has no TLS of its own, so it stays on the loopback interface.
fn listen(text: &str) -> Result<SocketAddr, String> {
    let address = match text.parse::<u16>() {
        Ok(port) => SocketAddr::from(([127, 0, 0, 1], port)),
        Err(_) => text
            .parse::<SocketAddr>()
            .map_err(|_| "an address is 127.0.0.1:PORT, [::1]:PORT, or a port alone".to_owned())?,
    };
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("only a loopback address: the token would cross the network in the clear. Put a proxy with TLS in front".to_owned())
    }
}

fn name(text: &str) -> Result<VmName, String> {
    VmName::new(text).map_err(|error| error.user_message().unwrap_or(error.message()).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_is_served_on_loopback_only() {
        assert_eq!(listen("0").unwrap().to_string(), "127.0.0.1:0");
        assert_eq!(listen("[::1]:9").unwrap().to_string(), "[::1]:9");
        assert!(listen("0.0.0.0:7070").is_err());
        assert!(listen("localhost").is_err());
    }
}
