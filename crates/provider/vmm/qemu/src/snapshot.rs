//! Saved guests: one file each, QEMU's migration stream behind a header of ours.
//!
//! The header names the machine that the stream belongs to, so that a snapshot is refused with a reason before QEMU fails on it, and the
//! file's whole length, so that a file cut short is known.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::{create_private_folder, failed, remove_all, sync_folder};
use flames_vmm::{NetworkSpec, Phase, SnapshotArtefacts, SnapshotKind};
use flames_vmm_local::{Folder, OnHost, check};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::attached::{Attached, RunState};
use crate::command_line::has_balloon;
use crate::config::Channel;
use crate::context::Context;
use crate::folder::{Accelerator, Records, SCHEMA, SpecRecord};
use crate::kernel::MachineKind;
use crate::qmp::QmpError;
use crate::vm::{Situation, Vm};

const OPERATION: &str = "vmm.snapshot";
const MAGIC: &[u8; 8] = b"FLAMESQS";
/// Where QEMU's stream begins. Before it: the magic bytes, the JSON's length (`u32`, little-endian), the JSON, zeros.
const STREAM_OFFSET: u64 = 4096;
/// Names the snapshot that was saved last. Absent while it is not known.
const LATEST: &str = ".latest";
/// The file of the snapshot that was saved last, when that was deleted while its guest stands still.
const LATEST_STATE: &str = ".latest-state";

/// What must be equal for a stream to be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Shape {
    machine: MachineKind,
    accelerator: Accelerator,
    cpu_model: String,
    channel: Channel,
    vcpus: u32,
    memory_mib: u64,
    disks: usize,
    has_config_disk: bool,
    has_network: bool,
    has_balloon: bool,
}

impl Shape {
    fn of(record: &SpecRecord) -> Self {
        Self {
            machine: record.machine,
            accelerator: record.accelerator,
            cpu_model: record.cpu_model.clone(),
            channel: record.channel,
            vcpus: record.spec.vcpus,
            memory_mib: record.spec.memory_mib,
            disks: record.spec.drives.len(),
            has_config_disk: record.guest_config_length > 0,
            has_network: record.spec.network != NetworkSpec::None,
            has_balloon: has_balloon(record),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    schema: u32,
    shape: Shape,
    /// Of the whole file.
    length: u64,
}

/// A snapshot's file that stands at the beginning of QEMU's stream.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: File,
}

impl Opened {
    /// `NotFound`; `Corrupt` when it is not a whole snapshot; `NotSupported` when it is one of another machine.
    pub(crate) fn for_machine(path: &Path, record: &SpecRecord) -> Result<Self> {
        const OPERATION: &str = "vmm.start";
        let corrupt = |why: &str| {
            Error::new(ErrorKind::Corrupt, OPERATION, format!("the snapshot {why}"))
                .with_context("path", path.display())
        };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::not_found(OPERATION, "snapshot", path.display().to_string()));
            }
            Err(error) => return Err(corrupt("cannot be opened").with_source(error)),
        };
        let mut head = [0; STREAM_OFFSET as usize];
        file.read_exact(&mut head).map_err(|error| corrupt("is cut short").with_source(error))?;
        let length = head.get(8..12).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
        let json = 12..12_usize.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        let (true, Some(json)) = (head.starts_with(MAGIC), head.get(json)) else {
            return Err(corrupt("is not one of this driver's"));
        };
        let header: Header = serde_json::from_slice(json)
            .map_err(|error| corrupt("has a damaged header").with_source(error))?;
        let found = file.metadata().map_err(|error| corrupt("cannot be read").with_source(error))?.len();
        if header.length != found {
            return Err(corrupt("is cut short"));
        }
        if header.schema != SCHEMA || header.shape != Shape::of(record) {
            let message = "the snapshot is one of another machine, or of another version of this driver";
            return Err(Error::new(ErrorKind::NotSupported, OPERATION, message)
                .with_context("snapshot", format!("{:?}", header.shape))
                .with_context("machine", format!("{:?}", Shape::of(record))));
        }
        Ok(Self { file })
    }
}

