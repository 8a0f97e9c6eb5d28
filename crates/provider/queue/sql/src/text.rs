//! The schema and the statements, once for both databases.
//!
//! A template is written in what SQLite and Postgres share; the few words in which they differ stand in braces and are put in when a
//! queue is opened. Parameters are `$1`, `$2`, …; all data is bound, never put into a text.

/// The number of the schema that this version reads and writes.
pub(crate) const SCHEMA_VERSION: i64 = 1;

/// The values of `job.state`, as the templates write them out: a partial index is used only where its condition stands literally.
///
/// * 0: ready, since `ready_at`
/// * 1: delayed until `ready_at`
/// * 2: leased to `worker` until `leased_until`; the delivery's number is `deliveries`
/// * 3: parked at `parked_at` for `reason`
///
/// A job whose lease has ended, and a delayed one whose time has come, keeps its state until somebody comes across it ([`PROMOTE_DELAYED`],
/// [`PROMOTE_LEASED`]); every statement judges by the time as well.
///
/// `signal_…` is what was enqueued under a leased job's dedupe key. `enqueues` counts all enqueues that the job stands for, so that 1 tells
/// a new job from a coalesced one. Times are milliseconds since 1970-01-01T00:00:00Z. A job that is done is deleted.
const TABLES: &[&str] = &[
    "CREATE TABLE {meta} (id {integer} PRIMARY KEY CHECK (id = 0), schema_version {integer} NOT NULL, epoch {integer} NOT NULL){strict}",
    "CREATE TABLE {job} (
        id {identity},
        topic {topic} NOT NULL,
        dedupe_key {bytes},
        payload {bytes} NOT NULL,
        priority {small} NOT NULL,
        state {small} NOT NULL,
        ready_at {integer} NOT NULL,
        attempts {integer} NOT NULL DEFAULT 0,
        deliveries {integer} NOT NULL DEFAULT 0,
        enqueues {integer} NOT NULL DEFAULT 1,
        leased_at {integer},
        leased_until {integer},
        worker TEXT,
        signal_payload {bytes},
        signal_at {integer},
        signal_priority {small},
        parked_at {integer},
        reason {bytes}
    ){strict}",
    "CREATE UNIQUE INDEX job_dedupe ON {job} (topic, dedupe_key) WHERE dedupe_key IS NOT NULL",
    // One index for each state, so that what waits, is delayed or parked costs a dequeue nothing.
    "CREATE INDEX job_ready ON {job} (topic, priority DESC, ready_at, id) WHERE state = 0",
    "CREATE INDEX job_delayed ON {job} (topic, ready_at) WHERE state = 1",
    "CREATE INDEX job_leased ON {job} (topic, leased_until) WHERE state = 2",
    "CREATE INDEX job_parked ON {job} (topic, id) WHERE state = 3",
    "CREATE INDEX job_parked_age ON {job} (parked_at) WHERE state = 3",
    "INSERT INTO {meta} (id, schema_version, epoch) VALUES (0, 1, {epoch})",
];

/// Parameters: topic, dedupe key, payload, priority, not before (the least integer: at once).
const ENQUEUE: &str = "INSERT INTO {job} AS job (topic, dedupe_key, payload, priority, ready_at, state) \
    VALUES ($1, $2, $3, $4, {greatest}({now}, CAST($5 AS {integer})), CASE WHEN CAST($5 AS {integer}) > {now} THEN 1 ELSE 0 END) {coalesce}";

/// As [`ENQUEUE`], for many jobs of different dedupe keys: arrays of the same. The rows come back in the order of the arrays.
const ENQUEUE_MANY: &str = "INSERT INTO {job} AS job (topic, dedupe_key, payload, priority, ready_at, state) \
    SELECT topic, dedupe_key, payload, priority, greatest({now}, not_before), CASE WHEN not_before > {now} THEN 1 ELSE 0 END \
    FROM unnest($1::text[], $2::bytea[], $3::bytea[], $4::smallint[], $5::bigint[]) WITH ORDINALITY \
    AS asked(topic, dedupe_key, payload, priority, not_before, place) ORDER BY place {coalesce}";

