//! `flames.toml`.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{self, Key, Kind, Names, Section};
use super::problem::Problem;
use super::values::Raw;

/// The file's name where none is given.
const NAME: &str = "flames.toml";
/// The most that is read of it.
const LONGEST: u64 = 1024 * 1024;

/// What one line of the file says.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) key: &'static Key,
    pub(crate) names: &'static Names,
    pub(crate) raw: Raw,
    pub(crate) line: usize,
}

/// The file that was read.
#[derive(Debug)]
pub(crate) struct ReadFile {
    pub(crate) path: PathBuf,
    pub(crate) said: Vec<Said>,
}

/// Where a configuration is looked for when none is named: this user's, then the host's.
fn candidates() -> Vec<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    home.map(|home| home.join("flames").join(NAME))
        .into_iter()
        .chain([Path::new("/etc/flames").join(NAME)])
        .collect()
}

/// Reads the configuration that is meant: the file named, else the first that is there, else none.
pub(crate) fn find(named: Option<&Path>) -> Result<Option<ReadFile>, Vec<Problem>> {
    match named {
        Some(path) => read(path).map(Some),
        None => match candidates().into_iter().find(|path| path.is_file()) {
            Some(path) => read(&path).map(Some),
            None => Ok(None),
        },
    }
}

fn wrong(path: &Path, problem: impl Into<String>) -> Vec<Problem> {
    vec![Problem::new(Section::Host, "config", format!("{}: {}", path.display(), problem.into()))]
}

fn read(path: &Path) -> Result<ReadFile, Vec<Problem>> {
    let cannot = |error: io::Error| {
        wrong(
            path,
            format!(
                "the configuration cannot be read: {error}. Correct --config or FLAMES_CONFIG; `flames config example` writes one."
            ),
        )
    };
    let mut text = String::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > LONGEST {
        return Err(wrong(path, "it is longer than 1 MiB: this is no configuration of Flames."));
    }
    let said = understand(path, &text)?;
    Ok(ReadFile { path: path.to_owned(), said })
}

/// What the text says; `path` is for messages.
pub(crate) fn understand(path: &Path, text: &str) -> Result<Vec<Said>, Vec<Problem>> {
    let line = |span: Range<usize>| {
        text.as_bytes()[..span.start.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
    };
    let table = DeTable::parse(text).map_err(|error| {
        // Not its whole text: that repeats the line, which may hold a secret.
        let at = error.span().map(|span| format!("line {}: ", line(span))).unwrap_or_default();
        wrong(path, format!("{at}this is no TOML: {}. Correct the line.", error.message()))
    })?;
    let mut reading = Reading { path, said: Vec::new(), problems: Vec::new() };
    for (name, value) in table.get_ref() {
        let (at, name) = (line(name.span()), name.get_ref());
        let section = Section::ALL
            .into_iter()
            .find(|section| section.name() == name.as_ref() && *section != Section::Host);
        match (section, value.get_ref()) {
            (Some(section), DeValue::Table(inner)) => {
                for (name, value) in inner {
                    reading.take(section, name.get_ref(), value.get_ref(), line(name.span()));
                }
            }
            (Some(section), _) => {
                let name = section.name();
                reading.refuse(
                    section,
                    name,
                    at,
                    format!("`{name}` is a table: write `[{name}]` on a line of its own."),
                );
            }
            (None, DeValue::Table(_)) if !is_pairs(name) => {
                let tables = Section::ALL
                    .iter()
                    .filter(|section| **section != Section::Host)
                    .map(|section| format!("[{}]", section.name()));
                let tables = tables.collect::<Vec<_>>().join(", ");
                reading.refuse(
                    Section::Host,
                    name,
                    at,
                    format!("there is no table `[{name}]`; there are {tables}."),
                );
            }
            (None, value) => reading.take(Section::Host, name, value, at),
        }
    }
    if reading.problems.is_empty() { Ok(reading.said) } else { Err(reading.problems) }
}

/// Whether a setting before the first table is written as a table itself.
fn is_pairs(name: &str) -> bool {
    keys::find(name).is_some_and(|(key, _)| key.section == Section::Host && key.kind == Kind::Pairs)
}

struct Reading<'p> {
    path: &'p Path,
    said: Vec<Said>,
    problems: Vec<Problem>,
}

impl Reading<'_> {
    fn refuse(&mut self, section: Section, setting: &str, line: usize, sentence: String) {
        let setting = match section {
            Section::Host => setting.to_owned(),
            section if section.name() == setting => setting.to_owned(),
            section => format!("{}.{setting}", section.name()),
        };
        self.problems.push(Problem::new(
            section,
            setting,
            format!("{}:{line}: {sentence}", self.path.display()),
        ));
    }

    fn take(&mut self, section: Section, name: &str, value: &DeValue<'_>, line: usize) {
        let of_section = || keys::all().filter(|(key, _)| key.section == section);
        let spelled = |key: &Key| {
            if key.kind == Kind::Secret { format!("{}_file", key.name) } else { key.name.to_owned() }
        };
        let Some((key, names)) = of_section().find(|(key, _)| spelled(key) == name) else {
            if let Some((key, names)) = of_section().find(|(key, _)| key.name == name) {
                let variable = &names.variable;
                let sentence = format!(
                    "a secret does not stand in this file: put it into a file of its own and write `{} = \"FILE\"`, or set {variable}.",
                    spelled(key)
                );
                return self.refuse(section, name, line, sentence);
            }
            let known: Vec<String> = of_section().map(|(key, _)| spelled(key)).collect();
            let sentence = match nearest(name, &known) {
                Some(nearest) => format!("there is no such setting; did you mean `{nearest}`?"),
                None => "there is no such setting: remove it; `flames config example` shows all.".to_owned(),
            };
            return self.refuse(section, name, line, sentence);
        };
        match raw(key.kind, value) {
            Ok(raw) => self.said.push(Said { key, names, raw, line }),
            Err(wanted) => self.refuse(section, name, line, format!("its value is {wanted}.")),
        }
    }
}

