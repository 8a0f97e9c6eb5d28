//! What became of each case with each adapter in one run of all tests.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::suites::Suite;
use crate::test::report::{Results, Skip};

/// The outcomes of one run, kept in a file for `cargo xtask support`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcomes {
    /// Of what adapters were tested against, by name.
    pub(super) versions: BTreeMap<String, String>,
    pub(super) adapters: Vec<AdapterOutcomes>,
}

/// One adapter, or one configuration of it that has a suite of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct AdapterOutcomes {
    pub(super) interface: String,
    /// `memory`, or `sql: postgres` for a suite that is not called `conformance`.
    pub(super) name: String,
    pub(super) cases: BTreeMap<String, Outcome>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "why")]
pub(super) enum Outcome {
    Proven,
    Failed,
    /// The adapter says that it cannot.
    NotSupported(String),
    /// What it needs is not here.
    NotTested(String),
}

impl AdapterOutcomes {
    /// Whether anything ran. Where its server is absent nothing does.
    pub(super) fn was_tested(&self) -> bool {
        self.cases.values().any(|outcome| matches!(outcome, Outcome::Proven | Outcome::Failed))
    }
}

impl Outcomes {
    /// Finds the conformance suites among all suites of a run: those of a package `flames-<interface>-<adapter>` with most of the
    /// cases of that interface.
    pub(super) fn of_run(versions: BTreeMap<String, String>, results: &Results, suites: &[Suite]) -> Self {
        let mut adapters: Vec<AdapterOutcomes> = Vec::new();
        for (id, cases) in results {
            let Some((package, binary)) = id.split_once("::") else { continue };
            let Some((suite, adapter)) = suites.iter().find_map(|suite| {
                let adapter = package.strip_prefix("flames-")?.strip_prefix(suite.interface)?;
                Some((suite, adapter.strip_prefix('-')?))
            }) else {
                continue;
            };
            let of_suite: BTreeMap<&String, &CaseResult> =
                cases.iter().filter(|(case, _)| suite.has(case)).collect();
            if adapter == "conformance" || of_suite.len() * 2 < suite.size() {
                continue;
            }
            let any_ran =
                of_suite.values().any(|result| matches!(result, CaseResult::Passed | CaseResult::Failed));
            let outcome = |result: &CaseResult| match result {
                CaseResult::Passed => Outcome::Proven,
                CaseResult::Failed => Outcome::Failed,
                CaseResult::Ignored(why) if any_ran => Outcome::NotSupported(why.clone()),
                CaseResult::Ignored(why) => Outcome::NotTested(why.clone()),
            };
            adapters.push(AdapterOutcomes {
                interface: suite.interface.to_owned(),
                name: adapter_name(adapter, binary),
                cases: of_suite.into_iter().map(|(case, result)| (case.clone(), outcome(result))).collect(),
            });
        }
        let mut outcomes = Self { versions, adapters };
        outcomes.sort(suites);
        outcomes
    }

    /// Takes what is not known of an adapter or a version from an earlier run.
    pub(super) fn complete_from(&mut self, before: Self, suites: &[Suite]) {
        for adapter in before.adapters {
            let is_known =
                |known: &AdapterOutcomes| known.interface == adapter.interface && known.name == adapter.name;
            if !self.adapters.iter().any(is_known) {
                self.adapters.push(adapter);
            }
        }
        for (name, version) in before.versions {
            self.versions.entry(name).or_insert(version);
        }
        self.sort(suites);
    }

    fn sort(&mut self, suites: &[Suite]) {
        let place = |adapter: &AdapterOutcomes| {
            let interface = suites.iter().position(|suite| suite.interface == adapter.interface);
            // The reference answers first.
            let is_reference = matches!(adapter.name.as_str(), "memory" | "noop" | "simulated");
            (interface, !is_reference, adapter.name.clone())
        };
        self.adapters.sort_by_key(place);
    }

    /// # Errors
    /// When the folder cannot be written.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// # Errors
    /// When there has been no run, or its file is not one of this version.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("no outcomes in {}: run `cargo xtask test` first", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{}: run `cargo xtask test` again", path.display()))
    }
}

/// `memory` with `conformance` is `memory`, `simulated` with `conformance_least` is `simulated: least`, `sql` with `sqlite` is
/// `sql: sqlite`.
fn adapter_name(adapter: &str, binary: &str) -> String {
    let rest = binary.strip_prefix("conformance").unwrap_or(binary).trim_matches('_').replace('_', " ");
    if rest.is_empty() { adapter.to_owned() } else { format!("{adapter}: {rest}") }
}

/// What became of one case, of whatever suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CaseResult {
    Passed,
    Failed,
    /// With the reason.
    Ignored(String),
}

