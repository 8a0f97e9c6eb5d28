//! What ran, what was skipped and why, by suite.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::doc_tests::DocTests;
use crate::support::outcomes::{CaseResult, reason_for};

/// Reasons and report lines shown under one suite at most: a table is no log.
const MAX_LINES: usize = 40;

/// Every case with what became of it, by suite and name.
pub(crate) type Results = BTreeMap<String, BTreeMap<String, CaseResult>>;

/// The results of one run, by suite (nextest's binary id: `package` for a library's unit tests, `package::binary`
/// for others).
#[derive(Debug, Default)]
pub(crate) struct Report {
    suites: BTreeMap<String, Suite>,
    results: Results,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Suite {
    passed: usize,
    failed: usize,
    skipped: usize,
    seconds: f64,
    /// Why cases were skipped, with how many each.
    reasons: BTreeMap<String, usize>,
    /// What tests had to report, in order.
    lines: Vec<String>,
}

impl Suite {
    fn skip(&mut self, reason: &str, cases: usize) {
        self.skipped += cases;
        *self.reasons.entry(reason.to_owned()).or_default() += cases;
    }

    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.seconds += other.seconds;
        self.lines.extend(other.lines.iter().cloned());
        for (reason, cases) in &other.reasons {
            *self.reasons.entry(reason.clone()).or_default() += cases;
        }
    }
}

impl Report {
    /// Reads nextest's JUnit file.
    ///
    /// # Errors
    /// When it is no such file.
    pub(crate) fn from_junit(text: &str) -> Result<Self> {
        let document = roxmltree::Document::parse(text).context("nextest's JUnit file is no XML")?;
        let mut report = Self::default();
        for suite_node in document.descendants().filter(|node| node.has_tag_name("testsuite")) {
            let name = suite_node.attribute("name").context("a test suite without a name")?;
            let suite = report.suites.entry(name.to_owned()).or_default();
            let results = report.results.entry(name.to_owned()).or_default();
            for case in suite_node.children().filter(|node| node.has_tag_name("testcase")) {
                suite.seconds +=
                    case.attribute("time").and_then(|time| time.parse::<f64>().ok()).unwrap_or(0.0);
                let output: String = case
                    .children()
                    .filter(|node| node.has_tag_name("system-out") || node.has_tag_name("system-err"))
                    .filter_map(|node| node.text())
                    .flat_map(|text| [text, "\n"])
                    .collect();
                suite.lines.extend(lines_after(&output, "report: "));
                let name = case.attribute("name").unwrap_or_default();
                let result =
                    if case.children().any(|node| node.has_tag_name("failure") || node.has_tag_name("error"))
                    {
                        suite.failed += 1;
                        CaseResult::Failed
                    } else if let Some(reason) = own_skip(&output, name) {
                        suite.skip(&reason, 1);
                        CaseResult::Ignored(reason)
                    } else {
                        suite.passed += 1;
                        CaseResult::Passed
                    };
                results.insert(name.to_owned(), result);
            }
        }
        Ok(report)
    }

    /// Adds the cases that their binaries ignore, which nextest's JUnit file does not have: from the JSON of
    /// `nextest list`. `reasons` answers why a binary (run in a folder) ignores cases.
    ///
    /// # Errors
    /// When `list` is not that JSON, or `reasons` fails.
    pub(crate) fn add_ignored(
        &mut self,
        list: &str,
        mut reasons: impl FnMut(&Path, &Path) -> Result<Vec<Skip>>,
    ) -> Result<()> {
        let list: List = serde_json::from_str(list).context("cannot read the answer of nextest list")?;
        for (name, listed) in list.rust_suites {
            // A case that was not asked for is no case that was skipped.
            let is_ignored =
                |case: &Case| case.ignored && case.filter_match.reason.as_deref() == Some("ignored");
            let ignored: Vec<&String> =
                listed.testcases.iter().filter(|(_, case)| is_ignored(case)).map(|(name, _)| name).collect();
            if ignored.is_empty() {
                continue;
            }
            let told = reasons(&listed.binary_path, &listed.cwd)?;
            let results = self.results.entry(name.clone()).or_default();
            for case in &ignored {
                results.insert((*case).clone(), CaseResult::Ignored(reason_for(case, &told)));
            }
            let suite = self.suites.entry(name).or_default();
            let ignored = ignored.len();
            let mut reasons: Vec<String> = told.into_iter().map(|skip| skip.reason).collect();
            if reasons.len() == ignored {
                reasons.iter().for_each(|reason| suite.skip(reason, 1));
            } else {
                reasons.sort();
                reasons.dedup();
                let reason = if reasons.is_empty() {
                    "the suite gives no reason".to_owned()
                } else {
                    reasons.join("; ")
                };
                suite.skip(&reason, ignored);
            }
        }
        Ok(())
    }

