//! Reading and trimming logs.

use bytes::Bytes;
use flames_error::Result;
use flames_state::{Key, LogEntry, Position};

use crate::error::{Failure, corrupt};
use crate::http::{Call, Cluster};
use crate::layout::{self, Batch, Layout, segment_of};
use crate::wire::{Answer, Base64, Compare, Number, Operation, Range, RangeAnswer, Transaction};

/// How many keys one listing answers: some 50 KiB.
const LISTED: u64 = 500;
/// How many operations one transaction has at most; etcd takes 128.
const OPERATIONS: usize = 100;
/// About how many bytes of values one request asks for.
const REQUEST_BYTES: usize = 2 * 1024 * 1024;
/// At how many bytes of payloads a page ends before it has as many entries as asked.
const PAGE_BYTES: usize = 8 * 1024 * 1024;

fn keys_of((start, end): (Vec<u8>, Vec<u8>), limit: u64, min_create_revision: u64) -> Operation {
    Operation::Range(Range {
        key: Base64(start),
        range_end: Some(Base64(end)),
        limit: Number(limit),
        keys_only: true,
        // etcd counts in i64; nothing is behind its end.
        min_create_revision: Number(min_create_revision.min(i64::MAX.unsigned_abs())),
        ..Range::default()
    })
}

fn ranges(answers: Vec<Answer>) -> impl Iterator<Item = RangeAnswer> {
    answers.into_iter().map(|answer| answer.response_range.unwrap_or_default())
}

/// A log below one prefix.
pub(crate) struct Log<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) layout: &'a Layout,
    pub(crate) log: &'a Key,
}

