//! Slots: numbers that one host gives to live incarnations, each to one at a time.
//!
//! A slot is a symbolic link in the folder, named after the number, that points at `<cluster>/<incarnation>`. One call makes it, whole and
//! only where none is; one fsync of the folder makes it durable. So there is no moment at which a slot is half taken, and two processes that
//! ignored each other's lock still could not take the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flames_error::{Error, ErrorKind, Result};
use flames_host::files::{create_private, failed, remove_if_there, sync_folder};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::may_die_here;
use crate::name::JailName;

const OPERATION: &str = "jail.slots";
const HALF_MADE: &str = ".new-";
/// How long another process may hold the folder's lock: it holds it for a few system calls.
const LOCK_DEADLINE: Duration = Duration::from_secs(5);

/// Which users the slots stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotRange {
    /// The user, and the group, of slot 0.
    pub first_user: u32,
    /// How many slots there are: the most microVMs on this host at a time.
    pub count: u32,
}

impl SlotRange {
    /// Errors: `InvalidInput` when it is empty, holds users below 1000 (the system's own), or the numbers that stand for nobody
    /// (65534, 65535 and 4294967295).
    pub fn validate(&self) -> Result<()> {
        let invalid = |sentence: &str| Err(Error::invalid(OPERATION, "first_user", sentence));
        let Some(end) = self.first_user.checked_add(self.count) else {
            return invalid("The range of user numbers passes the largest one. Choose a lower first user.");
        };
        if self.count == 0 {
            return Err(Error::invalid(OPERATION, "slots", "There must be at least one slot."));
        }
        if self.first_user < 1000 {
            return invalid("User numbers below 1000 are the system's. Choose a higher first user.");
        }
        if self.first_user <= 65535 && end > 65534 {
            return invalid("User numbers 65534 and 65535 stand for nobody. Choose a range without them.");
        }
        Ok(())
    }

    /// The slot with this number, also when it is outside of the range.
    fn slot(&self, index: u32) -> Slot {
        Slot { index, user: self.first_user.saturating_add(index) }
    }
}

/// A number that no other live incarnation of this host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// From 0 on; what names and addresses that must differ on this host are derived from.
    pub index: u32,
    /// The number of its user and of its group.
    pub user: u32,
}

/// The slots of a host, as one cluster takes them. Every call blocks on the file system; none of them is long.
#[derive(Debug)]
pub struct Slots {
    folder: PathBuf,
    cluster: String,
    range: SlotRange,
    /// The number to try first: what was freed last is given last, so that whatever else still winds down under its name has time.
    next: Mutex<u32>,
}

impl Slots {
    /// Opens the folder, and makes it when it is not there. Clusters that share it share its range.
    ///
    /// Errors: `InvalidInput` for a range that cannot be; `Internal`.
    pub fn open(folder: &Path, cluster: &str, range: SlotRange) -> Result<Self> {
        range.validate()?;
        std::fs::create_dir_all(folder)
            .map_err(|error| failed("the folder of the slots cannot be made", error))?;
        Ok(Self { folder: folder.to_owned(), cluster: cluster.to_owned(), range, next: Mutex::new(0) })
    }

