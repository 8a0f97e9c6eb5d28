//! From a specification to a prepared incarnation.
//!
//! In this order, so that what is there always has a record: the slot, the folder with the record, the network and the jail. An
//! incarnation with a jail is prepared to its end; one without is gone on with by the next `prepare`, or removed by `destroy`. A `destroy`
//! that was cut short has taken the folder away first.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::failed;
use flames_vmm::{MachineSpec, Prepared, SecretBytes};
use flames_vmm_local::check::{self, Disks};
use flames_vmm_local::{Folder, OnHost};

use crate::context::Context;
use crate::folder::{Records, SCHEMA, SpecRecord};
use crate::kernel::{check_disk, check_kernel};
use crate::machine::{ARGUMENT_SENTENCE, MAX_VCPUS, is_argument, jail_spec};
use crate::spares::{Spare, Spares};
use crate::vm::{Before, Situation, Vm};

const OPERATION: &str = "vmm.prepare";
/// Linux's x86 command line has 2048 bytes (`COMMAND_LINE_SIZE`), and Firecracker appends its devices.
const LONGEST_COMMAND_LINE: usize = 1536;
/// What a saved guest's devices may take; some hundred KiB in fact.
const SAVED_DEVICES: u64 = 64 * 1024 * 1024;

/// `InvalidInput`, with the field, for what no Firecracker could run; `NotFound` for a file that is not there.
fn check_machine(context: &Context, spec: &MachineSpec) -> Result<()> {
    spec.validate()?;
    if spec.vcpus > MAX_VCPUS {
        let sentence = "A machine of Firecracker has at most 32 virtual processors.";
        return Err(Error::invalid(OPERATION, "vcpus", sentence));
    }
    let words = &spec.boot.extra_arguments;
    if !words.iter().all(|word| is_argument(word)) {
        return Err(Error::invalid(OPERATION, "boot.extra_arguments", ARGUMENT_SENTENCE));
    }
    let length: usize = context.config.boot_arguments.iter().chain(words).map(|word| word.len() + 1).sum();
    if length > LONGEST_COMMAND_LINE {
        let sentence = "The kernel's arguments are at most 1536 bytes together.";
        return Err(Error::invalid(OPERATION, "boot.extra_arguments", sentence));
    }
    check::files(spec, Disks::Files)?;
    check_kernel(&spec.boot.kernel)?;
    spec.drives.iter().try_for_each(|drive| check_disk(&drive.name, &drive.path))
}

/// What the monitor writes is no larger than the largest of its disks, or its guest's memory when that is saved. So one that was broken out
/// of cannot fill the host's disk with a file beside them, nor a disk beyond its size.
fn largest_file(spec: &MachineSpec) -> Result<u64> {
    let mut largest = spec.memory_mib.saturating_mul(1024 * 1024).saturating_add(SAVED_DEVICES);
    for drive in spec.drives.iter().filter(|drive| !drive.read_only) {
        let size = drive.path.metadata().map_err(|error| failed("a disk cannot be looked at", error))?.len();
        largest = largest.max(size);
    }
    Ok(largest)
}

impl Vm {
    /// See the contract. Runs to its end even when the caller is dropped.
    pub(crate) async fn prepare(
        self: Arc<Self>,
        context: Arc<Context>,
        spec: MachineSpec,
    ) -> Result<Prepared> {
        spec.validate()?;
        let _busy = Spares::busy(&context);
        Spares::keep(&context);
        let _turn = self.turn(&context, OPERATION).await?;
        let (record, spare) = if self.folder.exists() {
            let record = self.folder.spec()?;
            if !self.folder.has_spec(&record.spec, record.guest_config_length, &spec)? {
                return Err(self.conflict(OPERATION, "it was prepared with another specification"));
            }
            match self.situation(&context).await? {
                Situation::Before(Before::Half) if self.folder.is_let_go() => {
                    return Err(self.conflict(OPERATION, "it has run, and its jail is gone: destroy it"));
                }
                Situation::Before(Before::Half) => (self.with_its_slot(&context, record).await?, None),
                _ => return Ok(Prepared::default()),
            }
        } else {
            self.record(&context, spec).await?
        };
        let made = self.make(&context, &record, spare.as_ref()).await;
        if let Some(spare) = &spare {
            match &made {
                Ok(()) => context.spares.forget(spare.jail.name()),
                // It may be half the machine's: nobody else gets it.
                Err(_) => Spares::remove(&context, spare.jail.name()).await,
            }
        }
        if made.is_err() {
            // The error that is told is the first; what is left is found by `adopt`.
            let _ = self.unmake(&context).await;
        }
        made.map(|()| Prepared::default())
    }