fn write_header(file: &mut File, record: &SpecRecord, length: u64) -> io::Result<()> {
    let json = serde_json::to_vec(&Header { schema: SCHEMA, shape: Shape::of(record), length })?;
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes());
    head.extend_from_slice(&json);
    head.resize(STREAM_OFFSET as usize, 0);
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&head)
}

impl Vm {
    pub(crate) async fn snapshot(
        self: &Arc<Self>,
        context: &Arc<Context>,
        name: &str,
        kind: SnapshotKind,
    ) -> Result<SnapshotArtefacts> {
        check::snapshot_name(name)?;
        if let SnapshotKind::DiffOf(_) = kind {
            return Err(Error::new(ErrorKind::NotSupported, OPERATION, "QEMU saves whole guests only"));
        }
        let _turn = self.turn(context, OPERATION).await?;
        let attached = self.alive(context, OPERATION).await?;
        let record = self.folder.spec()?;
        if record.channel == Channel::Vsock {
            let message = "a machine with a vsock helper cannot be saved: use the virtio-serial channel";
            return Err(Error::new(ErrorKind::NotSupported, OPERATION, message));
        }
        let snapshots = self.folder.join("snapshots");
        let path = snapshots.join(name);
        let artefacts = SnapshotArtefacts { state: path.join("state"), memory: None };
        if artefacts.state.exists() {
            return Ok(artefacts);
        }
        let command_failed = |error| self.command_failed(OPERATION, &attached, error);
        let deadline = context.config.deadlines.command;
        let was_running = match attached.phase().await.map_err(command_failed)? {
            Phase::Running => true,
            Phase::Paused => false,
            _ => return Err(self.conflict(OPERATION, "it does not run yet")),
        };
        let state = attached.run_state(deadline).await.map_err(command_failed)?;
        let is_saved_already = state == RunState::PausedAfterSave;
        let half_made = snapshots.join(format!(".new-{name}"));
        let half_made_too = half_made.clone();
        let for_header = record.clone();
        let mut file = blocking(move || {
            let make = || {
                std::fs::create_dir_all(&snapshots)?;
                if !is_saved_already {
                    remove_all(&snapshots.join(LATEST))?;
                    remove_all(&snapshots.join(LATEST_STATE))?;
                }
                remove_all(&half_made_too)?;
                create_private_folder(&half_made_too)?;
                let mut file = flames_host::files::create_private(&half_made_too.join("state"))?;
                write_header(&mut file, &for_header, 0)?;
                Ok(file)
            };
            make().map_err(|error| failed("the snapshot's file cannot be made", error))
        })
        .await?;
        if was_running {
            attached.command("stop", json!({}), deadline).await.map_err(command_failed)?;
        }
        let saved = if is_saved_already {
            self.copy_latest(&file).await
        } else {
            self.save(context, &attached, &file).await
        };
        // A guest that was left paused runs on, whether it was saved or not.
        if was_running {
            attached.command("cont", json!({}), deadline).await.map_err(command_failed)?;
        }
        let (to, root, name) = (path.clone(), self.folder.join("snapshots"), name.to_owned());
        blocking(move || {
            let finished = saved.and_then(|()| {
                let mut finish = || {
                    let length = file.metadata()?.len();
                    write_header(&mut file, &record, length)?;
                    file.sync_all()?;
                    std::fs::rename(&half_made, &to)?;
                    std::fs::write(root.join(LATEST), &name)?;
                    sync_folder(&root)
                };
                finish().map_err(|error| failed("the snapshot cannot be written", error))
            });
            if finished.is_err() {
                let _ = remove_all(&half_made);
            }
            finished
        })
        .await?;
        Ok(artefacts)
    }

