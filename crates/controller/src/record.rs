//! What a host writes down about one incarnation before its machine starts, so that it can be taken up again with the API down.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use flames_guest_protocol::AgentKey;
use flames_model::{
    Assignment, Endpoint, Exit, IncarnationId, IncarnationState, Reason, SecretString, SnapshotBase,
    SnapshotId, Timestamp,
};
use serde::{Deserialize, Serialize};

/// The shape of [`IncarnationRecord`]. A reader takes a newer one for unreadable.
pub const RECORD_SCHEMA: u32 = 1;

/// How far an incarnation has come on this host, as far as it was written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordPhase {
    /// Its machine may be being made, or boot.
    Accepted,
    /// Its agent has answered.
    Running,
    /// It holds nothing but its logs and, if it has one, a persistent disk. Kept until the control plane no longer assigns it, so that it
    /// is never started a second time.
    Released,
    /// It holds nothing, and neither does its VM.
    Purged,
}

/// How a run ended. Written down before anything of it is taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// `Stopped` or `Failed`.
    pub state: IncarnationState,
    /// How.
    pub exit: Exit,
    /// Why.
    pub reason: Option<Reason>,
}

/// What a host knows about one incarnation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IncarnationRecord {
    /// [`RECORD_SCHEMA`] of whoever wrote it.
    pub schema: u32,
    /// What was told last.
    #[serde(with = "shared")]
    pub assignment: Arc<Assignment>,
    /// What its agent and its controller prove themselves to each other with.
    pub key: AgentKey,
    /// The guest's wall clock at boot, in milliseconds since 1970. Part of the machine, so it must not change between two tries.
    pub epoch_ms: u64,
    /// How far it has come.
    pub phase: RecordPhase,
    /// No report has a larger number than this; the next one of another process has.
    pub sequence_reserved: u64,
    /// The revision of its network that its machine was made with, or put under last, as far as that was written down: the machine may be
    /// under a later one that was told, never under an earlier one.
    #[serde(default)]
    pub network_revision: u64,
    /// Where its ports are reached.
    pub endpoints: Vec<Endpoint>,
    /// When it was first in each state.
    pub timeline: BTreeMap<IncarnationState, Timestamp>,
    /// How its run ended, when it has.
    pub ending: Option<Ending>,
    /// The snapshot that is being taken of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving: Option<Saving>,
    /// The agent in the guest that it was loaded from, once its disk is in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<RestoredAgent>,
}

/// A snapshot that is being taken. Written down before anything is made for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saving {
    /// Which.
    pub snapshot: SnapshotId,
    /// How far it has come.
    pub stage: SavingStage,
}

/// How far a snapshot has come on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SavingStage {
    /// Whatever is there of it is not whole, or not of one moment.
    Taking,
    /// Guest and disk are saved, of one moment, and are to be stored.
    Saved {
        /// The devices' state.
        state: PathBuf,
        /// The memory, where it is a file of its own.
        memory: Option<PathBuf>,
        /// What the memory is a difference from; none: it is whole.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<SnapshotBase>,
    },
}

/// The agent in a guest that was loaded from a snapshot: who it takes itself for until it is told better.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredAgent {
    /// The incarnation that was saved.
    pub incarnation: IncarnationId,
    /// That one's key.
    pub key: SecretString,
}

/// A shared value is written as the value.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, to: S) -> Result<S::Ok, S::Error> {
        T::serialize(value, to)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(from).map(Arc::new)
    }
}

impl IncarnationRecord {
    /// How many report numbers are reserved at once.
    pub const SEQUENCE_BLOCK: u64 = 1_000;

    /// Whether it holds nothing on the host that its run needed.
    pub fn is_released(&self) -> bool {
        self.phase >= RecordPhase::Released
    }
}
