//! Whether a suite's table is whole.

use std::collections::BTreeSet;

/// Panics, naming the cases, when a `pub async fn` (or `pub(crate)`) of `case_sources` is not in the table `names`, when a name in the table has no
/// such function, when a name is there twice, or when a case that the docs of `contract_sources` name is not in the table.
///
/// Sources are texts of Rust files, as `include_str!` gives them. Docs name cases in a paragraph that begins with `Cases:`, each in
/// backticks.
pub fn assert_table_is_complete(names: &[&str], case_sources: &[&str], contract_sources: &[&str]) {
    let listed: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let written: BTreeSet<String> = case_sources.iter().flat_map(|source| case_functions(source)).collect();
    let promised: BTreeSet<String> =
        contract_sources.iter().flat_map(|source| promised_cases(source)).collect();
    assert_eq!(names.len(), listed.len(), "a case is in the table twice");
    let missing =
        |of: &BTreeSet<String>, from: &BTreeSet<String>| of.difference(from).cloned().collect::<Vec<_>>();
    assert_eq!(missing(&written, &listed), Vec::<String>::new(), "written, but not in the table");
    assert_eq!(
        missing(&listed, &written),
        Vec::<String>::new(),
        "in the table, but in none of the sources given"
    );
    assert_eq!(
        missing(&promised, &listed),
        Vec::<String>::new(),
        "promised by the contract, but not in the table"
    );
    assert!(
        !promised.is_empty() || contract_sources.is_empty(),
        "the contract names no case: is its `Cases:` list gone?"
    );
}

fn case_functions(source: &str) -> impl Iterator<Item = String> {
    source.lines().filter_map(|line| {
        let rest =
            line.strip_prefix("pub async fn ").or_else(|| line.strip_prefix("pub(crate) async fn "))?;
        Some(rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect())
    })
}

fn promised_cases(source: &str) -> Vec<String> {
    let mut cases = Vec::new();
    let mut in_list = false;
    for line in source.lines() {
        let Some(doc) = line.trim_start().strip_prefix("//").and_then(|rest| rest.strip_prefix(['/', '!']))
        else {
            in_list = false;
            continue;
        };
        let doc = doc.trim();
        in_list = doc.starts_with("Cases:") || (in_list && !doc.is_empty());
        if in_list {
            cases.extend(doc.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASES: &str = "pub async fn a_lease_ends(fixture: &dyn Fixture) {}\nasync fn helper() {}\n";

    #[test]
    fn a_whole_table_passes() {
        let contract = "/// Not a case: `Ttl`.\n///\n/// Cases: `a_lease_ends`,\n/// `a_lease_starts`.\n///\n/// See `Other`.\nfn x();";
        assert_eq!(promised_cases(contract), ["a_lease_ends", "a_lease_starts"]);
        let more = "pub async fn a_lease_starts(_: &dyn Fixture) {}";
        assert_table_is_complete(&["a_lease_ends", "a_lease_starts"], &[CASES, more], &[contract]);
    }

    #[test]
    #[should_panic(expected = "written, but not in the table")]
    fn a_case_that_is_not_listed_is_found() {
        assert_table_is_complete(&[], &[CASES], &[]);
    }

    #[test]
    #[should_panic(expected = "promised by the contract, but not in the table")]
    fn a_promised_case_that_nobody_wrote_is_found() {
        assert_table_is_complete(
            &["a_lease_ends"],
            &[CASES],
            &["/// Cases: `a_lease_ends`, `a_lease_starts`."],
        );
    }
}
