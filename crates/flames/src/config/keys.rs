//! Every setting there is: the one table that the file, the flags, the environment, the example and the guide are made of.

mod blob;
mod cache;
mod host;
mod ingress;
mod queue;
mod state;

use std::sync::LazyLock;

/// A table of `flames.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    /// What stands before the first table: this process and its host.
    Host,
    /// The source of truth.
    State,
    /// Images.
    Blob,
    /// What may be forgotten.
    Cache,
    /// What is to be looked at.
    Queue,
    /// How traffic reaches guests.
    Ingress,
}

impl Section {
    pub(crate) const ALL: [Self; 6] =
        [Self::Host, Self::State, Self::Blob, Self::Cache, Self::Queue, Self::Ingress];

    /// Its name in the file; empty for what stands before the first table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Host => "",
            Self::State => "state",
            Self::Blob => "blob",
            Self::Cache => "cache",
            Self::Queue => "queue",
            Self::Ingress => "ingress",
        }
    }

    /// What it is about.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Host => "This process and the host that it runs VMs on.",
            Self::State => "Records: the source of truth.",
            Self::Blob => "Images.",
            Self::Cache => "What may be forgotten at any time.",
            Self::Queue => {
                "What is to be looked at. What is due stands in the state store too, so nothing is lost with the queue."
            }
            Self::Ingress => "How traffic from outside reaches the ports of VMs.",
        }
    }

    /// Its title in `--help`.
    pub(crate) fn heading(self) -> &'static str {
        match self {
            Self::Host => "Host",
            Self::State => "State",
            Self::Blob => "Blobs",
            Self::Cache => "Cache",
            Self::Queue => "Queue",
            Self::Ingress => "Ingress",
        }
    }
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A file or folder.
    Path,
    /// A loopback address and port, or a port alone.
    Loopback,
    /// The name of a controller.
    Name,
    /// A URL. One with a password is a secret: it may come from the environment alone, and is never shown whole.
    Url,
    /// URLs.
    Urls,
    /// Texts.
    List,
    /// `KEY=VALUE`s.
    Pairs,
    /// A whole number.
    Count,
    /// An amount of memory or disk, in MiB or with a unit.
    Amount,
    /// A length of time, with a unit.
    Duration,
    /// True or false.
    Switch,
    /// A secret: never in the file itself and never on a command line.
    Secret,
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) section: Section,
    /// Its name in its table.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The backends that it is for; empty: all.
    pub(crate) backends: &'static [&'static str],
    /// What holds when nothing is said, as it is written.
    pub(crate) default: Option<&'static str>,
    /// What the example shows: the default where there is one that is written, else a likely value.
    pub(crate) example: &'static str,
    /// What it is, for the example, the guide and `--help`.
    pub(crate) about: &'static str,
}

/// How a setting is called everywhere.
#[derive(Debug)]
pub(crate) struct Names {
    /// `state.url`.
    pub(crate) path: String,
    /// `state-url`; for a secret that of its file.
    pub(crate) flag: String,
    /// `FLAMES_STATE_URL`.
    pub(crate) variable: String,
    /// For a secret, `FLAMES_STATE_PASSWORD_FILE`.
    pub(crate) file_variable: String,
}

impl Names {
    fn of(key: &Key) -> Self {
        let (path, joined) = match key.section {
            Section::Host => (key.name.to_owned(), key.name.to_owned()),
            section => {
                (format!("{}.{}", section.name(), key.name), format!("{}_{}", section.name(), key.name))
            }
        };
        let flag = match (key.section, key.name) {
            // Given once for each label.
            (Section::Host, "host_labels") => "host-label".to_owned(),
            _ => joined.replace('_', "-"),
        };
        let flag = if key.kind == Kind::Secret { format!("{flag}-file") } else { flag };
        let variable = match (key.section, key.name) {
            (Section::Host, "agent") => "FLAMES_GUEST_AGENT".to_owned(),
            _ => format!("FLAMES_{}", joined.to_uppercase()),
        };
        let file_variable = format!("{variable}_FILE");
        Self { path, flag, variable, file_variable }
    }
}

const fn key(
    section: Section,
    name: &'static str,
    kind: Kind,
    backends: &'static [&'static str],
    default: Option<&'static str>,
    example: &'static str,
    about: &'static str,
) -> Key {
    Key { section, name, kind, backends, default, example, about }
}

/// As [`key`], for a setting whose default is what the example shows.
const fn set(
    section: Section,
    name: &'static str,
    kind: Kind,
    backends: &'static [&'static str],
    default: &'static str,
    about: &'static str,
) -> Key {
    key(section, name, kind, backends, Some(default), default, about)
}

/// The settings of each table, in the order in which they are shown.
const TABLES: [&[Key]; 6] = [host::KEYS, state::KEYS, blob::KEYS, cache::KEYS, queue::KEYS, ingress::KEYS];

fn keys() -> impl Iterator<Item = &'static Key> {
    TABLES.into_iter().flatten()
}

static NAMES: LazyLock<Vec<Names>> = LazyLock::new(|| keys().map(Names::of).collect());

/// Every setting with its names.
pub(crate) fn all() -> impl Iterator<Item = (&'static Key, &'static Names)> {
    keys().zip(NAMES.iter())
}

/// The setting of that name, `state.url`.
pub(crate) fn find(path: &str) -> Option<(&'static Key, &'static Names)> {
    all().find(|(_, names)| names.path == path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_settings_have_a_name_a_flag_or_a_variable_in_common() {
        let mut taken = BTreeSet::new();
        for (key, names) in all() {
            assert!(taken.insert(names.path.clone()), "{}", names.path);
            assert!(taken.insert(format!("--{}", names.flag)), "{}", names.flag);
            assert!(taken.insert(names.variable.clone()), "{}", names.variable);
            if key.kind == Kind::Secret {
                assert!(taken.insert(names.file_variable.clone()), "{}", names.file_variable);
            }
        }
    }

    #[test]
    fn a_setting_is_for_backends_that_there_are_and_never_holds_a_secret_by_default() {
        for (key, names) in all() {
            let backends = all().find_map(|(backend, _)| {
                match (backend.section == key.section, backend.name, backend.kind) {
                    (true, "backend", Kind::Choice(words)) => Some(words),
                    _ => None,
                }
            });
            assert!(
                key.backends.iter().all(|backend| backends.is_some_and(|all| all.contains(backend))),
                "{}",
                names.path
            );
            assert!(key.kind != Kind::Secret || key.default.is_none(), "{}", names.path);
            assert!(key.about.ends_with('.'), "{}", names.path);
        }
    }

    #[test]
    fn flags_and_variables_that_people_know_stay_as_they_are() {
        let names = |path| find(path).unwrap().1;
        assert_eq!(names("listen").flag, "listen");
        assert_eq!(names("host_labels").flag, "host-label");
        assert_eq!(names("capacity_memory").flag, "capacity-memory");
        assert_eq!(names("kernel").variable, "FLAMES_KERNEL");
        assert_eq!(names("agent").variable, "FLAMES_GUEST_AGENT");
        assert_eq!(names("state.password").flag, "state-password-file");
        assert_eq!(names("state.password").file_variable, "FLAMES_STATE_PASSWORD_FILE");
    }
}