    /// Adds the documentation tests as a suite.
    pub(crate) fn add_doc_tests(&mut self, doc_tests: &DocTests) {
        let suite = self.suites.entry("documentation tests".to_owned()).or_default();
        suite.passed += doc_tests.passed;
        suite.failed += doc_tests.failed;
        if doc_tests.ignored > 0 {
            suite.skip("marked `ignore` in the documentation", doc_tests.ignored);
        }
    }

    /// Every case but documentation tests.
    pub(crate) fn results(&self) -> &Results {
        &self.results
    }

    pub(crate) fn all_passed(&self) -> bool {
        self.total().failed == 0
    }

    /// One plain line: how many cases passed, failed, were skipped.
    pub(crate) fn summary(&self) -> String {
        let Suite { passed, failed, skipped, .. } = self.total();
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }

    fn total(&self) -> Suite {
        let mut total = Suite::default();
        self.suites.values().for_each(|suite| total.add(suite));
        total
    }
}

/// Suites of one kind stand together; unit tests, of which every crate has some, are one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Conformance,
    Testbed,
    RealVm,
    Integration,
    Unit,
}

impl Group {
    fn of(suite: &str) -> Self {
        match suite.split_once("::") {
            _ if suite.starts_with("flames-testbed") => Self::Testbed,
            // nextest's id of the unit tests that stand in a binary's own source.
            Some((_, binary)) if binary.starts_with("bin/") => Self::Unit,
            Some((_, binary)) if binary.contains("conformance") => Self::Conformance,
            Some((_, binary)) if binary.contains("real_vm") => Self::RealVm,
            Some(_) => Self::Integration,
            None => Self::Unit,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Conformance => "conformance suites",
            Self::Testbed => "testbed",
            Self::RealVm => "real virtual machines",
            Self::Integration => "other suites",
            Self::Unit => "unit and documentation tests",
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: BTreeMap<Group, Vec<(String, Suite)>> = BTreeMap::new();
        let mut unit = Suite::default();
        for (name, suite) in &self.suites {
            match Group::of(name) {
                Group::Unit => unit.add(suite),
                group => groups.entry(group).or_default().push((name.clone(), suite.clone())),
            }
        }
        groups.entry(Group::Unit).or_default().push(("all crates".to_owned(), unit));
        writeln!(
            formatter,
            "{:<52} {:>6} {:>7} {:>8} {:>9}",
            "suite", "ran", "failed", "skipped", "seconds"
        )?;
        for (group, suites) in groups {
            writeln!(formatter, "{}", group.title())?;
            for (name, suite) in suites {
                let Suite { passed, failed, skipped, seconds, .. } = suite;
                let ran = passed + failed;
                writeln!(formatter, "  {name:<50} {ran:>6} {failed:>7} {skipped:>8} {seconds:>9.1}")?;
                let reasons =
                    suite.reasons.iter().map(|(reason, cases)| format!("{cases} skipped: {reason}"));
                for line in reasons.chain(suite.lines.iter().cloned()).take(MAX_LINES) {
                    writeln!(formatter, "      {line}")?;
                }
            }
        }
        Ok(())
    }
}

/// One line `skipped: <reason>`, or `skipped: <suite>/<provider>: <case>: <reason>` as conformance suites print it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Skip {
    pub(crate) case: Option<String>,
    pub(crate) reason: String,
}

