//! The page, written and read back.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::outcomes::{AdapterOutcomes, Outcome, Outcomes};
use super::suites::{INTERFACES, Suite};

/// Adapters that are compiled and that no test of this repository reaches: interface, name, why.
const COMPILED_ONLY: [(&str, &str, &str); 2] = [
    ("blob", "object-store: gcs", "there is no server for it to be had without an account at Google"),
    ("blob", "object-store: azure", "there is no server for it to be had without an account at Microsoft"),
];

const HEAD: &str = "\
# Which adapter keeps which promise

<!-- Written by `cargo xtask support` from the outcomes of `cargo xtask test`. Do not edit. -->

Each row of the tables below is a guarantee: a case of the interface's conformance suite, under its name. The suites are in
`crates/provider/*/conformance`, and the documentation of each interface says what the guarantees mean. A cell says what became of the
case with that adapter, against the real thing in the version given:

- **yes**: proven.
- **n/a [1]**: not asked of this adapter, which does not support it or has nothing of the kind; the note says why.
- **—**: not tested where this page was written.

";

/// What stands in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell {
    Yes,
    NotApplicable,
    Untested,
}

impl Cell {
    pub(super) fn of(adapter: &AdapterOutcomes, case: &str) -> Self {
        match adapter.cases.get(case) {
            Some(Outcome::Proven) => Self::Yes,
            Some(Outcome::NotSupported(_)) => Self::NotApplicable,
            // A page with failures is never written.
            Some(Outcome::NotTested(_) | Outcome::Failed) | None => Self::Untested,
        }
    }
}

/// Interface, adapter and case to cell.
pub(super) type Cells = BTreeMap<(String, String, String), Cell>;

/// Writes the page.
pub(super) fn write(outcomes: &Outcomes, suites: &[Suite]) -> String {
    let mut page = HEAD.to_owned();
    summary(&mut page, outcomes, suites);
    for suite in suites {
        let adapters: Vec<&AdapterOutcomes> =
            outcomes.adapters.iter().filter(|adapter| adapter.interface == suite.interface).collect();
        if !adapters.is_empty() {
            section(&mut page, suite, &adapters);
        }
    }
    page
}

// Writing into a String cannot fail, here and below.
fn summary(page: &mut String, outcomes: &Outcomes, suites: &[Suite]) {
    page.push_str(
        "## All adapters\n\n| Interface | Adapter | Tested against | Proven | Not applicable | Not tested |\n",
    );
    page.push_str("| --- | --- | --- | ---: | ---: | ---: |\n");
    for suite in suites {
        for adapter in outcomes.adapters.iter().filter(|adapter| adapter.interface == suite.interface) {
            let count = |wanted: Cell| {
                let cases = suite.modules.iter().flat_map(|module| &module.cases);
                cases.filter(|case| Cell::of(adapter, case) == wanted).count()
            };
            let (yes, not_applicable, untested) =
                (count(Cell::Yes), count(Cell::NotApplicable), count(Cell::Untested));
            let _ = writeln!(
                page,
                "| {} | {} | {} | {yes} | {not_applicable} | {untested} |",
                suite.interface,
                adapter.name,
                tested_against(adapter, &outcomes.versions),
            );
        }
        for (_, name, why) in COMPILED_ONLY.iter().filter(|(interface, ..)| *interface == suite.interface) {
            let _ = writeln!(
                page,
                "| {} | {name} | nothing: compiled, and untested here ({why}) | 0 | 0 | {} |",
                suite.interface,
                suite.size()
            );
        }
    }
    page.push('\n');
}

/// The server whose name is a word of the adapter's.
fn tested_against(adapter: &AdapterOutcomes, versions: &BTreeMap<String, String>) -> String {
    if !adapter.was_tested() {
        let why = adapter.cases.values().find_map(|outcome| match outcome {
            Outcome::NotTested(why) => Some(plain(why)),
            _ => None,
        });
        return format!("nothing here: {}", why.unwrap_or_else(|| "no case ran".to_owned()));
    }
    let words: Vec<&str> = adapter.name.split([' ', ':', '-']).collect();
    let server = versions.iter().find(|(name, _)| words.contains(&name.as_str()));
    match server {
        Some((name, version)) if name == "s3" => format!("SeaweedFS {version}"),
        Some((name, version)) => format!("{name} {version}"),
        None if words.contains(&"sqlite") => "SQLite, compiled in".to_owned(),
        None if adapter.name.starts_with("object-store") => "local files".to_owned(),
        None => "itself".to_owned(),
    }
}

