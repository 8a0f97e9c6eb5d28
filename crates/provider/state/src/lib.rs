//! StateStore: the source of truth, and the only one, as an interface.
//!
//! A StateStore is a map from byte keys to byte values with versions, and a set of append-only logs. It is small on purpose:
//! an adapter for a new database is a day's work, and everything typed lives above it in `flames-records`.
//!
//! Guarantees, each proven by cases of `flames-state-conformance` (named behind each method):
//!
//! * Commits are atomic over many keys and logs, and serializable: a commit's checks hold at the instant of its writes.
//! * Reads are linearizable: whoever starts to read after a commit returned sees it. Reads and commits of concurrent clients together
//!   have the history of some client after another (`concurrent_histories_are_linearizable`).
//! * Every call ends within the deadline that its store is configured with, whatever the network and the server do. An error says the
//!   truth: all kinds but `OutcomeUnknown` promise that nothing was changed, now or later. A store that was cut off works again by
//!   itself once it can.
//! * A [`Version`] is opaque and never given twice for the same key, not even after a delete.
//! * Once a reader of a log has seen position p, nothing ever appears at or before p.
//! * Limits are the same everywhere: see the constants here. What passes one is `InvalidInput` and changes nothing.

mod commit;
mod ext;
mod fanout;
mod key;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use flames_error::Result;
use futures::stream::BoxStream;

pub use commit::{Append, Check, Commit, Committed, Write};
pub use ext::{StateStoreExt, Waited};
pub use fanout::HintFanout;
pub use key::{Key, KeyRange};

/// The longest key and the longest log name, in bytes.
pub const MAX_KEY_BYTES: usize = 512;
/// The longest value and the longest log payload, in bytes.
pub const MAX_VALUE_BYTES: usize = 256 * 1024;
/// The most operations (checks, writes and appends together) of one commit.
pub const MAX_COMMIT_OPERATIONS: usize = 64;
/// The most bytes (keys, log names, values and payloads together) of one commit.
pub const MAX_COMMIT_BYTES: usize = 1024 * 1024;
/// The most entries of one page.
pub const MAX_PAGE: usize = 1_000;

/// When a key was last written. Opaque: compare for equality only. Never given twice for one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(u64);

impl Version {
    /// For adapters: the version that the backend gave.
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// For adapters, and for an opaque tag towards clients: the backend's number.
    pub fn as_raw(self) -> u64 {
        self.0
    }
}

/// A place in a log. Positions of one log are ordered; between two there may be gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Position {
    major: u64,
    minor: u64,
}

impl Position {
    /// Before everything in every log.
    pub const START: Position = Position { major: 0, minor: 0 };

    /// For adapters: a position from the backend's order (for instance transaction id and ordinal). `(0, 0)` is [`Position::START`]
    /// and must not be given to an entry.
    pub fn from_raw(major: u64, minor: u64) -> Self {
        Self { major, minor }
    }

    /// For adapters: the two numbers.
    pub fn as_raw(self) -> (u64, u64) {
        (self.major, self.minor)
    }
}

impl std::fmt::Display for Position {
    /// As `major-minor`, the form that clients see as a resume point.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.major, self.minor)
    }
}

impl std::str::FromStr for Position {
    type Err = flames_error::Error;

    /// `InvalidInput` unless the text is two decimal numbers joined by `-`.
    fn from_str(text: &str) -> Result<Self> {
        text.split_once('-')
            .and_then(|(major, minor)| Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? }))
            .ok_or_else(|| {
                flames_error::Error::invalid(
                    "state.position",
                    "position",
                    "A log position is two numbers joined by `-`.",
                )
            })
    }
}

/// A key with its value, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Bytes,
    /// When it was last written.
    pub version: Version,
}

/// Which part of a range to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// Start behind this key; none: at the range's start.
    pub after: Option<Key>,
    /// At most this many entries: 1 to [`MAX_PAGE`].
    pub limit: usize,
}

impl PageRequest {
    /// The first page.
    pub fn first(limit: usize) -> Self {
        Self { after: None, limit }
    }
}

/// `InvalidInput` unless the limit is 1 to [`MAX_PAGE`]. Every adapter calls it before it scans or reads a log.
pub fn validate_limit(operation: &'static str, limit: usize) -> Result<()> {
    if (1..=MAX_PAGE).contains(&limit) {
        return Ok(());
    }
    Err(flames_error::Error::invalid(operation, "limit", "A page has 1 to 1,000 entries.")
        .with_context("limit", limit))
}

/// One page of a scan, in ascending key order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// The entries: one consistent cut of the store.
    pub entries: Vec<Entry>,
    /// The key to continue behind; none when the range is read to its end.
    pub next: Option<Key>,
}

