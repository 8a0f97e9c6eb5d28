//! Where things are in etcd.
//!
//! | key | value |
//! |---|---|
//! | prefix `f` | the layout's number, in decimal digits |
//! | prefix `i` | empty; each store that is opened writes it, and the revision is the store's own number |
//! | prefix `s` | empty; its mod revision is the number of the segment that logs grow in |
//! | prefix `k` key | the value of the key |
//! | prefix `l` length of the name (2 bytes) name, segment (8), store (8), counter (8), entries (1), bytes (4) | what one commit appended to the log |
//!
//! Numbers are written with the highest byte first, so that they are ordered as keys are.

use bytes::Bytes;
use flames_state::{Key, KeyRange, Position};

/// The layout that this version reads and writes.
pub(crate) const LAYOUT: u32 = 1;

const FORMAT: u8 = b'f';
const INSTANCE: u8 = b'i';
const SEGMENT: u8 = b's';
const ENTRY: u8 = b'k';
const LOG: u8 = b'l';
/// What stands behind a log's name and segment in the key of a batch.
const BATCH_TAIL: usize = 8 + 8 + 1 + 4;

/// The keys below one prefix.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    prefix: Vec<u8>,
}

/// What a key in etcd is about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum About {
    Key(Key),
    Log(Key),
    Other,
}

/// What one commit appended to one log, as its key tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) key: Vec<u8>,
    pub(crate) segment: u64,
    /// The revision of the commit.
    pub(crate) created: u64,
    pub(crate) entries: usize,
    pub(crate) bytes: usize,
}

/// The first key behind all that begin so. A prefix here never ends with `0xff` bytes alone.
fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    end
}

impl Layout {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.as_bytes().to_vec() }
    }

    fn with(&self, kind: u8, rest: &[u8]) -> Vec<u8> {
        [&self.prefix, &[kind][..], rest].concat()
    }

    pub(crate) fn everything(&self) -> (Vec<u8>, Vec<u8>) {
        // UTF-8 has no 0xff byte, so there is one behind.
        (self.prefix.clone(), behind(&self.prefix))
    }

    pub(crate) fn format(&self) -> Vec<u8> {
        self.with(FORMAT, &[])
    }

    pub(crate) fn instance(&self) -> Vec<u8> {
        self.with(INSTANCE, &[])
    }

    pub(crate) fn segment(&self) -> Vec<u8> {
        self.with(SEGMENT, &[])
    }

    pub(crate) fn entry(&self, key: &Key) -> Vec<u8> {
        self.with(ENTRY, key.as_bytes())
    }

    /// The key that an entry's key in etcd stands for.
    pub(crate) fn key_of_entry(&self, etcd_key: &[u8]) -> Option<Key> {
        match self.about(etcd_key) {
            About::Key(key) => Some(key),
            About::Log(_) | About::Other => None,
        }
    }

    /// The entries of a range, behind `after`: the first key and the first behind.
    pub(crate) fn entries(&self, range: &KeyRange, after: Option<&Key>) -> (Vec<u8>, Vec<u8>) {
        // The first key behind `after` is the one with a zero byte added.
        let after = after.map(|after| [after.as_bytes(), &[0]].concat());
        let start = after.as_deref().filter(|after| *after > range.start()).unwrap_or(range.start());
        let end = range.end().map_or_else(|| self.with(ENTRY + 1, &[]), |end| self.with(ENTRY, end));
        (self.with(ENTRY, start), end)
    }

    fn log(&self, log: &Key) -> Vec<u8> {
        let length = u16::try_from(log.as_bytes().len()).unwrap_or(u16::MAX).to_be_bytes();
        self.with(LOG, &[&length, log.as_bytes()].concat())
    }

    /// The batches of a log from segment `first` on: the first key and the first behind.
    pub(crate) fn log_from(&self, log: &Key, first: u64) -> (Vec<u8>, Vec<u8>) {
        let log = self.log(log);
        let end = behind(&log);
        ([&log[..], &first.to_be_bytes()].concat(), end)
    }

    /// The batches of a log in one segment.
    pub(crate) fn log_in(&self, log: &Key, segment: u64) -> (Vec<u8>, Vec<u8>) {
        let start = [&self.log(log)[..], &segment.to_be_bytes()].concat();
        let end = behind(&start);
        (start, end)
    }

    /// The key for what one commit appends to a log.
    pub(crate) fn batch(&self, log: &Key, segment: u64, unique: (u64, u64), payloads: &[&Bytes]) -> Vec<u8> {
        let bytes: usize = payloads.iter().map(|payload| payload.len()).sum();
        let tail = [
            &segment.to_be_bytes()[..],
            &unique.0.to_be_bytes(),
            &unique.1.to_be_bytes(),
            // A commit has at most 64 entries and 1 MiB.
            &[u8::try_from(payloads.len()).unwrap_or(u8::MAX)],
            &u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes(),
        ];
        [self.log(log), tail.concat()].concat()
    }

    /// What the key of a batch tells.
    pub(crate) fn batch_of(&self, log: &Key, key: Vec<u8>, created: u64) -> Option<Batch> {
        let tail = key.strip_prefix(&self.log(log)[..])?;
        let (segment, tail) = tail.split_first_chunk()?;
        let tail: &[u8; BATCH_TAIL] = tail.try_into().ok()?;
        let (unique, bytes) = tail.split_last_chunk::<4>()?;
        Some(Batch {
            segment: u64::from_be_bytes(*segment),
            created,
            entries: usize::from(*unique.last()?),
            bytes: usize::try_from(u32::from_be_bytes(*bytes)).ok()?,
            key,
        })
    }

    pub(crate) fn about(&self, etcd_key: &[u8]) -> About {
        let Some((kind, rest)) = etcd_key.strip_prefix(&self.prefix[..]).and_then(<[u8]>::split_first) else {
            return About::Other;
        };
        let key = |bytes: &[u8]| Key::new(bytes).ok();
        match *kind {
            ENTRY => key(rest).map_or(About::Other, About::Key),
            LOG => {
                let name = rest
                    .split_first_chunk()
                    .and_then(|(length, rest)| key(rest.get(..usize::from(u16::from_be_bytes(*length)))?));
                name.map_or(About::Other, About::Log)
            }
            _ => About::Other,
        }
    }
}

