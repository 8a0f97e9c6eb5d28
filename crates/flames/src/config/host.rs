//! The settings of this process and its host.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use flames_model::{IpRange, VmName};

use super::keys::Section;
use super::problem::Problem;
use super::{Settings, Source};
use crate::args::parse;

/// What `boot_deadline` may be.
const BOOT_DEADLINES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3_600);

/// What `flames up` runs with, its providers apart.
#[derive(Debug, Clone)]
#[cfg_attr(
    not(all(feature = "qemu", feature = "firecracker")),
    allow(dead_code, reason = "some settings are for one driver alone")
)]
pub(crate) struct UpConfig {
    /// Where the HTTP API is served.
    pub(crate) listen: SocketAddr,
    /// Everything is in memory and in a folder that is removed at the end.
    pub(crate) ephemeral: bool,
    pub(crate) driver: Driver,
    #[cfg(feature = "qemu")]
    pub(crate) accel: Accel,
    pub(crate) qemu: PathBuf,
    /// A file of JSON: a custom CPU template of Firecracker.
    pub(crate) cpu_template: Option<PathBuf>,
    /// Words for the kernel's command line, for Firecracker.
    pub(crate) kernel_arguments: Vec<String>,
    /// Monitors of Firecracker that wait for a VM.
    pub(crate) spare_monitors: usize,
    /// From the start of a machine until its guest's agent must have answered.
    pub(crate) boot_deadline: Duration,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) kernel_modules: Option<PathBuf>,
    pub(crate) agent: Option<PathBuf>,
    pub(crate) initramfs: Option<PathBuf>,
    pub(crate) name: VmName,
    pub(crate) host_labels: Vec<(String, String)>,
    pub(crate) address_block: Block,
    pub(crate) address_block_ipv6: Block,
    /// Whether the host's forwarding of packets may be switched on.
    pub(crate) enable_forwarding: bool,
    /// Empty: the host's own.
    pub(crate) resolvers: Vec<SocketAddr>,
    pub(crate) capacity_cpus: Option<u64>,
    /// MiB.
    pub(crate) capacity_memory: Option<u64>,
    /// MiB.
    pub(crate) capacity_disk: Option<u64>,
    pub(crate) capacity_vms: Option<u64>,
    pub(crate) on_exit: OnExit,
    /// A level, or tracing's filter syntax.
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
}

/// What runs the VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    /// Real guests, by QEMU's microvm machine.
    Qemu,
    /// Real guests, by Firecracker behind its jailer.
    Firecracker,
    /// Guests that only pretend.
    Simulated,
}

/// Where addresses of one family come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    /// From a block that the data folder's path tells, where the driver needs one.
    Derived,
    /// From this.
    Given(IpRange),
    /// There are none.
    None,
}

/// What runs the guests' processors.
#[cfg(feature = "qemu")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accel {
    /// KVM for kernels that were seen to boot under it here, emulation for others.
    Auto,
    /// KVM, untried.
    Kvm,
    /// Emulation.
    Tcg,
}

/// What becomes of running VMs at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnExit {
    /// They run on, and the next `flames up` takes them up.
    Leave,
    /// They are stopped.
    Stop,
}

/// How is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// Lines of JSON.
    Json,
}

impl UpConfig {
    pub(crate) fn of(settings: &Settings) -> Result<Self, Problem> {
        let wrong = |setting: &'static str, sentence: String| Problem::new(Section::Host, setting, sentence);
        let text = |path: &str| settings.text(path).unwrap_or_default();
        let (kernel, modules) = (settings.path("kernel"), settings.path("kernel_modules"));
        let (agent, initramfs) = (settings.path("agent"), settings.path("initramfs"));
        if modules.is_some() && kernel.is_none() {
            return Err(wrong(
                "kernel_modules",
                "it is of no use without `kernel`: give that too.".to_owned(),
            ));
        }
        // What an initramfs of one's own makes needless is a mistake only where it was said in the same place.
        let same = |setting: &'static str| {
            (settings.text(setting).is_some()
                && same_place(&settings.source(setting), &settings.source("initramfs")))
            .then(|| wrong(setting, "`initramfs` holds it already: leave one of the two out.".to_owned()))
        };
        if initramfs.is_some()
            && let Some(problem) = same("agent").or_else(|| same("kernel_modules"))
        {
            return Err(problem);
        }
        let block = |setting: &'static str, derived: &str, absent: Block| match text(setting) {
            "" => Ok(absent),
            word if word == derived => Ok(Block::Derived),
            "none" => Ok(Block::None),
            given => given.parse().map(Block::Given).map_err(|_| wrong(setting, IpRange::RULE.to_owned())),
        };
        let address_block = block("address_block", "auto", Block::Derived)?;
        if text("driver") == "qemu" && matches!(address_block, Block::Given(_)) {
            let sentence = "the driver `qemu` gives VMs no addresses of their own: leave it out";
            return Err(wrong("address_block", sentence.to_owned()));
        }
        let resolver = |text: &String| {
            let address = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
            address.or_else(|_| text.parse()).map_err(|_| {
                wrong("resolvers", format!("`{text}` is no address: write 192.0.2.53, or 192.0.2.53:5353"))
            })
        };
        let boot_deadline = settings.duration("boot_deadline");
        if !BOOT_DEADLINES.contains(&boot_deadline) {
            return Err(wrong("boot_deadline", "it is from 1s to 1h".to_owned()));
        }
        let labels =
            settings.list("host_labels").iter().map(|pair| parse::pair(pair)).collect::<Result<_, _>>();
        Ok(Self {
            listen: parse::loopback(text("listen")).map_err(|sentence| wrong("listen", sentence))?,
            ephemeral: settings.is_ephemeral(),
            driver: match text("driver") {
                "simulated" => Driver::Simulated,
                "firecracker" => Driver::Firecracker,
                _ => Driver::Qemu,
            },
            #[cfg(feature = "qemu")]
            accel: match text("accel") {
                "kvm" => Accel::Kvm,
                "tcg" => Accel::Tcg,
                _ => Accel::Auto,
            },
            qemu: PathBuf::from(text("qemu")),
            cpu_template: settings.path("cpu_template"),
            kernel_arguments: text("kernel_arguments").split_ascii_whitespace().map(str::to_owned).collect(),
            // A number that is too large is refused by the driver, with the reason.
            spare_monitors: settings
                .number("spare_monitors")
                .map_or(0, |number| usize::try_from(number).unwrap_or(usize::MAX)),
            boot_deadline,
            kernel,
            kernel_modules: modules,
            agent,
            initramfs,
            name: VmName::new(text("name")).map_err(|error| wrong("name", error.message().to_owned()))?,
            host_labels: labels.map_err(|sentence| wrong("host_labels", sentence))?,
            address_block,
            address_block_ipv6: block("address_block_ipv6", "auto", Block::None)?,
            enable_forwarding: settings.switch("enable_forwarding").unwrap_or(true),
            resolvers: settings.list("resolvers").iter().map(resolver).collect::<Result<_, _>>()?,
            capacity_cpus: settings.number("capacity_cpus"),
            capacity_memory: settings.number("capacity_memory"),
            capacity_disk: settings.number("capacity_disk"),
            capacity_vms: settings.number("capacity_vms"),
            on_exit: if text("on_exit") == "stop" { OnExit::Stop } else { OnExit::Leave },
            log: text("log").to_owned(),
            log_format: if text("log_format") == "json" { LogFormat::Json } else { LogFormat::Text },
        })
    }
}

fn same_place(one: &Source, other: &Source) -> bool {
    one.rank() == other.rank()
}