    /// The record of one that has no jail yet, with the user of the slot that its jail will have: the one before may be another's by now.
    async fn with_its_slot(&self, context: &Arc<Context>, mut record: SpecRecord) -> Result<SpecRecord> {
        let slot = Spares::reserve(context, &self.jail_name).await?;
        let folder = self.folder.clone();
        blocking(move || folder.give_config(slot.user)).await?;
        if let Some(request) = record.network.as_mut().filter(|request| request.tap_owner != slot.user) {
            request.tap_owner = slot.user;
            let (folder, written) = (self.folder.clone(), record.clone());
            blocking(move || folder.write(&written)).await?;
        }
        Ok(record)
    }

    /// Checks the specification, takes a spare or a slot and writes the record.
    async fn record(&self, context: &Arc<Context>, spec: MachineSpec) -> Result<(SpecRecord, Option<Spare>)> {
        let checking = (Arc::clone(context), spec.clone());
        blocking(move || check_machine(&checking.0, &checking.1)).await?;
        context.version().await?;
        let host = context.host().await?;
        if host.jails.find(&self.jail_name).await?.is_some() {
            let message = "something of it is left of an earlier removal: destroy it first";
            return Err(self.conflict(OPERATION, message));
        }
        // Before a slot is taken, so that what cannot be leaves nothing.
        crate::network::request(context, &self.name, &spec.network, 0)?;
        let spare = Spares::take(context, &spec).await;
        let user = match &spare {
            Some(spare) => spare.jail.slot().user,
            None => Spares::reserve(context, &self.jail_name).await?.user,
        };
        match (self.write(context, spec, user).await, spare) {
            (Ok(record), spare) => Ok((record, spare)),
            // As in `prepare`.
            (Err(error), Some(spare)) => {
                Spares::remove(context, spare.jail.name()).await;
                Err(error)
            }
            (Err(error), None) => {
                let _ = host.jails.remove(&self.jail_name).await;
                Err(error)
            }
        }
    }

    async fn write(&self, context: &Arc<Context>, mut spec: MachineSpec, user: u32) -> Result<SpecRecord> {
        let network = crate::network::request(context, &self.name, &spec.network, user)?;
        let config = std::mem::replace(&mut spec.guest_config, SecretBytes(Vec::new()));
        let guest_config_length = config.0.len() as u64;
        let (record, config) = blocking(move || {
            let largest_file = Some(largest_file(&spec)?);
            Ok((SpecRecord { schema: SCHEMA, spec, guest_config_length, network, largest_file }, config))
        })
        .await?;
        let (root, name, written) = (context.root().to_owned(), self.name.clone(), record.clone());
        blocking(move || {
            Folder::make(&root, &name, |half_made| {
                let io = |error| failed("the incarnation's folder cannot be made", error);
                half_made.write_guest_config(&config).map_err(io)?;
                half_made.give_config(user)?;
                half_made.write_spec(&written)
            })
        })
        .await?;
        Ok(record)
    }

    /// Makes the network and the jail of what is on record, and the record durable, at the same time: a network that is not whole when the
    /// jail is there is made anew by the start, and a host that died has nothing of it but files.
    async fn make(&self, context: &Arc<Context>, record: &SpecRecord, spare: Option<&Spare>) -> Result<()> {
        let host = context.host().await?;
        let network = async {
            match (&record.network, spare, &host.networks) {
                (Some(request), Some(spare), Some(networks)) => {
                    networks.create_from(&spare.network_name()?, request).await?;
                }
                (Some(request), ..) => drop(crate::network::bring_up(context, Some(request)).await?),
                // The process alone has the namespace from now on.
                (None, Some(spare), Some(networks)) => networks.remove(&spare.network_name()?).await?,
                (None, ..) => return Ok(()),
            }
            self.has_network.store(record.network.is_some(), Ordering::Release);
            Ok(())
        };
        let spec = jail_spec(&self.folder, record)?;
        let jail = async {
            match spare {
                Some(spare) => spare.jail.give(&self.jail_name, spec).await,
                None => host.jails.create(&self.jail_name, spec).await,
            }
        };
        let folder = self.folder.clone();
        let durable = blocking(move || folder.make_durable());
        let (network, jail, durable): (Result<()>, _, _) = tokio::join!(network, jail, durable);
        network?;
        durable?;
        jail.map(|_| ()).map_err(|error| match error.kind() {
            ErrorKind::NotFound => error,
            ErrorKind::AlreadyExists => error.with_kind(ErrorKind::Conflict),
            _ => error.with_resource("incarnation", self.name.as_str()),
        })
    }
}
