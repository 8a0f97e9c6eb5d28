//! Commits.

use std::collections::BTreeMap;
use std::sync::Arc;

use flames_state::{Check, Commit, Key, Version, Write};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use crate::sql::{Context, Statement, Statements, corrupt};

/// Any commit.
pub(crate) const COMMIT: &str = "SELECT {schema}.commit_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
/// A commit that is one check of a key that is there and one put of the same key, as `commit_1` would apply it, and cheaper. The
/// snapshot is older than the lock here: where another commit came between, `READ COMMITTED` tries the conditions again on the
/// row as that one left it.
pub(crate) const REPLACE: &str = "\
    UPDATE {schema}.entry AS e SET version = ($5::bigint << {transaction_bits}) | pg_current_xact_id()::text::bigint, value = $2 \
    WHERE e.key = $1 AND ($3::bigint = -1 OR e.version = $3::bigint) AND pg_advisory_xact_lock($4) IS NOT NULL RETURNING e.version";
/// A commit that is one put and no check, likewise. The lock is taken before the transaction gets its id.
pub(crate) const PUT: &str = "\
    INSERT INTO {schema}.entry (key, version, value) \
    SELECT $1::bytea, ($4::bigint << {transaction_bits}) | pg_current_xact_id()::text::bigint, $2::bytea \
    FROM (SELECT pg_advisory_xact_lock($3) AS granted OFFSET 0) AS lock WHERE lock.granted IS NOT NULL \
    ON CONFLICT (key) DO UPDATE SET version = excluded.version, value = excluded.value RETURNING version";
/// What a commit is for Postgres: the arguments of `commit_1`.
#[derive(Debug)]
pub(crate) struct CommitArguments<'a> {
    locks: Vec<i64>,
    shared: Vec<bool>,
    check_keys: Vec<&'a [u8]>,
    expected: Vec<i64>,
    put_keys: Vec<&'a [u8]>,
    put_values: Vec<&'a [u8]>,
    /// How many of the puts, which stand first, are of keys that a check says are there.
    replaced: i32,
    delete_keys: Vec<&'a [u8]>,
    log_names: Vec<&'a [u8]>,
    log_payloads: Vec<&'a [u8]>,
}

impl<'a> CommitArguments<'a> {
    pub(crate) fn of(commit: &'a Commit, statements: &Statements) -> Self {
        // Exclusive wins where a key is both checked and written, and where two keys share a lock.
        let mut locks: BTreeMap<i64, bool> = BTreeMap::new();
        for check in &commit.checks {
            locks.insert(statements.lock_number(check.key().as_bytes()), true);
        }
        let is_there = |key: &Key| {
            commit.checks.iter().any(|check| !matches!(check, Check::Absent(_)) && check.key() == key)
        };
        let (mut replacing, mut others, mut delete_keys) = (Vec::new(), Vec::new(), Vec::new());
        for write in &commit.writes {
            locks.insert(statements.lock_number(write.key().as_bytes()), false);
            match write {
                Write::Put(key, value) if is_there(key) => replacing.push((key.as_bytes(), &value[..])),
                Write::Put(key, value) => others.push((key.as_bytes(), &value[..])),
                Write::Delete(key) => delete_keys.push(key.as_bytes()),
            }
        }
        let replaced = i32::try_from(replacing.len()).unwrap_or(0);
        let (put_keys, put_values) = replacing.into_iter().chain(others).unzip();
        Self {
            shared: locks.values().copied().collect(),
            locks: locks.into_keys().collect(),
            check_keys: commit.checks.iter().map(|check| check.key().as_bytes()).collect(),
            expected: commit.checks.iter().map(expected).collect(),
            put_keys,
            put_values,
            replaced,
            delete_keys,
            log_names: commit.appends.iter().map(|append| append.log.as_bytes()).collect(),
            log_payloads: commit.appends.iter().map(|append| &append.payload[..]).collect(),
        }
    }
}

fn expected(check: &Check) -> i64 {
    match check {
        Check::Absent(_) => 0,
        Check::Present(_) => -1,
        // Zero, and what does not fit, was never given as a version: neither was the greatest number.
        Check::At(_, version) => {
            i64::try_from(version.as_raw()).ok().filter(|raw| *raw > 0).unwrap_or(i64::MAX)
        }
    }
}

/// Applies the commit. Answers its version, or the place of the first check found not to hold.
impl Statement for CommitArguments<'_> {
    type Answer = Result<Version, usize>;

    async fn run(&self, connection: &mut PgConnection, context: &Context<'_>) -> sqlx::Result<Self::Answer> {
        let is_one_put = self.put_keys.len() == 1 && self.delete_keys.is_empty() && self.log_names.is_empty();
        let short = match (is_one_put, self.check_keys.len(), self.replaced) {
            (true, 1, 1) => Some(&context.statements.replace),
            (true, 0, _) => Some(&context.statements.put),
            _ => None,
        };
        if let Some(statement) = short {
            let query = sqlx::query_scalar(AssertSqlSafe(Arc::clone(statement)))
                .bind(self.put_keys.first().copied())
                .bind(self.put_values.first().copied());
            let query = self.expected.iter().fold(query, |query, expected| query.bind(expected));
            let query = query.bind(self.locks.first().copied()).bind(context.generation);
            let rows: Vec<i64> = query.fetch_all(connection).await?;
            // No row: the check does not hold.
            return Ok(rows.first().map(|version| Version::from_raw(version.unsigned_abs())).ok_or(1));
        }
        let rows: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(Arc::clone(&context.statements.commit)))
            .bind(context.generation)
            .bind(&self.locks)
            .bind(&self.shared)
            .bind(&self.check_keys)
            .bind(&self.expected)
            .bind(&self.put_keys)
            .bind(&self.put_values)
            .bind(self.replaced)
            .bind(&self.delete_keys)
            .bind(&self.log_names)
            .bind(&self.log_payloads)
            .fetch_all(connection)
            .await?;
        match rows.first() {
            Some(version) if *version > 0 => Ok(Ok(Version::from_raw(version.unsigned_abs()))),
            Some(place) => Ok(Err(usize::try_from(place.unsigned_abs()).unwrap_or(0))),
            None => Err(corrupt("a commit answers no row")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    #[test]
    fn locks_are_taken_in_one_order_each_once_and_exclusively_where_a_key_is_written() {
        let statements = Statements::new("flames");
        let mut commit = Commit::new();
        commit.check(Check::Absent(key("c"))).check(Check::Present(key("a"))).check(Check::Absent(key("b")));
        commit.put(key("a"), "1").delete(key("d")).append(key("log"), "x");
        let arguments = CommitArguments::of(&commit, &statements);
        assert_eq!(arguments.locks.len(), 4);
        assert!(arguments.locks.is_sorted());
        for (name, shared) in [("a", false), ("b", true), ("c", true), ("d", false)] {
            let number = statements.lock_number(name.as_bytes());
            let place = arguments.locks.binary_search(&number).unwrap();
            assert_eq!(arguments.shared[place], shared, "{name}");
        }
    }

    #[test]
    fn a_version_that_was_never_given_is_one_that_no_key_has() {
        let at = |raw| expected(&Check::At(key("a"), Version::from_raw(raw)));
        assert_eq!(at(7), 7);
        assert_eq!(at(0), i64::MAX);
        assert_eq!(at(u64::MAX), i64::MAX);
        assert_eq!(expected(&Check::Absent(key("a"))), 0);
        assert_eq!(expected(&Check::Present(key("a"))), -1);
    }
}
