//! The statements, and rows to records.

use bytes::Bytes;
use flames_error::Result;
use flames_state::{Entry, Key, KeyRange, LogEntry, Position, Version};
use futures::TryStreamExt;
use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArguments, SqlitePool, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Row as _, SqliteConnection};

use flames_sqlite::error::not_applied;

use crate::error::corrupt;

/// At how many bytes of keys and values a page ends before it has as many entries as asked.
const PAGE_BYTES: usize = 8 * 1024 * 1024;

/// The sizes in which rows go into one statement: few, so that each statement is prepared once.
const GROUP_SIZES: [usize; 4] = [64, 16, 4, 1];

/// Up to how many statements go to the connection's thread together. Each text is prepared once and kept, so there must not be too many
/// of them: a large batch sends its statements one by one.
const STATEMENTS_TOGETHER: usize = 8;

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

/// Statements that are run in order. They are made of constants, and all data is bound.
struct Script {
    /// Whether all go to the connection's thread at once: for a short commit, the way there and back is most of what a statement costs.
    together: bool,
    parts: Vec<(String, SqliteArguments)>,
}

impl Script {
    /// For so many statements.
    fn of(statements: usize) -> Self {
        Self { together: statements <= STATEMENTS_TOGETHER, parts: Vec::new() }
    }

    /// Adds a statement; answers where its data is bound.
    fn push(&mut self, statement: &str) -> &mut SqliteArguments {
        match self.parts.last_mut().filter(|_| self.together) {
            Some((text, _)) => {
                text.push(';');
                text.push_str(statement);
            }
            None => self.parts.push((statement.to_owned(), SqliteArguments::default())),
        }
        let last = self.parts.len() - 1;
        &mut self.parts[last].1
    }

    /// Adds `before row, row, … after` for all rows, group by group.
    fn push_groups<T>(
        &mut self,
        [before, row, after]: [&str; 3],
        rows: &[T],
        bind: impl Fn(&mut SqliteArguments, &T) -> Result<(), BoxDynError>,
    ) -> sqlx::Result<()> {
        for group in groups(rows) {
            let arguments = self.push(&format!("{before}{}{after}", vec![row; group.len()].join(",")));
            group.iter().try_for_each(|row| bind(arguments, row)).map_err(sqlx::Error::Encode)?;
        }
        Ok(())
    }

    /// Runs all and answers all their rows.
    async fn run(self, connection: &mut SqliteConnection) -> sqlx::Result<Vec<SqliteRow>> {
        let mut rows = Vec::new();
        for (text, arguments) in self.parts {
            let query = sqlx::query_with(AssertSqlSafe(text), arguments);
            rows.extend(query.fetch_all(&mut *connection).await?);
        }
        Ok(rows)
    }
}

/// Begins a transaction that may write, reserves `count` numbers, and looks up which of `keys` are there. Answers the first number, and each key
/// that is there with the number of the commit that wrote it last.
pub(crate) async fn begin(
    connection: &mut SqliteConnection,
    count: usize,
    keys: &[&Key],
) -> sqlx::Result<(u64, Vec<(Vec<u8>, i64)>)> {
    let mut script = Script::of(2 + groups(keys).count());
    script.push("BEGIN IMMEDIATE");
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let arguments = script.push("UPDATE counter SET value = value + ? WHERE id = 0 RETURNING value");
    arguments.add(count).map_err(sqlx::Error::Encode)?;
    let statement = ["SELECT key, version FROM entry WHERE key IN (", "?", ")"];
    script.push_groups(statement, keys, |arguments, key| arguments.add(key.as_bytes().to_vec()))?;
    let mut rows = script.run(connection).await?.into_iter();
    let last: i64 = rows.next().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
    let stored = rows.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<sqlx::Result<_>>()?;
    Ok((u64::try_from(last - count + 1).unwrap_or(0), stored))
}

/// What a transaction changes.
pub(crate) struct Changes<'b> {
    /// Keys that are set to values, each by the commit of that number.
    pub(crate) puts: Vec<(&'b Key, u64, &'b Bytes)>,
    /// Keys that are removed.
    pub(crate) deletes: Vec<&'b Key>,
    /// Log entries: name, position, payload.
    pub(crate) appends: &'b [(&'b Key, Position, &'b Bytes)],
}

/// Writes what a transaction changes.
pub(crate) async fn write(connection: &mut SqliteConnection, changes: &Changes<'_>) -> sqlx::Result<()> {
    let (puts, deletes) = (groups(&changes.puts).count(), groups(&changes.deletes).count());
    let mut script = Script::of(puts + deletes + groups(changes.appends).count());
    let put = [
        "INSERT INTO entry (key, version, value) VALUES ",
        "(?,?,?)",
        " ON CONFLICT (key) DO UPDATE SET version = excluded.version, value = excluded.value",
    ];
    script.push_groups(put, &changes.puts, |arguments, (key, number, value)| {
        arguments.add(key.as_bytes().to_vec())?;
        arguments.add(to_sql(*number))?;
        arguments.add(value.to_vec())
    })?;
    let delete = ["DELETE FROM entry WHERE key IN (", "?", ")"];
    script.push_groups(delete, &changes.deletes, |arguments, key| arguments.add(key.as_bytes().to_vec()))?;
    let append = ["INSERT INTO log (name, major, minor, payload) VALUES ", "(?,?,?,?)", ""];
    script.push_groups(append, changes.appends, |arguments, (log, position, payload)| {
        let (major, minor) = position.as_raw();
        arguments.add(log.as_bytes().to_vec())?;
        arguments.add(to_sql(major))?;
        arguments.add(to_sql(minor))?;
        arguments.add(payload.to_vec())
    })?;
    script.run(connection).await.map(|_| ())
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