fn section(page: &mut String, suite: &Suite, adapters: &[&AdapterOutcomes]) {
    let _ = writeln!(page, "## {}\n", suite.interface);
    let mut notes: Vec<String> = Vec::new();
    for module in &suite.modules {
        let _ = writeln!(page, "### {}: {}\n", suite.interface, module.name.replace('_', " "));
        if !module.title.is_empty() {
            let _ = writeln!(page, "{}\n", plain(&module.title));
        }
        let names: Vec<&str> = adapters.iter().map(|adapter| adapter.name.as_str()).collect();
        let _ = writeln!(page, "| Guarantee | {} |", names.join(" | "));
        let _ = writeln!(page, "| --- |{}", " --- |".repeat(names.len()));
        for case in &module.cases {
            let _ = write!(page, "| {} |", case.replace('_', " "));
            for adapter in adapters {
                let cell = match adapter.cases.get(case) {
                    Some(Outcome::NotSupported(why)) => format!("n/a [{}]", note(&mut notes, &plain(why))),
                    _ if Cell::of(adapter, case) == Cell::Yes => "yes".to_owned(),
                    _ => "—".to_owned(),
                };
                let _ = write!(page, " {cell} |");
            }
            page.push('\n');
        }
        page.push('\n');
    }
    for (index, why) in notes.iter().enumerate() {
        let _ = writeln!(page, "- [{}] {why}", index + 1);
    }
    if !notes.is_empty() {
        page.push('\n');
    }
}

/// The number of a note, the same for the same text.
fn note(notes: &mut Vec<String>, text: &str) -> usize {
    match notes.iter().position(|known| known == text) {
        Some(index) => index + 1,
        None => {
            notes.push(text.to_owned());
            notes.len()
        }
    }
}

/// A text that cannot break a table.
fn plain(text: &str) -> String {
    text.replace('|', "/").replace(['\n', '\r'], " ")
}

/// Reads back what the page's tables say.
pub(super) fn read(page: &str) -> Cells {
    let mut cells = Cells::new();
    let mut interface = None;
    let mut adapters: Vec<&str> = Vec::new();
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            interface = INTERFACES.iter().find(|interface| **interface == title.trim());
            adapters.clear();
        }
        let (Some(interface), Some(row)) = (interface, row(line)) else { continue };
        match row.split_first() {
            Some((&"Guarantee", rest)) => adapters = rest.to_vec(),
            Some((&"---", _)) | None => {}
            Some((guarantee, rest)) => {
                for (adapter, text) in adapters.iter().zip(rest) {
                    let cell = match *text {
                        "yes" => Cell::Yes,
                        text if text.starts_with("n/a ") => Cell::NotApplicable,
                        _ => Cell::Untested,
                    };
                    let case = guarantee.replace(' ', "_");
                    cells.insert(((*interface).to_owned(), (*adapter).to_owned(), case), cell);
                }
            }
        }
    }
    cells
}

fn row(line: &str) -> Option<Vec<&str>> {
    Some(line.strip_prefix("| ")?.strip_suffix('|')?.split('|').map(str::trim).collect())
}

