//! Records as tables, for an operator's eyes.

use flames_error::{Error, ErrorKind, Result};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};

use crate::error::{not_applied, sent};
use crate::sql::Statements;

const FIELD: &str = "views";

/// A view over the entries whose keys have one form. Their values must be JSON in UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewDefinition {
    /// The view's name: 1 to 60 of `a` to `z`, `0` to `9` and `_`, not beginning with a digit.
    pub name: String,
    /// The form of the keys: text that stands for itself, `{name}` for one part without `/` or zero byte, which becomes a column of that name, and
    /// `*` at the end for anything. `{project}/vm/{vm}` are the VMs; `system/due/*` is all below that.
    pub keys: String,
    /// The columns from within the values.
    pub columns: Vec<ViewColumn>,
}

/// A column of a [`ViewDefinition`]. Null where the path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewColumn {
    /// The column's name, as a view's. `key`, `version` and `value` are taken.
    pub name: String,
    /// The way to the value, from the outside to the inside; a number leads into a list.
    pub path: Vec<String>,
    /// As what it shows.
    pub kind: ColumnKind,
}

/// As what a column shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ColumnKind {
    /// Text (`text`): a string without its quotes, anything else as JSON.
    #[default]
    Text,
    /// A number (`numeric`). A value that is none fails the query.
    Number,
    /// JSON (`jsonb`).
    Json,
}

/// One view, ready to be made.
#[derive(Debug)]
pub(crate) struct Statement {
    drop_old: String,
    create: Vec<String>,
}

fn invalid(name: &str, sentence: &str) -> Error {
    Error::invalid(FIELD, FIELD, format!("postgres: the view `{name}` cannot be made: {sentence}"))
}

fn is_name(name: &str) -> bool {
    let letters = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    letters && (1..=60).contains(&name.len()) && !name.as_bytes()[0].is_ascii_digit()
}

/// A string constant.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Bytes as a constant.
fn bytes(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("'\\x{digits}'::bytea")
}

/// The statements for these views.
pub(crate) fn statements(definitions: &[ViewDefinition], statements: &Statements) -> Result<Statement> {
    let mut names: Vec<&str> = definitions.iter().map(|definition| definition.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(invalid(twice[0], "the name stands twice."));
    }
    let create =
        definitions.iter().map(|definition| create(definition, statements)).collect::<Result<_>>()?;
    // Every view in the schema is one of these: another program's things make the schema be refused.
    let drop_old = format!(
        "DO $$ DECLARE old record; BEGIN FOR old IN SELECT viewname FROM pg_views WHERE schemaname = {} LOOP \
         EXECUTE format('DROP VIEW %I.%I', {0}, old.viewname); END LOOP; END $$",
        quoted(statements.schema_name())
    );
    Ok(Statement { drop_old, create })
}

fn create(definition: &ViewDefinition, statements: &Statements) -> Result<String> {
    let name = &definition.name;
    if !is_name(name) || ["entry", "log", "lineage", "migration"].contains(&name.as_str()) {
        return Err(invalid(name, "a name is 1 to 60 of a-z, 0-9 and _, and none of the store's tables."));
    }
    let form = KeyForm::read(definition)?;
    let mut taken = vec!["key", "version", "value"];
    let mut columns = String::new();
    for (place, part) in form.parts.iter().enumerate() {
        check_column(name, part, &mut taken)?;
        columns.push_str(&format!(", parts[{}] AS \"{part}\"", place + 1));
    }
    for column in &definition.columns {
        check_column(name, &column.name, &mut taken)?;
        if column.path.is_empty() {
            return Err(invalid(name, "a column needs a path."));
        }
        let path = column.path.iter().map(|step| quoted(step)).collect::<Vec<_>>().join(", ");
        let path = format!("ARRAY[{path}]::text[]");
        let expression = match column.kind {
            ColumnKind::Text => format!("value #>> {path}"),
            ColumnKind::Number => format!("(value #>> {path})::numeric"),
            ColumnKind::Json => format!("value #> {path}"),
        };
        columns.push_str(&format!(", {expression} AS \"{}\"", column.name));
    }
    // The barrier keeps a query's own conditions from being tried on rows whose values are no JSON. Keys are matched in
    // Postgres' escaped form: not every key is text.
    Ok(format!(
        "CREATE VIEW \"{schema}\".\"{name}\" WITH (security_barrier) AS \
         SELECT key{columns}, version, value FROM (\
         SELECT encode(key, 'escape') AS key, regexp_match(encode(key, 'escape'), {pattern}) AS parts, version, \
                convert_from(value, 'UTF8')::jsonb AS value \
         FROM \"{schema}\".entry WHERE {range}encode(key, 'escape') ~ {pattern} OFFSET 0) AS matched",
        schema = statements.schema_name(),
        pattern = quoted(&form.pattern),
        range = form.range,
    ))
}

fn check_column<'a>(view: &str, column: &'a str, taken: &mut Vec<&'a str>) -> Result<()> {
    if !is_name(column) {
        return Err(invalid(view, "a column's name is 1 to 60 of a-z, 0-9 and _."));
    }
    if taken.contains(&column) {
        return Err(invalid(view, "a column's name stands twice, or is `key`, `version` or `value`."));
    }
    taken.push(column);
    Ok(())
}

