//! Changing a machine that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flames_error::{Error, ErrorKind, Result};
use flames_firecracker_api::{BalloonPatch, DrivePatch};
use flames_firecracker_jail::Artefact;
use flames_host::blocking;
use flames_host::files::failed;
use flames_vmm::{NetworkPolicy, Phase, Update};
use flames_vmm_local::{Monitor, OnHost};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::attached::Attached;
use crate::context::Context;
use crate::folder::Records;
use crate::kernel::check_disk;
use crate::machine::{drive_id, drive_inside};
use crate::network::{live_request, replaced_request};
use crate::vm::Vm;

const OPERATION: &str = "vmm.update";
/// Below the least memory of a machine no guest lives.
const LEAST_MIB: u64 = 16;

impl Vm {
    /// See the contract.
    pub(crate) async fn update(self: &Arc<Self>, context: &Arc<Context>, update: &Update) -> Result<()> {
        let _turn = self.turn(context, OPERATION).await?;
        let attached = self.alive(context, OPERATION).await?;
        match attached.phase().await {
            Ok(Phase::Running | Phase::Paused) => {}
            Ok(_) => return Err(self.conflict(OPERATION, "it does not run yet")),
            Err(error) => return Err(self.call_failed(OPERATION, &attached, error).await),
        }
        let done = match update {
            Update::BalloonMib(mebibytes) => self.inflate(&attached, *mebibytes).await,
            Update::DrivePath { name, path } => self.replace(&attached, name, path).await,
            Update::Network(policy) => self.replace_policy(context, &attached, policy).await,
        };
        match done {
            Ok(()) => Ok(()),
            Err(error) => Err(self.call_failed(OPERATION, &attached, error).await),
        }
    }

    async fn inflate(&self, attached: &Attached, mebibytes: u64) -> Result<()> {
        let has = self.folder.spec()?.spec.memory_mib;
        let fits = has.checked_sub(mebibytes).is_some_and(|left| left >= LEAST_MIB);
        match u32::try_from(mebibytes) {
            Ok(amount_mib) if fits => attached.client.patch_balloon(&BalloonPatch { amount_mib }).await,
            _ => {
                let sentence = "A balloon leaves its machine at least 16 MiB.";
                Err(Error::invalid(OPERATION, "balloon_mib", sentence))
            }
        }
    }

    /// On record first: whoever adopts the machine then puts it under the new policy, also when this is cut short.
    async fn replace_policy(
        &self,
        context: &Context,
        attached: &Attached,
        policy: &NetworkPolicy,
    ) -> Result<()> {
        let record = self.folder.spec()?;
        let (request, limits) = replaced_request(context, &record, policy)?;
        let Some(networks) = &context.host().await?.networks else {
            return Err(Error::new(ErrorKind::NotSupported, OPERATION, "this host has no networks"));
        };
        let (before, former) = (self.folder.network_policy()?, live_request(&self.folder, &record)?);
        self.note_policy(Some(policy.clone())).await?;
        let replaced = match networks.set_policy(&request).await {
            Ok(()) => attached.client.patch_network_interface(&limits).await,
            Err(error) => Err(error),
        };
        if let (Err(_), Some(former)) = (&replaced, former) {
            // As before, as far as that can be; the error that is told is the first.
            let _ = self.note_policy(before).await;
            let _ = networks.set_policy(&former).await;
        }
        replaced
    }

    async fn note_policy(&self, policy: Option<NetworkPolicy>) -> Result<()> {
        let folder = self.folder.clone();
        blocking(move || folder.write_network_policy(policy.as_ref())).await
    }

    /// The same file again: tells the guest its new size. Another one: only for a disk that the guest may not write, since a written disk
    /// belongs to the jail from its making on.
    async fn replace(&self, attached: &Attached, name: &str, path: &PathBuf) -> Result<()> {
        let record = self.folder.spec()?;
        let Some(drive) = record.spec.drives.iter().find(|drive| drive.name == name) else {
            return Err(Error::not_found(OPERATION, "drive", name));
        };
        let checked = path.clone();
        let is_file = checked.is_absolute() && checked.is_file();
        if !is_file {
            return Err(Error::not_found(OPERATION, "file", path.display().to_string()));
        }
        check_disk(name, path)?;
        let place = drive_inside(name)?;
        let patch = DrivePatch {
            drive_id: drive_id(name),
            path_on_host: Some(place.for_firecracker().into()),
            rate_limiter: None,
        };
        if !drive.read_only {
            if drive.path != *path {
                let sentence = "A disk that the guest writes cannot be replaced by another while it runs.";
                return Err(
                    Error::new(ErrorKind::NotSupported, OPERATION, sentence).with_user_message(sentence)
                );
            }
            // It may have grown, by somebody's decision.
            let size = path.metadata().map_err(|error| failed("a disk cannot be looked at", error))?.len();
            if record.largest_file.is_some_and(|largest| size > largest) {
                allow_files_of(attached, size)?;
            }
            return attached.client.patch_drive(&patch).await;
        }
        put(attached, &place, path).await?;
        let patched = attached.client.patch_drive(&patch).await;
        if patched.is_err() {
            // What was there before, for a snapshot's sake; the guest still has it open.
            put(attached, &place, &drive.path).await?;
        }
        patched
    }
}

/// Lets the monitor write files of this size.
fn allow_files_of(attached: &Attached, size: u64) -> Result<()> {
    let process = i32::try_from(attached.process().identity().pid).ok().and_then(Pid::from_raw);
    let limit = Rlimit { current: Some(size), maximum: Some(size) };
    // None would be this process.
    let set = process.map_or(Err(Errno::SRCH), |process| prlimit(Some(process), Resource::Fsize, limit));
    set.map(drop).map_err(|error| {
        let sentence = "A written disk that has grown needs CAP_SYS_RESOURCE while its machine runs: stop the machine, and start it again.";
        match error {
            Errno::PERM => {
                Error::new(ErrorKind::PermissionDenied, OPERATION, sentence).with_user_message(sentence)
            }
            _ => Error::internal(OPERATION, "the monitor's limit of a file's size cannot be raised"),
        }
        .with_source(error)
    })
}

async fn put(attached: &Attached, place: &flames_firecracker_jail::Inside, source: &Path) -> Result<()> {
    attached.jail.remove_file(place)?;
    attached.jail.add(Artefact::Shared { source: source.to_owned(), inside: place.clone() }).await.map(drop)
}