/// Where page and run say different things about what an adapter keeps. What was not tested in this run is not compared; versions
/// may differ.
pub(super) fn disagreements(page: &Cells, outcomes: &Outcomes, suites: &[Suite]) -> Vec<String> {
    let mut found = Vec::new();
    let mut expected = Cells::new();
    for adapter in &outcomes.adapters {
        for suite in suites.iter().filter(|suite| suite.interface == adapter.interface) {
            for case in suite.modules.iter().flat_map(|module| &module.cases) {
                let key = (adapter.interface.clone(), adapter.name.clone(), case.clone());
                expected.insert(key, Cell::of(adapter, case));
            }
        }
    }
    let was_tested = |interface: &str, name: &str| {
        let adapter =
            outcomes.adapters.iter().find(|adapter| adapter.interface == interface && adapter.name == name);
        adapter.is_none_or(AdapterOutcomes::was_tested)
    };
    for (key @ (interface, adapter, case), cell) in &expected {
        if !was_tested(interface, adapter) {
            continue;
        }
        match page.get(key) {
            None => found.push(format!("{interface}/{adapter}: {case}: not on the page")),
            Some(written) if written != cell => {
                found.push(format!(
                    "{interface}/{adapter}: {case}: the page says {written:?}, the run {cell:?}"
                ));
            }
            Some(_) => {}
        }
    }
    for (interface, adapter, case) in page.keys().filter(|key| !expected.contains_key(*key)) {
        if was_tested(interface, adapter) {
            found.push(format!("{interface}/{adapter}: {case}: on the page alone"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::outcomes::tests::suite;
    use super::*;

    fn adapter(name: &str, cases: &[(&str, Outcome)]) -> AdapterOutcomes {
        let cases = cases.iter().map(|(case, outcome)| ((*case).to_owned(), outcome.clone())).collect();
        AdapterOutcomes { interface: "state".to_owned(), name: name.to_owned(), cases }
    }

    fn outcomes() -> Outcomes {
        let no_server = || Outcome::NotTested("FLAMES_TEST_ETCD | is not set".to_owned());
        Outcomes {
            versions: BTreeMap::from([("postgres".to_owned(), "15.14".to_owned())]),
            adapters: vec![
                adapter(
                    "memory",
                    &[
                        ("a_read", Outcome::Proven),
                        ("a_write", Outcome::Proven),
                        ("a_restart", Outcome::NotSupported("it is not durable".to_owned())),
                    ],
                ),
                adapter(
                    "etcd",
                    &[("a_read", no_server()), ("a_write", no_server()), ("a_restart", no_server())],
                ),
                adapter(
                    "postgres",
                    &[
                        ("a_read", Outcome::Proven),
                        ("a_write", Outcome::NotSupported("it is not durable".to_owned())),
                        ("a_restart", Outcome::Proven),
                    ],
                ),
            ],
        }
    }

    #[test]
    fn the_page_has_a_row_for_each_guarantee_and_a_column_for_each_adapter() {
        let page = write(&outcomes(), &[suite()]);
        for line in [
            "| state | memory | itself | 2 | 1 | 0 |",
            "| state | etcd | nothing here: FLAMES_TEST_ETCD / is not set | 0 | 0 | 3 |",
            "| state | postgres | postgres 15.14 | 2 | 1 | 0 |",
            "### state: reads",
            "Reading.",
            "| Guarantee | memory | etcd | postgres |",
            "| a write | yes | — | n/a [1] |",
            "| a restart | n/a [1] | — | yes |",
            "- [1] it is not durable",
        ] {
            assert!(page.lines().any(|written| written == line), "{line}\n{page}");
        }
    }

    #[test]
    fn what_no_test_reaches_is_listed_as_compiled_and_untested() {
        let blob = Suite { interface: "blob", ..suite() };
        let page = write(&Outcomes::default(), &[blob]);
        assert!(page.contains("| blob | object-store: gcs | nothing: compiled, and untested here"), "{page}");
    }

    #[test]
    fn a_page_is_read_back_as_it_was_written_and_agrees_with_its_run() {
        let cells = read(&write(&outcomes(), &[suite()]));
        assert_eq!(cells.len(), 9);
        let cell =
            |adapter: &str, case: &str| cells[&("state".to_owned(), adapter.to_owned(), case.to_owned())];
        assert_eq!(cell("memory", "a_restart"), Cell::NotApplicable);
        assert_eq!(cell("etcd", "a_read"), Cell::Untested);
        assert_eq!(disagreements(&cells, &outcomes(), &[suite()]), Vec::<String>::new());
    }

    #[test]
    fn other_outcomes_new_cases_and_adapters_that_are_gone_are_disagreements() {
        let cells = read(&write(&outcomes(), &[suite()]));
        let mut run = outcomes();
        run.versions.clear();
        run.adapters[2].cases.insert("a_write".to_owned(), Outcome::Proven);
        run.adapters.remove(0);
        let mut grown = suite();
        grown.modules[0].cases.push("a_new_case".to_owned());
        run.adapters[1].cases.insert("a_new_case".to_owned(), Outcome::Proven);
        let found = disagreements(&cells, &run, &[grown]);
        assert_eq!(
            found,
            [
                "state/postgres: a_new_case: not on the page",
                "state/postgres: a_write: the page says NotApplicable, the run Yes",
                "state/memory: a_read: on the page alone",
                "state/memory: a_restart: on the page alone",
                "state/memory: a_write: on the page alone",
            ]
        );
    }

    #[test]
    fn an_adapter_whose_server_is_absent_is_not_compared() {
        let mut with_server = outcomes();
        with_server.adapters[1].cases.values_mut().for_each(|outcome| *outcome = Outcome::Proven);
        let page = read(&write(&with_server, &[suite()]));
        assert_eq!(disagreements(&page, &outcomes(), &[suite()]), Vec::<String>::new());
    }
}