/// The form of keys, as Postgres can match it.
struct KeyForm {
    /// A regular expression over the escaped key; a group for each part.
    pattern: String,
    parts: Vec<String>,
    /// A condition on the key that an index answers, followed by `AND`; empty where the form begins with a part.
    range: String,
}

impl KeyForm {
    fn read(definition: &ViewDefinition) -> Result<Self> {
        let refuse = |sentence| Err(invalid(&definition.name, sentence));
        if definition.keys.is_empty() {
            return refuse("the form of its keys is empty.");
        }
        let (mut pattern, mut parts, mut head) = ("^".to_owned(), Vec::new(), String::new());
        let mut rest = definition.keys.as_str();
        while let Some(next) = rest.chars().next() {
            rest = &rest[next.len_utf8()..];
            match next {
                '{' => {
                    let Some((part, behind)) = rest.split_once('}') else {
                        return refuse("a `{` in the form of its keys is not closed.");
                    };
                    // A zero byte is escaped as \000, so a backslash ends a part too.
                    pattern.push_str(r"([^/\\]+)");
                    parts.push(part.to_owned());
                    rest = behind;
                }
                '*' if rest.is_empty() => return Ok(Self { range: range(&head), pattern, parts }),
                '*' => return refuse("a `*` stands only at the end of the form of its keys."),
                letter if letter.is_ascii_graphic() && letter != '\\' && letter != '}' => {
                    if !letter.is_ascii_alphanumeric() {
                        pattern.push('\\');
                    }
                    pattern.push(letter);
                    if parts.is_empty() {
                        head.push(letter);
                    }
                }
                _ => return refuse("the form of its keys has a letter that is not allowed."),
            }
        }
        pattern.push('$');
        Ok(Self { range: range(&head), pattern, parts })
    }
}

/// The condition that a key begins with `head`, as a range that the index answers.
fn range(head: &str) -> String {
    let Some((last, before)) = head.as_bytes().split_last() else { return String::new() };
    // A graphic ASCII letter, so there is one behind it.
    let end = [before, &[last + 1]].concat();
    format!("key >= {} AND key < {} AND ", bytes(head.as_bytes()), bytes(&end))
}

/// Makes the views in one transaction.
pub(crate) async fn apply(
    connection: &mut PgConnection,
    operation: &'static str,
    made: Statement,
) -> Result<()> {
    let failed = |error| {
        let error = not_applied(operation, error);
        let depends = |error: &Error| {
            let source =
                std::error::Error::source(error).and_then(|source| source.downcast_ref::<sqlx::Error>());
            // dependent_objects_still_exist
            source.and_then(|source| source.as_database_error()?.code()).is_some_and(|code| code == "2BP01")
        };
        match error {
            error if depends(&error) => Error::new(
                ErrorKind::Conflict,
                operation,
                "postgres: a view of somebody else's stands on one of the store's views: drop it first",
            )
            .with_source(error),
            error => error,
        }
    };
    let mut transaction = connection.begin().await.map_err(failed)?;
    sqlx::raw_sql(AssertSqlSafe(made.drop_old)).execute(&mut *transaction).await.map_err(failed)?;
    for create in made.create {
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(|error| sent(operation, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(name: &str, keys: &str) -> ViewDefinition {
        ViewDefinition { name: name.to_owned(), keys: keys.to_owned(), columns: Vec::new() }
    }

    #[test]
    fn a_form_of_keys_becomes_a_pattern_and_a_range() {
        let form = KeyForm::read(&view("v", "{project}/vm/{vm}")).unwrap();
        assert_eq!((form.pattern.as_str(), form.range.as_str()), (r"^([^/\\]+)\/vm\/([^/\\]+)$", ""));
        assert_eq!(form.parts, ["project", "vm"]);
        let form = KeyForm::read(&view("v", "a.b/*")).unwrap();
        assert_eq!(form.pattern, r"^a\.b\/");
        assert_eq!(form.range, r"key >= '\x612e622f'::bytea AND key < '\x612e6230'::bytea AND ");
    }

    #[test]
    fn what_cannot_be_a_view_is_refused() {
        let statements_of = |view: ViewDefinition| statements(&[view], &Statements::new("flames"));
        for (name, keys) in [
            ("v", ""),
            ("v", "a{b"),
            ("v", "a}"),
            ("v", "a*b"),
            ("v", "\u{e4}"),
            ("V", "a"),
            ("entry", "a"),
            ("v", "{a}/{a}"),
            ("v", "{value}"),
            ("v", "{a\"b}"),
        ] {
            let error = statements_of(view(name, keys)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name} {keys}");
        }
        let mut without_path = view("v", "a");
        without_path.columns.push(ViewColumn {
            name: "c".to_owned(),
            path: Vec::new(),
            kind: ColumnKind::Text,
        });
        assert!(statements_of(without_path).is_err());
        assert!(statements(&[view("v", "a"), view("v", "b")], &Statements::new("flames")).is_err());
    }
}
