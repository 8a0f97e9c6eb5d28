//! A network namespace of a test's own, as the host of its guests' networks.

use std::path::Path;
use std::process::Command;

use flames_vmm::IncarnationName;
use flames_vmm_firecracker::FirecrackerConfig;

use super::base;

/// A network namespace that ends with this.
pub(crate) struct World(String);

impl World {
    pub(crate) fn new(cluster: &str) -> Self {
        let world = Self(format!("w{cluster}"));
        ip(&["netns", "add", &world.0]);
        world
    }

    /// With networks whose host is this namespace.
    pub(crate) fn networked(&self, config: FirecrackerConfig) -> FirecrackerConfig {
        let mut config = base::with_network(config);
        config.network.as_mut().unwrap().host_namespace = Some(Path::new("/run/netns").join(&self.0));
        config
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

fn ip(words: &[&str]) -> String {
    let output = Command::new("ip").args(words).output().unwrap();
    assert!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a machine's own namespace admits: the rules of its table, by `nft`.
fn table(cluster: &str, incarnation: &IncarnationName, what: &[&str]) -> String {
    let (namespace, table) = (format!("flames-{cluster}-{incarnation}"), format!("flames-{cluster}"));
    let [kind, rest @ ..] = what else { panic!("what to list") };
    let list = ["netns", "exec", &namespace, "nft", "list", kind, "inet", &table];
    ip(&[&list[..], rest].concat())
}

/// What a machine's own namespace admits of what it sends.
pub(crate) fn rules(cluster: &str, incarnation: &IncarnationName) -> String {
    table(cluster, incarnation, &["chain", "egress"])
}

/// All of a machine's rules, its sets among them.
pub(crate) fn all_rules(cluster: &str, incarnation: &IncarnationName) -> String {
    table(cluster, incarnation, &["table"])
}

/// Whether it admits whatever is public.
pub(crate) fn admits_all(rules: &str) -> bool {
    rules.lines().any(|rule| rule.trim().starts_with("meta nfproto ipv4 ct mark set"))
}
