//! A suite, its cases, and running them under the test runner's command line.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::Time;
use crate::execute::{CASE_LIMIT, execute};

/// A case under way. It need not be `Send`: it is made and run on one thread.
pub type CaseFuture = Pin<Box<dyn Future<Output = ()>>>;

/// A line of a suite's table: a case that takes a fixture of type `F` (a `Box` or an `Arc` of the suite's own trait).
#[derive(Debug, Clone, Copy)]
pub struct Row<F> {
    /// The case's name: a sentence.
    pub name: &'static str,
    /// The capability that the case needs.
    pub needs: Option<&'static str>,
    /// Runs the case.
    pub run: fn(F) -> CaseFuture,
}

/// Lists the cases of a suite, module by module, as a `Vec<Row<F>>`. `case if capability` names what the case needs.
///
/// ```text
/// table![reads: an_absent_key_reads_as_none, an_empty_value_is_a_value; restarts: what_was_written_survives if durable]
/// ```
#[macro_export]
macro_rules! table {
    ($($module:ident: $($case:ident $(if $capability:ident)?),+ $(,)?);+ $(;)?) => {
        vec![$($($crate::Row {
            name: stringify!($case),
            needs: {
                let needs: &[&'static str] = &[$(stringify!($capability))?];
                needs.first().copied()
            },
            run: |fixture| Box::pin(async move { $module::$case(&*fixture).await }),
        }),+),+]
    };
}

/// One named test.
pub struct Case {
    /// Its name: a sentence.
    pub name: &'static str,
    /// Why this provider cannot be held to it, decided when the case is listed.
    pub ignored: Option<String>,
    /// How long it may take in real time.
    pub limit: Duration,
    /// Makes the case's future; called on the thread that runs it.
    pub run: Box<dyn FnOnce() -> CaseFuture + Send>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .field("ignored", &self.ignored)
            .finish_non_exhaustive()
    }
}

/// A service that a provider needs and that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// Its name, as `FLAMES_REQUIRE` may name it (`postgres`).
    pub service: String,
    /// What is missing, and how to bring it (`FLAMES_POSTGRES_URL is not set`).
    pub reason: String,
}

/// A suite as run against one provider.
#[derive(Debug)]
pub struct Suite {
    /// The interface (`state`).
    pub name: &'static str,
    /// The provider under test (`sqlite`).
    pub provider: &'static str,
    /// Set when the provider's service is not there: then every case is skipped, or fails when the service is required.
    /// To be decided without connecting.
    pub unavailable: Option<Unavailable>,
    /// The time that the cases run in.
    pub time: Time,
    /// The cases.
    pub cases: Vec<Case>,
}

impl Suite {
    /// An adapter's own tests beside its conformance suite, in real time: as cases, since a plain `#[test]` cannot be skipped when it is
    /// listed. `fresh` makes what each is given.
    pub fn own_tests<F: Deref + 'static, Made: Future<Output = F> + 'static>(
        name: &'static str,
        provider: &'static str,
        unavailable: Option<impl Into<Unavailable>>,
        rows: Vec<Row<F>>,
        fresh: impl Fn() -> Made + Send + Sync + 'static,
    ) -> Self {
        let unavailable = unavailable.map(Into::into);
        Self { name, provider, unavailable, time: Time::Real, cases: cases(rows, |_| None, fresh) }
    }
}

/// Turns a table into cases that each run on a fixture of their own.
///
/// `lacks` answers, for the name of a capability, why the provider does not have it (none: it has). `fresh` makes a fixture, on
/// the runtime of the case.
pub fn cases<F: Deref + 'static, Made: Future<Output = F> + 'static>(
    rows: Vec<Row<F>>,
    lacks: impl Fn(&str) -> Option<String>,
    fresh: impl Fn() -> Made + Send + Sync + 'static,
) -> Vec<Case> {
    let fresh = Arc::new(fresh);
    let case = |row: Row<F>| {
        let fresh = Arc::clone(&fresh);
        Case {
            name: row.name,
            ignored: row.needs.and_then(&lacks),
            limit: CASE_LIMIT,
            run: Box::new(move || Box::pin(async move { (row.run)(fresh().await).await })),
        }
    };
    rows.into_iter().map(case).collect()
}