/// The value, when it is written as its kind is; else how that is.
fn raw(kind: Kind, value: &DeValue<'_>) -> Result<Raw, &'static str> {
    match (kind, value) {
        (Kind::Count | Kind::Amount, DeValue::Integer(number)) if number.radix() == 10 => {
            Ok(Raw::One(number.as_str().replace('_', "")))
        }
        (Kind::Loopback, DeValue::Integer(port)) if port.radix() == 10 => {
            Ok(Raw::One(port.as_str().to_owned()))
        }
        (Kind::Switch, DeValue::Boolean(on)) => Ok(Raw::One(on.to_string())),
        (Kind::Count, _) => Err("a whole number, without quotes"),
        (Kind::Switch, _) => Err("true or false, without quotes"),
        (Kind::List | Kind::Urls, DeValue::Array(items)) => {
            let items = items.iter().map(|item| match item.get_ref() {
                DeValue::String(text) => Ok(text.to_string()),
                _ => Err("a list of texts in quotes: [\"…\", \"…\"]"),
            });
            items.collect::<Result<Vec<_>, _>>().map(Raw::Many)
        }
        (Kind::List | Kind::Urls, DeValue::String(text)) => Ok(Raw::Many(vec![text.to_string()])),
        (Kind::List | Kind::Urls, _) => Err("a list of texts in quotes: [\"…\", \"…\"]"),
        (Kind::Pairs, DeValue::Table(pairs)) => {
            let pairs = pairs.iter().map(|(name, value)| match value.get_ref() {
                DeValue::String(text) => Ok(format!("{}={text}", name.get_ref())),
                _ => Err("pairs of texts: { zone = \"a\", disk = \"nvme\" }"),
            });
            pairs.collect::<Result<Vec<_>, _>>().map(Raw::Many)
        }
        (Kind::Pairs, _) => Err("pairs of texts: { zone = \"a\", disk = \"nvme\" }"),
        (_, DeValue::String(text)) => Ok(Raw::One(text.to_string())),
        (Kind::Amount, _) => Err("an amount: a number of MiB, or \"512M\", \"2G\""),
        (Kind::Duration, _) => Err("a length of time in quotes: \"10s\", \"500ms\""),
        _ => Err("a text in quotes"),
    }
}

/// The known word that is written most alike, when one is alike.
fn nearest<'k>(word: &str, known: &'k [String]) -> Option<&'k str> {
    let best = known.iter().map(|candidate| (distance(word, candidate), candidate)).min()?;
    (best.0 <= 1 + word.len() / 4).then_some(best.1.as_str())
}

/// How many letters must be changed, added or removed (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, candidate) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *candidate);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Vec<String> {
        let problems = understand(Path::new("/etc/flames.toml"), text).unwrap_err();
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line_and_what_was_meant() {
        let problems = refused("listen = 0\n\n[state]\nbakend = \"memory\"\nurl = \"x\"\n[satte]\nx = 1\n");
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems
                .iter()
                .any(|line| line.contains("/etc/flames.toml:4:") && line.contains("did you mean `backend`?"))
        );
        assert!(problems.iter().any(|line| line.contains("[satte]") && line.contains("[state]")));
    }

    #[test]
    fn a_secret_in_the_file_is_refused_and_never_repeated() {
        for text in [
            "[state]\npassword = \"hunter2\"",
            "[state]\npassword = \"hunter2",
            "[state]\nreaders = \"hunter2\"",
            "[state]\npasswrod = \"hunter2\"",
            "state = \"hunter2\"",
        ] {
            let problems = refused(text);
            assert!(
                problems.iter().all(|line| !line.contains("hunter2") && !line.contains('\n')),
                "{problems:?}"
            );
        }
        assert!(refused("[state]\npassword = \"x\"")[0].contains("FLAMES_STATE_PASSWORD"));
    }

    #[test]
    fn values_are_written_as_their_kind_is() {
        let said = understand(
            Path::new("x"),
            "listen = 7070\ncapacity_memory = \"2G\"\nhost_labels = { zone = \"a\" }\n[cache]\nurls = [\"redis://a\"]\nis_cluster = true\n[state]\nreaders = 1_0",
        );
        assert_eq!(said.unwrap().len(), 6);
        for text in [
            "[state]\nreaders = \"four\"",
            "listen = true",
            "[cache]\nis_cluster = \"yes\"",
            "[cache]\nurls = [1]",
            "host_labels = [\"a=b\"]",
        ] {
            assert_eq!(refused(text).len(), 1, "{text}");
        }
    }
}
