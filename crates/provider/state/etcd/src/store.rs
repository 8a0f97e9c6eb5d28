//! The store.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_clock::{Clock, ClockExt as _};
use flames_error::{Error, ErrorKind, Result};
use flames_state::{
    Check, Commit, Committed, Entry, HintFanout, HintStream, Key, KeyRange, LogEntry, Page, PageRequest,
    Position, StateStore, Version, Write, validate_limit,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::EtcdConfig;
use crate::error::{Failure, OPEN, corrupt};
use crate::hints::Hints;
use crate::http::{Call, Cluster};
use crate::layout::{self, LAYOUT, Layout};
use crate::log::Log;
use crate::wire::{
    Base64, Compare, KeyValue, Number, Operation, Range, RangeAnswer, Transaction, TransactionAnswer,
};

/// After how many revisions logs grow in a new segment: what a reader at the end of a log has the server look through.
const SEGMENT_REVISIONS: u64 = 500;
/// How often a commit is tried that finds the segment moved on: each time another store has just done so.
const ATTEMPTS: u32 = 16;
/// How often a page is begun anew whose revision was compacted meanwhile.
const PAGE_ATTEMPTS: u32 = 3;
/// At how many bytes of keys and values a page ends before it has as many entries as asked.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// How many entries the first request of a page asks for; each that follows asks for four times as many.
const FIRST_PART: usize = 32;

/// A StateStore in etcd. See the crate's docs.
///
/// Dropped, it gives up its connections and its task. What was answered is in the cluster either way.
#[derive(Debug)]
pub struct EtcdStore {
    cluster: Arc<Cluster>,
    layout: Layout,
    operation_deadline: Duration,
    /// This store's own number, and how many batches it made: together no other's.
    instance: u64,
    batches: AtomicU64,
    /// The segment that logs grow in, and the newest revision, as far as known here.
    segment: AtomicU64,
    newest: AtomicU64,
    hints: Arc<Hints>,
    watching: watch::Receiver<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl EtcdStore {
    /// Connects, and makes what the store needs below its prefix. Must be called within a tokio runtime, on which the watch then runs.
    ///
    /// Errors, each with one line that names provider and setting and says what to do: `InvalidInput` for a wrong setting or a prefix of
    /// another program; `NotSupported` for the layout of a newer version of Flames and for a cluster without the `/v3` gateway;
    /// `PermissionDenied` when the cluster asks for a user; `Exhausted` when its space is used up; `Unavailable` when no member answers.
    pub async fn open(config: EtcdConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        let cluster = Arc::new(Cluster::new(&config, config.checked()?, clock));
        let layout = Layout::new(&config.prefix);
        let until = cluster.clock.monotonic().saturating_add(config.operation_deadline);
        let call = Call { operation: OPEN, until };
        ensure_format(&cluster, &layout, call).await?;

        let greeting = Transaction {
            success: vec![
                Operation::Put { key: Base64(layout.instance()), value: Base64::default() },
                Operation::Range(Range { key: Base64(layout.segment()), ..Range::default() }),
            ],
            ..Transaction::default()
        };
        let answer = cluster.transact(call, &greeting).await.map_err(Failure::of_read)?;
        let instance = answer.header.revision.0;
        let segment = segment_in(answer).ok_or_else(|| corrupt(OPEN, "the segment key is missing"))?;

        let hints = Arc::new(Hints {
            cluster: Arc::clone(&cluster),
            layout: layout.clone(),
            fanout: HintFanout::new(),
        });
        let (tried, watching) = watch::channel(false);
        let task = tokio::spawn(Arc::clone(&hints).watch(tried));
        Ok(Self {
            cluster,
            layout,
            operation_deadline: config.operation_deadline,
            instance,
            batches: AtomicU64::new(0),
            segment: AtomicU64::new(segment),
            newest: AtomicU64::new(instance),
            hints,
            watching,
            task: Mutex::new(Some(task)),
        })
    }

    /// Ends the hints; later operations are `Unavailable`.
    pub async fn close(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            // Cancelled is how it is to end.
            let _ = task.await;
        }
        self.cluster.close();
    }

    fn call(&self, operation: &'static str) -> Call {
        let until = self.cluster.clock.monotonic().saturating_add(self.operation_deadline);
        Call { operation, until }
    }

    fn log<'a>(&'a self, log: &'a Key) -> Log<'a> {
        Log { cluster: &self.cluster, layout: &self.layout, log }
    }

    /// Reads once more when the answer was lost.
    async fn range(&self, call: Call, range: &Range) -> Result<RangeAnswer, Failure> {
        match self.cluster.range(call, range).await {
            Err(Failure::Unanswered(_)) if !self.cluster.left(call.until).is_zero() => {
                self.cluster.range(call, range).await
            }
            other => other,
        }
    }

    /// The segment that logs grow in; a new one when it is due. Whether that went well shows when the commit compares it.
    async fn current_segment(&self, call: Call) -> u64 {
        let segment = self.segment.load(Ordering::Relaxed);
        if self.newest.load(Ordering::Relaxed).saturating_sub(segment) < SEGMENT_REVISIONS {
            return segment;
        }
        let key = Base64(self.layout.segment());
        let moving = Transaction {
            compare: vec![Compare::at(key.0.clone(), segment)],
            success: vec![Operation::Put { key: key.clone(), value: Base64::default() }],
            failure: vec![Operation::Range(Range { key, ..Range::default() })],
        };
        match self.cluster.transact(call, &moving).await {
            Ok(answer) if answer.succeeded => self.saw_segment(answer.header.revision.0),
            Ok(answer) => self.saw_segment(segment_in(answer).unwrap_or(segment)),
            Err(_) => segment,
        }
    }

    fn saw_segment(&self, segment: u64) -> u64 {
        self.segment.fetch_max(segment, Ordering::Relaxed).max(segment)
    }

    fn transaction(&self, commit: &Commit, segment: u64) -> Transaction {
        let mut transaction = Transaction::default();
        // First, so that a refused commit learns of it.
        if !commit.appends.is_empty() {
            transaction.compare.push(Compare::at(self.layout.segment(), segment));
            transaction
                .failure
                .push(Operation::Range(Range { key: Base64(self.layout.segment()), ..Range::default() }));
        }
        for check in &commit.checks {
            let key = self.layout.entry(check.key());
            transaction.compare.push(match check {
                Check::Absent(_) => Compare::absent(key),
                Check::Present(_) => Compare::present(key),
                Check::At(_, version) => Compare::at(key, version_to_etcd(*version)),
            });
        }
        for write in &commit.writes {
            let key = Base64(self.layout.entry(write.key()));
            transaction.success.push(match write {
                Write::Put(_, value) => Operation::Put { key, value: Base64(value.to_vec()) },
                Write::Delete(_) => Operation::Delete { key },
            });
        }
        let mut by_log: BTreeMap<&Key, Vec<&Bytes>> = BTreeMap::new();
        for append in &commit.appends {
            by_log.entry(&append.log).or_default().push(&append.payload);
        }
        for (log, payloads) in by_log {
            let unique = (self.instance, self.batches.fetch_add(1, Ordering::Relaxed));
            let key = Base64(self.layout.batch(log, segment, unique, &payloads));
            let payloads: Vec<&[u8]> = payloads.into_iter().map(|payload| &payload[..]).collect();
            transaction.success.push(Operation::Put { key, value: Base64(layout::written(0, &payloads)) });
        }
        transaction
    }

    /// One page, all of it at one revision.
    async fn page(&self, call: Call, range: &KeyRange, page: &PageRequest) -> Result<Page, Failure> {
        let (mut start, end) = self.layout.entries(range, page.after.as_ref());
        let (mut entries, mut bytes, mut revision, mut part) = (Vec::new(), 0, Number(0), FIRST_PART);
        loop {
            let asked = part.min(page.limit - entries.len());
            let request = Range {
                key: Base64(start),
                range_end: Some(Base64(end.clone())),
                limit: Number(asked as u64),
                revision,
                ..Range::default()
            };
            let answer = match self.range(call, &request).await {
                // Small values first, and then very large ones.
                Err(Failure::TooLong(_)) if asked > 1 => {
                    start = request.key.0;
                    part = asked / 8 + 1;
                    continue;
                }
                answer => answer?,
            };
            if revision == Number(0) {
                revision = answer.header.revision;
            }
            for found in answer.kvs {
                bytes += found.key.0.len() + found.value.0.len();
                let entry = self.entry(found).ok_or_else(|| {
                    Failure::NotApplied(corrupt(call.operation, "a key is too long or empty"))
                })?;
                entries.push(entry);
            }
            if !answer.more {
                return Ok(Page { entries, next: None });
            }
            let Some(last) = entries.last().map(|entry: &Entry| entry.key.clone()) else {
                return Err(Failure::NotApplied(corrupt(call.operation, "there is more, and none of it")));
            };
            if entries.len() >= page.limit || bytes >= PAGE_BYTES {
                return Ok(Page { entries, next: Some(last) });
            }
            start = [&self.layout.entry(&last)[..], &[0]].concat();
            part = part.saturating_mul(4);
        }
    }

    fn entry(&self, found: KeyValue) -> Option<Entry> {
        Some(Entry {
            key: self.layout.key_of_entry(&found.key.0)?,
            value: found.value.0.into(),
            version: Version::from_raw(found.mod_revision.0),
        })
    }
}

/// Zero is what an absent key has, and etcd counts in i64: such versions were never given.
fn version_to_etcd(version: Version) -> u64 {
    const NEVER: u64 = i64::MAX.unsigned_abs();
    if version.as_raw() == 0 { NEVER } else { version.as_raw().min(NEVER) }
}

/// The segment in an answer that has the segment key.
fn segment_in(answer: TransactionAnswer) -> Option<u64> {
    let found = answer.responses.into_iter().find_map(|answer| answer.response_range)?;
    found.kvs.first().map(|found| found.mod_revision.0)
}

/// Makes the layout's key where nothing is, and refuses what is not ours.
async fn ensure_format(cluster: &Cluster, layout: &Layout, call: Call) -> Result<()> {
    let read = async || {
        let range = Range { key: Base64(layout.format()), ..Range::default() };
        let found = cluster.range(call, &range).await.map_err(Failure::of_read)?.kvs.into_iter().next();
        Result::Ok(found.map(|found| found.value.0))
    };
    let mut found = read().await?;
    if found.is_none() {
        let (start, end) = layout.everything();
        let any = Range {
            key: Base64(start),
            range_end: Some(Base64(end)),
            limit: Number(1),
            keys_only: true,
            ..Range::default()
        };
        if !cluster.range(call, &any).await.map_err(Failure::of_read)?.kvs.is_empty() {
            // Or another has begun just now.
            found = read().await?;
            if found.is_none() {
                return Err(Error::invalid(
                    OPEN,
                    "prefix",
                    "etcd: keys of another program begin with the setting `prefix`. Nothing was changed. Set another one.",
                ));
            }
        }
    }
    if found.is_none() {
        let making = Transaction {
            compare: vec![Compare::absent(layout.format())],
            success: vec![
                Operation::Put {
                    key: Base64(layout.format()),
                    value: Base64(LAYOUT.to_string().into_bytes()),
                },
                Operation::Put { key: Base64(layout.segment()), value: Base64::default() },
            ],
            failure: Vec::new(),
        };
        cluster.transact(call, &making).await.map_err(Failure::of_read)?;
        found = read().await?;
    }
    let number = found.and_then(|found| String::from_utf8(found).ok()?.parse::<u32>().ok());
    match number {
        Some(LAYOUT) => Ok(()),
        Some(newer) if newer > LAYOUT => {
            let line = format!(
                "etcd: the keys below the setting `prefix` were written by a newer version of Flames (layout {newer}; this version \
                 knows {LAYOUT}). Nothing was changed. Use the newer version, or another prefix."
            );
            Err(Error::new(ErrorKind::NotSupported, OPEN, line.clone())
                .with_field("prefix")
                .with_user_message(line))
        }
        _ => Err(corrupt(OPEN, "the layout's key is of another shape")),
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

#[async_trait]
impl StateStore for EtcdStore {
    fn name(&self) -> &'static str {
        "etcd"
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        let range = Range { key: Base64(self.layout.entry(key)), ..Range::default() };
        let answer = self.range(self.call("state.get"), &range).await.map_err(Failure::of_read)?;
        Ok(answer.kvs.into_iter().next().map(|found| Entry {
            key: key.clone(),
            value: found.value.0.into(),
            version: Version::from_raw(found.mod_revision.0),
        }))
    }

    async fn scan(&self, range: &KeyRange, page: PageRequest) -> Result<Page> {
        const OPERATION: &str = "state.scan";
        validate_limit(OPERATION, page.limit)?;
        let (start, end) = self.layout.entries(range, page.after.as_ref());
        if start >= end {
            return Ok(Page::default());
        }
        let call = self.call(OPERATION);
        for _ in 1..PAGE_ATTEMPTS {
            match self.page(call, range, &page).await {
                Err(Failure::Compacted(_)) => {}
                answer => return answer.map_err(Failure::of_read),
            }
        }
        self.page(call, range, &page).await.map_err(Failure::of_read)
    }

    async fn commit(&self, commit: &Commit) -> Result<Committed> {
        const OPERATION: &str = "state.commit";
        commit.validate()?;
        let call = self.call(OPERATION);
        for _ in 0..ATTEMPTS {
            let segment = match commit.appends.is_empty() {
                true => 0,
                false => self.current_segment(call).await,
            };
            let transaction = self.transaction(commit, segment);
            let answer = self.cluster.transact(call, &transaction).await.map_err(Failure::of_write)?;
            let revision = answer.header.revision.0;
            self.newest.fetch_max(revision, Ordering::Relaxed);
            if answer.succeeded {
                return Ok(Committed { version: Version::from_raw(revision) });
            }
            if !commit.appends.is_empty() {
                let found =
                    segment_in(answer).ok_or_else(|| corrupt(OPERATION, "the segment key is missing"))?;
                self.saw_segment(found);
                if found != segment {
                    continue;
                }
            }
            return Err(Error::new(ErrorKind::Conflict, OPERATION, "a check does not hold"));
        }
        Err(Error::unavailable(OPERATION, "etcd: the segment of the logs moved on each time"))
    }

    async fn read_log(&self, log: &Key, after: Position, limit: usize) -> Result<Vec<LogEntry>> {
        const OPERATION: &str = "state.read_log";
        validate_limit(OPERATION, limit)?;
        let call = self.call(OPERATION);
        let log = self.log(log);
        match log.read(call, after, limit).await {
            Err(Failure::Unanswered(_)) if !self.cluster.left(call.until).is_zero() => {
                log.read(call, after, limit).await
            }
            answer => answer,
        }
        .map_err(Failure::of_read)
    }

    async fn trim_log(&self, log: &Key, through: Position) -> Result<()> {
        self.log(log).trim(self.call("state.trim_log"), through).await.map_err(Failure::of_write)
    }

    async fn changes(&self, prefix: &Key) -> Result<HintStream> {
        let hints = self.hints.fanout.subscribe(prefix);
        let mut watching = self.watching.clone();
        // Whether there are hints depends on the cluster, and nothing depends on hints.
        let _ =
            self.cluster.clock.timeout(self.operation_deadline / 2, watching.wait_for(|tried| *tried)).await;
        Ok(hints)
    }
}
