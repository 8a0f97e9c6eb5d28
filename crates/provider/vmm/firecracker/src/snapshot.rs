//! Saving guests: Firecracker writes into its jail, and what it wrote is moved out of it.
//!
//! A diff's memory file holds what was written since the snapshot before it, and holes; its record names that snapshot, and a start puts
//! the two together.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flames_error::{Error, Result};
use flames_firecracker_api::{SnapshotCreate, SnapshotType};
use flames_firecracker_jail::{Inside, Jail};
use flames_host::blocking;
use flames_host::files::{
    create_private, create_private_folder, failed, read_record, remove_all, sync_folder, write_record,
};
use flames_vmm::{Phase, SnapshotArtefacts, SnapshotKind};
use flames_vmm_local::{OnHost, check};
use rustix::fs::{AtFlags, Gid, Mode, Uid};

use crate::attached::Attached;
use crate::context::Context;
use crate::folder::{Records, SCHEMA};
use crate::machine::inside;
use crate::saved::{MEMORY, Processor, RECORD, STATE, SnapshotRecord, copy_data};
use crate::vm::Vm;

const OPERATION: &str = "vmm.snapshot";
/// Beside the folder of the snapshots: names the one that was saved last, which alone a diff can stand on. Absent while it is not known.
const LATEST: &str = "last-snapshot";

/// The note of an incarnation with this folder of snapshots.
fn latest(snapshots: &Path) -> PathBuf {
    snapshots.with_file_name(LATEST)
}

/// The base that a snapshot of this kind stands on.
fn base_of(kind: &SnapshotKind) -> Option<&str> {
    match kind {
        SnapshotKind::Full => None,
        SnapshotKind::DiffOf(base) => Some(base),
    }
}

impl Vm {
    /// See the contract. Runs to its end even when the caller is dropped, so that a guest that was paused for it runs on.
    pub(crate) async fn snapshot(
        self: Arc<Self>,
        context: Arc<Context>,
        name: String,
        kind: SnapshotKind,
    ) -> Result<SnapshotArtefacts> {
        check::snapshot_name(&name)?;
        base_of(&kind).map_or(Ok(()), check::snapshot_name)?;
        let _turn = self.turn(&context, OPERATION).await?;
        let attached = self.alive(&context, OPERATION).await?;
        let record = self.folder.spec()?;
        let snapshots = self.folder.join("snapshots");
        if let Some(taken) = self.taken(&snapshots, &name, &kind)? {
            return Ok(taken);
        }
        let was_running = match attached.phase().await {
            Ok(Phase::Running) => true,
            Ok(Phase::Paused) => false,
            Ok(_) => return Err(self.conflict(OPERATION, "it does not run yet")),
            Err(error) => return Err(self.call_failed(OPERATION, &attached, error).await),
        };
        let (folder, base) = (snapshots.clone(), base_of(&kind).map(str::to_owned));
        let conflict = self.conflict(OPERATION, "a diff stands on the snapshot that was taken last");
        blocking(move || begin(&folder, base.as_deref(), conflict)).await?;
        let version = attached.client.version().await;
        let files = [inside(format!("save/{STATE}"))?, inside(format!("save/{MEMORY}"))?];
        let saved = match &version {
            Ok(_) => save(&attached, &files, &kind, was_running).await,
            Err(_) => Ok(()),
        };
        let done = match (version, saved) {
            (Ok(version), Ok(())) => {
                let record = SnapshotRecord {
                    schema: SCHEMA,
                    base: base_of(&kind).map(str::to_owned),
                    vcpus: record.spec.vcpus,
                    memory_mib: record.spec.memory_mib,
                    state_bytes: 0,
                    firecracker: version.to_string(),
                    processor: Processor::of_this_host(&context),
                };
                let (jail, to, name) = (attached.jail.clone(), snapshots.clone(), name.clone());
                blocking(move || finish(&jail, &files, &to, &name, record)).await
            }
            (Err(error), _) | (_, Err(error)) => {
                for file in &files {
                    attached.jail.remove_file(file)?;
                }
                Err(self.call_failed(OPERATION, &attached, error).await)
            }
        };
        if done.is_err() {
            let folder = snapshots.clone();
            // The error that is told is the first; what is left goes with the incarnation.
            let _ = blocking(move || clear(&folder)).await;
        }
        done.map(|()| artefacts(&snapshots.join(&name)))
    }

