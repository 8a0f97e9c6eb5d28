//! From a prepared record to a machine: where its files are in the jail, and what Firecracker is told.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use flames_error::{Error, ErrorKind, Result};
use flames_firecracker_api::{
    Balloon, BootSource, Client, Drive, Entropy, Feature, FullConfig, MachineConfig, Serial, TokenBucket,
    Version, Vsock,
};
use flames_firecracker_jail::{Artefact, Inside, JailSpec, Limits};
use flames_vmm::MachineSpec;
use flames_vmm_local::Folder;

use crate::context::Context;
use crate::folder::SpecRecord;

const OPERATION: &str = "vmm.start";
/// The most processors of one machine (Firecracker's `MAX_SUPPORTED_VCPUS`).
pub(crate) const MAX_VCPUS: u32 = 32;
/// The guest's context id. Each VM has a socket of its own, so all have the same; 0 to 2 are taken (vsock(7)).
const GUEST_CID: u32 = 3;
/// The configuration disk, behind the machine's own. No drive of a machine can have the name, since theirs have no `_`.
const CONFIG_DISK: &str = "flames_config";
/// Firecracker's descriptors: disks, taps, and up to 1023 connections of the vsock with two sockets each.
pub(crate) const OPEN_FILES: u64 = 4096;

/// Firecracker's API. In `run`, which is empty at each start.
pub(crate) const API: &str = "run/api";
/// The guest's serial port, a pipe.
pub(crate) const SERIAL: &str = "serial";
/// Where the host's connections to the guest enter; the guest's to its host's port N arrive at `vsock_N`.
pub(crate) const VSOCK: &str = "vsock";
/// Where a machine's disks are, and what it is loaded from.
pub(crate) const FOLDERS: [&str; 2] = ["drives", "load"];
const KERNEL: &str = "kernel";
const INITRAMFS: &str = "initramfs";

pub(crate) const ARGUMENT_SENTENCE: &str =
    "An argument of the kernel is one word of printable ASCII, without `--`.";

/// Whether the word may stand on the kernel's command line. What stands behind `--` there is for init, not for the kernel.
pub(crate) fn is_argument(word: &str) -> bool {
    !word.is_empty() && word != "--" && word.bytes().all(|byte| byte.is_ascii_graphic())
}

pub(crate) fn inside(path: impl Into<String>) -> Result<Inside> {
    Inside::new(path)
}

/// A drive's id towards Firecracker, which takes letters, digits and `_`. No two names give one id, since a name has no `_`.
pub(crate) fn drive_id(name: &str) -> String {
    name.replace('-', "_")
}

pub(crate) fn drive_inside(name: &str) -> Result<Inside> {
    inside(format!("drives/{}", drive_id(name)))
}

/// What a jail is made with for the machine.
pub(crate) fn jail_spec(folder: &Folder, record: &SpecRecord) -> Result<JailSpec> {
    let spec = &record.spec;
    let shared = |source: PathBuf, place: Inside| Artefact::Shared { source, inside: place };
    let mut artefacts = vec![shared(spec.boot.kernel.clone(), inside(KERNEL)?)];
    if let Some(initramfs) = &spec.boot.initramfs {
        artefacts.push(shared(initramfs.clone(), inside(INITRAMFS)?));
    }
    for drive in &spec.drives {
        let place = drive_inside(&drive.name)?;
        artefacts.push(if drive.read_only {
            shared(drive.path.clone(), place)
        } else {
            Artefact::Owned { source: drive.path.clone(), inside: place }
        });
    }
    if record.has_config_disk() {
        // Only root and the jail's user read it: one more name of it is enough.
        artefacts.push(shared(folder.join(Folder::GUEST_CONFIG), inside(format!("drives/{CONFIG_DISK}"))?));
    }
    let memory = spec.memory_mib.saturating_mul(1024 * 1024);
    Ok(JailSpec {
        artefacts,
        limits: Limits::for_guest(spec.vcpus, memory),
        open_files: OPEN_FILES,
        largest_file: record.largest_file,
    })
}

