//! Which guarantees there are: the tables of the conformance suites, read from their sources.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// The provider interfaces, in the order of the page.
pub(super) const INTERFACES: [&str; 6] = ["state", "blob", "cache", "queue", "ingress", "vmm"];

/// Where a module of cases may be, below its crate's `src`.
const PLACES: [&str; 4] = ["{}.rs", "cases/{}.rs", "{}/mod.rs", "cases/{}/mod.rs"];

/// One interface's suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suite {
    pub(super) interface: &'static str,
    pub(super) modules: Vec<Module>,
}

/// Cases that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) name: String,
    /// The first line of its documentation.
    pub(super) title: String,
    pub(super) cases: Vec<String>,
}

impl Suite {
    pub(super) fn has(&self, case: &str) -> bool {
        self.modules.iter().any(|module| module.cases.iter().any(|known| known == case))
    }

    pub(super) fn size(&self) -> usize {
        self.modules.iter().map(|module| module.cases.len()).sum()
    }
}

/// The suites of the checkout at `root`.
///
/// # Errors
/// When one has no table that can be read.
pub(super) fn of_checkout(root: &Path) -> Result<Vec<Suite>> {
    INTERFACES
        .iter()
        .map(|interface| {
            let sources = root.join("crates/provider").join(interface).join("conformance/src");
            let library = sources.join("lib.rs");
            let text = std::fs::read_to_string(&library).with_context(|| library.display().to_string())?;
            let modules = modules_of(&text)
                .into_iter()
                .map(|(name, cases)| Module { title: title(&sources, &name), name, cases })
                .collect();
            let suite = Suite { interface, modules };
            ensure!(suite.size() > 0, "{} has no `table![…]` with cases", library.display());
            Ok(suite)
        })
        .collect()
}

/// `table![module: case, case if capability; module: …]`.
fn modules_of(source: &str) -> Vec<(String, Vec<String>)> {
    let code: Vec<&str> =
        source.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code)).collect();
    let code = code.join("\n");
    let table = code.split_once("table![").and_then(|(_, rest)| rest.split_once(']'));
    let Some((table, _)) = table else { return Vec::new() };
    table
        .split(';')
        .filter_map(|group| {
            let (module, cases) = group.split_once(':')?;
            let case = |text: &str| text.split_whitespace().next().map(str::to_owned);
            Some((module.trim().to_owned(), cases.split(',').filter_map(case).collect()))
        })
        .collect()
}

fn title(sources: &Path, module: &str) -> String {
    let text = PLACES
        .iter()
        .find_map(|place| std::fs::read_to_string(sources.join(place.replace("{}", module))).ok())
        .unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("//! ")).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_with_its_modules_and_without_its_capabilities() {
        let source = "fn rows() {\n  table![\n reads:\n // the first\n a_read, // said twice\n another_read if durable;\n logs: a_log, ] }";
        let modules = modules_of(source);
        assert_eq!(modules[0], ("reads".to_owned(), vec!["a_read".to_owned(), "another_read".to_owned()]));
        assert_eq!(modules[1], ("logs".to_owned(), vec!["a_log".to_owned()]));
        assert_eq!(modules_of("no table"), []);
    }

    #[test]
    fn every_suite_of_this_checkout_has_a_table_and_each_module_says_what_it_is_about() {
        let suites = of_checkout(&crate::workspace::root()).unwrap();
        for suite in suites {
            assert!(suite.size() >= 10, "{}: {}", suite.interface, suite.size());
            for module in suite.modules {
                assert!(!module.title.is_empty(), "{}/{}", suite.interface, module.name);
            }
        }
    }
}
