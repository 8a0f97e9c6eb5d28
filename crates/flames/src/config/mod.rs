//! The configuration: flags before environment before `flames.toml` before defaults.
//!
//! All settings stand in one table ([`keys`]). From it come the flags and variables, what the file may say, the example
//! (`flames config example`) and the guide's list. A setting that does not fit the backend it is for is refused, unless the
//! backend was chosen by something that goes before the setting (a flag over the file, for a try): then the setting is passed over.

mod example;
mod file;
mod flags;
mod fleet;
mod host;
mod keys;
mod layers;
mod problem;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use example::example;
pub(crate) use flags::SettingFlags;
pub(crate) use fleet::{HostListenConfig, ServerUrl, ServersConfig, host_name};
#[cfg(feature = "qemu")]
pub(crate) use host::Accel;
pub(crate) use host::{Block, Driver, LogFormat, OnExit, UpConfig};
pub(crate) use keys::Section;
pub(crate) use problem::{Problem, failure};
#[cfg(feature = "postgres")]
pub(crate) use values::{has_password, with_password};

use file::ReadFile;
use keys::Key;
use layers::{backends, fits, forget, gather, understood, winners};
use values::{Raw, Value};

use crate::args::Global;
use crate::data;
use crate::exit::Failure;

/// Where a setting's value comes from; what goes before is greater.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Default,
    /// A line of the file.
    File(PathBuf, usize),
    /// A variable.
    Environment(&'static str),
    /// A flag.
    Flag(&'static str),
}

impl Source {
    /// Sources of one rank are one place for a person.
    fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File(..) => 1,
            Self::Environment(_) => 2,
            Self::Flag(_) => 3,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(variable) => f.write_str(variable),
            Self::Flag(flag) => write!(f, "--{flag}"),
        }
    }
}

struct Setting {
    key: &'static Key,
    value: Value,
    source: Source,
}

/// The settings that hold, each fit for its backend.
pub(crate) struct Settings {
    settings: BTreeMap<&'static str, Setting>,
    file: Option<PathBuf>,
    is_ephemeral: bool,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.shown().iter().map(|shown| (&shown.setting, &shown.value))).finish()
    }
}

/// A setting for people's eyes.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Shown {
    pub(crate) setting: &'static str,
    pub(crate) value: String,
    pub(crate) source: String,
}

#[cfg_attr(not(feature = "sqlite"), allow(dead_code, reason = "a build with few providers asks little"))]
impl Settings {
    /// The configuration as it holds for this call.
    pub(crate) fn resolve(
        global: &Global,
        flags: &SettingFlags,
        is_ephemeral: bool,
    ) -> Result<Self, Vec<Problem>> {
        let file = file::find(global.config.as_deref())?;
        Self::resolve_from(global, flags, file, &|name| std::env::var(name).ok(), is_ephemeral)
    }