/// Firecracker's own arguments, the same for every machine.
pub(crate) fn arguments() -> Vec<OsString> {
    ["--api-sock".into(), format!("/{API}").into()].into()
}

/// The drives as Firecracker is told of them, in the guest's order.
fn drives(record: &SpecRecord) -> Result<Vec<Drive>> {
    let mut drives = Vec::new();
    for drive in &record.spec.drives {
        let path = drive_inside(&drive.name)?.for_firecracker();
        let mut told = Drive::from_file(drive_id(&drive.name), path, drive.read_only);
        // What the guest flushed must outlive the host.
        told.cache_type = flames_firecracker_api::CacheType::Writeback;
        // Without an initramfs the kernel itself mounts the first disk.
        told.is_root_device = record.spec.boot.initramfs.is_none() && drives.is_empty();
        drives.push(told);
    }
    if record.has_config_disk() {
        drives.push(Drive::from_file(CONFIG_DISK, format!("/drives/{CONFIG_DISK}"), true));
    }
    Ok(drives)
}

fn machine_config(context: &Context, spec: &MachineSpec) -> Result<MachineConfig> {
    let vcpus = u8::try_from(spec.vcpus).map_err(|_| {
        Error::invalid(OPERATION, "vcpus", "A machine of this driver has at most 32 processors.")
    })?;
    let mut config = MachineConfig::new(vcpus, spec.memory_mib);
    config.track_dirty_pages = context.config.track_dirty_pages;
    Ok(config)
}

/// Sets where the guest's console goes: before a boot and before a load.
pub(crate) async fn configure_output(context: &Context, client: &Client, version: Version) -> Result<()> {
    let rate = context.config.console_bytes_per_second;
    // The older ones drop what the pipe does not take.
    let rate_limiter = version.has(Feature::SerialRateLimiter).then(|| TokenBucket::per_second(rate));
    client.put_serial(&Serial { serial_out_path: Some(format!("/{SERIAL}").into()), rate_limiter }).await
}

/// Tells Firecracker of the whole machine. Nothing runs.
pub(crate) async fn configure(context: &Context, client: &Client, record: &SpecRecord) -> Result<()> {
    let spec = &record.spec;
    client.put_machine_config(&machine_config(context, spec)?).await?;
    if let Some(template) = &context.config.cpu_template {
        client.put_cpu_config(template).await?;
    }
    let words: Vec<&str> =
        context.config.boot_arguments.iter().chain(&spec.boot.extra_arguments).map(String::as_str).collect();
    client
        .put_boot_source(&BootSource {
            kernel_image_path: format!("/{KERNEL}").into(),
            initrd_path: spec.boot.initramfs.is_some().then(|| format!("/{INITRAMFS}").into()),
            boot_args: Some(words.join(" ")),
        })
        .await?;
    for drive in drives(record)? {
        client.put_drive(&drive).await?;
    }
    if let Some(interface) = crate::network::interface(&spec.network)? {
        client.put_network_interface(&interface).await?;
    }
    client.put_vsock(&Vsock { guest_cid: GUEST_CID, uds_path: format!("/{VSOCK}").into() }).await?;
    client.put_entropy(&Entropy::default()).await?;
    client.put_balloon(&Balloon { deflate_on_oom: true, ..Balloon::default() }).await
}

/// `NotSupported` unless the machine that was loaded is the one of the record: the snapshot decides all of a machine.
pub(crate) fn check_loaded(loaded: &FullConfig, record: &SpecRecord) -> Result<()> {
    let machine = loaded.machine_config.as_ref();
    let found = (
        machine.map(|machine| (u32::from(machine.vcpu_count), machine.mem_size_mib)),
        loaded.drives.iter().map(shape).collect::<BTreeSet<_>>(),
        loaded.network_interfaces.iter().map(|interface| interface.iface_id.clone()).collect::<Vec<_>>(),
        loaded.vsock.as_ref().map(|vsock| vsock.uds_path.clone()),
    );
    let interface = crate::network::interface(&record.spec.network)?;
    let wanted = (
        Some((record.spec.vcpus, record.spec.memory_mib)),
        drives(record)?.iter().map(shape).collect::<BTreeSet<_>>(),
        interface.into_iter().map(|interface| interface.iface_id).collect::<Vec<_>>(),
        Some(format!("/{VSOCK}").into()),
    );
    if found == wanted {
        return Ok(());
    }
    let sentence = "The snapshot is of another machine: start it with the processors, the memory, the disks and the network of the \
                    machine that was saved.";
    Err(Error::new(ErrorKind::NotSupported, OPERATION, "the snapshot is one of another machine")
        .with_user_message(sentence)
        .with_context("snapshot", format!("{found:?}"))
        .with_context("machine", format!("{wanted:?}")))
}