    /// The incarnation's slot: the one that it has, or a free one. No other process is given it from now on; [`Slots::make_durable`] comes
    /// before its use.
    ///
    /// Errors: `Exhausted` when all are taken; `Unavailable` when another process keeps the lock; `Internal`.
    pub fn allocate(&self, name: &JailName) -> Result<Slot> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = self.lock()?;
        let (own, taken) = self.look(name)?;
        let index = match own {
            Some(index) => index,
            None => {
                let order = (*next..self.range.count).chain(0..*next);
                let free = order.into_iter().find(|index| !taken.contains(index));
                let index = free.ok_or_else(|| self.exhausted())?;
                may_die_here!("before a slot is taken");
                self.take(index, name)?;
                *next = (index + 1) % self.range.count;
                index
            }
        };
        may_die_here!("before a slot is told");
        Ok(self.range.slot(index))
    }

    /// What was allocated outlives the host from now on. Outside of the lock, so that many at once share one flush of the disk.
    ///
    /// Errors: `Internal`.
    pub fn make_durable(&self) -> Result<()> {
        may_die_here!("before a slot is durable");
        sync_folder(&self.folder).map_err(|error| failed("a slot cannot be made durable", error))
    }

    /// Makes the slot of one incarnation another's; at no moment is it free. Durable after [`Slots::make_durable`].
    ///
    /// Errors: `Conflict` when it is not the first one's; `Unavailable`, `Internal`.
    pub(crate) fn hand_over(&self, index: u32, from: &JailName, to: &JailName) -> Result<()> {
        let _next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = self.lock()?;
        if self.look(from)?.0 != Some(index) {
            return Err(Error::new(ErrorKind::Conflict, OPERATION, "the slot is another's")
                .with_context("slot", index)
                .with_resource("incarnation", from.as_str()));
        }
        // No number, so that nobody takes it for a slot.
        let half_made = self.folder.join(format!("{HALF_MADE}{index}"));
        let replace = || {
            remove_if_there(&half_made)?;
            std::os::unix::fs::symlink(self.target(to), &half_made)?;
            may_die_here!("before a slot has another owner");
            std::fs::rename(&half_made, self.folder.join(index.to_string()))
        };
        replace().map_err(|error| failed("a slot cannot be handed over", error))
    }

    /// The slot that the incarnation has. Errors: `Unavailable`, `Internal`.
    pub fn of(&self, name: &JailName) -> Result<Option<Slot>> {
        Ok(self.look(name)?.0.map(|index| self.range.slot(index)))
    }

    /// Every slot of this cluster. Errors: `Internal`.
    pub fn all(&self) -> Result<BTreeMap<JailName, Slot>> {
        let own = |(index, owner): (u32, String)| Some((self.own(&owner)?, self.range.slot(index)));
        Ok(self.entries()?.into_iter().filter_map(own).collect())
    }

    /// Gives the incarnation's slot back, durably. No error when it has none: a slot is freed once, and never another's.
    ///
    /// Errors: `Unavailable`, `Internal`.
    pub fn free(&self, name: &JailName) -> Result<()> {
        let _next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = self.lock()?;
        let Some(index) = self.look(name)?.0 else { return Ok(()) };
        may_die_here!("before a slot is freed");
        self.drop_entry(index)?;
        may_die_here!("before a free slot is durable");
        sync_folder(&self.folder).map_err(|error| failed("a slot cannot be freed", error))
    }

    /// Makes this cluster's slots what the incarnations' records say, and frees the others, except those of `keep` (incarnations whose
    /// records cannot be read). To be called before the first [`Slots::allocate`]. Names those whose slots were freed.
    ///
    /// Errors: `Corrupt` when two incarnations have records of one slot; nothing was changed then.
    pub fn rebuild(
        &self,
        records: &BTreeMap<JailName, u32>,
        keep: &BTreeSet<JailName>,
    ) -> Result<Vec<JailName>> {
        let _next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = self.lock()?;
        self.clear_half_made()?;
        let entries = self.entries()?;
        let mut owners: BTreeMap<u32, String> = BTreeMap::new();
        for (index, owner) in &entries {
            if self.own(owner).is_none_or(|name| keep.contains(&name)) {
                owners.insert(*index, owner.clone());
            }
        }
        for (name, index) in records {
            if let Some(other) = owners.insert(*index, self.target(name)) {
                return Err(Error::new(ErrorKind::Corrupt, OPERATION, "two incarnations have one slot")
                    .with_resource("incarnation", name.as_str())
                    .with_context("other", other)
                    .with_context("slot", index));
            }
        }
        let mut freed = Vec::new();
        for (index, owner) in &entries {
            if owners.get(index) == Some(owner) {
                owners.remove(index);
                continue;
            }
            may_die_here!("before a slot without an incarnation is freed");
            self.drop_entry(*index)?;
            freed.extend(self.own(owner).filter(|name| !records.contains_key(name)));
        }
        for name in records.keys() {
            if let Some((index, _)) = owners.iter().find(|(_, owner)| **owner == self.target(name)) {
                may_die_here!("before a lost slot is taken again");
                self.take(*index, name)?;
            }
        }
        sync_folder(&self.folder).map_err(|error| failed("the slots cannot be made durable", error))?;
        Ok(freed)
    }

    /// What a hand-over has left that was cut short. Whoever hands over holds the lock, whatever cluster's.
    fn clear_half_made(&self) -> Result<()> {
        let clear = || {
            for entry in std::fs::read_dir(&self.folder)? {
                let entry = entry?;
                if entry.file_name().to_str().is_some_and(|name| name.starts_with(HALF_MADE)) {
                    remove_if_there(&entry.path())?;
                }
            }
            Ok(())
        };
        clear().map_err(|error| failed("a half made slot cannot be removed", error))
    }

    fn target(&self, name: &JailName) -> String {
        format!("{}/{name}", self.cluster)
    }

    /// The incarnation, when the owner is one of this cluster.
    fn own(&self, owner: &str) -> Option<JailName> {
        let name = owner.strip_prefix(self.cluster.as_str())?.strip_prefix('/')?;
        JailName::new(name).ok()
    }

    fn look(&self, name: &JailName) -> Result<(Option<u32>, BTreeSet<u32>)> {
        let target = self.target(name);
        let entries = self.entries()?;
        let own = entries.iter().find(|(_, owner)| *owner == target).map(|(index, _)| *index);
        Ok((own, entries.into_iter().map(|(index, _)| index).collect()))
    }

    fn entries(&self) -> Result<Vec<(u32, String)>> {
        let read = || -> io::Result<Vec<(u32, String)>> {
            let mut entries = Vec::new();
            for entry in std::fs::read_dir(&self.folder)? {
                let entry = entry?;
                let Some(index) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                    continue;
                };
                match std::fs::read_link(entry.path()) {
                    Ok(owner) => {
                        let owner = String::from_utf8_lossy(owner.as_os_str().as_bytes());
                        entries.push((index, owner.into_owned()));
                    }
                    // Freed meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    // Whatever has a number as its name takes it.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                        entries.push((index, String::new()));
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(entries)
        };
        read().map_err(|error| failed("the slots cannot be read", error))
    }

    fn take(&self, index: u32, name: &JailName) -> Result<()> {
        std::os::unix::fs::symlink(self.target(name), self.folder.join(index.to_string()))
            .map_err(|error| failed("a slot cannot be taken", error))
    }

    fn drop_entry(&self, index: u32) -> Result<()> {
        remove_if_there(&self.folder.join(index.to_string()))
            .map_err(|error| failed("a slot cannot be freed", error))
    }

    fn lock(&self) -> Result<File> {
        let file = create_private(&self.folder.join(".lock"))
            .map_err(|error| failed("the slots cannot be locked", error))?;
        crate::record::lock_within(&file, FlockOperation::NonBlockingLockExclusive, LOCK_DEADLINE)
            .map_err(|error| failed("the slots cannot be locked", error))?
            .then_some(file)
            .ok_or_else(|| Error::unavailable(OPERATION, "another process keeps the lock of the slots"))
    }

    fn exhausted(&self) -> Error {
        let sentence = format!(
            "This host runs {} microVMs, which is the most it is configured for. Stop one, or raise the number of slots in the \
             controller's configuration.",
            self.range.count
        );
        Error::new(ErrorKind::Exhausted, OPERATION, "every slot is taken").with_user_message(sentence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash::killed_at;

    const RANGE: SlotRange = SlotRange { first_user: 200_000, count: 3 };

    fn name(text: &str) -> JailName {
        JailName::new(text).unwrap()
    }

    fn open(folder: &Path) -> Slots {
        Slots::open(folder, "clu", RANGE).unwrap()
    }

    #[test]
    fn no_two_live_incarnations_share_a_slot_and_the_same_one_keeps_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let slots = open(folder.path());
        let first = slots.allocate(&name("a")).unwrap();
        assert_eq!(first, Slot { index: 0, user: 200_000 });
        let second = slots.allocate(&name("b")).unwrap();
        assert_ne!(first.user, second.user);
        assert_eq!(open(folder.path()).allocate(&name("a")).unwrap(), first, "also for another process");
        assert_eq!(slots.of(&name("c")).unwrap(), None);
    }

    #[test]
    fn a_slot_that_is_not_there_any_more_is_told_as_exhausted_and_a_freed_one_is_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let slots = open(folder.path());
        for text in ["a", "b", "c"] {
            slots.allocate(&name(text)).unwrap();
        }
        let error = slots.allocate(&name("d")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        assert!(error.user_message().unwrap().contains("3 microVMs"));
        slots.free(&name("b")).unwrap();
        assert_eq!(slots.allocate(&name("d")).unwrap().index, 1);
        slots.free(&name("b")).unwrap();
        assert_eq!(slots.of(&name("d")).unwrap().unwrap().index, 1, "freed once");
    }

    #[test]
    fn a_freed_slot_is_given_last() {
        let folder = tempfile::tempdir().unwrap();
        let slots = open(folder.path());
        slots.allocate(&name("a")).unwrap();
        slots.free(&name("a")).unwrap();
        assert_eq!(slots.allocate(&name("b")).unwrap().index, 1);
    }

    #[test]
    fn clusters_that_share_a_folder_share_no_slot_and_touch_only_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let ours = open(folder.path());
        let theirs = Slots::open(folder.path(), "clu2", RANGE).unwrap();
        ours.allocate(&name("a")).unwrap();
        let other = theirs.allocate(&name("a")).unwrap();
        assert_eq!(other.index, 1);
        assert_eq!(ours.rebuild(&BTreeMap::new(), &BTreeSet::new()).unwrap(), [name("a")]);
        assert_eq!(theirs.of(&name("a")).unwrap(), Some(other));
        let conflict = ours.rebuild(&BTreeMap::from([(name("x"), 1)]), &BTreeSet::new());
        assert_eq!(conflict.unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn slots_are_rebuilt_from_the_records_when_the_folder_is_lost_or_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let slots = open(folder.path());
        let records = BTreeMap::from([(name("a"), 2), (name("b"), 0)]);
        slots.rebuild(&records, &BTreeSet::new()).unwrap();
        assert_eq!(slots.allocate(&name("a")).unwrap().index, 2);
        slots.free(&name("a")).unwrap();
        slots.free(&name("b")).unwrap();
        for text in ["c", "a", "d"] {
            slots.allocate(&name(text)).unwrap();
        }
        let freed = slots.rebuild(&records, &BTreeSet::from([name("c")])).unwrap_err();
        assert_eq!(freed.kind(), ErrorKind::Corrupt, "c is kept, and has the slot of b");
        let mut freed = slots.rebuild(&records, &BTreeSet::new()).unwrap();
        freed.sort();
        assert_eq!(freed, [name("c"), name("d")]);
        let all: Vec<(JailName, u32)> =
            slots.all().unwrap().into_iter().map(|(name, slot)| (name, slot.index)).collect();
        assert_eq!(all, [(name("a"), 2), (name("b"), 0)]);
        let twice = BTreeMap::from([(name("a"), 1), (name("b"), 1)]);
        assert_eq!(slots.rebuild(&twice, &BTreeSet::new()).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    /// Every operation, killed at each of its steps in turn, and then what a new process finds.
    #[test]
    fn a_process_killed_between_any_two_steps_leaves_every_slot_with_at_most_one_owner() {
        let mut kills = 0;
        for step in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let before = open(folder.path());
            let kept = before.allocate(&name("kept")).unwrap();
            let gone = before.allocate(&name("gone")).unwrap();
            let records = BTreeMap::from([(name("kept"), kept.index)]);
            let done = killed_at(step, || {
                let slots = open(folder.path());
                slots.rebuild(&records, &BTreeSet::new()).unwrap();
                let new = slots.allocate(&name("new")).unwrap();
                slots.make_durable().unwrap();
                slots.free(&name("new")).unwrap();
                new
            });
            let after = open(folder.path());
            after.rebuild(&records, &BTreeSet::new()).unwrap();
            let all = after.all().unwrap();
            assert_eq!(all, BTreeMap::from([(name("kept"), kept)]), "killed at step {step}");
            assert_eq!(after.of(&name("gone")).unwrap(), None);
            let given = [after.allocate(&name("x")).unwrap(), after.allocate(&name("y")).unwrap()];
            assert!(!given.contains(&kept) && given[0] != given[1]);
            assert!(given.contains(&gone));
            if done.is_some() {
                break;
            }
            kills += 1;
        }
        assert!(kills >= 6, "{kills} places to be killed at");
    }

    #[test]
    fn a_range_with_the_systems_users_or_nobody_is_refused() {
        let refuse = |first_user, count| SlotRange { first_user, count }.validate().unwrap_err().kind();
        for (first_user, count) in
            [(0, 1), (999, 10), (65_000, 1000), (65_535, 1), (u32::MAX, 2), (u32::MAX, 1)]
        {
            assert_eq!(refuse(first_user, count), ErrorKind::InvalidInput, "{first_user} {count}");
        }
        assert_eq!(refuse(200_000, 0), ErrorKind::InvalidInput);
        SlotRange { first_user: 65_536, count: 65_536 }.validate().unwrap();
    }

    #[test]
    fn many_at_once_get_a_slot_each() {
        let folder = tempfile::tempdir().unwrap();
        let range = SlotRange { first_user: 300_000, count: 40 };
        let given: BTreeSet<u32> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..40)
                .map(|index| {
                    let folder = folder.path();
                    scope.spawn(move || {
                        let slots = Slots::open(folder, "clu", range).unwrap();
                        slots.allocate(&name(&format!("inc_{index}"))).unwrap().user
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        assert_eq!(given.len(), 40);
    }
}