/// Runs a suite as the test binary that it is in: the `main` of a test with `harness = false`. Understands the arguments of
/// `cargo test` and `cargo nextest`.
pub fn run(suite: Suite) -> ExitCode {
    let arguments = Arguments::from_args();
    let required = std::env::var("FLAMES_REQUIRE").unwrap_or_default();
    let first_to_run = suite.cases.iter().find(|case| case.ignored.is_none()).map(|case| case.name);
    let tells = tells_skips(&arguments, first_to_run);
    let trials = trials(suite, &required, |line| {
        if tells {
            tell(line);
        }
    });
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// nextest lists each binary twice (all, then only the ignored) and then starts it once for each case with `--exact`. To tell the
/// skips once and not for every case, they are told when the ignored cases are listed, and in the output of the first case that
/// runs, so that they stand in nextest's report of the run.
fn tells_skips(arguments: &Arguments, first_to_run: Option<&str>) -> bool {
    if arguments.list {
        arguments.ignored
    } else {
        !arguments.exact || arguments.filter.as_deref() == first_to_run
    }
}

#[allow(clippy::print_stderr)]
fn tell(line: &str) {
    eprintln!("{line}");
}

fn trials(suite: Suite, required: &str, tell: impl Fn(&str)) -> Vec<Trial> {
    let Suite { name: suite_name, provider, unavailable, time, cases } = suite;
    let is_required =
        |service: &str| required.split(',').map(str::trim).any(|name| name == "all" || name == service);
    cases
        .into_iter()
        .map(|case| {
            let absent_though_required = unavailable.as_ref().filter(|missing| is_required(&missing.service));
            if let (Some(missing), None) = (absent_though_required, &case.ignored) {
                let message = format!("{} is required and not there: {}", missing.service, missing.reason);
                return Trial::test(case.name, move || Err(Failed::from(message)));
            }
            match case.ignored.or_else(|| unavailable.as_ref().map(|missing| missing.reason.clone())) {
                Some(reason) => {
                    tell(&format!("skipped: {suite_name}/{provider}: {}: {reason}", case.name));
                    // Reached only with `--ignored` or `--include-ignored`.
                    Trial::ignorable_test(case.name, move || Ok(Completion::ignored_with(reason)))
                        .with_ignored_flag(true)
                }
                None => Trial::test(case.name, move || {
                    execute(case.name, time, case.limit, case.run).map_err(Failed::from)
                }),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn suite(unavailable: Option<Unavailable>) -> Suite {
        let case = |name, ignored: Option<&str>| Case {
            name,
            ignored: ignored.map(Into::into),
            limit: CASE_LIMIT,
            run: Box::new(|| Box::pin(async {})),
        };
        let cases = vec![case("it_works", None), case("it_lasts", Some("it is not durable"))];
        Suite { name: "demo", provider: "memory", unavailable, time: Time::Paused, cases }
    }

    fn listed(unavailable: Option<Unavailable>, required: &str) -> (Vec<bool>, Vec<String>) {
        let told = RefCell::new(Vec::new());
        let trials = trials(suite(unavailable), required, |line| told.borrow_mut().push(line.to_owned()));
        (trials.iter().map(Trial::has_ignored_flag).collect(), told.into_inner())
    }

    fn no_server() -> Option<Unavailable> {
        Some(Unavailable { service: "postgres".into(), reason: "FLAMES_POSTGRES_URL is not set".into() })
    }

    fn run_quietly(trials: Vec<Trial>) -> libtest_mimic::Conclusion {
        libtest_mimic::run(&Arguments { quiet: true, test_threads: Some(1), ..Arguments::default() }, trials)
    }

    #[test]
    fn a_case_whose_capability_is_missing_is_ignored_when_listed_with_its_reason() {
        let (ignored, told) = listed(None, "");
        assert_eq!(ignored, [false, true]);
        assert_eq!(told, ["skipped: demo/memory: it_lasts: it is not durable"]);
        assert!(
            !run_quietly(trials(suite(None), "all", |_| {})).has_failed(),
            "a missing capability is no failure"
        );
    }

    #[test]
    fn under_nextest_the_skips_are_told_once_by_the_first_case_that_runs() {
        let case = |name: &str| Arguments { exact: true, filter: Some(name.into()), ..Arguments::default() };
        assert!(tells_skips(&case("it_works"), Some("it_works")));
        assert!(!tells_skips(&case("it_grows"), Some("it_works")));
        assert!(tells_skips(&Arguments::default(), Some("it_works")), "under plain `cargo test`");
        let list = |ignored| Arguments { list: true, ignored, ..Arguments::default() };
        assert!(tells_skips(&list(true), None) && !tells_skips(&list(false), None));
    }

    #[test]
    fn every_case_of_an_absent_service_is_ignored_when_listed() {
        let (ignored, told) = listed(no_server(), "redis");
        assert_eq!(ignored, [true, true]);
        assert_eq!(told[0], "skipped: demo/memory: it_works: FLAMES_POSTGRES_URL is not set");
    }

    #[test]
    fn a_required_service_that_is_absent_fails_its_cases() {
        for required in ["postgres", "redis, postgres", "all"] {
            let (ignored, _) = listed(no_server(), required);
            assert_eq!(ignored, [false, true]);
            let conclusion = run_quietly(trials(suite(no_server()), required, |_| {}));
            assert_eq!((conclusion.num_failed, conclusion.num_ignored), (1, 1));
        }
    }
}
