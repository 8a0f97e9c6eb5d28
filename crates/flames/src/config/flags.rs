//! The settings as flags and environment variables.

use clap::builder::PossibleValuesParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches, ValueHint};

use super::Source;
use super::keys::{self, Key, Kind, Names, Section};
use super::values::Raw;

/// What the command line and the environment say about settings. Only what was said: defaults come later.
#[derive(Debug, Clone, Default)]
pub(crate) struct SettingFlags {
    pub(super) said: Vec<Given>,
}

/// One setting that a flag or a variable gives. For a secret it is the name of its file.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) key: &'static Key,
    pub(super) names: &'static Names,
    pub(super) raw: Raw,
    pub(super) source: Source,
}

/// `data` has a flag of its own, which every command takes.
fn with_flags() -> impl Iterator<Item = (&'static Key, &'static Names)> {
    keys::all().filter(|(key, _)| !(key.section == Section::Host && key.name == "data"))
}

fn argument(key: &'static Key, names: &'static Names) -> Arg {
    let (value, hint) = match key.kind {
        Kind::Text if key.name.ends_with("listen") => ("ADDRESS", ValueHint::Other),
        Kind::Path | Kind::Secret if key.name.contains("modules") => ("DIR", ValueHint::DirPath),
        Kind::Path | Kind::Secret => ("FILE", ValueHint::FilePath),
        Kind::Choice(_) => ("BACKEND", ValueHint::Other),
        Kind::Loopback => ("ADDRESS", ValueHint::Other),
        Kind::Url | Kind::Urls => ("URL", ValueHint::Url),
        Kind::Pairs => ("KEY=VALUE", ValueHint::Other),
        Kind::Count => ("COUNT", ValueHint::Other),
        Kind::Amount => ("AMOUNT", ValueHint::Other),
        Kind::Duration => ("TIME", ValueHint::Other),
        Kind::Switch => ("true|false", ValueHint::Other),
        Kind::Name => ("NAME", ValueHint::Other),
        Kind::Text | Kind::List => ("TEXT", ValueHint::Other),
    };
    let value = if key.section == Section::Host && value == "BACKEND" { "WHICH" } else { value };
    let mut about = key.about.to_owned();
    if key.kind == Kind::Secret {
        about = format!("The file of this secret: {about} Or the secret itself in {}.", names.variable);
    }
    if !key.backends.is_empty() {
        about.push_str(&format!(" For {}.", key.backends.join(", ")));
    }
    if let Some(default) = key.default.filter(|default| !default.is_empty()) {
        about.push_str(&format!(" [default: {default}]"));
    }
    let variable = if key.kind == Kind::Secret { &names.file_variable } else { &names.variable };
    let mut argument = Arg::new(names.path.as_str())
        .long(names.flag.as_str())
        .env(variable.as_str())
        .hide_env_values(matches!(key.kind, Kind::Url | Kind::Urls | Kind::Secret))
        .value_name(value)
        .value_hint(hint)
        .help(about)
        .help_heading(key.section.heading())
        // `-h` is for a start; `--help` has all.
        .hide_short_help(key.section != Section::Host && key.name != "backend");
    argument = match key.kind {
        Kind::Choice(words) => {
            argument.value_parser(PossibleValuesParser::new(words)).hide_possible_values(false)
        }
        Kind::List | Kind::Urls | Kind::Pairs => argument.action(ArgAction::Append).value_delimiter(','),
        _ => argument,
    };
    argument
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        with_flags().fold(command, |command, (key, names)| command.arg(argument(key, names)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        for (key, names) in with_flags() {
            let id = names.path.as_str();
            let source = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => Source::Flag(names.flag.as_str()),
                Some(ValueSource::EnvVariable) if key.kind == Kind::Secret => {
                    Source::Environment(names.file_variable.as_str())
                }
                Some(ValueSource::EnvVariable) => Source::Environment(names.variable.as_str()),
                _ => continue,
            };
            let values: Vec<String> = matches.get_many::<String>(id).into_iter().flatten().cloned().collect();
            // A variable that is set to nothing is not set.
            if matches!(source, Source::Environment(_)) && values.iter().all(String::is_empty) {
                continue;
            }
            let raw = match key.kind {
                Kind::List | Kind::Urls | Kind::Pairs => Raw::Many(values),
                _ => Raw::One(values.into_iter().next_back().unwrap_or_default()),
            };
            self.said.push(Given { key, names, raw, source });
        }
        Ok(())
    }
}
