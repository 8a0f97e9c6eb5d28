//! How a provider is brought under a suite.

use std::sync::Arc;

use async_trait::async_trait;

use crate::suite::{Case, CaseFuture};
use crate::{CASE_LIMIT, Hook, Row, Suite, Time, Unavailable};

/// How a provider is brought under test. `F` is what the suite's cases are given: its `dyn Fixture`.
#[async_trait]
pub trait Harness<F: ?Sized + Send + Sync + 'static>: Send + Sync + 'static {
    /// The provider's name, as it tells it itself.
    fn name(&self) -> &'static str;

    /// The time and the threads that the cases run in.
    fn time(&self) -> Time {
        Time::Real
    }

    /// Why the provider cannot be tested on this machine, told without connecting anywhere.
    fn unavailable(&self) -> Option<Unavailable> {
        None
    }

    /// Whether what was put into the provider is still there when it is opened anew. If so, its fixtures implement
    /// [`Hooks::reopen`](crate::Hooks::reopen).
    fn is_durable(&self) -> bool {
        false
    }

    /// What the fixtures of [`Harness::fresh_for`] can do beyond the provider's own calls, told without connecting anywhere.
    fn hooks(&self) -> &'static [Hook] {
        &[]
    }

    /// An empty provider, apart from all others, for one case.
    async fn fresh(&self) -> Box<F>;

    /// As [`Harness::fresh`], with a fixture that can do what `hook`, one of [`Harness::hooks`], names: behind a proxy of its own, over a
    /// server of its own, with a small pool, or with a clock of its own.
    async fn fresh_for(&self, hook: Hook) -> Box<F> {
        let _ = hook;
        self.fresh().await
    }
}

/// What a suite is, before it is told of a provider.
#[derive(Debug)]
pub struct Interface<F: ?Sized + 'static> {
    /// Its name (`state`).
    pub name: &'static str,
    /// What one is called (`store`), for the reasons why cases are skipped.
    pub noun: &'static str,
    /// The cases. What one needs is `durable`, a hook in lower case, or a capability that the interface has of its own.
    pub rows: Vec<Row<Box<F>>>,
}

impl<F: ?Sized + Send + Sync + 'static> Interface<F> {
    /// The suite for one provider, where the interface has no capabilities of its own.
    pub fn suite(self, harness: impl Harness<F>) -> Suite {
        let unknown =
            |capability: &str| panic!("the table names a capability that does not exist: {capability}");
        self.suite_with(harness, unknown, async |_| ())
    }

    /// The suite for one provider. `lacks` answers, for the name of one of the interface's own capabilities, why the provider does not have
    /// it (none: it has). `check` looks at each fresh fixture first: whether the provider says of itself what `lacks` does.
    pub fn suite_with(
        self,
        harness: impl Harness<F>,
        lacks: impl Fn(&str) -> Option<String>,
        check: impl AsyncFn(&F) + Send + Sync + 'static,
    ) -> Suite {
        let Self { name, noun, rows } = self;
        let (harness, check) = (Arc::new(harness), Arc::new(check));
        let missing = |capability: &str| match (capability, Hook::named(capability)) {
            (_, Some(hook)) => (!harness.hooks().contains(&hook)).then(|| hook.missing(noun)),
            ("durable", None) => (!harness.is_durable()).then(|| format!("the {noun} is not durable")),
            (_, None) => lacks(capability),
        };
        let case = |row: Row<Box<F>>| {
            let (fresh, check) = (Arc::clone(&harness), Arc::clone(&check));
            Case {
                name: row.name,
                ignored: row.needs.and_then(&missing),
                limit: CASE_LIMIT,
                run: Box::new(move || -> CaseFuture {
                    Box::pin(async move {
                        // Cases that need a hook run on fixtures that have it.
                        let fixture = match row.needs.and_then(Hook::named) {
                            Some(hook) => fresh.fresh_for(hook).await,
                            None => fresh.fresh().await,
                        };
                        check(&fixture).await;
                        (row.run)(fixture).await;
                    })
                }),
            }
        };
        let cases = rows.into_iter().map(case).collect();
        Suite {
            name,
            provider: harness.name(),
            unavailable: harness.unavailable(),
            time: harness.time(),
            cases,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{failures, table};

    mod sentences {
        pub(super) async fn a_text_has_letters(text: &str) {
            assert!(!text.is_empty());
        }
        pub(super) async fn a_text_is_long(text: &str) {
            assert!(text.len() > 5, "only {} letters", text.len());
        }
        pub(super) async fn a_text_is_of_stone(_: &str) {}
        pub(super) async fn a_text_lasts(_: &str) {}
        pub(super) async fn a_text_is_made_for_a_broken_network(text: &str) {
            assert_eq!(text, "made for Faults");
        }
        pub(super) async fn a_text_is_made_for_a_killed_server(_: &str) {}
    }

    struct Texts;

    #[async_trait]
    impl Harness<str> for Texts {
        fn name(&self) -> &'static str {
            "texts"
        }
        fn time(&self) -> Time {
            Time::Paused
        }
        fn hooks(&self) -> &'static [Hook] {
            &[Hook::Faults]
        }
        async fn fresh(&self) -> Box<str> {
            Box::from("short")
        }
        async fn fresh_for(&self, hook: Hook) -> Box<str> {
            format!("made for {hook:?}").into_boxed_str()
        }
    }

    #[test]
    fn each_case_runs_on_a_fixture_of_its_own_or_is_skipped_with_a_reason() {
        let rows: Vec<Row<Box<str>>> = table![
            sentences:
                a_text_has_letters, a_text_is_long, a_text_is_of_stone if stone, a_text_lasts if durable,
                a_text_is_made_for_a_broken_network if faults, a_text_is_made_for_a_killed_server if restart
        ];
        let interface = Interface { name: "demo", noun: "text", rows };
        let lacks = |capability: &str| Some(format!("not of {capability}"));
        let suite = interface.suite_with(Texts, lacks, async |text: &str| assert_ne!(text, "unchecked"));
        let ignored: Vec<_> = suite.cases.iter().map(|case| case.ignored.as_deref()).collect();
        let reasons = [
            None,
            None,
            Some("not of stone"),
            Some("the text is not durable"),
            None,
            Some("there is no server to restart"),
        ];
        assert_eq!(ignored, reasons);
        let failures = failures(suite.cases, suite.time);
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert_eq!(failures["a_text_is_long"], "only 5 letters");
    }

    #[test]
    fn a_fixture_that_does_not_keep_to_what_was_said_fails_every_case() {
        let interface = Interface { name: "demo", noun: "text", rows: table![sentences: a_text_has_letters] };
        let suite = interface.suite_with(Texts, |_| None, async |_| panic!("it is another"));
        assert_eq!(failures(suite.cases, suite.time)["a_text_has_letters"], "it is another");
    }
}