/// What an enqueue does to the job that has its dedupe key. In order of the cases: leased (a signal is kept until the settlement), parked
/// (ready again, counted anew), leased before and expired (ready since the lease ended), ready or delayed (the earlier time).
const COALESCE: &str = "ON CONFLICT (topic, dedupe_key) WHERE dedupe_key IS NOT NULL DO UPDATE SET \
    payload = CASE WHEN {live} THEN job.payload ELSE excluded.payload END, \
    priority = CASE WHEN {live} THEN job.priority \
        ELSE {greatest}(job.priority, excluded.priority, COALESCE(job.signal_priority, job.priority)) END, \
    ready_at = CASE WHEN {live} THEN job.ready_at WHEN job.state = 3 THEN excluded.ready_at \
        WHEN job.state = 2 THEN job.leased_until ELSE {least}(job.ready_at, excluded.ready_at) END, \
    state = CASE WHEN {live} THEN 2 WHEN job.state = 3 THEN excluded.state WHEN job.state = 1 AND job.ready_at > {now} THEN excluded.state \
        ELSE 0 END, \
    attempts = CASE WHEN job.state = 3 THEN 0 ELSE job.attempts END, \
    enqueues = job.enqueues + 1, \
    leased_at = CASE WHEN {live} THEN job.leased_at END, \
    leased_until = CASE WHEN {live} THEN job.leased_until END, \
    worker = CASE WHEN {live} THEN job.worker END, \
    signal_payload = CASE WHEN {live} THEN excluded.payload END, \
    signal_at = CASE WHEN {live} THEN {least}(COALESCE(job.signal_at, excluded.ready_at), excluded.ready_at) END, \
    signal_priority = CASE WHEN {live} THEN {greatest}(COALESCE(job.signal_priority, excluded.priority), excluded.priority) END, \
    parked_at = NULL, reason = NULL \
    RETURNING id, enqueues";

/// Whether a job of a topic is due and not promoted. Parameter: topic.
const IS_DUE: &str = "EXISTS (SELECT 1 FROM {job} WHERE topic = $1 AND state = 1 AND ready_at <= {now}) \
    OR EXISTS (SELECT 1 FROM {job} WHERE topic = $1 AND state = 2 AND leased_until <= {lease_now})";

/// Makes delayed jobs ready whose time has come. Parameters: topic, how many at most.
const PROMOTE_DELAYED: &str = "WITH picked AS MATERIALIZED (SELECT id FROM {job} WHERE topic = $1 AND state = 1 AND ready_at <= {now} \
    ORDER BY ready_at LIMIT $2 {skip_locked}) \
    UPDATE {job} AS job SET state = 0 FROM picked WHERE job.id = picked.id";

/// Makes jobs ready whose lease has ended, with what was signalled meanwhile. Parameters: topic, how many at most.
const PROMOTE_LEASED: &str = "WITH picked AS MATERIALIZED (SELECT id FROM {job} WHERE topic = $1 AND state = 2 AND leased_until <= {lease_now} \
    ORDER BY leased_until LIMIT $2 {skip_locked}) \
    UPDATE {job} AS job SET state = 0, ready_at = job.leased_until, payload = COALESCE(job.signal_payload, job.payload), \
    priority = {greatest}(job.priority, COALESCE(job.signal_priority, job.priority)), \
    signal_payload = NULL, signal_at = NULL, signal_priority = NULL, leased_at = NULL, leased_until = NULL, worker = NULL \
    FROM picked WHERE job.id = picked.id";

/// Leases ready jobs. Parameters: topic, how many at most, worker, length of the lease. Rows come in no order.
const TAKE: &str = "WITH {due} picked AS MATERIALIZED (SELECT id FROM {job} WHERE topic = $1 AND state = 0 {unless_due} \
    ORDER BY priority DESC, ready_at, id LIMIT $2 {skip_locked}) {taken_begin}\
    UPDATE {job} AS job SET state = 2, attempts = job.attempts + 1, deliveries = job.deliveries + 1, \
    leased_at = {lease_now}, leased_until = {lease_now} + $4, worker = $3 FROM picked WHERE job.id = picked.id \
    RETURNING job.id, job.payload, job.dedupe_key, job.priority, job.attempts, job.deliveries, job.ready_at, job.leased_until{taken_end}";

/// Parameters: job, delivery, length of the lease.
const EXTEND: &str = "UPDATE {job} AS job SET leased_at = {lease_now}, leased_until = {lease_now} + $3 WHERE {held} RETURNING leased_until";

/// Removes a job that is done, unless it was signalled. Parameters: job, delivery.
const FINISH: &str = "DELETE FROM {job} AS job WHERE {held} AND job.signal_at IS NULL RETURNING id";

