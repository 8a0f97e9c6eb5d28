//! What both databases check on the way in and make of a row on the way out.

use std::time::Duration;

use flames_clock::Timestamp;
use flames_error::{Error, ErrorKind, Result};
use flames_queue::{
    Job, JobId, Lease, LeaseToken, MAX_BATCH, MAX_LEASE, MAX_REASON_BYTES, MIN_LEASE, ParkedJob, ParkedPage,
    Priority, Topic, TopicStats,
};
use sqlx::{ColumnIndex, Decode, FromRow, Row, Type};

/// Which delivery of which job a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Delivery {
    pub(crate) job: i64,
    /// Counts all deliveries of the job and never starts anew, unlike its attempts.
    pub(crate) number: i64,
}

impl Delivery {
    /// The token of this delivery. The epoch tells it from one of a database that stood here before.
    pub(crate) fn token(self, epoch: i64) -> LeaseToken {
        LeaseToken::from_raw(format!("{:x}.{:x}.{epoch:x}", self.job, self.number))
    }

    /// The delivery that a token of this epoch names; `LeaseLost` for any other text.
    pub(crate) fn of(operation: &'static str, token: &LeaseToken, epoch: i64) -> Result<Self> {
        let mut parts = token.as_raw().split('.').map(|part| i64::from_str_radix(part, 16).ok());
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Some(job)), Some(Some(number)), Some(Some(of)), None) if of == epoch => {
                Ok(Self { job, number })
            }
            _ => Err(lease_lost(operation, token)),
        }
    }
}

pub(crate) fn lease_lost(operation: &'static str, token: &LeaseToken) -> Error {
    // A token may be any text that somebody has handed in: only as much as ours are long.
    let shown = &token.as_raw()[..token.as_raw().floor_char_boundary(64)];
    Error::new(ErrorKind::LeaseLost, operation, "the lease is expired, superseded or settled")
        .with_resource("lease", shown)
}

/// The identity of a job: sixteen digits, so that ids sort as their numbers do.
pub(crate) fn job_id(operation: &'static str, number: i64) -> Result<JobId> {
    JobId::new(format!("{number:016x}")).map_err(|error| error.with_kind(ErrorKind::Corrupt)).and_then(|id| {
        if number > 0 { Ok(id) } else { Err(corrupt(operation, "a job's number is not positive")) }
    })
}

/// The number behind an id given by [`job_id`].
pub(crate) fn job_number(id: &JobId) -> Option<i64> {
    i64::from_str_radix(id.as_str(), 16).ok().filter(|number| format!("{number:016x}") == id.as_str())
}

pub(crate) fn corrupt(operation: &'static str, message: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, operation, message)
}

pub(crate) fn check_lease(operation: &'static str, lease: Duration) -> Result<i64> {
    if (MIN_LEASE..=MAX_LEASE).contains(&lease) {
        return Ok(milliseconds(lease));
    }
    Err(Error::invalid(operation, "lease", "A lease is 100 ms to 24 hours."))
}

pub(crate) fn check_count(operation: &'static str, field: &'static str, count: usize) -> Result<i64> {
    match i64::try_from(count) {
        Ok(rows) if (1..=MAX_BATCH).contains(&count) => Ok(rows),
        _ => Err(Error::invalid(operation, field, "A batch or page has 1 to 256 jobs.")),
    }
}

/// As much of a reason as is kept.
pub(crate) fn kept_reason(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(MAX_REASON_BYTES)]
}

pub(crate) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A time before which nothing may happen, as whole milliseconds, rounded up.
pub(crate) fn not_before(time: Timestamp) -> i64 {
    let whole = time.as_millisecond();
    let rounds_down = Timestamp::from_millisecond(whole).is_ok_and(|floor| floor < time);
    if rounds_down { whole.saturating_add(1) } else { whole }
}

pub(crate) fn timestamp(operation: &'static str, millisecond: i64) -> Result<Timestamp> {
    Timestamp::from_millisecond(millisecond).map_err(|_| corrupt(operation, "a time is out of range"))
}

fn text(operation: &'static str, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| corrupt(operation, "a text is not UTF-8"))
}

fn attempts(count: i64) -> u32 {
    u32::try_from(count.max(0)).unwrap_or(u32::MAX)
}

/// A row of a dequeue.
#[derive(Debug)]
pub(crate) struct TakenRow {
    pub(crate) id: i64,
    pub(crate) payload: Vec<u8>,
    pub(crate) dedupe_key: Option<Vec<u8>>,
    pub(crate) priority: i16,
    pub(crate) attempts: i64,
    pub(crate) deliveries: i64,
    pub(crate) ready_at: i64,
    pub(crate) leased_until: i64,
}

