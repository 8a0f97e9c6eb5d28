//! From a specification to a prepared folder.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::{failed, sync_folder};
use flames_vmm::{MachineSpec, NetworkSpec, Prepared, SecretBytes};
use flames_vmm_local::Folder;
use flames_vmm_local::check::{self, Disks};

use crate::acceleration::{Accelerations, channel_problem};
use crate::command_line::{check_extra_arguments, check_slots};
use crate::context::Context;
use crate::folder::{Accelerator, Records, SCHEMA, SpecRecord};
use crate::kernel::{self, FileIdentity, MachineKind};
use crate::network;
use crate::vm::Vm;

const OPERATION: &str = "vmm.prepare";

/// Which machine each kernel file needs, so that a kernel is read once.
#[derive(Debug, Default)]
pub(crate) struct Kernels(Mutex<BTreeMap<FileIdentity, MachineKind>>);

impl Kernels {
    /// `InvalidInput` when the file is not a kernel.
    pub(crate) async fn machine(&self, boot: &mut flames_vmm::BootSource) -> Result<MachineKind> {
        let named = kernel::take_machine_argument(&mut boot.extra_arguments)?;
        let identity = FileIdentity::of(&boot.kernel)
            .map_err(|error| check::missing("boot.kernel", &boot.kernel, error))?;
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

/// Durable when this returns, with the folder.
pub(crate) fn write_guest_config(folder: &Folder, config: &SecretBytes) -> io::Result<()> {
    folder.write_guest_config(config)?.map_or(Ok(()), |file| file.sync_all())
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
        check::files(spec, Disks::FilesAndDevices)?;
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
        let (root, name) = (context.root().to_owned(), self.name.clone());
        let config = spec.guest_config.clone();
        let made = blocking(move || {
            let _turn = turn;
            let io = |error: io::Error| failed("the incarnation's folder cannot be made", error);
            Folder::make(&root, &name, |half_made| {
                // So that no driver that adopts meanwhile takes it for left behind.
                let lock =
                    half_made.try_lock().map_err(io)?.ok_or_else(|| io(io::ErrorKind::WouldBlock.into()))?;
                write_guest_config(half_made, &config).map_err(io)?;
                half_made.write(&record)?;
                Ok(lock)
            })?;
            sync_folder(&root).map_err(io)
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
        if self.folder.has_spec(&record.spec, record.guest_config_length, spec)? {
            Ok(record.prepared)
        } else {
            Err(self.conflict(OPERATION, "it was prepared with another specification"))
        }
    }
}
