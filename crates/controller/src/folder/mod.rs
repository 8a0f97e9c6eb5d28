//! What a host keeps on its disk. [`FileFolder`] says how it is laid out.

mod files;
mod memory;
mod segments;

use std::fmt::Debug;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use flames_error::Result;
use flames_model::{Assignment, ControllerId, IncarnationId, VmId};

use crate::record::IncarnationRecord;

pub use files::FileFolder;
pub use memory::MemoryFolder;

/// The most bytes of one [`OutputEntry`].
pub const MAX_ENTRY: usize = 64 * 1024;
/// How many bytes of an incarnation's output are kept by default: 8 MiB, headers counted.
pub const DEFAULT_OUTPUT_KEPT: u64 = 8 * 1024 * 1024;
/// The most bytes of a console that are kept once its machine is gone.
pub const CONSOLE_KEPT: usize = 256 * 1024;

/// One piece of a workload's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputEntry {
    /// 1 for standard output, 2 for standard error, 3 for a terminal.
    pub stream: u8,
    /// Where it begins in all of the workload's output. A gap to the entry before was lost.
    pub offset: u64,
    /// When the agent read it, in milliseconds since 1970.
    pub at_ms: u64,
    /// The bytes, at most [`MAX_ENTRY`].
    pub data: Bytes,
}

impl OutputEntry {
    /// The offset behind its last byte.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.data.len() as u64)
    }
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutputPage {
    /// The entries, oldest first. Empty: there is nothing behind the position asked for, yet.
    pub entries: Vec<OutputEntry>,
    /// From where to read on.
    pub next: u64,
}

/// An incarnation that something was kept about.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Which.
    pub incarnation: IncarnationId,
    /// What was written down; none when it cannot be read.
    pub record: Option<IncarnationRecord>,
}

/// What a host keeps. One controller uses it at a time.
///
/// Each write is whole or not there, and is on the disk when the call returns, except output, which a host that loses its power may lose.
/// Errors everywhere: `Exhausted` when the disk is full; `Unavailable` when it cannot be read or written.
#[async_trait]
pub trait HostFolder: Debug + Send + Sync + 'static {
    /// The controller's identity: `fresh`, when it had none. Errors: `Corrupt` when what is written there cannot be read.
    async fn identity(&self, fresh: ControllerId) -> Result<ControllerId>;

    /// Everything that was kept, by incarnation.
    async fn incarnations(&self) -> Result<Vec<Kept>>;

    /// Writes a record down, in place of the one before.
    async fn put_record(&self, record: &IncarnationRecord) -> Result<()>;

    /// Forgets an incarnation: its record and its ephemeral disk. No error when there is nothing.
    async fn remove_incarnation(&self, incarnation: IncarnationId) -> Result<()>;

    /// Where the writable layer of an assignment lies, or will. Its folder is there once a record was put.
    fn disk_path(&self, assignment: &Assignment) -> PathBuf;

    /// Removes the ephemeral layer of an incarnation. No error when there is none.
    async fn remove_ephemeral_disk(&self, incarnation: IncarnationId) -> Result<()>;

    /// Removes the persistent layer of a VM. No error when there is none.
    async fn remove_persistent_disk(&self, vm: VmId) -> Result<()>;

    /// The VMs that have a persistent layer here.
    async fn persistent_disks(&self) -> Result<Vec<VmId>>;

    /// Appends to an incarnation's log. What is older than the bound is dropped.
    async fn append_output(&self, incarnation: IncarnationId, entries: Vec<OutputEntry>) -> Result<()>;

    /// The offset behind the last byte of output that was logged.
    async fn output_end(&self, incarnation: IncarnationId) -> Result<u64>;

    /// Output from a position on (0: the oldest that is there), about `most_bytes` of it. Positions are those of
    /// [`OutputPage::next`].
    async fn read_output(
        &self,
        incarnation: IncarnationId,
        from: u64,
        most_bytes: usize,
    ) -> Result<OutputPage>;

    /// Keeps the end of a console's log.
    async fn put_console(&self, incarnation: IncarnationId, data: Bytes) -> Result<()>;

    /// The end of a console's log, if it was kept.
    async fn console(&self, incarnation: IncarnationId) -> Result<Option<Bytes>>;

    /// Removes an incarnation's logs. No error when there are none.
    async fn remove_logs(&self, incarnation: IncarnationId) -> Result<()>;
}
