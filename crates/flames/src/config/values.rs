//! How values are read, and how they are shown.

use std::time::Duration;

use flames_model::VmName;

use super::keys::{Key, Kind};
use crate::args::parse;

/// A value as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Raw {
    One(String),
    Many(Vec<String>),
}

/// A value that was understood.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Number(u64),
    Duration(Duration),
    Switch(bool),
    List(Vec<String>),
}

impl Raw {
    /// From one text of the environment or of the table of settings: lists have commas between.
    pub(crate) fn of_text(kind: Kind, text: &str) -> Self {
        match kind {
            Kind::List | Kind::Urls | Kind::Pairs => Self::Many(
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect(),
            ),
            _ => Self::One(text.to_owned()),
        }
    }

    fn items(&self) -> Vec<&str> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(items) => items.iter().map(String::as_str).collect(),
        }
    }
}

/// Reads a value. The error says what is allowed, and never repeats a value that may be a secret.
pub(crate) fn read(key: &Key, raw: &Raw) -> Result<Value, String> {
    let one = || match raw {
        Raw::One(text) => Ok(text.trim()),
        Raw::Many(_) => Err("it is one value, and no list".to_owned()),
    };
    let many = || raw.items().into_iter().map(str::to_owned).collect::<Vec<_>>();
    Ok(match key.kind {
        Kind::Text | Kind::Secret => Value::Text(one()?.to_owned()),
        Kind::Path => Value::Text(some(one()?, "it is a path, and empty")?.to_owned()),
        Kind::Choice(words) => {
            let word = one()?;
            if !words.contains(&word) {
                return Err(format!("`{word}` is not one of {}", words.join(", ")));
            }
            Value::Text(word.to_owned())
        }
        Kind::Loopback => Value::Text(parse::loopback(one()?)?.to_string()),
        Kind::Name => {
            let name = VmName::new(one()?);
            Value::Text(
                name.map_err(|error| error.user_message().unwrap_or(error.message()).to_owned())?.to_string(),
            )
        }
        Kind::Url => Value::Text(some(one()?, "it is a URL, and empty")?.to_owned()),
        Kind::Urls | Kind::List => Value::List(many()),
        Kind::Pairs => {
            for item in raw.items() {
                parse::pair(item)?;
            }
            Value::List(many())
        }
        Kind::Count => Value::Number(
            one()?.parse().map_err(|_| format!("`{}` is no whole number", one().unwrap_or_default()))?,
        ),
        Kind::Amount => Value::Number(parse::mebibytes(one()?)?),
        Kind::Duration => Value::Duration(parse::duration(one()?)?),
        Kind::Switch => Value::Switch(match one()? {
            "true" | "yes" | "1" => true,
            "false" | "no" | "0" => false,
            other => return Err(format!("`{other}` is not one of true, false")),
        }),
    })
}

fn some<'a>(text: &'a str, empty: &str) -> Result<&'a str, String> {
    if text.is_empty() { Err(empty.to_owned()) } else { Ok(text) }
}

/// A value for people's eyes, without what is secret in it.
pub(crate) fn shown(kind: Kind, value: &Value) -> String {
    let text = |text: &str| match kind {
        Kind::Secret => "***".to_owned(),
        Kind::Url | Kind::Urls => without_password(text),
        _ => text.to_owned(),
    };
    match value {
        Value::Text(value) => text(value),
        Value::Number(number) if kind == Kind::Amount => format!("{number}M"),
        Value::Number(number) => number.to_string(),
        Value::Duration(duration) => length(*duration),
        Value::Switch(on) => on.to_string(),
        Value::List(items) => items.iter().map(|item| text(item)).collect::<Vec<_>>().join(", "),
    }
}

/// A length of time in the largest unit that it is whole in.
fn length(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    let units: [(&str, u128); 4] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    match units.into_iter().find(|(_, unit)| milliseconds >= *unit && milliseconds.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", milliseconds / unit),
        None => format!("{milliseconds}ms"),
    }
}

/// Where the part of a URL that says who we are begins and ends.
fn user_part(url: &str) -> Option<(usize, usize)> {
    let begin = url.find("://").map_or(0, |at| at + 3);
    let authority = url[begin..].split(['/', '?', '#']).next().unwrap_or_default();
    // A password may hold any of these in the clear, by mistake: then everything before the last `@` counts.
    let end = match authority.rfind('@') {
        Some(at) => begin + at,
        None => begin + url[begin..].rfind('@')?,
    };
    Some((begin, end))
}

