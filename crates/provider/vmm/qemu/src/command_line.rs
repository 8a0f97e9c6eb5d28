//! The machine's definition: QEMU's command line.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use flames_error::{Error, ErrorKind, Result};
use flames_vmm::{Drive, MachineSpec, NetworkSpec};
use flames_vmm_local::Folder;
use serde_json::json;

use crate::config::Channel;
use crate::folder::{Accelerator, SpecRecord};
use crate::kernel::MachineKind;

/// The name of the virtio-serial port that the agent opens.
pub(crate) const AGENT_PORT_NAME: &str = "flames.agent";
/// The serial of the disk with the guest's configuration.
const CONFIG_DISK_NAME: &str = "flames-config";

/// What is known only when QEMU is started.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) monitor: RawFd,
    pub(crate) console: RawFd,
    /// The agent's port's socket, with [`Channel::VirtioSerial`].
    pub(crate) agent: Option<RawFd>,
    /// The snapshot to load.
    pub(crate) incoming: Option<RawFd>,
    pub(crate) sandbox: bool,
    pub(crate) restrict_user_network: bool,
    /// The host's time stamp counter's rate, which an emulated guest sees.
    pub(crate) tsc_khz: Option<u64>,
}

/// How many devices the machine has room for: virtio-mmio transports of QEMU 7.2's microvm (`microvm_devices_init`).
fn device_slots(machine: MachineKind) -> usize {
    match machine {
        MachineKind::Acpi => 24,
        MachineKind::Mmio => 8,
    }
}

fn disks(record: &SpecRecord) -> usize {
    record.spec.drives.len() + usize::from(record.guest_config_length > 0)
}

/// Disks, channel, entropy, network.
fn needed_slots(record: &SpecRecord) -> usize {
    disks(record) + 2 + usize::from(record.spec.network != NetworkSpec::None)
}

/// A balloon is added where a slot is left for it.
pub(crate) fn has_balloon(record: &SpecRecord) -> bool {
    needed_slots(record) < device_slots(record.machine)
}

/// `NotSupported` when the machine has not enough device slots.
pub(crate) fn check_slots(record: &SpecRecord) -> Result<()> {
    let needed = needed_slots(record);
    let slots = device_slots(record.machine);
    if needed <= slots {
        return Ok(());
    }
    let most = slots - (needed - disks(record));
    let sentence =
        format!("With this kernel a machine has at most {most} disks, the configuration's among them.");
    Err(Error::new(ErrorKind::NotSupported, "vmm.prepare", sentence.clone())
        .with_field("drives")
        .with_user_message(sentence))
}

/// The kernel's command line.
///
/// Quiet, since a serial port is slow; a panic and a reboot end the machine (`-no-reboot`). An emulated guest is told the rate of
/// its time stamp counter, which on a busy host it measures wrongly or, with ACPI, without end; and that the timer works.
pub(crate) fn kernel_arguments(record: &SpecRecord, tsc_khz: Option<u64>) -> String {
    let mut words = vec!["console=ttyS0".to_owned(), "quiet".into(), "panic=-1".into(), "reboot=t".into()];
    if record.accelerator == Accelerator::Tcg {
        if let Some(khz) = tsc_khz {
            words.push(format!("tsc_early_khz={khz}"));
        }
        words.extend(["tsc=reliable".into(), "no_timer_check".into()]);
    }
    words.extend(record.spec.boot.extra_arguments.iter().cloned());
    // The driver's own word; the record's was checked when it was prepared.
    words.retain(|word| !word.starts_with(crate::kernel::MACHINE_ARGUMENT));
    words.join(" ")
}

/// `InvalidInput` for words that would not reach the kernel as one word, or would end its arguments.
pub(crate) fn check_extra_arguments(spec: &MachineSpec) -> Result<()> {
    let fits = |word: &String| {
        (1..=256).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_graphic()) && word != "--"
    };
    // x86's COMMAND_LINE_SIZE is 2048; QEMU's own words need up to 400 of it.
    let total: usize = spec.boot.extra_arguments.iter().map(|word| word.len() + 1).sum();
    if spec.boot.extra_arguments.iter().all(fits) && total <= 1280 {
        return Ok(());
    }
    Err(Error::invalid(
        "vmm.prepare",
        "boot.extra_arguments",
        "A kernel argument is 1 to 256 printable ASCII characters without spaces, not `--`, and all together have at most 1280.",
    ))
}

