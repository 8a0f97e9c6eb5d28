//! What is wrong with a configuration, or with what it names: for a person, in one line.

use std::fmt;

use flames_error::{Error, ErrorKind};
use serde::Serialize;

use super::keys::{self, Section};
use crate::exit::{Failure, USAGE};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// Which provider (`state`), or none: the process itself.
    pub(crate) provider: Option<&'static str>,
    /// Its backend, as far as it is known.
    pub(crate) backend: Option<String>,
    /// Which setting.
    pub(crate) setting: String,
    /// What is wrong, and what to do: sentences.
    pub(crate) problem: String,
}

#[cfg_attr(not(feature = "sqlite"), allow(dead_code, reason = "in memory nothing fails"))]
impl Problem {
    pub(crate) fn new(section: Section, setting: impl Into<String>, problem: impl Into<String>) -> Self {
        let provider = Some(section.name()).filter(|name| !name.is_empty());
        Self { provider, backend: None, setting: setting.into(), problem: one_line(&problem.into()) }
    }

    #[must_use]
    pub(crate) fn of_backend(mut self, backend: impl Into<String>) -> Self {
        self.backend = Some(backend.into());
        self
    }

    /// What an adapter said. `place` is the setting that says where the provider is, for errors that name none.
    pub(crate) fn of_error(section: Section, backend: &str, place: &str, error: &Error) -> Self {
        let known = |field: &str| {
            let path = format!("{}.{}", section.name(), ours(field));
            keys::find(&path).map(|_| path)
        };
        let setting = error.field().and_then(known).unwrap_or_else(|| format!("{}.{place}", section.name()));
        let told = error.user_message().unwrap_or(error.message());
        let told = without_lead(told.trim(), backend).trim_end_matches('.');
        let path = error.context().iter().find(|(key, _)| matches!(*key, "path" | "folder"));
        let path = path.filter(|(_, path)| !told.contains(path.as_str()));
        let mut problem = match path {
            Some((_, path)) => format!("{told} ({path})."),
            None => format!("{told}."),
        };
        // Adapters say what to do where they name a setting or say something to a user; the others need it said here.
        if error.user_message().is_none() && error.field().is_none() {
            problem.push_str(match error.kind() {
                ErrorKind::PermissionDenied => " Let this user in there, or correct the setting.",
                ErrorKind::Exhausted => " Make room there, or correct the setting.",
                ErrorKind::Unavailable => " See that it is there and can be reached, or correct the setting.",
                ErrorKind::NotSupported => " Use a version that fits, or correct the setting.",
                _ => " Correct the setting.",
            });
        }
        Self::new(section, setting, problem).of_backend(backend)
    }
}

/// What an adapter says, without that it names itself first: provider, backend and setting stand before it already.
#[cfg_attr(not(feature = "sqlite"), allow(dead_code, reason = "in memory nothing fails"))]
fn without_lead<'t>(told: &'t str, backend: &str) -> &'t str {
    let leads = [format!("{backend}: "), format!("The state store ({backend}): ")];
    if let Some(rest) = leads.iter().find_map(|lead| told.strip_prefix(lead.as_str())) {
        return rest;
    }
    match told.split_once(": ") {
        Some((lead, rest)) if lead.starts_with(&format!("Queue `{backend}`, setting `")) => rest,
        _ => told,
    }
}

/// What an adapter calls otherwise.
#[cfg_attr(not(feature = "sqlite"), allow(dead_code, reason = "in memory nothing fails"))]
fn ours(field: &str) -> &str {
    match field {
        "max_bytes" => "max_size",
        "connect" => "connect_deadline",
        "call" => "call_deadline",
        "listeners" => "listen",
        "tls" => "certificates",
        other => other,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.provider, &self.backend) {
            (Some(provider), Some(backend)) => write!(f, "{provider} ({backend}), ")?,
            (Some(provider), None) => write!(f, "{provider}, ")?,
            (None, _) => {}
        }
        write!(f, "setting `{}`: {}", self.setting, self.problem)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::new(USAGE, problem.to_string())
    }
}

/// The failure of a command that cannot begin: the first problem, and how many more there are.
pub(crate) fn failure(problems: &[Problem]) -> Failure {
    let first = problems.first().map(ToString::to_string).unwrap_or_default();
    let failure = Failure::new(USAGE, first);
    match problems.len() {
        0 | 1 => failure,
        more => failure.advise(format!("{} more: `flames config check` shows all.", more - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_adapter_says_becomes_one_line_with_provider_and_setting() {
        let error =
            Error::invalid("state.open", "schema", "postgres: the schema\n holds tables of another program.");
        let problem = Problem::of_error(Section::State, "postgres", "url", &error);
        assert_eq!(
            problem.to_string(),
            "state (postgres), setting `state.schema`: the schema holds tables of another program."
        );
        let error =
            Error::new(ErrorKind::PermissionDenied, "blob.open", "the folder of blobs cannot be made")
                .with_context("path", "/ro/blobs");
        let problem = Problem::of_error(Section::Blob, "fs", "path", &error);
        let line = problem.to_string();
        assert!(
            line.starts_with(
                "blob (fs), setting `blob.path`: the folder of blobs cannot be made (/ro/blobs)."
            ),
            "{line}"
        );
        assert!(line.contains("Let this user in"), "{line}");
    }
}