/// An entry of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its place.
    pub position: Position,
    /// What was appended.
    pub payload: Bytes,
}

/// A hint that something may have changed. It says nothing certain: read to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// This key was probably written or deleted, or this log (the key is its name) appended to.
    Changed(Key),
    /// Hints were lost; anything under the prefix may have changed.
    Lost,
}

/// Hints, until dropped. The stream may end when the backend goes away: subscribe again.
pub type HintStream = BoxStream<'static, Hint>;

/// The source of truth. See the crate's docs for the guarantees.
///
/// Reads are cancel-safe. A dropped [`StateStore::commit`] may or may not be applied, as with `OutcomeUnknown`.
#[async_trait]
pub trait StateStore: Debug + Send + Sync + 'static {
    /// The adapter's name (`memory`, `sqlite`).
    ///
    /// Cases: `a_store_names_its_adapter`.
    fn name(&self) -> &'static str;

    /// The entry at `key`, or none.
    ///
    /// Errors: `Corrupt`; `Unavailable`; `Exhausted` when every connection is in use.
    ///
    /// Cases: `what_was_committed_is_read`, `a_reader_sees_what_was_committed_before_it_began`, `an_absent_key_reads_as_none`, `an_empty_value_is_a_value`,
    /// `keys_of_every_byte_are_keys`, `the_largest_value_is_kept_whole`, `a_dropped_read_does_not_mix_up_the_next_answer`,
    /// `concurrent_histories_are_linearizable`, `histories_under_faults_are_linearizable`,
    /// `a_read_through_faults_is_whole_or_refused`, `a_server_that_does_not_answer_is_told_within_the_deadline`,
    /// `a_store_works_again_once_its_network_does`, `a_pool_that_is_used_up_is_told_within_the_deadline`,
    /// `random_operations_agree_with_a_reference_model`.
    async fn get(&self, key: &Key) -> Result<Option<Entry>>;

    /// One page of the entries in `range`, ascending.
    ///
    /// One page is one consistent cut; several pages are not, but a key that is present throughout appears exactly once. A page
    /// may be shorter than asked though more follows: [`Page::next`] tells.
    ///
    /// Errors: `InvalidInput` when the limit is not 1 to [`MAX_PAGE`]; `Corrupt`; `Unavailable`; `Exhausted` when every connection is
    /// in use.
    ///
    /// Cases: `a_scan_is_ordered_and_bounded_by_its_range`, `pages_meet_without_skip_or_repeat`,
    /// `a_page_that_ends_on_the_last_key_says_so`, `a_scan_while_writing_neither_skips_nor_repeats`,
    /// `one_page_is_one_consistent_cut`, `a_page_limit_out_of_range_is_refused`,
    /// `ten_thousand_keys_under_one_prefix_are_read_once_each`, `a_read_through_faults_is_whole_or_refused`,
    /// `concurrent_histories_are_linearizable`, `random_operations_agree_with_a_reference_model`.
    async fn scan(&self, range: &KeyRange, page: PageRequest) -> Result<Page>;

    /// Applies a commit whole, if all its checks hold at that instant; otherwise nothing.
    ///
    /// A write without a check is unconditional. Deleting an absent key is no error. All keys written get the same new version.
    ///
    /// Errors: `Conflict` when a check does not hold; `InvalidInput` when a limit is passed, a key is written twice or the commit
    /// is empty; `OutcomeUnknown` when the answer was lost (submit the SAME commit again, then read the key that is unique to
    /// it: see [`StateStoreExt::commit_knowing`]); `Unavailable` when it was certainly not applied; `Exhausted` when there is no
    /// room, or nothing left to commit with (every connection is in use, too many commits wait), and it was not applied either.
    ///
    /// Cases: `a_commit_is_all_or_nothing`, `a_failed_check_changes_nothing`, `absent_present_and_at_mean_what_they_say`,
    /// `a_version_is_never_given_twice_for_a_key`, `concurrent_increments_are_all_counted`, `write_skew_is_refused`,
    /// `an_unconditional_write_overwrites`, `a_commit_that_passes_a_limit_is_refused`, `a_key_written_twice_is_refused`,
    /// `an_empty_commit_is_refused`, `deleting_what_is_absent_is_no_error`,
    /// `every_key_of_a_commit_gets_its_version`, `a_commit_at_its_limits_is_taken`,
    /// `of_two_who_create_a_key_one_succeeds`, `a_long_random_history_agrees_with_a_plain_map`,
    /// `random_operations_agree_with_a_reference_model`, `no_update_of_32_writers_is_lost`,
    /// `a_commit_that_meets_every_limit_at_once_is_taken`, `a_dropped_commit_is_applied_whole_or_not_at_all`,
    /// `concurrent_histories_are_linearizable`, `a_clock_turned_back_changes_nothing`.
    ///
    /// What is told of a commit whose server or network failed:
    ///
    /// Cases: `a_commit_cut_at_any_byte_is_told_truthfully`,
    /// `an_answer_that_never_comes_is_an_unknown_outcome`, `the_same_commit_again_tells_what_became_of_it`,
    /// `no_commit_reports_success_for_what_is_not_there`, `an_error_that_is_definite_changed_nothing`,
    /// `histories_under_faults_are_linearizable`, `a_server_that_does_not_answer_is_told_within_the_deadline`,
    /// `a_store_works_again_once_its_network_does`, `a_pool_that_is_used_up_is_told_within_the_deadline`.
    ///
    /// In a durable store, what was committed outlives the process and the server:
    ///
    /// Cases: `what_was_committed_survives_a_reopen`,
    /// `a_version_is_not_given_again_after_a_reopen`, `what_was_answered_survives_a_kill_under_load`.
    async fn commit(&self, commit: &Commit) -> Result<Committed>;

    /// At most `limit` (1 to [`MAX_PAGE`]) entries of `log` behind `after`, in order; fewer though more follow when an adapter bounds
    /// the bytes of an answer. Empty only when there are none (yet).
    ///
    /// Errors: `InvalidInput` when the limit is out of range; `Corrupt`; `Unavailable`; `Exhausted` when every connection is in use.
    ///
    /// Cases: `a_log_reads_back_in_order`, `appends_commit_with_their_writes_or_not_at_all`,
    /// `logs_are_apart`, `nothing_appears_behind_a_position_already_seen`, `a_slow_commit_never_appends_behind_what_was_read`,
    /// `a_log_is_read_across_a_long_gap`, `a_log_page_limit_out_of_range_is_refused`, `a_log_goes_on_behind_its_end_after_a_reopen`,
    /// `a_log_goes_on_in_order_across_a_kill`, `a_clock_turned_back_changes_nothing`, `a_read_through_faults_is_whole_or_refused`,
    /// `random_operations_agree_with_a_reference_model`.
    async fn read_log(&self, log: &Key, after: Position, limit: usize) -> Result<Vec<LogEntry>>;

    /// Removes entries of `log` up to and including `through`. No error when there are none.
    ///
    /// Errors: `Unavailable`; `OutcomeUnknown`; `Exhausted`; `Corrupt`.
    ///
    /// Cases: `a_trimmed_log_keeps_what_lies_behind`, `a_trimmed_log_never_gives_a_position_again`,
    /// `a_log_goes_on_behind_its_end_after_a_reopen`, `random_operations_agree_with_a_reference_model`.
    async fn trim_log(&self, log: &Key, through: Position) -> Result<()>;

    /// Hints about keys and logs whose name begins with `prefix`, from now on. Lossy: nothing may depend on a hint arriving.
    ///
    /// Subscribed when the call returns: a commit that starts afterwards is usually hinted. A subscriber that does not read holds up
    /// nobody. When hints may have been lost together with a connection, the subscriber is told [`Hint::Lost`], or the stream ends.
    ///
    /// Errors: `Unavailable`; `Exhausted` when every connection is in use.
    ///
    /// Cases: `a_change_is_hinted`, `hints_are_only_for_the_prefix`, `a_subscriber_that_never_reads_holds_up_nobody`,
    /// `hints_that_were_cut_off_are_made_up_for`.
    async fn changes(&self, prefix: &Key) -> Result<HintStream>;
}

#[async_trait]
impl<S: StateStore + ?Sized> StateStore for Arc<S> {
    fn name(&self) -> &'static str {
        (**self).name()
    }
    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        (**self).get(key).await
    }
    async fn scan(&self, range: &KeyRange, page: PageRequest) -> Result<Page> {
        (**self).scan(range, page).await
    }
    async fn commit(&self, commit: &Commit) -> Result<Committed> {
        (**self).commit(commit).await
    }
    async fn read_log(&self, log: &Key, after: Position, limit: usize) -> Result<Vec<LogEntry>> {
        (**self).read_log(log, after, limit).await
    }
    async fn trim_log(&self, log: &Key, through: Position) -> Result<()> {
        (**self).trim_log(log, through).await
    }
    async fn changes(&self, prefix: &Key) -> Result<HintStream> {
        (**self).changes(prefix).await
    }
}
