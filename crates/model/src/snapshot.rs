//! Saved guests: what a snapshot is, what it consists of, and how reports change it.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    ControllerId, DriverInfo, DriverNetwork, FencingToken, ImageManifest, Incarnation, IncarnationId,
    IncarnationState, Labels, ProjectName, Reason, SecretString, SnapshotId, SnapshotName, Source, Vm, VmId,
    VmName, VmSpec,
};

/// Where a snapshot is in its life: `pending → taking → ready`, or `failed` from either; `deleting` while it is looked whether anybody
/// still needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// It was asked for; the VM's controller has not begun.
    Pending,
    /// The guest is being saved, or what was saved is on its way to the BlobStore.
    Taking,
    /// All of it is stored: VMs can be made from it.
    Ready,
    /// It could not be taken.
    Failed,
    /// It is being removed: no VM may begin to use it.
    Deleting,
}

impl SnapshotState {
    /// Every state.
    pub const ALL: [SnapshotState; 5] =
        [Self::Pending, Self::Taking, Self::Ready, Self::Failed, Self::Deleting];

    /// The state's name as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Taking => "taking",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }

    /// Whether its controller is at work on it, or will be.
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Pending | Self::Taking)
    }
}

impl std::fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The processor that guests of a driver see, as far as saved guests depend on it. Two are interchangeable when they are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct CpuFacts {
    /// Who made it (`GenuineIntel`), or `emulated`.
    pub vendor: String,
    /// Which model: family, model and stepping, or the name of what is emulated.
    pub model: String,
    /// A digest of its features.
    pub features: String,
}

/// What a saved guest needs of the host that it is loaded on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPlatform {
    /// The driver's name.
    pub driver: String,
    /// The monitor's version.
    pub version: Option<String>,
    /// The processor that its guests see.
    pub cpu: CpuFacts,
    /// The digest of the host's default kernel, when the guest runs that.
    pub kernel: Option<String>,
    /// How it was connected: it has that device. None: nobody wrote that down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<DriverNetwork>,
}

impl SnapshotPlatform {
    /// What guests need that a host with this driver saves. `kernel`: the kernel image that the guest names.
    pub fn of(driver: &DriverInfo, kernel: Option<&ImageManifest>) -> Self {
        Self {
            driver: driver.name.clone(),
            version: driver.version.clone(),
            cpu: driver.cpu.clone(),
            kernel: driver.default_kernel.clone().filter(|_| kernel.is_none()),
            network: Some(driver.network),
        }
    }

    /// Why a host with this driver cannot load the guest, as a part of a sentence; none: it can.
    pub fn misfit(&self, host: &DriverInfo) -> Option<String> {
        let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
        if !host.snapshot {
            Some(format!("its driver {} loads no snapshots", host.name))
        } else if self.driver != host.name {
            Some(format!("its driver is {}, not {}", host.name, self.driver))
        } else if self.version != host.version {
            Some(format!(
                "its {} is of version {}, not {}",
                host.name,
                version(&host.version),
                version(&self.version)
            ))
        } else if self.cpu != host.cpu {
            Some(format!(
                "its processor is {} {} with other features than the {} {} that the guest was saved on",
                host.cpu.vendor, host.cpu.model, self.cpu.vendor, self.cpu.model
            ))
        } else if self.kernel.is_some() && self.kernel != host.default_kernel {
            Some("its default kernel is another than the guest's".to_owned())
        } else if self.network.is_some_and(|network| network != host.network) {
            Some(format!("its driver {} connects guests in another way than the saved one was", host.name))
        } else {
            None
        }
    }
}

/// How large a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct SnapshotSizes {
    /// Bytes of all its files, holes among them.
    pub logical_bytes: u64,
    /// Bytes of the chunks that it names, as they are stored. Chunks that other snapshots name too count in each.
    pub stored_bytes: u64,
    /// How many chunks it names, each once.
    pub chunks: u64,
    /// Bytes of those chunks, as they are stored, that the snapshot which it was saved as a difference from does not name; of any other, all.
    #[serde(default)]
    pub own_bytes: u64,
}

/// The snapshot that another one is saved as a difference from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotBase {
    /// Which.
    pub snapshot: SnapshotId,
    /// The blob that lists what it consists of.
    pub manifest: String,
}