/// All such lines of an output.
pub(crate) fn skips(output: &str) -> impl Iterator<Item = Skip> + '_ {
    lines_after(output, "skipped: ").map(|text| {
        let mut parts = text.splitn(3, ": ");
        match (parts.next(), parts.next(), parts.next()) {
            (Some(suite), Some(case), Some(reason)) if suite.contains('/') && !suite.contains(' ') => {
                Skip { case: Some(case.to_owned()), reason: reason.to_owned() }
            }
            _ => Skip { case: None, reason: text },
        }
    })
}

/// Why a case says that it has not really run. A conformance suite tells of the cases that it ignores in the output of
/// the first that runs; what names another case does not count.
fn own_skip(output: &str, case: &str) -> Option<String> {
    skips(output).find(|skip| skip.case.as_deref().is_none_or(|named| named == case)).map(|skip| skip.reason)
}

fn lines_after<'a>(output: &'a str, prefix: &'a str) -> impl Iterator<Item = String> + 'a {
    output
        .lines()
        .filter_map(move |line| line.trim_start().strip_prefix(prefix))
        .map(|text| text.trim_end().to_owned())
}

/// The part of `nextest list --message-format json` that is needed.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct List {
    rust_suites: BTreeMap<String, ListedSuite>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ListedSuite {
    binary_path: PathBuf,
    cwd: PathBuf,
    #[serde(default)]
    testcases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Case {
    ignored: bool,
    filter_match: FilterMatch,
}

#[derive(Deserialize)]
struct FilterMatch {
    reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUNIT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="flames" tests="5" failures="1" errors="0" time="1.5">
  <testsuite name="flames-state-memory::conformance" tests="3" disabled="0" errors="0" failures="1">
    <testcase name="a_commit_is_atomic" classname="flames-state-memory::conformance" time="0.250">
      <system-err>skipped: state/memory: it_survives_a_restart: it is not durable</system-err>
    </testcase>
    <testcase name="a_scan_is_one_cut" classname="flames-state-memory::conformance" time="0.250">
      <failure type="test failure">left &lt; right</failure>
      <system-out>skipped: a failed case is never counted as skipped</system-out>
    </testcase>
    <testcase name="boots" classname="flames-state-memory::conformance" time="0.5">
      <system-out>running 1 test
skipped: no kernel here
</system-out>
    </testcase>
  </testsuite>
  <testsuite name="flames-testbed::seeds" tests="1" disabled="0" errors="0" failures="0">
    <testcase name="two_hundred_seeds" classname="flames-testbed::seeds" time="9.0">
      <system-out>report: 200 seeds, 11000 operations
noise</system-out>
    </testcase>
  </testsuite>
  <testsuite name="flames-model" tests="1" disabled="0" errors="0" failures="0">
    <testcase name="vm::deleted_absorbs" classname="flames-model" time="0.01"/>
  </testsuite>
</testsuites>"#;

    #[test]
    fn passed_failed_and_skipped_cases_are_told_apart() {
        let report = Report::from_junit(JUNIT).unwrap();
        assert_eq!(report.summary(), "3 passed, 1 failed, 1 skipped");
        assert!(!report.all_passed());
        let suite = &report.suites["flames-state-memory::conformance"];
        assert_eq!((suite.passed, suite.failed, suite.skipped), (1, 1, 1));
        assert_eq!(suite.reasons, BTreeMap::from([("no kernel here".to_owned(), 1)]));
        let cases = &report.results()["flames-state-memory::conformance"];
        assert_eq!(cases["a_commit_is_atomic"], CaseResult::Passed);
        assert_eq!(cases["a_scan_is_one_cut"], CaseResult::Failed);
        assert_eq!(cases["boots"], CaseResult::Ignored("no kernel here".to_owned()));
        assert!((suite.seconds - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_table_shows_reasons_and_report_lines_under_their_suite() {
        let table = Report::from_junit(JUNIT).unwrap().to_string();
        let lines: Vec<&str> = table.lines().map(str::trim).collect();
        let position = |text: &str| {
            lines.iter().position(|line| line.starts_with(text)).unwrap_or_else(|| panic!("{text}"))
        };
        assert!(position("conformance suites") < position("flames-state-memory::conformance"));
        assert_eq!(position("1 skipped: no kernel here"), position("flames-state-memory::conformance") + 1);
        assert_eq!(position("200 seeds, 11000 operations"), position("flames-testbed::seeds") + 1);
        assert!(!table.contains("noise"));
    }

    fn list_with(cases: &str) -> String {
        format!(
            r#"{{"test-count": 3, "rust-suites": {{"flames-vmm-qemu::real_vm": {{"package-name": "flames-vmm-qemu",
            "binary-path": "/t/real_vm", "cwd": "/w/qemu", "testcases": {{{cases}}}}}}}}}"#
        )
    }

    fn skip(reason: &str) -> Skip {
        Skip { case: None, reason: reason.to_owned() }
    }

    const IGNORED: &str = r#""a": {"ignored": true, "filter-match": {"status": "mismatch", "reason": "ignored"}},
        "b": {"ignored": true, "filter-match": {"status": "mismatch", "reason": "ignored"}},
        "c": {"ignored": false, "filter-match": {"status": "matches"}}"#;

    #[test]
    fn ignored_cases_are_counted_with_the_reasons_that_their_binary_gives() {
        let mut report = Report::default();
        let mut asked = Vec::new();
        report
            .add_ignored(&list_with(IGNORED), |binary, folder| {
                asked.push((binary.to_owned(), folder.to_owned()));
                Ok(vec![skip("no qemu")])
            })
            .unwrap();
        assert_eq!(asked, [(PathBuf::from("/t/real_vm"), PathBuf::from("/w/qemu"))]);
        assert_eq!(report.summary(), "0 passed, 0 failed, 2 skipped");
        assert!(report.to_string().contains("2 skipped: no qemu"), "{report}");
        let cases = &report.results()["flames-vmm-qemu::real_vm"];
        assert_eq!(cases["a"], CaseResult::Ignored("no qemu".to_owned()));
        assert!(!cases.contains_key("c"), "what ran stands in the JUnit file");
    }

    #[test]
    fn one_reason_for_each_ignored_case_is_counted_by_case() {
        let mut report = Report::default();
        let reasons = || Ok(vec![skip("no qemu"), skip("no kernel")]);
        report.add_ignored(&list_with(IGNORED), |_, _| reasons()).unwrap();
        let text = report.to_string();
        assert!(text.contains("1 skipped: no qemu") && text.contains("1 skipped: no kernel"), "{text}");
    }

    #[test]
    fn a_conformance_suite_gives_each_ignored_case_with_its_reason() {
        let output = "it_lasts: test\nskipped: state/memory: it_lasts: it is not durable: memory\nskipped: no kernel: none\n";
        let lasting =
            Skip { case: Some("it_lasts".to_owned()), reason: "it is not durable: memory".to_owned() };
        assert_eq!(skips(output).collect::<Vec<_>>(), [lasting, skip("no kernel: none")]);
        assert_eq!(own_skip(output, "it_lasts").as_deref(), Some("it is not durable: memory"));
        assert_eq!(own_skip("skipped: state/memory: it_lasts: it is not durable", "another"), None);
    }

    #[test]
    fn a_suite_that_gives_no_reason_is_shown_as_such() {
        let mut report = Report::default();
        report.add_ignored(&list_with(IGNORED), |_, _| Ok(vec![])).unwrap();
        assert!(report.to_string().contains("2 skipped: the suite gives no reason"), "{report}");
    }

    #[test]
    fn a_case_that_was_not_asked_for_is_not_skipped() {
        let filtered =
            r#""a": {"ignored": true, "filter-match": {"status": "mismatch", "reason": "string"}}"#;
        let mut report = Report::default();
        report.add_ignored(&list_with(filtered), |_, _| panic!("nothing to ask")).unwrap();
        assert_eq!(report.summary(), "0 passed, 0 failed, 0 skipped");
    }

    #[test]
    fn documentation_tests_count_in_the_summary() {
        let mut report = Report::default();
        report.add_doc_tests(&DocTests { passed: 5, failed: 1, ignored: 1 });
        assert_eq!(report.summary(), "5 passed, 1 failed, 1 skipped");
    }
}
