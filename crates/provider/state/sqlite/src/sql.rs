//! The statements, and rows to records.

use bytes::Bytes;
use flames_error::Result;
use flames_state::{Entry, Key, KeyRange, LogEntry, Position, Version};
use futures::TryStreamExt;
use sqlx::sqlite::{SqliteArguments, SqlitePool};
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection};

use crate::error::{corrupt, not_applied};

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// At how many bytes of keys and values a page ends before it has as many entries as asked.
const PAGE_BYTES: usize = 8 * 1024 * 1024;

/// The sizes in which rows go into one statement: few, so that each statement is prepared once.
const GROUP_SIZES: [usize; 4] = [64, 16, 4, 1];

/// SQLite counts in i64. No counter of ours reaches its end, so beyond it is behind everything.
pub(crate) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_sql(operation: &'static str, number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| corrupt(operation, "a number is negative"))
}

fn groups<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = GROUP_SIZES.into_iter().find(|size| *size <= rows.len())?;
        let (group, rest) = rows.split_at(size);
        rows = rest;
        Some(group)
    })
}

/// Runs `before row, row, … after` for all rows, group by group.
async fn execute_in_groups<T>(
    connection: &mut SqliteConnection,
    [before, row, after]: [&str; 3],
    rows: &[T],
    bind: impl for<'q> Fn(Query<'q>, &T) -> Query<'q>,
) -> sqlx::Result<()> {
    for group in groups(rows) {
        // Made of constants; all data is bound.
        let statement = format!("{before}{}{after}", vec![row; group.len()].join(","));
        group.iter().fold(sqlx::query(AssertSqlSafe(statement)), &bind).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Reserves `count` numbers and answers the first.
pub(crate) async fn reserve_numbers(connection: &mut SqliteConnection, count: usize) -> sqlx::Result<u64> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let last: i64 = sqlx::query_scalar("UPDATE counter SET value = value + ? WHERE id = 0 RETURNING value")
        .bind(count)
        .fetch_one(connection)
        .await?;
    Ok(u64::try_from(last - count + 1).unwrap_or(0))
}

/// The keys among `keys` that are there, with the number of the commit that wrote them last.
pub(crate) async fn versions(
    connection: &mut SqliteConnection,
    keys: &[&Key],
) -> sqlx::Result<Vec<(Vec<u8>, i64)>> {
    let mut found = Vec::with_capacity(keys.len());
    for group in groups(keys) {
        let marks = vec!["?"; group.len()].join(",");
        let statement = AssertSqlSafe(format!("SELECT key, version FROM entry WHERE key IN ({marks})"));
        let query =
            group.iter().fold(sqlx::query_as(statement), |query, key| query.bind(key.as_bytes().to_vec()));
        found.extend(query.fetch_all(&mut *connection).await?);
    }
    Ok(found)
}

/// Sets keys to values, each written by the commit of that number.
pub(crate) async fn put(connection: &mut SqliteConnection, rows: &[(&Key, u64, &Bytes)]) -> sqlx::Result<()> {
    let statement = [
        "INSERT INTO entry (key, version, value) VALUES ",
        "(?,?,?)",
        " ON CONFLICT (key) DO UPDATE SET version = excluded.version, value = excluded.value",
    ];
    execute_in_groups(connection, statement, rows, |query, (key, number, value)| {
        query.bind(key.as_bytes().to_vec()).bind(to_sql(*number)).bind(value.to_vec())
    })
    .await
}

/// Removes keys.
pub(crate) async fn delete(connection: &mut SqliteConnection, keys: &[&Key]) -> sqlx::Result<()> {
    execute_in_groups(connection, ["DELETE FROM entry WHERE key IN (", "?", ")"], keys, |query, key| {
        query.bind(key.as_bytes().to_vec())
    })
    .await
}

/// Adds log entries: name, position, payload.
pub(crate) async fn append(
    connection: &mut SqliteConnection,
    rows: &[(&Key, Position, &Bytes)],
) -> sqlx::Result<()> {
    let statement = ["INSERT INTO log (name, major, minor, payload) VALUES ", "(?,?,?,?)", ""];
    execute_in_groups(connection, statement, rows, |query, (log, position, payload)| {
        let (major, minor) = position.as_raw();
        query.bind(log.as_bytes().to_vec()).bind(to_sql(major)).bind(to_sql(minor)).bind(payload.to_vec())
    })
    .await
}

/// Removes at most `limit` entries of a log up to and including `through`; answers how many.
pub(crate) async fn trim(
    connection: &mut SqliteConnection,
    log: &Key,
    through: Position,
    limit: u32,
) -> sqlx::Result<u64> {
    let (major, minor) = through.as_raw();
    let statement = "DELETE FROM log WHERE name = ?1 AND (major, minor) IN (SELECT major, minor FROM log \
                     WHERE name = ?1 AND (major, minor) <= (?2, ?3) ORDER BY major, minor LIMIT ?4)";
    let query = sqlx::query(statement).bind(log.as_bytes().to_vec()).bind(to_sql(major)).bind(to_sql(minor));
    Ok(query.bind(limit).execute(connection).await?.rows_affected())
}

/// The entry at a key.
pub(crate) async fn get(readers: &SqlitePool, operation: &'static str, key: &Key) -> Result<Option<Entry>> {
    let row: Option<(i64, Vec<u8>)> = sqlx::query_as("SELECT version, value FROM entry WHERE key = ?")
        .bind(key.as_bytes().to_vec())
        .fetch_optional(readers)
        .await
        .map_err(|error| not_applied(operation, error))?;
    row.map(|(version, value)| {
        Ok(Entry {
            key: key.clone(),
            value: value.into(),
            version: Version::from_raw(from_sql(operation, version)?),
        })
    })
    .transpose()
}

/// Entries of a range behind `after`, ascending, at most `limit` of them, and whether there are more.
pub(crate) async fn scan(
    readers: &SqlitePool,
    operation: &'static str,
    range: &KeyRange,
    after: Option<&Key>,
    limit: usize,
) -> Result<(Vec<Entry>, bool)> {
    let after = after.map(Key::as_bytes).filter(|after| *after >= range.start());
    let statement = match (after, range.end()) {
        (Some(_), Some(_)) => {
            "SELECT key, version, value FROM entry WHERE key > ?1 AND key < ?2 ORDER BY key LIMIT ?3"
        }
        (Some(_), None) => "SELECT key, version, value FROM entry WHERE key > ?1 ORDER BY key LIMIT ?3",
        (None, Some(_)) => {
            "SELECT key, version, value FROM entry WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3"
        }
        (None, None) => "SELECT key, version, value FROM entry WHERE key >= ?1 ORDER BY key LIMIT ?3",
    };
    let mut rows = sqlx::query_as::<_, (Vec<u8>, i64, Vec<u8>)>(statement)
        .bind(after.unwrap_or(range.start()).to_vec())
        .bind(range.end().unwrap_or_default().to_vec())
        .bind(to_sql(limit as u64 + 1))
        .fetch(readers);
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while let Some((key, version, value)) =
        rows.try_next().await.map_err(|error| not_applied(operation, error))?
    {
        if entries.len() == limit || bytes >= PAGE_BYTES {
            return Ok((entries, true));
        }
        bytes += key.len() + value.len();
        let key = Key::new(key)
            .map_err(|error| corrupt(operation, "a key is too long or empty").with_source(error))?;
        let version = Version::from_raw(from_sql(operation, version)?);
        entries.push(Entry { key, value: value.into(), version });
    }
    Ok((entries, false))
}

/// Entries of a log behind `after`, in order, at most `limit` of them.
pub(crate) async fn read_log(
    readers: &SqlitePool,
    operation: &'static str,
    log: &Key,
    after: Position,
    limit: usize,
) -> Result<Vec<LogEntry>> {
    let (major, minor) = after.as_raw();
    let statement = "SELECT major, minor, payload FROM log WHERE name = ? AND (major, minor) > (?, ?) \
                     ORDER BY major, minor LIMIT ?";
    let mut rows = sqlx::query_as::<_, (i64, i64, Vec<u8>)>(statement)
        .bind(log.as_bytes().to_vec())
        .bind(to_sql(major))
        .bind(to_sql(minor))
        .bind(to_sql(limit as u64))
        .fetch(readers);
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while bytes < PAGE_BYTES {
        let Some((major, minor, payload)) =
            rows.try_next().await.map_err(|error| not_applied(operation, error))?
        else {
            break;
        };
        bytes += payload.len();
        let position = Position::from_raw(from_sql(operation, major)?, from_sql(operation, minor)?);
        entries.push(LogEntry { position, payload: payload.into() });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_into_statements_of_few_sizes() {
        let rows: Vec<u32> = (0..87).collect();
        assert_eq!(groups(&rows).map(<[u32]>::len).collect::<Vec<_>>(), [64, 16, 4, 1, 1, 1]);
        assert_eq!(groups(&rows).flatten().copied().collect::<Vec<_>>(), rows);
        assert_eq!(groups::<u32>(&[]).count(), 0);
    }
}
