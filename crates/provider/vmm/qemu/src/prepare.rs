//! From a specification to a prepared folder.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::{create_private, create_private_folder, failed, remove_all, sync_folder};
use flames_vmm::{MachineSpec, NetworkSpec, Prepared, SecretBytes};

use crate::acceleration::{Accelerations, channel_problem};
use crate::command_line::{check_extra_arguments, check_slots};
use crate::context::Context;
use crate::folder::{Accelerator, Folder, SCHEMA, SpecRecord};
use crate::kernel::{self, FileIdentity, MachineKind};
use crate::network;
use crate::vm::Vm;

const OPERATION: &str = "vmm.prepare";
/// A disk's size is a multiple of it (virtio 1.2, section 5.2).
const SECTOR: usize = 512;
/// So that no two attempts write into one folder.
static ATTEMPTS: AtomicU64 = AtomicU64::new(0);

/// Which machine each kernel file needs, so that a kernel is read once.
#[derive(Debug, Default)]
pub(crate) struct Kernels(Mutex<BTreeMap<FileIdentity, MachineKind>>);

impl Kernels {
    /// `InvalidInput` when the file is not a kernel.
    pub(crate) async fn machine(&self, boot: &mut flames_vmm::BootSource) -> Result<MachineKind> {
        let named = kernel::take_machine_argument(&mut boot.extra_arguments)?;
        let identity =
            FileIdentity::of(&boot.kernel).map_err(|error| missing("boot.kernel", &boot.kernel, error))?;
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&identity).copied();
        let found = match known {
            Some(machine) => machine,
            None => {
                let path = boot.kernel.clone();
                let machine = blocking(move || kernel::inspect(&path)).await?;
                let mut kernels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                // A host that has seen so many kernels can look at one again.
                if kernels.len() >= 1024 {
                    kernels.clear();
                }
                kernels.insert(identity, machine);
                machine
            }
        };
        Ok(named.unwrap_or(found))
    }
}

fn missing(field: &'static str, path: &Path, error: io::Error) -> Error {
    let error = match error.kind() {
        io::ErrorKind::NotFound => Error::not_found(OPERATION, "file", path.display().to_string()),
        _ => Error::internal(OPERATION, "a file cannot be looked at").with_context("path", path.display()),
    };
    error.with_field(field)
}

/// Whether every file that is named is there and can be told to QEMU.
fn check_files(spec: &MachineSpec) -> Result<()> {
    let boot = &spec.boot;
    let files = std::iter::once(("boot.kernel", &boot.kernel))
        .chain(boot.initramfs.iter().map(|path| ("boot.initramfs", path)))
        .chain(spec.drives.iter().map(|drive| ("drives.path", &drive.path)));
    for (field, path) in files {
        if !path.is_absolute() || path.to_str().is_none() {
            return Err(Error::invalid(OPERATION, field, "A path is absolute and valid UTF-8."));
        }
        let found = path.metadata().map_err(|error| missing(field, path, error))?;
        use std::os::unix::fs::FileTypeExt;
        let is_device = field == "drives.path" && found.file_type().is_block_device();
        if !found.is_file() && !is_device {
            return Err(Error::invalid(OPERATION, field, "A path names a plain file."));
        }
    }
    Ok(())
}

pub(crate) fn write_guest_config(folder: &Folder, config: &SecretBytes) -> io::Result<()> {
    if config.0.is_empty() {
        return Ok(());
    }
    let mut file = create_private(&folder.join("guest-config"))?;
    file.write_all(&config.0)?;
    file.set_len(config.0.len().next_multiple_of(SECTOR) as u64)?;
    file.sync_all()
}

/// Whether the folder was prepared with the same specification.
fn is_same(folder: &Folder, record: &SpecRecord, spec: &MachineSpec) -> Result<bool> {
    let mut comparable = spec.clone();
    let config = std::mem::replace(&mut comparable.guest_config, SecretBytes(Vec::new()));
    if record.spec != comparable || record.guest_config_length != config.0.len() as u64 {
        return Ok(false);
    }
    if config.0.is_empty() {
        return Ok(true);
    }
    let kept = std::fs::read(folder.join("guest-config")).map_err(|error| {
        failed("the guest's configuration cannot be read", error).with_kind(ErrorKind::Corrupt)
    })?;
    Ok(kept.get(..config.0.len()) == Some(&config.0[..]))
}