impl Log<'_> {
    fn batches(&self, call: Call, listed: RangeAnswer) -> Result<Vec<Batch>, Failure> {
        let batches = listed.kvs.into_iter().map(|found| {
            self.layout.batch_of(self.log, found.key.0, found.create_revision.0).ok_or_else(|| {
                Failure::NotApplied(corrupt(call.operation, "a log has a key of another shape"))
            })
        });
        batches.collect()
    }

    /// At most `limit` entries behind `after`, in order.
    pub(crate) async fn read(
        &self,
        call: Call,
        after: Position,
        limit: usize,
    ) -> Result<Vec<LogEntry>, Failure> {
        let mut batches = Vec::new();
        let mut segment = Some(segment_of(after));
        while let Some(current) = segment {
            segment = self.list(call, current, after, &mut batches).await?;
            let (entries, bytes) = batches
                .iter()
                .fold((0, 0), |(entries, bytes), batch| (entries + batch.entries, bytes + batch.bytes));
            // The first batch may lie behind the position in part.
            if entries >= limit + 64 || bytes >= PAGE_BYTES {
                break;
            }
        }
        self.fetch(call, &batches, after, limit).await
    }

    /// Adds the batches of a segment that lie behind `after`, and those of the segments that follow as far as one answer goes, in order.
    /// Answers the segment to go on with.
    ///
    /// Both are read at one revision, so that what follows is complete where a segment follows it: the segment key had moved on.
    async fn list(
        &self,
        call: Call,
        segment: u64,
        after: Position,
        batches: &mut Vec<Batch>,
    ) -> Result<Option<u64>, Failure> {
        let (created, _) = after.as_raw();
        let listing = Transaction {
            success: vec![
                // Zero would leave the condition out: at the start there is nothing to leave out.
                keys_of(self.layout.log_in(self.log, segment), 0, created),
                keys_of(self.layout.log_from(self.log, segment.saturating_add(1)), LISTED, 0),
            ],
            ..Transaction::default()
        };
        let mut answers = ranges(self.cluster.transact(call, &listing).await?.responses);
        let own = self.batches(call, answers.next().unwrap_or_default())?;
        let following = answers.next().unwrap_or_default();
        let more = following.more;
        let mut following = self.batches(call, following)?;
        let next = following.last().filter(|_| more).map(|last| last.segment);
        following.retain(|batch| Some(batch.segment) != next);
        let mut found: Vec<Batch> = own.into_iter().chain(following).collect();
        found.retain(|batch| batch.created >= created);
        // By segment, and within it by revision: the order of revisions alone.
        found.sort_by_key(|batch| batch.created);
        batches.extend(found);
        Ok(next)
    }

    async fn fetch(
        &self,
        call: Call,
        batches: &[Batch],
        after: Position,
        limit: usize,
    ) -> Result<Vec<LogEntry>, Failure> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let mut rest = batches;
        while !rest.is_empty() && entries.len() < limit && bytes < PAGE_BYTES {
            let (mut count, mut asked_bytes, mut asked_entries) = (0, 0, entries.len());
            for batch in rest.iter().take(OPERATIONS) {
                if count > 0 && (asked_bytes + batch.bytes > REQUEST_BYTES || asked_entries >= limit + 64) {
                    break;
                }
                count += 1;
                asked_bytes += batch.bytes;
                asked_entries += batch.entries;
            }
            let (asked, behind) = rest.split_at(count);
            rest = behind;
            let key = |batch: &Batch| Range { key: Base64(batch.key.clone()), ..Range::default() };
            let reading = Transaction {
                success: asked.iter().map(|batch| Operation::Range(key(batch))).collect(),
                ..Transaction::default()
            };
            let answers = self.cluster.transact(call, &reading).await?.responses;
            for (batch, answer) in asked.iter().zip(ranges(answers)) {
                // Trimmed meanwhile, otherwise.
                let Some(found) = answer.kvs.into_iter().next() else { continue };
                for (place, payload) in self.entries(call, &found.value.0)? {
                    let position = batch.position(place);
                    if position > after && entries.len() < limit && bytes < PAGE_BYTES {
                        bytes += payload.len();
                        entries.push(LogEntry { position, payload: Bytes::copy_from_slice(payload) });
                    }
                }
            }
        }
        Ok(entries)
    }

    fn entries<'v>(&self, call: Call, value: &'v [u8]) -> Result<Vec<(u8, &'v [u8])>, Failure> {
        layout::read(value).ok_or_else(|| {
            let error = corrupt(call.operation, "what was appended to a log is of another shape");
            Failure::NotApplied(error.with_resource("log", self.log.to_string()))
        })
    }

    /// Removes what lies at or before `through`.
    pub(crate) async fn trim(&self, call: Call, through: Position) -> Result<(), Failure> {
        let (created, _) = through.as_raw();
        let (mut start, _) = self.layout.log_from(self.log, 0);
        // A segment's number lies before all that is in it.
        let (_, end) = self.layout.log_in(self.log, created);
        loop {
            let range = Range {
                key: Base64(start),
                range_end: Some(Base64(end.clone())),
                limit: Number(OPERATIONS as u64),
                keys_only: true,
                ..Range::default()
            };
            let listed = self.cluster.range(call, &range).await?;
            let more = listed.more;
            let batches = self.batches(call, listed)?;
            let Some(last) = batches.last() else { return Ok(()) };
            start = [&last.key[..], &[0]].concat();
            let whole = batches.iter().filter(|batch| batch.created < created);
            let removing: Vec<Operation> =
                whole.map(|batch| Operation::Delete { key: Base64(batch.key.clone()) }).collect();
            if !removing.is_empty() {
                self.cluster
                    .transact(call, &Transaction { success: removing, ..Transaction::default() })
                    .await?;
            }
            for batch in batches.iter().filter(|batch| batch.created == created) {
                self.trim_batch(call, batch, through).await?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Removes the first entries of a batch. Its create revision, and so the positions of the others, stay.
    async fn trim_batch(&self, call: Call, batch: &Batch, through: Position) -> Result<(), Failure> {
        loop {
            let range = Range { key: Base64(batch.key.clone()), ..Range::default() };
            let Some(found) = self.cluster.range(call, &range).await?.kvs.into_iter().next() else {
                return Ok(());
            };
            let entries = self.entries(call, &found.value.0)?;
            let kept: Vec<&(u8, &[u8])> =
                entries.iter().filter(|(place, _)| batch.position(*place) > through).collect();
            let key = Base64(batch.key.clone());
            let change = match kept.first() {
                Some(_) if kept.len() == entries.len() => return Ok(()),
                Some((first, _)) => {
                    let payloads: Vec<&[u8]> = kept.iter().map(|(_, payload)| *payload).collect();
                    Operation::Put { key, value: Base64(layout::written(*first, &payloads)) }
                }
                None => Operation::Delete { key },
            };
            let trimming = Transaction {
                compare: vec![Compare::at(batch.key.clone(), found.mod_revision.0)],
                success: vec![change],
                failure: Vec::new(),
            };
            // Otherwise somebody else trimmed it meanwhile.
            if self.cluster.transact(call, &trimming).await?.succeeded {
                return Ok(());
            }
        }
    }
}
