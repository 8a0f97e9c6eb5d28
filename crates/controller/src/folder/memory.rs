//! A host folder in memory: for tests and simulation. It outlives the controllers over it.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use flames_error::Result;
use flames_model::{Assignment, ControllerId, DiskKind, IncarnationId, VmId};

use super::{HostFolder, Kept, OutputEntry, OutputPage};
use crate::record::IncarnationRecord;

/// What an entry costs beyond its bytes: the header that it has in a file.
const ENTRY_OVERHEAD: u64 = super::segments::HEADER as u64;

/// A host folder in memory.
#[derive(Debug)]
pub struct MemoryFolder {
    output_kept: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    identity: Option<ControllerId>,
    records: BTreeMap<IncarnationId, IncarnationRecord>,
    persistent_disks: std::collections::BTreeSet<VmId>,
    logs: BTreeMap<IncarnationId, Log>,
    consoles: BTreeMap<IncarnationId, Bytes>,
}

#[derive(Debug, Default)]
struct Log {
    /// The position of the first entry that is there.
    first: u64,
    next: u64,
    entries: VecDeque<OutputEntry>,
}

impl MemoryFolder {
    /// An empty folder that keeps this many bytes of each incarnation's output.
    pub fn new(output_kept: u64) -> Self {
        Self { output_kept, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that is left, in words: for checkers.
    pub fn residue(&self) -> Vec<String> {
        let inner = self.lock();
        let records = inner.records.keys().map(|id| format!("record {id}"));
        let disks = inner.persistent_disks.iter().map(|id| format!("disk {id}"));
        let logs = inner.logs.keys().map(|id| format!("log {id}"));
        let consoles = inner.consoles.keys().map(|id| format!("console {id}"));
        records.chain(disks).chain(logs).chain(consoles).collect()
    }
}

fn cost(entry: &OutputEntry) -> u64 {
    entry.data.len() as u64 + ENTRY_OVERHEAD
}

#[async_trait]
impl HostFolder for MemoryFolder {
    async fn identity(&self, fresh: ControllerId) -> Result<ControllerId> {
        Ok(*self.lock().identity.get_or_insert(fresh))
    }

    async fn incarnations(&self) -> Result<Vec<Kept>> {
        let inner = self.lock();
        let kept = |(id, record): (&IncarnationId, &IncarnationRecord)| Kept {
            incarnation: *id,
            record: Some(record.clone()),
        };
        Ok(inner.records.iter().map(kept).collect())
    }

    async fn put_record(&self, record: &IncarnationRecord) -> Result<()> {
        let mut inner = self.lock();
        let assignment = &record.assignment;
        inner.records.insert(assignment.incarnation, record.clone());
        // In a simulation nobody makes the file, so it counts as there from when it could be.
        if assignment.spec.disk == DiskKind::Persistent && !record.is_released() {
            inner.persistent_disks.insert(assignment.vm);
        }
        Ok(())
    }

    async fn remove_incarnation(&self, incarnation: IncarnationId) -> Result<()> {
        self.lock().records.remove(&incarnation);
        Ok(())
    }

    fn disk_path(&self, assignment: &Assignment) -> PathBuf {
        match assignment.spec.disk {
            DiskKind::Persistent => format!("/memory/disks/{}.ext4", assignment.vm).into(),
            DiskKind::Ephemeral => {
                format!("/memory/incarnations/{}/disk.ext4", assignment.incarnation).into()
            }
        }
    }

    async fn remove_ephemeral_disk(&self, _incarnation: IncarnationId) -> Result<()> {
        Ok(())
    }

    async fn remove_persistent_disk(&self, vm: VmId) -> Result<()> {
        self.lock().persistent_disks.remove(&vm);
        Ok(())
    }

    async fn persistent_disks(&self) -> Result<Vec<VmId>> {
        Ok(self.lock().persistent_disks.iter().copied().collect())
    }

    async fn append_output(&self, incarnation: IncarnationId, entries: Vec<OutputEntry>) -> Result<()> {
        let mut inner = self.lock();
        let log = inner.logs.entry(incarnation).or_default();
        for entry in entries {
            log.next += cost(&entry);
            log.entries.push_back(entry);
        }
        while log.next - log.first > self.output_kept {
            let Some(oldest) = log.entries.pop_front() else { break };
            log.first += cost(&oldest);
        }
        Ok(())
    }

    async fn output_end(&self, incarnation: IncarnationId) -> Result<u64> {
        let inner = self.lock();
        Ok(inner.logs.get(&incarnation).and_then(|log| log.entries.back()).map_or(0, OutputEntry::end))
    }

    async fn read_output(
        &self,
        incarnation: IncarnationId,
        from: u64,
        most_bytes: usize,
    ) -> Result<OutputPage> {
        let inner = self.lock();
        let Some(log) = inner.logs.get(&incarnation) else {
            return Ok(OutputPage { entries: Vec::new(), next: from });
        };
        let (mut position, mut taken) = (log.first, 0);
        let mut entries = Vec::new();
        for entry in &log.entries {
            let at = position;
            position += cost(entry);
            if at < from {
                continue;
            }
            if taken >= most_bytes {
                position = at;
                break;
            }
            taken += entry.data.len();
            entries.push(entry.clone());
        }
        Ok(OutputPage { entries, next: position.max(from.min(log.next)) })
    }

    async fn put_console(&self, incarnation: IncarnationId, data: Bytes) -> Result<()> {
        self.lock().consoles.insert(incarnation, data);
        Ok(())
    }

    async fn console(&self, incarnation: IncarnationId) -> Result<Option<Bytes>> {
        Ok(self.lock().consoles.get(&incarnation).cloned())
    }

    async fn remove_logs(&self, incarnation: IncarnationId) -> Result<()> {
        let mut inner = self.lock();
        inner.logs.remove(&incarnation);
        inner.consoles.remove(&incarnation);
        Ok(())
    }
}
