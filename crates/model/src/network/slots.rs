//! Which places of an address block are taken.

use serde::{Deserialize, Serialize};

/// How many places one word of the set tells of.
const WORD: u32 = u64::BITS;

/// A set of places in an address block, as bits: as long as the highest place that is taken, since the lowest free one is taken first. A
/// host with 512 VMs has eight words.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AddressSlots(Vec<u64>);

impl AddressSlots {
    /// Whether no place is taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many places are taken.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether this place is taken.
    pub fn contains(&self, slot: u32) -> bool {
        self.word(slot) & Self::bit(slot) != 0
    }

    /// The lowest place below `end` that neither this nor `also` holds.
    pub fn lowest_free(&self, also: &Self, end: u32) -> Option<u32> {
        let most = self.0.len().max(also.0.len());
        let word = |words: &Self, at: usize| words.0.get(at).copied().unwrap_or(0);
        let free = (0..most)
            .map(|at| (at, !(word(self, at) | word(also, at))))
            .find(|(_, free)| *free != 0)
            .map_or((most, u64::MAX), |found| found);
        let slot = u32::try_from(free.0).ok()?.checked_mul(WORD)?.checked_add(free.1.trailing_zeros())?;
        (slot < end).then_some(slot)
    }

    /// Takes a place.
    pub fn insert(&mut self, slot: u32) {
        let at = Self::index(slot);
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        if let Some(word) = self.0.get_mut(at) {
            *word |= Self::bit(slot);
        }
    }

    /// Gives a place back.
    pub fn remove(&mut self, slot: u32) {
        if let Some(word) = self.0.get_mut(Self::index(slot)) {
            *word &= !Self::bit(slot);
        }
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    /// Takes every place that the other holds.
    pub fn insert_all(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, also) in self.0.iter_mut().zip(&other.0) {
            *word |= also;
        }
    }

    fn index(slot: u32) -> usize {
        usize::try_from(slot / WORD).unwrap_or(usize::MAX)
    }

    fn bit(slot: u32) -> u64 {
        1 << (slot % WORD)
    }

    fn word(&self, slot: u32) -> u64 {
        self.0.get(Self::index(slot)).copied().unwrap_or(0)
    }
}

impl FromIterator<u32> for AddressSlots {
    fn from_iter<I: IntoIterator<Item = u32>>(slots: I) -> Self {
        let mut set = Self::default();
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_set_would_hold_and_gives_the_lowest_free_place(
            steps in prop::collection::vec((any::<bool>(), 0..200_u32), 0..200),
            also in prop::collection::btree_set(0..200_u32, 0..60),
            end in 0..260_u32,
        ) {
            let (mut slots, mut model) = (AddressSlots::default(), BTreeSet::new());
            for (insert, slot) in steps {
                if insert {
                    slots.insert(slot);
                    model.insert(slot);
                } else {
                    slots.remove(slot);
                    model.remove(&slot);
                }
                prop_assert_eq!(slots.contains(slot), insert);
            }
            prop_assert_eq!(slots.count() as usize, model.len());
            prop_assert_eq!(&slots, &model.iter().copied().collect::<AddressSlots>());
            let others: AddressSlots = also.iter().copied().collect();
            let lowest = (0..end).find(|slot| !model.contains(slot) && !also.contains(slot));
            prop_assert_eq!(slots.lowest_free(&others, end), lowest);
            slots.insert_all(&others);
            prop_assert_eq!(slots.count() as usize, model.union(&also).count());
        }
    }

    #[test]
    fn an_empty_set_is_written_as_an_empty_list_and_a_large_one_reads_back() {
        assert_eq!(serde_json::to_string(&AddressSlots::default()).unwrap(), "[]");
        let slots: AddressSlots = [0, 63, 64, 511].into_iter().collect();
        let text = serde_json::to_string(&slots).unwrap();
        assert_eq!(serde_json::from_str::<AddressSlots>(&text).unwrap(), slots);
    }
}