/// A saved guest, with the disk it had at that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its identity.
    pub id: SnapshotId,
    /// Whose.
    pub project: ProjectName,
    /// Its name, unique within the project.
    pub name: SnapshotName,
    /// Which VM was saved.
    pub vm: VmId,
    /// That VM's name at that time.
    pub vm_name: VmName,
    /// Which incarnation of it.
    pub incarnation: IncarnationId,
    /// Where that ran.
    pub controller: ControllerId,
    /// Reports count only with this token: the incarnation's.
    pub token: FencingToken,
    /// The snapshot that the VM itself was restored from.
    pub parent: Option<SnapshotId>,
    /// The snapshot of the same run that it is saved as a difference from; none: all of the guest is saved. Either way it consists of all
    /// that it needs: nothing of the other one's record is needed to load it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<SnapshotId>,
    /// The VM's labels at that time.
    pub labels: Labels,
    /// What the VM was asked to be.
    pub spec: Arc<VmSpec>,
    /// The root file system that the guest has mounted.
    pub image: ImageManifest,
    /// The kernel that it names; none: its host's default.
    pub kernel: Option<ImageManifest>,
    /// What it needs of a host.
    pub platform: SnapshotPlatform,
    /// Where it is in its life.
    pub state: SnapshotState,
    /// Why it is as it is, when that needs saying.
    pub reason: Option<Reason>,
    /// The last report's number. Reports count only with a larger one.
    pub sequence: u64,
    /// The blob that lists what it consists of, from when that is known on.
    pub manifest: Option<String>,
    /// How large it is.
    pub sizes: SnapshotSizes,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it was ready, or failed.
    pub finished_at: Option<Timestamp>,
}

/// What a controller says about a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotProgress {
    /// It has begun.
    Taking,
    /// The guest is saved on the host, and the manifest is stored. What the manifest names is kept from when this was taken on.
    Named {
        /// The manifest's blob.
        manifest: String,
        /// How large it is; what is stored is not known yet.
        sizes: SnapshotSizes,
        /// What it was saved as a difference from; none: a host that could not do that has saved all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<SnapshotId>,
    },
    /// Everything that the manifest names is stored.
    Ready {
        /// The manifest's blob: the one that was named.
        manifest: String,
        /// How large it is.
        sizes: SnapshotSizes,
    },
    /// It could not be taken.
    Failed {
        /// Why.
        reason: Reason,
    },
}

/// A report on a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// About which.
    pub snapshot: SnapshotId,
    /// Its project.
    pub project: ProjectName,
    /// The incarnation that is saved.
    pub incarnation: IncarnationId,
    /// Proves that it speaks of this placement.
    pub token: FencingToken,
    /// Grows with each report of this incarnation.
    pub sequence: u64,
    /// What is so.
    pub progress: SnapshotProgress,
}

/// Why a report on a snapshot was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotRefusal {
    /// It speaks of another incarnation or placement.
    StaleToken,
    /// It is older than what was taken, or the snapshot is finished already.
    Stale,
    /// It says `ready` of something that was not named before: nothing keeps what it consists of.
    NotNamed,
}

/// The snapshot after `report`, or why the report does not count. `ready` and `failed` absorb.
pub fn apply_snapshot_report(
    snapshot: &Snapshot,
    report: &SnapshotReport,
    now: Timestamp,
) -> Result<Snapshot, SnapshotRefusal> {
    if report.snapshot != snapshot.id
        || report.incarnation != snapshot.incarnation
        || report.token != snapshot.token
    {
        return Err(SnapshotRefusal::StaleToken);
    }
    if !snapshot.state.is_under_way() || report.sequence <= snapshot.sequence {
        return Err(SnapshotRefusal::Stale);
    }
    let mut after = Snapshot { sequence: report.sequence, state: SnapshotState::Taking, ..snapshot.clone() };
    match &report.progress {
        SnapshotProgress::Taking => {}
        SnapshotProgress::Named { manifest, sizes, base } => {
            after.manifest = Some(manifest.clone());
            after.sizes = *sizes;
            after.base = snapshot.base.filter(|ordered| Some(*ordered) == *base);
        }
        SnapshotProgress::Ready { manifest, sizes } => {
            if snapshot.manifest.as_ref() != Some(manifest) {
                return Err(SnapshotRefusal::NotNamed);
            }
            after.state = SnapshotState::Ready;
            after.sizes = *sizes;
            after.finished_at = Some(now);
        }
        SnapshotProgress::Failed { reason } => after = failed(&after, reason.clone(), now),
    }
    Ok(after)
}