/// QEMU's arguments. The same record always gives the same machine.
pub(crate) fn build(record: &SpecRecord, folder: &Folder, launch: &Launch) -> Vec<OsString> {
    let spec = &record.spec;
    let mut line = Line::default();
    line.pair("-name", format!("flames-{}", folder.path().file_name().unwrap_or_default().to_string_lossy()));
    line.pair("-pidfile", folder.join("monitor.pid"));
    if launch.sandbox {
        line.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }
    line.pair(
        "-accel",
        match record.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg,thread=multi",
        },
    );
    line.pair("-cpu", &record.cpu_model);
    line.pair("-smp", spec.vcpus.to_string());
    line.pair("-m", format!("{}M", spec.memory_mib));
    let acpi = match record.machine {
        MachineKind::Acpi => "on",
        MachineKind::Mmio => "off",
    };
    // vhost-user needs guest memory that the helper can map.
    let memory = match record.channel {
        Channel::Vsock => {
            let object = format!("memory-backend-memfd,id=memory,size={}M,share=on", spec.memory_mib);
            line.pair("-object", object);
            ",memory-backend=memory"
        }
        Channel::VirtioSerial => "",
    };
    line.pair("-M", format!("microvm,acpi={acpi},pit=on,pic=on,rtc=on{memory}"));
    line.words(["-nodefaults", "-no-user-config", "-no-reboot", "-S"]);
    line.pair("-display", "none");
    line.pair("-kernel", &spec.boot.kernel);
    if let Some(initramfs) = &spec.boot.initramfs {
        line.pair("-initrd", initramfs);
    }
    line.pair("-append", kernel_arguments(record, launch.tsc_khz));
    line.socket("monitor", launch.monitor);
    line.pair("-mon", "chardev=monitor,mode=control");
    line.socket("console", launch.console);
    line.pair("-serial", "chardev:console");

    // The guest finds its disks in this order: the first is /dev/vda, with ACPI and without (tried).
    for (index, drive) in spec.drives.iter().enumerate() {
        line.disk(index, drive);
    }
    if record.guest_config_length > 0 {
        let path = folder.join("guest-config");
        line.disk(spec.drives.len(), &Drive { name: CONFIG_DISK_NAME.into(), path, read_only: true });
    }
    match record.channel {
        Channel::VirtioSerial => {
            line.pair("-device", "virtio-serial-device,max_ports=2");
            if let Some(agent) = launch.agent {
                line.socket("agent", agent);
            }
            line.pair("-device", format!("virtserialport,chardev=agent,name={AGENT_PORT_NAME}"));
        }
        Channel::Vsock => {
            line.pair(
                "-chardev",
                option_path("socket,id=vsock,path=", &folder.join(crate::vsock::MONITOR_SOCKET)),
            );
            line.pair("-device", "vhost-user-vsock-device,chardev=vsock");
        }
    }
    line.pair("-object", "rng-random,id=entropy,filename=/dev/urandom");
    // A guest takes as much host entropy as it needs to start, and no processor's worth.
    line.pair("-device", "virtio-rng-device,rng=entropy,max-bytes=65536,period=1000");
    if let NetworkSpec::User { isolated, .. } = &spec.network {
        let mut user = "user,id=network".to_owned();
        if launch.restrict_user_network || *isolated {
            user.push_str(",restrict=on");
        }
        for (guest_port, address) in &record.prepared.forwards {
            user.push_str(&format!(",hostfwd=tcp:{}:{}-:{guest_port}", address.ip(), address.port()));
        }
        line.pair("-netdev", user);
        line.pair("-device", "virtio-net-device,netdev=network");
    }
    if has_balloon(record) {
        line.pair("-device", "virtio-balloon-device,id=balloon");
    }
    if let Some(incoming) = launch.incoming {
        line.pair("-incoming", format!("fd:{incoming}"));
    }
    line.0
}

/// A path as part of an option of QEMU's, where a comma is written twice.
fn option_path(prefix: &str, path: &Path) -> OsString {
    format!("{prefix}{}", path.to_string_lossy().replace(',', ",,")).into()
}

#[derive(Debug, Default)]
struct Line(Vec<OsString>);

