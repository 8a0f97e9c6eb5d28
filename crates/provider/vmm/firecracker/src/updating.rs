//! Changing a machine that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flames_error::{Error, ErrorKind, Result};
use flames_firecracker_api::{BalloonPatch, DrivePatch};
use flames_firecracker_jail::Artefact;
use flames_vmm::{Phase, Update};

use crate::attached::Attached;
use crate::context::Context;
use crate::kernel::check_disk;
use crate::machine::{drive_id, drive_inside};
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

async fn put(attached: &Attached, place: &flames_firecracker_jail::Inside, source: &Path) -> Result<()> {
    attached.jail.remove_file(place)?;
    attached.jail.add(Artefact::Shared { source: source.to_owned(), inside: place.clone() }).await.map(drop)
}
