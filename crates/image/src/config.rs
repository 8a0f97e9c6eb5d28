//! How an image wants to be run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The part of an image's configuration that says what to run and how (OCI image specification, "Image Configuration").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// The program and first arguments; a request that names a command replaces `cmd` and keeps this.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The default arguments after `entrypoint`, or the whole default command when that is empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// The environment, each as `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The working directory; `/` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// The user as the image writes it (`name`, `uid`, `name:group`, `uid:gid`), resolved in the guest; root when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The ports that the image says it serves, as `80/tcp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
    /// The signal that asks the program to end, as `SIGTERM` or `15`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// The image's labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl ImageConfig {
    /// The program and arguments that run, given the caller's own: `entrypoint` then the caller's, or else `cmd`.
    pub fn command(&self, own: &[String]) -> Vec<String> {
        let arguments = if own.is_empty() { &self.cmd } else { own };
        self.entrypoint.iter().chain(arguments).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_s_arguments_replace_cmd_and_keep_the_entrypoint() {
        let config = ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["serve".into()],
            ..ImageConfig::default()
        };
        assert_eq!(config.command(&[]), ["/entry", "serve"]);
        assert_eq!(config.command(&["sh".into()]), ["/entry", "sh"]);
        assert_eq!(serde_json::to_string(&ImageConfig::default()).unwrap(), "{}");
    }
}
