//! What users are told of a queue file in trouble.

use std::path::Path;

use flames_error::{Error, ErrorKind};

/// The error for a file that cannot be opened, with a sentence that says what to do.
pub(crate) fn not_opened(path: &Path, error: Error) -> Error {
    let shown = path.display();
    let sentence = match error.kind() {
        ErrorKind::Corrupt => format!(
            "Queue `sqlite`, setting `path`: {shown} is damaged or no SQLite database. Move it away, and a new one is made: what is due is \
             found again in the state store."
        ),
        ErrorKind::Exhausted => {
            format!(
                "Queue `sqlite`, setting `path`: no room is left for {shown}. Free some, or choose another folder."
            )
        }
        _ => format!(
            "Queue `sqlite`, setting `path`: {shown} cannot be opened. See that its folder is there and can be written, and that no other \
             program holds the file."
        ),
    };
    error.with_context("path", &shown).with_field("path").with_user_message(sentence)
}
