//! Entries in the order of their keys.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use flames_state::Key;

/// How many bytes of a key's rest are compared without reaching for the key.
const HEAD: usize = 40;

/// A map in the order of its keys as bytes, made for keys as `default/vm/…`: those that are alike up to their second `/` share a map of their
/// own, and in it most comparisons need only the bytes that lie in the map itself. A store is asked a dozen times for each VM that it holds, and
/// each time compares some thirty keys.
#[derive(Debug)]
pub(crate) struct Entries<V> {
    groups: BTreeMap<Box<[u8]>, BTreeMap<Row, V>>,
}

/// The part up to the second `/`, with it; all where there are fewer. No part is the beginning of another, but of a key that is all of its group:
/// so groups in their order, and in each the keys in theirs, are all keys in theirs.
fn group_of(key: &[u8]) -> &[u8] {
    let slashes = key.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| &key[..=at]).nth(1).unwrap_or(key)
}

/// A key within its group.
#[derive(Debug)]
struct Row {
    /// The first bytes behind the group's, as numbers that are ordered as the bytes are; zeros behind the end.
    head: [u64; HEAD / 8],
    key: Key,
}

impl Row {
    fn new(key: &Key) -> Self {
        let rest = &key.as_bytes()[group_of(key.as_bytes()).len()..];
        let mut bytes = [0; HEAD];
        let length = rest.len().min(HEAD);
        bytes[..length].copy_from_slice(&rest[..length]);
        let (words, _) = bytes.as_chunks::<8>();
        let mut head = [0; HEAD / 8];
        for (number, word) in head.iter_mut().zip(words) {
            *number = u64::from_be_bytes(*word);
        }
        Self { head, key: key.clone() }
    }
}

impl Ord for Row {
    /// The order of the keys, between rows of one group: heads that differ do so at the first byte in which the keys do, or where one has ended.
    fn cmp(&self, other: &Self) -> Ordering {
        self.head.cmp(&other.head).then_with(|| self.key.cmp(&other.key))
    }
}

impl PartialOrd for Row {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Row {}

impl<V> Default for Entries<V> {
    fn default() -> Self {
        Self { groups: BTreeMap::new() }
    }
}

impl<V> Entries<V> {
    pub(crate) fn len(&self) -> usize {
        self.groups.values().map(BTreeMap::len).sum()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&V> {
        self.groups.get(group_of(key.as_bytes()))?.get(&Row::new(key))
    }

    /// Sets what a key has, and gives back what it had.
    pub(crate) fn insert(&mut self, key: &Key, value: V) -> Option<V> {
        let group = group_of(key.as_bytes());
        if let Some(rows) = self.groups.get_mut(group) {
            return rows.insert(Row::new(key), value);
        }
        self.groups.insert(group.into(), BTreeMap::from([(Row::new(key), value)]));
        None
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<V> {
        let group = group_of(key.as_bytes());
        let rows = self.groups.get_mut(group)?;
        let value = rows.remove(&Row::new(key));
        if rows.is_empty() {
            self.groups.remove(group);
        }
        value
    }

    /// The entries between the bounds, in order. `upper` is exclusive; none: to the end.
    pub(crate) fn range<'a>(
        &'a self,
        lower: Bound<&[u8]>,
        upper: Option<&'a [u8]>,
    ) -> impl Iterator<Item = (&'a Key, &'a V)> + use<'a, V> {
        let bytes = match lower {
            Bound::Included(bytes) | Bound::Excluded(bytes) => bytes,
            Bound::Unbounded => &[],
        };
        let first: Box<[u8]> = group_of(bytes).into();
        // No bytes are no key, and no bound.
        let row = Key::new(bytes).ok().map(|key| Row::new(&key));
        let is_excluded = matches!(lower, Bound::Excluded(_));
        let groups = self.groups.range::<[u8], _>((Bound::Included(&*first), Bound::Unbounded));
        groups
            .flat_map(move |(group, rows)| {
                let from = match &row {
                    Some(row) if *group == first && is_excluded => Bound::Excluded(row),
                    Some(row) if *group == first => Bound::Included(row),
                    _ => Bound::Unbounded,
                };
                rows.range::<Row, _>((from, Bound::Unbounded))
            })
            .map(|(row, value)| (&row.key, value))
            .take_while(move |(key, _)| upper.is_none_or(|upper| key.as_bytes() < upper))
    }
}

#[cfg(test)]
mod tests {
    use flames_clock::{Random, RandomExt, SeededRandom};

    use super::*;

    /// Short keys of few different bytes, so that many are beginnings of others; some with a long middle, so that rows are alike in their heads.
    fn key(random: &dyn Random) -> Key {
        let mut bytes = Vec::new();
        for _ in 0..=random.below(7) {
            match random.below(12) {
                0 => bytes.extend([b'm'; HEAD]),
                1 => bytes.push(0),
                2 => bytes.push(0xff),
                3..=6 => bytes.push(b'/'),
                more => bytes.push(b'a' + u8::try_from(more % 3).unwrap()),
            }
        }
        Key::new(bytes).unwrap()
    }

    #[test]
    fn entries_are_as_those_of_one_ordered_map_whatever_their_keys() {
        for seed in 0..40 {
            let random = SeededRandom::new(seed);
            let (mut entries, mut model) = (Entries::default(), BTreeMap::new());
            for step in 0..600 {
                let of = key(&random);
                if random.below(3) == 0 {
                    assert_eq!(entries.remove(&of), model.remove(&of), "seed {seed}, step {step}, {of}");
                } else {
                    assert_eq!(entries.insert(&of, step), model.insert(of.clone(), step));
                }
                let asked = key(&random);
                assert_eq!(entries.get(&asked), model.get(&asked), "seed {seed}, step {step}, {asked}");
                assert_eq!(entries.len(), model.len());
                let (low, high) = (key(&random), key(&random));
                for (lower, upper) in [
                    (Bound::Included(low.as_bytes()), Some(high.as_bytes())),
                    (Bound::Excluded(low.as_bytes()), None),
                    (Bound::Included(&[][..]), Some(high.as_bytes())),
                    (Bound::Unbounded, None),
                ] {
                    let is_in = |key: &&Key| {
                        let above = match lower {
                            Bound::Included(bytes) => key.as_bytes() >= bytes,
                            Bound::Excluded(bytes) => key.as_bytes() > bytes,
                            Bound::Unbounded => true,
                        };
                        above && upper.is_none_or(|upper| key.as_bytes() < upper)
                    };
                    let found: Vec<&Key> = entries.range(lower, upper).map(|(key, _)| key).collect();
                    let right: Vec<&Key> = model.keys().filter(is_in).collect();
                    assert_eq!(found, right, "seed {seed}, step {step}, {lower:?} to {upper:?}");
                }
            }
        }
    }

    #[test]
    fn a_group_that_is_empty_is_gone() {
        let mut entries = Entries::default();
        let keys = ["default/vm/1", "default/vm/2", "default/events", "x"].map(|key| Key::new(key).unwrap());
        for key in &keys {
            entries.insert(key, ());
        }
        assert_eq!(entries.groups.len(), 3);
        for key in &keys {
            entries.remove(key);
        }
        assert!(entries.groups.is_empty());
    }
}