/// Whether there is a password in a URL: after its user, or as a parameter.
pub(crate) fn has_password(url: &str) -> bool {
    let in_user = user_part(url).is_some_and(|(begin, end)| url[begin..end].contains(':'));
    in_user || parameters(url).any(|(name, _)| is_secret(name))
}

fn is_secret(parameter: &str) -> bool {
    let name = parameter.to_ascii_lowercase();
    ["pass", "secret", "token", "key"].iter().any(|word| name.contains(word)) && name != "sslkey"
}

fn parameters(url: &str) -> impl Iterator<Item = (&str, &str)> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    query.split('&').filter_map(|pair| pair.split_once('='))
}

/// A URL in which no password is left.
fn without_password(url: &str) -> String {
    let mut shown = match user_part(url) {
        Some((begin, end)) => match url[begin..end].split_once(':') {
            Some((user, _)) => format!("{}{user}:***{}", &url[..begin], &url[end..]),
            None => url.to_owned(),
        },
        None => url.to_owned(),
    };
    let secrets: Vec<String> = parameters(&shown)
        .filter(|(name, _)| is_secret(name))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    for secret in secrets {
        let name = secret.split('=').next().unwrap_or_default().to_owned();
        shown = shown.replace(&secret, &format!("{name}=***"));
    }
    shown
}

/// A URL with a password after its user. `None` when it names no user.
#[cfg(any(test, feature = "postgres"))]
pub(crate) fn with_password(url: &str, password: &str) -> Option<String> {
    let (begin, end) = user_part(url)?;
    let user = url[begin..end].split(':').next().filter(|user| !user.is_empty())?;
    let mut escaped = String::new();
    for byte in password.bytes() {
        // RFC 3986, section 2.3: these stand for themselves anywhere.
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    Some(format!("{}{user}:{escaped}{}", &url[..begin], &url[end..]))
}

#[cfg(test)]
mod tests {
    use super::super::keys;
    use super::*;

    #[test]
    fn no_password_of_a_url_is_ever_shown() {
        for (url, safe) in [
            ("postgres://u:hunter2@db:5432/x", "postgres://u:***@db:5432/x"),
            ("postgres://u:hunter2/@#2@db:5432/x", "postgres://u:***@db:5432/x"),
            ("nats://hunter2.is.a.token@h", "nats://hunter2.is.a.token@h"),
            (
                "postgres://u@db/x?password=hunter2&sslmode=require",
                "postgres://u@db/x?password=***&sslmode=require",
            ),
            ("http://127.0.0.1:8333", "http://127.0.0.1:8333"),
        ] {
            assert_eq!(without_password(url), safe);
            assert_eq!(has_password(url), url != safe, "{url}");
        }
    }

    #[test]
    fn a_password_is_put_into_a_url_whatever_is_in_it() {
        let url = with_password("postgres://flames@db/x?sslmode=require", "a/b@c:d é").unwrap();
        assert_eq!(url, "postgres://flames:a%2Fb%40c%3Ad%20%C3%A9@db/x?sslmode=require");
        assert_eq!(with_password("postgres://db/x", "p"), None);
    }

    #[test]
    fn a_length_of_time_is_shown_as_it_is_written() {
        for text in ["14d", "10s", "800ms", "90s", "2h"] {
            assert_eq!(length(parse::duration(text).unwrap()), text);
        }
    }

    #[test]
    fn every_default_and_every_example_can_be_read() {
        for (key, names) in keys::all() {
            if key.kind != Kind::Secret {
                for text in [key.default.unwrap_or(key.example), key.example] {
                    let value = read(key, &Raw::of_text(key.kind, text));
                    assert!(value.is_ok(), "{}: {:?}", names.path, value.err());
                }
            }
        }
    }

    #[test]
    fn what_is_no_value_is_told_with_what_is_allowed() {
        let refused = |path: &str, text: &str| {
            let (key, _) = keys::find(path).unwrap();
            read(key, &Raw::of_text(key.kind, text)).err().unwrap()
        };
        assert!(refused("state.backend", "oracle").contains("memory, sqlite, postgres, etcd"));
        assert!(refused("state.readers", "many").contains("no whole number"));
        assert!(refused("listen", "0.0.0.0:80").contains("loopback"));
        assert!(refused("cache.is_cluster", "perhaps").contains("true, false"));
        assert!(refused("host_labels", "=x").contains("KEY=VALUE"));
    }
}