/// What a batch holds: the place of its first entry in the commit (a trim may have removed those before), then each entry with its
/// length before it.
pub(crate) fn written(first: u8, payloads: &[&[u8]]) -> Vec<u8> {
    let mut value = vec![first];
    for payload in payloads {
        value.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
        value.extend(*payload);
    }
    value
}

/// The entries of a batch with their places. None when it is of another shape.
pub(crate) fn read(value: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let (first, mut rest) = value.split_first()?;
    let mut entries = Vec::new();
    let mut place = *first;
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk()?;
        let (payload, behind) =
            behind.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        entries.push((place, payload));
        place = place.checked_add(1)?;
        rest = behind;
    }
    Some(entries)
}

impl Batch {
    /// The position of the entry at `place`. Below the revision: how far the segment lies before it, so that a position tells its segment, and
    /// the place.
    pub(crate) fn position(&self, place: u8) -> Position {
        Position::from_raw(self.created, (self.created.saturating_sub(self.segment) << 8) | u64::from(place))
    }
}

/// The segment that a position of ours is in. For one that nobody gave, some segment.
pub(crate) fn segment_of(position: Position) -> u64 {
    let (created, below) = position.as_raw();
    created.saturating_sub(below >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bytes: &[u8]) -> Key {
        Key::new(bytes).unwrap()
    }

    #[test]
    fn a_batch_tells_its_log_segment_and_size_and_a_position_its_segment() {
        let layout = Layout::new("flames/");
        let payloads = [&Bytes::from_static(b"one"), &Bytes::from_static(b"")];
        let etcd_key = layout.batch(&key(b"log"), 40, (7, 9), &payloads);
        assert_eq!(layout.about(&etcd_key), About::Log(key(b"log")));
        let batch = layout.batch_of(&key(b"log"), etcd_key.clone(), 45).unwrap();
        assert_eq!((batch.segment, batch.created, batch.entries, batch.bytes), (40, 45, 2, 3));
        let position = batch.position(1);
        assert_eq!((position.as_raw(), segment_of(position)), ((45, (5 << 8) | 1), 40));
        assert!(batch.position(0) < position);
        let (start, end) = layout.log_in(&key(b"log"), 40);
        assert!(start <= etcd_key && etcd_key < end);
        let (start, end) = layout.log_from(&key(b"log"), 41);
        assert!(etcd_key < start && etcd_key < end);
        assert_eq!(layout.batch_of(&key(b"lo"), etcd_key, 45), None, "another log");
    }

    #[test]
    fn entries_of_a_batch_are_read_as_written() {
        let value = written(3, &[b"one", b"", b"three"]);
        assert_eq!(read(&value).unwrap(), [(3, &b"one"[..]), (4, b""), (5, b"three")]);
        assert_eq!(read(&value[..value.len() - 1]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn a_range_of_entries_holds_no_log_and_nothing_else() {
        let layout = Layout::new("p");
        let (start, end) = layout.entries(&KeyRange::all(), None);
        for inside in [layout.entry(&key(b"\0")), layout.entry(&key(&[0xff; 512]))] {
            assert!(start <= inside && inside < end);
        }
        for outside in [layout.format(), layout.instance(), layout.segment(), layout.log(&key(b"\0"))] {
            assert!(outside < start || end <= outside);
        }
        let (start, _) = layout.entries(&KeyRange::prefix(&key(b"a")), Some(&key(b"ab")));
        assert!(layout.entry(&key(b"ab")) < start && start <= layout.entry(&key(b"ab\0")));
        assert_eq!(layout.key_of_entry(&layout.entry(&key(b"a\xff"))), Some(key(b"a\xff")));
    }
}