impl Line {
    fn words<const N: usize>(&mut self, words: [&str; N]) {
        self.0.extend(words.map(OsString::from));
    }

    fn pair(&mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
    }

    fn socket(&mut self, id: &str, number: RawFd) {
        self.pair("-chardev", format!("socket,id={id},fd={number},server=on,wait=off"));
    }

    fn disk(&mut self, index: usize, drive: &Drive) {
        let node = json!({
            "driver": "raw",
            "node-name": format!("disk{index}"),
            "read-only": drive.read_only,
            "discard": "unmap",
            "file": { "driver": "file", "filename": drive.path.to_string_lossy(), "read-only": drive.read_only, "discard": "unmap" },
        });
        self.pair("-blockdev", node.to_string());
        self.pair("-device", format!("virtio-blk-device,drive=disk{index},serial={}", drive.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flames_vmm::{BootSource, Prepared, SecretBytes};

    fn record(drives: usize, machine: MachineKind) -> SpecRecord {
        let drive = |index| Drive { name: format!("d{index}"), path: "/a,b".into(), read_only: true };
        SpecRecord {
            schema: 1,
            spec: MachineSpec {
                vcpus: 1,
                memory_mib: 64,
                boot: BootSource {
                    kernel: "/k".into(),
                    initramfs: None,
                    extra_arguments: vec!["a=b".into(), "flames.machine=mmio".into()],
                },
                drives: (0..drives).map(drive).collect(),
                guest_config: SecretBytes(Vec::new()),
                network: NetworkSpec::User { forwards: Vec::new(), isolated: true },
            },
            guest_config_length: 1,
            machine,
            accelerator: Accelerator::Tcg,
            cpu_model: "max".into(),
            channel: Channel::VirtioSerial,
            prepared: Prepared { forwards: [(80, "127.0.0.1:8080".parse().unwrap())].into() },
        }
    }

    fn launch() -> Launch {
        Launch {
            monitor: 3,
            console: 4,
            agent: Some(5),
            incoming: None,
            sandbox: true,
            restrict_user_network: false,
            tsc_khz: Some(2_600_000),
        }
    }

    #[test]
    fn the_same_record_gives_the_same_machine() {
        let folder = Folder::new("/data/inc_1".into());
        let lines = [0, 1].map(|_| build(&record(2, MachineKind::Mmio), &folder, &launch()));
        assert_eq!(lines[0], lines[1]);
        let line = lines[0].iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        assert!(line.contains("-append console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz=2600000 tsc=reliable no_timer_check a=b -chardev"));
        assert!(line.contains("user,id=network,restrict=on,hostfwd=tcp:127.0.0.1:8080-:80"));
        assert!(
            line.contains(r#""filename":"/a,b""#),
            "a comma in a disk's path needs no escape in JSON: {line}"
        );
        assert!(line.contains("serial=flames-config"));
    }

    #[test]
    fn a_machine_without_acpi_has_room_for_five_disks_with_network() {
        check_slots(&record(4, MachineKind::Mmio)).unwrap();
        let full = check_slots(&record(5, MachineKind::Mmio)).unwrap_err();
        assert_eq!((full.kind(), full.field()), (ErrorKind::NotSupported, Some("drives")));
        assert!(full.user_message().unwrap().contains("at most 5 disks"));
        assert!(has_balloon(&record(3, MachineKind::Mmio)));
        assert!(!has_balloon(&record(4, MachineKind::Mmio)));
        check_slots(&record(MachineSpec::MAX_DRIVES, MachineKind::Acpi)).unwrap();
        assert!(has_balloon(&record(MachineSpec::MAX_DRIVES, MachineKind::Acpi)));
    }

    #[test]
    fn kernel_arguments_that_would_break_the_command_line_are_refused() {
        let mut spec = record(0, MachineKind::Acpi).spec;
        check_extra_arguments(&spec).unwrap();
        for word in ["", "a b", "--", "a\nb", "ä", &"x".repeat(257)] {
            spec.boot.extra_arguments = vec![word.to_owned()];
            assert_eq!(
                check_extra_arguments(&spec).unwrap_err().field(),
                Some("boot.extra_arguments"),
                "{word:?}"
            );
        }
        spec.boot.extra_arguments = vec!["x".repeat(200); 7];
        assert_eq!(check_extra_arguments(&spec).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
