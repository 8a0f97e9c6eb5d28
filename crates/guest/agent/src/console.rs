//! The agent's own few messages. The workload's output never goes here.

use std::io::Write;

/// Writes one line to standard error, which is the console of PID 1. A console that fails is ignored.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "flames-agent: {text}");
}