impl Vm {
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        context: &Arc<Context>,
        kernels: &Kernels,
        accelerations: &Accelerations,
        spec: &MachineSpec,
    ) -> Result<Prepared> {
        spec.validate()?;
        let turn = self.turn(context, OPERATION).await?;
        if self.folder.exists() {
            return self.prepared_already(spec);
        }
        check_extra_arguments(spec)?;
        check_files(spec)?;
        let forwards = match &spec.network {
            NetworkSpec::None => &[][..],
            NetworkSpec::User { forwards, .. } => forwards,
            NetworkSpec::Tap { .. } => {
                let sentence =
                    "This driver has no tap networking: use user-mode networking with port forwards.";
                return Err(Error::new(ErrorKind::NotSupported, OPERATION, sentence)
                    .with_field("network")
                    .with_user_message(sentence));
            }
        };
        context.installed().await?;
        if let Some(problem) = channel_problem(context) {
            return Err(problem);
        }
        // The record keeps the specification as given; the machine's own word is not for the guest.
        let mut boot = spec.boot.clone();
        let machine = kernels.machine(&mut boot).await?;
        let mut record = SpecRecord {
            schema: SCHEMA,
            spec: MachineSpec { guest_config: SecretBytes(Vec::new()), ..spec.clone() },
            guest_config_length: spec.guest_config.0.len() as u64,
            machine,
            accelerator: Accelerator::Tcg,
            cpu_model: String::new(),
            channel: context.config.channel,
            prepared: Prepared::default(),
        };
        check_slots(&record)?;
        if accelerations.decide(context, &boot, machine).await?.kvm {
            record.accelerator = Accelerator::Kvm;
        }
        record.cpu_model = context.config.cpu_model.clone().unwrap_or_else(|| {
            match record.accelerator {
                Accelerator::Kvm => "host",
                Accelerator::Tcg => "max",
            }
            .into()
        });
        let (addresses, ports) = network::reserve(forwards)?;
        record.prepared.forwards = addresses;
        let prepared = record.prepared.clone();
        let (root, folder) = (context.root().to_owned(), self.folder.clone());
        let half_made = Folder::new(root.join(format!(
            ".new-{}-{}",
            self.name,
            ATTEMPTS.fetch_add(1, Ordering::Relaxed)
        )));
        let config = spec.guest_config.clone();
        let made = blocking(move || {
            let _turn = turn;
            let made = (|| {
                let io = |error: io::Error| failed("the incarnation's folder cannot be made", error);
                remove_all(half_made.path()).map_err(io)?;
                create_private_folder(half_made.path()).map_err(io)?;
                // So that no driver that adopts meanwhile takes it for left behind.
                let _lock =
                    half_made.try_lock().map_err(io)?.ok_or_else(|| io(io::ErrorKind::WouldBlock.into()))?;
                write_guest_config(&half_made, &config).map_err(io)?;
                half_made.write("spec.json", &record)?;
                std::fs::rename(half_made.path(), folder.path()).map_err(io)?;
                sync_folder(&root).map_err(io)
            })();
            if made.is_err() {
                let _ = remove_all(half_made.path());
            }
            made
        })
        .await;
        match made {
            Ok(()) => {
                self.hold_ports(ports);
                Ok(prepared)
            }
            // A driver that was dropped meanwhile had this on its way and was faster.
            Err(_) if self.folder.exists() => self.prepared_already(spec),
            Err(error) => Err(error),
        }
    }

    fn prepared_already(&self, spec: &MachineSpec) -> Result<Prepared> {
        let record = self.folder.spec()?;
        if is_same(&self.folder, &record, spec)? {
            Ok(record.prepared)
        } else {
            Err(self.conflict(OPERATION, "it was prepared with another specification"))
        }
    }
}
