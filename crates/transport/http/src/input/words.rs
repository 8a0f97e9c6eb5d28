//! What a deserializer says, in the terms of whoever sent the input: fields, and what they take. Its own words name types of this code, and
//! repeat what was sent, which may be a secret.

use crate::failure::{Failure, invalid};

/// The longest sentence.
const LONGEST: usize = 400;
/// Integer types, with what they hold.
const INTEGERS: [(&str, u64); 4] =
    [("u8", u8::MAX as u64), ("u16", u16::MAX as u64), ("u32", u32::MAX as u64), ("u64", u64::MAX)];

/// The refusal of input, from where a deserializer stopped (`path`, as `serde_path_to_error` has it; `.` is `whole`) and what it said.
pub(super) fn refused(path: &str, whole: &str, said: &str) -> Failure {
    // JSON's places count bytes of a text that its sender may never have seen.
    let said = said.rsplit_once(" at line ").map_or(said, |(said, _)| said);
    let missing = said.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
    let field = match (path, missing) {
        (".", Some(missing)) => missing.to_owned(),
        (".", None) => whole.to_owned(),
        (path, Some(missing)) => format!("{path}.{missing}"),
        (path, None) => path.to_owned(),
    };
    let text = match said {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "a whole number is expected, from 0 on".to_owned()
        }
        "number too large to fit in target type" => "the number is too large".to_owned(),
        "provided string was not `true` or `false`" => "`true` or `false` is expected".to_owned(),
        said => plain(said),
    };
    invalid(&field, sentence(&text))
}

/// Without values that were sent as strings, and without names of types.
fn plain(said: &str) -> String {
    let Some((found, expected)) = said.rsplit_once(", expected ") else { return said.to_owned() };
    let found = match found.find(": string \"") {
        Some(at) => &found[..at + ": string".len()],
        None => found,
    };
    let kind = expected.split([' ', '<']).next().unwrap_or_default();
    let integer = INTEGERS.iter().find(|(name, _)| *name == expected);
    let expected = match (kind, integer) {
        (_, Some((_, largest))) => format!("a whole number from 0 to {largest}"),
        ("struct" | "map", _) => "an object".to_owned(),
        _ if expected == "a map" => "an object".to_owned(),
        _ if expected == "a sequence" => "an array".to_owned(),
        _ => expected.to_owned(),
    };
    format!("{found}, expected {expected}")
}

/// A deserializer's message as a sentence.
pub(super) fn sentence(message: &str) -> String {
    let mut characters = message.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let text: String = first.chars().chain(characters).take(LONGEST).collect();
    if text.ends_with('.') { text } else { format!("{text}.") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn told(path: &str, said: &str) -> (String, String) {
        let error = refused(path, "body", said).0;
        (error.field().unwrap().to_owned(), error.user_message().unwrap().to_owned())
    }

    #[test]
    fn a_refusal_names_the_field_and_its_range_and_neither_types_nor_what_was_sent() {
        for (path, said, field, sentence) in [
            (".", "missing field `spec` at line 1 column 2", "spec", "Missing field `spec`."),
            ("spec", "missing field `image` at line 1 column 10", "spec.image", "Missing field `image`."),
            (
                "spec.ports[0].guest_port",
                "invalid value: integer `70000`, expected u16 at line 1 column 54",
                "spec.ports[0].guest_port",
                "Invalid value: integer `70000`, expected a whole number from 0 to 65535.",
            ),
            (
                "spec.secret_env",
                r#"invalid type: string "hunter2, expected \"x\"", expected a map at line 1 column 55"#,
                "spec.secret_env",
                "Invalid type: string, expected an object.",
            ),
            (
                ".",
                "invalid type: sequence, expected struct CreateVm at line 1 column 0",
                "body",
                "Invalid type: sequence, expected an object.",
            ),
            ("tail", "invalid digit found in string", "tail", "A whole number is expected, from 0 on."),
            (
                "spec",
                "unknown field `bogus`, expected one of `image`, `kernel`",
                "spec",
                "Unknown field `bogus`, expected one of `image`, `kernel`.",
            ),
        ] {
            assert_eq!(told(path, said), (field.to_owned(), sentence.to_owned()), "{said}");
        }
    }
}