/// Why a case was ignored, out of what its binary told.
pub(crate) fn reason_for(case: &str, told: &[Skip]) -> String {
    let own = told.iter().find(|skip| skip.case.as_deref() == Some(case));
    let any = || told.iter().find(|skip| skip.case.is_none());
    own.or_else(any).map_or_else(|| "the suite gives no reason".to_owned(), |skip| skip.reason.clone())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::suites::Module;
    use super::*;

    pub(in super::super) fn suite() -> Suite {
        let cases = ["a_read", "a_write", "a_restart"].map(str::to_owned).to_vec();
        let module = Module { name: "reads".to_owned(), title: "Reading.".to_owned(), cases };
        Suite { interface: "state", modules: vec![module] }
    }

    fn results(suites: &[(&str, &[(&str, CaseResult)])]) -> Results {
        let cases = |cases: &[(&str, CaseResult)]| {
            cases.iter().map(|(name, result)| ((*name).to_owned(), result.clone())).collect()
        };
        suites.iter().map(|(id, list)| ((*id).to_owned(), cases(list))).collect()
    }

    #[test]
    fn conformance_suites_are_known_by_their_package_and_cases_and_what_never_ran_is_not_tested() {
        use CaseResult::{Failed, Ignored, Passed};
        let no_server = || Ignored("FLAMES_TEST_X is not set".to_owned());
        let run = results(&[
            (
                "flames-state-sqlite::conformance",
                &[("a_read", Passed), ("a_write", Failed), ("a_restart", Passed)],
            ),
            ("flames-state-sqlite::durability", &[("a_read", Passed)]),
            ("flames-state-sqlite", &[("a_read", Passed), ("a_write", Passed)]),
            (
                "flames-state-memory::conformance",
                &[
                    ("a_read", Passed),
                    ("a_write", Passed),
                    ("a_restart", Ignored("not durable".to_owned())),
                    ("more", Passed),
                ],
            ),
            ("flames-state-sql::post_gres", &[("a_read", no_server()), ("a_write", no_server())]),
            ("flames-state-conformance::x", &[("a_read", Passed), ("a_write", Passed)]),
            ("flames-statement-x::conformance", &[("a_read", Passed), ("a_write", Passed)]),
        ]);
        let outcomes = Outcomes::of_run(BTreeMap::new(), &run, &[suite()]);
        let names: Vec<&str> = outcomes.adapters.iter().map(|adapter| adapter.name.as_str()).collect();
        assert_eq!(names, ["memory", "sql: post gres", "sqlite"]);
        let [memory, sql, sqlite] = outcomes.adapters.as_slice() else { panic!("three") };
        assert_eq!(memory.cases.len(), 3, "a case of no table is none of the suite's");
        assert_eq!(memory.cases["a_restart"], Outcome::NotSupported("not durable".to_owned()));
        assert!(!sql.was_tested());
        assert!(matches!(sql.cases["a_read"], Outcome::NotTested(_)));
        assert_eq!(sqlite.cases["a_write"], Outcome::Failed);
    }

    #[test]
    fn a_run_of_some_packages_replaces_what_was_known_of_their_adapters_alone() {
        let passed = [("a_read", CaseResult::Passed), ("a_write", CaseResult::Passed)];
        let failed = [("a_read", CaseResult::Failed), ("a_write", CaseResult::Passed)];
        let of = |run: &[(&str, &[(&str, CaseResult)])]| {
            Outcomes::of_run(BTreeMap::new(), &results(run), &[suite()])
        };
        let mut before =
            of(&[("flames-state-a::conformance", &failed), ("flames-state-memory::conformance", &passed)]);
        before.versions.insert("redis".to_owned(), "7.0.15".to_owned());
        let mut now = of(&[("flames-state-a::conformance", &passed)]);
        now.complete_from(before, &[suite()]);
        let names: Vec<&str> = now.adapters.iter().map(|adapter| adapter.name.as_str()).collect();
        assert_eq!(names, ["memory", "a"]);
        assert_eq!(now.adapters[1].cases["a_read"], Outcome::Proven);
        assert_eq!(now.versions["redis"], "7.0.15");
    }

    #[test]
    fn the_file_keeps_everything() {
        let run = results(&[(
            "flames-state-memory::conformance",
            &[("a_read", CaseResult::Passed), ("a_write", CaseResult::Ignored("no".to_owned()))],
        )]);
        let versions = BTreeMap::from([("redis".to_owned(), "7.0.15".to_owned())]);
        let outcomes = Outcomes::of_run(versions, &run, &[suite()]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outcomes.json");
        assert!(Outcomes::load(&path).unwrap_err().to_string().contains("run `cargo xtask test` first"));
        outcomes.save(&path).unwrap();
        assert_eq!(Outcomes::load(&path).unwrap(), outcomes);
    }

    #[test]
    fn a_reason_of_the_case_itself_comes_before_one_for_all() {
        let skip = |case: Option<&str>, reason: &str| Skip {
            case: case.map(str::to_owned),
            reason: reason.to_owned(),
        };
        let told = [skip(None, "no kernel"), skip(Some("a_read"), "not durable")];
        assert_eq!(reason_for("a_read", &told), "not durable");
        assert_eq!(reason_for("a_write", &told), "no kernel");
        assert_eq!(reason_for("a_write", &told[1..]), "the suite gives no reason");
    }
}