    fn resolve_from(
        global: &Global,
        flags: &SettingFlags,
        file: Option<ReadFile>,
        variable: &dyn Fn(&str) -> Option<String>,
        is_ephemeral: bool,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let path = file.as_ref().map(|file| file.path.clone());
        let mut said = winners(gather(global, flags, file, variable));
        if is_ephemeral {
            for section in [Section::State, Section::Blob, Section::Cache, Section::Queue] {
                forget(&mut said, section, &mut problems);
            }
        }
        let backends = backends(&said);
        let mut settings = BTreeMap::new();
        for (name, said) in said {
            if !fits(&said, &backends, &mut problems) {
                continue;
            }
            match understood(&said) {
                Ok(value) => {
                    settings.insert(name, Setting { key: said.key, value, source: said.source });
                }
                Err(sentence) => {
                    let sentence = format!("{sentence} (from {}).", said.source);
                    problems.push(Problem::new(said.key.section, name, sentence));
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut resolved = Self { settings, file: path, is_ephemeral };
        resolved.add_places();
        Ok(resolved)
    }

    /// The defaults that follow from other settings.
    fn add_places(&mut self) {
        if self.path("data").is_none()
            && let Some(default) = data::default_path()
        {
            self.add("data", &default.display().to_string());
        }
        if let Some(data) = self.path("data") {
            for (section, backend, name) in [
                ("state", "sqlite", "state.sqlite"),
                ("blob", "fs", "blobs"),
                ("queue", "sqlite", "queue.sqlite"),
            ] {
                if self.backend_of(section) == backend {
                    self.add(&format!("{section}.path"), &data.join(name).display().to_string());
                }
            }
        }
        let is_any_port = self.text("listen").is_some_and(|address| address.ends_with(":0"));
        match (self.backend(Section::Ingress), is_any_port) {
            _ if !self.list("ingress.listen_tls").is_empty() => {}
            ("proxy", true) => self.add("ingress.listen", "127.0.0.1:0"),
            ("proxy", false) => self.add("ingress.listen", "127.0.0.1:7080"),
            ("caddy", _) => self.add("ingress.listen", ":8080"),
            _ => {}
        }
    }

    fn add(&mut self, path: &str, text: &str) {
        if let Some((key, names)) = keys::find(path) {
            let value = values::read(key, &Raw::of_text(key.kind, text));
            if let Ok(value) = value {
                self.settings.entry(names.path.as_str()).or_insert(Setting {
                    key,
                    value,
                    source: Source::Default,
                });
            }
        }
    }

    /// Whether everything is in memory, for this one run.
    pub(crate) fn is_ephemeral(&self) -> bool {
        self.is_ephemeral
    }

    /// The file that was read.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The backend chosen for a provider.
    pub(crate) fn backend(&self, section: Section) -> &str {
        self.backend_of(section.name())
    }

    fn backend_of(&self, section: &str) -> &str {
        self.text(&format!("{section}.backend")).unwrap_or_default()
    }

    /// Where a setting comes from.
    pub(crate) fn source(&self, path: &str) -> Source {
        self.settings.get(path).map_or(Source::Default, |setting| setting.source.clone())
    }

    fn value(&self, path: &str) -> Option<&Value> {
        debug_assert!(keys::find(path).is_some(), "there is no setting {path}");
        self.settings.get(path).map(|setting| &setting.value)
    }

    /// A text, a path, a choice, a URL or a secret.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        match self.value(path)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn path(&self, path: &str) -> Option<PathBuf> {
        self.text(path).map(PathBuf::from)
    }

    pub(crate) fn number(&self, path: &str) -> Option<u64> {
        match self.value(path)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// An amount, in bytes.
    pub(crate) fn bytes(&self, path: &str) -> Option<u64> {
        self.number(path).map(|mebibytes| mebibytes.saturating_mul(1 << 20))
    }

    /// A length of time; every one has a default.
    pub(crate) fn duration(&self, path: &str) -> Duration {
        match self.value(path) {
            Some(Value::Duration(duration)) => *duration,
            _ => Duration::ZERO,
        }
    }

    pub(crate) fn switch(&self, path: &str) -> Option<bool> {
        match self.value(path)? {
            Value::Switch(on) => Some(*on),
            _ => None,
        }
    }

    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        match self.value(path) {
            Some(Value::List(items)) => items.clone(),
            _ => Vec::new(),
        }
    }

    /// A setting without which the backend cannot work.
    pub(crate) fn required(&self, section: Section, path: &str) -> Result<&str, Problem> {
        self.text(path).filter(|text| !text.is_empty()).ok_or_else(|| self.missing(section, path))
    }

    /// As [`Settings::required`], for a list.
    #[cfg(any(feature = "etcd", feature = "redis", feature = "nats"))]
    pub(crate) fn required_list(&self, section: Section, path: &str) -> Result<Vec<String>, Problem> {
        Some(self.list(path)).filter(|items| !items.is_empty()).ok_or_else(|| self.missing(section, path))
    }

    fn missing(&self, section: Section, path: &str) -> Problem {
        let (example, variable) =
            keys::find(path).map_or(("", ""), |(key, names)| (key.example, names.variable.as_str()));
        let sentence = format!(
            "it is missing, and this backend needs it: give it in the file or in {variable}, for instance {example}."
        );
        Problem::new(section, path, sentence).of_backend(self.backend(section))
    }

    /// Everything that holds, for people's eyes: no secret is in it.
    pub(crate) fn shown(&self) -> Vec<Shown> {
        let in_order = keys::all().filter_map(|(_, names)| self.settings.get_key_value(names.path.as_str()));
        in_order
            .map(|(name, setting)| Shown {
                setting: name,
                value: values::shown(setting.key.kind, &setting.value),
                source: setting.source.to_string(),
            })
            .collect()
    }

    /// One setting for people's eyes; empty when it has no value.
    pub(crate) fn shown_value(&self, path: &str) -> String {
        self.settings
            .get(path)
            .map(|setting| values::shown(setting.key.kind, &setting.value))
            .unwrap_or_default()
    }
}

/// The data folder that the configuration file names, for commands that take no other settings.
pub(crate) fn data_of_file(global: &Global) -> Result<Option<PathBuf>, Failure> {
    let file = file::find(global.config.as_deref()).map_err(|problems| failure(&problems))?;
    let said = gather(&Global::default(), &SettingFlags::default(), file, &|_| None);
    Ok(said.into_iter().find_map(|said| match said.raw {
        Raw::One(path) if said.names.path == "data" => Some(PathBuf::from(path)),
        _ => None,
    }))
}

#[cfg(test)]
mod tests;
