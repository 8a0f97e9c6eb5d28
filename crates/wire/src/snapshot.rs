//! Snapshots as they are asked for and shown.

use std::collections::BTreeMap;

use flames_error::{Error, Result};
use flames_model::{
    ControllerId, IncarnationId, Labels, NetworkSpec, SnapshotId, SnapshotName, Timestamp, VmId, VmName,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Network, Reason, SnapshotState, VmSpec, codes, schema};

/// A snapshot to take.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "before-upgrade"}))]
pub struct CreateSnapshot {
    /// Its name, unique. Absent: one is made up.
    #[serde(default)]
    #[schema(
        pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        min_length = 1,
        max_length = 63,
        example = "before-upgrade"
    )]
    pub name: Option<String>,
    /// How the guest is saved.
    #[serde(default)]
    pub kind: SnapshotKind,
    /// For `diff`: the snapshot that the difference is saved from, by id or name. It must be the newest ready one of the VM's present run, which is
    /// taken when this is absent.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 63, example = "before-upgrade")]
    pub base: Option<String>,
}

/// How a guest is saved. The snapshot is whole either way, and loaded alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// All of its memory is saved.
    #[default]
    Full,
    /// What its memory has become since an earlier snapshot: quicker, with less to store. A host that cannot do so any more saves all of it.
    Diff,
}

impl CreateSnapshot {
    /// The name as the model has it. Errors: `InvalidInput`, also for a base of what is no difference.
    pub fn model_name(&self) -> Result<Option<SnapshotName>> {
        if self.kind == SnapshotKind::Full && self.base.is_some() {
            let sentence = "A base is named for the kind `diff` only.";
            return Err(Error::invalid("wire.snapshot", "base", sentence).with_code(codes::INVALID_FIELD));
        }
        let name = self.name.clone().map(SnapshotName::new).transpose();
        name.map_err(|error| error.with_field("name").with_code(codes::INVALID_FIELD))
    }
}

/// A VM to make of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "web-2"}))]
pub struct RestoreSnapshot {
    /// The VM's name, unique, and the guest's host name. Absent: one is made up.
    #[serde(default)]
    #[schema(
        pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        min_length = 1,
        max_length = 63,
        example = "web-2"
    )]
    pub name: Option<String>,
    /// Its labels. Absent: those that the VM which was saved had.
    #[serde(default)]
    #[schema(schema_with = schema::labels, required = false)]
    pub labels: Option<BTreeMap<String, String>>,
    /// What it may reach, and who may reach it. Absent: as the VM which was saved.
    #[serde(default)]
    pub network: Option<Network>,
}

impl RestoreSnapshot {
    /// Name, labels and network as the model has them. Errors: `InvalidInput`.
    pub fn into_model(self) -> Result<(Option<VmName>, Option<Labels>, Option<NetworkSpec>)> {
        let name = self.name.map(VmName::new).transpose();
        let name = name.map_err(|error| error.with_field("name").with_code(codes::INVALID_FIELD))?;
        let labels = self.labels.map(|labels| Labels::new(labels, "labels")).transpose();
        let labels = labels.map_err(|error| error.with_code(codes::INVALID_FIELD))?;
        Ok((name, labels, self.network.map(Network::into_model).transpose()?))
    }
}

/// What a saved guest needs of the host that it is loaded on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotPlatform {
    /// The driver.
    #[schema(example = "qemu")]
    pub driver: String,
    /// The monitor's version.
    pub version: Option<String>,
    /// Who made the processor that the guest saw.
    pub cpu_vendor: String,
    /// Which processor that was.
    pub cpu_model: String,
    /// A digest of the processor's features.
    pub cpu_features: String,
    /// The digest of the host's default kernel, when the guest runs that.
    pub kernel: Option<String>,
}

/// A saved guest, with the disk it had at that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Its identity.
    #[schema(value_type = String, example = "snap_01890a5dac96774bbcceb302099a8057")]
    pub id: SnapshotId,
    /// Its name.
    #[schema(example = "before-upgrade")]
    pub name: String,
    /// Whose.
    pub project: String,
    /// Which VM was saved. It may be gone by now.
    #[schema(value_type = String, example = "vm_01890a5dac96774bbcceb302099a8057")]
    pub vm: VmId,
    /// That VM's name at that time.
    pub vm_name: String,
    /// Which incarnation of it.
    #[schema(value_type = String, example = "inc_01890a5dac96774bbcceb302099a8057")]
    pub incarnation: IncarnationId,
    /// Where that ran.
    #[schema(value_type = String, example = "ctl_01890a5dac96774bbcceb302099a8057")]
    pub controller: ControllerId,
    /// The snapshot that the VM itself was made from.
    #[schema(value_type = Option<String>)]
    pub parent: Option<SnapshotId>,
    /// The snapshot of the same run that it was saved as a difference from; null: all of the guest was saved. Neither is needed to load it.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub base: Option<SnapshotId>,
    /// The VM's labels at that time.
    pub labels: BTreeMap<String, String>,
    /// What the VM was asked to be.
    pub spec: VmSpec,
    /// What it needs of a host.
    pub platform: SnapshotPlatform,
    /// Where it is in its life.
    pub state: SnapshotState,
    /// Why it is as it is, when that needs saying.
    pub reason: Option<Reason>,
    /// Bytes of memory, devices' state and disk, holes among them.
    pub logical_bytes: u64,
    /// Bytes of the pieces that it consists of, as they are stored. Pieces that other snapshots have too count in each.
    pub stored_bytes: u64,
    /// How many pieces it consists of, each counted once.
    pub chunks: u64,
    /// Bytes of those pieces that its base does not have, as they are stored; without a base, of all.
    #[serde(default)]
    pub own_bytes: u64,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was ready, or failed.
    #[schema(schema_with = schema::optional_time)]
    pub finished_at: Option<Timestamp>,
}

impl From<&flames_model::Snapshot> for Snapshot {
    fn from(snapshot: &flames_model::Snapshot) -> Self {
        let platform = &snapshot.platform;
        Self {
            id: snapshot.id,
            name: snapshot.name.to_string(),
            project: snapshot.project.to_string(),
            vm: snapshot.vm,
            vm_name: snapshot.vm_name.to_string(),
            incarnation: snapshot.incarnation,
            controller: snapshot.controller,
            parent: snapshot.parent,
            base: snapshot.base,
            labels: snapshot.labels.pairs().clone(),
            spec: (&*snapshot.spec).into(),
            platform: SnapshotPlatform {
                driver: platform.driver.clone(),
                version: platform.version.clone(),
                cpu_vendor: platform.cpu.vendor.clone(),
                cpu_model: platform.cpu.model.clone(),
                cpu_features: platform.cpu.features.clone(),
                kernel: platform.kernel.clone(),
            },
            state: snapshot.state.into(),
            reason: snapshot.reason.as_ref().map(Into::into),
            logical_bytes: snapshot.sizes.logical_bytes,
            stored_bytes: snapshot.sizes.stored_bytes,
            chunks: snapshot.sizes.chunks,
            own_bytes: snapshot.sizes.own_bytes,
            created_at: snapshot.created_at,
            finished_at: snapshot.finished_at,
        }
    }
}

/// A page of snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// The snapshots, by id. May be fewer than asked though there are more.
    pub items: Vec<Snapshot>,
    /// Where the next page begins; null: this was the last.
    pub next_cursor: Option<String>,
}

/// How a wait for a snapshot ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotWaitResult {
    /// Whether it is ready. `false`: it failed, or the time was up.
    pub reached: bool,
    /// The snapshot as last read.
    pub snapshot: Snapshot,
}