    /// The snapshot of this name. `Conflict` when it is of another kind.
    fn taken(&self, snapshots: &Path, name: &str, kind: &SnapshotKind) -> Result<Option<SnapshotArtefacts>> {
        let path = snapshots.join(name);
        match read_record::<SnapshotRecord>(&path, RECORD)? {
            Some(record) if record.base.as_deref() == base_of(kind) => Ok(Some(artefacts(&path))),
            Some(_) => Err(self.conflict(OPERATION, "there is a snapshot of this name and of another kind")),
            None => Ok(None),
        }
    }

    /// See the contract.
    pub(crate) async fn delete_snapshot(self: &Arc<Self>, context: &Arc<Context>, name: &str) -> Result<()> {
        check::snapshot_name(name)?;
        let turn = self.turn(context, OPERATION).await?;
        let (snapshots, name) = (self.folder.join("snapshots"), name.to_owned());
        blocking(move || {
            let _turn = turn;
            let remove = || {
                // The note of which one was the last stays: Firecracker knows what was written since, whatever became of the files.
                remove_all(&snapshots.join(&name))?;
                // It stays while there are others.
                let _ = std::fs::remove_dir(&snapshots);
                Ok(())
            };
            remove().map_err(|error| failed("the snapshot cannot be removed", error))
        })
        .await
    }
}

fn artefacts(folder: &Path) -> SnapshotArtefacts {
    SnapshotArtefacts { state: folder.join(STATE), memory: Some(folder.join(MEMORY)) }
}

/// Of the note, which is beside the folder.
fn sync_parent(snapshots: &Path) -> io::Result<()> {
    snapshots.parent().map_or(Ok(()), sync_folder)
}

/// Makes the folder, and makes sure that a diff stands on the snapshot that was taken last. `conflict`, or `NotFound` when there is none of
/// the name.
fn begin(snapshots: &Path, base: Option<&str>, conflict: Error) -> Result<()> {
    if let Some(base) = base
        && !std::fs::read_to_string(latest(snapshots)).is_ok_and(|last| last == base)
    {
        return Err(match snapshots.join(base).join(RECORD).exists() {
            true => conflict.with_context("base", base),
            false => Error::not_found(OPERATION, "snapshot", base),
        });
    }
    let make = || {
        match create_private_folder(snapshots) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Firecracker forgets what was written as it saves, whether that comes to its end or not.
        remove_all(&latest(snapshots))?;
        sync_folder(snapshots)?;
        sync_parent(snapshots)
    };
    make().map_err(|error| failed("the folder of the snapshots cannot be made", error))
}

/// Has Firecracker write the files. The guest is as it was afterwards.
async fn save(
    attached: &Attached,
    files: &[Inside; 2],
    kind: &SnapshotKind,
    was_running: bool,
) -> Result<()> {
    let jail = &attached.jail;
    for file in files {
        // Of a save before, that came to nothing.
        jail.remove_file(file)?;
        drop(jail.create_file(file)?);
    }
    let [state, memory] = files;
    let create = SnapshotCreate {
        snapshot_type: match kind {
            SnapshotKind::Full => SnapshotType::Full,
            SnapshotKind::DiffOf(_) => SnapshotType::Diff,
        },
        snapshot_path: state.for_firecracker().into(),
        mem_file_path: memory.for_firecracker().into(),
    };
    let _saving = attached.saving(if was_running { Phase::Running } else { Phase::Paused });
    if was_running {
        attached.client.pause().await?;
    }
    let created = attached.client.create_snapshot(&create).await;
    if was_running {
        match &created {
            Ok(()) => attached.client.resume().await?,
            // As after any pause.
            Err(_) => attached.resume().await?,
        }
    }
    created
}