/// As [`FINISH`] for many, leaving out those that somebody else has locked: it never waits while it holds a lock, so that it cannot be part
/// of a deadlock. Parameters: arrays of the same.
const FINISH_MANY: &str = "WITH asked AS MATERIALIZED (SELECT id, delivery FROM unnest($1::bigint[], $2::bigint[]) AS asked(id, delivery)), \
    picked AS MATERIALIZED (SELECT job.id FROM asked JOIN {job} AS job ON job.id = asked.id AND job.deliveries = asked.delivery \
        WHERE {live} AND job.signal_at IS NULL FOR UPDATE OF job SKIP LOCKED) \
    DELETE FROM {job} AS job USING picked WHERE job.id = picked.id RETURNING job.id";

/// Makes a leased job that was signalled a new one, with what was signalled. Parameters: job, delivery.
const RENEW: &str = "UPDATE {job} AS job SET {renewed}, leased_at = NULL, leased_until = NULL, worker = NULL, \
    signal_payload = NULL, signal_at = NULL, signal_priority = NULL WHERE {held} AND job.signal_at IS NOT NULL RETURNING topic";

/// What a signalled job is once it is settled: what went before is over, and its urgency with it.
const RENEWED: &str = "payload = job.signal_payload, priority = job.signal_priority, attempts = 0, \
    ready_at = {greatest}({now}, job.signal_at), state = CASE WHEN job.signal_at > {now} THEN 1 ELSE 0 END";

/// Gives a job back. A signal is not held up by the back-off of the try before it. Parameters: job, delivery, time of the retry.
const GIVE_BACK: &str = "UPDATE {job} AS job SET payload = COALESCE(job.signal_payload, job.payload), \
    priority = {greatest}(job.priority, COALESCE(job.signal_priority, job.priority)), \
    ready_at = {greatest}({now}, {least}(CAST($3 AS {integer}), COALESCE(job.signal_at, CAST($3 AS {integer})))), \
    state = CASE WHEN {least}(CAST($3 AS {integer}), COALESCE(job.signal_at, CAST($3 AS {integer}))) > {now} THEN 1 ELSE 0 END, \
    leased_at = NULL, leased_until = NULL, worker = NULL, signal_payload = NULL, signal_at = NULL, signal_priority = NULL \
    WHERE {held} RETURNING topic";

/// Sets a job aside, unless it was signalled: that counts as a signal just after. Parameters: job, delivery, reason.
const PARK: &str = "UPDATE {job} AS job SET state = 3, parked_at = {now}, reason = $3, leased_at = NULL, leased_until = NULL, worker = NULL \
    WHERE {held} AND job.signal_at IS NULL RETURNING topic";

/// Parameters: topic, job.
const REQUEUE: &str = "UPDATE {job} AS job SET state = 0, ready_at = {now}, attempts = 0, parked_at = NULL, reason = NULL \
    WHERE job.topic = $1 AND job.id = $2 AND job.state = 3 RETURNING topic";

/// Parameters: topic, behind which job, how many at most.
const PARKED: &str = "SELECT id, payload, dedupe_key, attempts, reason, parked_at FROM {job} \
    WHERE topic = $1 AND state = 3 AND id > $2 ORDER BY id LIMIT $3";

/// Ready, delayed, leased, parked. Parameter: topic.
const STATS: &str = "SELECT \
    (SELECT COUNT(*) FROM {job} WHERE topic = $1 AND state = 0) \
    + (SELECT COUNT(*) FROM {job} WHERE topic = $1 AND state = 1 AND ready_at <= {now}) \
    + (SELECT COUNT(*) FROM {job} WHERE topic = $1 AND state = 2 AND leased_until <= {lease_now}), \
    (SELECT COUNT(*) FROM {job} WHERE topic = $1 AND state = 1 AND ready_at > {now}), \
    (SELECT COUNT(*) FROM {job} WHERE topic = $1 AND state = 2 AND leased_until > {lease_now}), \
    (SELECT COUNT(*) FROM {job} WHERE topic = $1 AND state = 3)";

/// Forgets jobs that were parked long ago. Parameters: how long ago, how many at most.
const FORGET_PARKED: &str = "WITH picked AS MATERIALIZED (SELECT id FROM {job} WHERE state = 3 AND parked_at <= {now} - $1 \
    ORDER BY parked_at LIMIT $2 {skip_locked}) \
    DELETE FROM {job} WHERE id IN (SELECT id FROM picked)";

/// The job is leased, and the lease has not ended.
const LIVE: &str = "(job.state = 2 AND job.leased_until > {lease_now})";
/// The delivery named by the first two parameters holds its lease.
const HELD: &str = "job.id = $1 AND job.deliveries = $2 AND job.state = 2 AND job.leased_until > {lease_now}";

