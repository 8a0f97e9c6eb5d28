//! How long each stage of a run took.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// The stages of one run, in order, with their durations.
#[derive(Default)]
pub(crate) struct Stages {
    finished: Vec<(String, Duration)>,
}

impl Stages {
    /// Runs one stage under a heading and remembers how long it took, also when it fails.
    pub(crate) fn run<T>(
        &mut self,
        name: &str,
        stage: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        println!("\n=== {name}");
        let start = Instant::now();
        let result = stage();
        self.finished.push((name.to_owned(), start.elapsed()));
        result
    }

    /// The stages so far in one line, in seconds, with their sum.
    pub(crate) fn line(&self) -> String {
        let total: Duration = self.finished.iter().map(|(_, duration)| *duration).sum();
        let each: Vec<String> = self
            .finished
            .iter()
            .map(|(name, duration)| format!("{name} {:.1}", duration.as_secs_f64()))
            .collect();
        format!("{:.1} s in all: {}", total.as_secs_f64(), each.join(", "))
    }

    /// A table of the stages so far, in minutes, with their sum.
    pub(crate) fn table(&self) -> String {
        let total: Duration = self.finished.iter().map(|(_, duration)| *duration).sum();
        let mut table = String::new();
        for (name, duration) in
            self.finished.iter().map(|(name, duration)| (name.as_str(), *duration)).chain([("total", total)])
        {
            // Writing into a String cannot fail.
            let _ = writeln!(table, "{name:<28} {:>6.1} min", duration.as_secs_f64() / 60.0);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_stage_also_one_that_failed_and_ends_with_the_sum() {
        let mut stages = Stages::default();
        stages.run("build", || Ok(())).unwrap();
        stages.run("tests", || anyhow::bail!("no") as anyhow::Result<()>).unwrap_err();
        let table = stages.table();
        let names: Vec<&str> = table.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
        assert_eq!(names, ["build", "tests", "total"]);
        assert_eq!(stages.line(), "0.0 s in all: build 0.0, tests 0.0");
    }
}
