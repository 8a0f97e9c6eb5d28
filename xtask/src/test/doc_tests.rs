//! The outcome of documentation tests, which nextest does not run.

use anyhow::Result;

/// The counts of `cargo test --doc`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DocTests {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) ignored: usize,
}

impl DocTests {
    /// Sums the lines `test result: ok. 1 passed; 0 failed; 2 ignored; …`.
    ///
    /// # Errors
    /// When the command failed without a failed test: something did not build.
    pub(crate) fn from_output(text: &str, success: bool) -> Result<Self> {
        let mut sum = Self::default();
        for line in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
            let counts = line.split_once(". ").map_or(line, |(_, counts)| counts);
            for count in counts.split(';') {
                let mut words = count.split_whitespace();
                if let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<usize>), words.next()) {
                    match what {
                        "passed" => sum.passed += count,
                        "failed" => sum.failed += count,
                        "ignored" => sum.ignored += count,
                        _ => {}
                    }
                }
            }
        }
        anyhow::ensure!(success || sum.failed > 0, "the documentation tests could not be run");
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documentation_tests_are_summed_over_the_crates() {
        let text = "running 2 tests\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                    test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.5s\n";
        let sum = DocTests::from_output(text, false).unwrap();
        assert_eq!(sum, DocTests { passed: 5, failed: 1, ignored: 1 });
    }

    #[test]
    fn documentation_tests_that_do_not_build_are_an_error_and_not_zero_failures() {
        assert!(DocTests::from_output("error: could not compile\n", false).is_err());
    }
}