/// The snapshot, failed: it names nothing any more.
pub fn failed(snapshot: &Snapshot, reason: Reason, now: Timestamp) -> Snapshot {
    Snapshot {
        state: SnapshotState::Failed,
        reason: Some(reason),
        manifest: None,
        sizes: SnapshotSizes::default(),
        finished_at: Some(now),
        ..snapshot.clone()
    }
}

/// The snapshot that the VM's next incarnation starts from; none: it boots. A VM starts from its snapshot until it has run once.
pub fn restores_from(vm: &Vm, last: Option<&Incarnation>) -> Option<SnapshotId> {
    let from = vm.restored_from?;
    let untouched = last.is_none_or(|last| {
        matches!(last.source, Source::Snapshot(_)) && !last.timeline.contains_key(&IncarnationState::Running)
    });
    untouched.then_some(from)
}

/// What an incarnation that starts from a snapshot is loaded from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreOrder {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The blob that lists what it consists of.
    pub manifest: String,
    /// What it needs of its host.
    pub platform: SnapshotPlatform,
}

/// What a file of a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotFileRole {
    /// The devices' state; with some drivers the guest's memory too.
    State,
    /// The guest's memory.
    Memory,
    /// The guest's writable layer.
    Disk,
}

/// A piece of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotChunk {
    /// Where it begins: a multiple of [`SnapshotManifest::CHUNK_BYTES`].
    pub offset: u64,
    /// The BLAKE3 digest of its bytes, as 64 hex digits.
    pub digest: String,
}

/// A file of a snapshot. What no chunk covers is zeros.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFile {
    /// What it is.
    pub role: SnapshotFileRole,
    /// Its length in bytes.
    pub length: u64,
    /// Its pieces, by offset.
    pub chunks: Vec<SnapshotChunk>,
}

/// What a snapshot consists of: the content of its manifest blob, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// [`SnapshotManifest::SCHEMA`] of whoever wrote it.
    pub schema: u32,
    /// Whose.
    pub snapshot: SnapshotId,
    /// Its files.
    pub files: Vec<SnapshotFile>,
    /// The incarnation that the saved agent takes itself for.
    pub agent: IncarnationId,
    /// The key that the saved agent holds. The guest's saved memory holds it too.
    pub agent_key: SecretString,
}

impl SnapshotManifest {
    /// The form of this type. A reader refuses a newer one.
    pub const SCHEMA: u32 = 1;
    /// The length of a chunk; the last one of a file may be shorter.
    pub const CHUNK_BYTES: u64 = 4 * 1024 * 1024;
    /// The longest manifest, in bytes: about 3 TiB of data.
    pub const MAX_BYTES: u64 = 64 * 1024 * 1024;
    /// What the keys of all blobs of snapshots begin with.
    pub const BLOB_PREFIX: &'static str = "snapshots/";

    /// The blob of a chunk with this digest.
    pub fn chunk_blob(digest: &str) -> String {
        format!("{}chunks/{digest}", Self::BLOB_PREFIX)
    }

    /// The blob of the manifest with this digest of its own bytes.
    pub fn blob(digest: &str) -> String {
        format!("{}manifests/{digest}", Self::BLOB_PREFIX)
    }

    /// Whether this is what a manifest can be: known schema, each role once, chunks in order, aligned, within their file, with digests.
    pub fn is_sound(&self) -> bool {
        let mut roles = std::collections::BTreeSet::new();
        self.schema <= Self::SCHEMA
            && self.files.iter().all(|file| roles.insert(file.role) && file.is_sound())
            && roles.contains(&SnapshotFileRole::State)
    }

    /// The digests of all chunks, each once.
    pub fn digests(&self) -> std::collections::BTreeSet<&str> {
        let chunks = self.files.iter().flat_map(|file| &file.chunks);
        chunks.map(|chunk| chunk.digest.as_str()).collect()
    }

    /// The file of this role.
    pub fn file(&self, role: SnapshotFileRole) -> Option<&SnapshotFile> {
        self.files.iter().find(|file| file.role == role)
    }
}

impl SnapshotFile {
    fn is_sound(&self) -> bool {
        let is_digest =
            |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut next = 0;
        self.chunks.iter().all(|chunk| {
            let follows = chunk.offset >= next && chunk.offset < self.length;
            next = chunk.offset.saturating_add(SnapshotManifest::CHUNK_BYTES);
            follows && chunk.offset % SnapshotManifest::CHUNK_BYTES == 0 && is_digest(&chunk.digest)
        })
    }
}