impl<'r, R: Row> FromRow<'r, R> for TakenRow
where
    usize: ColumnIndex<R>,
    i16: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
    Option<Vec<u8>>: Decode<'r, R::Database> + Type<R::Database>,
{
    /// By place, in the order of the statement.
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get(0)?,
            payload: row.try_get(1)?,
            dedupe_key: row.try_get(2)?,
            priority: row.try_get(3)?,
            attempts: row.try_get(4)?,
            deliveries: row.try_get(5)?,
            ready_at: row.try_get(6)?,
            leased_until: row.try_get(7)?,
        })
    }
}

/// The rows of a dequeue as jobs, in the order in which they go out. `expires_at` says when a lease that ends at a row's `leased_until`
/// ends.
pub(crate) fn jobs(
    operation: &'static str,
    topic: &Topic,
    epoch: i64,
    mut rows: Vec<TakenRow>,
    expires_at: impl Fn(i64) -> i64,
) -> Result<Vec<Job>> {
    rows.sort_unstable_by_key(|row| (-row.priority, row.ready_at, row.id));
    let job = |row: TakenRow| {
        let delivery = Delivery { job: row.id, number: row.deliveries };
        Ok(Job {
            id: job_id(operation, row.id)?,
            topic: topic.clone(),
            payload: row.payload.into(),
            dedupe_key: row.dedupe_key.map(|key| text(operation, key)).transpose()?,
            priority: Priority(
                i8::try_from(row.priority).map_err(|_| corrupt(operation, "a priority is out of range"))?,
            ),
            attempt: attempts(row.attempts),
            lease: Lease {
                token: delivery.token(epoch),
                expires_at: timestamp(operation, expires_at(row.leased_until))?,
            },
        })
    };
    rows.into_iter().map(job).collect()
}

/// A row of a page of parked jobs: id, payload, dedupe key, attempts, reason, time.
pub(crate) type ParkedRow = (i64, Vec<u8>, Option<Vec<u8>>, i64, Vec<u8>, i64);

/// A page of at most `limit`, of one more row when there is one.
pub(crate) fn parked_page(operation: &'static str, rows: Vec<ParkedRow>, limit: usize) -> Result<ParkedPage> {
    let more = rows.len() > limit;
    let jobs = rows
        .into_iter()
        .take(limit)
        .map(|(id, payload, dedupe_key, count, reason, parked_at)| {
            Ok(ParkedJob {
                id: job_id(operation, id)?,
                payload: payload.into(),
                dedupe_key: dedupe_key.map(|key| text(operation, key)).transpose()?,
                attempts: attempts(count),
                reason: text(operation, reason)?,
                parked_at: timestamp(operation, parked_at)?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let next = jobs.last().filter(|_| more).map(|job| job.id.clone());
    Ok(ParkedPage { jobs, next })
}

/// Behind which number a page begins.
pub(crate) fn page_start(operation: &'static str, after: Option<&JobId>) -> Result<i64> {
    let unknown =
        || Error::invalid(operation, "after", "A page continues behind an id that this queue gave.");
    after.map_or(Ok(0), |id| job_number(id).ok_or_else(unknown))
}

/// The counts of ready, delayed, leased and parked jobs.
pub(crate) fn stats((ready, delayed, leased, parked): (i64, i64, i64, i64)) -> TopicStats {
    let count = |rows: i64| u64::try_from(rows).unwrap_or(0);
    TopicStats { ready: count(ready), delayed: count(delayed), leased: count(leased), parked: count(parked) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_delivery_and_its_database() {
        let delivery = Delivery { job: 0x1f, number: 2 };
        let token = delivery.token(7);
        assert_eq!(Delivery::of("test", &token, 7).unwrap(), delivery);
        for other in ["", "1f.2", "1f.2.7.", "1f.2.7.1", "1f.2.8", "x.2.7", &"ä".repeat(100)] {
            let error = Delivery::of("test", &LeaseToken::from_raw(other), 7).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LeaseLost, "{other}");
        }
    }

    #[test]
    fn only_ids_of_ours_name_a_job() {
        let id = job_id("test", 0xabc).unwrap();
        assert_eq!((id.as_str(), job_number(&id)), ("0000000000000abc", Some(0xabc)));
        for other in ["abc", "0000000000000ABC", "no-such-job", "+000000000000abc"] {
            assert_eq!(JobId::new(other).ok().as_ref().and_then(job_number), None, "{other}");
        }
    }

    #[test]
    fn a_time_is_never_rounded_to_before_itself() {
        let time = |nanoseconds| Timestamp::from_nanosecond(nanoseconds).unwrap();
        assert_eq!(not_before(time(5_000_000)), 5);
        assert_eq!(not_before(time(5_000_001)), 6);
        assert_eq!(not_before(time(-5_000_001)), -5);
        assert!(not_before(Timestamp::MAX) >= Timestamp::MAX.as_millisecond());
    }
}
