use serde::{Deserialize, Serialize};

use crate::limits::MAX_PROCESS_ID_LENGTH;

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A process to start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The id that the host gives it, so that asking again after a lost answer gets `already_exists` and not a
    /// second process; letters, digits, `-`, `_`, at most 64 bytes. `None`: the agent makes one.
    #[serde(default)]
    pub process: Option<String>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// What is added to the workload's environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The working directory; `None`: the workload's.
    #[serde(default)]
    pub working_directory: Option<String>,
    /// The user; `None`: the workload's.
    #[serde(default)]
    pub user: Option<String>,
    /// A terminal of this size, in place of three pipes.
    #[serde(default)]
    pub tty: Option<TerminalSize>,
    /// Whether its standard input is open; else it reads `/dev/null`. A terminal is always open.
    #[serde(default)]
    pub stdin: bool,
}

/// The answer to an exec.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecStarted {
    /// The process's id.
    pub process: String,
    /// Its number in the guest.
    pub pid: u32,
}

/// A process to join.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AttachRequest {
    /// The process's id.
    pub process: String,
    /// The offset in all of its output from which to replay; 0 is the beginning. What the ring no longer holds
    /// is announced by a truncated frame.
    #[serde(default)]
    pub from_offset: u64,
    /// Whether data frames of this stream go to its standard input.
    #[serde(default)]
    pub stdin: bool,
    /// Whether the process waits for this stream's reader in place of dropping output that it has not read.
    #[serde(default)]
    pub lossless: bool,
    /// Whether to go on when the present output was replayed; else the stream ends there.
    #[serde(default)]
    pub follow: bool,
}

/// A process, by its id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessRequest {
    /// The process's id.
    pub process: String,
}

/// A signal to send.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SignalRequest {
    /// The process's id.
    pub process: String,
    /// The signal's number on Linux, 1 to 31.
    pub signal: i32,
    /// Whether the whole process group gets it.
    #[serde(default)]
    pub group: bool,
}

/// A new size of a terminal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResizeRequest {
    /// The process's id.
    pub process: String,
    /// The new size.
    pub size: TerminalSize,
}

/// One process that the agent knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Its id.
    pub process: String,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Its number in the guest; 0 when it never started.
    pub pid: u32,
    /// Whether it has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// When it was started, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// The bytes of output so far; the offset at which the next one will stand.
    #[serde(default)]
    pub output_length: u64,
    /// The offset of the first byte that the ring still holds.
    #[serde(default)]
    pub output_available_from: u64,
    /// How it ended; `None` while it runs.
    #[serde(default)]
    pub exit: Option<ProcessExit>,
    /// Whether the host has acknowledged the exit.
    #[serde(default)]
    pub acknowledged: bool,
}

/// How a process ended. Exactly one of `code` and `signal` is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessExit {
    /// The exit code. A program that could not be started has 127 (not found) or 126 (not executable).
    #[serde(default)]
    pub code: Option<i32>,
    /// The number of the signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// When, in milliseconds since 1970 by the guest's clock.
    pub at_ms: u64,
    /// Why it never started, for a person.
    #[serde(default)]
    pub start_error: Option<String>,
}

/// Whether a process id from a host is one.
#[must_use]
pub fn is_process_id(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_PROCESS_ID_LENGTH
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}
