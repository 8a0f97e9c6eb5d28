//! The example of `flames.toml`, made from the table of settings.

use super::keys::{self, Key, Kind, Names, Section};

/// How wide a comment is.
const WIDTH: usize = 118;

/// The whole example. Everything in it is commented out but the backends, so that it changes nothing: its values are the defaults.
pub(crate) fn example() -> String {
    let mut text = comment(
        "The configuration of Flames: `flames up --config FILE`, or FLAMES_CONFIG; else ~/.config/flames/flames.toml, else \
         /etc/flames/flames.toml.",
    );
    text.push_str(&comment(
        "A flag goes before a variable of the environment, that before this file, and this file before the default. `flames config \
         check` tries all of it, `flames config show` says what holds and where it comes from. Relative paths with a `/` are relative to \
         this file's folder. Secrets stand in files of their own (`…_file`) or in the environment.",
    ));
    text.push_str("#\n");
    text.push_str(&comment(
        "Every value below is the default, or where it begins with `# e.g.` an example. This file is made by `flames config example`.",
    ));
    for section in Section::ALL {
        text.push('\n');
        text.push_str(&comment(section.about()));
        if section != Section::Host {
            text.push_str(&format!("[{}]\n", section.name()));
        }
        for (key, names) in keys::all().filter(|(key, _)| key.section == section) {
            text.push('\n');
            text.push_str(&setting(key, names));
        }
    }
    text
}

fn setting(key: &Key, names: &Names) -> String {
    let mut about = key.about.to_owned();
    if !key.backends.is_empty() {
        about = format!("[{}] {about}", key.backends.join(", "));
    }
    let mut text = comment(&about);
    let (flag, variable) = (&names.flag, &names.variable);
    match key.kind {
        Kind::Secret => text
            .push_str(&format!("# --{flag}, {}; or the secret itself in {variable}\n", names.file_variable)),
        _ => text.push_str(&format!("# --{flag}, {variable}\n")),
    }
    let name = if key.kind == Kind::Secret { format!("{}_file", key.name) } else { key.name.to_owned() };
    let value = written(key.kind, key.default.unwrap_or(key.example));
    match key.default {
        Some(_) if key.name == "backend" => text.push_str(&format!("{name} = {value}\n")),
        Some(_) => text.push_str(&format!("# {name} = {value}\n")),
        None => text.push_str(&format!("# e.g. {name} = {value}\n")),
    }
    text
}

/// A value as TOML.
fn written(kind: Kind, text: &str) -> String {
    match kind {
        Kind::Count | Kind::Switch => text.to_owned(),
        Kind::List | Kind::Urls => {
            let items = text.split(',').map(|item| format!("{:?}", item.trim()));
            format!("[{}]", items.collect::<Vec<_>>().join(", "))
        }
        Kind::Pairs => {
            let pairs = text.split(',').filter_map(|pair| pair.trim().split_once('='));
            let pairs = pairs.map(|(name, value)| format!("{name} = {value:?}"));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
        _ => format!("{text:?}"),
    }
}

fn comment(text: &str) -> String {
    let mut lines = String::new();
    let mut line = "#".to_owned();
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            lines.push_str(&line);
            lines.push('\n');
            line = "#".to_owned();
        }
        line.push(' ');
        line.push_str(word);
    }
    lines + &line + "\n"
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::file;
    use super::*;

    #[test]
    fn the_example_in_the_repository_is_the_one_that_is_made() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("flames.example.toml");
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == example(),
            "{} is not what is made from the table: write it with `cargo run -p flames -- config example > crates/flames/flames.example.toml`",
            path.display()
        );
    }

    #[test]
    fn the_example_is_a_configuration_that_changes_nothing() {
        let said = file::understand(Path::new("flames.toml"), &example()).unwrap();
        assert!(said.iter().all(|said| said.key.name == "backend"), "{said:?}");
        assert_eq!(said.len(), 5);
    }

    #[test]
    fn with_every_comment_taken_away_each_setting_is_one_that_the_file_may_have() {
        let bare: Vec<String> = example()
            .lines()
            .filter_map(|line| {
                let line = line.strip_prefix("# e.g. ").or_else(|| line.strip_prefix("# ")).unwrap_or(line);
                let is_setting = line.split_once(" = ").is_some_and(|(name, _)| {
                    name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
                });
                (is_setting || line.starts_with('[') && line.ends_with(']')).then(|| line.to_owned())
            })
            .collect();
        let said = file::understand(Path::new("flames.toml"), &bare.join("\n")).unwrap();
        assert_eq!(said.len(), keys::all().count());
    }
}
