//! What flags, environment, file and defaults say, and which of it holds.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::file::ReadFile;
use super::keys::{self, Key, Kind, Names, Section};
use super::problem::Problem;
use super::values::{self, Raw, Value, has_password};
use super::{SettingFlags, Source};
use crate::args::Global;

/// The longest secret that is read from a file: a service account's key has some 2 KiB.
const LONGEST_SECRET: u64 = 64 * 1024;

/// What was said about one setting.
pub(super) struct Said {
    pub(super) key: &'static Key,
    pub(super) names: &'static Names,
    pub(super) raw: Raw,
    pub(super) source: Source,
    /// For a secret: whether `raw` is the secret itself and not its file.
    pub(super) is_direct: bool,
}

/// Everything that was said, the weakest first.
pub(super) fn gather(
    global: &Global,
    flags: &SettingFlags,
    file: Option<ReadFile>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Vec<Said> {
    let mut said = Vec::new();
    for (key, names) in keys::all() {
        if let Some(default) = key.default {
            let raw = Raw::of_text(key.kind, default);
            said.push(Said { key, names, raw, source: Source::Default, is_direct: false });
        }
        if key.kind == Kind::Secret
            && let Some(secret) = variable(&names.variable).filter(|secret| !secret.is_empty())
        {
            let source = Source::Environment(names.variable.as_str());
            said.push(Said { key, names, raw: Raw::One(secret), source, is_direct: true });
        }
    }
    if let Some(file) = file {
        let folder = std::path::absolute(&file.path).ok().and_then(|path| path.parent().map(Path::to_owned));
        for line in file.said {
            let raw = match (line.key.kind, line.raw) {
                // A path that leads somewhere leads there from the file's folder; a bare name (`debian`, `qemu-system-x86_64`) is one.
                (Kind::Path | Kind::Secret, Raw::One(text)) if text.contains('/') => {
                    let path = folder.as_deref().map(|folder| folder.join(&text));
                    Raw::One(path.map_or(text, |path| path.display().to_string()))
                }
                (_, raw) => raw,
            };
            let source = Source::File(file.path.clone(), line.line);
            said.push(Said { key: line.key, names: line.names, raw, source, is_direct: false });
        }
    }
    if let (Some(data), Some((key, names))) = (&global.data, keys::find("data")) {
        let raw = Raw::One(data.display().to_string());
        let is_variable = variable(&names.variable).is_some_and(|text| Path::new(&text) == data);
        let source = if is_variable {
            Source::Environment(names.variable.as_str())
        } else {
            Source::Flag(names.flag.as_str())
        };
        said.push(Said { key, names, raw, source, is_direct: false });
    }
    said.extend(flags.said.iter().cloned().map(|given| Said {
        key: given.key,
        names: given.names,
        raw: given.raw,
        source: given.source,
        is_direct: false,
    }));
    said
}

/// For each setting, what goes before everything else that was said of it.
pub(super) fn winners(said: Vec<Said>) -> BTreeMap<&'static str, Said> {
    let mut winners: BTreeMap<&'static str, Said> = BTreeMap::new();
    for one in said {
        let name = one.names.path.as_str();
        if winners.get(name).is_none_or(|known| known.source.rank() <= one.source.rank()) {
            winners.insert(name, one);
        }
    }
    winners
}

/// `--ephemeral`: this provider is in memory, whatever the file and the environment say.
pub(super) fn forget(said: &mut BTreeMap<&'static str, Said>, section: Section, problems: &mut Vec<Problem>) {
    let path = format!("{}.backend", section.name());
    let Some(backend) = said.get_mut(path.as_str()) else { return };
    if matches!(backend.source, Source::Flag(_)) && backend.raw != Raw::One("memory".to_owned()) {
        problems.push(Problem::new(
            section,
            path,
            "--ephemeral keeps everything in memory: leave one of the two out.",
        ));
    }
    backend.raw = Raw::One("memory".to_owned());
    backend.source = Source::Flag("ephemeral");
}

pub(super) fn backends(said: &BTreeMap<&'static str, Said>) -> BTreeMap<Section, (String, Source)> {
    let named = said.values().filter(|said| said.key.name == "backend").filter_map(|said| match &said.raw {
        Raw::One(backend) => Some((said.key.section, (backend.clone(), said.source.clone()))),
        Raw::Many(_) => None,
    });
    named.collect()
}

/// Whether a setting is for the backend that was chosen. One that is not is a mistake where it was said in the same place, or later.
pub(super) fn fits(
    said: &Said,
    backends: &BTreeMap<Section, (String, Source)>,
    problems: &mut Vec<Problem>,
) -> bool {
    let Some((backend, chosen)) = backends.get(&said.key.section) else { return true };
    if said.key.backends.is_empty() || said.key.backends.contains(&backend.as_str()) {
        return true;
    }
    if said.source != Source::Default && said.source.rank() >= chosen.rank() {
        let sentence = format!(
            "it is for the backend {}, and `{}.backend` is {backend} (from {chosen}). Remove it (from {}), or choose that backend.",
            said.key.backends.join(" or "),
            said.key.section.name(),
            said.source,
        );
        problems.push(Problem::new(said.key.section, said.names.path.as_str(), sentence).of_backend(backend));
    }
    false
}

/// The value of what was said, or a sentence about what is wrong with it.
pub(super) fn understood(said: &Said) -> Result<Value, String> {
    match (said.key.kind, &said.raw) {
        (Kind::Secret, Raw::One(path)) if !said.is_direct => secret(Path::new(path)).map(Value::Text),
        (Kind::Url | Kind::Urls, raw) => {
            let value = values::read(said.key, raw)?;
            let urls = match &value {
                Value::Text(url) => vec![url.as_str()],
                Value::List(urls) => urls.iter().map(String::as_str).collect(),
                _ => Vec::new(),
            };
            if !matches!(said.source, Source::Environment(_)) && urls.into_iter().any(has_password) {
                return Err(format!(
                    "there is a password in this URL, where others can read it: take it out and use the file of a secret (`{}.password_file`), or give the whole URL in {}",
                    said.key.section.name(),
                    said.names.variable
                ));
            }
            Ok(value)
        }
        (_, raw) => values::read(said.key, raw),
    }
}

fn secret(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| {
        format!("the file of this secret, {}, cannot be read: {error}", path.display())
    };
    let mut text = String::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(LONGEST_SECRET + 1).read_to_string(&mut text).map_err(cannot)?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() || text.len() as u64 > LONGEST_SECRET {
        return Err(format!("the file of this secret, {}, is empty or longer than 64 KiB", path.display()));
    }
    Ok(secret.to_owned())
}