/// What of a drive a snapshot and a record have in common. Firecracker tells its drives in any order; which slot of the guest each has is part
/// of the snapshot, and goes by its name.
fn shape(drive: &Drive) -> (String, Option<PathBuf>, Option<bool>) {
    (drive.drive_id.clone(), drive.path_on_host.clone(), drive.is_read_only)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flames_vmm::{NetworkSpec, SecretBytes};

    fn record() -> SpecRecord {
        let drive = |name: &str, read_only| flames_vmm::Drive {
            name: name.into(),
            path: format!("/images/{name}").into(),
            read_only,
        };
        SpecRecord {
            schema: 1,
            spec: MachineSpec {
                vcpus: 2,
                memory_mib: 128,
                boot: flames_vmm::BootSource {
                    kernel: "/boot/vmlinux".into(),
                    initramfs: None,
                    extra_arguments: Vec::new(),
                },
                drives: vec![drive("root-image", true), drive("data", false)],
                guest_config: SecretBytes(Vec::new()),
                network: NetworkSpec::None,
            },
            guest_config_length: 10,
            network: None,
            largest_file: None,
        }
    }

    #[test]
    fn a_shared_disk_keeps_its_owner_and_a_written_one_becomes_the_jails() {
        let spec = jail_spec(&Folder::new("/x".into()), &record()).unwrap();
        let places: Vec<(&str, bool)> = spec
            .artefacts
            .iter()
            .map(|artefact| (artefact.inside().as_str(), matches!(artefact, Artefact::Owned { .. })))
            .collect();
        let expected = [
            ("kernel", false),
            ("drives/root_image", false),
            ("drives/data", true),
            ("drives/flames_config", false),
        ];
        assert_eq!(places, expected);
    }

    #[test]
    fn the_first_disk_is_the_root_only_without_an_initramfs_and_the_configuration_is_last() {
        let mut record = record();
        let told = drives(&record).unwrap();
        assert_eq!(told.iter().map(|drive| drive.is_root_device).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(told[2].drive_id, CONFIG_DISK);
        record.spec.boot.initramfs = Some("/boot/initramfs".into());
        assert!(!drives(&record).unwrap()[0].is_root_device);
    }

    #[test]
    fn what_was_loaded_must_be_the_machine_of_the_record() {
        let record = record();
        let loaded = FullConfig {
            machine_config: Some(MachineConfig::new(2, 128)),
            drives: drives(&record).unwrap(),
            vsock: Some(Vsock { guest_cid: 3, uds_path: "/vsock".into() }),
            ..FullConfig::default()
        };
        check_loaded(&loaded, &record).unwrap();
        let other = FullConfig { machine_config: Some(MachineConfig::new(2, 256)), ..loaded.clone() };
        assert_eq!(check_loaded(&other, &record).unwrap_err().kind(), ErrorKind::NotSupported);
        let mut reordered = loaded.clone();
        reordered.drives.reverse();
        check_loaded(&reordered, &record).unwrap();
        let fewer = FullConfig { drives: Vec::new(), ..loaded };
        assert!(check_loaded(&fewer, &record).is_err());
    }

    #[test]
    fn an_argument_of_the_kernel_is_one_word() {
        for wrong in ["", "--", "a b", "a\n", "ä"] {
            assert!(!is_argument(wrong), "{wrong}");
        }
        assert!(is_argument("clearcpuid=141,308") && is_argument("a=\"b\""));
    }
}
