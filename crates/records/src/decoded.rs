//! Records that were decoded or written a moment ago, so that a step does not decode again what the step before it wrote.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use flames_state::{Entry, Key, Version};

use crate::codec::{Record, Versioned};

/// How many records are kept, at most. Each VM on its way from its placement to running is about four, and on a busy server hundreds are.
const SLOTS: usize = 4_096;

/// What a commit writes, before its version is known.
pub(crate) struct Written {
    key: Key,
    schema: u32,
    record: Arc<dyn Any + Send + Sync>,
}

impl Written {
    pub(crate) fn new<T: Record>(key: Key, record: Arc<T>) -> Self {
        Self { key, schema: T::SCHEMA, record }
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Never asked whether a record is the newest: the store is, each time. It only spares decoding the bytes of one (key, version), which never
/// change, since no version of a key is given twice. Where a key's place is taken by another key, the older one is forgotten.
pub(crate) struct Decoded {
    slots: Box<[Mutex<Option<Slot>>]>,
}

struct Slot {
    key: Key,
    version: Version,
    schema: u32,
    record: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoded").field("slots", &self.slots.len()).finish()
    }
}

impl Default for Decoded {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| Mutex::new(None)).collect() }
    }
}

impl Decoded {
    fn slot(&self, key: &Key) -> &Mutex<Option<Slot>> {
        // Most keys end with an id, whose last bytes are random, and what they begin with tells two kinds of one id apart: no more is looked
        // at.
        let (_, words) = key.as_bytes().as_rchunks::<8>();
        let end = words.last().map_or(0, |word| u64::from_be_bytes(*word));
        let begin = words.first().map_or(0, |word| u64::from_be_bytes(*word)) ^ key.as_bytes().len() as u64;
        // Multiplicative hashing (Knuth, The Art of Computer Programming 3, 6.4; 2^64 by the golden ratio): the upper bits choose.
        let spread = u128::from((end ^ begin.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        &self.slots[usize::try_from((spread * self.slots.len() as u128) >> 64).unwrap_or(0)]
    }

    /// The record of this entry, when it is known.
    pub(crate) fn get<T: Record>(&self, entry: &Entry) -> Option<Versioned<T>> {
        let (record, schema) = {
            let slot = self.slot(&entry.key).lock().unwrap_or_else(PoisonError::into_inner);
            let known =
                slot.as_ref().filter(|known| known.version == entry.version && known.key == entry.key)?;
            (Arc::clone(&known.record), known.schema)
        };
        let record = record.downcast::<T>().ok()?;
        Some(Versioned { record, version: entry.version, schema })
    }

    /// Keeps what was decoded.
    pub(crate) fn keep<T: Record>(&self, key: &Key, read: &Versioned<T>) {
        self.put(
            key.clone(),
            read.version,
            read.schema,
            Arc::clone(&read.record) as Arc<dyn Any + Send + Sync>,
        );
    }

    /// Keeps what a commit wrote.
    pub(crate) fn keep_written(&self, version: Version, written: Vec<Written>) {
        for Written { key, schema, record } in written {
            self.put(key, version, schema, record);
        }
    }

    fn put(&self, key: Key, version: Version, schema: u32, record: Arc<dyn Any + Send + Sync>) {
        let slot = self.slot(&key);
        let new = Slot { key, version, schema, record };
        let old = slot.lock().unwrap_or_else(PoisonError::into_inner).replace(new);
        // To free it takes longer than anything else here, so not under the lock.
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    use flames_model::{ControllerAllocation, ControllerId, Disk, Resources};

    use super::*;

    fn entry(version: u64) -> Entry {
        Entry {
            key: Key::new("system/allocation/a").unwrap(),
            value: bytes::Bytes::new(),
            version: Version::from_raw(version),
        }
    }

    fn allocation(vcpus: u64) -> ControllerAllocation {
        let controller = ControllerId::from_uuid(uuid::Uuid::from_u128(1));
        let reserved = Resources { vcpus, ..Resources::default() };
        ControllerAllocation { reserved, ..ControllerAllocation::empty(controller) }
    }

    #[test]
    fn what_a_commit_wrote_is_known_at_its_version_and_at_no_other() {
        let decoded = Decoded::default();
        decoded.keep_written(Version::from_raw(7), vec![Written::new(entry(7).key, Arc::new(allocation(3)))]);
        assert_eq!(decoded.get::<ControllerAllocation>(&entry(7)).unwrap().into_record(), allocation(3));
        assert!(decoded.get::<ControllerAllocation>(&entry(8)).is_none());
        assert!(decoded.get::<Disk>(&entry(7)).is_none());
    }

    #[test]
    fn a_controller_and_its_allocation_are_known_together() {
        let decoded = Decoded::default();
        let keys =
            ["system/controller/ctl_0001", "system/allocation/ctl_0001"].map(|key| Key::new(key).unwrap());
        let version = Version::from_raw(7);
        for key in &keys {
            decoded.keep(key, &Versioned { record: Arc::new(allocation(3)), version, schema: 1 });
        }
        for key in keys {
            assert!(decoded.get::<ControllerAllocation>(&Entry { key, ..entry(7) }).is_some());
        }
    }

    #[test]
    fn as_many_records_are_kept_as_there_are_places_and_no_more() {
        let decoded = Decoded::default();
        let key = |number: usize| Key::new(format!("system/allocation/{number}")).unwrap();
        for number in 0..2 * SLOTS {
            let version = Version::from_raw(1);
            let read = Versioned { record: Arc::new(allocation(number as u64)), version, schema: 1 };
            decoded.keep(&key(number), &read);
        }
        let kept = (0..2 * SLOTS).filter(|number| {
            let entry = Entry { key: key(*number), ..entry(1) };
            let known = decoded.get::<ControllerAllocation>(&entry);
            // What is known of a key is what was kept under that key.
            known.is_some_and(|known| *known.record == allocation(*number as u64))
        });
        assert!((SLOTS / 4..=SLOTS).contains(&kept.count()));
    }
}
