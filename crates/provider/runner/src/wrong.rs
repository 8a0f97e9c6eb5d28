//! The test of a suite itself: providers that are wrong in one way each, and the cases that must catch each.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{Suite, failures};

/// Lists, for [`WrongProviders::add`], which cases must catch which flaw: `caught![Flaw: NoName => a_store_names_its_adapter; …]`. Others
/// may catch it as well.
#[macro_export]
macro_rules! caught {
    ($flaws:ident: $($flaw:ident => $($case:ident),+);+ $(;)?) => {
        &[$(($flaws::$flaw, &[$(stringify!($case)),+])),+]
    };
}

/// Flaws, and the cases that must catch a provider that has them: what [`caught!`] gives.
pub type Caught<Flaw> = [(Flaw, &'static [&'static str])];

/// All wrong providers of a suite.
#[derive(Debug, Default)]
pub struct WrongProviders {
    trials: Vec<Trial>,
    cases: BTreeSet<&'static str>,
    catching: BTreeSet<&'static str>,
}

impl WrongProviders {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Providers of one kind. `suite` is the suite for the one that has a flaw; with a flaw of `harmless`, it passes.
    #[must_use]
    pub fn add<Flaw: Debug + Copy + Send + 'static>(
        mut self,
        kind: &str,
        suite: fn(Flaw) -> Suite,
        harmless: &[Flaw],
        caught: &Caught<Flaw>,
    ) -> Self {
        for flaw in harmless.iter().copied() {
            let cases = suite(flaw).cases;
            self.cases.extend(cases.iter().map(|case| case.name));
            let trial = move || told(&failures(cases, suite(flaw).time));
            self.trials.push(Trial::test(format!("{kind}::{flaw:?}_passes_every_case"), trial));
        }
        for (flaw, by) in caught.iter().copied() {
            self.catching.extend(by);
            let trial = move || all_catch(suite(flaw), by);
            self.trials.push(Trial::test(format!("{kind}::{flaw:?}_is_caught"), trial));
        }
        self
    }

    /// A provider that is not wrong in what these cases promise, whatever else it does.
    #[must_use]
    pub fn passes<Flaw: Debug + Copy + Send + 'static>(
        mut self,
        kind: &str,
        suite: fn(Flaw) -> Suite,
        flaw: Flaw,
        cases: &'static [&'static str],
    ) -> Self {
        let trial = move || told(&failures(chosen(suite(flaw), cases)?, suite(flaw).time));
        self.trials.push(Trial::test(format!("{kind}::{flaw:?}_is_not_called_wrong"), trial));
        self
    }

    /// Runs the tests as the test binary that they are in, each flaw under its name, and one for the whole: every case catches something.
    pub fn run(self) -> ExitCode {
        let Self { mut trials, cases, catching } = self;
        trials.push(Trial::test("every_case_catches_something", move || {
            told(&cases.difference(&catching).collect::<Vec<_>>())
        }));
        libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
    }
}

/// The cases of these names, which must be there and not be skipped.
fn chosen(suite: Suite, names: &[&str]) -> Result<Vec<crate::Case>, Failed> {
    let mut cases = suite.cases;
    cases.retain(|case| case.ignored.is_none() && names.contains(&case.name));
    if cases.len() == names.len() { Ok(cases) } else { Err(format!("not all of {names:?} run").into()) }
}

fn all_catch(suite: Suite, by: &[&'static str]) -> Result<(), Failed> {
    let time = suite.time;
    let failed = failures(chosen(suite, by)?, time);
    let blind: Vec<_> = by.iter().filter(|case| !failed.contains_key(*case)).collect();
    if blind.is_empty() { Ok(()) } else { Err(format!("not seen by {blind:?}").into()) }
}

/// Fails with what there is, if there is anything.
fn told<T: Debug + PartialEq + Default>(found: &T) -> Result<(), Failed> {
    if *found == T::default() { Ok(()) } else { Err(format!("{found:#?}").into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CASE_LIMIT, Case, Time};

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Flaw {
        None,
        Late,
        Mute,
    }

    fn suite(flaw: Flaw) -> Suite {
        let case = |name, passes: bool, ignored| Case {
            name,
            ignored,
            limit: CASE_LIMIT,
            run: Box::new(move || Box::pin(async move { assert!(passes) })),
        };
        let skipped = Some("there is none".to_owned());
        let cases = vec![
            case("it_is_early", flaw != Flaw::Late, None),
            case("it_speaks", flaw != Flaw::Mute, None),
            case("it_sings", false, skipped),
        ];
        Suite { name: "demo", provider: "demo", unavailable: None, time: Time::Paused, cases }
    }

    fn failed(wrong: WrongProviders) -> u64 {
        let quietly = Arguments { quiet: true, test_threads: Some(1), ..Arguments::default() };
        libtest_mimic::run(&quietly, wrong.trials).num_failed
    }

    fn wrong(caught: &Caught<Flaw>) -> WrongProviders {
        WrongProviders::new().add("demo", suite, &[Flaw::None], caught)
    }

    #[test]
    fn a_flaw_that_its_cases_see_is_caught() {
        let wrong = wrong(caught![Flaw: Late => it_is_early; Mute => it_speaks]);
        assert_eq!(wrong.cases.difference(&wrong.catching).collect::<Vec<_>>(), [&"it_sings"]);
        assert_eq!(failed(wrong.passes("demo", suite, Flaw::Mute, &["it_is_early"])), 0);
    }

    #[test]
    fn a_case_that_is_blind_or_skipped_or_not_there_fails() {
        assert_eq!(failed(wrong(caught![Flaw: Late => it_is_early, it_speaks])), 1);
        assert_eq!(failed(wrong(caught![Flaw: Late => it_sings])), 1);
        assert_eq!(failed(wrong(caught![Flaw: Late => it_dances])), 1);
        assert_eq!(failed(wrong(&[]).passes("demo", suite, Flaw::Mute, &["it_speaks"])), 1);
    }

    #[test]
    fn a_right_provider_that_fails_a_case_fails() {
        assert_eq!(failed(WrongProviders::new().add("demo", suite, &[Flaw::Late], &[])), 1);
    }
}