/// The words in which the databases differ.
#[derive(Debug, Clone)]
pub(crate) struct Dialect {
    /// The table's name, with its schema where there is one.
    pub(crate) job: String,
    pub(crate) meta: String,
    /// The time by which delays are judged; none: a parameter behind the others.
    pub(crate) now: Option<&'static str>,
    /// The time by which leases are judged; none: a parameter behind [`Dialect::now`].
    pub(crate) lease_now: Option<&'static str>,
    pub(crate) words: &'static [(&'static str, &'static str)],
}

impl Dialect {
    fn render(&self, template: &str, parameters: usize) -> String {
        let mut text = template.to_owned();
        // What stands in braces may hold braces itself.
        let nested = [("{coalesce}", COALESCE), ("{renewed}", RENEWED), ("{held}", HELD), ("{live}", LIVE)];
        for (name, value) in nested.iter().chain(self.words) {
            text = text.replace(name, value);
        }
        let now = self.now.map_or_else(|| format!("${}", parameters + 1), str::to_owned);
        let lease_now = self.lease_now.map_or_else(|| format!("${}", parameters + 2), str::to_owned);
        text.replace("{due}", "")
            .replace("{unless_due}", "")
            .replace("{taken_begin}", "")
            .replace("{taken_end}", "")
            .replace("{now}", &now)
            .replace("{lease_now}", &lease_now)
            .replace("{job}", &self.job)
            .replace("{meta}", &self.meta)
    }

    /// The statements that make the tables, for a database whose tokens carry `epoch`.
    pub(crate) fn tables(&self, epoch: i64) -> Vec<String> {
        let epoch = epoch.to_string();
        TABLES.iter().map(|template| self.render(template, 0).replace("{epoch}", &epoch)).collect()
    }

    pub(crate) fn statements(&self) -> Statements {
        Statements {
            enqueue: self.render(ENQUEUE, 5),
            enqueue_many: self.render(ENQUEUE_MANY, 5),
            is_due: self.render(&format!("SELECT {IS_DUE}"), 1),
            promote_delayed: self.render(PROMOTE_DELAYED, 2),
            promote_leased: self.render(PROMOTE_LEASED, 2),
            take: self.render(TAKE, 4),
            take_unless_due: self.render(&take_unless_due(), 4),
            take_if_quiet: self.render(&TAKE.replace("{unless_due}", &format!("AND NOT ({IS_DUE})")), 4),
            extend: self.render(EXTEND, 3),
            finish: self.render(FINISH, 2),
            finish_many: self.render(FINISH_MANY, 2),
            renew: self.render(RENEW, 2),
            give_back: self.render(GIVE_BACK, 3),
            park: self.render(PARK, 3),
            requeue: self.render(REQUEUE, 2),
            parked: self.render(PARKED, 3),
            stats: self.render(STATS, 1),
            forget_parked: self.render(FORGET_PARKED, 2),
        }
    }
}

/// [`TAKE`] and [`IS_DUE`] in one round trip: takes nothing when something is due, and answers one row at least, whose last column tells
/// whether it is.
fn take_unless_due() -> String {
    TAKE.replace("{due}", &format!("due AS MATERIALIZED (SELECT ({IS_DUE}) AS found), "))
        .replace("{unless_due}", "AND NOT (SELECT found FROM due)")
        .replace("{taken_begin}", ", taken AS (")
        .replace("{taken_end}", ") SELECT taken.*, due.found FROM due LEFT JOIN taken ON TRUE")
}

/// Every statement, in one database's words.
#[derive(Debug)]
pub(crate) struct Statements {
    pub(crate) enqueue: String,
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(crate) enqueue_many: String,
    #[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
    pub(crate) is_due: String,
    pub(crate) promote_delayed: String,
    pub(crate) promote_leased: String,
    pub(crate) take: String,
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(crate) take_unless_due: String,
    /// As `take`, and nothing when something is due.
    #[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
    pub(crate) take_if_quiet: String,
    pub(crate) extend: String,
    pub(crate) finish: String,
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(crate) finish_many: String,
    pub(crate) renew: String,
    pub(crate) give_back: String,
    pub(crate) park: String,
    pub(crate) requeue: String,
    pub(crate) parked: String,
    pub(crate) stats: String,
    pub(crate) forget_parked: String,
}

/// How many due jobs one statement makes ready.
pub(crate) const PROMOTE_STEP: i64 = 1_000;
/// How many old parked jobs one statement forgets, so that a great number of them holds nobody up.
pub(crate) const FORGET_STEP: i64 = 500;
