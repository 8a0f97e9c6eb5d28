//! Several changes as one.

use flames_state::{Check, Commit, MAX_COMMIT_BYTES, MAX_COMMIT_OPERATIONS};

use crate::Change;

impl Change {
    /// Takes the steps of another change in too, so that both are applied by one commit, or not at all. What both prove of a key is proven
    /// once.
    ///
    /// Answers the other change, and stays as it is, when the two do not go together: one writes what the other writes or has read, or both
    /// and `spare` further operations are more than a commit may be. A change that failed goes with none.
    #[must_use = "what was not taken in is still to be applied"]
    pub fn join(&mut self, other: Self, spare: usize) -> Option<Self> {
        if self.failed.is_some() || other.failed.is_some() || self.crosses(&other) || other.crosses(self) {
            return Some(other);
        }
        let Commit { checks, .. } = &self.commit;
        let (known, new): (Vec<&Check>, Vec<&Check>) =
            other.commit.checks.iter().partition(|check| checks.contains(check));
        let known_bytes: usize = known.iter().map(|check| check.key().as_bytes().len()).sum();
        let operations = self.commit.operations() + other.commit.operations() - known.len();
        let bytes = self.commit.bytes() + other.commit.bytes() - known_bytes;
        if operations + spare > MAX_COMMIT_OPERATIONS || bytes > MAX_COMMIT_BYTES {
            return Some(other);
        }
        let new: Vec<Check> = new.into_iter().cloned().collect();
        self.commit.checks.extend(new);
        self.commit.writes.extend(other.commit.writes);
        self.commit.appends.extend(other.commit.appends);
        self.written.extend(other.written);
        // It would speak of one of them only.
        self.operation_key = None;
        None
    }

    /// Whether this writes what the other writes, or proves otherwise.
    fn crosses(&self, other: &Self) -> bool {
        self.commit.writes.iter().any(|write| {
            let key = write.key();
            other.commit.writes.iter().any(|theirs| theirs.key() == key)
                || other.commit.checks.iter().any(|theirs| theirs.key() == key)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flames_model::{FencingToken, IncarnationId, IncarnationState, Resources, Source, VmId};
    use flames_state::StateStore;
    use flames_state_memory::MemoryStore;
    use uuid::Uuid;

    use std::sync::Arc;

    use super::*;
    use crate::{Records, Versioned};
    use flames_clock::Timestamp;
    use flames_model::{Incarnation, ProjectName};

    fn incarnation(number: u128) -> Incarnation {
        Incarnation {
            id: IncarnationId::from_uuid(Uuid::from_u128(number)),
            project: ProjectName::new("default").unwrap(),
            vm: VmId::from_uuid(Uuid::from_u128(number)),
            run: 1,
            controller: flames_model::ControllerId::from_uuid(Uuid::from_u128(1)),
            resources: Resources::default(),
            address: None,
            token: FencingToken(1),
            source: Source::Boot,
            state: IncarnationState::Scheduled,
            state_before_loss: None,
            sequence: 0,
            reason: None,
            exit: None,
            endpoints: Vec::new(),
            network: Default::default(),
            timeline: BTreeMap::new(),
            created_at: Timestamp::UNIX_EPOCH,
            released_at: None,
            purged_at: None,
        }
    }

    fn insert(number: u128) -> Change {
        let mut change = Change::new();
        change.insert_incarnation(incarnation(number));
        change
    }

    #[test]
    fn changes_of_different_records_become_one_commit_and_what_both_prove_is_proven_once() {
        let required = Versioned {
            record: Arc::new(incarnation(9)),
            version: flames_state::Version::from_raw(3),
            schema: 1,
        };
        let proving = |number| {
            let mut change = insert(number);
            change.require_incarnation(&required);
            change
        };
        let mut change = Change::new();
        assert!(change.join(proving(1), 0).is_none());
        assert!(change.join(proving(2), 0).is_none());
        let (commit, written) = change.into_commit().unwrap();
        assert_eq!((commit.checks.len(), commit.writes.len(), written.len()), (3, 2, 2));
    }

    #[test]
    fn changes_that_touch_one_record_do_not_go_together() {
        let mut change = insert(1);
        assert!(change.join(insert(1), 0).is_some(), "both write it");
        let read = Versioned {
            record: Arc::new(incarnation(1)),
            version: flames_state::Version::from_raw(3),
            schema: 1,
        };
        let mut reading = insert(2);
        reading.require_incarnation(&read);
        let reading = change.join(reading, 0).unwrap();
        let mut change = reading;
        assert!(change.join(insert(1), 0).is_some(), "one writes what the other has read");
    }

    #[tokio::test]
    async fn as_many_changes_go_together_as_a_commit_may_hold_and_no_more() {
        let mut change = Change::new();
        let joined = (1..).take_while(|number| change.join(insert(*number), 0).is_none()).count();
        assert_eq!(joined, MAX_COMMIT_OPERATIONS / 2);
        let mut leaving_room = Change::new();
        let joined_less = (1..).take_while(|number| leaving_room.join(insert(*number), 2).is_none()).count();
        assert_eq!(joined_less, joined - 1);
        let store = Arc::new(MemoryStore::new());
        Records::new(store.clone()).apply(change).await.unwrap();
        let range = flames_state::KeyRange::all();
        let page = store.scan(&range, flames_state::PageRequest::first(100)).await.unwrap();
        assert_eq!(page.entries.len(), joined);
    }

    #[test]
    fn a_change_that_failed_goes_with_none() {
        let newer = Versioned {
            record: Arc::new(incarnation(1)),
            version: flames_state::Version::from_raw(3),
            schema: u32::MAX,
        };
        let mut failed = Change::new();
        failed.update_incarnation(&newer, incarnation(1));
        let failed = insert(2).join(failed, 0).unwrap();
        assert!(failed.into_commit().is_err());
    }
}
