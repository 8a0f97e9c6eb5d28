//! `cargo xtask support`: docs/support.md, which adapter keeps which promise, out of what the suites themselves told.

pub(crate) mod outcomes;
mod page;
mod suites;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::test::report::Results;
use crate::{Verdict, workspace};
use outcomes::{Outcome, Outcomes};

/// How many disagreements are shown.
const SHOWN: usize = 20;

/// Write docs/support.md.
#[derive(Args)]
pub(crate) struct SupportArguments {
    /// Write nothing, and fail when the page does not agree with the last run about what an adapter keeps (versions may differ).
    #[arg(long)]
    check: bool,
}

/// Writes or checks the page, from the last whole run of `cargo xtask test`.
///
/// # Errors
/// When there was none, or some case of a suite failed in it, or the page cannot be written.
pub(crate) fn run(arguments: &SupportArguments) -> Result<Verdict> {
    let outcomes = Outcomes::load(&outcomes_file())?;
    if arguments.check {
        return check(&outcomes);
    }
    let failed: Vec<String> = outcomes
        .adapters
        .iter()
        .flat_map(|adapter| {
            let failed = adapter.cases.iter().filter(|(_, outcome)| **outcome == Outcome::Failed);
            failed.map(|(case, _)| format!("{}/{}: {case}", adapter.interface, adapter.name))
        })
        .collect();
    if !failed.is_empty() {
        bail!("cases failed in the last run, so there is no page to write: {}", failed.join("; "));
    }
    let suites = suites::of_checkout(&workspace::root())?;
    let page = page_file();
    std::fs::write(&page, page::write(&outcomes, &suites).trim_end().to_owned() + "\n")
        .with_context(|| format!("cannot write {}", page.display()))?;
    println!("{}: {} adapters", page.display(), outcomes.adapters.len());
    for adapter in outcomes.adapters.iter().filter(|adapter| !adapter.was_tested()) {
        println!("not tested here: {}/{}", adapter.interface, adapter.name);
    }
    Ok(Verdict::Passed)
}

/// Keeps the outcomes of a run of whole suites: of all, or else in place of what was kept of the same adapters.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn keep(
    versions: Vec<(&'static str, String)>,
    results: &Results,
    of_all: bool,
) -> Result<Outcomes> {
    let versions: BTreeMap<String, String> =
        versions.into_iter().map(|(name, version)| (name.to_owned(), version)).collect();
    let suites = suites::of_checkout(&workspace::root())?;
    let mut outcomes = Outcomes::of_run(versions, results, &suites);
    // What cannot be read is of an older form, or not there: nothing to keep.
    if let (false, Ok(before)) = (of_all, Outcomes::load(&outcomes_file())) {
        outcomes.complete_from(before, &suites);
    }
    outcomes.save(&outcomes_file())?;
    Ok(outcomes)
}

/// Whether the page says what the run showed; prints where it does not.
///
/// # Errors
/// When the suites' sources cannot be read.
pub(crate) fn check(outcomes: &Outcomes) -> Result<Verdict> {
    let suites = suites::of_checkout(&workspace::root())?;
    let text = std::fs::read_to_string(page_file()).unwrap_or_default();
    let found = page::disagreements(&page::read(&text), outcomes, &suites);
    if found.is_empty() {
        println!("docs/support.md agrees with what the suites showed");
        return Ok(Verdict::Passed);
    }
    println!(
        "docs/support.md does not agree with what the suites showed; `cargo xtask support` writes it anew"
    );
    for line in found.iter().take(SHOWN) {
        println!("  {line}");
    }
    if found.len() > SHOWN {
        println!("  … and {} more", found.len() - SHOWN);
    }
    Ok(Verdict::Refused)
}

fn outcomes_file() -> PathBuf {
    workspace::target_folder().join("xtask/conformance.json")
}

fn page_file() -> PathBuf {
    workspace::root().join("docs/support.md")
}