/// Moves the files out of the jail; the snapshot is there, whole, when this returns.
fn finish(
    jail: &Jail,
    files: &[Inside; 2],
    snapshots: &Path,
    name: &str,
    mut record: SnapshotRecord,
) -> Result<()> {
    let io = |error| failed("the snapshot cannot be written", error);
    let half_made = snapshots.join(format!(".new-{name}"));
    remove_all(&half_made).map_err(io)?;
    create_private_folder(&half_made).map_err(io)?;
    let [state, memory] = files;
    record.state_bytes = take_out(jail, state, &half_made.join(STATE))?;
    take_out(jail, memory, &half_made.join(MEMORY))?;
    write_record(&half_made, RECORD, &record)?;
    let end = || {
        std::fs::rename(&half_made, snapshots.join(name))?;
        create_private(&latest(snapshots))?.write_all(name.as_bytes())?;
        sync_folder(snapshots)?;
        sync_parent(snapshots)
    };
    end().map_err(io)
}

/// Makes a file that the VMM wrote root's, which everybody may read who can enter its folder, and nobody write. Its length.
///
/// The VMM is not trusted: only a file of its own user with no other name is taken, so that it cannot have a file of others taken away in
/// its place. It may have kept the file open and write to it later, as into any memory of its own guest.
fn take_out(jail: &Jail, place: &Inside, to: &Path) -> Result<u64> {
    let io = |error| failed("a saved file cannot be moved", error);
    let file = jail.open_file(place)?;
    let found = file.metadata().map_err(io)?;
    if found.uid() != jail.slot().user || found.nlink() != 1 {
        return Err(Error::internal(OPERATION, "the monitor has put something else in the snapshot's place"));
    }
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    let linked = rustix::fs::linkat(rustix::fs::CWD, source, rustix::fs::CWD, to, AtFlags::SYMLINK_FOLLOW);
    let kept = match linked {
        Ok(()) => file,
        // On another file system.
        Err(rustix::io::Errno::XDEV) => {
            let mut copy = create_private(to).map_err(io)?;
            copy_data(&file, &mut copy).and_then(|()| copy.sync_all()).map_err(io)?;
            copy
        }
        Err(error) => return Err(io(error.into())),
    };
    hand_over(&kept).map_err(io)?;
    jail.remove_file(place)?;
    Ok(found.len())
}

fn hand_over(file: &File) -> io::Result<()> {
    rustix::fs::fchown(file, Some(Uid::ROOT), Some(Gid::ROOT))?;
    Ok(rustix::fs::fchmod(file, Mode::RUSR | Mode::RGRP | Mode::ROTH)?)
}

/// Removes what is half made, and the folder when there is nothing in it.
fn clear(snapshots: &Path) -> Result<()> {
    let clear = || {
        for entry in std::fs::read_dir(snapshots)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(".new-") {
                remove_all(&entry.path())?;
            }
        }
        let _ = std::fs::remove_dir(snapshots);
        Ok(())
    };
    clear().map_err(|error| failed("a half made snapshot cannot be removed", error))
}

#[cfg(test)]
mod tests {
    use flames_error::ErrorKind;

    use super::*;

    #[test]
    fn a_diff_stands_on_the_last_snapshot_only() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = folder.path().join("snapshots");
        let conflict = || Error::new(ErrorKind::Conflict, OPERATION, "not the last");
        let begun = |base: Option<&str>| begin(&snapshots, base, conflict()).map_err(|error| error.kind());
        begun(None).unwrap();
        assert_eq!(begun(Some("one")), Err(ErrorKind::NotFound));
        for name in ["one", "two"] {
            std::fs::create_dir(snapshots.join(name)).unwrap();
            std::fs::write(snapshots.join(name).join(RECORD), "{}").unwrap();
        }
        std::fs::write(latest(&snapshots), "two").unwrap();
        assert_eq!(begun(Some("one")), Err(ErrorKind::Conflict));
        begun(Some("two")).unwrap();
        assert_eq!(begun(Some("two")), Err(ErrorKind::Conflict), "until the next is saved");
        std::fs::write(latest(&snapshots), "two").unwrap();
        std::fs::remove_dir_all(snapshots.join("two")).unwrap();
        begun(Some("two")).unwrap();
    }
}
