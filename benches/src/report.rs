//! What a harness found: tables, and the bars that were set.

use std::borrow::Cow;
use std::fmt;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

/// One figure with its unit, for people and for machines.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    /// What it is, with its unit.
    pub(crate) name: &'static str,
    /// How much.
    pub(crate) value: f64,
}

/// Rows of the same figures.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Section {
    /// What was measured, and how.
    pub(crate) title: String,
    /// What tells the rows apart.
    pub(crate) key: &'static str,
    /// Each row's key and figures.
    pub(crate) rows: Vec<Row>,
}

/// One row.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) key: String,
    pub(crate) figures: Vec<Figure>,
}

/// Which side of a bar is the good one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Side {
    AtLeast,
    AtMost,
}

/// A ratio that was set as a goal.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Bar {
    pub(crate) name: Cow<'static, str>,
    pub(crate) side: Side,
    pub(crate) bar: f64,
    pub(crate) measured: f64,
    pub(crate) passed: bool,
}

impl Bar {
    pub(crate) fn new(name: impl Into<Cow<'static, str>>, side: Side, bar: f64, measured: f64) -> Self {
        let passed = match side {
            Side::AtLeast => measured >= bar,
            Side::AtMost => measured <= bar,
        };
        Self { name: name.into(), side, bar, measured, passed }
    }
}

impl Bar {
    fn goal(&self) -> String {
        let sign = if self.side == Side::AtLeast { "≥" } else { "≤" };
        format!("{sign} {}", digits(self.bar))
    }

    fn verdict(&self) -> &'static str {
        if self.passed { "met" } else { "MISSED" }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6} {}: {} ({})", self.verdict(), self.name, digits(self.measured), self.goal())
    }
}

/// All that a harness found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) harness: &'static str,
    /// The processors that all of it shared.
    pub(crate) processors: usize,
    pub(crate) seconds: f64,
    pub(crate) sections: Vec<Section>,
    pub(crate) bars: Vec<Bar>,
    /// What was not measured, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) skipped: Vec<String>,
}

impl Report {
    pub(crate) fn new(
        harness: &'static str,
        began: std::time::Instant,
        sections: Vec<Section>,
        bars: Vec<Bar>,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            harness,
            processors,
            seconds: began.elapsed().as_secs_f64(),
            sections,
            bars,
            skipped: Vec::new(),
        }
    }

    /// With what was not measured.
    #[cfg(feature = "providers")]
    pub(crate) fn with_skipped(mut self, skipped: Vec<String>) -> Self {
        self.skipped = skipped;
        self
    }

    /// Whether every bar was met.
    pub(crate) fn passed(&self) -> bool {
        self.bars.iter().all(|bar| bar.passed)
    }
}

/// Three significant digits, and all of those before the point.
fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "bench {} on {} processors, {:.0} s", self.harness, self.processors, self.seconds)?;
        for section in &self.sections {
            let mut table = Table::new();
            table.load_style(presets::ASCII_MARKDOWN);
            let names = section.rows.first().map(|row| row.figures.as_slice()).unwrap_or_default();
            let mut header = vec![section.key.to_owned()];
            header.extend(names.iter().map(|figure| figure.name.to_owned()));
            table.set_header(header);
            for row in &section.rows {
                let mut cells = vec![right(row.key.clone())];
                cells.extend(row.figures.iter().map(|figure| right(digits(figure.value))));
                table.add_row(cells);
            }
            writeln!(f, "\n{}\n{table}", section.title)?;
        }
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header(["bar", "goal", "measured", "verdict"]);
        for bar in &self.bars {
            table.add_row([
                Cell::new(&bar.name),
                right(bar.goal()),
                right(digits(bar.measured)),
                Cell::new(bar.verdict()),
            ]);
        }
        write!(f, "\n{table}")?;
        for skipped in &self.skipped {
            write!(f, "\n{skipped}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_on_its_good_side_and_by_equality() {
        assert!(Bar::new("r", Side::AtLeast, 0.3, 0.3).passed);
        assert!(!Bar::new("r", Side::AtLeast, 0.3, 0.29).passed);
        assert!(Bar::new("r", Side::AtMost, 1.1, 1.1).passed);
        assert!(!Bar::new("r", Side::AtMost, 1.1, 1.11).passed);
    }

    #[test]
    fn one_missed_bar_fails_the_report_and_is_told_as_missed() {
        let bars = vec![Bar::new("a", Side::AtLeast, 1.0, 2.0), Bar::new("b", Side::AtMost, 1.0, 2.0)];
        let report = Report::new("api", std::time::Instant::now(), Vec::new(), bars);
        assert!(!report.passed());
        assert!(report.to_string().contains("MISSED"));
    }
}
