//! What commands write: results to standard output, words about them to standard error.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use flames_model::Timestamp;
use serde::Serialize;

use crate::exit::Failure;

/// How to write.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Output {
    /// Machines read it.
    pub(crate) json: bool,
    /// No words but the result.
    pub(crate) quiet: bool,
}

/// Writes to standard output. A reader that is gone (`flames ps | head`) ends the process quietly, as other tools end.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Failure> {
    done(write_through(io::stdout().lock(), bytes))
}

/// Writes to standard output, or standard error. Answers whether anybody reads it: for what has more to end than itself.
pub(crate) fn write_if_read(bytes: &[u8], to_error: bool) -> Result<bool, Failure> {
    let written = match to_error {
        true => write_through(io::stderr().lock(), bytes),
        false => write_through(io::stdout().lock(), bytes),
    };
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => done(written).map(|()| true),
    }
}

fn write_through(mut out: impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes).and_then(|()| out.flush())
}

/// Writes to standard error.
pub(crate) fn write_error(bytes: &[u8]) -> Result<(), Failure> {
    done(write_through(io::stderr().lock(), bytes))
}

fn done(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::io("The output cannot be written", &error)),
        Ok(()) => Ok(()),
    }
}

/// One line on standard output.
pub(crate) fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    write(format!("{}\n", text.as_ref()).as_bytes())
}

impl Output {
    /// Words for a person, on standard error; nothing when quiet, or when machines read.
    pub(crate) fn say(&self, text: impl AsRef<str>) {
        if !self.quiet && !self.json {
            // There is nobody to tell that nobody can be told.
            let _ = write_error(format!("{}\n", text.as_ref()).as_bytes());
        }
    }

    /// Whether a person watches.
    pub(crate) fn is_watched(&self) -> bool {
        !self.quiet && !self.json && io::stderr().is_terminal()
    }

    /// A value as JSON.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::failed(format!("The answer cannot be written as JSON: {error}")))?;
        line(text)
    }

    /// A value as one line of JSON, for what comes piece by piece.
    pub(crate) fn json_line<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::failed(format!("The answer cannot be written as JSON: {error}")))?;
        line(text)
    }

    /// A table with a head.
    pub(crate) fn table(&self, head: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
        columns(Some(head), rows)
    }

    /// Rows without a head: what is told, and its value.
    pub(crate) fn list(&self, rows: Vec<Vec<String>>) -> Result<(), Failure> {
        columns(None, rows)
    }
    /// Why a command failed, on standard error.
    pub(crate) fn failure(&self, failure: &Failure, docs: Option<&str>) {
        let text = if self.json {
            format!("{}\n", failure.to_json())
        } else {
            let mut text = format!("flames: {}\n", printable(&failure.message));
            if let Some(field) = &failure.field {
                text.push_str(&format!("  field: {}\n", printable(field)));
            }
            if let Some(advice) = &failure.advice {
                text.push_str(&format!("  {advice}\n"));
            }
            if let Some(code) = &failure.code {
                text.push_str(&format!("  {code}: {}/docs/errors/{code}\n", docs.unwrap_or_default()));
            }
            if let (Some(request), Some("INTERNAL")) = (&failure.request, failure.code.as_deref()) {
                text.push_str(&format!("  request: {}\n", printable(request)));
            }
            text
        };
        let _ = write_error(text.as_bytes());
    }
}

/// Columns aligned by blanks, cut to a terminal's width only on a terminal.
fn columns(head: Option<&[&str]>, rows: Vec<Vec<String>>) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let arrangement = match io::stdout().is_terminal() {
        true => ContentArrangement::Dynamic,
        false => ContentArrangement::Disabled,
    };
    table.set_content_arrangement(arrangement);
    if let Some(head) = head {
        table.set_header(head.iter().map(|title| title.to_uppercase()));
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for row in table.lines() {
        line(row.trim_end())?;
    }
    Ok(())
}

/// Text that others wrote, safe on a terminal: control characters are shown, not obeyed.
pub(crate) fn printable(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

/// How long ago something was, in one unit.
pub(crate) fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A number of bytes, in binary units.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_drive_a_terminal() {
        assert_eq!(printable("plain ü"), "plain ü");
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(age(at(100), at(40)), "60s");
        assert_eq!(age(at(40), at(100)), "0s");
        assert_eq!(age(at(400_000), at(0)), "4d");
        assert_eq!((bytes(512), bytes(1_572_864)), ("512 B".to_owned(), "1.5 MiB".to_owned()));
    }
}