    /// Writes the paused guest behind the file's header.
    async fn save(&self, context: &Context, attached: &Attached, file: &File) -> Result<()> {
        let deadline = context.config.deadlines.command;
        let failed = |error| self.command_failed(OPERATION, attached, error);
        let monitor = attached.qmp(deadline).await.map_err(failed)?;
        // Without a limit, since nothing else is slowed down by it.
        let parameters = json!({ "max-bandwidth": i64::MAX });
        monitor.execute("migrate-set-parameters", parameters, deadline).await.map_err(failed)?;
        let name = json!({ "fdname": "snapshot" });
        monitor.execute_with_file("getfd", name, file.as_fd(), deadline).await.map_err(failed)?;
        monitor.execute("migrate", json!({ "uri": "fd:snapshot" }), deadline).await.map_err(failed)?;
        let saved = async {
            loop {
                let answer = monitor.execute("query-migrate", json!({}), deadline).await?;
                match answer.get("status").and_then(Value::as_str).unwrap_or_default() {
                    "completed" => return Ok(()),
                    "failed" | "cancelled" => {
                        let why =
                            answer.get("error-desc").and_then(Value::as_str).unwrap_or("the save failed");
                        return Err(QmpError::Refused(why.to_owned()));
                    }
                    _ => context.clock.sleep(Duration::from_millis(5)).await,
                }
            }
        };
        match context.clock.timeout(context.config.deadlines.snapshot, saved).await {
            Ok(saved) => saved.map_err(failed),
            Err(late) => {
                monitor.execute("migrate_cancel", json!({}), deadline).await.map_err(failed)?;
                Err(Error::unavailable(OPERATION, "the guest was not saved in time").with_source(late))
            }
        }
    }

    /// A guest that was saved while paused has not run since, and QEMU does not save it twice: what was saved last is the same.
    async fn copy_latest(&self, to: &File) -> Result<()> {
        let snapshots = self.folder.join("snapshots");
        let mut to = to.try_clone().map_err(|error| failed("the snapshot's file cannot be shared", error))?;
        blocking(move || {
            let name = std::fs::read_to_string(snapshots.join(LATEST)).unwrap_or_default();
            let latest = check::snapshot_name(&name).ok().and_then(|()| File::open(snapshots.join(&name).join("state")).ok());
            let latest = latest.or_else(|| File::open(snapshots.join(LATEST_STATE)).ok());
            let Some(mut from) = latest else {
                let message = "a guest that was saved while paused can be saved again after a resume, or while that snapshot is there";
                return Err(Error::new(ErrorKind::Conflict, OPERATION, message));
            };
            let mut copy = || {
                from.seek(SeekFrom::Start(STREAM_OFFSET))?;
                to.seek(SeekFrom::Start(STREAM_OFFSET))?;
                io::copy(&mut from, &mut to)
            };
            copy().map(|_| ()).map_err(|error| failed("the last snapshot cannot be copied", error))
        })
        .await
    }

    pub(crate) async fn delete_snapshot(self: &Arc<Self>, context: &Arc<Context>, name: &str) -> Result<()> {
        check::snapshot_name(name)?;
        let turn = self.turn(context, OPERATION).await?;
        // QEMU does not save a guest twice that stands still: what was saved last is kept for the next snapshot, until the guest runs on.
        let is_needed = match self.situation(context).await {
            Ok(Situation::Alive(attached)) => {
                let state = attached.run_state(context.config.deadlines.command).await;
                state.is_ok_and(|state| state == RunState::PausedAfterSave)
            }
            _ => false,
        };
        let (snapshots, name) = (self.folder.join("snapshots"), name.to_owned());
        blocking(move || {
            let _turn = turn;
            let remove = || {
                let latest = snapshots.join(LATEST);
                if std::fs::read_to_string(&latest).is_ok_and(|latest| latest == name) {
                    if is_needed && snapshots.join(&name).join("state").exists() {
                        std::fs::rename(snapshots.join(&name).join("state"), snapshots.join(LATEST_STATE))?;
                    }
                    remove_all(&latest)?;
                }
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

/// Removes what was kept of a deleted snapshot: its guest runs on.
pub(crate) fn forget_latest(folder: &Folder) {
    let snapshots = folder.join("snapshots");
    // What is left of it goes with the next snapshot, or with the incarnation.
    let _ = remove_all(&snapshots.join(LATEST_STATE));
    let _ = std::fs::remove_dir(&snapshots);
}
